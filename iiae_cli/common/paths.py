"""Where things lie when the command line does not say: data, runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from iiae_cli.common.errors import IiaeError


def data_folder() -> Path:
    """`IIAE_DATA`, else `data/`."""
    return Path(os.environ.get("IIAE_DATA") or "data")


def data_file(option: Path | None, set_name: str) -> Path:
    """The data file of a set: `--data` (a file, or a folder that holds SET.h5), else DATA/SET.h5.

    Raises:
        IiaeError: neither a file nor a set was named.
    """
    if option is not None and not option.is_dir():
        return option
    if not set_name:
        raise IiaeError(
            "no data file was named", "pass --data FILE.h5, or set data.set in the preset"
        )
    folder = option if option is not None else data_folder()
    if folder.is_file():  # IIAE_DATA may name a file
        return folder
    return folder / f"{set_name}.h5"


def run_folder(option: Path | None) -> tuple[Path, str]:
    """The run to read and how it was chosen: `--run`, else `IIAE_RUN`, else `runs/latest`."""
    if option is not None:
        return option, "--run"
    named = os.environ.get("IIAE_RUN")
    if named:
        return Path(named), "IIAE_RUN"
    return Path("runs/latest"), "the latest run"


def index_file(
    option: Path | None, run: Path | None, is_cache: Callable[[Path], bool]
) -> tuple[Path, str]:
    """The gallery and how it was chosen: `--index`, `IIAE_INDEX`, the only latent cache here, else RUN/gallery.h5.

    Args:
        option: `--index`.
        run: `--run`.
        is_cache: tells whether an HDF5 file is a latent cache.

    Raises:
        IiaeError: none of them exists.
    """
    if option is not None:
        return option, "--index"
    named = os.environ.get("IIAE_INDEX")
    if named:
        return Path(named), "IIAE_INDEX"
    here = [path for path in sorted(Path().glob("*.h5")) if is_cache(path)]
    if len(here) == 1:
        return here[0], "the only latent cache in this folder"
    folder, _ = run_folder(run)
    gallery = folder / "gallery.h5"
    if not gallery.exists():
        found = f"{len(here)} latent caches lie here and " if here else ""
        raise IiaeError(
            f"no gallery was named; {found}{gallery} does not exist",
            "pass --index z.h5, made by: iiae encode PICTURES --domain y -o z.h5",
        )
    return gallery, "the run's gallery"
