"""`iiae train`: train a model and leave a run directory; `train_run` does the work and imports what is heavy."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from iiae_cli.cli.options import (
    JsonFlag,
    OverwriteFlag,
    finish,
    seconds_of,
)
from iiae_cli.common.errors import IiaeError


def command(
    preset: Annotated[str, typer.Option("--preset", help="Name of a preset, or a YAML file.")],
    data: Annotated[
        Path | None, typer.Option(help="Data file [IIAE_DATA or data, /SET.h5].")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", "--run-dir", help="Run directory [runs/PRESET-seedN]; torchrun garbles --run."
        ),
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option(help="YAML file on top of the preset; repeatable.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any value, dotted; repeatable."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training pairs.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Save and stop after e.g. 2h, 90m, 1:30:00 (exit 75).")
    ] = None,
    preempt_signal: Annotated[
        str,
        typer.Option(metavar="NAME", help="Save and stop at this signal, as at TERM (exit 75)."),
    ] = "USR2",
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs per step.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights, order, noise and dropout.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp64"] | None,
        typer.Option(help="Arithmetic of the networks [auto]."),
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile [auto].")
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic", help="Deterministic algorithms on GPUs."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the run stands, or start it.")
    ] = False,
    overwrite: OverwriteFlag = False,
    stage: Annotated[
        bool | None,
        typer.Option("--stage/--no-stage", help="Read a copy of the data in $TMPDIR [IIAE_STAGE]."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show every value and its source; stop.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a model and leave a run directory.

    \b
    Presets:
      digits-cdcb     embedded digits at 32x32, about a minute on a CPU
      digits-edge     the same with outlines as y: raw pixels do not solve it
      mnist-cdcb-32   MNIST-CDCB at 32x32, minutes on a CPU
      mnist-cdcb      the paper's 256x256 networks and hyper-parameters; wants a GPU
      facades         likewise
      maps            likewise
      cars            likewise, with a vector as shared latent
      sketchy         the paper's networks on features, one pair of every class per step
      sketchy-tuned   beyond the paper: standardised features, linear paths, 800 steps
      features        your own features paired by class: standardised, linear paths; beyond the paper
      pairs           your own pairs of pictures at 32x32, the paper's objective
      fashion-edges   edge map and garment, the paper's objective
      pairs-plus, fashion-edges-plus         with a contrastive term; pairs-plus with linear paths too; beyond the paper
      digits-cdcb-plus, mnist-cdcb-32-plus   means freed of what they should not tell; beyond the paper

    Values are merged: preset < --config < IIAE_* environment < options < --set.
    A run that was stopped (exit 75, or 130 after Ctrl-C) is saved; the same command with --resume continues it and ends
    in the same weights as one that was never stopped.

    \b
    Examples:
      iiae train --preset digits-cdcb
      iiae train --preset mnist-cdcb-32 --data data/mnist-cdcb.h5 --seed 1
      iiae train --preset digits-edge --set objective.lambda=50 --set optimizer.lr=1e-3
      iiae train --preset sketchy --set objective.kind=ii-mi
      iiae train --preset digits-cdcb --time-limit 2h --resume
      iiae train --preset digits-cdcb --print-config
    """
    from iiae_cli.common.signals import stop_on_signals

    if epochs is not None and steps is not None:
        raise IiaeError("--epochs and --steps exclude each other", "give one of them")
    deadline = None if time_limit is None else time.monotonic() + seconds_of(time_limit)
    given = {
        "training.epochs": epochs,
        "training.steps": steps,
        "training.batch_size": batch_size,
        "training.seed": seed,
        "training.device": device,
        "training.precision": precision,
        "training.compile": compile_,
        "training.deterministic": deterministic,
    }
    with stop_on_signals(preempt_signal) as stop:
        from iiae_cli.cli import train_run  # imports torch, for seconds
        from iiae_cli.data.staging import Staging

        options = train_run.TrainOptions(
            preset=preset,
            data=data,
            run=run,
            config_files=config or [],
            options={key: value for key, value in given.items() if value is not None},
            assignments=assignments or [],
            resume=resume,
            overwrite=overwrite,
            staging=Staging.from_option(stage, os.environ.get("IIAE_STAGE", "")),
        )
        if print_config:
            train_run.show_config(train_run.resolve_config(options), as_json=as_json)
            return
        with options.staging:
            result = train_run.run(options, stop, deadline)
    if result is not None:
        finish(result, as_json)
