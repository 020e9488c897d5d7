"""Where files lie by default, and files that are whole: written beside their path, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, Interrupted

TEMPORARY = ".tmp"  # ends the name of a file that is being written
LOCK = ".lock"  # the name of a folder's lock file; it stays when the lock is released

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
            f"{path} already exists", "pass --overwrite to replace it, or choose another output"
        )


@contextmanager
def writing(path: Path, *, sync: bool = True, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary file that becomes `path` if the block succeeds, else is removed.

    An older file stays until the new one is complete. The temporary file lies in `folder`, on the
    same file system, or beside `path`. Many small files that can be made again need no `sync`.
    """
    name = f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}"
    temporary = (folder or path.parent) / name
    with write_errors(path):
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


def append_line(path: Path, line: str) -> None:
    """Add a whole line to a text file, or nothing."""
    content = (line + "\n").encode()
    with write_errors(path), path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        if file.write(content) != len(content):
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_file(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    with write_errors(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
            raise IiaeError(
                f"no space left while writing {path}; nothing was replaced",
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


def _errno(error: OSError | RuntimeError) -> int:
    """The error's number, else 0; h5py reports a full disk in a text that names the number."""
    code = getattr(error, "errno", None)
    if isinstance(code, int):
        return code
    known = (*_FULL, errno.EACCES)
    return next((code for code in known if f"errno = {code}," in str(error)), 0)


def sha256_of(*paths: Path) -> str:
    """One hex digest over the contents of files, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(folder: Path, hint: str) -> Iterator[None]:
    """Keep other processes out of a folder while inside; a process that dies loses its lock."""
    from filelock import FileLock, Timeout  # not at every start

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise IiaeError(f"another process works in {folder}", hint) from error
    except (OSError, NotImplementedError) as error:
        console.warn(f"{folder} cannot be locked ({error}): let no second process work there")
    try:
        yield
    finally:
        lock.release()


def data_folder() -> Path:
    """`IIAE_DATA`, else `data/`."""
    return Path(os.environ.get("IIAE_DATA") or "data")


def data_file(option: Path | None, set_name: str) -> Path:
    """The data file of a set: `--data`, else `IIAE_DATA`, else data/; a file, or FOLDER/SET.h5."""
    path = option or data_folder()
    if path.is_file() or (option is not None and not path.is_dir()):
        return path
    if not set_name:
        raise IiaeError(
            "no data file was named", "pass --data FILE.h5, or set data.set in the preset"
        )
    return path / f"{set_name}.h5"


def run_folder(option: Path | None) -> tuple[Path, str]:
    """The run to read and how it was chosen: `--run`, else `IIAE_RUN`, else `runs/latest`."""
    if option is not None:
        return option, "--run"
    named = os.environ.get("IIAE_RUN")
    return (Path(named), "IIAE_RUN") if named else (Path("runs/latest"), "the latest run")


def index_file(
    option: Path | None, run: Path | None, is_cache: Callable[[Path], bool]
) -> tuple[Path, str]:
    """The gallery and how it was chosen.

    In this order: `--index`, `IIAE_INDEX`, the only latent cache (by `is_cache`) in the current
    folder, gallery.h5 of the run.
    """
    if option is not None:
        return option, "--index"
    named = os.environ.get("IIAE_INDEX")
    if named:
        return Path(named), "IIAE_INDEX"
    caches = [path for path in sorted(Path().glob("*.h5")) if is_cache(path)]
    if len(caches) == 1:
        return caches[0], "the only latent cache in this folder"
    gallery = run_folder(run)[0] / "gallery.h5"
    if not gallery.exists():
        raise IiaeError(
            f"no gallery was named; {gallery} does not exist",
            "pass --index z.h5, made by: iiae encode PICTURES --domain y -o z.h5",
        )
    return gallery, "the run's gallery"
