"""`iiae encode`: encode pictures into a latent cache, continue, divide, and merge the parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iiae_cli.cli.options import (
    OUTPUT,
    RUNNING,
    DeviceOption,
    DomainName,
    JsonFlag,
    NulFlag,
    OverwriteFlag,
    ResumeFlag,
    RunOption,
    ShardOption,
    SplitOption,
    WorkersOption,
    finish,
    option,
    shard_of,
    shard_output,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing
from iiae_cli.common.signals import Stop, stop_on_signals

if TYPE_CHECKING:
    from iiae_cli.data.blocks import Part
    from iiae_cli.inference.encoding import EncodeJob
    from iiae_cli.inference.trained import LatentKind


@dataclass(frozen=True)
class Options:
    """Where the latents are written."""

    output: Path
    part: Part | None = None  # of the inputs
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Written:
    """A cache, or one part of it, as `--json` prints it."""

    path: Path
    rows: int
    domain: str
    fingerprint: str
    skipped: list[str]

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `--json` prints."""
        return {"schema": "iiae.encode/1", **vars(self), "path": str(self.path)}

    def show(self) -> None:
        """Print for people and pipes."""
        row = (self.path, self.rows, self.domain)
        console.print_table(["file", "rows", "domain"], [row], header=False)


def command(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Pictures, folders, -, .h5 or .npy.")
    ],
    output: Annotated[Path, option("The latent cache to write.", "-o", "--output")],
    domain: Annotated[DomainName | None, option("Domain of the inputs.")] = None,
    run: RunOption = None,
    split: SplitOption = "test",
    nul: NulFlag = False,
    latents: Annotated[
        Literal["shared", "exclusive", "both"], option("Which latents to keep.", panel=OUTPUT)
    ] = "both",
    logvar: Annotated[
        bool, option("Keep log-variances beside the means.", "--logvar", panel=OUTPUT)
    ] = False,
    dtype: Annotated[
        Literal["float32", "float16"] | None,
        option("Number format of the cache [float32].", panel=OUTPUT),
    ] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
    batch_size: Annotated[
        int | None, option("Rows at once [by their shape].", panel=RUNNING, min=1)
    ] = None,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    merge: Annotated[bool, option("Join what shards wrote.", "--merge", panel=RUNNING)] = False,
    resume: ResumeFlag = False,
) -> None:
    """Encode pictures into a latent cache (HDF5): shared and exclusive means, ids, labels.

    \b
    Examples:
      iiae encode imgs/ --domain y -o z.h5
      iiae encode data/digits-cdcb.h5 --split test --domain x -o x.h5
      find photos -name '*.jpg' | iiae encode - --domain y -o z.h5
      iiae encode imgs/ --domain y --shard 0/4 -o 'z-{shard}.h5'
          writes z-0-of-4.h5
      iiae encode imgs/ --domain y --shard auto -o 'z-{shard}.h5' --resume
          in a SLURM job array
      iiae encode z-*-of-4.h5 --merge -o z.h5
    """
    from iiae_cli.data.blocks import Part
    from iiae_cli.data.pictures import expand_inputs
    from iiae_cli.inference.encoding import EncodeJob
    from iiae_cli.inference.inputs import open_inputs
    from iiae_cli.inference.latents import LatentFormat
    from iiae_cli.inference.trained import open_run

    with stop_on_signals() as stop:
        paths = expand_inputs(inputs, nul=nul)
        if merge:
            for name, value in (("shard", shard), ("dtype", dtype)):
                if value is not None:
                    raise IiaeError(f"--{name} does not apply to --merge", f"leave --{name} out")
            written = merge_parts(paths, Options(output, None, resume, overwrite), stop)
        else:
            index = None if shard is None else shard_of(shard)
            place, part = shard_output(output, shard, index), index and Part(*index)
            if domain is None:
                raise IiaeError("the inputs' domain was not named", "pass --domain x or --domain y")
            loaded = open_run(run, device)
            kinds = _kinds(latents, loaded.model.exclusive_dim)
            form = LatentFormat(kinds, logvar, dtype or "float32")
            rows = open_inputs(paths, domain, loaded.info, split=split, workers=workers)
            job = EncodeJob.of(loaded, rows, domain, form, batch_size)
            written = encode(job, Options(place, part, resume, overwrite), stop)
        finish(written, as_json, written.skipped)


def _kinds(latents: str, exclusive_dim: int) -> tuple[LatentKind, ...]:
    """Returns the kinds of latents to keep, of those that the model has."""
    if latents == "shared" or (latents == "both" and not exclusive_dim):
        return ("shared",)
    if not exclusive_dim:
        raise IiaeError("this model was trained without exclusive latents", "pass --latents shared")
    return ("exclusive",) if latents == "exclusive" else ("shared", "exclusive")


def encode(job: EncodeJob, options: Options, stop: Stop) -> Written:
    """Encode all inputs of a job, or one shard of them.

    Raises:
        IiaeError: the output exists, or none of the inputs can be read.
        Interrupted: a signal came; what is encoded is saved.
    """
    from iiae_cli.data.blocks import Part, block_store
    from iiae_cli.inference.encoding import write_blocks

    output, part, resume = options.output, options.part, options.resume
    settings = job.settings()
    stop.check()
    if done := _finished(output, settings, part, resume, options.overwrite):
        return done
    numbers = (part or Part(0, 1)).of(job.total)
    if part is not None:
        positions = job.rows_of(numbers)
        range_ = f"inputs {positions.start} to {positions.stop - 1}" if positions else "no inputs"
        console.say(f"shard {part.name}: {range_} of {job.inputs.total}")
    with block_store(output, settings, resume=resume, overwrite=options.overwrite) as store:
        job.make(store, numbers, stop)
        rows, skipped = write_blocks(output, job, store, part)
    return Written(output, rows, settings["domain"], settings["model"], skipped)


def _finished(
    output: Path, settings: dict[str, Any], part: Part | None, resume: bool, overwrite: bool
) -> Written | None:
    """Returns the output that is complete already; None if it is to be made.

    Raises:
        IiaeError: something else stands in its place and must not be overwritten.
    """
    from iiae_cli.data.blocks import differences, discard
    from iiae_cli.inference.latents import Gallery

    if not resume:
        refuse_existing(output, overwrite)
    if not resume or not output.exists():
        return None
    try:
        there = Gallery(output)
        other = differences({**there.job, "shard": there.part}, {**settings, "shard": part})
        if other:
            raise IiaeError(
                f"{output} exists already, with another {', '.join(other)}",
                "choose another output, or replace it with --overwrite",
            )
    except IiaeError:
        if overwrite:
            return None
        raise
    console.say(f"{output} is complete already")
    discard(output)
    return Written(output, len(there), settings["domain"], settings["model"], there.skipped)


def merge_parts(paths: list[str], options: Options, stop: Stop) -> Written:
    """Write the cache whose shards lie in files.

    Raises:
        IiaeError: shards that are missing, doubled or of another job, or an output that exists.
    """
    from iiae_cli.inference.encoding import read_shards, write_merged

    shards, output = read_shards(paths), options.output
    settings = shards[0].job
    if done := _finished(output, settings, None, options.resume, options.overwrite):
        return done
    stop.check(f"{output} was not written; run the same command again")
    rows, skipped = write_merged(output, shards)
    return Written(output, rows, settings["domain"], settings["model"], skipped)
