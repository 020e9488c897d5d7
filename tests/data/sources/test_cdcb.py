"""The recipes of coloured digits by hand, and the embedded digits."""

import numpy as np
import pytest
from helpers import built
from PIL import Image

from iiae_cli.data.sources.cdcb import (
    colour_pair,
    embedded_digits,
    outline_pair,
    resize_pictures,
    sketch_pair,
)
from iiae_cli.data.sources.plan import PrepareOptions

GREY = np.array([[[0, 50, 102], [103, 200, 255]]], np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def many(seed=0, rows=40, size=9):
    return rng(seed).integers(0, 256, (rows, size, size)).astype(np.uint8)


# ---- the recipe of MNIST-CDCB


def test_the_recipe_by_hand():
    x, y, factors = colour_pair(GREY, rng())
    background, foreground = factors["x_color"][0].tolist(), factors["y_color"][0].tolist()
    grey = [[[value] * 3 for value in row] for row in GREY[0].tolist()]
    # 102 is still background: the threshold is strict.
    assert x[0].tolist() == [[background] * 3, grey[1]]
    assert y[0].tolist() == [grey[0], [foreground] * 3]
    assert x.dtype == y.dtype == np.uint8 and x.shape == y.shape == (1, 2, 3, 3)


def test_the_same_digit_stands_in_both_domains():
    grey = many()
    x, y, factors = colour_pair(grey, rng(1))
    digit = grey > 102
    for row in range(len(grey)):
        assert (x[row][~digit[row]] == factors["x_color"][row]).all()
        assert (y[row][digit[row]] == factors["y_color"][row]).all()
        assert (x[row][digit[row]] == grey[row][digit[row]][:, None]).all()
        assert (y[row][~digit[row]] == grey[row][~digit[row]][:, None]).all()


@pytest.mark.parametrize("recipe", [colour_pair, outline_pair, sketch_pair])
def test_colours_are_seeded(recipe):
    first, again, other = recipe(many(), rng(3)), recipe(many(), rng(3)), recipe(many(), rng(4))
    for one, two in zip(first[:2], again[:2], strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[2]["y_color"], other[2]["y_color"])
    assert first[2]["y_color"].dtype == np.uint8 and first[2]["y_color"].shape == (40, 3)


@pytest.mark.parametrize("recipe", [colour_pair, outline_pair])
def test_colours_are_uniform_over_rgb_and_independent(recipe):
    factors = recipe(np.zeros((8000, 1, 1), np.uint8), rng(5))[2]
    columns = np.concatenate([factors["x_color"], factors["y_color"]], axis=1).astype(float)
    assert columns.min() == 0 and columns.max() == 255
    np.testing.assert_allclose(columns.mean(0), 127.5, atol=4)
    np.testing.assert_allclose(columns.std(0), 73.9, atol=2)
    assert np.abs(np.corrcoef(columns.T) - np.eye(6)).max() < 0.05


def test_an_outline_is_the_ring_of_pixels_around_the_digit():
    grey = np.where(rng(6).random((5, 8, 9)) > 0.8, 200, 102).astype(np.uint8)
    grey[0] = 0
    grey[0, 0, 0] = 103  # at a corner
    x, y, factors = outline_pair(grey, rng(7))
    np.testing.assert_array_equal(x, colour_pair(grey, rng(7))[0])
    for row in range(5):
        for i in range(8):
            for j in range(9):
                around = grey[row, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2] > 102
                outlined = grey[row, i, j] <= 102 and around.any()
                expected = factors["y_color"][row] if outlined else [0, 0, 0]
                assert y[row, i, j].tolist() == list(expected)
    assert (y[0] == factors["y_color"][0]).all(axis=2).sum() == 3


def slow_gradient(line):
    """Central differences, one-sided at both ends."""
    last = len(line) - 1
    return [
        (float(line[min(i + 1, last)]) - float(line[max(i - 1, 0)]))
        / (min(i + 1, last) - max(i - 1, 0))
        for i in range(len(line))
    ]


def test_a_sketch_is_the_edge_map_dark_on_white():
    grey = many(8, rows=3, size=6)
    grey[0] = 77
    x, _, _ = sketch_pair(grey, rng())
    assert (x[0] == 255).all()  # nothing to see
    for row in range(3):
        across = np.array([slow_gradient(grey[row, i]) for i in range(6)])
        down = np.array([slow_gradient(grey[row, :, j]) for j in range(6)]).T
        strength = np.clip(2 * np.sqrt(across**2 + down**2), 0, 255)
        np.testing.assert_allclose(x[row, ..., 0], 255 - np.floor(strength), atol=1)
        assert (x[row] == x[row][..., :1]).all()


def test_a_garment_covers_its_coloured_ground_by_its_opacity():
    grey = np.array([[[0, 51], [102, 240]]], np.uint8)
    _, y, factors = sketch_pair(grey, rng(9))
    ground = factors["y_color"][0].astype(float)
    assert set(factors) == {"y_color"}
    np.testing.assert_array_equal(y[0, 0, 0], ground)
    np.testing.assert_allclose(y[0, 0, 1], 0.5 * 51 + 0.5 * ground, atol=0.51)
    assert y[0, 1].tolist() == [[102] * 3, [240] * 3]


@pytest.mark.parametrize("recipe", [colour_pair, outline_pair, sketch_pair])
def test_no_pictures_give_no_pairs(recipe):
    x, y, _ = recipe(np.empty((0, 28, 28), np.uint8), rng())
    assert x.shape == y.shape == (0, 28, 28, 3)


def test_grey_pictures_are_enlarged_bicubically():
    grey = many(10, rows=2)
    assert resize_pictures(grey, 9) is grey
    expected = Image.fromarray(grey[1]).resize((20, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_pictures(grey, 20)[1], np.asarray(expected))


# ---- embedded digits


@pytest.fixture(scope="module")
def digits():
    return built("digits-cdcb", PrepareOptions(seed=0)).splits


def test_the_embedded_digits_are_all_there(digits):
    assert set(digits) == {"train", "test"}
    train, test = digits["train"], digits["test"]
    assert train.x.rows.shape == train.y.rows.shape == (1497, 32, 32, 3)
    assert test.x.rows.shape == test.y.rows.shape == (300, 32, 32, 3)
    assert train.x.rows.dtype == train.y.rows.dtype == np.uint8


def recovered(split):
    """(grey, digit mask) of every pair: x shows the digit's grey, y the rest."""
    digit = (split.y.rows == split.factors["y_color"][:, None, None]).all(axis=3)
    return np.where(digit, split.x.rows[..., 0], split.y.rows[..., 0]), digit


def test_embedded_pairs_agree_with_their_factors_and_labels(digits):
    for name, split in digits.items():
        rows = len(split.x)
        assert (
            split.x.ids == split.y.ids == [f"{name}/{number:05d}" for number in range(1, rows + 1)]
        )
        assert split.x.labels == split.y.labels == [str(label) for label in split.factors["class"]]
        assert split.factors["x_color"].shape == split.factors["y_color"].shape == (rows, 3)
        assert split.pairs is None
        _, digit = recovered(split)
        assert (digit.mean((1, 2)) > 0.03).all() and (digit.mean((1, 2)) < 0.7).all()
        background = split.x.rows == split.factors["x_color"][:, None, None]
        assert background[~digit].all()
        assert (split.x.rows[digit] == split.x.rows[digit][:, :1]).all() and split.x.rows[
            digit
        ].min() > 102


def test_train_and_test_divide_the_digits_without_overlap(digits):
    grey, labels = embedded_digits(32)
    assert grey.shape == (1797, 32, 32) and labels.shape == (1797,)
    known = {}
    for one, label in zip(grey, labels.tolist(), strict=True):
        known.setdefault((one.tobytes(), str(label)), []).append(1)
    for split in digits.values():
        for one, label in zip(recovered(split)[0], split.x.labels, strict=True):
            known[
                (one.tobytes(), label)
            ].pop()  # KeyError or IndexError: changed, mislabelled or seen twice
    assert not any(known.values())


def test_the_division_is_stratified(digits):
    _, labels = embedded_digits(32)
    for label in range(10):
        share = 300 * (labels == label).sum() / 1797
        assert abs(digits["test"].x.labels.count(str(label)) - share) <= 1


def test_the_seed_decides_colours_and_division(digits):
    again = built("digits-cdcb", PrepareOptions(seed=0)).splits
    other = built("digits-cdcb", PrepareOptions(seed=1)).splits
    for name in ("train", "test"):
        np.testing.assert_array_equal(again[name].x.rows, digits[name].x.rows)
        np.testing.assert_array_equal(again[name].y.rows, digits[name].y.rows)
        assert other[name].x.labels != digits[name].x.labels
        assert not np.array_equal(other[name].factors["x_color"], digits[name].factors["x_color"])
    assert not np.array_equal(
        digits["train"].factors["x_color"][:300], digits["test"].factors["x_color"]
    )


def test_the_edge_variant_shares_x_and_outlines_y(digits):
    edge = built("digits-edge", PrepareOptions(seed=0, limit=20)).splits
    for name in ("train", "test"):
        assert len(edge[name].x) == 20
        assert edge[name].x.labels == digits[name].x.labels[:20]
        coloured = (edge[name].y.rows == edge[name].factors["y_color"][:, None, None]).all(axis=3)
        assert (edge[name].y.rows[~coloured] == 0).all()
        _, digit = recovered(digits[name])
        assert not (coloured & digit[:20]).any() and (coloured.sum((1, 2)) > 20).all()
    np.testing.assert_array_equal(
        edge["train"].x.rows, colour_pair(recovered(digits["train"])[0][:20], rng(0))[0]
    )


def test_limit_and_image_size_apply_to_the_embedded_digits():
    splits = built("digits-cdcb", PrepareOptions(limit=7, image_size=16)).splits
    assert {name: split.x.rows.shape for name, split in splits.items()} == {
        "train": (7, 16, 16, 3),
        "test": (7, 16, 16, 3),
    }
    assert len(splits["train"].x.labels) == len(splits["train"].factors["class"]) == 7
