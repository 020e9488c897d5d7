"""Writes figures and sample grids into the run, to TensorBoard and to what `--log` names.

Nothing leaves the machine unless `training.log` names a service. A resumed run continues under the
id in run.json.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import save_picture
from iiae_cli.config import Config
from iiae_cli.config.presets import flatten
from iiae_cli.runs import RunDir


@dataclass(frozen=True)
class Service:
    """One destination of figures."""

    scalars: Callable[[Mapping[str, float], int], object]  # figures by name, of a step
    picture: Callable[[Image, int], object]  # a sample grid
    close: Callable[[bool], object]  # argument: whether the run is complete
    id: str = ""  # the service's own id of the run


def _tensorboard(run: RunDir, step: int) -> Service:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(run.tensorboard_folder), purge_step=step)
    return Service(
        lambda figures, step: [writer.add_scalar(*figure, step) for figure in figures.items()],
        lambda grid, step: writer.add_image("samples", np.asarray(grid), step, dataformats="HWC"),
        lambda ended: writer.close(),
    )


def _wandb(run: RunDir, config: Config, known: str | None) -> Service:
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
        raise LookupError("no API key is known: wandb login, or export WANDB_MODE=offline")
    there = wandb.init(
        id=known,
        resume="allow",
        project=os.environ.get("WANDB_PROJECT", "iiae"),
        name=run.path.name,
        dir=run.path,
        config=flatten(config.to_dict()),
        settings=wandb.Settings(console="off"),
    )
    there.define_metric("*", step_metric="step")  # resuming repeats steps; wandb's only rise
    return Service(
        lambda figures, step: there.log({**figures, "step": step}),
        lambda grid, step: there.log({"samples": wandb.Image(grid), "step": step}),
        lambda ended: there.finish(exit_code=0 if ended else 1),
        there.id,
    )


def _mlflow(run: RunDir, config: Config, known: str | None) -> Service:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri((run.path.absolute().parent / "mlruns").as_uri())
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "iiae"))
    there = mlflow.start_run(run_id=known, run_name=run.path.name)
    if known is None:
        mlflow.log_params(flatten(config.to_dict()))
    return Service(
        lambda figures, step: mlflow.log_metrics(dict(figures), step=step),
        lambda grid, step: mlflow.log_image(grid, artifact_file=f"samples/step-{step:08d}.png"),
        lambda ended: mlflow.end_run("FINISHED" if ended else "KILLED"),
        there.info.run_id,
    )


_SERVICES = {"wandb": _wandb, "mlflow": _mlflow}


class Loggers(AbstractContextManager["Loggers"]):
    """All destinations of a run's figures from `step` on; `known` ids continue runs there.

    Only the first rank has a `run` to write into; without, nothing is written. TensorBoard's errors
    end the run. A service that fails is dropped, and training goes on.
    """

    def __init__(
        self, config: Config, run: RunDir | None, known: Mapping[str, str], step: int
    ) -> None:
        self.ended = False  # whether the run is complete
        self._run, self._services, self.ids = run, dict[str, Service](), dict[str, str]()
        if run is None:
            return
        self._services["tensorboard"] = _tensorboard(run, step)
        for name in config.training.log:
            try:
                self._services[name] = _SERVICES[name](run, config, known.get(name))
            except Exception as error:  # each service has its own kinds
                hint = f"leave out --log {name}, mend it, or pip install 'iiae-cli[{name}]'"
                raise IiaeError(f"--log {name} cannot start: {error}", hint) from error
        self.ids = {name: self._services[name].id for name in config.training.log}

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl, and sends its numbers, or those of x and y, to services."""
        if self._run is None:
            return
        self._run.append_metrics({"kind": kind, "step": step, **figures})
        scalars: dict[str, float] = {}
        for name, value in figures.items():
            if isinstance(value, tuple):
                scalars |= {f"{kind}/{name}_{d}": part for d, part in zip("xy", value, strict=True)}
            elif isinstance(value, float):
                scalars[f"{kind}/{name}"] = value
        self._each(lambda service: service.scalars(scalars, step))

    def draw(self, grid: Image, step: int) -> None:
        """Writes a sample grid as a picture, and sends it to services."""
        if self._run is not None:
            save_picture(grid, self._run.samples_folder / f"step-{step:08d}.png")
        self._each(lambda service: service.picture(grid, step))

    def _each(self, call: Callable[[Service], object]) -> None:
        for name, service in [*self._services.items()]:
            try:
                call(service)
            except Exception as error:
                if not service.id:
                    raise
                del self._services[name]
                console.warn(f"--log {name} has failed, training goes on without it: {error}")

    def __exit__(self, *_: object) -> None:
        """Writes and sends what is left."""
        self._each(lambda service: service.close(self.ended))
