"""The latent cache: round trips, its documented layout, merging, damage."""

import json

import h5py
import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.inference.latents import (
    LatentCache,
    is_latent_cache,
    means_of,
    read_latents,
    write_latents,
)
from iiae_cli.inference.trained import Encoded

PARTS = ("shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar")


def cache_of(rows=4, seed=0, parts=PARTS, **more):
    draw = np.random.default_rng(seed)
    widths = {"shared": 12, "exclusive": 3}
    encoded = Encoded(
        **{
            part: draw.normal(size=(rows, widths[part.split("_")[0]])).astype("f4")
            for part in parts
        }
    )
    settings = {
        "ids": [f"seed{seed}/é{row}.png" for row in range(rows)],
        "labels": [f"class {row % 2}" for row in range(rows)],
        "domain": "y",
        "fingerprint": "abc123",
        "shared_shape": (3, 2, 2),
        "preset": "digits-cdcb",
        "metric": "cosine",
        "source": {"data": "/data/a.h5", "split": "test"},
    }
    return LatentCache(encoded, **{**settings, **more})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "z.h5"


def refusal(call, *arguments):
    with pytest.raises(IiaeError) as caught:
        call(*arguments)
    assert caught.value.hint
    return caught.value.message


def assert_same(found, wanted, parts=PARTS, **tolerance):
    for part in PARTS:
        values = getattr(found.encoded, part)
        if part in parts:
            assert values.dtype == np.float32
            np.testing.assert_allclose(
                values, getattr(wanted.encoded, part), **{"rtol": 0, **tolerance}
            )
        else:
            assert values is None
    for name in (
        "ids",
        "labels",
        "domain",
        "fingerprint",
        "shared_shape",
        "preset",
        "metric",
        "source",
    ):
        assert getattr(found, name) == getattr(wanted, name), name


def test_everything_comes_back(path):
    cache = cache_of()
    write_latents(path, cache, logvar=True)
    assert_same(read_latents(path), cache)
    assert len(read_latents(path)) == 4


def test_logvars_are_kept_only_when_asked_for(path):
    cache = cache_of()
    write_latents(path, cache)
    assert_same(read_latents(path), cache, parts=("shared_mean", "exclusive_mean"))


def test_half_precision_is_stored_as_such_and_read_as_float32(path):
    cache = cache_of()
    write_latents(path, cache, logvar=True, dtype="float16")
    with h5py.File(path) as file:
        assert file["shared/mean"].dtype == file["exclusive/logvar"].dtype == np.float16
    assert_same(read_latents(path), cache, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_one_kind_of_latents_alone_and_no_labels(path, kind):
    cache = cache_of(parts=(f"{kind}_mean",), labels=None, source={})
    write_latents(path, cache)
    assert_same(read_latents(path), cache, parts=(f"{kind}_mean",))
    assert read_latents(path).labels is None


def test_any_program_can_read_the_cache_with_h5py_alone(path):
    cache = cache_of()
    write_latents(path, cache, logvar=True)
    with h5py.File(path, "r") as file:
        assert set(file) == {"shared", "exclusive", "ids", "labels"}
        assert set(file["shared"]) == set(file["exclusive"]) == {"mean", "logvar"}
        assert file["shared/mean"].shape == (4, 12) and file["exclusive/mean"].shape == (4, 3)
        assert file["shared/mean"].dtype == np.float32
        np.testing.assert_array_equal(file["shared/mean"], cache.encoded.shared_mean)
        np.testing.assert_array_equal(file["exclusive/logvar"], cache.encoded.exclusive_logvar)
        assert (
            list(file["ids"].asstr()) == cache.ids and list(file["labels"].asstr()) == cache.labels
        )
        assert h5py.check_string_dtype(file["ids"].dtype).encoding == "utf-8"
        attributes = file.attrs
        assert attributes["schema"] == "iiae.latents/1"
        assert (attributes["fingerprint"], attributes["domain"], attributes["preset"]) == (
            "abc123",
            "y",
            "digits-cdcb",
        )
        assert attributes["shared_shape"].tolist() == [3, 2, 2]
        assert attributes["metric"] == "cosine"
        assert json.loads(attributes["source"]) == {"data": "/data/a.h5", "split": "test"}
        assert set(json.loads(attributes["versions"])) == {"iiae", "h5py"}


def test_a_failed_write_leaves_the_old_cache(path):
    write_latents(path, cache_of())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_latents(path, cache_of(source={"data": object()}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_means_are_asked_for_by_kind(path):
    cache = cache_of(parts=("shared_mean", "shared_logvar"))
    assert means_of(cache, "shared", path) is cache.encoded.shared_mean
    assert cache.encoded.logvar("shared") is cache.encoded.shared_logvar
    assert cache.encoded.logvar("exclusive") is None
    with pytest.raises(IiaeError) as caught:
        means_of(cache, "exclusive", path)
    assert caught.value.message == f"{path} holds no exclusive latents"
    assert "--latents exclusive" in caught.value.hint


# ---- what is no cache


def test_caches_are_told_from_other_files(path, tmp_path):
    write_latents(path, cache_of())
    assert is_latent_cache(path)
    other = tmp_path / "data.h5"
    with h5py.File(other, "w") as file:
        file.attrs["schema"] = "iiae.data/1"
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    for wrong in (other, text, tmp_path / "none.h5", tmp_path):
        assert not is_latent_cache(wrong)


def test_missing_and_foreign_files_are_refused(path):
    with pytest.raises(IiaeError) as caught:
        read_latents(path)
    assert caught.value.message == f"{path} does not exist" and "iiae encode" in caught.value.hint
    path.write_bytes(b"no HDF5")
    assert refusal(read_latents, path) == f"{path} is not a readable HDF5 file"
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "iiae.data/1"
    assert refusal(read_latents, path) == f"{path} has schema iiae.data/1, expected iiae.latents/1"


def test_a_truncated_cache_is_refused(path):
    write_latents(path, cache_of(rows=50))
    path.write_bytes(path.read_bytes()[:-50])
    assert refusal(read_latents, path) == f"{path} is truncated"


def replace(group, name, values):
    del group[name]
    group[name] = values


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.__delitem__("ids"),
        lambda file: replace(file, "ids", ["a"]),
        lambda file: replace(file, "ids", np.arange(4)),
        lambda file: replace(file, "labels", ["a"] * 5),
        lambda file: replace(file, "shared/mean", np.zeros((3, 12), "f4")),
        lambda file: replace(file, "exclusive", np.zeros(4)),
        lambda file: replace(file["shared"], "mean", ["a", "b", "c", "d"]),
        lambda file: file["shared"].__setitem__("other", np.zeros((4, 12))),
        lambda file: (file.__delitem__("shared"), file.__delitem__("exclusive")),
        lambda file: file.attrs.__delitem__("domain"),
        lambda file: file.attrs.__delitem__("fingerprint"),
        lambda file: file.attrs.__delitem__("shared_shape"),
        lambda file: file.attrs.__setitem__("source", "{broken"),
    ],
    ids=range(13),
)
def test_a_damaged_cache_is_refused(path, change):
    write_latents(path, cache_of(), logvar=True)
    with h5py.File(path, "a") as file:
        change(file)
    assert refusal(read_latents, path).startswith(f"{path} is damaged")


# ---- what cannot be stored


@pytest.mark.parametrize(
    "value, dtype, said",
    [
        (1e6, "float16", "exclusive_mean of seed0/é2.png holds values that float16 cannot hold"),
        (np.nan, "float32", "the latents of seed0/é2.png are not finite"),
        (np.inf, "float16", "the latents of seed0/é2.png are not finite"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused_by_name(path, value, dtype, said):
    cache = cache_of()
    cache.encoded.exclusive_mean[2, 1] = value
    with pytest.raises(IiaeError) as caught:
        write_latents(path, cache, dtype=dtype)
    assert caught.value.message == said and not path.exists()
    cache.encoded.exclusive_mean[2, 1] = 0
    cache.encoded.exclusive_logvar[2, 1] = np.nan  # not kept
    write_latents(path, cache, dtype=dtype)
