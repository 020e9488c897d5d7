"""`iiae encode`: encode pictures into a latent cache, continue, divide, and merge the parts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import chain
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
    shard_of,
    shard_output,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing
from iiae_cli.common.signals import Stop, stop_on_signals

if TYPE_CHECKING:
    from iiae_cli.inference.encoding import EncodeJob


@dataclass(frozen=True)
class Options:
    """What the command line says; the fields are the options of `command`."""

    inputs: list[str]
    output: Path
    domain: DomainName | None = None
    run: Path | None = None
    latents: Literal["shared", "exclusive", "both"] = "both"
    logvar: bool = False
    split: str = "test"
    batch_size: int | None = None
    workers: int = 2
    dtype: Literal["float32", "float16"] | None = None
    shard: str | None = None
    merge: bool = False
    resume: bool = False
    device: str = "auto"
    nul: bool = False
    overwrite: bool = False


@dataclass
class Written:
    """A cache, or one part of it, as `--json` prints it."""

    path: Path
    rows: int
    domain: str
    fingerprint: str
    skipped: list[str] = field(default_factory=list)

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
    output: Annotated[Path, typer.Option("-o", "--output", help="The latent cache to write.")],
    domain: Annotated[DomainName | None, typer.Option(help="Domain of the inputs.")] = None,
    run: RunOption = None,
    split: SplitOption = "test",
    nul: NulFlag = False,
    latents: Annotated[
        Literal["shared", "exclusive", "both"],
        typer.Option(help="Which latents to keep.", rich_help_panel=OUTPUT),
    ] = "both",
    logvar: Annotated[
        bool,
        typer.Option(
            "--logvar", help="Keep log-variances beside the means.", rich_help_panel=OUTPUT
        ),
    ] = False,
    dtype: Annotated[
        Literal["float32", "float16"] | None,
        typer.Option(help="Number format of the cache [float32].", rich_help_panel=OUTPUT),
    ] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows at once [by their shape].", rich_help_panel=RUNNING),
    ] = None,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Join what shards wrote.", rich_help_panel=RUNNING),
    ] = False,
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
    given = dict(locals())
    del given["as_json"]
    with stop_on_signals() as stop:
        options = Options(**given)
        written = merge_parts(options, stop) if merge else encode(options, stop)
        for line in written.skipped:
            console.warn(f"skipped {line}")
        finish(written, as_json, written.skipped)


def encode(options: Options, stop: Stop) -> Written:
    """Encode all inputs, or one shard of them.

    Raises:
        IiaeError: no model, no input, an output that exists, or inputs of another shape.
        Interrupted: a signal came; what is encoded is saved.
    """
    from iiae_cli.data.blocks import Part, block_store, write_part
    from iiae_cli.inference.encoding import texts_of, write_blocks

    shard = None if options.shard is None else shard_of(options.shard)
    output = shard_output(options.output, options.shard, shard)
    job = _plan(options)
    stop.check()
    settings, part = job.settings(), Part(*(shard or (0, 1)))
    if options.resume and (done := _finished(options, output, settings, shard)):
        return done
    refuse_existing(output, options.overwrite)
    numbers = part.of(job.total)
    rows = job.rows_of(numbers)
    if shard is not None:
        range_ = f"inputs {rows.start} to {rows.stop - 1}" if len(rows) else "no inputs"
        console.say(f"shard {part.name}: {range_} of {job.inputs.total}")
    with (
        block_store(output, settings, resume=options.resume, overwrite=options.overwrite) as store,
        console.progress("encoding", len(rows), "inputs") as bar,
    ):
        if len(store):
            done_rows = len(rows) - sum(
                len(job.rows_of(range(n, n + 1))) for n in store.missing(numbers)
            )
            console.say(f"resuming {output} at input {done_rows} of {len(rows)}")
            bar.start_at(done_rows)
        job.make(store, numbers, stop=stop, advance=bar.update)
        if shard is None:
            texts = write_blocks(output, settings, lambda: map(store.read, numbers), store.folder)
        else:
            texts = texts_of(map(store.read, numbers))
            about = {"rows": len(texts["ids"]), "skipped": texts["skipped"]}
            write_part(output, store, part, job.total, about)
    return _written(output, settings, len(texts["ids"]), texts["skipped"])


def _plan(options: Options) -> EncodeJob:
    """Returns the job, before any row is read."""
    from iiae_cli.builders import choose_device
    from iiae_cli.common.files import run_folder
    from iiae_cli.data.pictures import expand_inputs
    from iiae_cli.inference.encoding import EncodeJob, batch_size_for
    from iiae_cli.inference.inputs import open_inputs
    from iiae_cli.inference.latents import LatentCache, LatentFormat
    from iiae_cli.inference.trained import Encoded, LatentKind, TrainedModel
    from iiae_cli.runs.directory import RunDir
    from iiae_cli.runs.weights import load_model

    paths, domain = expand_inputs(options.inputs, nul=options.nul), options.domain
    if domain is None:
        raise IiaeError("the inputs' domain was not named", "pass --domain x or --domain y")
    folder, chosen = run_folder(options.run)
    loaded = load_model(RunDir(folder), choose_device(options.device))
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen})")
    kinds: tuple[LatentKind, ...] = ("shared", "exclusive")
    if options.latents != "both":
        kinds = (options.latents,)
    if not loaded.model.exclusive_dim:
        if options.latents == "exclusive":
            raise IiaeError(
                "this model was trained without exclusive latents", "pass --latents shared"
            )
        kinds = ("shared",)
    shape = loaded.info.shape_x if domain == "x" else loaded.info.shape_y
    inputs = open_inputs(paths, domain, shape, split=options.split, workers=options.workers)
    preset = loaded.details.get("preset") or ""
    head = LatentCache(
        Encoded(),
        [],
        None,
        domain,
        loaded.fingerprint,
        loaded.model.shared_shape,
        preset,
        loaded.metric,
        inputs.source,
    ).head()
    batch_size = options.batch_size or batch_size_for(loaded.size or shape)
    form = LatentFormat(kinds, options.logvar, options.dtype or "float32")
    return EncodeJob(TrainedModel.of(loaded), domain, inputs, form, batch_size, head)


def _finished(
    options: Options, output: Path, settings: dict[str, Any], shard: tuple[int, int] | None
) -> Written | None:
    """Returns the output that is complete already; None if it is to be made.

    Raises:
        IiaeError: something else stands in its place and must not be overwritten.
    """
    from iiae_cli.data.blocks import discard, part_of
    from iiae_cli.inference.latents import Gallery

    if not output.exists():
        return None
    try:
        if shard is None:
            gallery = Gallery(output)
            job, skipped = gallery.told()
            rows = len(gallery)
        else:
            part = part_of(output)
            job, rows = part.job, int(part.about["rows"])
            skipped = list(part.about["skipped"])
            if (part.part.index, part.part.count) != shard:
                job["shard"] = part.part.name
    except IiaeError:
        if options.overwrite:
            return None
        raise
    settings = json.loads(json.dumps(settings))
    other = [name for name in {*job, *settings} if job.get(name) != settings.get(name)]
    if other and not options.overwrite:
        raise IiaeError(
            f"{output} exists already, with another {', '.join(sorted(other))}",
            "pass --overwrite to replace it, or choose another output",
        )
    if other:
        return None
    console.say(f"{output} is complete already")
    discard(output)
    return _written(output, settings, rows, skipped)


def merge_parts(options: Options, stop: Stop) -> Written:
    """Write the cache whose shards lie in files.

    Raises:
        IiaeError: shards that are missing, doubled or of another job, or an output that exists.
    """
    from iiae_cli.data.blocks import Arrays, block_store, read_parts
    from iiae_cli.data.pictures import expand_inputs
    from iiae_cli.inference.encoding import write_blocks

    for name in ("shard", "dtype"):
        if getattr(options, name) is not None:
            raise IiaeError(f"--{name} does not apply to --merge", f"leave --{name} out")
    paths = [Path(path) for path in expand_inputs(options.inputs, nul=options.nul)]
    parts = read_parts(paths, "iiae encode …")
    settings = parts[0].job
    if options.resume and (done := _finished(options, options.output, settings, None)):
        return done
    refuse_existing(options.output, options.overwrite)

    def blocks() -> chain[Arrays]:
        stop.check(f"{options.output} was not written; run the same command again")
        return chain.from_iterable(part.blocks() for part in parts)

    with block_store(options.output, {"merge": True}, resume=True) as store:
        texts = write_blocks(options.output, settings, blocks, store.folder)
    return _written(options.output, settings, len(texts["ids"]), texts["skipped"])


def _written(path: Path, settings: dict[str, Any], rows: int, skipped: list[str]) -> Written:
    return Written(path, rows, settings["domain"], settings["model"], skipped)
