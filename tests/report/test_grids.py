"""Panels of pictures: one size, crisp, framed, captions that stay inside, the paper's layouts."""

import numpy as np
import pytest
from helpers import small_model
from hypothesis import given
from hypothesis import strategies as st

from iiae_cli.data.datafile import Side, Split
from iiae_cli.inference.trained import Styles, TrainedModel, styles_of
from iiae_cli.report.grids import (
    FRAMES,
    GAP,
    HAIRLINE,
    PAPER,
    TEXT_HEIGHT,
    TILE,
    Panel,
    Tile,
    sample_panel,
    scaled,
    to_rgb,
    translation_panel,
)

WHITE = np.full((8, 8, 3), 255, np.uint8)


def flat(value):
    """A picture of a colour that no text has."""
    return np.full((8, 8, 3), (value, 0, value), np.uint8)


def at(image, value):
    """(row, column) of the first pixel of a flat tile."""
    row, column = np.argwhere((np.asarray(image) == (value, 0, value)).all(2))[0]
    return int(row), int(column)


def inked(image):
    """Rows and columns that hold anything but paper and hairlines."""
    marked = (np.asarray(image) != PAPER).any(2) & (np.asarray(image) != HAIRLINE).any(2)
    return np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))


@given(st.integers(1, 4 * TILE), st.integers(1, 4 * TILE))
def test_every_picture_has_the_same_longer_side(height, width):
    image = scaled(np.zeros((height, width, 3), np.uint8))
    assert max(image.size) == TILE
    assert min(image.size) == pytest.approx(TILE * min(height, width) / max(height, width), abs=1)


def test_a_small_picture_stays_crisp():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(scaled(noise)), noise.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("channels, kept", [(2, [0, 0, 0]), (4, [0, 1, 2])])
def test_pictures_of_any_channel_count_are_shown(channels, kept):
    picture = np.arange(20 * channels, dtype=np.uint8).reshape(4, 5, channels)
    np.testing.assert_array_equal(to_rgb(picture), picture[..., kept])


def test_tiles_stand_in_rows_and_columns_with_a_wider_gap_between_groups():
    rows = [[Tile(flat(10)), Tile(flat(20)), Tile(flat(30))], [Tile(None), Tile(flat(40))]]
    image = Panel(rows, gaps_after=[1]).draw()
    assert [at(image, value) for value in (10, 20, 30, 40)] == [
        (GAP, GAP),
        (GAP, TILE + 3 * GAP),
        (GAP, 2 * TILE + 7 * GAP),
        (TILE + 3 * GAP, TILE + 3 * GAP),
    ]


def test_frames_surround_their_tiles_and_do_not_touch():
    rows = [[Tile(flat(10), "a", "right"), Tile(flat(20), "b", "wrong")], [Tile(flat(30), "c")]]
    array = np.asarray(Panel(rows).draw())
    (top, left), (_, second), (below, _) = (at(array, value) for value in (10, 20, 30))
    edges = (top - 2, left), (top + TILE + 1, left), (top, left - 2), (top, left + TILE + 1)
    assert all(tuple(array[edge]) == FRAMES["right"] for edge in edges)
    assert (array[top : top + TILE, left + TILE : second] == PAPER).all(2).all(0).any()
    assert (array[below - 5, left : left + TILE] == PAPER).all()  # between caption and next frame


def test_captions_stand_below_and_headers_above():
    bare, captioned = Panel([[Tile(WHITE)]]).draw(), Panel([[Tile(WHITE, ["cat", "dog"])]]).draw()
    headed = Panel([[Tile(WHITE)]], headers=["cat"]).draw()
    assert captioned.height >= bare.height + 2 * TEXT_HEIGHT
    assert headed.height == bare.height + TEXT_HEIGHT
    assert len(inked(bare)[0]) == 0 and inked(captioned)[0].min() > GAP + TILE
    assert inked(headed)[0].max() < TEXT_HEIGHT + GAP


@given(st.text())
def test_any_caption_stays_within_its_tile(text):
    blank = Tile(WHITE)
    _, columns = inked(Panel([[blank, Tile(WHITE, [text]), blank]], headers=["", text, ""]).draw())
    left = TILE + 3 * GAP - 1  # letters are smoothed over their edges
    assert not len(columns) or (left <= columns.min() and columns.max() < left + TILE + 2)


# ---- the paper's layouts


def shown(count, source="x", references=0):
    """The grey of each tile, for two inputs, 10 and 11, with outputs 50… and 70…."""
    given = [(flat(200 + number), f"ref/{number}.png") for number in range(references)]
    styles = Styles(["name"] * count, given or [None] * count, lambda positions: None)
    made = [
        (flat(10 + row), f"in/{row}.png", [flat(50 + 20 * row + k) for k in range(count)])
        for row in range(2)
    ]
    rows = translation_panel(source, "y", styles, made).rows
    return [[None if t.picture is None else t.picture[0, 0, 0] for t in row] for row in rows]


def test_references_stand_above_their_outputs_and_within_one_domain_beside_them():
    expected = [[None, 200, 201, 202], [10, 50, 51, 52], [11, 70, 71, 72]]
    assert shown(3, references=3) == expected
    assert shown(1, references=1) == [[None, 200], [10, 50], [11, 70]]
    assert shown(2) == [[10, 50, 51], [11, 70, 71]]
    assert shown(1, "y", references=1) == [[10, 200, 50], [11, 200, 70]]
    assert shown(2, "y", references=2) == [[10, 200, 50, 201, 51], [11, 200, 70, 201, 71]]


def test_table_one_has_the_papers_columns():
    model, draw = TrainedModel(small_model("maps"), (16, 16)), np.random.default_rng(0)
    rows = [draw.integers(0, 256, (2, 16, 16, channels), np.uint8) for channels in (3, 1)]
    panel = sample_panel(model, Split(*(Side(side, ["0", "1"]) for side in rows)), samples=2)
    assert panel.headers[:4] == ["x", "sample 1", "sample 2", "guided"] and panel.gaps_after == [3]
    for (source, target), start in ((("x", "y"), 0), (("y", "x"), 4)):
        own, other = rows if source == "x" else rows[::-1]
        styles = styles_of(model, target, None, other.__getitem__, samples=2, seed=0)
        outputs = model.translate(own, source, target, styles.exclusive([0, 1]))
        for row, picture, made in zip(panel.rows, own, outputs, strict=True):
            assert all(
                np.array_equal(tile.picture, shown)
                for tile, shown in zip(row[start : start + 4], [picture, *made], strict=True)
            )
