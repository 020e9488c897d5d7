"""Pictures of pictures: crisp tiles, frames, captions that stay inside."""

import numpy as np
import pytest
from PIL import Image

from iiae_cli.evaluation.grids import (
    GAP,
    PAPER,
    RIGHT,
    TEXT_HEIGHT,
    TILE,
    WRONG,
    Tile,
    TranslationRow,
    draw_grid,
    enlarge,
    table1_grid,
    to_rgb,
)


def noise(shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def flat(value, shape=(8, 8, 3)):
    return np.full(shape, value, np.uint8)


def corner(array, picture):
    """Where `picture` first occurs in `array`: (row, column) of its top-left corner."""
    height, width = picture.shape[:2]
    for row, column in np.argwhere((array == picture[0, 0]).all(2)).tolist():
        part = array[row : row + height, column : column + width]
        if part.shape == picture.shape and (part == picture).all():
            return row, column
    raise AssertionError("the picture is not there")


def has_colour(image, colour):
    return bool((np.asarray(image) == colour).all(2).any())


def ink(image):
    """Columns and rows that hold anything but paper."""
    marked = (np.asarray(image) != PAPER).any(2)
    return np.flatnonzero(marked.any(0)), np.flatnonzero(marked.any(1))


# ---- one tile


@pytest.mark.parametrize("shape", [(8, 8, 3), (32, 32, 3), (5, 7, 3), (28, 9, 3), (96, 96, 3), (150, 100, 3)])
def test_small_pictures_are_enlarged_by_whole_factors_without_smoothing(shape):
    picture = noise(shape)
    image = enlarge(picture)
    factor = image.height // shape[0]
    assert image.size == (shape[1] * factor, shape[0] * factor)
    assert TILE <= max(image.size) < TILE + max(shape[:2])
    np.testing.assert_array_equal(np.asarray(image), picture.repeat(factor, 0).repeat(factor, 1))


def test_large_pictures_are_shrunk_with_their_aspect():
    image = enlarge(noise((400, 800, 3)))
    assert image.size == (2 * TILE, TILE)
    assert np.asarray(image).std() < 60  # smoothed, not thinned


@pytest.mark.parametrize("channels, shown", [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])])
def test_pictures_of_any_channel_count_are_shown(channels, shown):
    picture = noise((4, 5, channels))
    np.testing.assert_array_equal(to_rgb(picture), picture[..., shown])
    assert enlarge(picture).mode == "RGB"


# ---- grids


def test_tiles_stand_in_rows_and_columns():
    pictures = [flat(value) for value in (10, 60, 110, 160)]
    array = np.asarray(draw_grid([[Tile(pictures[0]), Tile(pictures[1])], [Tile(pictures[2]), Tile(pictures[3])]]))
    corners = [corner(array, flat(value, (TILE, TILE, 3))) for value in (10, 60, 110, 160)]
    assert corners[0][0] == corners[1][0] < corners[2][0] == corners[3][0]
    assert corners[0][1] == corners[2][1] < corners[1][1] == corners[3][1]
    assert corners[1][1] - corners[0][1] >= TILE + GAP


def test_a_wider_gap_separates_groups():
    row = [Tile(flat(value)) for value in (10, 60, 110)]
    plain, grouped = draw_grid([row]), draw_grid([row], gaps_after=[1])
    assert grouped.width == plain.width + 3 * GAP
    lefts = [corner(np.asarray(grouped), flat(value, (TILE, TILE, 3)))[1] for value in (10, 60, 110)]
    assert lefts[1] - lefts[0] == TILE + GAP
    assert lefts[2] - lefts[1] == TILE + 4 * GAP


def test_frames_have_their_colours():
    rows = [[Tile(flat(10), frame=RIGHT), Tile(flat(60), frame=WRONG), Tile(flat(110))]]
    image = draw_grid(rows)
    array = np.asarray(image)
    for value, colour in ((10, RIGHT), (60, WRONG)):
        top, left = corner(array, flat(value, (TILE, TILE, 3)))
        for row, column in ((top - 1, left), (top + TILE, left), (top, left - 1), (top, left + TILE)):
            assert tuple(array[row, column]) == colour
    top, left = corner(array, flat(110, (TILE, TILE, 3)))
    assert tuple(array[top, left + TILE]) == PAPER
    plain = draw_grid([[Tile(flat(10))]])
    assert not has_colour(plain, RIGHT) and not has_colour(plain, WRONG)


def test_captions_stand_below_and_headers_above():
    bare = draw_grid([[Tile(flat(255))]])
    captioned = draw_grid([[Tile(flat(255), "cat")]])
    headed = draw_grid([[Tile(flat(255))]], headers=["cat"])
    assert captioned.height == bare.height + TEXT_HEIGHT and headed.height == bare.height + TEXT_HEIGHT
    assert len(ink(bare)[1]) == 0
    assert ink(captioned)[1].min() > GAP + TILE
    assert ink(headed)[1].max() < TEXT_HEIGHT + GAP


def test_a_long_caption_is_clipped_within_its_tile():
    text = "a/very/long/path/that/no/tile/could/ever/hold/whole/00001.png"
    image = draw_grid([[Tile(flat(255)), Tile(flat(255), text), Tile(flat(255))]], headers=["", text, ""])
    columns, _ = ink(image)
    left = GAP + TILE + GAP
    assert left <= columns.min() and columns.max() < left + TILE
    assert columns.max() - columns.min() > TILE / 2
    ended = draw_grid([[Tile(flat(255)), Tile(flat(255), "x" * 300), Tile(flat(255))]], headers=["", text, ""])
    assert image.tobytes() != ended.tobytes()


def test_the_end_of_a_long_caption_is_kept():
    """Paths differ at their end."""

    def drawn(text):
        return draw_grid([[Tile(flat(255), text)]]).tobytes()

    assert drawn("/a/b/c/d/e/f/g/h/i/j/k/one.png") != drawn("/a/b/c/d/e/f/g/h/i/j/k/two.png")
    assert drawn("/1/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/one.png") == drawn("/2/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/one.png")


def test_a_short_caption_is_centred():
    image = draw_grid([[Tile(flat(255), "ii")]])
    columns, _ = ink(image)
    middle = GAP + TILE / 2
    assert abs((columns.min() + columns.max() + 1) / 2 - middle) <= 2


def test_grey_pictures_and_pictures_of_several_sizes_are_accepted():
    image = draw_grid([[Tile(noise((8, 8, 1))), Tile(noise((12, 6, 3)))], [Tile(noise((20, 20, 4)))]])
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    grey = draw_grid([[Tile(flat(77, (8, 8, 1)))]])
    assert corner(np.asarray(grey), flat(77, (TILE, TILE, 3))) == (GAP, GAP)


def test_a_blank_keeps_its_place():
    blank = draw_grid([[Tile(None), Tile(flat(10))]])
    full = draw_grid([[Tile(flat(60)), Tile(flat(10))]])
    assert blank.size == full.size
    assert corner(np.asarray(blank), flat(10, (TILE, TILE, 3))) == corner(np.asarray(full), flat(10, (TILE, TILE, 3)))
    missing = np.asarray(draw_grid([[Tile(None, "gone"), Tile(flat(10))]]))
    assert tuple(missing[GAP + TILE // 2, GAP + TILE // 2]) == (225, 225, 225)


# ---- Table 1


def test_table_one_has_the_papers_columns():
    left = [
        TranslationRow(flat(10), [flat(20), flat(30)], flat(40)),
        TranslationRow(flat(11), [flat(21), flat(31)], None),
    ]
    right = [
        TranslationRow(flat(50), [flat(60), flat(70)], flat(80)),
        TranslationRow(flat(51), [flat(61), flat(71)], flat(81)),
    ]
    image = table1_grid(left, right, samples=2)
    array = np.asarray(image)
    places = [corner(array, flat(value, (TILE, TILE, 3))) for value in (10, 20, 30, 40, 50, 60, 70, 80)]
    columns = [column for _, column in places]
    assert columns == sorted(columns) and len({row for row, _ in places}) == 1
    gaps = np.diff(columns)
    assert (gaps[[0, 1, 2, 4, 5, 6]] == TILE + GAP).all() and gaps[3] == TILE + 4 * GAP
    second = [corner(array, flat(value, (TILE, TILE, 3))) for value in (11, 21, 31, 51, 61, 71, 81)]
    assert [column for _, column in second] == [columns[i] for i in (0, 1, 2, 4, 5, 6, 7)]
    assert {row for row, _ in second} == {places[0][0] + TILE + GAP}
    headers = (array[: TEXT_HEIGHT + GAP] != PAPER).any((0, 2))
    assert all(headers[column : column + TILE].any() for column in columns)


def test_both_halves_of_table_one_have_as_many_rows():
    row = TranslationRow(flat(10), [], flat(20))
    with pytest.raises(ValueError):
        table1_grid([row, row], [row], samples=0)
