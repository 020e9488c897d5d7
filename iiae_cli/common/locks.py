"""Locks between processes, which the system takes back when their process dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError

LOCK = ".lock"  # the name of a folder's lock file; it stays when the lock is released


@contextmanager
def locked(folder: Path, hint: str) -> Iterator[None]:
    """Keep other processes from working in a folder while inside.

    Raises:
        IiaeError: another process works there.
    """
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
