"""Features that are there already: the released layout, labels instead of paths, `.npz`, and what may be wrong."""

import numpy as np
import pytest
from class_sources import feature_arrays, save_arrays

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.leaks import UNKNOWN, Seen
from iiae_cli.data.sources.given_features import (
    has_features,
    read_features,
    read_seen,
    source_files,
)

CLASSES = {"train": ["ant", "bee"], "test": ["cow"]}


@pytest.fixture
def arrays():
    return feature_arrays(CLASSES)


def refusal(source):
    with pytest.raises(IiaeError) as caught:
        read_features(source)
    assert caught.value.hint
    return caught.value


def test_the_released_layout(tmp_path, arrays):
    splits = read_features(save_arrays(tmp_path, arrays))
    assert (
        list(splits) == ["train", "test"]
        and has_features(tmp_path)
        and len(source_files(tmp_path)) == 8
    )
    train = splits["train"]
    np.testing.assert_array_equal(train.x.rows, arrays["train_sketch_features"])
    np.testing.assert_array_equal(splits["test"].y.rows, arrays["test_image_features"])
    assert (
        train.x.labels == ["ant"] * 3 + ["bee"] * 3 and train.y.labels == ["ant"] * 4 + ["bee"] * 4
    )
    assert (
        train.x.ids[3] == "data/sketch/bee/0.png"
        and train.pairs is None
        and train.x.rows.dtype == np.float32
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda paths: np.char.encode(paths, "utf-8"),
        lambda paths: np.char.replace(paths, "/", "\\"),
        lambda paths: paths[:, None],
    ],
    ids=["bytes", "backslashes", "column"],
)
def test_paths_of_other_kinds(tmp_path, arrays, change):
    arrays |= {name: change(values) for name, values in arrays.items() if name.endswith("paths")}
    assert read_features(save_arrays(tmp_path, arrays))["test"].x.labels == ["cow"] * 3


def test_labels_instead_of_paths_and_integers(tmp_path, arrays):
    for name in [name for name in arrays if name.endswith("paths")]:
        values = arrays.pop(name)
        arrays[name.replace("paths", "labels")] = np.arange(len(values)) % 3
    source = tmp_path / "features.npz"
    np.savez(source, **arrays)
    splits = read_features(source)
    assert splits["train"].x.labels == ["0", "1", "2", "0", "1", "2"]
    assert splits["train"].x.ids[1] == "train_sketch/000001"
    same = read_features(save_arrays(tmp_path / "folder", arrays))
    np.testing.assert_array_equal(same["test"].y.rows, splits["test"].y.rows)
    assert source_files(source) == [source]


def test_widths_of_the_domains_may_differ_and_other_numbers_are_converted(tmp_path, arrays):
    for split in CLASSES:
        arrays[f"{split}_image_features"] = arrays[f"{split}_image_features"][:, :4].astype(
            np.float64
        )
    train = read_features(save_arrays(tmp_path, arrays))["train"]
    assert (train.x.rows.shape[1], train.y.rows.shape[1], train.y.rows.dtype) == (6, 4, np.float32)


def test_a_path_that_recurs_is_numbered(tmp_path, arrays):
    arrays["test_sketch_paths"][:] = "a/cow/1.png"
    ids = read_features(save_arrays(tmp_path, arrays))["test"].x.ids
    assert ids == ["a/cow/1.png#0", "a/cow/1.png#1", "a/cow/1.png#2"]


def test_classes_seen_may_lie_beside(tmp_path, arrays):
    assert read_seen(save_arrays(tmp_path, arrays)) == UNKNOWN
    (tmp_path / "classes_seen.txt").write_text("bee\n\nant\n")
    assert read_seen(tmp_path) == Seen(("ant", "bee")) == read_seen(tmp_path / "features.npz")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("train_sketch_features", np.ones((6, 6, 1)), "float64 (6, 6, 1), not numbers"),
        ("train_sketch_features", np.array([["a"]] * 6), "not numbers"),
        ("train_sketch_features", np.ones((6, 0)), "not numbers"),
        ("train_sketch_features", np.full((6, 6), 1e300), "not finite, first in row 0"),
        (
            "train_image_features",
            np.array([[0.0] * 6] * 7 + [[np.nan] * 6]),
            "not finite, first in row 7",
        ),
        ("test_image_features", np.ones((4, 5)), "of image in"),
        ("test_sketch_paths", np.array(["a/cow/1"] * 2), "3 rows but 2 paths"),
        ("test_sketch_labels", np.array(["cow"] * 2), "3 rows but 2 labels"),
        ("test_sketch_paths", np.array(["alone.png"] * 3), "a path without a class: 'alone.png'"),
        ("test_sketch_paths", np.ones(3), "not texts"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, name, values, said):
    assert said in refusal(save_arrays(tmp_path, {**arrays, name: values})).message


def test_missing_arrays_are_named(tmp_path, arrays):
    def without(*names):
        folder = tmp_path / names[0]
        return refusal(
            save_arrays(folder, {key: value for key, value in arrays.items() if key not in names})
        ).message

    assert "no train_image_features" in without("train_image_features")
    assert "neither test_sketch_paths nor test_sketch_labels" in without("test_sketch_paths")
    assert "no train_sketch_features" in without("train_sketch_features", "train_image_features")


def test_pickled_arrays_are_refused_without_being_read(tmp_path, arrays):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    for name in ("test_sketch_paths", "test_sketch_features"):
        bad = {**arrays, name: np.array([Bomb()] * 3, dtype=object)}
        error = refusal(save_arrays(tmp_path / name, bad))
        assert f"{name}.npy is a pickled object array" in error.message
        assert "allow_pickle=True" in error.hint and "latin1" in error.hint
    np.savez(tmp_path / "bad.npz", **bad)
    assert "pickled object array" in refusal(tmp_path / "bad.npz").message


def test_the_hint_for_pickled_arrays_converts_them(tmp_path, arrays):
    import subprocess
    import sys

    objects = {
        "test_sketch_paths": arrays["test_sketch_paths"].astype(object),
        "test_image_features": np.array(arrays["test_image_features"].tolist(), dtype=object),
    }
    folder = save_arrays(tmp_path, {**arrays, **objects})
    for _ in objects:
        code = refusal(folder).hint.split('python -c "')[1].rstrip('"')
        subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(
        read_features(folder)["test"].y.rows, arrays["test_image_features"]
    )


def test_damaged_files_are_refused(tmp_path, arrays):
    folder = save_arrays(tmp_path / "a", arrays)
    for content in (b"", b"nothing", (folder / "test_sketch_paths.npy").read_bytes()[:40]):
        (folder / "test_sketch_paths.npy").write_bytes(content)
        assert "test_sketch_paths.npy" in refusal(folder).message
    (tmp_path / "b.npz").write_bytes(b"nothing")
    assert "b.npz" in refusal(tmp_path / "b.npz").message
    np.save(tmp_path / "c.npy", np.ones(3))
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    assert "holds one array" in refusal(tmp_path / "c.npz").message
