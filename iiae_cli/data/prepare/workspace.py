"""The folder beside a data file that holds what is finished of it, so that an interrupted preparation is taken up."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iiae_cli.errors import IiaeError
from iiae_cli.files import write_errors, writing

SCHEMA = "iiae.features-work/1"
_MANIFEST = "manifest.json"


def workspace_of(output: Path) -> Path:
    """Where the work of a data file lies: `OUTPUT.features`."""
    return output.with_name(f"{output.name}.features")


@contextmanager
def workspace(folder: Path | None, settings: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    """The folder to work in; what is in it belongs to these settings.

    Args:
        folder: None: a temporary one, gone afterwards.
        settings: everything that the result depends on, as JSON values.
        resume: whether work that is there is taken up.

    Raises:
        IiaeError: work is there and `resume` is not set, or it was begun with other settings.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    if folder.exists():
        begun = _manifest(folder)
        if not resume:
            raise IiaeError(
                f"{folder} holds an interrupted preparation",
                "continue it with --resume, or start over with --overwrite",
            )
        differing = sorted(key for key in {*begun, *settings} if begun.get(key) != settings.get(key))
        if differing:
            raise IiaeError(
                f"{folder} was begun with another {', '.join(differing)}",
                "give the same command as then, or start over with --overwrite and without --resume",
            )
    else:
        with write_errors(folder):
            folder.mkdir(parents=True)
        with writing(folder / _MANIFEST) as temporary_file:
            temporary_file.write_text(json.dumps({"schema": SCHEMA, "settings": dict(settings)}, indent=2) + "\n")
    yield folder


def remove_workspace(folder: Path) -> None:
    """Remove the folder where it is there.

    Raises:
        IiaeError: it is no workspace.
    """
    if folder.exists():
        _manifest(folder)
        shutil.rmtree(folder)


def _manifest(folder: Path) -> dict[str, Any]:
    """The settings that the work was begun with."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] == SCHEMA:
            return dict(manifest["settings"])
    except FileNotFoundError:
        if not any(folder.iterdir()):
            return {}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise IiaeError(f"{folder} is in the way: it is not the work of an interrupted preparation", "move it elsewhere")
