"""What several commands share: options with one help text each, parsers, and printing a result."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import typer

from iiae_cli.common import console
from iiae_cli.common.errors import EXIT_SOME_SKIPPED, IiaeError

DomainName = Literal["x", "y"]
SplitName = Literal["train", "valid", "test"]
MetricName = Literal["euclidean", "cosine"]

# Groups of options in the help, in this order, for `rich_help_panel`; others stand under "Options".
GROUPS = INPUT, OUTPUT, RUNNING = "Input", "Output", "Running"

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT)
]
OverwriteFlag = Annotated[
    bool, typer.Option("--overwrite", help="Replace what exists.", rich_help_panel=OUTPUT)
]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run directory [IIAE_RUN, else runs/latest].")
]
SplitOption = Annotated[
    SplitName,
    typer.Option("--split", help="Split, where an input is a prepared .h5.", rich_help_panel=INPUT),
]
NulFlag = Annotated[
    bool,
    typer.Option("-0", help="Paths on standard input are NUL-separated.", rich_help_panel=INPUT),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=RUNNING),
]
WorkersOption = Annotated[
    int,
    typer.Option("--workers", min=1, help="Threads that decode pictures.", rich_help_panel=RUNNING),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N|auto",
        help="Only part I, from 0, of N; auto: this task of a job array.",
        rich_help_panel=RUNNING,
    ),
]
ResumeFlag = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue where the output stands, or start it; nothing where complete.",
        rich_help_panel=RUNNING,
    ),
]


class Result(Protocol):
    """What a command returns."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""

    def show(self) -> None:
        """Print for people and pipes."""


def finish(result: Result, as_json: bool, skipped: list[str] | None = None) -> None:
    """Print a result; exit 3 if inputs were skipped."""
    try:
        if as_json:
            console.print_json(result.to_json())
        else:
            result.show()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if skipped:
        console.warn(f"{len(skipped)} inputs were skipped")
        raise typer.Exit(EXIT_SOME_SKIPPED)


def seconds_of(text: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `2h`, `1d`, `1h30m`, `H:MM:SS` or `MM:SS`."""
    clock = re.fullmatch(r"(?:(\d+):)?(\d+):(\d\d)", text)
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    match = clock or units
    if not text or match is None:
        raise IiaeError(f"--time-limit {text} is no duration", "write 2h, 90m, 45s or 1:30:00")
    parts = [float(part or 0) for part in match.groups()]
    return sum(part * unit for part, unit in zip(parts[::-1], (1, 60, 3600, 86400), strict=False))


def shard_of(text: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(I, N) of `I/N` with 0 ≤ I < N, or of `auto`/`slurm`: this task of a SLURM job array."""
    if text in ("auto", "slurm"):
        return _array_task(environment, text)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise IiaeError(
            f"--shard {text} is not I/N with 0 <= I < N",
            "write --shard 0/4, 1/4, 2/4, 3/4, or auto in a job array",
        )
    return int(match[1]), int(match[2])


def _array_task(environment: Mapping[str, str], text: str) -> tuple[int, int]:
    """(position in the array from 0, number of tasks)."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")
    values = [environment.get(name, "") for name in names]
    for name, value in zip(names, values, strict=True):
        if not value.isdecimal():
            raise IiaeError(
                f"--shard {text} needs a SLURM job array: "
                f"{name} is {repr(value) if value else 'not set'}",
                "submit with sbatch --array=0-15, or pass --shard I/N",
            )
    task, count, lowest = map(int, values)
    step = environment.get("SLURM_ARRAY_TASK_STEP", "1")
    index, rest = divmod(task - lowest, int(step) if step.isdecimal() and int(step) else 1)
    if rest or not 0 <= index < count:
        raise IiaeError(
            f"SLURM_ARRAY_TASK_ID {task} has no place among {count} tasks from {lowest} on",
            f"submit an unbroken --array=0-{max(count - 1, 1)}, or pass --shard {task}/N",
        )
    return index, count


def shard_output(output: Path, text: str | None, shard: tuple[int, int] | None) -> Path:
    """The output with `{shard}` replaced by `I-of-N`, I padded with zeros so that names sort."""
    if "{shard}" in str(output):
        if shard is None:
            raise IiaeError(
                f"{output} asks for a shard, and none was named", "pass --shard I/N or --shard auto"
            )
        index, count = shard
        return Path(str(output).replace("{shard}", f"{index:0{len(str(count - 1))}d}-of-{count}"))
    if text in ("auto", "slurm"):
        raise IiaeError(
            f"all tasks of the array would write {output}",
            "name it with {shard}: -o 'z-{shard}.h5'",
        )
    return output
