"""`iiae retrieve`: find the gallery's nearest pictures; `retrieve_run` does the work and imports
what is heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from iiae_cli.cli.options import (
    DeviceOption,
    DomainName,
    JsonFlag,
    MetricName,
    NulFlag,
    OverwriteFlag,
    RunOption,
    SplitOption,
    WorkersOption,
    finish,
)


def command(
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY...", help="Pictures, folders, -, .h5 or .npy.")
    ],
    index: Annotated[
        Path | None,
        typer.Option(
            help="Gallery: a latent cache [IIAE_INDEX, the only one here, else RUN/gallery.h5]."
        ),
    ] = None,
    run: RunOption = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbours per query.")] = 5,
    domain: Annotated[
        DomainName | None, typer.Option(help="The queries' [the other than the gallery's].")
    ] = None,
    metric: Annotated[MetricName | None, typer.Option(help="Distance [the preset's].")] = None,
    latents: Annotated[
        Literal["shared", "exclusive"], typer.Option(help="Which latents are compared.")
    ] = "shared",
    backend: Annotated[
        Literal["auto", "sklearn", "torch", "faiss"],
        typer.Option(help="Who searches; neighbours are the same [auto: by size]."),
    ] = "auto",
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Many queries, large gallery: a faiss index beside it, recall measured.",
        ),
    ] = False,
    montage: Annotated[
        Path | None, typer.Option(help="Write a picture of queries and neighbours.")
    ] = None,
    split: SplitOption = "test",
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    nul: NulFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Find the gallery's nearest pictures. In a pipe: query, rank, id, distance[, label],
    tab-separated.

    \b
    Examples:
      iiae retrieve query.png --k 5
      iiae retrieve query.png --index z.h5 --montage hits.png
      find queries -name '*.png' | iiae retrieve - --index z.h5 --k 10 | cut -f1,3 > hits.tsv
      iiae retrieve x.h5 --index z.h5 --json | jq -r '.results[].neighbours[0].id'
      iiae retrieve x.h5 --index million.h5 --approximate > hits.tsv
    """
    from iiae_cli.cli import retrieve_run

    options = retrieve_run.RetrieveOptions(
        index=index,
        run=run,
        k=k,
        domain=domain,
        metric=metric,
        latents=latents,
        backend=backend,
        approximate=approximate,
        montage=montage,
        split=split,
        workers=workers,
        device=device,
        nul=nul,
        overwrite=overwrite,
    )
    result = retrieve_run.run(queries, options)
    finish(result, as_json, result.skipped)
