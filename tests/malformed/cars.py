"""Cars' MATLAB files, of both formats."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import h5py
import numpy as np
from scipy.io import savemat

from malformed.cases import LEFT_OUT, MAYBE, Making, each, flipped, malformed, truncated

KIND = "MATLAB files"
SHAPE = (128, 128, 3, 24, 4)
_good: dict[bool, bytes] = {}


def good(compressed: bool = True) -> bytes:
    if compressed not in _good:
        file = io.BytesIO()
        savemat(
            file,
            {"mask": np.ones((8, 8)), "im": np.zeros(SHAPE, np.uint8)},
            do_compression=compressed,
        )
        _good[compressed] = file.getvalue()
    return _good[compressed]


def reading(make: Making, content: bytes, alone: bool | None = None) -> list[object]:
    """The hostile car, and a good one after it unless alone."""
    make.file("car_001_mesh.mat", content)
    if alone is None:
        make.file("car_002_mesh.mat", good())
    return ["prepare", "cars", make.folder, "--limit", 1, "--image-size", 16, "-o", "out/c.h5"]


def matlab(*elements: bytes, version: bytes = b"\0\1IM") -> bytes:
    return b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + version + b"".join(elements)


def element(kind: int, content: bytes, length: int | None = None) -> bytes:
    return (
        struct.pack("<II", kind, len(content) if length is None else length)
        + content
        + bytes(-len(content) % 8)
    )


def matrix(
    *,
    shape: Any = SHAPE,
    name: bytes = b"im",
    flags: int = 9,
    kind: int = 2,
    content: bytes = b"",
    **more: Any,
) -> bytes:
    """A matrix element; flags 9 is uint8."""
    dims = struct.pack(f"<{len(shape)}i", *shape)
    body = (
        element(6, struct.pack("<II", flags, 0))
        + element(5, dims)
        + element(1, name)
        + element(kind, content, **more)
    )
    return element(14, body)


@malformed(KIND, times=6, allowed=LEFT_OUT)
def a_truncated_file(make: Making) -> list[object]:
    return reading(make, truncated(good(make.rng.random() < 0.5), make.rng))


@malformed(KIND, times=30, allowed=frozenset({0, 3}))
def a_damaged_beginning(make: Making) -> list[object]:
    """Headers and tags lie there; damage in the mask, which nobody reads, or in the text does not matter."""
    return reading(make, flipped(good(make.rng.random() < 0.3), make.rng, 0, 480, 5))


@each(
    KIND,
    matlab(),
    matlab(version=b"\0\1MI"),
    matlab(version=b"\0\3IM"),
    matlab(element(14, b"")),
    matlab(element(15, b"not zlib")),
    matlab(element(15, zlib.compress(element(14, b"")))),
    matlab(element(15, zlib.compress(b""))),
    matlab(element(15, zlib.compress(bytes(1 << 28), 1))),
    matlab(element(14, bytes(100), length=2**32 - 1)),
    matlab(element(14, bytes(100), length=2**31)),
    matlab(matrix()),
    matlab(matrix(content=bytes(100), length=4_718_592)),
    matlab(matrix(shape=(2**31 - 1,) * 5)),
    matlab(matrix(shape=(-128, -128, 3, 24, 4))),
    matlab(matrix(shape=(128,) * 300)),
    matlab(matrix(shape=())),
    matlab(matrix(flags=1)),
    matlab(matrix(flags=2)),
    matlab(matrix(flags=3)),
    matlab(matrix(flags=6 | 0x800)),
    matlab(matrix(flags=17)),
    matlab(matrix(flags=255)),
    matlab(matrix(kind=99, content=bytes(4_718_592))),
    matlab(matrix(kind=14, content=bytes(64))),
    matlab(matrix(kind=16, content=b"\xff" * 64)),
    matlab(matrix(name=b"im" * 100_000)),
    matlab(matrix(name=b"other")),
    matlab(element(15, zlib.compress(element(15, zlib.compress(matrix()))))),
    matlab(element(9, bytes(64)), element(9, bytes(64))),
    b"",
    bytes(200),
    b"\0" * 127,
    b"<html>" * 50,
    allowed=LEFT_OUT,
)
def a_false_structure(make: Making, content: Any) -> list[object]:
    return reading(make, content)


@malformed(KIND, times=3)
def nothing_but_damage(make: Making) -> list[object]:
    return reading(make, truncated(good(), make.rng), alone=True)


@each(
    KIND,
    "bomb",
    "shape",
    "type",
    "group",
    "external",
    "missing",
    "circle",
    "matlab",
    allowed=LEFT_OUT,
)
def hdf5_of_another_kind(make: Making, what: Any) -> list[object]:
    path = make.folder / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        reverse = SHAPE[::-1]
        if what == "bomb":
            file.create_dataset("im", (10**12, *reverse[1:]), "u1", chunks=(1, *reverse[1:]))
        elif what == "shape":
            file["im"] = np.zeros((4, 4), np.uint8)
        elif what == "type":
            file.create_dataset("im", reverse, h5py.string_dtype())
        elif what == "group":
            file.create_group("im/im")
        elif what == "external":
            file["im"] = h5py.ExternalLink("/etc/passwd", "/im")
        elif what == "circle":
            file["im"] = h5py.SoftLink("/im")
        elif what == "matlab":
            file.create_dataset("im", reverse, "u1", chunks=(1, *reverse[1:]))
    content = path.read_bytes()
    path.unlink()
    return reading(make, content)


@malformed(KIND, times=6, allowed=frozenset({0, 3}))
def damaged_hdf5(make: Making) -> list[object]:
    path = make.folder / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset(
            "im", SHAPE[::-1], "u1", compression="gzip", data=np.zeros(SHAPE[::-1], np.uint8)
        )
    content = flipped(path.read_bytes(), make.rng, 512, 6000, 6)
    path.unlink()
    return reading(make, content)


@each(
    KIND,
    b"\xff\xfe",
    b"9" * 5000,
    b"car_" + b"1" * 5000 + b"_mesh",
    b"\n" * 100_000,
    b"../../1\n/etc/2\n",
    allowed=MAYBE,
)
def an_odd_list(make: Making, content: Any) -> list[object]:
    """Only numbers are taken from it, never paths."""
    make.file("car_002_mesh.mat", good())
    make.file("list.txt", content)
    return ["prepare", "cars", make.folder, "--limit", 1, "--image-size", 16, "-o", "out/c.h5"]
