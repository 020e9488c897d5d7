"""`iiae encode`: encodes pictures into a latent cache, in one call or in mergeable shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import (
    DomainName,
    SplitName,
    finish,
    of_output,
    of_running,
    option,
    shard_of,
    shard_output,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, stop_on_signals
from iiae_cli.common.files import refuse_existing

if TYPE_CHECKING:
    from iiae_cli.data.blocks import Part
    from iiae_cli.inference.latents import LatentCache


def command(
    inputs: list[str] = typer.Argument(
        ..., metavar="INPUT", help="Pictures, folders, -, .h5 or .npy."
    ),
    output: Path = option(..., "The latent cache to write.", "-o", "--output"),
    domain: DomainName | None = option(None, "Domain of the inputs."),
    run: Path | None = shared.RUN,
    split: SplitName = shared.SPLIT,
    nul: bool = shared.NUL,
    latents: Literal["shared", "exclusive", "both"] = of_output("both", "Which latents to keep."),
    logvar: bool = of_output(False, "Keep log-variances beside the means.", "--logvar"),
    dtype: Literal["float32", "float16"] = of_output("float32", "Number format of the cache."),
    overwrite: bool = shared.OVERWRITE,
    as_json: bool = shared.JSON,
    batch_size: int | None = of_running(None, "Rows per batch [by their size].", min=1),
    workers: int = shared.WORKERS,
    device: str = shared.DEVICE,
    backbone_weights: str | None = shared.BACKBONE_WEIGHTS,
    shard: str | None = shared.SHARD,
    merge: bool = shared.MERGE,
    resume: bool = shared.RESUME,
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
    from iiae_cli.data.blocks import Part, block_store
    from iiae_cli.data.names import expand_inputs
    from iiae_cli.inference import latents as caches
    from iiae_cli.inference.api import open_run
    from iiae_cli.inference.trained import KINDS

    paths, part = expand_inputs(inputs, nul=nul), shard_of(shard)
    if merge and part is not None:
        raise IiaeError("--shard does not apply to --merge", "leave --shard out")
    with stop_on_signals() as stop:
        output = shard_output(output, shard, part)
        if merge:
            shards = caches.read_shards(paths)
            cache = _finished(output, shards[0].job, None, resume, overwrite)
            cache = cache or caches.merge(output, shards)
        else:
            if domain is None:
                raise IiaeError("the inputs' domain was not named", "pass --domain x or --domain y")
            model = open_run(run, device, backbone_weights)
            if latents == "exclusive" and not model.loaded.model.exclusive_dim:
                raise IiaeError(
                    "this model was trained without exclusive latents", "pass --latents shared"
                )
            form = caches.LatentFormat(KINDS if latents == "both" else (latents,), logvar, dtype)
            rows = model.inputs(paths, domain, split=split, workers=workers)
            job = caches.EncodeJob.of(model.loaded, rows, domain, form, batch_size)
            settings, numbers = job.settings(), (part or Part(0, 1)).of(job.total)
            if part is not None:
                span = job.rows_of(numbers)
                which = f"inputs {span.start} to {span.stop - 1}" if span else "no inputs"
                console.say(f"shard {part.name}: {which} of {rows.total}")
            cache = _finished(output, settings, part, resume, overwrite)
            if cache is None:
                with block_store(output, settings, resume=resume, overwrite=overwrite) as store:
                    job.make(store, numbers, stop)
                    cache = job.write(output, store, part)
    result = {
        "schema": "iiae.encode/1",
        "path": str(output),
        "rows": len(cache.ids),
        "domain": cache.domain,
        "fingerprint": cache.fingerprint,
        "skipped": cache.skipped,
    }
    row = (output, len(cache.ids), cache.domain)
    show = partial(console.print_table, ["file", "rows", "domain"], [row], header=False)
    finish(result, show, as_json, cache.skipped)


def _finished(
    output: Path, settings: dict[str, Any], part: Part | None, resume: bool, overwrite: bool
) -> LatentCache | None:
    """Returns an output that is already complete; None if it is to be made.

    Raises IiaeError if something else is in its place and must not be overwritten.
    """
    from iiae_cli.data.blocks import differences, discard
    from iiae_cli.data.hdf5 import SIGNATURE
    from iiae_cli.inference.latents import LatentCache

    if overwrite or not resume:
        refuse_existing(output, overwrite, SIGNATURE)
    if overwrite or not output.exists():
        return None
    there = LatentCache.read(output)
    other = differences({**there.job, "shard": there.part}, {**settings, "shard": part})
    if other:
        raise IiaeError(
            f"{output} already exists, with another {', '.join(other)}",
            "choose another output, or replace it with --overwrite",
        )
    console.say(f"{output} is already complete")
    discard(output)
    return there
