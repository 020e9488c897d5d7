"""A latent cache as a gallery that stays on disk: rows are read in slices, names only of what is
found.

A gallery of a million pictures thus takes no million strings, and may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading
from iiae_cli.data.hdf5 import DAMAGED, check_schema, dataset, text_column
from iiae_cli.inference.latents import ARRAYS, REMEDY, SCHEMA, read_attributes
from iiae_cli.inference.trained import LatentKind
from iiae_cli.model import Domain

_FEW = 256  # names looked up one by one; of more, whole blocks are read
_BLOCK = 2**16


class StoredRows:
    """Rows of a dataset, read in slices.

    Attributes:
        shape: (N, S).
    """

    def __init__(self, path: Path, rows: h5py.Dataset) -> None:
        self._path, self._dataset = path, rows
        self.shape: tuple[int, ...] = rows.shape

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Rows start … stop.

        Raises:
            IiaeError: they cannot be read.
        """
        try:
            values: NDArray[Any] = self._dataset[rows]
        except DAMAGED as error:
            raise _damaged(self._path, error) from error
        if not np.isfinite(values).all():
            raise _damaged(self._path, f"{self._dataset.name} holds values that are not finite")
        return values


class StoredGallery:
    """An open latent cache; see `open_gallery`.

    Attributes:
        path: the file.
        domain: of every row.
        fingerprint: of the model that encoded them.
        metric: distance that the model's configuration compares shared means by.
        labelled: whether classes are known.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        try:
            attributes = read_attributes(file)
            texts = {name: text_column(file, name) for name in ("ids", "labels")}
            if texts["ids"] is None:
                raise ValueError("it has no ids")
            self._columns = {name: found for name, found in texts.items() if found is not None}
            self._size = len(texts["ids"])
            self.labelled = "labels" in self._columns
            arrays = [dataset(file, name.replace("_", "/")) for name in ARRAYS]
            sizes = {
                len(found) for found in (*arrays, *self._columns.values()) if found is not None
            }
            if all(found is None for found in arrays):
                raise ValueError("it has no latents")
        except DAMAGED as error:
            raise _damaged(path, error) from error
        if sizes != {self._size}:
            raise IiaeError(f"{path} is damaged: its arrays differ in length", REMEDY)
        self.domain: Domain = attributes["domain"]
        self.fingerprint: str = attributes["fingerprint"]
        self.metric: str = attributes["metric"]

    def __len__(self) -> int:
        return self._size

    def means(self, kind: LatentKind) -> StoredRows:
        """Means of one kind, (N, S).

        Raises:
            IiaeError: the cache holds none of that kind, or no numbers there.
        """
        found = dataset(self._file, f"{kind}/mean")
        if found is None:
            raise IiaeError(
                f"{self.path} holds no {kind} latents", f"encode with --latents {kind} or both"
            )
        if found.ndim != 2 or 0 in found.shape or found.dtype.kind != "f":
            raise _damaged(self.path, f"{kind}/mean holds no (N, S) numbers")
        return StoredRows(self.path, found)

    def names(self, rows: NDArray[np.int64]) -> dict[int, str]:
        """Ids of some rows."""
        return self._texts("ids", rows)

    def labels(self, rows: NDArray[np.int64]) -> dict[int, str]:
        """Classes of some rows, empty where none are known."""
        return self._texts("labels", rows) if self.labelled else {}

    def _texts(self, name: str, rows: NDArray[np.int64]) -> dict[int, str]:
        wanted = np.unique(rows)
        found: dict[int, str] = {}
        try:
            texts = self._columns[name].asstr(errors="surrogateescape")
            if len(wanted) <= _FEW:
                return {int(row): str(texts[int(row)]) for row in wanted}
            for start in range(0, self._size, _BLOCK):
                here = wanted[(wanted >= start) & (wanted < start + _BLOCK)]
                if len(here):
                    block = texts[start : start + _BLOCK]
                    found.update((int(row), str(block[row - start])) for row in here)
        except DAMAGED as error:
            raise _damaged(self.path, error) from error
        return found


@contextmanager
def open_gallery(path: Path) -> Iterator[StoredGallery]:
    """A latent cache, open for reading.

    Raises:
        IiaeError: missing, damaged, or of another schema.
    """
    with reading(path, REMEDY):
        file = h5py.File(path, "r", locking=False)
    with file:
        check_schema(file, path, SCHEMA, REMEDY)
        yield StoredGallery(path, file)


def _damaged(path: Path, reason: object) -> IiaeError:
    return IiaeError(f"{path} is damaged: {reason}", REMEDY)
