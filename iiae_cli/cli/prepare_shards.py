"""`iiae prepare --shard`: one part of a data set; `iiae prepare --merge`: all parts of it, as one data file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iiae_cli.cli.prepare_run import PrepareResult, how_to_go_on, result_of, with_device
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing
from iiae_cli.common.paths import data_folder
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.parts import Part
from iiae_cli.data.pictures import expand_inputs
from iiae_cli.data.sources.part_files import read_part
from iiae_cli.data.sources.registry import BUILDERS, PrepareOptions
from iiae_cli.data.sources.sharded import OUTPUT, is_part_of, plan_merge, prepare_part
from iiae_cli.data.workspace import discard


@dataclass
class PartResult:
    """What a shard holds.

    Attributes:
        path: its file.
        name: of the set.
        part: which one.
        rows: how many items were read, by the names of readings, such as `train/x`.
        skipped: a line for every input of this shard that could not be read.
    """

    path: Path
    name: str
    part: Part
    rows: dict[str, int]
    skipped: list[str]

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints; what the splits hold is known when all shards are."""
        return {
            "schema": "iiae.prepare/1",
            "path": str(self.path),
            "name": self.name,
            "shard": self.part.name,
            "splits": {},
            "rows": self.rows,
            "skipped": self.skipped,
            "pictures": None,
        }

    def show(self) -> None:
        """Print for people and pipes."""
        console.print_table(
            ["part", "rows"], list(self.rows.items()), title=f"{self.path}: shard {self.part.name}"
        )


def run_part(
    name: str,
    options: PrepareOptions,
    part: Part,
    *,
    output: Path,
    asked: Path | None,
    overwrite: bool,
    resume: bool = False,
    pictures: Path | None = None,
    stop: Stop = NEVER,
) -> PartResult:
    """Make one shard of a data set, and write it.

    Args:
        name: of the set.
        options: what the builder is told.
        part: which shard.
        output: the file.
        asked: how the command line names it, such as `z-{shard}.h5`; None: not at all.
        overwrite: whether an existing file is replaced.
        resume: whether interrupted work is taken up, and a finished shard of the same options left as it is.
        pictures: refused, as a shard's pictures may yet be left out.
        stop: asked before every block.

    Raises:
        IiaeError: as `run`; or something that looks at all rows, such as fine-tuning.
        Interrupted: a signal came; what is finished is kept.
    """
    if pictures is not None:
        raise IiaeError(
            "--pictures does not apply to --shard", "write the pictures when the shards are merged"
        )
    complete = resume and output.exists() and not overwrite
    if complete:
        if not is_part_of(read_part(output), name, options, part):
            raise IiaeError(
                f"{output} exists already, of another shard, by other options or from another source",
                "pass --overwrite to replace it, or choose another output",
            )
        console.say(f"{output} is complete already")
        discard(output)
    else:
        refuse_existing(output, overwrite)
        options = with_device(name, options, overwrite or resume, None)
        with how_to_go_on("continue with the same command and --resume"):
            prepare_part(
                name,
                output,
                options,
                part,
                command=_part_command(sys.argv, asked),
                resume=resume,
                overwrite=overwrite,
                stop=stop,
            )
    found = read_part(output)
    rows = {reading: len(share.places) for reading, share in found.shares.items()}
    for line in found.skipped:
        console.warn(f"skipped {line}")
    return PartResult(output, name, part, rows, found.skipped)


def run_merge(
    words: Sequence[str],
    *,
    output: Path | None,
    overwrite: bool,
    resume: bool = False,
    download: bool = False,
    pictures: Path | None = None,
    stop: Stop = NEVER,
) -> PrepareResult:
    """Join shards to the data file that an undivided call writes.

    Args:
        words: the shards in any order; `-` reads their paths from standard input. The set's name may stand before them.
        output: the file; None: DATA/NAME.h5.
        overwrite: whether an existing file is replaced.
        resume: whether a finished file of the same shards is left as it is.
        download: whether the backbone's weights may be fetched.
        pictures: as in `run`.
        stop: asked before every block.

    Raises:
        IiaeError: shards that do not fit, that are missing or doubled, or whose source has changed; an existing output.
        Interrupted: a signal came; nothing was written.
    """
    name = words[0] if words[0] in BUILDERS and not Path(words[0]).exists() else None
    shards = words if name is None else words[1:]
    if not shards:
        raise IiaeError(
            "no shard was named", "name them all: iiae prepare data-*-of-4.h5 --merge -o data.h5"
        )
    merge = plan_merge([Path(path) for path in expand_inputs(shards)])
    if name not in (None, merge.name):
        raise IiaeError(
            f"{merge.parts[0].path} is a shard of {merge.name}, not of {name}", "leave the name out"
        )
    path = output if output is not None else data_folder() / f"{merge.name}.h5"
    if resume and path.exists() and not overwrite:
        if DataFile(path).info.attributes.get("settings_sha256") != merge.settings_sha256:
            raise IiaeError(
                f"{path} exists already, of other shards",
                "pass --overwrite to replace it, or choose another output",
            )
        console.say(f"{path} is complete already")
        discard(path)
        return result_of(merge.name, path, DataFile(path).skipped(), pictures, stop)
    refuse_existing(path, overwrite)
    if pictures is not None:
        refuse_existing(pictures, overwrite or resume)
    with how_to_go_on("run the same command again"):
        skipped = merge.write(path, download=download, stop=stop)
    return result_of(merge.name, path, skipped, pictures, stop)


def _part_command(words: Sequence[str], asked: Path | None) -> list[str]:
    """The words of a shard's call as they would be without shards, `OUTPUT` in the place of the output."""
    kept: list[str] = []
    coming = iter(words)
    for word in coming:
        if word == "--shard":
            next(coming, None)
        elif word.startswith("--shard=") or word in ("--resume", "--overwrite"):
            continue
        else:
            head = next(
                (head for head in ("", "-o", "--output=") if f"{asked}" == _path(word, head)), None
            )
            kept.append(word if head is None else head + OUTPUT)
    return kept


def _path(word: str, head: str) -> str | None:
    """The path that a word gives after its head, as it is printed; None where it has another head."""
    return str(Path(word.removeprefix(head))) if word.startswith(head) else None
