"""`iiae prepare`: write one self-describing data file."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from iiae_cli import console
from iiae_cli.data.dataset import SPLITS, DataFile, Split
from iiae_cli.data.prepare import PrepareOptions, prepare_file
from iiae_cli.files import refuse_existing, writing
from iiae_cli.places import data_folder


@dataclass
class PrepareResult:
    """What was written.

    Attributes:
        path: the data file.
        name: of the set.
        counts: pairs per split.
        skipped: a line for every input left out.
        pictures: folder that the pictures were written to, if any.
    """

    path: Path
    name: str
    counts: dict[str, int]
    skipped: list[str] = field(default_factory=list)
    pictures: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "schema": "iiae.prepare/1",
            "path": str(self.path),
            "name": self.name,
            "splits": self.counts,
            "skipped": self.skipped,
            "pictures": None if self.pictures is None else str(self.pictures),
        }

    def show(self) -> None:
        """Print for people and pipes."""
        console.print_table(["split", "pairs"], list(self.counts.items()), title=str(self.path))


def run(
    name: str, options: PrepareOptions, *, output: Path | None, overwrite: bool, pictures: Path | None = None
) -> PrepareResult:
    """Build a data set and write it.

    Args:
        name: of the set.
        options: what the builder is told.
        output: the file; None: DATA/NAME.h5.
        overwrite: whether an existing file is replaced.
        pictures: also write every picture to this folder, in the layout of `prepare pairs`.

    Raises:
        IiaeError: a missing or damaged source, an existing output, a full disk.
    """
    path = output if output is not None else data_folder() / f"{name}.h5"
    refuse_existing(path, overwrite)
    if pictures is not None:
        refuse_existing(pictures, overwrite)
    skipped = prepare_file(name, path, options, command=shlex.join(sys.argv))
    for line in skipped:
        console.warn(f"skipped {line}")
    file = DataFile(path)
    if pictures is not None:
        for split in SPLITS:
            _write_pictures(file.split(split), pictures)
    return PrepareResult(path, name, {split: file.info.counts[split] for split in SPLITS}, skipped, pictures)


def _write_pictures(split: Split, folder: Path) -> None:
    """Every picture as `FOLDER/SPLIT/x|y/NAME.png`, from its id `SPLIT/NAME`."""
    for domain in ("x", "y"):
        for one, picture in zip(split.ids(domain), split.rows(domain), strict=True):
            head, _, rest = one.partition("/")
            with writing(folder / head / domain / f"{rest}.png", sync=False) as temporary:
                Image.fromarray(picture.squeeze()).save(temporary, format="PNG")
