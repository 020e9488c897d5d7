"""`iiae train`, which trains a model and leaves a run directory, and `iiae presets`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import finish, of_input, of_output, of_running, option, seconds_of
from iiae_cli.common import console
from iiae_cli.common.environment import preset_folder, preset_names, run_folder
from iiae_cli.common.errors import IiaeError, stop_on_signals

if TYPE_CHECKING:
    from iiae_cli.config.presets import Resolved


def command(
    named: str | None = typer.Argument(
        None,
        metavar="PRESET",
        help="Name of a preset, or a YAML file [--resume: the run's own].",
        autocompletion=lambda incomplete: preset_names(),
    ),
    preset: str | None = option(
        None, "The same as PRESET.", autocompletion=lambda incomplete: preset_names()
    ),
    data: Path | None = option(None, "Data file [SET.h5 in IIAE_DATA or data]."),
    run: Path | None = option(
        None,
        "Run directory [runs/PRESET-seedN]; --run-dir for torchrun.",
        *("--run", "--run-dir"),
        autocompletion=shared.complete_runs,
    ),
    assignments: list[str] | None = option(
        None,
        "Set any value of the configuration; repeatable.",
        "--set",
        metavar="KEY=VALUE",
        autocompletion=shared.complete_keys,
    ),
    epochs: int | None = option(None, "Passes over the training pairs.", min=1),
    steps: int | None = option(None, "Optimiser steps.", min=1),
    batch_size: int | None = option(None, "Pairs per step.", min=2),
    lr: float | None = option(None, "Adam's learning rate.", metavar="X"),
    seed: int | None = option(None, "Seed of weights, order, noise and dropout.", min=0),
    resume: bool = option(False, "Continue the run, or start it.", "--resume"),
    config: list[Path] | None = of_input(None, "YAML file on top of the preset; repeatable."),
    overwrite: bool = shared.OVERWRITE,
    print_config: bool = of_output(
        False, "Show every value and its source, then stop.", "--print-config"
    ),
    as_json: bool = shared.JSON,
    log: list[str] | None = of_output(
        None, "Log figures there, too; repeatable.", metavar="wandb|mlflow"
    ),
    device: str | None = of_running(None, "auto, cpu, cuda, cuda:N or mps."),
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp64"] | None = of_running(
        None, "Number format of the networks [auto]."
    ),
    compile_: bool | None = of_running(None, "Use torch.compile [auto].", "--compile/--no-compile"),
    deterministic: bool | None = of_running(
        None, "Deterministic GPU algorithms.", "--deterministic/--no-deterministic"
    ),
    time_limit: str | None = of_running(
        None, "Save and stop after e.g. 2h, 90m, 1:30:00 (exit 75)."
    ),
) -> None:
    """Train a model and leave a run directory. `iiae presets` lists what to start from.

    Values are merged: preset < --config < IIAE_* environment < options < --set.
    A run that was stopped (exit 75, or 130 after Ctrl-C) is saved; the same command
    with --resume continues it and ends in the same weights; so does --run with
    --resume alone, by the configuration in the run.

    \b
    Examples:
      iiae train digits-cdcb
      iiae train --preset mnist-cdcb-32 --data data/mnist-cdcb.h5 --seed 1
      iiae train --preset digits-edge --set objective.lambda=50
      iiae train --preset sketchy --set objective.kind=ii-mi
      iiae train --preset digits-cdcb --time-limit 2h --resume
      iiae train --run runs/digits-cdcb-seed0 --resume
      iiae train --preset digits-cdcb --print-config
    """
    if named is not None and preset is not None:
        raise IiaeError(f"two presets are named: {named} and {preset}", "leave one of them out")
    preset = named or preset
    if epochs is not None and steps is not None:
        raise IiaeError("--epochs and --steps exclude each other", "give one of them")
    values: dict[str, object] = {"epochs": epochs, "steps": steps, "batch_size": batch_size}
    values |= {"seed": seed, "device": device, "precision": precision}
    values |= {"compile": compile_, "deterministic": deterministic, "log": log or None}
    given = {f"training.{key}": value for key, value in values.items()} | {"optimizer.lr": lr}
    limit = None if time_limit is None else time.monotonic() + seconds_of(time_limit)
    name = None if preset is None else Path(preset).stem
    if preset is None:
        run = _begun_run(run, resume)
        preset = str(run / "config.yaml")
    resolved = _resolve(preset, config or [], given, assignments or [])
    if print_config:
        _show_config(resolved, as_json)
        return
    from iiae_cli.training import session

    with stop_on_signals() as stop:
        stop.limit = limit
        figures = session.train(
            *(resolved.config, stop),
            preset=name,
            data=data,
            run=run,
            resume=resume,
            overwrite=overwrite,
        )
        if figures is not None:
            finish({"schema": "iiae.train/1", **figures}, lambda: _show(figures), as_json)


def _show(figures: dict[str, Any]) -> None:
    rows = [(key.replace("_", " "), figures[key]) for key in ("run", "steps", "kept_step")]
    for key, name in (("shared_recall", "Recall@1"), ("shared_map", "mAP@all")):
        values = (figures["validation"] or {}).get(key, ())
        for direction, value in zip(("x→y", "y→x"), values, strict=False):
            rows.append((f"validation {name} {direction}", value))
    rows.append(("seconds", round(figures["seconds"], 1)))
    rows.append(("fingerprint", figures["fingerprint"]))
    console.print_table(["", figures["run"]], rows, header=False)


def _begun_run(run: Path | None, resume: bool) -> Path:
    """Returns the run to resume by its own configuration, if no preset is named."""
    if not resume:
        raise IiaeError(
            "no preset was named",
            "iiae train digits-cdcb (iiae presets lists others); to continue a run: "
            "iiae train --run RUN --resume",
        )
    folder, origin = run_folder(run)
    if not (folder / "config.yaml").exists():
        raise IiaeError(
            f"there is no run to resume in {folder} ({origin})",
            f"start it: iiae train PRESET --run {folder} (iiae presets lists them)",
        )
    return folder if run else folder.resolve()  # `latest` may change


def _resolve(
    preset: str, files: list[Path], values: Mapping[str, object], assignments: list[str]
) -> Resolved:
    from iiae_cli.config import presets

    given = {key: value for key, value in values.items() if value is not None}
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


def presets(as_json: bool = shared.JSON) -> None:
    """List what `iiae train` can start from: name, data set, rough time, purpose.

    `iiae prepare` writes the data set; embedded sets are prepared when needed. Times are for two
    CPU cores, and estimates for an H200 if a GPU is needed.

    \b
    Examples:
      iiae presets
      iiae presets | cut -f1
      iiae presets --json | jq -r '.presets[] | select(.data == "pairs").name'
    """
    from iiae_cli.config.presets import preset_layers, read_yaml, resolve

    listed = []
    for name in preset_names():
        config = resolve(preset_layers(name)).config
        time_taken = read_yaml(preset_folder() / f"{name}.yaml").get("time", "")
        about = {"name": name, "data": config.data.set, "time": time_taken}
        listed.append({**about, "description": config.description})
    rows = [tuple(preset.values()) for preset in listed]
    show = partial(console.print_table, ["preset", "data", "time", "what it is for"], rows)
    finish({"schema": "iiae.presets/1", "presets": listed}, show, as_json)
