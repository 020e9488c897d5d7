"""Data sets from their sources: recipes by hand, embedded digits, IDX files, side-by-side pictures,
folders.
"""

import gzip
import json

import numpy as np
import pytest
from helpers import built
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import DataFile, sha256_of
from iiae_cli.data.sources import cdcb, idx
from iiae_cli.data.sources.cdcb import (
    colour_pair,
    embedded_digits,
    outline_pair,
    resize_pictures,
    sketch_pair,
)
from iiae_cli.data.sources.idx import find_idx, read_idx
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import prepare_file
from iiae_cli.data.sources.registry import BUILDERS

GREY = np.array([[[0, 50, 102], [103, 200, 255]]], np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def many(seed=0, rows=40, size=9):
    return rng(seed).integers(0, 256, (rows, size, size)).astype(np.uint8)


def refusal(call, *arguments, **keywords):
    with pytest.raises(IiaeError) as caught:
        call(*arguments, **keywords)
    assert caught.value.hint
    return caught.value.message


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


# ---- IDX files


def idx_bytes(array):
    return (
        b"\x00\x00\x08"
        + bytes([array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.tobytes()
    )


def idx_source(folder, *, suffix="", train=8, test=4, size=28):
    """MNIST's four files in their original layout; returns train pictures and labels, test pictures
    and labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = (
        rng(1).integers(0, 256, (train, size, size)).astype(np.uint8),
        rng(2).integers(0, 10, train).astype(np.uint8),
        rng(3).integers(0, 256, (test, size, size)).astype(np.uint8),
        rng(4).integers(0, 10, test).astype(np.uint8),
    )
    stems = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    for stem, array in zip(stems, arrays, strict=True):
        content = idx_bytes(array)
        (folder / f"{stem}{suffix}").write_bytes(
            gzip.compress(content) if suffix == ".gz" else content
        )
    return arrays


def build_from(name, source, **options):
    return built(name, PrepareOptions(source=source, **options))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_divided_into_train_valid_and_test(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(idx, "TRAIN_IDX", 5)
    train, train_labels, test, test_labels = idx_source(tmp_path, suffix=suffix)
    splits = build_from("mnist-cdcb", tmp_path).splits
    wanted = {
        "train": (train[:5], train_labels[:5]),
        "valid": (train[5:], train_labels[5:]),
        "test": (test, test_labels),
    }
    assert list(splits) == ["train", "valid", "test"]
    for name, (grey, labels) in wanted.items():
        split = splits[name]
        assert split.x.rows.shape == (len(grey), 28, 28, 3)
        assert split.x.labels == split.y.labels == [str(label) for label in labels]
        np.testing.assert_array_equal(split.factors["class"], labels)
        assert split.x.ids[0] == split.y.ids[0] == f"{name}/00001"
        digit = grey > 102
        np.testing.assert_array_equal(
            split.x.rows[digit], np.repeat(grey[digit][:, None], 3, axis=1)
        )
        np.testing.assert_array_equal(
            split.y.rows[~digit], np.repeat(grey[~digit][:, None], 3, axis=1)
        )
    colours = np.concatenate([split.factors["x_color"] for split in splits.values()])
    assert len(np.unique(colours, axis=0)) == 12


def test_fifty_thousand_train_pairs_are_the_papers():
    assert idx.TRAIN_IDX == 50_000 and cdcb.TEST_DIGITS == 300


def test_the_source_is_named_by_its_checksum(tmp_path):
    idx_source(tmp_path, suffix=".gz")
    attributes = build_from("mnist-cdcb", tmp_path).attributes
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    assert attributes["source_sha256"] == sha256_of(
        *[tmp_path / f"{name}-ubyte.gz" for name in files]
    )
    assert attributes["source"] == "MNIST"


def test_limit_seed_and_image_size_apply_to_idx_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "TRAIN_IDX", 5)
    idx_source(tmp_path)
    splits = build_from("mnist-cdcb", tmp_path, limit=2, image_size=20).splits
    assert [split.x.rows.shape for split in splits.values()] == [(2, 20, 20, 3)] * 3
    # Coloured first and resized after, as the published pictures were.
    native = build_from("mnist-cdcb", tmp_path, limit=2).splits
    for domain in "xy":
        assert (
            splits["train"].side(domain).rows
            == resize_pictures(native["train"].side(domain).rows, 20)
        ).all()
    other = build_from("mnist-cdcb", tmp_path, limit=2, image_size=20, seed=1).splits
    assert not np.array_equal(other["train"].factors["x_color"], splits["train"].factors["x_color"])


def test_a_set_without_left_over_digits_has_an_empty_valid(tmp_path):
    idx_source(tmp_path)
    assert len(build_from("mnist-cdcb", tmp_path).splits["valid"].x.rows) == 0


def test_fashion_sets_use_their_recipes(tmp_path):
    train, *_ = idx_source(tmp_path)
    coloured = build_from("fashion-cdcb", tmp_path).splits["train"]
    np.testing.assert_array_equal(coloured.x.rows, colour_pair(train, rng(0))[0])
    sketched = build_from("fashion-edges", tmp_path).splits["train"]
    np.testing.assert_array_equal(sketched.x.rows, sketch_pair(train, rng(0))[0])
    np.testing.assert_array_equal(sketched.y.rows, sketch_pair(train, rng(0))[1])


def test_torchvisions_folder_layout_is_found_and_plain_files_come_first(tmp_path):
    idx_source(tmp_path / "MNIST" / "raw", suffix=".gz")
    name = "train-images-idx3-ubyte"
    assert find_idx(tmp_path, name) == tmp_path / "MNIST" / "raw" / f"{name}.gz"
    idx_source(tmp_path / "MNIST" / "raw")
    assert find_idx(tmp_path, name) == tmp_path / "MNIST" / "raw" / name
    assert find_idx(tmp_path, "other") is None
    assert build_from("mnist-cdcb", tmp_path, limit=3).splits["test"].x.rows.shape == (3, 28, 28, 3)


def test_idx_files_keep_their_shape_and_values(tmp_path):
    array = rng(5).integers(0, 256, (3, 2, 5)).astype(np.uint8)
    path = tmp_path / "some-idx3-ubyte"
    path.write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize("length", [16 + 8 * 28 * 28 - 1, 2000, 16, 10])
def test_a_truncated_idx_file_is_refused(tmp_path, length):
    idx_source(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:length])
    message = refusal(build_from, "mnist-cdcb", tmp_path)
    assert "is truncated" in message and str(path) in message


def test_a_truncated_gzip_is_refused(tmp_path):
    idx_source(tmp_path, suffix=".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:200])
    assert f"{path} is damaged" in refusal(build_from, "mnist-cdcb", tmp_path)
    path.write_bytes(b"no gzip at all")
    assert f"{path} is damaged" in refusal(build_from, "mnist-cdcb", tmp_path)


def test_a_file_that_is_no_idx_is_refused(tmp_path):
    idx_source(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    for content in (b"", b"<html>not found</html>", b"\x00\x00\x0d\x01\x00\x00\x00\x00"):
        path.write_bytes(content)
        assert (
            refusal(build_from, "mnist-cdcb", tmp_path)
            == f"{path} is damaged: it is not an IDX file of bytes"
        )


def test_pictures_and_labels_must_be_as_many(tmp_path):
    idx_source(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    assert "(8, 28, 28) pictures, (5,) labels" in refusal(build_from, "mnist-cdcb", tmp_path)


def test_a_missing_idx_file_is_named(tmp_path):
    idx_source(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert (
        refusal(build_from, "mnist-cdcb", tmp_path)
        == f"{tmp_path} holds no t10k-labels-idx1-ubyte[.gz]"
    )


def test_an_idx_source_must_be_named_and_there(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "DEBIAN_FASHION", tmp_path / "none")
    for name in ("mnist-cdcb", "fashion-cdcb"):
        assert "was not named" in refusal(built, name, PrepareOptions())
    assert "does not exist" in refusal(build_from, "mnist-cdcb", tmp_path / "none")


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path, monkeypatch):
    idx_source(tmp_path)
    monkeypatch.setattr(idx, "DEBIAN_FASHION", tmp_path)
    assert built("fashion-cdcb", PrepareOptions()).splits["test"].x.rows.shape == (4, 28, 28, 3)
    assert "was not named" in refusal(built, "mnist-cdcb", PrepareOptions())


# ---- the published pictures, side by side


def side_by_side(folder, numbers, height=8, width=16):
    """Pictures whose left half is 10·n and whose right half is 10·n + 5."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        array = np.full((height, width, 3), 10 * number, np.uint8)
        array[:, width // 2 :] += 5
        Image.fromarray(array).save(folder / f"{number}.png")


def test_original_folders_are_cut_in_the_middle_in_numeric_order(tmp_path):
    side_by_side(tmp_path / "train", (1, 2, 10))
    side_by_side(tmp_path / "test", (3,))
    prepared = build_from("mnist-cdcb", tmp_path)
    train, test = prepared.splits["train"], prepared.splits["test"]
    assert set(prepared.splits) == {"train", "test"} and prepared.skipped == []
    assert train.x.rows.shape == train.y.rows.shape == (3, 8, 8, 3)
    assert train.x.ids == train.y.ids == ["train/1", "train/2", "train/10"]
    assert train.x.rows[:, 0, 0, 0].tolist() == [10, 20, 100] and train.y.rows[
        :, 0, 0, 0
    ].tolist() == [
        15,
        25,
        105,
    ]
    assert (train.x.rows == train.x.rows[:, :1, :1]).all() and (
        train.y.rows == train.y.rows[:, :1, :1]
    ).all()
    assert test.x.ids == ["test/3"]


def test_side_by_side_pictures_are_resized_and_limited(tmp_path):
    side_by_side(tmp_path / "train", (1, 2, 3))
    side_by_side(tmp_path / "test", (4,), height=10, width=21)
    own = build_from("mnist-cdcb", tmp_path).splits
    assert own["train"].x.rows.shape == (3, 256, 256, 3)  # halves differ in size
    smaller = build_from("mnist-cdcb", tmp_path, image_size=4, limit=2).splits
    assert smaller["train"].x.rows.shape == smaller["train"].y.rows.shape == (2, 4, 4, 3)
    assert smaller["train"].y.rows[:, 0, 0, 0].tolist() == [15, 25]


def test_unreadable_side_by_side_pictures_are_named_and_left_out(tmp_path):
    side_by_side(tmp_path / "train", (1, 2))
    (tmp_path / "train" / "1.png").write_bytes(b"broken")
    prepared = build_from("mnist-cdcb", tmp_path)
    assert prepared.splits["train"].x.ids == ["train/2"]
    assert len(prepared.skipped) == 1 and "1.png" in prepared.skipped[0]
    (tmp_path / "train" / "2.png").write_bytes(b"broken")
    assert "no readable side-by-side pictures" in refusal(build_from, "mnist-cdcb", tmp_path)


# ---- folders of pairs


def flat(path, value, size=(20, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size[1], size[0]), value).convert(mode).save(path)


def pair(folder, stem, value, size=(20, 20), suffixes=(".png", ".png")):
    flat(folder / "x" / f"{stem}{suffixes[0]}", value, size)
    flat(folder / "y" / f"{stem}{suffixes[1]}", value + 1, size)


def values(split):
    return split.x.rows[:, 0, 0, 0].tolist(), split.y.rows[:, 0, 0, 0].tolist()


def test_pairs_are_matched_by_stem_within_given_splits(tmp_path):
    for number in (10, 2, 1):
        pair(tmp_path / "train", str(number), number * 10, suffixes=(".png", ".bmp"))
    pair(tmp_path / "train", "cats/7", 200)
    pair(tmp_path / "test", "a.b", 90)
    prepared = build_from("pairs", tmp_path)
    train = prepared.splits["train"]
    assert set(prepared.splits) == {"train", "test"} and prepared.skipped == []
    assert train.x.ids == train.y.ids == ["train/1", "train/2", "train/10", "train/cats/7"]
    assert values(train) == ([10, 20, 100, 200], [11, 21, 101, 201])
    assert train.x.rows.shape == (4, 20, 20, 3)
    assert prepared.splits["test"].x.ids == ["test/a.b"]
    assert prepared.attributes["source"] == str(tmp_path)


def test_a_valid_split_is_read_where_there_is_one(tmp_path):
    for split in ("train", "valid", "test"):
        pair(tmp_path / split, "1", 50)
    assert list(build_from("pairs", tmp_path).splits) == ["train", "valid", "test"]


def test_pairs_without_splits_are_divided_by_seeded_fractions(tmp_path):
    for number in range(20):
        pair(tmp_path, f"{number:02d}", 10 * number, size=(4, 4))
    ids = {}
    for seed in (0, 0, 1):
        splits = build_from("pairs", tmp_path, fractions=(0.1, 0.25), seed=seed).splits
        assert {name: len(split.x) for name, split in splits.items()} == {
            "train": 13,
            "valid": 2,
            "test": 5,
        }
        stems = {
            name: [one.partition("/")[2] for one in split.x.ids] for name, split in splits.items()
        }
        assert sorted(stems["train"] + stems["valid"] + stems["test"]) == [
            f"{number:02d}" for number in range(20)
        ]
        for name, split in splits.items():
            assert split.x.ids[0].startswith(f"{name}/")
            assert values(split)[0] == [10 * int(stem) for stem in stems[name]]
            assert values(split)[1] == [10 * int(stem) + 1 for stem in stems[name]]
        assert ids.setdefault(seed, stems) == stems
    assert ids[0]["test"] != ids[1]["test"]


def test_an_unreadable_picture_is_named_and_left_out_with_its_partner(tmp_path):
    for stem in "abcd":
        pair(tmp_path / "train", stem, 50 + ord(stem) - ord("a"))
    (tmp_path / "train" / "x" / "b.png").write_bytes(b"broken")
    (tmp_path / "train" / "y" / "c.png").write_bytes(b"")
    prepared = build_from("pairs", tmp_path)
    assert prepared.splits["train"].x.ids == ["train/a", "train/d"]
    assert values(prepared.splits["train"]) == ([50, 53], [51, 54])
    assert len(prepared.skipped) == 2
    first, second = prepared.skipped
    assert (
        str(tmp_path / "train" / "x" / "b.png") in first
        and str(tmp_path / "train" / "y" / "b.png") in first
    )
    assert (
        str(tmp_path / "train" / "y" / "c.png") in second
        and str(tmp_path / "train" / "x" / "c.png") in second
    )


def test_a_picture_without_a_partner_is_named_and_left_out(tmp_path):
    pair(tmp_path / "train", "a", 50)
    flat(tmp_path / "train" / "x" / "alone.png", 9)
    flat(tmp_path / "train" / "y" / "lonely.png", 9)
    prepared = build_from("pairs", tmp_path)
    assert prepared.splits["train"].x.ids == ["train/a"]
    assert sorted(prepared.skipped) == sorted(
        [
            f"{tmp_path / 'train' / 'x' / 'alone.png'}: has no partner",
            f"{tmp_path / 'train' / 'y' / 'lonely.png'}: has no partner",
        ]
    )


def test_a_second_picture_of_the_same_stem_is_named(tmp_path):
    pair(tmp_path / "train", "a", 50)
    flat(tmp_path / "train" / "x" / "a.bmp", 99)
    prepared = build_from("pairs", tmp_path)
    assert len(prepared.splits["train"].x) == 1
    assert len(prepared.skipped) == 1 and "has the same stem" in prepared.skipped[0]


def test_pictures_of_one_size_keep_it_and_of_several_become_256(tmp_path):
    pair(tmp_path / "train", "a", 50, size=(20, 30))
    assert build_from("pairs", tmp_path).splits["train"].x.rows.shape == (1, 20, 30, 3)
    pair(tmp_path / "test", "b", 60, size=(21, 30))
    splits = build_from("pairs", tmp_path).splits
    assert splits["train"].x.rows.shape == splits["test"].y.rows.shape == (1, 256, 256, 3)
    assert values(splits["train"]) == ([50], [51])


def test_image_size_and_limit_apply_to_pairs(tmp_path):
    for stem in "abc":
        pair(tmp_path / "train", stem, 50)
    train = build_from("pairs", tmp_path, image_size=16, limit=2).splits["train"]
    assert train.x.rows.shape == train.y.rows.shape == (2, 16, 16, 3) and train.x.ids == [
        "train/a",
        "train/b",
    ]


def test_grey_and_transparent_pictures_are_stored_as_rgb(tmp_path):
    flat(tmp_path / "train" / "x" / "a.png", 50, mode="L")
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    (tmp_path / "train" / "y").mkdir()
    clear.save(tmp_path / "train" / "y" / "a.png")
    assert values(build_from("pairs", tmp_path).splits["train"]) == ([50], [255])


def test_threads_change_nothing(tmp_path):
    for number in range(9):
        pair(tmp_path / "train", str(number), 20 * number)
    (tmp_path / "train" / "x" / "3.png").write_bytes(b"broken")
    one, three = (build_from("pairs", tmp_path, workers=workers) for workers in (1, 3))
    assert one.skipped == three.skipped and len(one.skipped) == 1
    np.testing.assert_array_equal(one.splits["train"].x.rows, three.splits["train"].x.rows)
    assert one.splits["train"].x.ids == three.splits["train"].x.ids


def test_folders_of_another_layout_are_refused(tmp_path):
    assert "does not exist" in refusal(build_from, "pairs", tmp_path / "none")
    assert "was not named" in refusal(built, "pairs", PrepareOptions())
    (tmp_path / "x").mkdir()
    assert refusal(build_from, "pairs", tmp_path) == f"{tmp_path} has no folder y/"
    (tmp_path / "y").mkdir()
    assert "no pair of pictures with equal names" in refusal(build_from, "pairs", tmp_path)
    flat(tmp_path / "x" / "a.png", 1)
    flat(tmp_path / "y" / "b.png", 1)
    assert "no pair of pictures with equal names" in refusal(build_from, "pairs", tmp_path)
    pair(tmp_path, "c", 50)
    (tmp_path / "x" / "c.png").write_bytes(b"broken")
    assert "no readable pair" in refusal(build_from, "pairs", tmp_path)


# ---- names and files


def test_an_unknown_set_is_refused_with_those_there_are():
    with pytest.raises(IiaeError) as caught:
        built("mnist", PrepareOptions())
    assert caught.value.message == "unknown data set 'mnist'"
    assert all(name in caught.value.hint for name in BUILDERS)


@pytest.mark.parametrize(
    ("name", "told"),
    [("mine-0-of-2.h5", "iiae prepare {} … --merge"), ("", "iiae prepare pairs {},")],
)
def test_a_file_or_folder_in_the_place_of_a_set_is_told_where_it_belongs(tmp_path, name, told):
    (tmp_path / "mine-0-of-2.h5").touch()
    with pytest.raises(IiaeError) as caught:
        built(str(tmp_path / name), PrepareOptions())
    assert caught.value.message == f"unknown data set '{tmp_path / name}'"
    assert told.format(tmp_path / name) in caught.value.hint


def test_prepare_file_writes_a_whole_self_describing_file(tmp_path):
    path, source = tmp_path / "mine.h5", tmp_path / "source"
    pair(source / "train", "a", 50)
    pair(source / "train", "b", 60)
    flat(source / "train" / "x" / "alone.png", 9)
    skipped = prepare_file(
        "pairs", path, PrepareOptions(source=source, seed=4), command="iiae prepare pairs source"
    )
    assert len(skipped) == 1 and "alone.png" in skipped[0]
    file = DataFile(path)
    attributes = file.info.attributes
    assert (file.info.name, file.info.counts) == ("pairs", {"train": 2, "valid": 0, "test": 0})
    assert (attributes["command"], attributes["seed"], attributes["skipped"]) == (
        "iiae prepare pairs source",
        "4",
        "1",
    )
    assert "iiae" in json.loads(attributes["versions"])
    assert file.split("train").x.ids == ["train/a", "train/b"]


def test_nothing_is_written_when_the_source_is_bad(tmp_path):
    path = tmp_path / "mine.h5"
    path.write_bytes(b"old")
    refusal(prepare_file, "pairs", path, PrepareOptions(source=tmp_path / "none"), command="")
    assert path.read_bytes() == b"old"
