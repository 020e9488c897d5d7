"""What `iiae prepare` does: a whole data set, a part of it (`--shard`), or parts joined."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.common.files import data_folder, refuse_existing
from iiae_cli.common.signals import Stop
from iiae_cli.data.blocks import Part, discard, part_of, read_parts
from iiae_cli.data.datafile import SPLITS, DataFile
from iiae_cli.data.pictures import expand_inputs
from iiae_cli.data.sources import preparation
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.registry import BUILDERS, CLASS_SETS
from iiae_cli.data.sources.saving import save_pictures
from iiae_cli.model import DOMAINS


@dataclass
class Prepared:
    """What was written.

    Attributes:
        path: the data file, or a shard.
        name: of the set.
        counts: pairs per split; empty for a shard.
        skipped: a line for every input left out.
        rows: of a set of classes {split: {x, y, classes}}, of a shard {reading: items}; else None.
        shard: which one, I/N.
        pictures: folder that the pictures were written to.
    """

    path: Path
    name: str
    counts: dict[str, int]
    skipped: list[str]
    rows: dict[str, Any] | None = None
    shard: str | None = None
    pictures: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        optional = {"shard": self.shard, "rows": self.rows}
        return {
            "schema": "iiae.prepare/1",
            "path": str(self.path),
            "name": self.name,
            "splits": self.counts,
            **{key: value for key, value in optional.items() if value is not None},
            "skipped": self.skipped,
            "pictures": None if self.pictures is None else str(self.pictures),
        }

    def show(self) -> None:
        """Print for people and pipes."""
        headers, title = ["split", "pairs"], str(self.path)
        table = [list(row) for row in self.counts.items()]
        if self.shard is not None:
            headers, title = ["part", "rows"], f"{self.path}: shard {self.shard}"
            table = [list(row) for row in (self.rows or {}).items()]
        elif self.rows is not None:
            headers = ["split", "x", "y", "classes"]
            table = [[split, *counts.values()] for split, counts in self.rows.items()]
        console.print_table(headers, table, title=title)


@dataclass(frozen=True)
class Call:
    """What the three forms of the command share.

    Attributes:
        output: the file; None: DATA/NAME.h5.
        pictures: folder to write every picture to.
        resume: continue interrupted work, and leave a finished file of the same options as it is.
        overwrite: replace an existing file.
        stop: asked before every block.
    """

    output: Path | None
    pictures: Path | None
    resume: bool
    overwrite: bool
    stop: Stop

    def whole(self, name: str, options: PrepareOptions) -> Prepared:
        """Prepare a set."""

        path = self.output or data_folder() / f"{name}.h5"
        if not self._complete(path, lambda: preparation.is_prepared(name, path, options)):
            options = _with_device(name, options, self.overwrite or self.resume, self.pictures)
            words = [word for word in sys.argv if word not in ("--resume", "--overwrite")]
            with _how_to_go_on("continue with the same command and --resume"):
                preparation.prepare_file(
                    name,
                    path,
                    options,
                    command=shlex.join(words),
                    resume=self.resume,
                    overwrite=self.overwrite,
                    stop=self.stop,
                )
        return self._result(name, path)

    def part(self, name: str, options: PrepareOptions, part: Part, asked: Path | None) -> Prepared:
        """Prepare one shard; `asked` is the output as the command line names it."""

        assert self.output is not None
        if self.pictures is not None:
            raise IiaeError(
                "--pictures does not apply to --shard",
                "write the pictures when the shards are merged",
            )
        path = self.output
        if not self._complete(
            path, lambda: preparation.is_part_of(part_of(path), name, options, part)
        ):
            options = _with_device(name, options, self.overwrite or self.resume, None)
            with _how_to_go_on("continue with the same command and --resume"):
                preparation.prepare_part(
                    name,
                    path,
                    options,
                    part,
                    command=_part_command(sys.argv, asked, preparation.OUTPUT),
                    resume=self.resume,
                    overwrite=self.overwrite,
                    stop=self.stop,
                )
        about = part_of(path).about
        for line in about["skipped"]:
            console.warn(f"skipped {line}")
        return Prepared(path, name, {}, about["skipped"], about["rows"], part.name)

    def merge(self, words: Sequence[str], download: bool) -> Prepared:
        """Join shards; the set's name may stand before them, `-` reads their paths."""

        name = words[0] if words[0] in BUILDERS and not Path(words[0]).exists() else None
        shards = words if name is None else words[1:]
        if not shards:
            raise IiaeError(
                "no shard was named",
                "name them all: iiae prepare data-*-of-4.h5 --merge -o data.h5",
            )
        parts = read_parts([Path(path) for path in expand_inputs(shards)], "iiae prepare …")
        first, own = parts[0], str(parts[0].job.get("data set"))
        if own not in BUILDERS:
            raise IiaeError(
                f"{first.path} is no shard of a data set",
                "join what iiae encode --shard wrote by iiae encode PART… --merge",
            )
        if name not in (None, own):
            raise IiaeError(
                f"{first.path} is a shard of {own}, not of {name}", "leave the name out"
            )
        path = self.output or data_folder() / f"{own}.h5"
        settings = preparation.settings_sha256(first)
        if not self._complete(
            path, lambda: DataFile(path).info.attributes.get("settings_sha256") == settings
        ):
            if self.pictures is not None:
                refuse_existing(self.pictures, self.overwrite or self.resume)
            with _how_to_go_on("run the same command again"):
                preparation.merge(parts, path, download=download, stop=self.stop)
        return self._result(own, path)

    def _complete(self, path: Path, same: Callable[[], bool]) -> bool:
        """Whether the output is finished; one that is in the way is refused."""

        if self.overwrite or not self.resume or not path.exists():
            refuse_existing(path, self.overwrite)
            return False
        if not same():
            raise IiaeError(
                f"{path} exists already, made by other options or from another source",
                "pass --overwrite to replace it, or choose another output",
            )
        console.say(f"{path} is complete already")
        discard(path)
        return True

    def _result(self, name: str, path: Path) -> Prepared:
        """Say what a finished file holds, and write its pictures where they are wanted."""

        file = DataFile(path)
        skipped = file.skipped()
        for line in skipped:
            console.warn(f"skipped {line}")
        rows = None
        if name in CLASS_SETS:
            splits = {split: file.split(split) for split in SPLITS}
            rows = {
                name: {
                    "x": len(split.x),
                    "y": len(split.y),
                    "classes": len({*(split.x.labels or []), *(split.y.labels or [])}),
                }
                for name, split in splits.items()
            }
        if self.pictures is not None:
            save_pictures(file, self.pictures, self.stop)
        counts = dict(file.info.pair_counts)
        return Prepared(path, name, counts, skipped, rows, pictures=self.pictures)


@contextmanager
def _how_to_go_on(hint: str) -> Iterator[None]:
    """Say after a signal how the work is continued."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.exit_code, f"{stopped.where}; {hint}") from stopped


def _with_device(
    name: str, options: PrepareOptions, may_replace: bool, pictures: Path | None
) -> PrepareOptions:
    """Check the other outputs, and choose the device of a set of classes.

    Raises:
        IiaeError: an output exists, or an option does not apply.
    """
    if name not in CLASS_SETS:
        if pictures is not None:
            refuse_existing(pictures, may_replace)
        return options
    if pictures is not None:
        raise IiaeError(
            f"--pictures does not apply: {name} is stored as features", "leave --pictures out"
        )
    if options.save_backbone is not None:
        for domain in DOMAINS:
            refuse_existing(options.save_backbone / f"{domain}.safetensors", may_replace)

    from iiae_cli.builders import choose_device  # imports torch

    return replace(options, device=str(choose_device(options.device)))


def _part_command(words: Sequence[str], asked: Path | None, output: str) -> list[str]:
    """The words of a shard's call as they would be without shards, `output` for the output."""
    kept: list[str] = []
    coming = iter(words)
    for word in coming:
        if word == "--shard":
            next(coming, None)
        elif not word.startswith("--shard=") and word not in ("--resume", "--overwrite"):
            head = next((head for head in ("-o", "--output=") if word.startswith(head)), "")
            kept.append(head + output if word.removeprefix(head) == str(asked) else word)
    return kept
