"""Writes and reads HDF5 files of numbers and fixed-length UTF-8 texts.

The format lets a file refer to others. Readers accept only what lies in the file itself and fits in
memory; they raise ValueError for the rest, which `open_hdf5` turns into a user's error like
everything that h5py raises.
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
    """Opens an HDF5 file, of this schema if one is named, to read without a lock.

    Whatever h5py or this module raises in the block is a user's error.
    """
    with reading(path, hint):
        with path.open("rb") as content:
            if content.read(len(SIGNATURE)) != SIGNATURE:
                makers = "name a file that iiae prepare or iiae encode wrote"
                raise IiaeError(f"{path} is not an HDF5 file", makers)
        with h5py.File(path, "r", locking=False) as file:
            if schema:
                check_kind(path, text_attribute(file, "schema", "none"), schema, hint)
            yield file


def text_attribute(file: h5py.File, name: str, default: str | None = None) -> str:
    """Returns a text attribute, else the default; raises ValueError without one."""
    value = text_attributes(file).get(name, default)
    if value is None:
        raise ValueError(f"attribute {name} is missing or not text")
    return value


def text_attributes(file: h5py.File) -> dict[str, str]:
    """Returns all text attributes."""
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in file.attrs.items()
        if isinstance(value, str | bytes)
    }


def _member(group: h5py.Group, name: str) -> Any:
    """Returns a group's member, `NAME` or `GROUP/NAME`, by hard links only; None if missing."""
    for part in name.split("/"):
        link = group.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{group.name.rstrip('/')}/{part} is a link to somewhere else")
        group = group[part]
    return group


def subgroup(group: h5py.Group, name: str) -> h5py.Group:
    """Returns a group in a group."""
    member = _member(group, name)
    if not isinstance(member, h5py.Group):
        raise ValueError(f"{name} is not a group")
    return member


def dataset(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """Returns a readable dataset of a group, by name or `GROUP/NAME`; None if missing."""
    data = _member(group, name)
    is_array = isinstance(data, h5py.Dataset) and data.shape is not None
    if data is not None and (not is_array or data.is_virtual or data.external):
        raise ValueError(f"{group.name.rstrip('/')}/{name} is not an array of this file")
    return data


def read_or_map(group: h5py.Group, name: str, path: Path, most: int | None) -> NDArray[Any]:
    """Reads a finite array, or maps it if it takes more than `most` bytes [half of the free]."""
    data = _numbers(group, name)
    offset = data.id.get_offset()
    if data.nbytes > (free_memory() // 2 if most is None else most) and offset is not None:
        values: NDArray[Any] = np.memmap(path, data.dtype, "r", offset, data.shape)
    else:
        values = _in_memory(data)
    for start in range(0, len(values), _CHECKED) if values.dtype.kind == "f" else ():
        if not np.isfinite(values[start : start + _CHECKED]).all():
            raise ValueError(f"{data.name} holds values that are not finite")
    return values


def read_texts(group: h5py.Group, name: str) -> list[str] | None:
    """Returns a column of texts, non-UTF-8 bytes as surrogates; None if missing."""
    data = dataset(group, name)
    if data is None:
        return None
    if data.ndim != 1 or data.dtype.kind != "S":
        raise ValueError(f"{data.name} holds {data.dtype} {data.shape}, not a column of texts")
    return [text.decode("utf-8", "surrogateescape") for text in _in_memory(data)]


def read_column(group: h5py.Group, name: str) -> NDArray[Any]:
    """Returns numbers or texts as `write_column` took them."""
    data = dataset(group, name)
    if data is not None and data.dtype.kind == "S":
        return np.array(read_texts(group, name), np.str_)
    return _in_memory(_numbers(group, name))


def _numbers(group: h5py.Group, name: str) -> h5py.Dataset:
    data = dataset(group, name)
    if data is None or data.dtype.kind not in "fiub":
        raise ValueError(f"{group.name.rstrip('/')}/{name} is missing, or does not hold numbers")
    return data


def _in_memory(data: h5py.Dataset) -> NDArray[Any]:
    if data.nbytes > free_memory():
        raise MemoryError  # perhaps the file declares more than it stores
    values: NDArray[Any] = np.asarray(data[()])
    return values
