"""`iiae translate`: translate pictures to the other domain; `translate_run` does the work and
imports what is heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iiae_cli.cli.options import (
    DeviceOption,
    DomainName,
    JsonFlag,
    NulFlag,
    OverwriteFlag,
    RunOption,
    SplitOption,
    WorkersOption,
    finish,
)


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Pictures, folders, -, or a prepared .h5."),
    ],
    source: Annotated[DomainName, typer.Option("--from", help="Domain of the inputs.")],
    target: Annotated[
        DomainName | None, typer.Option("--to", help="Domain of the outputs [the other one].")
    ] = None,
    run: RunOption = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Outputs per input, exclusive latents sampled [3; none beside guided ones]."
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Take the exclusive latent of this picture; repeatable."),
    ] = None,
    guided: Annotated[
        bool,
        typer.Option("--guided", help="Take each input's partner's; inputs of a prepared file."),
    ] = False,
    interpolate: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="N outputs from the first to the second of two references."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for single pictures.")
    ] = None,
    grid: Annotated[Path | None, typer.Option(help="Write one labelled picture of all.")] = None,
    split: SplitOption = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many inputs.")] = None,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    nul: NulFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Translate pictures to the other domain, or make visual analogies within one.

    The shared latent comes from the input; the exclusive one is sampled, or taken from --reference
    pictures of the output's domain, or from each input's partner. Asked for together, they stand
    side by side.

    \b
    Examples:
      iiae translate query.png --from x --grid grid.png iiae translate imgs/ --from x --reference
      red.png -o out/ iiae translate query.png --from y --to y --reference red.png --grid
      analogy.png iiae translate query.png --from x --reference red.png --reference blue.png
      --interpolate 7 --grid line.png iiae translate data/digits-cdcb.h5 --from x --limit 8
      --samples 3 --guided --grid table1.png
    """
    from iiae_cli.cli import translate_run

    options = translate_run.TranslateOptions(
        source=source,
        target=target,
        run=run,
        samples=samples,
        guided=guided,
        references=tuple(reference or ()),
        interpolate=interpolate,
        seed=seed,
        output=output,
        grid=grid,
        split=split,
        limit=limit,
        workers=workers,
        device=device,
        nul=nul,
        overwrite=overwrite,
    )
    result = translate_run.run(inputs, options)
    finish(result, as_json, result.skipped)
