"""Reads files with errors for users, and writes them whole: beside their path, then renamed."""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from iiae_cli.common import console
from iiae_cli.common.errors import DamagedFile, IiaeError, Interrupted

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPORARY = ".tmp"  # ends the names of unfinished files
LOCK = ".lock"  # the name of a folder's lock file; it stays when the lock is released

OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW)  # errors of seeking beyond the content
_MAY_BE_WHOLE = "it may be whole, or in use: check its permissions, disk and memory, then run again"

# What helps where the system refuses a file, by error number.
_ROOM = "free some space or choose another path, then run again (with --resume)"
_MEND = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit (ulimit -f unlimited), then run again (with --resume)",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a path that you may use"),
}
_BROKEN = ("EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOLCK", "ENAMETOOLONG")


def missing(path: Path, hint: str) -> IiaeError:
    """Returns the error for a missing path; its hint says where the path was looked for."""
    if path.is_symlink():
        message = f"{path} links to {path.readlink()}, which does not exist"
        return IiaeError(message, f"mount or restore that, or {hint}")
    whole = path.absolute()
    near = next(parent for parent in whole.parents if parent.is_dir())
    where = f"{whole.relative_to(near)} was looked for in {near}"
    return IiaeError(f"{path} does not exist", f"{where}; {hint}")


def regular_file(path: Path, hint: str) -> None:
    """Raises if a path is missing or no regular file: a reader would wait for a pipe."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise missing(path, hint) from None
    if not stat.S_ISREG(mode):
        raise IiaeError(f"{path} is not a file", hint)


@contextmanager
def reading(path: Path, hint: str) -> Iterator[None]:
    """Turns whatever a reader raises into a user's error.

    `hint` is for a missing or damaged file only. A file that another program holds, or the system
    refuses to read, may be whole and is never called damaged.
    """
    regular_file(path, hint)
    try:
        path.open("rb").close()  # safetensors calls a file missing that it may not read
        yield
    except (IiaeError, Interrupted):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        code = errno.ENOMEM if isinstance(error, MemoryError) else _errno(error)
        if (code and code not in OF_CONTENT) or "already open for write" in reason:
            message = f"{path} cannot be read: {os.strerror(code) if code else reason}"
            raise IiaeError(message, _MAY_BE_WHOLE) from error
        raise DamagedFile(f"{path} is damaged: {reason}", hint) from error


def check_kind(path: Path, given: str, expected: str) -> None:
    """Raises for a file of another schema; the file may be whole, and is not to be replaced."""
    if given != expected:
        makes = {"data": "prepare", "latents": "encode", "part": "prepare --shard"}
        makes |= {"backbone": "prepare --save-backbone"}
        maker = makes.get(expected.removeprefix("iiae.").partition("/")[0], "train")
        hint = f"name a file that this version of iiae {maker} wrote; --merge joins shards"
        raise IiaeError(f"{path} has schema {given[:80] or 'none'}, expected {expected}", hint)


def refuse_existing(path: Path, overwrite: bool, signature: bytes = b"") -> None:
    """Raises if a path exists, unless `overwrite`; then if it is a file of another `signature`."""
    if path.exists() and not overwrite:
        hint = "choose another output, or replace it with --overwrite"
        raise IiaeError(f"{path} already exists", hint)
    if signature and path.is_file() and path.suffix != ".h5":  # it may be an input
        with path.open("rb") as file:
            if file.read(len(signature)) not in (b"", signature):
                message = f"{path} is not a file that iiae writes, and is not replaced"
                raise IiaeError(message, "choose another output")


@contextmanager
def writing(path: Path, *, sync: bool = True, folder: Path | None = None) -> Iterator[Path]:
    """Yields a temporary file, in `folder` or beside `path`, and renames it to `path` at the end.

    If the block fails, an older file stays. Many small files that can be made again need no `sync`.
    """
    name = f".{path.name}.{os.urandom(4).hex()}{TEMPORARY}"
    temporary = (folder or path.parent) / name
    with write_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            message = f"cannot write {path}: it is a device or a pipe"
            raise IiaeError(message, "choose another output")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    try:
        with write_errors(path):
            yield temporary
            if sync:
                sync_file(temporary)
            temporary.replace(path)
            if sync:
                with suppress(OSError, IiaeError):  # some file systems cannot sync a folder
                    sync_file(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_picture(picture: Image, path: Path) -> None:
    """Writes a picture in the format of its suffix, else as PNG."""
    from PIL.Image import SAVE, registered_extensions  # keeps start-up fast

    kind = registered_extensions().get(path.suffix.lower())
    with writing(path) as temporary:
        picture.save(temporary, kind if kind in SAVE else "PNG")


def sync_file(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    with write_errors(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporaries(folder: Path) -> None:
    """Removes what killed processes left in a folder that no other process writes to."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusals to write `path` into user errors."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if code := _errno(error):
            raise refused(path, code) from error
        raise


def refused(path: Path | str, code: int) -> IiaeError:
    """Returns the user's error for an error number that writing `path` met."""
    hint = _MEND.get(code, "check that path and its disk, or choose another output")
    return IiaeError(f"cannot write {path}: {os.strerror(code)}", hint)


def refusal_of_system(error: OSError) -> IiaeError | None:
    """Returns the user's error for what a machine refuses; None for what may be a bug."""
    path, code = error.filename or "a file", _errno(error)
    if code in _MEND or errno.errorcode.get(code) in _BROKEN:
        hint = _MEND.get(code, _MAY_BE_WHOLE)
        return IiaeError(f"{path} cannot be used: {os.strerror(code)}", hint)
    if "temporary directory" in str(error):  # Python's words
        hint = "set TMPDIR to a folder that you may write to"
        return IiaeError("no temporary folder can be written", hint)
    try:
        Path.cwd()
    except FileNotFoundError:
        return IiaeError("the working folder no longer exists", 'enter it again: cd "$PWD"')
    return None


def _errno(error: BaseException) -> int:
    """Returns the error's number, else 0; h5py and others have it in their text only."""
    code = getattr(error, "errno", None)
    if isinstance(code, int):
        return code
    match = re.search(r"errno = (\d+)|\(os error (\d+)\)", str(error))
    return int(match[1] or match[2]) if match else 0


def sha256_of(*paths: Path) -> str:
    """Returns one hex digest over the contents of files, in this order."""
    import hashlib  # keeps start-up fast

    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def locked(folder: Path, hint: str) -> Iterator[None]:
    """Locks a folder against other processes; a process that dies loses its lock."""
    from filelock import FileLock, Timeout  # keeps start-up fast

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of filelock's fallback, which outlives a kill
            lock.acquire()
    except Timeout as error:
        raise IiaeError(f"another process works in {folder}", hint) from error
    except (OSError, NotImplementedError, UserWarning) as error:
        if (code := _errno(error)) in _MEND:
            raise refused(folder / LOCK, code) from error
        console.warn(f"{folder} cannot be locked ({error}): let no second process work there")
    try:
        yield
    finally:
        lock.release()
