"""Options that several commands share, their parsers, and the printing of results."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from iiae_cli.common import console
from iiae_cli.common.errors import EXIT_SOME_SKIPPED, IiaeError

if TYPE_CHECKING:
    from iiae_cli.data.blocks import Part

DomainName = Literal["x", "y"]
SplitName = Literal["train", "valid", "test"]
MetricName = Literal["euclidean", "cosine"]

# Groups of options in the help, in this order, after a command's own groups.
GROUPS = ("Input", "Output", "Running")


# Completions of a shell; only some backbones, as listing all takes seconds.
BACKBONES = (
    *("resnet18", "resnet50", "vgg16", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"),
    *("vit_b_16", "torchvision:", "timm:", "open_clip:"),
)
DATA_SETS = (
    *("digits-cdcb", "digits-edge", "digits-moved", "mnist-cdcb", "mnist-quadrants"),
    *("fashion-cdcb", "fashion-edges", "trifeature", "cars", "facades", "maps"),
    *("pairs", "sketchy", "classes"),
)


def complete_keys(incomplete: str) -> list[str]:
    """Returns `KEY=` for every value of the configuration, read from the schema's source."""
    source = (Path(__file__).parents[1] / "config" / "__init__.py").read_text(encoding="utf-8")
    classes = {text.split("(")[0]: text for text in source.split("\nclass ")}
    sections = re.findall(r"^    (\w+): (\w+) = \2\(\)", classes["Config"], re.MULTILINE)
    field = re.compile(r'^    (\w+): .* = (?:Field\(.*alias="(\w+)")?', re.MULTILINE)
    return [
        f"{section}.{alias or name}="
        for section, kind in sections
        for name, alias in field.findall(classes[kind])
    ]


def complete_runs(incomplete: str) -> list[str]:
    """Returns run directories in `runs/` and in the folder that is typed."""
    folders = {Path("runs"), Path(f"{incomplete}_").parent}
    return sorted(str(path.parent) for folder in folders for path in folder.glob("*/run.json"))


def option(default: Any, help: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """Declares an option in a group of the help, under these names instead of its parameter's."""
    if "min" in more:
        more.setdefault("metavar", "N")
    return typer.Option(default, *names, help=help, rich_help_panel=panel, **more)


of_input, of_output, of_running = (partial(option, panel=name) for name in GROUPS)

JSON = of_output(False, "Print one JSON object on stdout.", "--json")
OVERWRITE = of_output(False, "Replace existing outputs.", "--overwrite")
RUN = option(
    None, "Run directory [IIAE_RUN, else runs/latest].", "--run", autocompletion=complete_runs
)
SPLIT = of_input("test", "Split of a prepared .h5.", "--split")
NUL = of_input(False, "Paths on standard input are NUL-separated.", "-0")
DEVICE = of_running("auto", "auto, cpu, cuda, cuda:N or mps.", "--device", metavar="NAME")
WORKERS = of_running(2, "Threads that decode pictures.", "--workers", min=1)
SHARD = of_running(
    None, "Make part I of N, from 0; auto: this task of a job array.", metavar="I/N|auto"
)
MERGE = of_running(False, "Join shards, which are the inputs.", "--merge")
BACKBONE_WEIGHTS = of_input(
    None,
    "Weights of a feature run's backbone, if they moved.",
    metavar="FILE|DIR",
    envvar="IIAE_BACKBONE_WEIGHTS",
)
RESUME = of_running(
    False, "Continue interrupted work, or start; keeps a complete output.", "--resume"
)


def finish(
    result: dict[str, Any],
    show: Callable[[], None],
    as_json: bool,
    skipped: Sequence[str] = (),
    *,
    pictures: bool = False,
) -> None:
    """Prints a result, as JSON or by `show`, and names what was skipped; exits 3 if inputs were.

    Changed or skipped pictures are reported; with `pictures` also how many were read.
    """
    for line in skipped:
        console.warn(f"skipped {line}")
    more = {}
    if seen := take_seen():
        from iiae_cli.data.pictures import line_of

        if seen["changes"] or (pictures and seen["read"]):
            console.say(line_of(seen, len(skipped)))
        more = {"pictures_seen": seen} if pictures or seen["read"] or seen["left_out"] else {}
    if as_json:
        console.print_json({**result, **more})
    else:
        show()
    console.flush_results()
    if skipped:
        console.warn(f"{len(skipped)} input{'s were' if skipped[1:] else ' was'} skipped")
        raise typer.Exit(EXIT_SOME_SKIPPED)


def take_seen() -> dict[str, Any]:
    """Returns what was read as pictures, after a warning of files in folders that were not.

    Returns nothing if no command imported the reader: `doctor` must work without NumPy and Pillow.
    """
    reader = sys.modules.get("iiae_cli.data.pictures")
    if reader is None:
        return {}
    seen: dict[str, Any] = reader.SEEN.take()
    kinds = ", ".join(f"{kind} {count}" for kind, count in seen["left_out"].items())
    count = sum(seen["left_out"].values())
    if count:
        console.warn(f"left out {count} file{'s' * (count > 1)} of other kinds: {kinds}")
    return seen


def seconds_of(text: str) -> float:
    """Returns the seconds of `90`, `90s`, `15m`, `2h`, `1d`, `1h30m`, `H:MM:SS` or `MM:SS`."""
    clock = re.fullmatch(r"(?:(\d+):)?(\d+):(\d\d)", text)
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    match = clock or units
    if not text or match is None:
        raise IiaeError(f"--time-limit {text} is not a duration", "write 2h, 90m, 45s or 1:30:00")
    parts = [float(part or 0) for part in match.groups()]
    return sum(part * unit for part, unit in zip(parts[::-1], (1, 60, 3600, 86400), strict=False))


def shard_of(text: str | None, environment: Mapping[str, str] = os.environ) -> Part | None:
    """Parses `--shard`: `I/N`, or `auto`/`slurm` for this task of a SLURM job array."""
    if text is None:
        return None
    from iiae_cli.data.blocks import Part

    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is not None and int(match[1]) < int(match[2]):
        return Part(int(match[1]), int(match[2]))
    if text not in ("auto", "slurm"):
        raise IiaeError(
            f"--shard {text} is not I/N with 0 <= I < N",
            "write --shard 0/4, 1/4, 2/4, 3/4, or auto in a job array",
        )
    task = "SLURM_ARRAY_TASK_"
    try:
        number, lowest, count = (int(environment[task + key]) for key in ("ID", "MIN", "COUNT"))
        index, rest = divmod(number - lowest, int(environment.get(f"{task}STEP", 1)))
        if rest or not 0 <= index < count:
            raise ValueError("the array has gaps")
    except (KeyError, ValueError) as error:
        raise IiaeError(
            f"--shard {text} needs a task of an unbroken SLURM job array, with {task}ID, _MIN, "
            f"_COUNT, _STEP: {error}",
            "submit with sbatch --array=0-15, or pass --shard I/N",
        ) from error
    return Part(index, count)


def shard_output(output: Path, text: str | None, part: Part | None) -> Path:
    """Replaces `{shard}` in the output by `I-of-N`, I padded with zeros so that names sort."""
    if "{shard}" not in str(output):
        if text in ("auto", "slurm"):
            raise IiaeError(
                f"all tasks of the array would write {output}",
                "name it with {shard}: -o 'z-{shard}.h5'",
            )
        return output
    if part is None:
        raise IiaeError(f"{output} names a shard", "pass --shard I/N, or name a whole file")
    name = f"{part.index:0{len(str(part.count - 1))}d}-of-{part.count}"
    return Path(str(output).replace("{shard}", name))
