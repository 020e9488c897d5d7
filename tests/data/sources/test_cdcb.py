"""The recipes of coloured digits by hand, the embedded digits, and sets in IDX files."""

import gzip

import numpy as np
import pytest
from class_sources import idx_bytes, picture
from helpers import built, refusal
from sklearn.datasets import load_digits

from iiae_cli.common.files import sha256_of
from iiae_cli.data.sources import cdcb
from iiae_cli.data.sources.cdcb import colour_pair, outline_pair, sketch_pair

GREY = np.array([[[0, 50, 102], [103, 200, 255]]], np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


# ---- the recipes


def test_the_recipe_by_hand():
    x, y, factors = colour_pair(GREY, rng())
    background, foreground = factors["x_color"][0].tolist(), factors["y_color"][0].tolist()
    grey = [[[value] * 3 for value in row] for row in GREY[0].tolist()]
    # 102 is still background: the threshold is strict.
    assert x[0].tolist() == [[background] * 3, grey[1]]
    assert y[0].tolist() == [grey[0], [foreground] * 3]
    assert x.dtype == y.dtype == np.uint8 and x.shape == y.shape == (1, 2, 3, 3)


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
    for row, i, j in np.ndindex(grey.shape):
        around = grey[row, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2] > 102
        outlined = grey[row, i, j] <= 102 and around.any()
        assert y[row, i, j].tolist() == (factors["y_color"][row].tolist() if outlined else [0] * 3)
    assert (y[0] == factors["y_color"][0]).all(axis=2).sum() == 3


def test_a_sketch_is_the_edge_map_dark_on_white():
    grey = np.array([[[0, 0, 10, 30], [0, 0, 10, 30]]], np.uint8)  # alike in both rows
    x, _, _ = sketch_pair(grey, rng())
    assert x[0, 1].tolist() == [[255 - 2 * slope] * 3 for slope in (0, 5, 15, 20)]


def test_a_garment_covers_its_coloured_ground_by_its_opacity():
    grey = np.array([[[0, 51], [102, 240]]], np.uint8)
    _, y, factors = sketch_pair(grey, rng(9))
    ground = factors["y_color"][0].astype(float)
    np.testing.assert_array_equal(y[0, 0, 0], ground)
    np.testing.assert_allclose(y[0, 0, 1], 0.5 * 51 + 0.5 * ground, atol=0.51)
    assert y[0, 1].tolist() == [[102] * 3, [240] * 3]


# ---- embedded digits


@pytest.fixture(scope="module")
def digits():
    return built("digits-cdcb", seed=0).splits


def recovered(split):
    """(grey, digit mask) of every pair: x shows the digit's grey, y the rest."""
    digit = (split.y.rows == split.factors["y_color"][:, None, None]).all(axis=3)
    return np.where(digit, split.x.rows[..., 0], split.y.rows[..., 0]), digit


def test_embedded_pairs_agree_with_their_factors_and_labels(digits):
    for (name, split), rows in zip(digits.items(), (1497, 300), strict=True):
        assert split.x.rows.shape == split.y.rows.shape == (rows, 32, 32, 3)
        ids = [f"{name}/{number:05d}" for number in range(1, rows + 1)]
        assert split.x.ids == split.y.ids == ids and split.pairs is None
        assert split.x.labels == split.y.labels == [str(label) for label in split.factors["class"]]
        assert split.factors["x_color"].shape == split.factors["y_color"].shape == (rows, 3)
        _, digit = recovered(split)
        assert (split.x.rows == split.factors["x_color"][:, None, None])[~digit].all()


def test_the_division_is_stratified_and_the_seed_decides_it_and_the_colours(digits):
    labels = load_digits().target
    for name, (grey, own) in cdcb.embedded_digits(32, seed=0).items():
        np.testing.assert_array_equal(recovered(digits[name])[0], grey)
        assert digits[name].x.labels == list(map(str, own)) and set(np.unique(grey)) == {0, 255}
    drawn = digits["train"].x.labels + digits["test"].x.labels
    assert sorted(drawn) == sorted(map(str, labels))
    for label in range(10):
        share = 300 * (labels == label).sum() / 1797
        assert abs(digits["test"].x.labels.count(str(label)) - share) <= 1
    again, other = (built("digits-cdcb", seed=seed).splits for seed in (0, 1))
    for name in ("train", "test"):
        np.testing.assert_array_equal(again[name].x.rows, digits[name].x.rows)
        np.testing.assert_array_equal(again[name].y.rows, digits[name].y.rows)
        assert other[name].x.labels != digits[name].x.labels
        assert not np.array_equal(other[name].factors["x_color"], digits[name].factors["x_color"])


def test_the_edge_variant_outlines_y_and_limit_and_size_apply(digits):
    edge = built("digits-edge", seed=0, limit=20).splits
    for name in ("train", "test"):
        assert edge[name].x.labels == digits[name].x.labels[:20]
        grey, _ = recovered(digits[name])
        assert (edge[name].y.rows[grey[:20] > 102] == 0).all()
    small = built("digits-cdcb", limit=7, image_size=16).splits
    assert [split.x.rows.shape for split in small.values()] == [(7, 16, 16, 3)] * 2


# ---- IDX files


def idx_source(folder, *, suffix="", train=8, test=4):
    """MNIST's four files; returns pictures and labels of train, pictures and labels of test."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = rng()
    arrays = []
    for name, rows in zip(cdcb.IDX_FILES, (train, train, test, test), strict=True):
        high, shape = (256, (rows, 28, 28)) if "images" in name else (10, (rows,))
        arrays.append(draw.integers(0, high, shape).astype(np.uint8))
        content = idx_bytes(arrays[-1])
        path = folder / f"{name}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_divided_into_train_valid_and_test(tmp_path, monkeypatch, suffix):
    assert cdcb.TRAIN_IDX == 50_000 and cdcb.TEST_DIGITS == 300  # the paper's
    monkeypatch.setattr(cdcb, "TRAIN_IDX", 5)
    train, train_labels, test, test_labels = idx_source(tmp_path, suffix=suffix)
    prepared = built("mnist-cdcb", tmp_path)
    wanted = {
        "train": (train[:5], train_labels[:5]),
        "valid": (train[5:], train_labels[5:]),
        "test": (test, test_labels),
    }
    assert list(prepared.splits) == ["train", "valid", "test"]
    small = built("mnist-cdcb", tmp_path, limit=2, image_size=20).splits["train"]
    larger = prepared.splits["train"].x.rows[:2]  # coloured before, as the published ones
    assert small.x.rows.shape == (2, 20, 20, 3) and larger.shape == (2, 28, 28, 3)
    for name, (grey, labels) in wanted.items():
        split, digit = prepared.splits[name], grey > 102
        assert split.x.labels == split.y.labels == [str(label) for label in labels]
        np.testing.assert_array_equal(split.factors["class"], labels)
        assert split.x.ids[0] == split.y.ids[0] == f"{name}/00001"
        assert (split.x.rows[digit] == grey[digit][:, None]).all()
        assert (split.y.rows[~digit] == grey[~digit][:, None]).all()
    colours = [split.factors["x_color"] for split in prepared.splits.values()]
    assert len(np.unique(np.concatenate(colours), axis=0)) == 12
    sha256 = sha256_of(*[tmp_path / f"{name}{suffix}" for name in cdcb.IDX_FILES])
    assert prepared.attributes == {"source": "MNIST", "source_sha256": sha256}


def test_fashion_sets_use_their_recipes_and_debians_files(tmp_path, monkeypatch):
    train, *_ = idx_source(tmp_path / "FashionMNIST" / "raw")  # torchvision's folder
    coloured = built("fashion-cdcb", tmp_path).splits
    np.testing.assert_array_equal(coloured["train"].x.rows, colour_pair(train, rng())[0])
    sketched = built("fashion-edges", tmp_path).splits["train"]
    np.testing.assert_array_equal(sketched.y.rows, sketch_pair(train, rng())[1])
    for path in (tmp_path / "FashionMNIST" / "raw").iterdir():
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))  # as some mirrors have it
    monkeypatch.setattr(cdcb, "DEBIAN_FASHION", tmp_path)
    found = built("fashion-cdcb").splits["train"]
    np.testing.assert_array_equal(found.x.rows, coloured["train"].x.rows)


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        (0, lambda content: content[:-1], "is damaged"),
        (0, lambda content: content[:8], "is damaged"),
        (1, lambda content: b"<html>not found</html>", "is not an IDX file of bytes"),
        (1, lambda content: b"\0\0\x0d\x01\0\0\0\0", "is not an IDX file of bytes"),
        (0, lambda content: b"\0\0\x08\x02" + b"\xff" * 8, "is damaged"),
        (1, lambda content: idx_bytes(np.zeros(5, np.uint8)), "(8, 28, 28) pictures, (5,) labels"),
        (3, None, f"does not hold {cdcb.IDX_FILES[0]}, "),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_and_missing_files_are_named(tmp_path, place, change, said, suffix):
    idx_source(tmp_path, suffix=suffix)
    path = tmp_path / f"{cdcb.IDX_FILES[place]}{suffix}"
    packed = path.read_bytes()
    path.unlink()
    if change is not None:
        content = change(gzip.decompress(packed) if suffix else packed)
        path.write_bytes(gzip.compress(content) if suffix else content)
    assert said in refusal(built, "mnist-cdcb", tmp_path).message


def test_a_folder_of_the_published_pictures_is_taken_as_it_is(tmp_path):
    for name, value in (("train/1", 10), ("train/2", 20), ("train/10", 100), ("test/3", 30)):
        picture(tmp_path / f"{name}.png", value, (8, 16))
    splits = built("mnist-cdcb", tmp_path).splits
    assert splits["train"].x.ids == ["train/1", "train/2", "train/10"]
    assert splits["train"].x.rows.shape == splits["train"].y.rows.shape == (3, 8, 8, 3)
    assert splits["test"].y.rows[0, 0, 0].tolist() == [30] * 3
