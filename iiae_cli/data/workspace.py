"""The folder beside an output that holds what is finished of it, so that interrupted work is taken
up.

`OUTPUT.partial/` has a manifest of the settings that its content belongs to. One process at a time
works in it, told by a lock that the system takes back when a process dies. The output is put
together inside and renamed out, so that a kill leaves nothing beside the output but this folder. It
goes when the output is there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import TEMPORARY, write_errors, writing

SCHEMA = "iiae.partial/1"
_MANIFEST = "manifest.json"
_LOCK = "lock"


def partial_of(output: Path) -> Path:
    """Where the unfinished work of an output lies: `OUTPUT.partial`."""
    return output.with_name(f"{output.name}.partial")


@contextmanager
def workspace(
    output: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool = False
) -> Iterator[Path]:
    """The folder to work in; what is in it belongs to these settings. It is removed when the block
    ends well.

    It stays after an interruption, a bug or a full disk, and goes after any other user's error,
    which would only come again.

    Args:
        output: the file that is made.
        settings: everything that the result depends on, as JSON values.
        resume: whether work that is there is taken up; work of other settings is dropped, and said
            why.
        overwrite: whether work that is there is dropped where `resume` is not set.

    Raises:
        IiaeError: work is there and neither is set, another process has it, or the place cannot be
            written.
    """
    folder = partial_of(output)
    _begun(folder)  # nothing is put into a folder of someone else's
    with write_errors(output):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        try:
            _take_up(folder, dict(settings), resume=resume, overwrite=overwrite)
            yield folder
        except IiaeError as error:
            if not isinstance(error.__cause__, OSError | RuntimeError) and not isinstance(
                error, _InUse
            ):
                _remove(folder)
            raise
        else:
            _remove(folder)
        finally:
            if folder.exists() and not _work_in(folder):
                _remove(folder)


def discard(output: Path) -> None:
    """Remove what a process left that was killed after its output was there and before its folder
    was gone.
    """
    folder = partial_of(output)
    if folder.is_dir():
        _begun(folder)
        with _locked(folder):
            _remove(folder)


def _remove(folder: Path) -> None:
    """The manifest goes after all work, so that a kill in between leaves a folder that is known
    again.
    """
    for path in sorted(
        folder.iterdir(), key=lambda path: (path.name == _LOCK, path.name == _MANIFEST)
    ):
        path.unlink(missing_ok=True)
    folder.rmdir()


class _InUse(IiaeError):
    """Work is there that this call was not told to touch."""


def _take_up(folder: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    if _work_in(folder):
        if not resume and not overwrite:
            raise _InUse(
                f"{folder} holds interrupted work",
                "continue it with --resume, or start over with --overwrite",
            )
        known = _begun(folder) or {}
        differing = sorted(
            key for key in {*known, *settings} if known.get(key) != settings.get(key)
        )
        if resume and not differing:
            _sweep(folder, everything=False)
            return
        if resume:
            console.say(f"{folder} was begun with another {', '.join(differing)}: starting afresh")
    _sweep(folder, everything=True)
    with writing(folder / _MANIFEST) as temporary:
        temporary.write_text(
            json.dumps({"schema": SCHEMA, "settings": settings}, indent=2) + "\n", encoding="utf-8"
        )


def _sweep(folder: Path, *, everything: bool) -> None:
    """Remove what killed processes left half-written, or all work."""
    for path in folder.iterdir():
        if path.name != _LOCK and (everything or path.name.endswith(TEMPORARY)):
            path.unlink()


def _work_in(folder: Path) -> bool:
    return any(
        path.name not in (_LOCK, _MANIFEST)
        and not path.name.endswith(TEMPORARY)
        and path.stat().st_size
        for path in folder.iterdir()
    )


def _begun(folder: Path) -> dict[str, Any] | None:
    """The settings that the work was begun with; None where none was.

    Raises:
        IiaeError: something else is in the way.
    """
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] == SCHEMA:
            return dict(manifest["settings"])
    except FileNotFoundError:
        if all(path.name == _LOCK or path.name.endswith(TEMPORARY) for path in folder.iterdir()):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise IiaeError(
        f"{folder} is in the way: it is not the work of an interrupted command", "move it elsewhere"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        IiaeError: another process holds it.
    """
    taken = IiaeError(
        f"{folder} is in use by another process", "wait for it, end it, or choose another output"
    )
    with write_errors(folder):
        file = (folder / _LOCK).open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        except OSError:
            pass  # a file system without locks: the user sees to it
        try:
            ours = os.path.samestat(os.fstat(file.fileno()), (folder / _LOCK).stat())
        except FileNotFoundError:
            ours = False  # the process that had it has just finished
        if not ours:
            raise taken
        yield
