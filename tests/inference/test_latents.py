"""The latent cache: round trips, its documented layout, reading in slices, damage."""

import json

import h5py
import numpy as np
import pytest
from helpers import refusal

from iiae_cli.inference.latents import (
    Gallery,
    LatentCache,
    LatentFormat,
    made_by,
)
from iiae_cli.inference.trained import Encoded

PARTS = ("shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar")
EVERYTHING = LatentFormat(logvar=True)


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
    for part in PARTS:
        values = getattr(left.encoded, part)
        if part not in parts:
            assert values is None
            continue
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, getattr(right.encoded, part), **{"rtol": 0, **tolerance})
    assert left.attributes() == right.attributes()
    assert (left.ids, left.labels) == (right.ids, right.labels)


@pytest.mark.parametrize(
    "form, parts, more",
    [
        (EVERYTHING, PARTS, {}),
        (LatentFormat(), PARTS[::2], {}),
        (LatentFormat(), ("shared_mean",), {"parts": ("shared_mean",), "labels": None}),
        (LatentFormat(), ("exclusive_mean",), {"parts": ("exclusive_mean",), "source": {}}),
    ],
)
def test_what_is_written_comes_back_log_variances_if_asked_for(path, form, parts, more):
    cache = cache_of(**more)
    cache.save(path, form)
    assert_same(Gallery(path).read(), cache, parts)


def test_half_precision_is_stored_as_such_and_read_as_float32(path):
    cache = cache_of()
    cache.save(path, LatentFormat(logvar=True, dtype="float16"))
    with h5py.File(path) as file:
        assert file["shared/mean"].dtype == file["exclusive/logvar"].dtype == np.float16
    assert_same(Gallery(path).read(), cache, rtol=1e-3, atol=1e-4)


def test_any_program_can_read_the_cache_with_h5py_alone(path):
    cache = cache_of()
    cache.save(path, EVERYTHING)
    with h5py.File(path, "r") as file:
        assert set(file) == {"shared", "exclusive", "ids", "labels"}
        np.testing.assert_array_equal(file["exclusive/logvar"], cache.encoded.exclusive_logvar)
        assert [text.decode() for text in file["ids"]] == cache.ids
        assert file.attrs["schema"] == "iiae.latents/2"
        assert file.attrs["fingerprint"] == "abc123" and file.attrs["domain"] == "y"
        assert file.attrs["shared_shape"].tolist() == [3, 2, 2]
        assert json.loads(file.attrs["source"]) == {"data": "/data/a.h5", "split": "test"}
        assert set(json.loads(file.attrs["versions"])) == {"iiae", "h5py"}


def test_a_gallery_reads_slices_and_names(path):
    cache = cache_of(rows=500)
    cache.save(path)
    gallery = Gallery(path)
    assert len(gallery) == 500 and gallery.head.metric == "cosine"
    assert (gallery.head.ids, gallery.head.labels) == (cache.ids, cache.labels)
    means = gallery.means("shared")
    assert means.shape == (500, 12)
    np.testing.assert_array_equal(means[2:4], cache.encoded.shared_mean[2:4])


def test_a_kind_that_the_cache_lacks_is_named(path):
    cache = cache_of(parts=("shared_mean",))
    cache.save(path)
    for means in (Gallery(path).means, Gallery(path).read().encoded.mean):
        assert "--latents exclusive" in refusal(means, "exclusive").hint


# ---- what is no cache


def test_missing_foreign_and_truncated_files_are_refused(path):
    assert refusal(Gallery, path).message == f"{path} does not exist"
    assert not made_by(path) and not made_by(path.parent)
    path.write_bytes(b"no HDF5")
    assert not made_by(path)
    error = refusal(Gallery, path)
    assert "is not an HDF5 file" in error.message and "iiae encode" in error.hint
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "iiae.latents/1"
    message = refusal(Gallery, path).message
    assert message == f"{path} has schema iiae.latents/1, expected iiae.latents/2"
    cache_of(rows=50).save(path)
    assert made_by(path)
    path.write_bytes(path.read_bytes()[:-50])
    assert "is damaged" in refusal(Gallery, path).message


def replace(file, name, values):
    del file[name]
    file[name] = values


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.__delitem__("ids"),
        lambda file: replace(file, "ids", np.array([b"a"])),
        lambda file: replace(file, "ids", np.arange(4)),
        lambda file: replace(file, "labels", np.array([b"a"] * 5)),
        lambda file: replace(file, "shared/mean", np.zeros((3, 12), "f4")),
        lambda file: replace(file, "shared/mean", np.zeros(4, "f4")),
        lambda file: replace(file, "shared/mean", np.zeros((4, 12), "i4")),
        lambda file: file["shared/mean"].__setitem__(0, np.nan),
        lambda file: replace(file, "exclusive", np.zeros(4)),
        lambda file: (file.__delitem__("shared"), file.__delitem__("exclusive")),
        lambda file: file.attrs.__delitem__("domain"),
        lambda file: file.attrs.__setitem__("domain", "q"),
        lambda file: file.attrs.__delitem__("fingerprint"),
        lambda file: file.attrs.__setitem__("source", "{broken"),
    ],
    ids=range(14),
)
def test_a_damaged_cache_is_refused(path, change):
    cache_of().save(path, EVERYTHING)
    with h5py.File(path, "a") as file:
        change(file)
    assert refusal(lambda: Gallery(path).read()).message.startswith(f"{path} is damaged")


@pytest.mark.parametrize(
    "value, dtype", [(1e6, "float16"), (np.nan, "float32"), (np.inf, "float16")]
)
def test_a_value_that_cannot_be_stored_is_refused_by_name(path, value, dtype):
    cache = cache_of()
    cache.encoded.exclusive_mean[2, 1] = value
    error = refusal(cache.save, path, LatentFormat(dtype=dtype))
    assert error.message.startswith("exclusive_mean of é2.png is not finite, or beyond")
    assert not path.exists()
