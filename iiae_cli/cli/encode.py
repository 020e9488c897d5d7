"""`iiae encode`: encode pictures into a latent cache; `encode_run` does the work and imports what
is heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from iiae_cli.cli.options import (
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


def command(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Pictures, folders, -, .h5 or .npy.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The latent cache to write.")],
    domain: Annotated[DomainName | None, typer.Option(help="Domain of the inputs.")] = None,
    run: RunOption = None,
    latents: Annotated[
        Literal["shared", "exclusive", "both"], typer.Option(help="Which latents to keep.")
    ] = "both",
    logvar: Annotated[
        bool, typer.Option("--logvar", help="Keep log-variances beside the means.")
    ] = False,
    split: SplitOption = "test",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows at once [by their shape].")
    ] = None,
    workers: WorkersOption = 2,
    dtype: Annotated[
        Literal["float32", "float16"] | None,
        typer.Option(help="Number format of the cache [float32; --merge: the caches' own]."),
    ] = None,
    shard: ShardOption = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the caches of shards.")] = False,
    resume: ResumeFlag = False,
    device: DeviceOption = "auto",
    nul: NulFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Encode pictures into a latent cache (HDF5): shared and exclusive means, ids, labels.

    \b
    Examples:
      iiae encode imgs/ --domain y -o z.h5
      iiae encode data/digits-cdcb.h5 --split test --domain x -o x.h5
      find photos -name '*.jpg' | iiae encode - --domain y -o z.h5
      iiae encode imgs/ --domain y --shard 0/4 -o 'z-{shard}.h5'   (z-0-of-4.h5)
      iiae encode imgs/ --domain y --shard auto -o 'z-{shard}.h5' --resume
      iiae encode z-*-of-4.h5 --merge -o z.h5
    """
    from iiae_cli.common.signals import stop_on_signals

    part = None if shard is None else shard_of(shard)
    output = shard_output(output, shard, part)
    with stop_on_signals() as stop:
        from iiae_cli.cli import encode_run  # imports torch, for seconds

        options = encode_run.EncodeOptions(
            output=output,
            domain=domain,
            run=run,
            latents=latents,
            logvar=logvar,
            split=split,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            shard=part,
            device=device,
            merge=merge,
            nul=nul,
            overwrite=overwrite,
            resume=resume,
        )
        stop.check()
        result = encode_run.run(inputs, options, stop)
        finish(result, as_json, result.skipped)
