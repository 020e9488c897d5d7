"""`iiae train`: train a model and leave a run directory."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iiae_cli.cli.options import (
    INPUT,
    OUTPUT,
    RUNNING,
    JsonFlag,
    OverwriteFlag,
    finish,
    seconds_of,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.signals import PREEMPT_SIGNAL, signal_of, stop_on_signals

if TYPE_CHECKING:
    from iiae_cli.config.presets import Resolved


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
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any value, dotted; repeatable."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training pairs.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs per step.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights, order, noise and dropout.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the run stands, or start it.")
    ] = False,
    config: Annotated[
        list[Path] | None,
        typer.Option(help="YAML file on top of the preset; repeatable.", rich_help_panel=INPUT),
    ] = None,
    overwrite: OverwriteFlag = False,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config", help="Show every value and its source; stop.", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_json: JsonFlag = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=RUNNING)
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp64"] | None,
        typer.Option(help="Arithmetic of the networks [auto].", rich_help_panel=RUNNING),
    ] = None,
    compile_: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Use torch.compile [auto].", rich_help_panel=RUNNING
        ),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Deterministic algorithms on GPUs.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            help="Save and stop after e.g. 2h, 90m, 1:30:00 (exit 75).", rich_help_panel=RUNNING
        ),
    ] = None,
    preempt_signal: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Save and stop at this signal, as at TERM (exit 75).",
            rich_help_panel=RUNNING,
        ),
    ] = PREEMPT_SIGNAL,
) -> None:
    """Train a model and leave a run directory.

    \b
    Presets:
      digits-cdcb     embedded digits at 32x32, about a minute on a CPU
      digits-edge     the same with outlines as y: raw pixels do not solve it
      mnist-cdcb-32   MNIST-CDCB at 32x32, minutes on a CPU
      fashion-edges   edge map and garment, the paper's objective
      pairs           your own pairs of pictures at 32x32, the paper's objective
      sketchy         the paper's networks on features, a pair of every class a step
      mnist-cdcb, facades, maps, cars   the paper's at 256x256; want a GPU
    \b
    Beyond the paper:
      features        your own features paired by class: standardised, linear paths
      sketchy-tuned   the same for sketchy, 800 steps
      pairs-plus, fashion-edges-plus   a contrastive term; pairs-plus: linear paths
      digits-cdcb-plus, mnist-cdcb-32-plus   means freed of what they should not tell

    Values are merged: preset < --config < IIAE_* environment < options < --set.
    A run that was stopped (exit 75, or 130 after Ctrl-C) is saved; the same command
    with --resume continues it and ends in the same weights.

    \b
    Examples:
      iiae train --preset digits-cdcb
      iiae train --preset mnist-cdcb-32 --data data/mnist-cdcb.h5 --seed 1
      iiae train --preset digits-edge --set objective.lambda=50
      iiae train --preset sketchy --set objective.kind=ii-mi
      iiae train --preset digits-cdcb --time-limit 2h --resume
      iiae train --preset digits-cdcb --print-config
    """
    if epochs is not None and steps is not None:
        raise IiaeError("--epochs and --steps exclude each other", "give one of them")
    values = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "precision": precision,
        "compile": compile_,
        "deterministic": deterministic,
    }
    deadline = None if time_limit is None else time.monotonic() + seconds_of(time_limit)
    resolved = _resolve(preset, config or [], values, assignments or [])
    if print_config:
        _show_config(resolved, as_json)
        return
    # Until torch is imported, for seconds, nothing has begun: __main__ ends the process at once.
    signal.signal(signal_of(preempt_signal), signal.getsignal(signal.SIGTERM))
    from iiae_cli.training import session

    with stop_on_signals(preempt_signal) as stop:
        name, chosen = Path(preset).stem, resolved.config
        options = session.TrainOptions(name, chosen, data, run, resume, overwrite, deadline)
        result = session.train(options, stop)
        if result is not None:
            finish(result, as_json)


def _resolve(
    preset: str, files: list[Path], values: Mapping[str, object], assignments: list[str]
) -> Resolved:
    """Merge preset < --config < environment < options < --set.

    Raises:
        IiaeError: unknown preset or keys, bad values.
    """
    from iiae_cli.config import presets

    given = {f"training.{key}": value for key, value in values.items() if value is not None}
    resolved = presets.resolve(
        [
            *presets.preset_layers(preset),
            *(presets.Layer(str(path), presets.flatten(presets.read_yaml(path))) for path in files),
            presets.environment_layer(),
            presets.Layer("option", given),
            presets.set_layer(assignments),
        ]
    )
    for key, value, source in resolved.rows():
        if source != "default":
            console.say(f"{key} = {json.dumps(value)} ({source})", level=1)
    return resolved


def _show_config(resolved: Resolved, as_json: bool) -> None:
    """Print every value and where it came from."""
    from iiae_cli.config.presets import key_help

    if as_json:
        values = {key: {"value": value, "source": source} for key, value, source in resolved.rows()}
        console.print_json({"schema": "iiae.config/1", "values": values})
        return
    meanings = key_help()
    rows = [
        (key, value if isinstance(value, str) else json.dumps(value), source, meanings.get(key, ""))
        for key, value, source in resolved.rows()
    ]
    console.print_table(["key", "value", "source", "meaning"], rows)
