"""Pictures of pictures: crisp tiles, frames, captions that stay inside."""

import numpy as np
import pytest
from PIL import Image

from iiae_cli.report.grids import (
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
from iiae_cli.report.translation_grids import TranslationGrid


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


@pytest.mark.parametrize(
    "shape", [(8, 8, 3), (32, 32, 3), (5, 7, 3), (28, 9, 3), (96, 96, 3), (150, 100, 3)]
)
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


@pytest.mark.parametrize(
    "channels, shown", [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])]
)
def test_pictures_of_any_channel_count_are_shown(channels, shown):
    picture = noise((4, 5, channels))
    np.testing.assert_array_equal(to_rgb(picture), picture[..., shown])
    assert enlarge(picture).mode == "RGB"


# ---- grids


def test_tiles_stand_in_rows_and_columns():
    pictures = [flat(value) for value in (10, 60, 110, 160)]
    array = np.asarray(
        draw_grid([[Tile(pictures[0]), Tile(pictures[1])], [Tile(pictures[2]), Tile(pictures[3])]])
    )
    corners = [corner(array, flat(value, (TILE, TILE, 3))) for value in (10, 60, 110, 160)]
    assert corners[0][0] == corners[1][0] < corners[2][0] == corners[3][0]
    assert corners[0][1] == corners[2][1] < corners[1][1] == corners[3][1]
    assert corners[1][1] - corners[0][1] >= TILE + GAP


def test_a_wider_gap_separates_groups():
    row = [Tile(flat(value)) for value in (10, 60, 110)]
    plain, grouped = draw_grid([row]), draw_grid([row], gaps_after=[1])
    assert grouped.width == plain.width + 3 * GAP
    lefts = [
        corner(np.asarray(grouped), flat(value, (TILE, TILE, 3)))[1] for value in (10, 60, 110)
    ]
    assert lefts[1] - lefts[0] == TILE + GAP
    assert lefts[2] - lefts[1] == TILE + 4 * GAP


def test_frames_have_their_colours():
    rows = [[Tile(flat(10), frame=RIGHT), Tile(flat(60), frame=WRONG), Tile(flat(110))]]
    image = draw_grid(rows)
    array = np.asarray(image)
    for value, colour in ((10, RIGHT), (60, WRONG)):
        top, left = corner(array, flat(value, (TILE, TILE, 3)))
        for row, column in (
            (top - 1, left),
            (top + TILE, left),
            (top, left - 1),
            (top, left + TILE),
        ):
            assert tuple(array[row, column]) == colour
    top, left = corner(array, flat(110, (TILE, TILE, 3)))
    assert tuple(array[top, left + TILE]) == PAPER
    plain = draw_grid([[Tile(flat(10))]])
    assert not has_colour(plain, RIGHT) and not has_colour(plain, WRONG)


def test_captions_stand_below_and_headers_above():
    bare = draw_grid([[Tile(flat(255))]])
    captioned = draw_grid([[Tile(flat(255), "cat")]])
    headed = draw_grid([[Tile(flat(255))]], headers=["cat"])
    assert (
        captioned.height == bare.height + TEXT_HEIGHT and headed.height == bare.height + TEXT_HEIGHT
    )
    assert len(ink(bare)[1]) == 0
    assert ink(captioned)[1].min() > GAP + TILE
    assert ink(headed)[1].max() < TEXT_HEIGHT + GAP


def test_a_long_caption_is_clipped_within_its_tile():
    text = "a/very/long/path/that/no/tile/could/ever/hold/whole/00001.png"
    image = draw_grid(
        [[Tile(flat(255)), Tile(flat(255), text), Tile(flat(255))]], headers=["", text, ""]
    )
    columns, _ = ink(image)
    left = GAP + TILE + GAP
    assert left <= columns.min() and columns.max() < left + TILE
    assert columns.max() - columns.min() > TILE / 2
    ended = draw_grid(
        [[Tile(flat(255)), Tile(flat(255), "x" * 300), Tile(flat(255))]], headers=["", text, ""]
    )
    assert image.tobytes() != ended.tobytes()


def test_the_end_of_a_long_caption_is_kept():
    """Paths differ at their end."""

    def drawn(text):
        return draw_grid([[Tile(flat(255), text)]]).tobytes()

    assert drawn("/a/b/c/d/e/f/g/h/i/j/k/one.png") != drawn("/a/b/c/d/e/f/g/h/i/j/k/two.png")
    assert drawn("/1/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/one.png") == drawn(
        "/2/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/one.png"
    )


def test_a_short_caption_is_centred():
    image = draw_grid([[Tile(flat(255), "ii")]])
    columns, _ = ink(image)
    middle = GAP + TILE / 2
    assert abs((columns.min() + columns.max() + 1) / 2 - middle) <= 2


def test_grey_pictures_and_pictures_of_several_sizes_are_accepted():
    image = draw_grid(
        [[Tile(noise((8, 8, 1))), Tile(noise((12, 6, 3)))], [Tile(noise((20, 20, 4)))]]
    )
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    grey = draw_grid([[Tile(flat(77, (8, 8, 1)))]])
    assert corner(np.asarray(grey), flat(77, (TILE, TILE, 3))) == (GAP, GAP)


def test_a_blank_keeps_its_place():
    blank = draw_grid([[Tile(None), Tile(flat(10))]])
    full = draw_grid([[Tile(flat(60)), Tile(flat(10))]])
    assert blank.size == full.size
    assert corner(np.asarray(blank), flat(10, (TILE, TILE, 3))) == corner(
        np.asarray(full), flat(10, (TILE, TILE, 3))
    )
    missing = np.asarray(draw_grid([[Tile(None, "gone"), Tile(flat(10))]]))
    assert tuple(missing[GAP + TILE // 2, GAP + TILE // 2]) == (225, 225, 225)


def test_a_caption_may_have_several_lines():
    one, two = (draw_grid([[Tile(flat(255), text)]]) for text in ("cat", "cat\ndog"))
    assert two.height == one.height + TEXT_HEIGHT
    assert ink(two)[1].max() >= ink(one)[1].max() + TEXT_HEIGHT - 3


def test_names_of_files_may_hold_anything():
    plain = draw_grid([[Tile(flat(255), "a b")]])
    for text in ("a\tb", "a\0b", "a\udcffb", "a\x1bb"):
        assert draw_grid([[Tile(flat(255), text)]]).tobytes() == plain.tobytes()


def test_narrow_pictures_leave_room_for_their_texts():
    image = draw_grid([[Tile(flat(10, (64, 8, 3)), "0123456789")]], headers=["reference y"])
    array = np.asarray(image)
    assert image.width == TILE + 2 * GAP
    _, left = corner(array, flat(10, (128, 16, 3)))
    assert left == GAP + (TILE - 16) // 2


def test_framed_tiles_do_not_touch():
    rows = [
        [Tile(flat(10), "a", RIGHT), Tile(flat(60), "b", WRONG)],
        [Tile(flat(110), "c", RIGHT), Tile(flat(160))],
    ]
    array = np.asarray(draw_grid(rows))
    first, second, below = (corner(array, flat(value, (TILE, TILE, 3))) for value in (10, 60, 110))
    between = array[first[0] : first[0] + TILE, first[1] + TILE : second[1]]
    assert (between == PAPER).all(2).all(0).any()
    caption = array[first[0] + TILE : below[0], first[1] : first[1] + TILE]
    assert (caption[-5] == PAPER).all()  # between the caption and the frame below


@pytest.mark.parametrize("columns", [1, 4])
def test_a_legend_says_what_frames_mean_and_is_never_clipped(columns):
    row = [Tile(flat(10), frame=RIGHT) for _ in range(columns)]
    texts = [
        (RIGHT, "green frame: partner or same class"),
        (WRONG, "red frame: other or other class"),
    ]
    plain, image = draw_grid([row]), draw_grid([row], legend=texts)
    legend = image.crop((0, plain.height, *image.size))
    assert has_colour(legend, RIGHT) and has_colour(legend, WRONG)
    wide = draw_grid([[Tile(flat(10))] * 12], legend=texts)
    low = wide.crop((0, draw_grid([[Tile(flat(10))] * 12]).height, *wide.size))
    drawn, whole = ((np.asarray(part) != PAPER).any(2).sum() for part in (legend, low))
    assert drawn == whole  # as much ink as where there is room for all
    columns_inked, rows_inked = ink(legend)
    assert columns_inked.max() < image.width - 1 and rows_inked.max() < legend.height - 1


# ---- translation grids


def translation_grid(count, source="x", target="y", **more):
    references = [
        (flat(200 + number), f"ref/{number}.png") for number in range(more.pop("given", 0))
    ]
    if more.get("interpolated"):
        references[1:1] = [None] * (count - 2)
    grid = TranslationGrid(
        source, target, [f"name {number}" for number in range(count)], references, **more
    )
    for number in range(2):
        grid.add(
            flat(10 + number),
            f"in/{number}.png",
            [flat(50 + 20 * number + k) for k in range(count)],
        )
    return np.asarray(grid.draw())


def at(array, value):
    return corner(array, flat(value, (TILE, TILE, 3)))


def test_a_reference_stands_above_its_own_output_where_others_are_sampled():
    array = translation_grid(3)
    references = [None, (flat(200), "red.png"), None]
    grid = TranslationGrid("x", "y", ["sample 1", "red.png", "guided"], references)
    grid.add(flat(10), "in.png", [flat(50), flat(51), flat(52)])
    mixed = np.asarray(grid.draw())
    assert at(mixed, 200)[1] == at(mixed, 51)[1] and at(mixed, 200)[0] < at(mixed, 51)[0]
    assert at(mixed, 50)[0] == at(mixed, 52)[0] and mixed.shape[0] > array.shape[0] // 2


def test_samples_stand_beside_their_input():
    array = translation_grid(3)
    for number in range(2):
        places = [
            at(array, value) for value in (10 + number, *(50 + 20 * number + k for k in range(3)))
        ]
        assert len({row for row, _ in places}) == 1
        assert [column for _, column in places] == sorted(column for _, column in places)
    assert at(array, 10)[0] < at(array, 11)[0]


@pytest.mark.parametrize("count, source", [(1, "x"), (3, "x"), (3, "y")])
def test_references_stand_above_their_outputs(count, source):
    array = translation_grid(count, source, "y", given=count)
    for k in range(count):
        above, first, second = at(array, 200 + k), at(array, 50 + k), at(array, 70 + k)
        assert above[1] == first[1] == second[1] and above[0] < first[0] < second[0]
    assert at(array, 10)[0] == at(array, 50)[0]


@pytest.mark.parametrize("count", [1, 2])
def test_an_analogy_is_query_reference_output(count):
    array = translation_grid(count, "y", "y", given=count)
    for number in range(2):
        row, left = at(array, 10 + number)
        for k in range(count):
            output = at(array, 50 + 20 * number + k)
            assert output[0] == row and output[1] > left
            reference = array[row, output[1] - TILE - GAP]
            assert tuple(reference) == (200 + k,) * 3
            left = output[1]


@pytest.mark.parametrize("source", ["x", "y"])
def test_the_ends_of_an_interpolation_stand_above_its_first_and_last_step(source):
    array = translation_grid(5, source, "y", given=2, interpolated=True)
    assert at(array, 200)[1] == at(array, 50)[1] and at(array, 201)[1] == at(array, 54)[1]
    assert at(array, 200)[0] == at(array, 201)[0] < at(array, 50)[0]


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
    places = [
        corner(array, flat(value, (TILE, TILE, 3))) for value in (10, 20, 30, 40, 50, 60, 70, 80)
    ]
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
