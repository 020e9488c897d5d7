"""MATLAB's level-5 files: one named array of unsigned bytes.

`scipy.io.loadmat` reads far more of the format, and crashes on some altered files in its compiled part. This reads what
is wanted alone, checks every length against what is there, and inflates no more than the array takes.

Format: "MAT-File Format" (MathWorks), chapter 1, level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HEADER = 128  # bytes: text, version, order of bytes
_BEFORE_DATA = 4096  # bytes of an array's flags, shape and name, at most
_UINT8, _INT32, _UINT32, _ARRAY, _COMPRESSED = 2, 5, 6, 14, 15  # types of elements
_COMPLEX = 0x800
_TYPES = (
    *(
        "cell",
        "struct",
        "object",
        "char",
        "sparse",
        "float64",
        "float32",
        "int8",
        "uint8",
        "int16",
        "uint16",
    ),
    *("int32", "uint32", "int64", "uint64"),
)
_CLASSES = dict(enumerate(_TYPES, 1))


class OtherArray(ValueError):
    """The array is there, but of another type or shape."""


def read_uint8(path: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array of a name, of this shape.

    Raises:
        KeyError: the file holds none of that name.
        OtherArray: of another type or shape; the message says which.
        ValueError: no level-5 file, or a damaged one; likewise zlib.error.
        OSError: it cannot be read.
    """
    size = math.prod(shape)
    with path.open("rb") as file:
        head = file.read(_HEADER)
        order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(head[124:])
        if order is None:
            raise ValueError("no level-5 header")
        while tag := file.read(8):
            kind, length = struct.unpack(f"{order}II", tag.ljust(8, b"\xff"))
            following = file.tell() + length + (0 if kind == _COMPRESSED else -length % 8)
            body = file.read(
                min(length, size + size // 1000 + (1 << 16))
            )  # the most that deflate makes of it
            whole = len(body) == length
            if kind == _COMPRESSED:
                stream = zlib.decompressobj()
                body = stream.decompress(body, size + _BEFORE_DATA)
                kind = int.from_bytes(body[:4], "little" if order == "<" else "big")
                body, whole = body[8:], whole and stream.eof  # at its end the checksum was right
            if (
                kind == _ARRAY
                and (found := _array(memoryview(body), order, name.encode(), shape)) is not None
            ):
                if not whole:
                    raise ValueError("the array is not whole")
                return found
            if not whole and file.seek(0, 2) < following:
                raise ValueError("the file ends early")
            file.seek(following)
    raise KeyError(name)


def _array(
    body: memoryview, order: str, name: bytes, shape: tuple[int, ...]
) -> NDArray[np.uint8] | None:
    """The array in an element's body; None where it has another name."""
    kind, flags, at = _element(body, 0, order)
    if kind != _UINT32 or len(flags) != 8:
        return None
    flag = struct.unpack_from(f"{order}I", flags)[0]
    kind, extents, at = _element(body, at, order)
    if kind != _INT32 or len(extents) % 4:
        return None
    kind, found_name, at = _element(body, at, order)
    if bytes(found_name) != name:
        return None
    found_shape = struct.unpack(f"{order}{len(extents) // 4}i", extents)
    found_type = _CLASSES.get(flag & 0xFF, "unknown") + (" complex" if flag & _COMPLEX else "")
    if (found_type, found_shape) != ("uint8", shape):
        raise OtherArray(f"{name.decode()} is {found_type} {found_shape}, not uint8 {shape}")
    kind, data, _ = _element(body, at, order)
    if kind != _UINT8 or len(data) != math.prod(shape):
        raise ValueError("the array's data are not whole")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F")


def _element(body: memoryview, at: int, order: str) -> tuple[int, memoryview, int]:
    """Type and content of the element at a place, and the place of the next."""
    if at + 8 > len(body):
        raise ValueError("an element ends early")
    kind, length = struct.unpack_from(f"{order}II", body, at)
    start = at + 8
    if kind >> 16:  # up to four bytes within the tag itself
        kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
    if length > len(body) - start:
        raise ValueError("an element is longer than what holds it")
    end = start + length
    return kind, body[start:end], end + -end % 8 if start == at + 8 else at + 8
