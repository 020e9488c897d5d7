"""Files that are whole or not there: everything is written beside its place and renamed in."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iiae_cli.common.errors import IiaeError

TEMPORARY = ".tmp"  # ends the name of a file that is being written

_FULL = (errno.ENOSPC, errno.EDQUOT)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise unless `path` is free or `overwrite` is set.

    Raises:
        IiaeError: the path exists.
    """
    if path.exists() and not overwrite:
        raise IiaeError(
            f"{path} exists already", "pass --overwrite to replace it, or choose another output"
        )


@contextmanager
def writing(path: Path, *, sync: bool = True, folder: Path | None = None) -> Iterator[Path]:
    """Give a temporary file beside `path`; on success it is synced and renamed to `path`, else removed.

    What stood at `path` before stays there until the rename.

    Args:
        path: the file to make.
        sync: False leaves out the wait for the disk, for many small files that can be made again.
        folder: that the temporary file lies in, on the same file system; None: beside `path`.

    Raises:
        IiaeError: the disk is full, or the place cannot be written.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=TEMPORARY, dir=folder or path.parent
        )
        os.close(handle)
    temporary = Path(name)
    try:
        with write_errors(path):
            yield temporary
            if sync:
                _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            if sync:
                # The rename too must outlast a power failure; some file systems cannot sync a folder.
                with suppress(OSError):
                    _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, all of it or nothing, so that no reader and no full disk ever sees half a line.

    Raises:
        IiaeError: the disk is full, or the place cannot be written.
    """
    content = (line + "\n").encode()
    with write_errors(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(handle).st_size
            written = os.write(handle, content)
            if written != len(content):
                os.ftruncate(handle, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)


def sync_file(path: Path) -> None:
    """Wait until what was written to a file is on the disk.

    Raises:
        IiaeError: the disk is full.
    """
    with write_errors(path):
        _sync(path)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left of `writing` in a folder that nobody else writes to now."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing `path` into user errors.

    Raises:
        IiaeError: no space, no permission, a folder in the way, a read-only file system.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # h5py reports a full disk as an OSError without errno, or closing as a RuntimeError; its text names errno 28.
        known = error.errno if isinstance(error, OSError) else None
        code = known if known is not None else _errno_in(str(error))
        if code in _FULL:
            free = shutil.disk_usage(_existing_parent(path)).free
            raise IiaeError(
                f"no space left while writing {path} ({free / 2**20:.0f} MiB free); nothing was replaced",
                "free some space or choose another place, then run again (with --resume, where the command has it)",
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise IiaeError(
                f"no permission to write {path}", "choose a folder that you may write to"
            ) from error
        if code in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise IiaeError(
                f"cannot write {path}: {os.strerror(code)}", "choose another output path"
            ) from error
        raise


def fingerprint_of_file(path: Path) -> str:
    """16 hex digits over a file's size, its first and last MiB, and 64 KiB at 62 places between.

    Unlike a time of change it is the same for a copy on another machine, and unlike a checksum it costs little.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    places = [
        (0, 1 << 20),
        *((size * part // 63, 1 << 16) for part in range(1, 63)),
        (max(0, size - (1 << 20)), 1 << 20),
    ]
    with path.open("rb") as file:
        for place, length in places:
            file.seek(place)
            digest.update(file.read(length))
    return digest.hexdigest()[:16]


def _errno_in(text: str) -> int | None:
    for code in (*_FULL, errno.EACCES):
        if f"errno = {code}," in text or os.strerror(code) in text:
            return code
    return None


def _existing_parent(path: Path) -> Path:
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path("/")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)  # a folder too
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
