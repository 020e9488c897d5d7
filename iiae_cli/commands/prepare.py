"""`iiae prepare`: write one self-describing data file."""

from __future__ import annotations

import csv
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from iiae_cli import console
from iiae_cli.data.dataset import SPLITS, DataFile, DomainName, Split
from iiae_cli.data.prepare import PrepareOptions, prepare_file
from iiae_cli.files import refuse_existing, writing
from iiae_cli.places import data_folder

DOMAINS: tuple[DomainName, ...] = ("x", "y")


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
        pictures: also write every picture to this folder, in the layout of `prepare pairs`; where pictures recur in
            many pairs, with a manifest `pairs.csv`.

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
        rows: list[tuple[str, ...]] = []
        for split in SPLITS:
            rows += _write_pictures(file.split(split), pictures, split)
        if rows:
            _write_manifest(rows, pictures / "pairs.csv")
    return PrepareResult(path, name, dict(file.info.pair_counts), skipped, pictures)


def _write_pictures(split: Split, folder: Path, name: str) -> list[tuple[str, ...]]:
    """Every picture as `FOLDER/SPLIT/x|y/NAME.png`, from its id `SPLIT/NAME`; rows of a manifest where it needs one."""
    files: dict[str, list[str]] = {}
    for domain in DOMAINS:
        parts = [one.partition("/") for one in split.ids(domain)]
        files[domain] = [f"{head}/{domain}/{rest}.png" for head, _, rest in parts]
        for path, picture in zip(files[domain], split.rows(domain), strict=True):
            with writing(folder / path, sync=False) as temporary:
                Image.fromarray(picture.squeeze()).save(temporary, format="PNG")
    if split.pairs is None:
        return []
    labels = split.x_labels
    return [
        (files["x"][x], files["y"][y], name) + (() if labels is None else (labels[x],)) for x, y in split.pairs.tolist()
    ]


def _write_manifest(rows: list[tuple[str, ...]], path: Path) -> None:
    with writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("x", "y", "split", "label")[: len(rows[0])])
        table.writerows(rows)
