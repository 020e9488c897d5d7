"""Copies of data files on the node's own disk, where the file's own place is a slow shared file system.

A training step reads rows at random, for which such file systems are worst; copying reads once from front to back. One
process of a node copies while the others wait, all use the one copy, and the last to leave removes it. A copy's name
holds the size and time of change of its original, so that a copy of something else is never taken.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import write_errors, writing

CHUNK = 1 << 24
SPARE = 64 << 20  # bytes that stay free on the node's disk
_WAIT = 0.2  # seconds between looks at a lock


class Staging:
    """Copies for as long as a `with` block lasts.

    Args:
        wanted: False: `copy_of` gives None.
        keep: leave copies for the next call on this node.
        folder: of the node's own disk; None: `$TMPDIR`, else the system's.
    """

    def __init__(self, wanted: bool, *, keep: bool = False, folder: Path | None = None) -> None:
        self.wanted, self.keep = wanted, keep
        self._base = folder or Path(tempfile.gettempdir())
        self._used: list[tuple[Path, TextIO]] = []

    @classmethod
    def from_option(cls, option: bool | None, environment: str = "") -> Staging:
        """What `--stage` says, else `IIAE_STAGE`: 1 for yes, `keep` to leave the copy, 0 or nothing for no."""
        keep = environment.lower() == "keep"
        return cls(environment not in ("", "0") if option is None else option, keep=keep)

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for copy, lock in self._used:
            with lock:
                if self.keep:
                    console.say(f"the copy {copy} is left for later")
                elif _locked(lock, fcntl.LOCK_EX):  # nobody else uses it
                    copy.unlink(missing_ok=True)
                    Path(lock.name).unlink(missing_ok=True)
        self._used.clear()

    def copy_of(self, path: Path) -> Path | None:
        """The copy to read instead of `path`; None where none is wanted, or none fits.

        Raises:
            IiaeError: the node's disk cannot be written, or the file cannot be read.
        """
        if not self.wanted or not path.is_file():  # what is missing is named by who reads it
            return None
        folder = self._folder()
        status = path.stat()
        key = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
        copy = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{path.name}"
        while True:
            lock = self._lock(copy)
            if not copy.exists():
                free = shutil.disk_usage(folder).free
                if free < status.st_size + SPARE:
                    lock.close()
                    console.warn(
                        f"{path} ({status.st_size / 2**20:.0f} MiB) is not staged: "
                        f"{folder} has {free / 2**20:.0f} MiB free"
                    )
                    return None
                self._copy(path, copy, status.st_size)
            elif not self._used:
                console.say(f"reading {path} from its copy {copy}")
            # Taking the shared lock gives the exclusive one up for a moment, in which another call may clear up.
            if _locked(lock, fcntl.LOCK_SH) and copy.exists() and _is_lock_of(lock, copy):
                self._used.append((copy, lock))
                return copy
            lock.close()

    def _folder(self) -> Path:
        """The user's own folder on the node's disk."""
        folder = self._base / f"iiae-stage-{os.geteuid()}"
        with write_errors(folder):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            status = folder.lstat()
        if status.st_uid != os.geteuid() or not folder.is_dir() or folder.is_symlink():
            raise IiaeError(
                f"{folder} is not a folder of yours",
                "set TMPDIR to a folder of your own, or --no-stage",
            )
        return folder

    def _lock(self, copy: Path) -> TextIO:
        """The copy's lock, held alone."""
        waited = False
        while True:
            with write_errors(copy):
                lock = _lock_of(copy).open("a")
            if _locked(lock, fcntl.LOCK_EX) and _is_lock_of(lock, copy):
                return lock
            if _is_lock_of(lock, copy) and copy.exists() and _locked(lock, fcntl.LOCK_SH):
                return lock  # others use it, whole as it is
            lock.close()
            if not waited:
                console.say(f"waiting for another process that copies to {copy}")
                waited = True
            time.sleep(_WAIT)

    def _copy(self, path: Path, copy: Path, size: int) -> None:
        console.say(f"staging {path} ({size / 2**20:.0f} MiB) in {copy}")
        for stale in copy.parent.glob(
            f".{copy.name}.*"
        ):  # of a process that was killed; the lock is ours
            stale.unlink(missing_ok=True)
        done = 0
        with (
            writing(copy, sync=False) as temporary,
            path.open("rb") as source,
            temporary.open("wb") as target,
        ):
            with console.progress("staging", size >> 20, "MiB") as bar:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    done += len(chunk)
                    bar.update(done >> 20)
            if done != size:
                raise IiaeError(
                    f"{path} changed while it was copied", "run again when nothing writes to it"
                )


def _lock_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.lock")


def _is_lock_of(lock: TextIO, copy: Path) -> bool:
    """Whether the open lock is still the one by that name, not one that was cleared up."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), _lock_of(copy).stat())
    except FileNotFoundError:
        return False


def _locked(lock: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
