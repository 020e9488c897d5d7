"""What options of several commands have in common: choices, annotations with one help text each, and parsers."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from iiae_cli.errors import IiaeError


class DomainName(StrEnum):
    """A domain."""

    x = "x"
    y = "y"


class MetricName(StrEnum):
    """A distance."""

    euclidean = "euclidean"
    cosine = "cosine"


class LatentName(StrEnum):
    """A kind of latent."""

    shared = "shared"
    exclusive = "exclusive"


class LatentsName(StrEnum):
    """Which latents to keep."""

    shared = "shared"
    exclusive = "exclusive"
    both = "both"


class SplitName(StrEnum):
    """A split of a prepared file."""

    train = "train"
    valid = "valid"
    test = "test"


class BackendName(StrEnum):
    """Who computes distances."""

    sklearn = "sklearn"
    torch = "torch"


class PrecisionName(StrEnum):
    """Arithmetic of the networks."""

    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


class DtypeName(StrEnum):
    """Number format of a latent cache."""

    float32 = "float32"
    float16 = "float16"


class LpipsName(StrEnum):
    """Networks of LPIPS."""

    alex = "alex"
    vgg = "vgg"
    both = "both"
    none = "none"


class TaskName(StrEnum):
    """What to measure."""

    retrieval = "retrieval"
    zero_shot = "zero-shot"
    translation = "translation"
    disentanglement = "disentanglement"
    all = "all"


# Options that several commands share, each with one help text.
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="Run directory [IIAE_RUN, else runs/latest].")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Threads that decode pictures.")]
SplitOption = Annotated[SplitName, typer.Option("--split", help="Split, where an input is a prepared .h5.")]
NulFlag = Annotated[bool, typer.Option("-0", help="Paths on standard input are NUL-separated.")]


def seconds_of(text: str) -> float:
    """A duration: `90` or `90s`, `15m`, `2h`, `1d`, `1h30m`, `H:MM:SS` or `MM:SS`.

    Raises:
        IiaeError: none of these.
    """
    if re.fullmatch(r"\d+(:\d\d){1,2}", text):
        total = 0
        for part in text.split(":"):
            total = 60 * total + int(part)
        return float(total)
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if not text or match is None:
        raise IiaeError(f"--time-limit {text} is no duration", "write 2h, 90m, 45s or 1:30:00")
    days, hours, minutes, seconds = (float(part) if part else 0.0 for part in match.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def shard_of(text: str) -> tuple[int, int]:
    """`I/N` with 0 ≤ I < N.

    Raises:
        IiaeError: anything else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise IiaeError(f"--shard {text} is not I/N with 0 <= I < N", "write --shard 0/4, 1/4, 2/4, 3/4")
    return int(match[1]), int(match[2])
