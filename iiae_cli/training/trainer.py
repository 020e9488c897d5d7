"""One model in training: builds, fits, validates, saves and shows it.

With `selection.refit` a run trains twice: first without the held-out rows, which decide the number
of steps, then on all rows. In files the second training's steps follow the first's (`offset`); the
schedule, the order of rows and the noise count them from zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from iiae_cli import builders
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, Interrupted, Stop
from iiae_cli.common.files import reading, sync_file, writing
from iiae_cli.config import Config
from iiae_cli.data.batches import Augmentation
from iiae_cli.extensions.encoders import hold_linear_paths
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model.objective import kl_annealing
from iiae_cli.report.grids import sample_panel
from iiae_cli.runs import HINT, Checkpoint, RunDir
from iiae_cli.training.data import TrainingData, take_statistics
from iiae_cli.training.distributed import Share, World
from iiae_cli.training.loggers import Loggers
from iiae_cli.training.step import Feed, Networks, Step, adam_tensors, added, restore_adam
from iiae_cli.training.validation import Keeper, Progress, Validation, as_text

_SHOWN = {  # in the progress bar: name, and the terms shown
    "loss": ("loss",),
    "reconstruction": ("reconstruction_x", "reconstruction_y"),
    "KL(z^s)": ("kl_shared_prior",),
    "KL(z^x, z^y)": ("kl_exclusive_x", "kl_exclusive_y"),
}


class Trainer:
    """Trains the model of a run.

    `config` has precision and compilation chosen. `details` go into the header of the kept weights.
    `stop` is checked after every step and before every batch of a validation.
    """

    def __init__(
        self,
        config: Config,
        data: TrainingData,
        run: RunDir,
        device: torch.device,
        details: dict[str, Any],
        world: World,
        stop: Stop,
    ) -> None:
        self.config, self.data, self.run, self.device = config, data, run, device
        self.world, self.stop, self.details = world, stop, details
        self.size = builders.picture_size(config, data.info)
        self.augmentation = Augmentation(**config.augment.model_dump())
        if self.augmentation.active and self.size is None:
            raise IiaeError("augmentation is for pictures, not features", "leave augment.* at 0")
        self._build()
        training, per_epoch = config.training, self.order.steps_per_epoch
        self.total_steps = training.steps or (training.epochs or 1) * per_epoch
        self.validate_every = training.validate_every or per_epoch
        self.learning_rate = builders.build_schedule(config, self.total_steps)
        self.step = self.offset = 0  # steps done in this training, and in those before
        self.running: dict[str, Tensor] = {}  # sums of loss terms since the last log line
        self.deadline: float | None = None  # `time.monotonic()` at which to stop
        self._loggers: Loggers | None = None  # on the first rank
        self.keeper = Keeper(config, data, run, details)
        self._grid_pairs = None
        if not data.by_class and not data.info.is_features and training.samples:
            pairs = data.validation or data.train
            self._grid_pairs = pairs.take_pairs(np.arange(min(training.samples, pairs.pair_count)))

    def _build(self) -> None:
        training = self.config.training
        torch.manual_seed(training.seed)
        model = builders.build_model(self.config, self.data.info)
        take_statistics(model, self.data, self.config)
        if training.precision == "fp64":
            model.double()
        self.model = builders.place(model, self.device)
        self.trained = TrainedModel(self.model, self.size, self.device, self.stop)
        self.order = self.data.order(training.batch_size, training.seed)
        self.share = Share(self.world, self.order.batch_size)
        self.optimizer = builders.build_optimizer(self.config, self.model)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continues from the run's newest checkpoint."""
        with reading(self.run.checkpoints.path(checkpoint.step), HINT):
            memory = self.keeper.memory = Progress(**checkpoint.progress)
            if memory.refit_steps is not None:
                self._enter_refit(memory.refit_steps, held=memory.held)
            self.model.load_state_dict(checkpoint.model)
            restore_adam(self.model, self.optimizer, checkpoint.optimizer)
        self.running = {name: sums.to(self.device) for name, sums in checkpoint.running.items()}
        self.step = checkpoint.step - self.offset
        if self.world.first:
            self.run.checkpoints.prune()
            self.run.truncate_metrics(checkpoint.step, validated=not memory.owed)

    @property
    def steps_done(self) -> int:
        """Steps of both trainings."""
        return self.offset + self.step

    @property
    def finished(self) -> bool:
        """Whether every step and the last validation are done."""
        memory = self.keeper.memory
        if memory.owed or self.keeper.wants_refit:
            return False
        return self.step >= (memory.refit_steps or self.total_steps) or self.keeper.enough

    # ---- the loop

    def train(self, loggers: Loggers | None) -> bool:
        """Trains to the end, or to the first step after a stop; returns whether it is the end."""
        self._loggers, ended = loggers, True
        if self.keeper.memory.refit_steps is None:
            ended = self._fit("training", self.total_steps, self.validate_every)
            if ended and self.keeper.wants_refit:
                kept = self.keeper.memory.kept_step
                self._enter_refit(kept or self.total_steps, held=kept == 0)
                self.checkpoint()
        if ended and (again := self.keeper.memory.refit_steps):
            ended = self._fit("training again on all rows", again, again)
        if self.world.first:
            whole = TrainedModel(self.model, self.size, self.device)  # no stop interrupts it
            self.keeper.keep_last(whole, self.step, self._epoch, ended=ended)
        return ended

    def _enter_refit(self, steps: int, *, held: bool) -> None:
        means = ", the shared means held where they began" if held else ""
        console.say(f"training again on all rows, {steps} steps{means}")
        self.keeper.enter_refit(steps, held)
        self.data.use_all()
        self._build()
        if held:
            hold_linear_paths(self.model)
        self.step, self.offset, self.running = 0, self.total_steps, {}

    def _fit(self, label: str, steps: int, validate_every: int) -> bool:
        """Trains from `self.step` to `steps`; returns False if stopped before."""
        order, rows = self.order, self.share.rows
        with (
            Feed(self.data, lambda step: order.indices(step)[rows], self.size, self.device) as feed,
            console.progress(label, steps, items=(order.batch_size, "pairs")) as self._bar,
        ):
            self._bar.start_at(self.step)
            self._started = time.monotonic(), self.step
            take_step, log_every = self._stepper(feed), self.config.training.log_every
            if self.keeper.memory.owed and not self._settle(steps):
                return False
            while self.step < steps and not self.keeper.enough:
                self._set_mode(frozen=self.step >= steps * (1.0 - self.config.training.freeze_norm))
                terms = take_step(self.step)
                self.running = added(self.running, terms)
                self.step += 1
                if not self._bar.facts:
                    self._show({name: float(value) for name, value in terms.items()})
                self.progress(self.step)
                last = self.step == steps
                if self.step % log_every == 0 or last:
                    self._log(self.step % log_every or log_every)
                self.keeper.memory.owed = self.step % validate_every == 0 or last
                if not self._settle(steps):
                    return False
        return True

    def _stepper(self, feed: Feed) -> Step:
        training, seed = self.config.training, self.world.seed(self.config.training.seed)
        local = training.batch_norm == "local"
        networks: Networks = self.share.wrapped(self.model, self.device, local=local)
        graphs = training.compile is True and self.device.type == "cuda" and self.world.size == 1
        if training.compile is True:
            networks = torch.compile(networks, mode="reduce-overhead" if graphs else None)

        def augmented(step: int) -> tuple[Tensor, Tensor]:
            return self.augmentation(*feed(step), seed, step)

        return Step(
            networks,
            builders.build_objective(self.config, self.share.gather),
            self.optimizer,
            augmented if self.augmentation.active else feed,
            self.learning_rate,
            self.share,
            seed,
            training.precision == "bf16",
            graphs,
        )

    def _set_mode(self, *, frozen: bool) -> None:
        """Sets training mode; `frozen`: batch norm uses its running statistics."""
        self.model.train()
        for module in self.model.modules() if frozen else ():
            if isinstance(module, BatchNorm):
                module.eval()

    def _settle(self, steps: int) -> bool:
        """Validates, saves and stops where due after `self.step`; returns whether to go on."""
        stop = self._should_stop()
        if self.keeper.memory.owed and not stop:
            self._validate()
            stop = self._should_stop()
        end = self.step == steps or self.keeper.enough
        every = self.config.training.checkpoint_every or self.validate_every
        if stop or end or self.step % every == 0:
            self.checkpoint()
        return not stop or (end and not self.keeper.memory.owed)

    def _should_stop(self) -> bool:
        """Returns whether a signal or the time limit stops any rank."""
        code = self.world.agree(self.stop.exit_code or 0)
        if code:
            self.stop.request(code)
        return bool(code)

    # ---- what is due between steps

    def progress(self, step: int) -> None:
        """Moves the bar, and starts the time limit, so that every call makes at least one step."""
        self.stop.deadline = self.deadline
        self._bar.update(step)

    @property
    def _epoch(self) -> float:
        return self.step / self.order.steps_per_epoch

    def _log(self, count: int) -> None:
        """Writes averages over the steps; raises for a loss that is not finite."""
        terms = {name: float(sum_) / count for name, sum_ in self.share.mean(self.running).items()}
        self.running = {}
        if not math.isfinite(terms["loss"]):
            raise IiaeError(
                f"the loss is {terms['loss']} at step {self.step}",
                "lower optimizer.lr; the newest checkpoint is whole, --resume continues from it",
            )
        started, first = self._started
        steps_per_s = (self.step - first) / max(1e-9, time.monotonic() - started)
        figures = {
            "epoch": self._epoch,
            **terms,
            "annealing": kl_annealing(self.step, self.config.objective.annealing_steps),
            "lr": self.learning_rate(self.step - 1),
            "pairs_per_s": steps_per_s * self.order.batch_size,
        }
        self._write("train", figures)
        self._show(terms)

    def _show(self, terms: Mapping[str, float]) -> None:
        for name, keys in _SHOWN.items():
            if all(key in terms for key in keys):
                self._bar.facts[name] = " / ".join(f"{terms[key]:.4g}" for key in keys)

    def _write(self, kind: str, figures: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl, and sends its numbers to the loggers."""
        if self._loggers is None:
            return
        step = self.steps_done
        self.run.append_metrics({"kind": kind, "step": step, **figures})
        scalars: dict[str, float] = {}
        for name, value in figures.items():
            if isinstance(value, tuple):
                scalars |= {f"{kind}/{name}_{d}": part for d, part in zip("xy", value, strict=True)}
            elif isinstance(value, float):
                scalars[f"{kind}/{name}"] = value
        self._loggers.each(lambda service: service.scalars(scalars, step))

    def _validate(self) -> None:
        """Validates on the first rank, for all; a stop leaves the validation owed."""
        if self.world.first:
            try:  # nothing is written before everything is measured
                validation, grid = self.keeper.measure(self.trained), None
                if self.step and self._grid_pairs is not None and self.model.generative:
                    seed = self.config.training.seed
                    grid = sample_panel(self.trained, self._grid_pairs, seed=seed).draw()
            except Interrupted:
                console.say(f"step {self.step}: validation broken off; --resume begins with it")
            else:
                self._record(validation, grid)
                self.keeper.decide(self.trained, self.step, self._epoch, validation)
                self.keeper.memory.owed = False
        self.keeper.memory = self.world.share(self.keeper.memory)

    def _record(self, validation: Validation | None, grid: Image | None) -> None:
        if validation is not None:
            self._write("validation", {**validation.record(), "baseline": self.keeper.baseline})
            self._bar.facts[validation.name] = as_text(validation.shared)
            console.say(f"step {self.step}: validation {validation.summary()}")
        if grid is not None and self._loggers is not None:
            step = self.steps_done
            with writing(self.run.samples_folder / f"step-{step:08d}.png") as temporary:
                grid.save(temporary, format="PNG")
            self._loggers.each(lambda service: service.picture(grid, step))

    def checkpoint(self) -> None:
        """Saves the state to continue from; every rank has the same, so one writes it."""
        self.running = self.share.mean(self.running)
        if not self.world.first:
            return
        if self.run.metrics_file.exists():
            sync_file(self.run.metrics_file)  # after a power failure, a checkpoint has its metrics
        self.run.checkpoints.save(
            Checkpoint(
                self.steps_done,
                model=dict(self.model.state_dict()),
                optimizer=adam_tensors(self.model, self.optimizer),
                running=self.running,
                progress=vars(self.keeper.memory),
                data=self.details["data_fingerprint"],
            )
        )
