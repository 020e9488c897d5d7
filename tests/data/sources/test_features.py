"""Features that already exist: the released layout, labels instead of paths, `.npz`, and damage."""

import numpy as np
import pytest
from class_sources import feature_arrays, save_arrays
from helpers import refusal

from iiae_cli.data.names import Notes
from iiae_cli.data.sources.features import has_features, read_features

CLASSES = {"train": ["ant", "bee"], "test": ["cow"]}


@pytest.fixture
def arrays():
    return feature_arrays(CLASSES)


def test_paths_may_be_bytes_with_backslashes(tmp_path, arrays):
    for name in [name for name in arrays if name.endswith("paths")]:
        arrays[name] = np.char.encode(np.char.replace(arrays[name], "/", "\\"), "utf-8")
    assert read_features(save_arrays(tmp_path, arrays), Notes())["test"].x.labels == ["cow"] * 3


def test_labels_instead_of_paths_in_a_folder_or_an_npz(tmp_path, arrays):
    for name in [name for name in arrays if name.endswith("paths")]:
        count = len(arrays.pop(name))
        arrays[name.replace("paths", "labels")] = np.arange(count) % 3
    source = save_arrays(tmp_path / "f.npz", {**arrays, "more": np.array([{}], object)})
    splits = read_features(source, Notes())
    assert splits["train"].x.labels == ["0", "1", "2", "0", "1", "2"]
    assert splits["train"].x.ids[1] == "train_sketch/000001"
    same = read_features(save_arrays(tmp_path / "folder", arrays), Notes())
    np.testing.assert_array_equal(same["test"].y.rows, splits["test"].y.rows)


def test_widths_of_the_domains_may_differ_and_a_path_that_recurs_is_numbered(tmp_path, arrays):
    for split in CLASSES:
        values = arrays[f"{split}_image_features"]
        arrays[f"{split}_image_features"] = values[:, :4].astype(np.float64)
    arrays["test_sketch_paths"][:] = "a/cow/1.png"
    splits = read_features(save_arrays(tmp_path, arrays), Notes())
    rows = splits["train"].y.rows
    assert splits["train"].x.rows.shape[1] == 6 and (rows.shape[1], rows.dtype) == (4, np.float32)
    assert splits["test"].x.ids == ["a/cow/1.png#0", "a/cow/1.png#1", "a/cow/1.png#2"]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("train_sketch_features", np.ones((6, 6, 1)), "float64 (6, 6, 1), not numbers"),
        ("train_sketch_features", np.array([["a"]] * 6), "not numbers"),
        ("test_image_features", np.ones((4, 5)), "of image in"),
        ("test_sketch_paths", np.array(["a/cow/1"] * 2), "<U7 (2,), not 3 texts"),
        ("test_sketch_labels", np.array(["cow"] * 2), "<U3 (2,), not 3 texts"),
        ("test_sketch_paths", np.array(["alone.png"] * 3), "a path without a class: 'alone.png'"),
        ("test_sketch_paths", np.ones(3), "float64 (3,), not 3 texts"),
        ("train_image_features", None, "no train_image_features"),
        ("test_sketch_paths", None, "holds no test_sketch_paths"),
    ],
)
def test_arrays_that_do_not_fit_or_are_missing_are_refused(tmp_path, arrays, name, values, said):
    changed = {**arrays, name: values}
    kept = {key: array for key, array in changed.items() if array is not None}
    assert said in refusal(read_features, save_arrays(tmp_path, kept), Notes()).message


def test_pickled_arrays_are_refused_without_being_read(tmp_path, arrays):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    arrays |= {"test_sketch_paths": np.array([Bomb()] * 3, dtype=object)}
    for name in ("bad", "bad.npz"):
        source = save_arrays(tmp_path / name, arrays)
        assert "is damaged: " in refusal(read_features, source, Notes()).message


def test_splits_under_other_names_and_arrays_of_none_are_said(tmp_path, arrays):
    arrays = {
        name.replace("train", "training").replace("test", "Eval"): values
        for name, values in arrays.items()
    }
    arrays["test2_sketch_features"] = arrays["Eval_sketch_features"]
    folder, notes = save_arrays(tmp_path, arrays), Notes()
    assert has_features(folder) and list(read_features(folder, notes)) == ["train", "test"]
    assert "Eval_image_paths is read as test_image_paths" in notes.decided
    assert len(notes.decided) == 9
    assert f"{folder}: arrays that are not read: test2_sketch_features" in notes.decided
    save_arrays(folder, {"test_image_paths": arrays["Eval_image_paths"]})
    assert "holds two test_image_paths" in refusal(read_features, folder, Notes()).message
