"""What a command is given to read: pictures, folders, a prepared file or feature arrays, as rows
for a model.

Rows are read by position, `read(start, stop)`, and nothing is remembered in between: a resumed or
sharded encoding reads what an uninterrupted one would have, and memory does not grow with the
number of rows.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import fingerprint_of_file
from iiae_cli.data.arrays import BROKEN, map_npy
from iiae_cli.data.datafile import DataFile, is_hdf5
from iiae_cli.data.pictures import PictureError, decode, find_pictures
from iiae_cli.model import Domain

Block: TypeAlias = tuple[NDArray[Any], list[str], list[str] | None]
RowSource: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Read:
    """Rows that could be read.

    Attributes:
        rows: (M, …).
        positions: (M,) in the inputs, ascending.
        skipped: a line for every input left out.
    """

    rows: NDArray[Any]
    positions: NDArray[np.int64]
    skipped: list[str] = field(default_factory=list)


class Inputs(ABC):
    """Rows to encode or translate.

    Attributes:
        source: for a cache's attributes; see `LatentCache`.
        ids: of the rows expected, in order; unreadable pictures make them fewer.
        labels: of the same rows, where known.
        total: how many.
        skipped: grows while `blocks` are read: a line for every input left out.
    """

    def __init__(
        self, source: dict[str, Any], ids: list[str], labels: list[str] | None = None
    ) -> None:
        self.source = source
        self.ids = ids
        self.labels = labels
        self.total = len(ids)
        self.skipped: list[str] = []

    @abstractmethod
    def read(self, start: int, stop: int) -> Read:
        """The rows at positions start…stop−1."""

    @abstractmethod
    def state(self, start: int, stop: int) -> list[str]:
        """For each of these inputs a text that changes when its content does: size and time, or a
        file's digest.
        """

    @abstractmethod
    def part(self, bounds: slice) -> Inputs:
        """The rows within `bounds` alone."""

    def listing(self) -> str:
        """16 hex digits over the ids and labels of all inputs in their order; shards of one list
        agree in it.
        """
        digest = hashlib.sha256()
        for texts in (self.ids, self.labels or []):
            for text in texts:
                digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(b"\0")
        return digest.hexdigest()[:16]

    def content(self, start: int, stop: int) -> str:
        """16 hex digits over `state`: a sum over inputs, so that the sums of shards add up to that
        of the whole.
        """
        total = 0
        for one, state in zip(self.ids[start:stop], self.state(start, stop), strict=True):
            text = f"{one}\0{state}".encode("utf-8", "surrogateescape")
            total += int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
        return f"{total % 2**64:016x}"

    def blocks(self, size: int) -> Iterator[Block]:
        """(rows, ids, labels or None) of at most `size` rows; unreadable inputs are noted in
        `skipped`.
        """
        for start in range(0, self.total, size):
            found = self.read(start, min(start + size, self.total))
            self.skipped += found.skipped
            if len(found.positions):
                labels = None if self.labels is None else [self.labels[i] for i in found.positions]
                yield found.rows, [self.ids[i] for i in found.positions], labels

    def all_rows(self) -> Block:
        """Everything at once.

        Raises:
            IiaeError: not one input could be read.
        """
        blocks = list(self.blocks(256))
        if not blocks:
            raise IiaeError("none of the inputs could be read", "the lines above name each of them")
        labels = (
            [one for _, _, some in blocks for one in some or []]
            if blocks[0][2] is not None
            else None
        )
        return (
            np.concatenate([rows for rows, _, _ in blocks]),
            [one for _, ids, _ in blocks for one in ids],
            labels,
        )


class ArrayInputs(Inputs):
    """Rows of a data file, or of an array of features.

    Args:
        rows: (N, …); read by slices, so that it may be larger than memory.
        ids: (N,).
        labels: (N,), where known.
        source: for a cache's attributes.
        file: that the rows come from.
    """

    def __init__(
        self,
        rows: RowSource,
        ids: list[str],
        labels: list[str] | None,
        source: dict[str, Any],
        file: Path,
    ) -> None:
        super().__init__(source, ids, labels)
        self._rows, self._file = rows, file

    def read(self, start: int, stop: int) -> Read:
        """A slice of the array."""
        rows = self._rows[start:stop]
        return Read(rows.astype(np.float32) if rows.ndim == 2 else rows, np.arange(start, stop))

    def state(self, start: int, stop: int) -> list[str]:
        """The file's digest, for all rows."""
        return [fingerprint_of_file(self._file)] * (stop - start)

    def part(self, bounds: slice) -> Inputs:
        """A slice of the array."""
        labels = None if self.labels is None else self.labels[bounds]
        return ArrayInputs(self._rows[bounds], self.ids[bounds], labels, self.source, self._file)


class PictureInputs(Inputs):
    """Picture files, decoded to a model's channels and the size that its data file stored.

    Decoding releases the interpreter's lock, so that threads do.
    """

    def __init__(self, paths: list[Path], shape: tuple[int, ...], workers: int) -> None:
        super().__init__({"pictures": True}, [str(path) for path in paths])
        self._paths, self._shape, self._workers = paths, shape, workers
        self._pool = (
            ThreadPoolExecutor(workers, "decode") if workers > 1 else None
        )  # starts threads when they are used

    def read(self, start: int, stop: int) -> Read:
        """Decoded pictures, straight into one array."""
        paths = self._paths[start:stop]
        height, width, channels = self._shape
        rows = np.empty((len(paths), height, width, channels), np.uint8)

        def into(place: int) -> PictureError | None:
            try:
                rows[place] = decode(paths[place], channels, (height, width))
            except PictureError as error:
                return error
            return None

        places = range(len(paths))
        errors = list(map(into, places) if self._pool is None else self._pool.map(into, places))
        there = np.array([place for place in places if errors[place] is None], np.int64)
        whole = len(there) == len(paths)
        return Read(
            rows if whole else rows[there],
            there + start,
            [str(one) for one in errors if one is not None],
        )

    def state(self, start: int, stop: int) -> list[str]:
        """Size and time of change of each file; both missing where it is."""
        return [_size_and_time(path) for path in self._paths[start:stop]]

    def part(self, bounds: slice) -> Inputs:
        """Some of the files."""
        return PictureInputs(self._paths[bounds], self._shape, self._workers)


def open_inputs(
    inputs: Sequence[str],
    domain: Domain,
    shape: tuple[int, ...],
    *,
    split: str = "test",
    workers: int = 1,
) -> Inputs:
    """The rows that a command's arguments name.

    Args:
        inputs: one prepared `.h5`, one feature `.npy`, or pictures and folders.
        domain: which side of a prepared file.
        shape: of one row as the model's data file had it: (H, W, C), or (F,).
        split: of a prepared file.
        workers: decoding threads.

    Raises:
        IiaeError: missing, mixed, empty, or of another shape than the model's.
    """
    first = Path(inputs[0])
    if is_hdf5(first):
        _alone(inputs)
        file = DataFile(first)
        _same_shape(first, file.info.shape_x if domain == "x" else file.info.shape_y, shape)
        rows, ids, labels = file.domain_rows(split, domain)
        if not ids:
            raise IiaeError(
                f"{first} has nothing in split '{split}'",
                "choose another --split: train, valid or test",
            )
        return ArrayInputs(
            rows, ids, labels, {"data": str(first.absolute()), "split": split}, first
        )
    if first.suffix.lower() == ".npy":
        _alone(inputs)
        features = _read_features(first)
        _same_shape(first, features.shape[1:], shape)
        ids = [f"{first.stem}/{number}" for number in range(len(features))]
        return ArrayInputs(features, ids, None, {"features": str(first.absolute())}, first)
    if len(shape) == 1:
        raise IiaeError(
            "this model reads features, not pictures", "give a feature .npy or a prepared .h5"
        )
    return PictureInputs(find_pictures(inputs), shape, workers)


def _size_and_time(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _alone(inputs: Sequence[str]) -> None:
    if len(inputs) > 1:
        raise IiaeError(
            f"{inputs[0]} cannot be mixed with other inputs",
            "encode each file by itself, then --merge",
        )


def _same_shape(path: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if len(found) != len(wanted) or found[-1] != wanted[-1]:
        raise IiaeError(
            f"{path} holds rows of shape {tuple(found)}, the model was trained on {tuple(wanted)}",
            "use data of the shape that the run was trained on",
        )


def _read_features(path: Path) -> NDArray[Any]:
    """A memory map of finite numbers (N, F)."""
    try:
        rows = map_npy(path)
    except FileNotFoundError as error:
        raise IiaeError(f"{path} does not exist", "check the path") from error
    except BROKEN as error:
        raise IiaeError(
            f"{path} is not a readable .npy array",
            "save it with numpy.save, without pickled objects",
        ) from error
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or not _all_finite(rows):
        raise IiaeError(
            f"{path} holds no finite (N, F) numbers", "save features as a 2-dimensional float array"
        )
    return rows


def _all_finite(rows: NDArray[Any]) -> bool:
    step = 1 << 14  # rows at once, so that memory stays flat
    with np.errstate(over="ignore"):
        return all(
            np.isfinite(rows[i : i + step].astype(np.float32)).all()
            for i in range(0, len(rows), step)
        )
