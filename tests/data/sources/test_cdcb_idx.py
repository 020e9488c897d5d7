"""Sets in IDX files, plain or gzipped, and the published pictures in their place."""

import gzip

import numpy as np
import pytest
from helpers import built, refusal
from PIL import Image

from iiae_cli.common.files import sha256_of
from iiae_cli.data.sources import cdcb
from iiae_cli.data.sources.cdcb import (
    IDX_FILES,
    colour_pair,
    find_idx,
    resize_pictures,
    sketch_pair,
)
from iiae_cli.data.sources.plan import PrepareOptions

NAMES = IDX_FILES


def rng(seed=0):
    return np.random.default_rng(seed)


def idx_bytes(array):
    extents = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + extents + array.tobytes()


def idx_source(folder, *, suffix="", train=8, test=4):
    """MNIST's four files; returns pictures and labels of train, pictures and labels of test."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = (
        rng(1).integers(0, 256, (train, 28, 28)).astype(np.uint8),
        rng(2).integers(0, 10, train).astype(np.uint8),
        rng(3).integers(0, 256, (test, 28, 28)).astype(np.uint8),
        rng(4).integers(0, 10, test).astype(np.uint8),
    )
    for name, array in zip(NAMES, arrays, strict=True):
        content = idx_bytes(array)
        path = folder / f"{name}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
    return arrays


def build_from(name, source, **options):
    return built(name, PrepareOptions(source=source, **options))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_divided_into_train_valid_and_test(tmp_path, monkeypatch, suffix):
    assert cdcb.TRAIN_IDX == 50_000 and cdcb.TEST_DIGITS == 300  # the paper's
    monkeypatch.setattr(cdcb, "TRAIN_IDX", 5)
    train, train_labels, test, test_labels = idx_source(tmp_path, suffix=suffix)
    prepared = build_from("mnist-cdcb", tmp_path)
    wanted = {
        "train": (train[:5], train_labels[:5]),
        "valid": (train[5:], train_labels[5:]),
        "test": (test, test_labels),
    }
    assert list(prepared.splits) == ["train", "valid", "test"]
    for name, (grey, labels) in wanted.items():
        split = prepared.splits[name]
        assert split.x.rows.shape == (len(grey), 28, 28, 3)
        assert split.x.labels == split.y.labels == [str(label) for label in labels]
        np.testing.assert_array_equal(split.factors["class"], labels)
        assert split.x.ids[0] == split.y.ids[0] == f"{name}/00001"
        digit = grey > 102
        assert (split.x.rows[digit] == grey[digit][:, None]).all()
        assert (split.y.rows[~digit] == grey[~digit][:, None]).all()
    colours = [split.factors["x_color"] for split in prepared.splits.values()]
    assert len(np.unique(np.concatenate(colours), axis=0)) == 12
    sha256 = sha256_of(*[tmp_path / f"{name}{suffix}" for name in NAMES])
    assert prepared.attributes == {"source": "MNIST", "source_sha256": sha256}


def test_limit_seed_and_image_size_apply(tmp_path):
    idx_source(tmp_path)
    native, sized, other = (
        build_from("mnist-cdcb", tmp_path, limit=2, image_size=size, seed=seed).splits["train"]
        for size, seed in ((None, 0), (20, 0), (20, 1))
    )
    for domain in "xy":  # coloured first and resized after, as the published pictures were
        resized = resize_pictures(native.side(domain).rows, 20)
        np.testing.assert_array_equal(sized.side(domain).rows, resized)
    assert not np.array_equal(other.factors["x_color"], sized.factors["x_color"])


def test_fashion_sets_use_their_recipes_and_debians_files(tmp_path, monkeypatch):
    train, *_ = idx_source(tmp_path)
    coloured = build_from("fashion-cdcb", tmp_path).splits
    np.testing.assert_array_equal(coloured["train"].x.rows, colour_pair(train, rng())[0])
    assert len(coloured["valid"].x) == 0
    sketched = build_from("fashion-edges", tmp_path).splits["train"]
    np.testing.assert_array_equal(sketched.y.rows, sketch_pair(train, rng())[1])
    monkeypatch.setattr(cdcb, "DEBIAN_FASHION", tmp_path)
    found = built("fashion-cdcb", PrepareOptions()).splits["train"]
    np.testing.assert_array_equal(found.x.rows, coloured["train"].x.rows)
    monkeypatch.setattr(cdcb, "DEBIAN_FASHION", tmp_path / "none")
    for name in ("mnist-cdcb", "fashion-cdcb"):
        assert "was not named" in refusal(built, name, PrepareOptions()).message
    assert "does not exist" in refusal(build_from, "mnist-cdcb", tmp_path / "none").message


def test_torchvisions_folder_is_found_and_plain_files_come_first(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    idx_source(folder, suffix=".gz")
    assert find_idx(tmp_path, NAMES[0]) == folder / f"{NAMES[0]}.gz"
    idx_source(folder)
    assert find_idx(tmp_path, NAMES[0]) == folder / NAMES[0]
    assert len(build_from("mnist-cdcb", tmp_path, limit=3).splits["test"].x) == 3


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        (0, lambda content: content[:-1], "is truncated"),
        (0, lambda content: content[:16], "is truncated"),
        (0, lambda content: content[:8], "is truncated"),
        (1, lambda content: b"", "is not an IDX file of bytes"),
        (1, lambda content: b"<html>not found</html>", "is not an IDX file of bytes"),
        (1, lambda content: b"\0\0\x0d\x01\0\0\0\0", "is not an IDX file of bytes"),
        (0, lambda content: b"\0\0\x08\x02" + b"\xff" * 8, "it claims to hold"),
        (1, lambda content: idx_bytes(np.zeros(5, np.uint8)), "(8, 28, 28) pictures, (5,) labels"),
        (3, None, f"holds no {NAMES[3]}[.gz]"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_and_missing_files_are_named(tmp_path, place, change, said, suffix):
    idx_source(tmp_path, suffix=suffix)
    path = tmp_path / f"{NAMES[place]}{suffix}"
    if change is None:
        path.unlink()
    elif suffix:
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    else:
        path.write_bytes(change(path.read_bytes()))
    assert said in refusal(build_from, "mnist-cdcb", tmp_path).message
    if suffix:
        path.write_bytes(b"no gzip at all")
        assert f"{path} is damaged" in refusal(build_from, "mnist-cdcb", tmp_path).message


def test_original_folders_are_cut_in_the_middle_in_numeric_order(tmp_path):
    for name, value in (("train/1", 10), ("train/2", 20), ("train/10", 100), ("test/3", 30)):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        array = np.full((8, 16, 3), value, np.uint8)
        array[:, 8:] += 5
        Image.fromarray(array).save(path)
    splits = build_from("mnist-cdcb", tmp_path).splits
    train = splits["train"]
    assert list(splits) == ["train", "test"] and splits["test"].x.ids == ["test/3"]
    assert train.x.ids == train.y.ids == ["train/1", "train/2", "train/10"]
    assert train.x.rows.shape == train.y.rows.shape == (3, 8, 8, 3)
    assert train.x.rows[:, 0, 0, 0].tolist() == [10, 20, 100]
    assert train.y.rows[:, 7, 7, 0].tolist() == [15, 25, 105]
