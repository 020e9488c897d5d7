"""Rows that lie in several HDF5 files, as one array that is read when it is written somewhere else.

It can be indexed by its first axis as an array can, and that costs nothing; so code that chooses among rows before they
are written serves for arrays and for these.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli.data.hdf5 import damage, open_hdf5

COPY_BYTES = 1 << 24
_OPEN = 16  # files at once; a job array may have thousands


class Piece(NamedTuple):
    """Some of the items: a file, a dataset in it, and how many there are."""

    path: Path
    name: str
    items: int


class LateRows:
    """An array (N, …) of which nothing is in memory.

    Args:
        pieces: where the items lie, one after the other.
        shape: of an item.
        dtype: of all.
        remedy: hint for a file that turns out damaged.
        tick: called for every block that is read; what it raises ends the work.
        fold: rows in an item; more than 1 where an item's first axis counts them.
        rows: (N,) which of the rows of all items; None: all.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        remedy: str,
        tick: Callable[[], None] = lambda: None,
        fold: int = 1,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._pieces, self._item, self._remedy, self._tick, self._fold = (
            pieces,
            shape,
            remedy,
            tick,
            fold,
        )
        self._ends = np.cumsum([piece.items for piece in pieces], dtype=np.int64)
        total = int(self._ends[-1]) * fold if len(pieces) else 0
        self._rows = np.arange(total) if rows is None else rows
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array's."""
        return (len(self._rows), *(self._item if self._fold == 1 else self._item[1:]))

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> LateRows:
        return self._with(self._fold, self._rows[chosen])

    def unfolded(self) -> LateRows:
        """(N, R, …) as (N·R, …); of all rows alone."""
        return self._with(
            self._item[0],
            (self._rows[:, None] * self._item[0] + np.arange(self._item[0])).reshape(-1),
        )

    def _with(self, fold: int, rows: NDArray[np.int64]) -> LateRows:
        return LateRows(
            self._pieces,
            self._item,
            self.dtype,
            remedy=self._remedy,
            tick=self._tick,
            fold=fold,
            rows=rows,
        )

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All rows in order, some at a time.

        Raises:
            IiaeError: a file is damaged, or holds numbers that are not finite.
        """
        size = max(1, COPY_BYTES // max(1, int(np.prod(self.shape[1:])) * self.dtype.itemsize))
        files = _OpenFiles(self._remedy)
        try:
            for start in range(0, len(self._rows), size):
                self._tick()
                yield self._gathered(self._rows[start : start + size], files)
        finally:
            files.close()

    def _gathered(self, rows: NDArray[np.int64], files: _OpenFiles) -> NDArray[Any]:
        """These rows; neighbours in a file are read together."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        items = rows // self._fold
        holder = np.searchsorted(self._ends, items, side="right")
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(holder) != 0)) + 1
        for first, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            piece = self._pieces[holder[first]]
            before = int(self._ends[holder[first]]) - piece.items
            values = files.read(
                piece, int(items[first]) - before, int(items[stop - 1]) - before + 1
            )
            skip = int(rows[first] - items[first] * self._fold)
            found[first:stop] = values.reshape(-1, *found.shape[1:])[skip : skip + stop - first]
        return found


def unfold(rows: NDArray[Any]) -> NDArray[Any]:
    """(N, R, …) as (N·R, …), of an array or of `LateRows` in its place."""
    if isinstance(rows, LateRows):
        return as_array(rows.unfolded())
    return rows.reshape(-1, *rows.shape[2:])


def as_array(rows: LateRows) -> NDArray[Any]:
    """The same object, as what it stands in for."""
    return cast("NDArray[Any]", rows)


class _OpenFiles:
    """HDF5 files, of which those used last are open."""

    def __init__(self, remedy: str) -> None:
        self._remedy = remedy
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()

    def read(self, piece: Piece, start: int, stop: int) -> NDArray[Any]:
        """Items of a piece."""
        file = self._files.pop(piece.path, None) or open_hdf5(piece.path, self._remedy)
        self._files[piece.path] = file
        if len(self._files) > _OPEN:
            self._files.popitem(last=False)[1].close()
        with damage(piece.path, self._remedy, f" in /{piece.name}"):
            values: NDArray[Any] = file[piece.name][start:stop]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError("it holds values that are not finite")
        return values

    def close(self) -> None:
        """Close all."""
        for file in self._files.values():
            file.close()
        self._files.clear()
