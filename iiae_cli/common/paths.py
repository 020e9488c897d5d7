"""Default paths of data, runs and galleries."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from iiae_cli.common.errors import IiaeError


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

    In this order: `--index`, `IIAE_INDEX`, the only latent cache in the current folder,
    RUN/gallery.h5.

    Args:
        option: `--index`.
        run: `--run`.
        is_cache: returns whether an HDF5 file is a latent cache.
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
        several = f"{len(caches)} latent caches lie here and " if caches else ""
        raise IiaeError(
            f"no gallery was named; {several}{gallery} does not exist",
            "pass --index z.h5, made by: iiae encode PICTURES --domain y -o z.h5",
        )
    return gallery, "the run's gallery"
