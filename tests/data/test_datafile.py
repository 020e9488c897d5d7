"""The prepared data file: round trips, its documented layout, and what a damaged one says."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
from class_sources import noise
from helpers import refusal
from hypothesis import given
from hypothesis import strategies as st

from iiae_cli.data import hdf5
from iiae_cli.data.datafile import DataFile, Side, Split, write_data_file


def pictures(seed, rows, shape=(16, 20, 3)):
    return noise((rows, *shape), seed)


def split_of(rows, seed=0, **more):
    return Split(
        Side(pictures(seed, rows), [f"a/{row}-é" for row in range(rows)]),
        Side(pictures(seed + 1, rows, (16, 20, 1)), [f"b/{row}" for row in range(rows)]),
        **more,
    )


def rich_split(rows, seed=0):
    factors = {"x_color": pictures(seed + 2, rows, (3,)), "class": np.arange(rows)}
    split = split_of(rows, seed, factors=factors)
    split.x.labels = [f"cat{row % 3}" for row in range(rows)]
    split.y.labels = [f"dog{row % 2}" for row in range(rows)]
    return split


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.h5"


def write(path, **splits):
    write_data_file(path, "mine", splits, {"command": "iiae prepare mine", "seed": "3"})
    return DataFile(path)


def assert_same(found, wanted):
    np.testing.assert_array_equal(found.pairs, wanted.pairs)  # or both are None
    for domain in ("x", "y"):
        left, right = found.side(domain), wanted.side(domain)
        np.testing.assert_array_equal(left.rows, right.rows)
        assert left.rows.dtype == right.rows.dtype
        assert (left.ids, left.labels) == (right.ids, right.labels)
    assert set(found.factors) == set(wanted.factors)
    for name, values in wanted.factors.items():
        np.testing.assert_array_equal(found.factors[name], values)
        assert found.factors[name].dtype == values.dtype


# ---- round trips


def test_splits_labels_factors_and_pairs_come_back(path):
    train, test = rich_split(5), rich_split(3, seed=10)
    test.pairs = np.array([[0, 1], [0, 2], [1, 0]])
    file = write(path, train=train, test=test)
    assert_same(file.split("train"), train)
    assert_same(file.split("test"), test)
    assert_same(Split(file.split("train", most=0).side("x"), train.y, train.factors), train)
    valid = file.split("valid")  # not given, so empty
    assert valid.x.rows.shape == (0, 16, 20, 3) and valid.y.rows.shape == (0, 16, 20, 1)
    assert valid.x.ids == valid.y.ids == valid.x.labels == valid.y.labels == []
    assert valid.pair_count == 0 and file.info.counts == {"train": 5, "valid": 0, "test": 3}
    assert (file.info.name, file.info.is_features) == ("mine", False)
    assert (file.info.shape_x, file.info.shape_y) == ((16, 20, 3), (16, 20, 1))


def test_features_come_back_as_float32(path):
    draw = np.random.default_rng(0)
    rows = [draw.normal(size=shape).astype(np.float32) for shape in ((4, 7), (6, 5))]
    features = Split(Side(rows[0], list("abcd")), Side(rows[1], list("abcdef")))
    file = write(path, test=features)
    assert file.info.is_features and (file.info.shape_x, file.info.shape_y) == ((7,), (5,))
    assert_same(file.split("test"), features)


def test_taking_pairs_aligns_rows_ids_labels_and_factors():
    split = rich_split(6)
    taken = split.take_pairs(np.array([4, 1]))
    np.testing.assert_array_equal(taken.y.rows, split.y.rows[[4, 1]])
    assert (taken.x.ids, taken.y.labels) == (["a/4-é", "a/1-é"], ["dog0", "dog1"])
    np.testing.assert_array_equal(taken.factors["class"], [4, 1])
    split.pairs = np.array([[0, 5], [2, 3]])
    taken = split.take_pairs(np.array([1, 0]))
    np.testing.assert_array_equal(taken.x.rows, split.x.rows[[2, 0]])
    np.testing.assert_array_equal(taken.y.rows, split.y.rows[[3, 5]])
    assert (taken.x.ids, taken.y.labels) == (["a/2-é", "a/0-é"], ["dog1", "dog1"])
    assert taken.pairs is None and taken.pair_count == 2


# ---- the documented layout


def test_any_program_can_read_the_file_with_h5py_alone(path):
    split = rich_split(4)
    split.pairs = np.array([[0, 1], [2, 3]])
    write(path, train=split)
    with h5py.File(path, "r") as file:
        assert set(file) == {"train", "valid", "test"}
        wanted = {"schema": "iiae.data/2", "name": "mine", "command": "iiae prepare mine"}
        assert dict(file.attrs) == {**wanted, "seed": "3"}
        train, texts = file["train"], {"x_ids", "y_ids", "x_labels", "y_labels"}
        assert set(train) == {*texts, "x", "y", "factors", "pairs"}
        for name, values in (("x", split.x.rows), ("factors/x_color", split.factors["x_color"])):
            np.testing.assert_array_equal(train[name], values)
            assert train[name].dtype == np.uint8 and train[name].chunks is None
        for text in texts:
            assert h5py.check_string_dtype(train[text].dtype).encoding == "utf-8"
        assert train["x_ids"].asstr()[1] == "a/1-é"
        assert train["pairs"].shape == (2, 2) and np.issubdtype(train["pairs"].dtype, np.integer)


def test_a_file_written_by_another_program_is_read(path):
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "iiae.data/2"
        group = file.create_group("test")
        group["x"] = pictures(0, 3)
        group.create_dataset("y", data=pictures(1, 3), chunks=(1, 16, 20, 3), compression="gzip")
        group["x_ids"] = group["y_ids"] = np.array(["a", "b", "c"], "S")
        group["pairs"] = np.array([[0, 2]], np.int32)
    file = DataFile(path)
    assert file.info.name == "set" and file.info.counts == {"train": 0, "valid": 0, "test": 1}
    split = file.split("test")
    np.testing.assert_array_equal(split.y.rows, pictures(1, 3))
    assert split.pairs.dtype == np.int64 and split.y.ids == ["a", "b", "c"]
    assert "no split 'train'" in refusal(file.split, "train").message


# ---- memory


def test_a_split_larger_than_half_the_free_memory_is_mapped(path, monkeypatch):
    wanted = rich_split(6)
    file = write(path, train=wanted)
    monkeypatch.setattr(hdf5, "free_memory", lambda: 2 * wanted.x.rows.nbytes - 2)
    split = file.split("train")
    assert isinstance(split.x.rows, np.memmap) and not isinstance(split.y.rows, np.memmap)
    assert_same(split, wanted)
    taken = split.take_pairs(np.array([1, 4]))
    np.testing.assert_array_equal(taken.x.rows, wanted.x.rows[[1, 4]])
    with pytest.raises(ValueError):
        split.x.rows[0] = 0  # read-only: the file cannot be changed by accident
    assert file.split("valid").x.rows.shape == (0, 16, 20, 3)


# ---- damage


def test_a_file_that_is_missing_or_no_data_file_names_the_command_that_makes_it(path):
    reasons = {"does not exist": refusal(DataFile, path)}
    path.write_bytes(b"plain text, no HDF5 at all")
    reasons["is not an HDF5 file"] = refusal(DataFile, path)
    for words, reason in reasons.items():
        assert f"{path} {words}" in reason.message and "iiae prepare" in reason.hint


def replace(group, name, values):
    del group[name]
    group[name] = values


def elsewhere(group):
    """Rows that lie in another file."""
    del group["x"]
    group.create_dataset("x", (4, 16, 20, 3), "u1", external=[("/etc/passwd", 0, 3840)])


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda g: g.__delitem__("x"), "object 'x' doesn't exist"),
        (lambda g: replace(g, "y", np.zeros((4, 16, 20, 1))), "no uint8 pictures"),
        (lambda g: replace(g, "x", np.zeros((4, 8, 8, 3), np.uint8)), "different shapes"),
        (lambda g: replace(g, "x_ids", np.array(["a"] * 3, "S")), "4 rows but 3 ids in /test/x"),
        (lambda g: replace(g, "y_labels", np.array(["a"], "S")), "4 rows but 1 labels in /test/y"),
        (lambda g: replace(g, "x_ids", np.arange(4)), "not a column of texts"),
        (lambda g: g.__setitem__("pairs", np.array([[0, -1]])), "outside its rows"),
        (lambda g: g.__setitem__("pairs", np.array([[0, 1]])), "value of factor"),
    ],
)
def test_a_file_that_is_inconsistent_is_refused(path, change, said):
    write(path, test=rich_split(4))
    with h5py.File(path, "a") as file:
        change(file["test"])
    message = refusal(lambda: DataFile(path).split("test")).message
    assert said in message and f"{path} is damaged" in message


def test_a_file_that_leads_elsewhere_is_refused_and_not_called_damaged(path):
    external, soft = h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/test/x")
    for change in (lambda g: replace(g, "x", external), lambda g: replace(g, "x", soft), elsewhere):
        write(path, test=rich_split(4))
        with h5py.File(path, "a") as file:
            change(file["test"])
        message = refusal(lambda: DataFile(path).split("test")).message
        assert message == f"test/x in {path} is a link, or its rows lie in another file"


def test_what_does_not_fit_into_memory_may_be_whole(path):
    write(path, test=rich_split(4))
    with h5py.File(path, "a") as file:  # declared, not stored
        del file["test/x"]
        file.create_dataset("test/x", (10**9, 16, 20, 3), "u1", chunks=(1, 16, 20, 3))
    error = refusal(lambda: DataFile(path).split("test"))
    assert "cannot be read" in error.message and "--overwrite" not in error.hint


# ---- texts


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=5))
def test_any_text_comes_back(texts):
    texts += [os.fsdecode(b"caf\xe9.png"), ""]  # a file name that is no UTF-8
    with TemporaryDirectory() as folder:
        path = Path(folder, "t.h5")
        with h5py.File(path, "w") as file:
            hdf5.write_column(file, "texts", texts)
            hdf5.write_column(file, "none", [])
        with hdf5.open_hdf5(path, "") as file:
            assert hdf5.read_texts(file, "texts") == texts
            assert hdf5.read_texts(file, "none") == []
            assert hdf5.read_texts(file, "missing") is None
