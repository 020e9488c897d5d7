"""The entries of a tar or zip archive, one after another, in one form; nothing is written here.

A tar is decompressed as it goes, forwards only, through a reader that bounds what comes out: headers too are content,
and an extended header of gigabytes would otherwise be read into memory by the library.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

_MAX_READ = 4 << 20  # bytes at once: blocks of content are 1 MiB, honest headers far less
_PER_ENTRY = 4096  # bytes of a tar's headers and padding, at most
_AT_THE_END = 1 << 20  # bytes of zeros, likewise
_ENCRYPTED = 0x1
_UNPACK_YOURSELF = "unpack it with the program made for it, and name the folder as SOURCE"


class Refused(Exception):
    """What the archive is or has that is not taken; the message goes on from its name."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = (
            hint
            or "make sure where it comes from; unpack what you trust yourself and name the folder as SOURCE"
        )


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        name: as the archive has it, unchecked; None: its root.
        is_folder: a folder, else a file.
        executable: a file to be run.
        size: bytes declared.
        trouble: why it must not be unpacked, if so: it is a link, a device, encrypted.
        open: gives its content, while it is the current one.
    """

    name: str | None
    is_folder: bool
    executable: bool
    size: int
    trouble: Refused | None
    open: Callable[[], IO[bytes]]


@contextmanager
def entries(archive: Path, max_entries: int, max_bytes: int) -> Iterator[Iterator[Entry]]:
    """The entries of an archive, in its order.

    Args:
        archive: the file.
        max_entries: how many it may have.
        max_bytes: of all unpacked files; a tar's stream may be longer by its headers only.

    Raises:
        Refused: no kind of archive that is known here, or one with more entries or bytes.
    """
    with archive.open("rb") as raw:
        head = raw.read(8)
        raw.seek(0)
        with ExitStack() as stack:
            if head.startswith(b"PK"):
                yield _zip_entries(stack.enter_context(zipfile.ZipFile(raw)), max_entries)
                return
            stream = _decompressed(raw, head, stack)
            bounded = _Bounded(stream, max_bytes + max_entries * _PER_ENTRY + _AT_THE_END)
            try:
                tar = stack.enter_context(
                    tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:")
                )
            except tarfile.ReadError as error:
                if stream is raw:
                    raise Refused("is neither a tar nor a zip archive", _UNPACK_YOURSELF) from error
                raise
            yield _tar_entries(tar, bounded, max_entries)


def _decompressed(raw: IO[bytes], head: bytes, stack: ExitStack) -> IO[bytes]:
    """The stream within, by its first bytes; `raw` itself where it is not compressed."""
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=raw)))
    if head.startswith(b"BZh"):
        return cast("IO[bytes]", stack.enter_context(bz2.BZ2File(raw)))
    if head.startswith(b"\xfd7zXZ\0"):
        return cast("IO[bytes]", stack.enter_context(lzma.LZMAFile(raw)))
    return raw


class _Bounded:
    """A stream that only goes forwards, and neither beyond a limit nor in steps that fill the memory."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._at = 0
        self.last = b""

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise Refused(f"has a header of {size} bytes")
        block = self._stream.read(size)
        self._at += len(block)
        self.last = block
        if self._at > self._limit:
            raise Refused(f"unpacks to more than the {self._limit} bytes expected at most")
        return block

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self._at:
            raise Refused("cannot be read in one go")
        while self._at < position and self.read(min(_MAX_READ, position - self._at)):
            pass
        return self._at


def _tar_entries(tar: tarfile.TarFile, stream: _Bounded, max_entries: int) -> Iterator[Entry]:
    count = 0
    while (member := tar.next()) is not None:
        count += 1
        _refuse_more(count, max_entries)
        name = None if member.isdir() and member.name in ("", ".") else member.name
        yield Entry(
            name=name,
            is_folder=member.isdir(),
            executable=bool(member.mode & stat.S_IXUSR),
            size=0 if member.isdir() else member.size,
            trouble=_tar_trouble(member),
            open=partial(_tar_content, tar, member),
        )
        cast("Any", tar).members.clear()  # the library would keep them all
    # The library takes a broken header for the end; the true one is a block of zeros.
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise EOFError(f"there is no end after {count} entries")
    while stream.read(_MAX_READ):  # a compressed stream's checksum comes last
        pass


def _tar_trouble(member: tarfile.TarInfo) -> Refused | None:
    if member.issym() or member.islnk():
        return Refused(
            f"has a link, which could lead anywhere: {member.name!r} to {member.linkname!r}"
        )
    if not (member.isdir() or member.isreg()) or member.issparse() or member.size < 0:
        return Refused(f"has an entry that is no plain file or folder: {member.name!r}")
    if hasattr(tarfile, "data_filter"):  # Python 3.11.4; a second opinion on the checks made here
        try:
            tarfile.data_filter(member, "/unpacked")
        except tarfile.FilterError as error:
            return Refused(f"has an entry that Python's own filter refuses: {error}")
    return None


def _tar_content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(member)
    if stream is None:
        raise Refused(f"has an entry that is no plain file or folder: {member.name!r}")
    return stream


def _zip_entries(file: zipfile.ZipFile, max_entries: int) -> Iterator[Entry]:
    infos = file.infolist()
    _refuse_more(len(infos), max_entries)
    for info in infos:
        mode = info.external_attr >> 16  # Unix permissions and kind; 0 where the archive has none
        is_folder = info.is_dir() or stat.S_ISDIR(mode)
        # `filename` is cut at a NUL, and has the system's own separators replaced.
        name = info.orig_filename
        yield Entry(
            name=None if is_folder and name in ("/", "./", ".") else name,
            is_folder=is_folder,
            executable=bool(mode & stat.S_IXUSR),
            size=0 if is_folder else info.file_size,
            trouble=_zip_trouble(info, stat.S_IFMT(mode)),
            open=partial(file.open, info),
        )


def _zip_trouble(info: zipfile.ZipInfo, kind: int) -> Refused | None:
    if info.flag_bits & _ENCRYPTED:
        return Refused("is encrypted", "unpack it with its password, and name the folder as SOURCE")
    if kind == stat.S_IFLNK:
        return Refused(f"has a link, which could lead anywhere: {info.orig_filename!r}")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return Refused(f"has an entry that is no plain file or folder: {info.orig_filename!r}")
    return None


def _refuse_more(count: int, max_entries: int) -> None:
    if count > max_entries:
        raise Refused(f"has more than the {max_entries} entries expected at most")
