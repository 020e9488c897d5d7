"""`iiae prepare`: write one self-describing data file; `prepare_shards` has what `--shard` and `--merge` do."""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.common.files import refuse_existing, writing
from iiae_cli.common.paths import data_folder
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.datafile import SPLITS, DataFile, Split
from iiae_cli.data.sources.class_sets import classes_of
from iiae_cli.data.sources.registry import CLASS_SETS, PrepareOptions, is_prepared, prepare_file
from iiae_cli.data.workspace import discard
from iiae_cli.model import DOMAINS


@dataclass
class PrepareResult:
    """What was written.

    Attributes:
        path: the data file.
        name: of the set.
        counts: pairs per split.
        skipped: a line for every input left out.
        pictures: folder that the pictures were written to, if any.
        rows: of a set of classes, whose domains differ in length: {split: {x, y, classes}}; else None.
    """

    path: Path
    name: str
    counts: dict[str, int]
    skipped: list[str] = field(default_factory=list)
    pictures: Path | None = None
    rows: dict[str, dict[str, int]] | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        rows = {} if self.rows is None else {"rows": self.rows}
        return {
            "schema": "iiae.prepare/1",
            "path": str(self.path),
            "name": self.name,
            "splits": self.counts,
            **rows,
            "skipped": self.skipped,
            "pictures": None if self.pictures is None else str(self.pictures),
        }

    def show(self) -> None:
        """Print for people and pipes."""
        if self.rows is not None:
            headers = ["split", "x", "y", "classes"]
            table = [[split, *counts.values()] for split, counts in self.rows.items()]
            console.print_table(headers, table, title=str(self.path))
            return
        console.print_table(["split", "pairs"], list(self.counts.items()), title=str(self.path))


def run(
    name: str,
    options: PrepareOptions,
    *,
    output: Path | None,
    overwrite: bool,
    resume: bool = False,
    pictures: Path | None = None,
    stop: Stop = NEVER,
) -> PrepareResult:
    """Build a data set and write it.

    Args:
        name: of the set.
        options: what the builder is told.
        output: the file; None: DATA/NAME.h5.
        overwrite: whether an existing file is replaced.
        resume: whether interrupted work is taken up, and a finished file of the same options left as it is.
        pictures: also write every picture to this folder, in the layout of `prepare pairs`; where pictures recur in
            many pairs, with a manifest `pairs.csv`.
        stop: asked before every block.

    Raises:
        IiaeError: a missing or damaged source, an existing output, a full disk.
        Interrupted: a signal came; what is finished is kept.
    """
    path = output if output is not None else data_folder() / f"{name}.h5"
    complete = resume and path.exists() and not overwrite
    if complete:
        if not is_prepared(name, path, options):
            raise IiaeError(
                f"{path} exists already, made by other options or from another source",
                "pass --overwrite to replace it, or choose another output",
            )
        console.say(f"{path} is complete already")
        discard(path)
        skipped = DataFile(path).skipped()
    else:
        refuse_existing(path, overwrite)
        if pictures is not None:
            refuse_existing(pictures, overwrite or resume)
        options = with_device(name, options, overwrite or resume, pictures)
        with how_to_go_on("continue with the same command and --resume"):
            skipped = prepare_file(
                name,
                path,
                options,
                command=_command(),
                resume=resume,
                overwrite=overwrite,
                stop=stop,
            )
    return result_of(name, path, skipped, pictures, stop)


def result_of(
    name: str,
    path: Path,
    skipped: list[str],
    pictures: Path | None,
    stop: Stop,
) -> PrepareResult:
    """Say what a finished file holds, and write its pictures where they are wanted."""
    for line in skipped:
        console.warn(f"skipped {line}")
    file = DataFile(path)
    if pictures is not None:
        rows: list[tuple[str, ...]] = []
        for split in SPLITS:
            rows += _write_pictures(file.split(split), pictures, split, stop)
        if rows:
            _write_manifest(rows, pictures / "pairs.csv")
    by_split = _rows(file) if name in CLASS_SETS else None
    return PrepareResult(path, name, dict(file.info.pair_counts), skipped, pictures, by_split)


@contextmanager
def how_to_go_on(hint: str) -> Iterator[None]:
    """Say after a signal how the work is taken up."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.exit_code, f"{stopped.where}; {hint}") from stopped


def _command() -> str:
    """This call for the file's attributes, the same whether it was interrupted or not."""
    return shlex.join(one for one in sys.argv if one not in ("--resume", "--overwrite"))


def with_device(
    name: str, options: PrepareOptions, may_replace: bool, pictures: Path | None
) -> PrepareOptions:
    """A set of classes is given its device.

    Raises:
        IiaeError: an output exists, or an option does not apply.
    """
    if name not in CLASS_SETS:
        return options
    features = options.features
    if pictures is not None:
        raise IiaeError(
            f"--pictures does not apply: {name} is stored as features", "leave --pictures out"
        )
    if features.save_backbone is not None:
        for domain in DOMAINS:
            refuse_existing(features.save_backbone / f"{domain}.safetensors", may_replace)

    from iiae_cli.builders import choose_device  # imports torch

    return replace(options, features=replace(features, device=str(choose_device(features.device))))


def _rows(file: DataFile) -> dict[str, dict[str, int]]:
    """Rows and classes per split of a set of classes."""
    splits = {split: file.split(split) for split in SPLITS}
    return {
        name: {"x": len(split.x), "y": len(split.y), "classes": len(classes_of(split))}
        for name, split in splits.items()
    }


def _write_pictures(split: Split, folder: Path, name: str, stop: Stop) -> list[tuple[str, ...]]:
    """Every picture as `FOLDER/SPLIT/x|y/NAME.png`, from its id `SPLIT/NAME`; rows of a manifest where it needs one."""
    files: dict[str, list[str]] = {}
    for domain in DOMAINS:
        parts = [one.partition("/") for one in split.side(domain).ids]
        files[domain] = [f"{head}/{domain}/{rest}.png" for head, _, rest in parts]
        for path, picture in zip(files[domain], split.side(domain).rows, strict=True):
            stop.check(
                f"some pictures are in {folder}; continue with the same command and --resume"
            )
            with writing(folder / path, sync=False) as temporary:
                Image.fromarray(picture.squeeze()).save(temporary, format="PNG")
    if split.pairs is None:
        return []
    labels = split.x.labels
    return [
        (files["x"][x], files["y"][y], name) + (() if labels is None else (labels[x],))
        for x, y in split.pairs.tolist()
    ]


def _write_manifest(rows: list[tuple[str, ...]], path: Path) -> None:
    with writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("x", "y", "split", "label")[: len(rows[0])])
        table.writerows(rows)
