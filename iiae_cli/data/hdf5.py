"""HDF5 files, written and read as numbers and UTF-8 texts of fixed length.

The format lets a file name others (external links, external storage, virtual datasets) and declare
arrays a million times larger than what it stores. Readers take hard links alone, and only what can
come out of what is stored; what is refused here raises ValueError, which `open_hdf5` turns into a
user's error like everything that h5py raises.
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

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading

_MOST_INFLATED = 1032  # bytes out of one: deflate's bound, and far beyond what pictures reach
_LONGEST_TEXT = 65_536  # bytes of one id or label
_SMALL = 1 << 20  # bytes that need no proof


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file to fill; what cannot be finished is let go of.

    HDF5 keeps a file whose last blocks it could not write, tries again when the program ends, and
    crashes there (seen on a full disk). So the descriptor of such a file is pointed at the null
    device before it is closed: the file is lost, as its maker knows from the error, and HDF5 is
    content.

    Raises:
        OSError: the file cannot be written; likewise RuntimeError.
    """
    file = h5py.File(path, "w")
    descriptor = file.id.get_vfd_handle()
    try:
        yield file
        file.flush()
    except BaseException as error:
        if "write failed" in str(error):  # HDF5's words; it may close whatever else went wrong
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, descriptor, inheritable=False)
            os.close(nowhere)
        with suppress(OSError, RuntimeError):
            file.close()
        raise
    file.close()


@contextmanager
def open_hdf5(path: Path, hint: str) -> Iterator[h5py.File]:
    """Read an HDF5 file; whatever h5py or this module raises inside the block is a user's error.

    Raises:
        IiaeError: the file is missing, may not be read, or is damaged.
    """
    with reading(path, hint), h5py.File(path, "r", locking=False) as file:
        yield file


def text_attribute(file: h5py.File, name: str, default: str | None = None) -> str:
    """An attribute that is one text.

    Raises:
        ValueError: it is of another type, or missing without a default.
    """
    if default is not None and name not in file.attrs:
        return default
    value = text_attributes(file).get(name)
    if value is None:
        raise ValueError(f"attribute {name} is no text")
    return value


def text_attributes(file: h5py.File) -> dict[str, str]:
    """Every attribute that is one text; others are passed over."""
    identities = {name: file.attrs.get_id(name) for name in file.attrs}
    values = {
        name: file.attrs[name]
        for name, identity in identities.items()
        if identity.shape == () and h5py.check_string_dtype(identity.dtype) is not None
    }
    return {
        name: value.decode() if isinstance(value, bytes) else str(value)
        for name, value in values.items()
    }


def check_schema(file: h5py.File, path: Path, schema: str, hint: str) -> None:
    """Refuse a file of another schema.

    Raises:
        IiaeError: the `schema` attribute is missing or another one.
    """
    given = text_attributes(file).get("schema", "none")
    if given != schema:
        raise IiaeError(f"{path} has schema {given[:80] or 'none'}, expected {schema}", hint)


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What a group holds under a name; None where there is nothing.

    Raises:
        ValueError: a link that may lead into another file, or in a circle.
    """
    if not group.id.links.exists(name.encode()):
        return None
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{group.name.rstrip('/')}/{name} is a link to somewhere else")
    return group[name]


def dataset(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """A dataset of a group by name or `GROUP/NAME`, fit to be read; None where there is none.

    Raises:
        ValueError: no dataset, or one that lies in another file, or whose rows are not there.
    """
    parent, _, last = name.rpartition("/")
    holder = member(group, parent) if parent else group
    data = None if holder is None else member(holder, last)
    if data is None:
        return None
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise ValueError(f"{group.name.rstrip('/')}/{name} is no array")
    if data.is_virtual or data.external:
        raise ValueError(f"{data.name} lies in another file")
    stored = data.id.get_storage_size()
    if data.nbytes > max(_SMALL, stored * _MOST_INFLATED):
        raise ValueError(f"{data.name} declares {data.nbytes} bytes, of which {stored} are stored")
    return data


def read_array(group: h5py.Group, name: str) -> NDArray[Any]:
    """A whole array of numbers.

    Raises:
        ValueError: as `dataset`; missing, larger than the free memory, or no numbers.
    """
    data = dataset(group, name)
    if data is None:
        raise ValueError(f"{group.name.rstrip('/')}/{name} is missing")
    if data.dtype.kind not in "fiub":
        raise ValueError(f"{data.name} holds {data.dtype}, not numbers")
    refuse_beyond_memory(data)
    values: NDArray[Any] = np.asarray(data[()])
    return values


def refuse_beyond_memory(data: h5py.Dataset) -> None:
    """Refuse an array that does not fit.

    Raises:
        ValueError: it takes more than the free memory.
    """
    free = free_memory()
    if data.nbytes > free:
        raise ValueError(
            f"{data.name} takes {data.nbytes >> 20} MiB of memory, {free >> 20} MiB are free"
        )


def text_column(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """A column of texts of fixed length, unread; None where there is none.

    Raises:
        ValueError: as `dataset`; or no such column.
    """
    data = dataset(group, name)
    if data is None:
        return None
    if data.ndim != 1 or data.dtype.kind != "S" or data.dtype.itemsize > _LONGEST_TEXT:
        raise ValueError(f"{data.name} holds {data.dtype} {data.shape}, not a column of texts")
    refuse_beyond_memory(data)
    return data


def read_texts(group: h5py.Group, name: str) -> list[str] | None:
    """A column of texts; None where there is none.

    Raises:
        ValueError: as `text_column`.
    """
    data = text_column(group, name)
    # File names that are no UTF-8 come back as Python has them.
    return None if data is None else [text.decode("utf-8", "surrogateescape") for text in data[()]]


def write_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    """Write a column of texts as UTF-8 of the length of the longest, which `read_texts` reads back.

    File names can be any bytes; those that are no UTF-8 are kept as they are.
    """
    column = [_bytes_of(text) for text in texts]
    length = max(map(len, column), default=0) or 1
    dtype = h5py.string_dtype("utf-8", length)
    written = group.create_dataset(name, data=np.array(column, dtype))
    # A full disk is noticed here, while the dataset is held, and not when it is let go of.
    written.flush()


def _bytes_of(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # halves of characters, which come of no file name
        return text.encode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """A text for an attribute: what is no UTF-8 is written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def free_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    try:
        with Path("/proc/meminfo").open() as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
