"""An append-only file of blocks of arrays, which a kill at any moment leaves usable.

HDF5 files cannot be continued after a kill in the middle of a write; this can. Every block carries
its length and its CRC-32. Opening the file reads it through once, front to back, and cuts off
whatever follows the last whole block. One file takes all blocks of one piece of work, so that a
shared file system never sees thousands of small ones.

Layout of a block: magic (8 bytes), payload length (8), CRC-32 of the payload (4); the payload is
the length of a JSON header (4), the header (names, dtypes and shapes of the arrays, and lines of
text), then the arrays' bytes.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import write_errors

_MAGIC = b"iiaeblk1"
_HEAD = struct.Struct("<8sQI")
_LENGTH = struct.Struct("<I")
_CHUNK = 1 << 20
_SYNC_SECONDS = (
    10.0  # what a machine that dies loses at most; a killed process loses nothing that was appended
)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        arrays: by name, read-only.
        lines: of text.
    """

    arrays: dict[str, NDArray[Any]]
    lines: list[str] = field(default_factory=list)


class BlockLog:
    """The file; use as a context manager. One process at a time may have it open.

    Args:
        path: taken up where it exists, else made.

    Raises:
        IiaeError: the place cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with write_errors(path):
            self._file: BinaryIO = path.open("a+b")
            self._places, end = _scan(self._file)
            self._file.truncate(end)
        self._end = end
        self._synced = time.monotonic()

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> BlockLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with write_errors(self.path):  # closing writes what a full disk refused before
            self._file.close()

    def append(self, arrays: Mapping[str, NDArray[Any]], lines: Sequence[str] = ()) -> None:
        """Add a block; it is safe from a kill when this returns.

        Raises:
            IiaeError: the disk is full; the blocks before are whole.
        """
        given = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        described = [(name, values.dtype.str, values.shape) for name, values in given.items()]
        header = json.dumps({"arrays": described, "lines": list(lines)}).encode()
        pieces: list[bytes | memoryview] = [_LENGTH.pack(len(header)), header]
        pieces += [
            values.reshape(-1).view(np.uint8).data for values in given.values() if values.size
        ]
        length, check = 0, 0
        for piece in pieces:
            length += len(piece)
            check = zlib.crc32(piece, check)
        with write_errors(self.path):
            self._file.seek(0, os.SEEK_END)
            self._file.write(_HEAD.pack(_MAGIC, length, check))
            for piece in pieces:
                self._file.write(piece)
            self._file.flush()
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                self.sync()
        self._places.append((self._end + _HEAD.size, length))
        self._end += _HEAD.size + length

    def sync(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __iter__(self) -> Iterator[Block]:
        """All blocks, one at a time."""
        for number in range(len(self)):
            yield self.read(number)

    def read(self, number: int) -> Block:
        """One block.

        Raises:
            IiaeError: damaged since the file was opened, or not by this program.
        """
        place, length = self._places[number]
        self._file.seek(place)
        payload = self._file.read(length)
        try:
            return _decoded(payload)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise IiaeError(
                f"{self.path} is damaged: {error}", f"delete {self.path} and run again"
            ) from error


def _scan(file: BinaryIO) -> tuple[list[tuple[int, int]], int]:
    """(place, length) of the payload of every whole block, and where the last one ends."""
    places: list[tuple[int, int]] = []
    size = file.seek(0, os.SEEK_END)
    end = file.seek(0)
    while True:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return places, end
        magic, length, check = _HEAD.unpack(head)
        if magic != _MAGIC or end + _HEAD.size + length > size or not _agrees(file, length, check):
            return places, end
        places.append((end + _HEAD.size, length))
        end += _HEAD.size + length


def _agrees(file: BinaryIO, length: int, wanted: int) -> bool:
    found = 0
    while length > 0:
        chunk = file.read(min(length, _CHUNK))
        if not chunk:
            return False
        found = zlib.crc32(chunk, found)
        length -= len(chunk)
    return found == wanted


def _decoded(payload: bytes) -> Block:
    (length,) = _LENGTH.unpack_from(payload)
    place = _LENGTH.size + length
    header = json.loads(payload[_LENGTH.size : place])
    arrays: dict[str, NDArray[Any]] = {}
    for name, text, shape in header["arrays"]:
        dtype = np.dtype(text)
        if dtype.kind not in "fiub":
            raise ValueError(f"{name} is {dtype}")
        count = int(np.prod(shape, dtype=np.int64))
        values: NDArray[Any] = (
            np.frombuffer(payload, dtype, count, place) if count else np.empty(0, dtype)
        )
        arrays[name] = values.reshape(shape)
        place += values.nbytes
    return Block(arrays, [str(line) for line in header["lines"]])
