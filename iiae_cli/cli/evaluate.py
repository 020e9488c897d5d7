"""`iiae evaluate`: measure a run; `evaluate_run` does the work and imports what is heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from iiae_cli.cli.options import (
    DeviceOption,
    JsonFlag,
    MetricName,
    OverwriteFlag,
    RunOption,
    SplitName,
    finish,
)
from iiae_cli.common.errors import IiaeError


def command(
    run: RunOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Data file [the one that the run was trained on].")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Split to measure on.")] = "test",
    task: Annotated[
        Literal["retrieval", "zero-shot", "translation", "disentanglement", "all"] | None,
        typer.Option(
            help="What to measure [zero-shot where paired by class, else retrieval; all with --report]."
        ),
    ] = None,
    metric: Annotated[
        MetricName | None, typer.Option(help="Distance between latents [the preset's].")
    ] = None,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak", help="Measure although the backbone has seen test classes, and say so."
        ),
    ] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Exit 2 where a figure is worse (an error: above); repeatable.",
        ),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Exit 2 where a figure is above, whatever it is; repeatable."
        ),
    ] = None,
    probe_rows: Annotated[
        int, typer.Option(min=20, help="disentanglement: rows that probes see at most.")
    ] = 3000,
    shared_factor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="disentanglement: both domains hold it; repeatable."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="translation: sampled outputs per input.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of samples and probes.")] = 0,
    lpips: Annotated[
        Literal["alex", "vgg", "both", "none"],
        typer.Option(help="translation: LPIPS by these networks."),
    ] = "both",
    lpips_weights: Annotated[
        list[Path] | None,
        typer.Option(help="AlexNet's or VGG16's ImageNet weights [torch's cache]; repeatable."),
    ] = None,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge",
            help="translation: let networks trained on real pictures read class and factors.",
        ),
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Show the paper's rows of this data set beside.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write DIR/index.html: figures, plots, pictures."),
    ] = None,
    overwrite: OverwriteFlag = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 256,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Measure a run: retrieval by shared and exclusive latents beside a training-free baseline.

    Rows that are paired by class are measured zero-shot (mAP, precision at K). Translation has L1, SSIM and, where
    AlexNet's or VGG16's ImageNet weights are at hand, LPIPS. Disentanglement: which known factors can be read from each
    latent's means and samples, whether swapped latents keep what they should, and the bounds that training works on.

    \b
    Examples:
      iiae evaluate
      iiae evaluate --task disentanglement
      iiae evaluate --task disentanglement --fail-over disentanglement.latents.shared_x.leakage_mean=0.1
      iiae evaluate --run runs/sketchy-seed0 --paper
      iiae evaluate --report report && xdg-open report/index.html
      iiae evaluate --task translation --samples 10 --lpips-weights alexnet-owt-7be5be79.pth
      iiae evaluate --task translation --judge
      iiae evaluate --run runs/digits-cdcb-seed0 --task all --json | jq .retrieval.shared
      iiae evaluate --fail-under retrieval.shared.x_to_y.recall@1=0.99
    """
    from iiae_cli.cli import evaluate_run

    options = evaluate_run.EvaluateOptions(
        run=run,
        data=data,
        split=split,
        task=task,
        metric=metric,
        allow_leak=allow_leak,
        samples=samples,
        seed=seed,
        lpips=lpips,
        lpips_weights=tuple(lpips_weights or ()),
        judge=judge,
        paper=paper,
        report=report,
        overwrite=overwrite,
        fail_under=tuple(fail_under or ()),
        fail_over=tuple(fail_over or ()),
        probe_rows=probe_rows,
        shared_factors=tuple(shared_factor or ()),
        batch_size=batch_size,
        device=device,
    )
    result = evaluate_run.run(options)
    finish(result, as_json)
    if result.failures:
        raise IiaeError("; ".join(result.failures), "train longer, or lower the gate")
