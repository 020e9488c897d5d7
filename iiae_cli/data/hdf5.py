"""Reading HDF5 files that nobody vouches for.

The format lets a file name others (external links, external storage, virtual datasets), declare arrays a million times
larger than what it stores, and give an attribute any type. Everything here is read from the file itself, by hard links
alone, as the type expected, and only where what is declared can come out of what is stored.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError

MOST_INFLATED = 1032  # bytes out of one: deflate's bound, and far beyond what pictures reach
LONGEST_TEXT = 65_536  # characters of one id or label
TEXT = h5py.string_dtype("utf-8")
_SMALL = 1 << 20  # bytes that need no proof
_TEXTS_AT_ONCE = (
    256  # every one of them may be as long as the file, as they may all name one place of it
)
_HEAP = b"GCOL\x01"
_SCANNED = 1 << 26  # bytes
_REFERENCE = np.dtype(
    [("length", "<u4"), ("heap", "<u8"), ("index", "<u4")]
)  # to a text of any length

# What h5py was seen to raise on damaged files, beside OSError: it passes on what HDF5 or NumPy stumble over.
DAMAGED = (
    OSError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
)


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file to fill; what cannot be finished is let go of.

    HDF5 keeps a file whose last blocks it could not write, tries again when the program ends, and crashes there (seen
    on a full disk). So the descriptor of such a file is pointed at the null device before it is closed: the file is
    lost, as its maker knows from the error, and HDF5 is content.

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


def open_hdf5(path: Path, remedy: str) -> h5py.File:
    """Open an HDF5 file for reading.

    Args:
        path: the file.
        remedy: hint for a file that is missing or damaged.

    Raises:
        IiaeError: missing, no permission, truncated, or no HDF5 at all.
    """
    if not os.path.lexists(path):
        raise IiaeError(f"{path} does not exist", remedy)
    try:
        if not path.is_file():  # a pipe would be waited for
            raise IiaeError(f"{path} is no file", remedy)
        refuse_endless(path)
        return h5py.File(path, "r")
    except DAMAGED as error:
        if isinstance(error, PermissionError):
            raise IiaeError(
                f"no permission to read {path}", "check the file's permissions"
            ) from error
        reason = "truncated" if "truncated" in str(error) else "not a readable HDF5 file"
        raise IiaeError(f"{path} is {reason}", remedy) from error


def refuse_endless(path: Path) -> None:
    """Refuse a file with a damaged heap of texts, in which HDF5 2.0 goes round for ever.

    A heap is a chain of objects, each as long as it says; HDF5 does not mind one of no length. Heaps are looked for
    where small files have them: in the first and the last bytes (`_SCANNED`), so that a large file opens as fast.

    Raises:
        ValueError: there is such a heap.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for first, last in {(0, min(size, _SCANNED)), (max(0, size - _SCANNED), size)}:
            place = content.find(_HEAP, first, last)
            while place >= 0:
                _refuse_endless_heap(content, place)
                place = content.find(_HEAP, place + 1, last)


def _refuse_endless_heap(content: mmap.mmap, place: int) -> None:
    if place + 16 > len(content):
        return
    end = min(len(content), place + struct.unpack_from("<Q", content, place + 8)[0])
    at = place + 16
    while at + 16 <= end:
        index, length = struct.unpack_from("<H6xQ", content, at)
        step = 16 + (length + 7) // 8 * 8 if index else length
        if not 16 <= step < 2**63:
            raise ValueError(f"its heap of texts is broken at byte {at}")
        at += step


@contextmanager
def damage(path: Path, remedy: str, where: str = "") -> Iterator[None]:
    """Turn what h5py raises on a damaged file, and what is refused here, into a user's error.

    Raises:
        IiaeError: instead of it.
    """
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise IiaeError(f"{path} is damaged{where}: {reason[:300]}", remedy) from error


def text_attribute(file: h5py.File, name: str, default: str | None = None) -> str:
    """An attribute that is one text.

    Raises:
        ValueError: it is of another type, or missing without a default.
    """
    if default is not None and name not in file.attrs:
        return default
    identity = file.attrs.get_id(name)
    if identity.shape == () and h5py.check_string_dtype(identity.dtype) is not None:
        value = file.attrs[name]
        return value.decode() if isinstance(value, bytes) else str(value)
    raise ValueError(f"attribute {name} is no text")


def text_attributes(file: h5py.File) -> dict[str, str]:
    """Every attribute that is one text; others are passed over.

    Raises:
        ValueError: one is not in UTF-8, or the like.
    """
    identities = {name: file.attrs.get_id(name) for name in file.attrs}
    return {
        name: text_attribute(file, name)
        for name, identity in identities.items()
        if identity.shape == () and h5py.check_string_dtype(identity.dtype) is not None
    }


def check_schema(file: h5py.File, path: Path, schema: str, remedy: str) -> None:
    """Refuse a file of another schema.

    Raises:
        IiaeError: the `schema` attribute is missing or another one.
    """
    try:
        found = text_attribute(file, "schema", "none")
    except DAMAGED:
        found = "that is no text"
    if found != schema:
        raise IiaeError(f"{path} has schema {found[:80] or 'none'}, expected {schema}", remedy)


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
    """A dataset of a group, fit to be read; None where there is nothing of that name, which may be `GROUP/NAME`.

    Raises:
        ValueError: no dataset, or one that lies in another file, or whose rows are not there.
    """
    parent, _, last = name.rpartition("/")
    holder = member(group, parent) if parent else group
    if holder is None:
        return None
    if not isinstance(holder, h5py.Group):
        raise ValueError(f"{holder.name} is no group")
    found = member(holder, last)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise ValueError(f"{group.name.rstrip('/')}/{name} is no array")
    if found.is_virtual or found.external:
        raise ValueError(f"{found.name} lies in another file")
    stored = found.id.get_storage_size()
    if found.nbytes > max(_SMALL, stored * MOST_INFLATED):
        raise ValueError(
            f"{found.name} is declared with {found.nbytes} bytes, of which {stored} are stored"
        )
    return found


def read_array(group: h5py.Group, name: str) -> NDArray[Any]:
    """A whole array of numbers.

    Raises:
        ValueError: as `dataset`; missing, larger than the free memory, or no numbers.
    """
    found = dataset(group, name)
    if found is None:
        raise ValueError(f"{group.name.rstrip('/')}/{name} is missing")
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{found.name} holds {found.dtype}, not numbers")
    refuse_beyond_memory(found)
    values: NDArray[Any] = np.asarray(found[()])
    return values


def refuse_beyond_memory(found: h5py.Dataset) -> None:
    """Refuse an array that would not fit.

    Raises:
        ValueError: it takes more than the free memory.
    """
    free = free_memory()
    if found.nbytes > free:
        raise ValueError(
            f"{found.name} takes {found.nbytes >> 20} MiB of memory, {free >> 20} MiB are free"
        )


def text_column(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """A column of texts, unread; None where there is none.

    Raises:
        ValueError: as `dataset`; or no column of texts, or one is beyond `LONGEST_TEXT`.
    """
    found = dataset(group, name)
    if found is None:
        return None
    if found.ndim != 1 or h5py.check_string_dtype(found.dtype) is None:
        raise ValueError(f"{found.name} holds {found.dtype} {found.shape}, not a column of texts")
    _refuse_long(found)
    return found


def read_texts(group: h5py.Group, name: str) -> list[str] | None:
    """A column of texts; None where there is none.

    Raises:
        ValueError: as `dataset`; no column of texts, or a text beyond `LONGEST_TEXT`.
    """
    found = text_column(group, name)
    if found is None:
        return None
    texts: list[str] = []
    column = found.asstr(errors="surrogateescape")  # as Python has file names that are no UTF-8
    for start in range(0, len(found), _TEXTS_AT_ONCE):
        texts += [str(one) for one in column[start : start + _TEXTS_AT_ONCE]]
        if any(len(one) > LONGEST_TEXT for one in texts[start:]):
            raise ValueError(f"{found.name} holds a text of more than {LONGEST_TEXT} characters")
    return texts


def write_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    """Write a column of texts in UTF-8, which `read_texts` gives back.

    File names can be any bytes; those that are no UTF-8 are kept as they are.
    """
    column = np.empty(len(texts), object)
    column[:] = [_bytes_of(one) for one in texts]
    group.create_dataset(name, data=column, dtype=TEXT)


def _bytes_of(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # halves of characters, which come of no file name
        return text.encode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """A text for an attribute: what is no UTF-8 is written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _refuse_long(column: h5py.Dataset) -> None:
    """Look at the lengths that a contiguous column of texts says, as HDF5 takes memory for them before it reads.

    Raises:
        ValueError: one is beyond `LONGEST_TEXT`.
    """
    offset, rows = column.id.get_offset(), len(column)
    if offset is None or not rows or column.id.get_storage_size() != rows * _REFERENCE.itemsize:
        return
    references = np.memmap(column.file.filename, _REFERENCE, "r", offset, (rows,))
    if references["length"].max() > 4 * LONGEST_TEXT:
        raise ValueError(f"{column.name} holds a text of {references['length'].max()} bytes")


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
