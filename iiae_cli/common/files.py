"""Files that exist are whole: each is written beside its path and renamed to it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iiae_cli.common.errors import IiaeError, Interrupted

TEMPORARY = ".tmp"  # ends the name of a file that is being written

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_IMPOSSIBLE = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def regular_file(path: Path, hint: str) -> None:
    """Refuse a path that is missing or no regular file; a reader would wait for a pipe."""
    if not os.path.lexists(path):
        raise IiaeError(f"{path} does not exist", hint)
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on some names
        raise IiaeError(f"{path} is not a file", hint)


@contextmanager
def reading(path: Path, hint: str) -> Iterator[None]:
    """The one boundary around readers: whatever they raise on a damaged file is a user's error."""
    regular_file(path, hint)
    try:
        yield
    except (IiaeError, Interrupted):
        raise
    except PermissionError as error:
        raise IiaeError(f"no permission to read {path}", "check its permissions") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise IiaeError(f"{path} is damaged: {reason}", hint) from error


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file or folder unless `overwrite`."""
    if path.exists() and not overwrite:
        raise IiaeError(
            f"{path} exists already", "pass --overwrite to replace it, or choose another output"
        )


@contextmanager
def writing(path: Path, *, sync: bool = True, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary file that becomes `path` if the block succeeds, else is removed.

    Args:
        path: the file to make; an older one stays until the new one is complete.
        sync: wait for the disk; False suits many small files that can be made again.
        folder: holds the temporary file, on the same file system; None: beside `path`.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(TEMPORARY, f".{path.name}.", folder or path.parent)
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
                with suppress(OSError):  # some file systems cannot sync a folder
                    _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a whole line to a text file, or nothing."""
    content = (line + "\n").encode()
    with write_errors(path), path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        if file.write(content) != len(content):
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    with write_errors(path):
        _sync(path)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left in a folder that no other process writes to."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into user errors."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        code = _errno(error)
        if code in _FULL:
            parent = next(parent for parent in path.absolute().parents if parent.exists())
            free = shutil.disk_usage(parent).free / 2**20
            raise IiaeError(
                f"no space left while writing {path} ({free:.0f} MiB free); nothing was replaced",
                "free some space or choose another path, then run again (with --resume)",
            ) from error
        if code in _FORBIDDEN:
            raise IiaeError(
                f"no permission to write {path}", "choose a folder that you may write to"
            ) from error
        if code in _IMPOSSIBLE:
            raise IiaeError(
                f"cannot write {path}: {os.strerror(code)}", "choose another output path"
            ) from error
        raise


def fingerprint_of_file(path: Path) -> str:
    """16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _errno(error: OSError | RuntimeError) -> int | None:
    """The error's number; h5py reports a full disk without one, in a text that names it."""
    code = getattr(error, "errno", None)
    if isinstance(code, int):
        return code
    text = str(error)
    for code in (*_FULL, errno.EACCES):
        if f"errno = {code}," in text or os.strerror(code) in text:
            return code
    return None


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
