"""What a command is given to read: pictures, folders, a prepared file or feature arrays, as rows for a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.data.arrays import BROKEN, map_npy
from iiae_cli.data.dataset import DataFile, is_hdf5
from iiae_cli.data.pictures import PictureError, decode_all, find_pictures
from iiae_cli.errors import IiaeError
from iiae_cli.model.iiae import Domain

Block: TypeAlias = tuple[NDArray[Any], list[str], list[str] | None]


class Inputs(ABC):
    """Rows to encode or translate, delivered in blocks.

    Attributes:
        source: for a cache's attributes; see `LatentCache`.
        ids: of the rows expected, in order; unreadable pictures make them fewer.
        total: how many.
        skipped: grows while blocks are read: a line for every input left out.
    """

    def __init__(self, source: dict[str, Any], ids: list[str]) -> None:
        self.source = source
        self.ids = ids
        self.total = len(ids)
        self.skipped: list[str] = []

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Block]:
        """(rows, ids, labels or None) of at most `size` rows."""

    @abstractmethod
    def part(self, bounds: slice) -> Inputs:
        """The rows within `bounds` alone."""

    def shard(self, index: int, count: int) -> Inputs:
        """The `index`-th, from 0, of `count` contiguous parts.

        Raises:
            IiaeError: it would be empty.
        """
        bounds = slice(self.total * index // count, self.total * (index + 1) // count)
        if bounds.start == bounds.stop:
            raise IiaeError(f"shard {index}/{count} of {self.total} inputs is empty", "use fewer shards")
        return self.part(bounds)

    def all_rows(self) -> Block:
        """Everything at once.

        Raises:
            IiaeError: not one input could be read.
        """
        blocks = list(self.blocks(256))
        if not blocks:
            raise IiaeError("none of the inputs could be read", "the lines above name each of them")
        labels = [one for _, _, some in blocks for one in some or []] if blocks[0][2] is not None else None
        return np.concatenate([rows for rows, _, _ in blocks]), [one for _, ids, _ in blocks for one in ids], labels


class ArrayInputs(Inputs):
    """Rows of a data file, or of an array of features."""

    def __init__(self, rows: NDArray[Any], ids: list[str], labels: list[str] | None, source: dict[str, Any]) -> None:
        super().__init__(source, ids)
        self._rows, self._labels = rows, labels

    def blocks(self, size: int) -> Iterator[Block]:
        """Slices of the array."""
        for start in range(0, self.total, size):
            part = slice(start, start + size)
            yield self._rows[part], self.ids[part], None if self._labels is None else self._labels[part]

    def part(self, bounds: slice) -> Inputs:
        """A slice of the array."""
        labels = None if self._labels is None else self._labels[bounds]
        return ArrayInputs(self._rows[bounds], self.ids[bounds], labels, self.source)


class PictureInputs(Inputs):
    """Picture files, decoded to a model's channels and the size that its data file stored."""

    def __init__(self, paths: list[Path], shape: tuple[int, ...], workers: int) -> None:
        super().__init__({"pictures": True}, [str(path) for path in paths])
        self._paths, self._shape, self._workers = paths, shape, workers

    def blocks(self, size: int) -> Iterator[Block]:
        """Decoded blocks; unreadable pictures are noted in `skipped`."""
        for start in range(0, self.total, size):
            paths = self._paths[start : start + size]
            rows, ids = [], []
            decoded = decode_all(paths, self._shape[2], (self._shape[0], self._shape[1]), self._workers)
            for path, picture in zip(paths, decoded, strict=True):
                if isinstance(picture, PictureError):
                    self.skipped.append(str(picture))
                else:
                    rows.append(picture)
                    ids.append(str(path))
            if rows:
                yield np.stack(rows), ids, None

    def part(self, bounds: slice) -> Inputs:
        """Some of the files."""
        return PictureInputs(self._paths[bounds], self._shape, self._workers)


def open_inputs(
    inputs: Sequence[str], domain: Domain, shape: tuple[int, ...], *, split: str = "test", workers: int = 1
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
        part = file.split(split)
        if not part.ids(domain):
            raise IiaeError(f"{first} has nothing in split '{split}'", "choose another --split: train, valid or test")
        source = {"data": str(first.absolute()), "split": split}
        return ArrayInputs(part.rows(domain), part.ids(domain), part.labels(domain), source)
    if first.suffix.lower() == ".npy":
        _alone(inputs)
        rows = _read_features(first)
        _same_shape(first, rows.shape[1:], shape)
        ids = [f"{first.stem}/{number}" for number in range(len(rows))]
        return ArrayInputs(rows, ids, None, {"features": str(first.absolute())})
    if len(shape) == 1:
        raise IiaeError("this model reads features, not pictures", "give a feature .npy or a prepared .h5")
    return PictureInputs(find_pictures(inputs), shape, workers)


def _alone(inputs: Sequence[str]) -> None:
    if len(inputs) > 1:
        raise IiaeError(f"{inputs[0]} cannot be mixed with other inputs", "encode each file by itself, then --merge")


def _same_shape(path: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if len(found) != len(wanted) or found[-1] != wanted[-1]:
        raise IiaeError(
            f"{path} holds rows of shape {tuple(found)}, the model was trained on {tuple(wanted)}",
            "use data of the shape that the run was trained on",
        )


def _read_features(path: Path) -> NDArray[np.float32]:
    try:
        rows = map_npy(path)
    except FileNotFoundError as error:
        raise IiaeError(f"{path} does not exist", "check the path") from error
    except BROKEN as error:
        raise IiaeError(
            f"{path} is not a readable .npy array", "save it with numpy.save, without pickled objects"
        ) from error
    with np.errstate(over="ignore"):
        features: NDArray[np.float32] = rows.astype(np.float32) if rows.dtype.kind in "fiu" else np.empty(0, np.float32)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise IiaeError(f"{path} holds no finite (N, F) numbers", "save features as a 2-dimensional float array")
    return features
