"""What a command is given to read: pictures, folders, a prepared file or feature arrays, as rows.

Rows are read by position and nothing is remembered in between, so a resumed or sharded encoding
reads what an uninterrupted one would have, and memory does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of
from iiae_cli.data.datafile import DataFile, is_hdf5
from iiae_cli.data.pictures import PictureError, decode, find_pictures
from iiae_cli.model import Domain

Block: TypeAlias = tuple[NDArray[Any], list[str], list[str] | None]
_STEP = 1 << 14  # rows whose numbers are checked at once


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


@dataclass
class Inputs:
    """Rows to encode or translate.

    Attributes:
        ids: of the rows expected, in order; unreadable pictures make them fewer.
        labels: of the same rows, where known.
        source: for a cache's attributes; see `LatentCache`.
        read: returns the rows at positions start … stop - 1.
        states: returns texts that change when the inputs' content does.
        skipped: grows while `blocks` are read: a line for every input left out.
    """

    ids: list[str]
    labels: list[str] | None
    source: dict[str, Any]
    read: Callable[[int, int], Read]
    states: Callable[[], list[str]]
    skipped: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of rows expected."""
        return len(self.ids)

    def first(self, count: int) -> Inputs:
        """Returns the first `count` rows alone."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, ids=self.ids[:count], labels=labels)

    def listing(self) -> str:
        """Returns a digest of the ids and labels in their order."""
        return _digest([*self.ids, "", *(self.labels or [])])

    def content(self) -> str:
        """Returns a digest that changes when the content of an input does."""
        return _digest(self.states())

    def blocks(self, size: int) -> Iterator[Block]:
        """Yields (rows, ids, labels or None) of at most `size` rows, noting others in `skipped`."""
        for start in range(0, self.total, size):
            part = self.read(start, min(start + size, self.total))
            self.skipped += part.skipped
            if len(part.positions):
                ids, labels = (
                    None if texts is None else [texts[place] for place in part.positions]
                    for texts in (self.ids, self.labels)
                )
                yield part.rows, ids or [], labels

    def all_rows(self) -> Block:
        """Returns everything at once; raises IiaeError if not one input can be read."""
        blocks = list(self.blocks(256))
        if not blocks:
            raise IiaeError("none of the inputs could be read", "the lines above name each of them")
        rows = np.concatenate([rows for rows, _, _ in blocks])
        labels = [label for _, _, labels in blocks for label in labels or []]
        known = blocks[0][2] is not None
        return rows, [name for _, ids, _ in blocks for name in ids], labels if known else None


def open_inputs(
    inputs: Sequence[str],
    domain: Domain,
    shape: tuple[int, ...],
    *,
    split: str = "test",
    workers: int = 1,
) -> Inputs:
    """Returns the rows that a command's arguments name.

    Args:
        inputs: one prepared `.h5`, one feature `.npy`, or pictures and folders.
        domain: which side of a prepared file.
        shape: of one row as the model's data file had it: (H, W, C), or (F,).
        split: of a prepared file.
        workers: threads that decode pictures.

    Raises:
        IiaeError: missing, mixed, empty, or of another shape than the model's.
    """
    first = Path(inputs[0])
    if is_hdf5(first) or first.suffix.lower() == ".npy":
        if len(inputs) > 1:
            raise IiaeError(
                f"{first} cannot be mixed with other inputs", "encode each file by itself"
            )
        return _prepared(first, split, domain, shape) if is_hdf5(first) else _features(first, shape)
    if len(shape) == 1:
        raise IiaeError(
            "this model reads features, not pictures", "give a feature .npy or a prepared .h5"
        )
    return _pictures(find_pictures(inputs), shape, workers)


def _prepared(path: Path, split: str, domain: Domain, shape: tuple[int, ...]) -> Inputs:
    file = DataFile(path)
    _check_shape(path, file.info.shape_x if domain == "x" else file.info.shape_y, shape)
    rows, ids, labels = file.domain_rows(split, domain)
    if not ids:
        raise IiaeError(
            f"{path} has nothing in split '{split}'", "choose another --split: train, valid or test"
        )
    return _from_array(path, rows, ids, labels, {"data": str(path.absolute()), "split": split})


def _features(path: Path, shape: tuple[int, ...]) -> Inputs:
    """A memory map of finite numbers (N, F)."""
    with reading(path, "save it with numpy.save, without pickled objects"):
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        with np.errstate(over="ignore"):
            sound = rows.ndim == 2 and rows.dtype.kind in "fiu"
            sound = sound and all(
                np.isfinite(rows[start : start + _STEP].astype(np.float32)).all()
                for start in range(0, len(rows), _STEP)
            )
    if not sound:
        raise IiaeError(
            f"{path} holds no finite (N, F) numbers", "save features as a 2-dimensional float array"
        )
    _check_shape(path, rows.shape[1:], shape)
    ids = [f"{path.stem}/{number}" for number in range(len(rows))]
    return _from_array(path, rows, ids, None, {"features": str(path.absolute())})


def _from_array(
    path: Path,
    rows: NDArray[Any],
    ids: list[str],
    labels: list[str] | None,
    source: dict[str, Any],
) -> Inputs:
    def read(start: int, stop: int) -> Read:
        part = rows[start:stop]
        part = part.astype(np.float32) if part.ndim == 2 else part
        return Read(part, np.arange(start, stop))

    return Inputs(ids, labels, source, read, lambda: [sha256_of(path)[:16]])


def _pictures(paths: list[Path], shape: tuple[int, ...], workers: int) -> Inputs:
    """Picture files, decoded by threads to a model's channels and the size that its data
    file has.
    """
    height, width, channels = shape
    pool = ThreadPoolExecutor(workers, "decode")

    def read(start: int, stop: int) -> Read:
        rows = np.empty((stop - start, height, width, channels), np.uint8)

        def into(place: int) -> PictureError | None:
            try:
                rows[place] = decode(paths[start + place], channels, (height, width))
            except PictureError as error:
                return error
            return None

        errors = list(pool.map(into, range(len(rows))))
        good = np.array([place for place, error in enumerate(errors) if error is None], np.int64)
        kept = rows if len(good) == len(rows) else rows[good]
        return Read(kept, good + start, [str(error) for error in errors if error is not None])

    states = lambda: [_size_and_time(path) for path in paths]  # noqa: E731
    return Inputs([str(path) for path in paths], None, {"pictures": True}, read, states)


def _size_and_time(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _check_shape(path: Path, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if len(given) != len(wanted) or given[-1] != wanted[-1]:
        raise IiaeError(
            f"{path} holds rows of shape {tuple(given)}, the model was trained on {tuple(wanted)}",
            "use data of the shape that the run was trained on",
        )


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
