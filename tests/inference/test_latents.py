"""The latent cache: round trips, its layout, damage, and its encoding in blocks."""

import json

import h5py
import numpy as np
import pytest
from helpers import refusal, small_model
from PIL import Image

from iiae_cli.data.blocks import Part, block_store
from iiae_cli.data.datafile import DataInfo
from iiae_cli.inference.inputs import open_inputs
from iiae_cli.inference.latents import (
    EncodeJob,
    LatentCache,
    LatentFormat,
    made_by,
    merge,
    read_shards,
)
from iiae_cli.inference.trained import Encoded, TrainedModel

PARTS = ("shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar")
EVERYTHING = LatentFormat(logvar=True)
SHAPE = (16, 16, 3)


def cache_of(rows=4, parts=PARTS, **more):
    draw, widths = np.random.default_rng(0), {"shared": 12, "exclusive": 3}
    arrays = {
        part: draw.normal(size=(rows, widths[part.split("_")[0]])).astype("f4") for part in parts
    }
    settings = {
        "ids": [f"é{row}.png" for row in range(rows)],
        "labels": [f"class {row % 2}" for row in range(rows)],
        "domain": "y",
        "fingerprint": "abc123",
        "shared_shape": (3, 2, 2),
        "preset": "digits-cdcb",
        "metric": "cosine",
        "source": {"data": "/data/a.h5", "split": "test"},
    }
    return LatentCache(Encoded(**arrays), **{**settings, **more})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "z.h5"


def assert_same(left, right, parts=PARTS, **tolerance):
    assert (left.ids, left.labels, left.skipped) == (right.ids, right.labels, right.skipped)
    assert left.attributes() == right.attributes()
    for part in PARTS:
        values = getattr(left.encoded, part)
        if part in parts:
            np.testing.assert_allclose(values, getattr(right.encoded, part), **tolerance)
        else:
            assert values is None


@pytest.mark.parametrize(
    "form, parts, more",
    [
        (EVERYTHING, PARTS, {"skipped": ["b.png: broken"]}),
        (LatentFormat(), PARTS[::2], {}),
        (LatentFormat(), ("shared_mean",), {"parts": ("shared_mean",), "labels": None}),
        (LatentFormat(), ("exclusive_mean",), {"parts": ("exclusive_mean",), "source": {}}),
        (LatentFormat(("shared",)), ("shared_mean",), {}),
    ],
)
def test_what_is_written_comes_back_log_variances_if_asked_for(path, form, parts, more):
    cache = cache_of(**more)
    cache.save(path, form)
    assert_same(LatentCache.read(path), cache, parts, rtol=0)
    assert made_by(path) == ("abc123", "y")


def test_any_program_can_read_the_cache_with_h5py_alone(path):
    cache = cache_of()
    cache.save(path, LatentFormat(logvar=True, dtype="float16"))
    with h5py.File(path, "r") as file:
        assert set(file) == {"shared", "exclusive", "ids", "labels"}
        assert file["exclusive/logvar"].dtype == np.float16
        logvar = cache.encoded.exclusive_logvar
        np.testing.assert_allclose(file["exclusive/logvar"], logvar, rtol=1e-3, atol=1e-4)
        assert [text.decode() for text in file["ids"]] == cache.ids
        assert file.attrs["schema"] == "iiae.latents/2"
        assert file.attrs["fingerprint"] == "abc123" and file.attrs["domain"] == "y"
        assert file.attrs["shared_shape"].tolist() == [3, 2, 2]
        assert json.loads(file.attrs["source"]) == {"data": "/data/a.h5", "split": "test"}
        assert set(json.loads(file.attrs["versions"])) == {"iiae", "h5py"}


def test_a_kind_that_the_cache_lacks_is_named(path):
    cache_of(parts=("shared_mean",)).save(path)
    error = refusal(lambda: LatentCache.read(path).exclusive)
    assert "exclusive" in error.message and "--latents exclusive" in error.hint


# ---- what is no cache


def test_missing_foreign_and_truncated_files_are_refused(path):
    assert refusal(LatentCache.read, path).message == f"{path} does not exist"
    assert not made_by(path) and not made_by(path.parent)
    path.write_bytes(b"no HDF5")
    assert not made_by(path)
    error = refusal(LatentCache.read, path)
    assert "is not an HDF5 file" in error.message and "iiae encode" in error.hint
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "iiae.latents/1"
    message = refusal(LatentCache.read, path).message
    assert message == f"{path} has schema iiae.latents/1, expected iiae.latents/2"
    assert not made_by(path)
    cache_of(rows=50).save(path)
    path.write_bytes(path.read_bytes()[:-50])
    assert "is damaged" in refusal(LatentCache.read, path).message


def replace(file, name, values):
    del file[name]
    file[name] = values


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.__delitem__("ids"),
        lambda file: replace(file, "ids", np.arange(4)),
        lambda file: replace(file, "labels", np.array([b"a"] * 5)),
        lambda file: replace(file, "shared/mean", np.zeros((3, 12), "f4")),
        lambda file: replace(file, "shared/mean", np.zeros(4, "f4")),
        lambda file: replace(file, "shared/mean", np.zeros((4, 12), "i4")),
        lambda file: file["shared/mean"].__setitem__(0, np.nan),
        lambda file: (file.__delitem__("shared"), file.__delitem__("exclusive")),
        lambda file: file.attrs.__setitem__("domain", "q"),
        lambda file: file.attrs.__setitem__("source", "{broken"),
    ],
    ids=range(10),
)
def test_a_damaged_cache_is_refused(path, change):
    cache_of().save(path, EVERYTHING)
    with h5py.File(path, "a") as file:
        change(file)
    assert refusal(LatentCache.read, path).message.startswith(f"{path} is damaged")


@pytest.mark.parametrize(
    "value, dtype", [(1e6, "float16"), (np.nan, "float32"), (np.inf, "float16")]
)
def test_a_value_that_cannot_be_stored_is_refused_by_name(path, value, dtype):
    cache = cache_of()
    cache.encoded.exclusive_mean[2, 1] = value
    error = refusal(cache.save, path, LatentFormat(dtype=dtype))
    assert error.message.startswith("exclusive_mean of é2.png is not finite, or beyond")
    assert not path.exists()


# ---- in blocks


@pytest.fixture
def folder(tmp_path):
    """21 pictures, two of them broken."""
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(21):
        path = tmp_path / "in" / f"{number:02d}.png"
        Image.fromarray(draw.integers(0, 256, SHAPE, np.uint8)).save(path)
        if number in (5, 9):
            path.write_bytes(b"broken")
    return tmp_path / "in"


@pytest.fixture
def job(folder):
    inputs = open_inputs([str(folder)], "x", DataInfo("", SHAPE, SHAPE, {}, {}), workers=2)
    trained = TrainedModel(small_model("maps").eval(), SHAPE[:2])
    head = LatentCache(Encoded(), [], None, "x", "f" * 16, (4, 4, 4), source=inputs.source)
    return EncodeJob(trained, inputs, EVERYTHING, 4, head)


def encoded(job, path, part=None):
    with block_store(path, job.settings(), resume=True) as store:
        job.make(store, (part or Part(0, 1)).of(job.total))
        job.write(path, store, part)
    return LatentCache.read(path)


@pytest.mark.parametrize("count", [2, 3, 7])  # seven shards of six blocks: one is empty
def test_merged_shards_have_the_values_of_one_call(job, tmp_path, count):
    whole = encoded(job, tmp_path / "whole.h5")
    assert (len(whole.ids), len(whole.skipped)) == (19, 2)
    paths = [tmp_path / f"{index}.h5" for index in range(count)]
    shards = [encoded(job, path, Part(index, count)) for index, path in enumerate(paths)]
    assert [name for shard in shards for name in shard.ids] == whole.ids
    merge(tmp_path / "merged.h5", read_shards(paths[::-1]))
    assert_same(LatentCache.read(tmp_path / "merged.h5"), whole, rtol=1e-6)


def test_a_changed_picture_changes_the_job(job, folder):
    before = job.settings()
    (folder / "03.png").write_bytes((folder / "04.png").read_bytes() + b" ")
    after = job.settings()
    assert {key for key in before if before[key] != after[key]} == {"content of the inputs"}
