"""MATLAB's level-5 files against SciPy, and written by hand where SciPy does not write them."""

import struct

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from iiae_cli.data.sources.matlab import OtherArray, read_uint8


def saved(path, compressed, **arrays):
    savemat(path, arrays, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (2, 3, 4, 5), (128, 128, 3, 2, 2)])
def test_it_reads_what_scipy_reads(tmp_path, compressed, shape):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    others = {"mask": np.ones((50, 50)), "words": "some text", "z": np.array([{"a": 1}])}
    for order in ({**others, "im": values}, {"im": values, **others}):
        path = saved(tmp_path / "a.mat", compressed, **order)
        found = read_uint8(path, "im", shape)
        np.testing.assert_array_equal(found, loadmat(path)["im"])
        np.testing.assert_array_equal(found, values)


def test_a_file_of_the_other_byte_order_is_read(tmp_path):
    def element(kind, content):
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    shape, values = (2, 3), np.arange(6, dtype=np.uint8).reshape(2, 3)
    name = struct.pack(">HH", 2, 1) + b"im\0\0"  # within its own tag
    body = element(6, struct.pack(">II", 9, 0)) + element(5, struct.pack(">2i", *shape)) + name
    whole = element(14, body + element(2, values.tobytes(order="F")))
    (tmp_path / "a.mat").write_bytes(b"by hand".ljust(124) + b"\1\0MI" + whole)
    np.testing.assert_array_equal(read_uint8(tmp_path / "a.mat", "im", shape), values)
    np.testing.assert_array_equal(loadmat(tmp_path / "a.mat")["im"], values)


@pytest.mark.parametrize("compressed", [False, True])
def test_other_arrays_and_none_are_told_apart(tmp_path, compressed):
    path = saved(
        tmp_path / "a.mat",
        compressed,
        im=np.zeros((2, 3), np.uint8),
        real=np.zeros(3),
        c=np.ones(2) * 1j,
    )
    for name, shape, said in (
        ("im", (3, 2), "im is uint8 (2, 3), not uint8 (3, 2)"),
        ("real", (1, 3), "float64 (1, 3)"),
        ("c", (1, 2), "complex"),
    ):
        with pytest.raises(OtherArray) as caught:
            read_uint8(path, name, shape)
        assert said in str(caught.value)
    with pytest.raises(KeyError):
        read_uint8(path, "i", (2, 3))


@pytest.mark.parametrize("compressed", [False, True])
def test_every_beginning_is_refused(tmp_path, compressed):
    values = np.random.default_rng(0).integers(0, 256, (9, 9)).astype(np.uint8)
    whole = saved(tmp_path / "a.mat", compressed, im=values).read_bytes()
    for length in range(len(whole)):
        if not compressed and length >= len(whole) - 7:
            break  # what is missing is padding
        (tmp_path / "b.mat").write_bytes(whole[:length])
        with pytest.raises((ValueError, KeyError)):
            read_uint8(tmp_path / "b.mat", "im", (9, 9))
