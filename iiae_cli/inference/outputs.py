"""Single output pictures: every file is named, and every clash refused, before the first one is
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing, write_errors, writing


def plan_files(
    folder: Path,
    ids: Sequence[str],
    names: Sequence[str],
    target: str,
    *,
    overwrite: bool,
    inputs: Sequence[str] = (),
) -> list[list[Path]]:
    """Files `FOLDER/STEM-to-TARGET-NAME.png` for every id (N) and name (K), all different; makes
    the folder.

    Args:
        folder: of the outputs.
        ids: of the inputs; those of equal stems are told apart by a number.
        names: of each input's outputs.
        target: domain of the outputs.
        overwrite: whether files may be replaced.
        inputs: paths that no output may replace, as they are still to be read.

    Raises:
        IiaeError: a file exists, or is an input, or the folder cannot be made.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        existing = {path.name for path in folder.iterdir()}
    suffixes = _Names()
    endings = [
        f"-to-{target}-{suffixes.free(Path(name).stem.replace(' ', ''), [''])[0]}.png"
        for name in names
    ]
    stems = _Names()
    files = [[folder / name for name in stems.free(Path(one).stem, endings)] for one in ids]
    planned = {path.name for line in files for path in line}
    if clashes := sorted(planned & existing):
        refuse_existing(folder / clashes[0], overwrite)
        place = folder.resolve()
        for one in inputs:
            if (path := Path(one).resolve()).name in planned and path.parent == place:
                raise IiaeError(f"output {path} is an input, too", "choose another folder with -o")
    return files


class _Names:
    """Names given out so far; those that differ by case alone are the same to some file systems."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def free(self, stem: str, endings: Sequence[str]) -> list[str]:
        """`stem` with every ending, numbered `stem-2`, `stem-3`, … where one of these names was
        given out.
        """
        number = self._numbers.get(stem, 1)
        while True:
            names = [f"{stem if number == 1 else f'{stem}-{number}'}{ending}" for ending in endings]
            number += 1
            if self._taken.isdisjoint(folded := [name.casefold() for name in names]):
                self._taken.update(folded)
                self._numbers[stem] = number
                return names


def write_pictures(files: Sequence[Path], pictures: NDArray[np.uint8]) -> None:
    """One PNG per picture (K, H, W, C)."""
    for path, picture in zip(files, pictures, strict=True):
        with writing(path, sync=False) as temporary:
            Image.fromarray(picture.squeeze()).save(temporary, format="PNG")
