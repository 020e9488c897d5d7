"""A gallery on disk: the rows, names and classes asked for, and refusals of damaged files."""

import h5py
import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.inference import stored_gallery
from iiae_cli.inference.latents import LatentCache, write_latents
from iiae_cli.inference.stored_gallery import open_gallery
from iiae_cli.inference.trained import Encoded


@pytest.fixture
def path(tmp_path):
    means = np.arange(1000, dtype=np.float32).reshape(500, 2)
    ids, labels = [f"bild-{i}-ä" for i in range(500)], [f"class {i % 7}" for i in range(500)]
    cache = LatentCache(Encoded(means), ids, labels, "y", "f" * 16, (2,), metric="cosine")
    write_latents(tmp_path / "z.h5", cache)
    return tmp_path / "z.h5"


@pytest.mark.parametrize("few, block", [(256, 2**16), (0, 2**16), (0, 7)])
def test_what_is_asked_for_is_read(path, monkeypatch, few, block):
    monkeypatch.setattr(stored_gallery, "_FEW", few)
    monkeypatch.setattr(stored_gallery, "_BLOCK", block)
    rows = np.array([[3, 499], [0, 3]])
    with open_gallery(path) as gallery:
        assert (len(gallery), gallery.domain, gallery.metric, gallery.fingerprint) == (
            500,
            "y",
            "cosine",
            "f" * 16,
        )
        assert gallery.names(rows) == {0: "bild-0-ä", 3: "bild-3-ä", 499: "bild-499-ä"}
        assert gallery.labels(rows) == {0: "class 0", 3: "class 3", 499: "class 2"}
        assert gallery.names(np.empty((2, 0), np.int64)) == {}
        means = gallery.means("shared")
        assert means.shape == (500, 2)
        np.testing.assert_array_equal(means[2:4], [[4, 5], [6, 7]])
        with pytest.raises(IiaeError, match="holds no exclusive latents"):
            gallery.means("exclusive")


def change(path, how):
    with h5py.File(path, "r+") as file:
        how(file)


def drop(name):
    def how(file):
        del file[name]

    return how


def replace(name, data):
    def how(file):
        del file[name]
        file[name] = data

    return how


@pytest.mark.parametrize(
    "how, message",
    [
        (drop("ids"), "is damaged"),
        (replace("ids", np.array([b"a"])), "differ in length"),
        (replace("labels", np.array([b"a"])), "differ in length"),
        (replace("shared/mean", np.zeros((3, 2))), "differ in length"),
        (replace("shared/mean", np.zeros(500)), "holds no"),
        (replace("shared/mean", np.zeros((500, 2), np.int32)), "holds no"),
        (lambda file: file.attrs.update({"domain": "q"}), "is damaged"),
        (lambda file: file.attrs.update({"schema": "other"}), "has schema other"),
        (lambda file: file.attrs.__delitem__("fingerprint"), "is damaged"),
        (replace("ids", np.arange(500)), "is damaged"),
    ],
)
def test_damaged_caches_are_refused(path, how, message):
    change(path, how)
    with pytest.raises(IiaeError, match=message) as caught, open_gallery(path) as gallery:
        gallery.means("shared")
        gallery.names(np.array([1]))
    assert "iiae encode" in caught.value.hint


def test_a_block_that_cannot_be_read_is_an_error_of_the_file(tmp_path, path):
    means = np.random.default_rng(0).standard_normal((500, 2)).astype(np.float32)
    change(path, drop("shared/mean"))
    change(
        path,
        lambda f: f.create_dataset("shared/mean", data=means, chunks=(100, 2), compression="gzip"),
    )
    with h5py.File(path, "r") as file:
        place = file["shared/mean"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 20] = bytes(20)
    path.write_bytes(content)
    with open_gallery(path) as gallery:
        means = gallery.means("shared")
        means[0:50]
        with pytest.raises(IiaeError, match="is damaged"):
            means[0:500]
