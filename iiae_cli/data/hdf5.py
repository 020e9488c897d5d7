"""Writes and reads HDF5 files of numbers and fixed-length UTF-8 texts.

The format lets a file refer to others; only what lies in the file itself is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.environment import free_memory
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import check_kind, reading

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHECKED = 65_536  # rows checked at once


def is_hdf5(path: Path) -> bool:
    """Returns whether `path` is named as an HDF5 file."""
    return path.suffix.lower() in (".h5", ".hdf5")


# ---- writing


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Opens a new HDF5 file to fill; a file that cannot be finished is abandoned."""
    file = h5py.File(path, "w", locking=False)  # renamed when complete, so nobody else opens it
    descriptor = file.id.get_vfd_handle()
    try:
        yield file
        file.flush()
    except BaseException as error:
        # HDF5 keeps a file that it could not write, tries again when the program ends, and crashes
        # (seen on a full disk). So the descriptor first becomes the null device's.
        if "write failed" in str(error):  # HDF5's words
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, descriptor, inheritable=False)
            os.close(nowhere)
        with suppress(OSError, RuntimeError):
            file.close()
        raise
    file.close()


def write_column(group: h5py.Group, name: str, values: NDArray[Any] | Sequence[str]) -> None:
    """Writes numbers or texts for `read_column`; file names need not be UTF-8."""
    if not isinstance(values, np.ndarray) or values.dtype.kind in "OU":
        texts = [text.encode("utf-8", "surrogateescape") for text in values]
        longest = max(map(len, texts), default=0) or 1
        values = np.array(texts, h5py.string_dtype("utf-8", longest))
    written = group.create_dataset(name, data=values)
    written.flush()  # so that a full disk raises here, not when the dataset is freed


# ---- reading


@contextmanager
def open_hdf5(path: Path, hint: str, schema: str = "") -> Iterator[h5py.File]:
    """Opens an HDF5 file to read without a lock; with a `schema`, checks it and all links.

    Whatever h5py, this module or the block raises is a user's error.
    """
    with reading(path, hint):
        with path.open("rb") as content:
            if content.read(len(SIGNATURE)) != SIGNATURE:
                makers = "name a file that iiae prepare or iiae encode wrote"
                raise IiaeError(f"{path} is not an HDF5 file", makers)
        with h5py.File(path, "r", locking=False) as file:
            if schema:
                check_kind(path, text_attributes(file).get("schema", "none"), schema)
                refuse_links(file)
            yield file


def refuse_links(file: h5py.File) -> None:
    """Raises IiaeError if a name is a link, or if its rows lie in another file."""
    names = list[tuple[str, object]]()
    file.visititems_links(lambda name, link: names.append((name, link)))
    for name, link in names:
        item = file[name] if isinstance(link, h5py.HardLink) else None
        if item is None or (isinstance(item, h5py.Dataset) and (item.is_virtual or item.external)):
            message = f"{name} in {file.filename} is a link, or its rows lie in another file"
            raise IiaeError(message, "store the rows themselves in its place")


def text_attributes(file: h5py.File) -> dict[str, str]:
    """Returns all text attributes."""
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in file.attrs.items()
        if isinstance(value, str | bytes)
    }


def read_or_map(data: h5py.Dataset, most: int | None = None) -> NDArray[Any]:
    """Reads a finite array, or maps it if it takes more than `most` bytes [half of the free]."""
    offset = data.id.get_offset()
    if data.nbytes > (free_memory() // 2 if most is None else most) and offset is not None:
        values: NDArray[Any] = np.memmap(data.file.filename, data.dtype, "r", offset, data.shape)
    else:
        values = read_column(data)
    for start in range(0, len(values), _CHECKED) if values.dtype.kind == "f" else ():
        if not np.isfinite(values[start : start + _CHECKED]).all():
            raise ValueError(f"{data.name} holds values that are not finite")
    return values


def read_column(data: h5py.Dataset) -> NDArray[Any]:
    """Returns numbers or texts as `write_column` took them, non-UTF-8 bytes as surrogates."""
    if data.dtype.kind not in "fiubS":
        raise ValueError(f"{data.name} holds neither numbers nor texts of fixed length")
    if data.nbytes > free_memory():
        raise MemoryError  # perhaps the file declares more than it stores
    values: NDArray[Any] = np.asarray(data[()])
    texts = data.dtype.kind == "S"
    # NumPy 1 decodes an empty column to numbers.
    return np.char.decode(values, "utf-8", "surrogateescape").astype(np.str_) if texts else values


def read_texts(group: h5py.Group, name: str) -> list[str] | None:
    """Returns a column of texts; None if missing."""
    if name not in group:
        return None
    column = read_column(group[name])
    if column.ndim != 1 or column.dtype.kind != "U":
        raise ValueError(f"{group[name].name} is not a column of texts")
    return list(map(str, column))
