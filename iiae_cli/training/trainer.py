"""One model in training: builds, fits, validates, keeps and saves it.

With `selection.refit` a run trains twice: first without the held-out rows, which decide the number
of steps, then on all rows. In files the second training's steps follow the first's (`offset`); the
schedule, the order of rows and the noise count them from zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from iiae_cli import builders
from iiae_cli.common import console
from iiae_cli.common.errors import NEVER, IiaeError, Interrupted, Stop
from iiae_cli.common.files import reading
from iiae_cli.config import Config
from iiae_cli.data.batches import Augmentation
from iiae_cli.extensions.encoders import hold_linear_paths
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model.objective import kl_annealing
from iiae_cli.report.grids import sample_panel
from iiae_cli.runs import HINT, Checkpoint, RunDir, load_state, save_weights
from iiae_cli.training.data import TrainingData, erase_means, take_statistics
from iiae_cli.training.distributed import Share, World
from iiae_cli.training.loggers import Loggers
from iiae_cli.training.step import Feed, Step
from iiae_cli.training.validation import Progress, Validation, as_text, baseline, validate

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
        self.progress = Progress(owed=config.selection.from_start)
        self._augment = Augmentation(**config.augment.model_dump())
        self._begin()
        training, per_epoch = config.training, self.order.steps_per_epoch
        self._first_steps = training.steps or (training.epochs or 1) * per_epoch
        self._validate_every = training.validate_every or per_epoch
        self._rate = builders.build_schedule(config, self._first_steps)
        self._baseline = baseline(data, config.evaluation.metric)
        self._grid_pairs = None
        if not data.by_class and not data.info.is_features and training.samples:
            pairs = data.validation or data.train
            self._grid_pairs = pairs.take_pairs(np.arange(min(training.samples, pairs.pair_count)))
        if data.validation is None and config.selection.rule != "last":
            console.say("no pairs to validate on: the final weights will be kept")

    def _begin(self, *, held: bool = False, offset: int = 0) -> None:
        """Starts a training from the first weights; `held`: shared means stay where they are."""
        training = self.config.training
        torch.manual_seed(training.seed)
        model = builders.build_model(self.config, self.data.info)
        take_statistics(model, self.data, self.config)
        if training.precision == "fp64":
            model.double()
        if held:
            hold_linear_paths(model)
        self.model = builders.place(model, self.device)
        size = builders.picture_size(self.config, self.data.info)
        self._trained = TrainedModel(self.model, size, self.device, self.stop)
        self.order = self.data.order(training.batch_size, training.seed)
        self._share = Share(self.world, self.order.batch_size)
        self._take_step = Step(self.config, self.model, self.device, self._share)
        self._step, self._offset = 0, offset  # steps done in this training, and in those before
        self._running: dict[str, Tensor] = {}  # sums of loss terms since the last log line
        self._said: set[str] = set()  # domains whose dying exclusive latent was warned of

    def _begin_again(self) -> None:
        """Starts the second training, which validates nothing and keeps its last weights."""
        held = self.progress.held
        means = ", the shared means held where they began" if held else ""
        console.say(f"training again on all rows, {self.steps} steps{means}")
        self.data.use_all()
        self._begin(held=held, offset=self._first_steps)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continues from the run's newest checkpoint."""
        with reading(self.run.checkpoint_file(checkpoint.step), HINT):
            self.progress = Progress(**checkpoint.progress)
            if self.progress.refit_steps is not None:
                self._begin_again()
            load_state(self.model, checkpoint.model, self.run.checkpoint_file(checkpoint.step))
            self._take_step.restore(checkpoint.optimizer)
        self._running = {name: sums.to(self.device) for name, sums in checkpoint.running.items()}
        self._step = checkpoint.step - self._offset
        if self.world.first:
            self.run.prune()
            self.run.truncate_metrics(checkpoint.lines)

    @property
    def steps(self) -> int:
        """Steps of this training."""
        return self.progress.refit_steps or self._first_steps

    @property
    def steps_done(self) -> int:
        """Steps done in both trainings."""
        return self._offset + self._step

    @property
    def finished(self) -> bool:
        """Whether every step and the last validation are done."""
        return self._at_end and not self.progress.owed and not self._wants_refit

    @property
    def _exhausted(self) -> bool:
        """Whether the score has not risen for as many validations as patience allows."""
        validates = self.data.validation is not None
        return validates and 0 < self.config.selection.patience <= self.progress.stale

    @property
    def _wants_refit(self) -> bool:
        """Whether a second training, on all rows, is still to begin."""
        kept = self.progress.kept_step
        if not self.config.selection.refit or self.progress.refit_steps is not None or kept is None:
            return False
        return self.data.holds_out or kept == 0

    @property
    def _at_end(self) -> bool:
        """Whether this training needs no further step."""
        nothing_to_learn = self.data.validation is None and self._wants_refit
        return self._step >= self.steps or self._exhausted or nothing_to_learn

    # ---- the loop

    def train(self, loggers: Loggers) -> bool:
        """Trains to the end, or to the first step after a stop; returns whether it is the end."""
        self._loggers = loggers
        ended = self._fit()
        if ended and self._wants_refit:
            kept = self.progress.kept_step
            self.progress.refit_steps, self.progress.held = kept or self._first_steps, kept == 0
            self.progress.warnings = self.progress.kept_warnings
            self._begin_again()
            self.checkpoint()
            ended = self._fit()
        if self.world.first and self.progress.kept_step is None:
            self._keep_last(ended)
        return ended

    def _fit(self) -> bool:
        """Trains to the last step of this training; returns False if stopped before."""
        rows, seed = self._share.rows, self.world.seed(self.config.training.seed)
        items, size = (self.order.batch_size, "pairs"), self._trained.size
        with (
            Feed(self.data, lambda t: self.order.indices(t)[rows], size, self.device) as feed,
            console.progress("training", self.steps, items=items) as self._bar,
        ):
            self._bar.start_at(self._step)
            self._started = time.monotonic(), self._step
            if self.progress.owed and not self._settle():
                return False
            while not self._at_end:
                self._set_mode()
                x, y = feed(self._step)
                if self._augment.active:
                    x, y = self._augment(x, y, seed, self._step)
                terms = self._take_step(x, y, self._step, self._rate(self._step), seed)
                self._running = {name: self._running.get(name, 0.0) + terms[name] for name in terms}
                self._step += 1
                self.moved()
                if not self._bar.facts:
                    self._show(terms)
                self._log()
                first = self.progress.refit_steps is None
                due = first and self._step % self._validate_every == 0
                self.progress.owed = due or self._step == self.steps
                if not self._settle():
                    return False
        return True

    def _set_mode(self) -> None:
        """Sets training mode; near the end, batch norm may use its running statistics."""
        self.model.train()
        if self._step >= self.steps * (1.0 - self.config.training.freeze_norm):
            for module in self.model.modules():
                if isinstance(module, BatchNorm):
                    module.eval()

    def moved(self) -> None:
        """Moves the bar, and starts the time limit, so that every call makes at least one step."""
        self.stop.deadline = self.stop.limit
        self._bar.update(self._step)

    def _settle(self) -> bool:
        """Validates, saves and stops where due after a step; returns whether to go on."""
        stop = self._should_stop()
        if self.progress.owed and not stop:
            self.progress = self.world.share(self._validated)
            stop = self._should_stop()
        every = self.config.training.checkpoint_every or self._validate_every
        if stop or self._at_end or self._step % every == 0:
            self.checkpoint()
        return not stop or (self._at_end and not self.progress.owed)

    def _should_stop(self) -> bool:
        """Returns whether a signal or the time limit stops any rank."""
        code = self.world.agree(self.stop.exit_code or 0)
        if code:
            self.stop.request(code)
        return bool(code)

    # ---- what is due between steps

    @property
    def _epoch(self) -> float:
        return self._step / self.order.steps_per_epoch

    def _log(self) -> None:
        """Writes averages over the last steps where due; raises for a loss that is not finite."""
        every = self.config.training.log_every
        if self._step % every and self._step != self.steps:
            return
        count = self._step % every or every
        sums, self._running = self._share.mean(self._running), {}
        terms = {name: float(value) / count for name, value in sums.items()}
        if not math.isfinite(terms["loss"]):
            raise IiaeError(
                f"the loss is {terms['loss']} at step {self._step}",
                "lower optimizer.lr; the newest checkpoint is whole, --resume continues from it",
            )
        started, first = self._started
        steps_per_s = (self._step - first) / max(1e-9, time.monotonic() - started)
        figures = {
            "epoch": self._epoch,
            **terms,
            "annealing": kl_annealing(self._step, self.config.objective.annealing_steps),
            "lr": self._rate(self._step - 1),
            "pairs_per_s": steps_per_s * self.order.batch_size,
        }
        self._loggers.write("train", self.steps_done, figures)
        self._show(terms)

    def _show(self, terms: Mapping[str, float | Tensor]) -> None:
        for name, keys in _SHOWN.items():
            if keys[-1] in terms:
                self._bar.facts[name] = " / ".join(f"{float(terms[key]):.4g}" for key in keys)

    def _validated(self) -> Progress:
        """Validates on the first rank; a stop leaves the validation owed."""
        with suppress(Interrupted):
            self._measure()
            self.progress.owed = False
        return self.progress

    def _measure(self) -> None:
        """Measures, writes once all is measured, and keeps the weights if they are good."""
        data, progress, validation, grid = self.data, self.progress, None, None
        erase_means(self._trained, data, self.config.erasure)
        if data.validation is not None:
            metric = self.config.evaluation.metric
            validation = validate(self._trained, data.validation, metric, by_class=data.by_class)
        if self._step and self._grid_pairs is not None and self.model.generative:
            seed = self.config.training.seed
            grid = sample_panel(self._trained, self._grid_pairs, seed=seed).draw()
        if validation is not None:
            figures = {**validation.record(), "baseline": self._baseline}
            self._loggers.write("validation", self.steps_done, figures)
            self._bar.facts[validation.name] = as_text(validation.shared)
            console.say(f"step {self._step}: validation {validation.summary()}")
            progress.warnings = validation.warnings(self._baseline)
            for domain, text in validation.dying.items() if self._step else ():
                if domain not in self._said:
                    self._said.add(domain)
                    console.warn(f"step {self._step}: {text}")
        if grid is not None:
            self._loggers.draw(grid, self.steps_done)
        if self._step == 0 and validation is None:
            progress.kept_step = 0  # final: the second training fixes the means there
        elif progress.accepts(validation, self._epoch, self.config.selection):
            self._keep(validation)
        if self._exhausted:
            stale = f"no better score in {progress.stale} validations"
            console.say(f"step {self._step}: {stale}: training ends here")

    def _keep_last(self, ended: bool) -> None:
        """Keeps the current weights as no validation kept any; provisionally unless `ended`."""
        if ended:
            rule = self.config.selection.rule
            console.warn(f"no validation meets selection.rule={rule}: the last weights are kept")
        whole = replace(self._trained, stop=NEVER)
        erase_means(whole, self.data, self.config.erasure)
        self._keep(None)
        if not ended:
            self.progress.kept_step = None

    def _keep(self, validation: Validation | None) -> None:
        progress, data = self.progress, self.data
        progress.kept_step = self._step
        if validation is not None:
            progress.kept, progress.kept_warnings = validation.record(), progress.warnings
        details = {
            **self.details,
            "step": self._step,
            "epoch": self._epoch,
            "validation": progress.kept,
            "refit": progress.refit_steps is not None,
            "held": progress.held,
            "train_classes": data.train.classes if data.by_class else None,
        }
        save_weights(self.run.model_file, self.model, self.config, data.info, details)

    def checkpoint(self) -> None:
        """Saves the state to continue from; every rank has the same, so one writes it."""
        self._running = self._share.mean(self._running)
        if self.world.first:
            self.run.save(
                Checkpoint(
                    self.steps_done,
                    model=dict(self.model.state_dict()),
                    optimizer=self._take_step.state(),
                    running=self._running,
                    progress=vars(self.progress),
                    data=self.details["data_fingerprint"],
                )
            )
