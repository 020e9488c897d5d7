"""One training run from start, or from a checkpoint, to its end: the loop's events turned into files and lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from pydantic import TypeAdapter, ValidationError

from iiae_cli.builders import (
    build_augmentation,
    build_model,
    build_objective,
    build_optimizer,
    build_schedule,
    picture_size,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import write_errors, writing
from iiae_cli.common.signals import Stop
from iiae_cli.config.schema import Config
from iiae_cli.extensions.linear_paths import hold_linear_paths
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model.objective import kl_annealing
from iiae_cli.report.samples import first_pairs, sample_grid
from iiae_cli.runs.directory import Checkpoint, RunDir
from iiae_cli.runs.weights import place
from iiae_cli.training.closed_form import fit_erasure, take_statistics
from iiae_cli.training.data import TrainingData
from iiae_cli.training.distributed import Ranks, World
from iiae_cli.training.facts import loss_facts, memory_text
from iiae_cli.training.feed import Feed, Pair
from iiae_cli.training.loop import TrainState, fit, optimizer_tensors, restore_optimizer
from iiae_cli.training.validation import (
    ClassValidation,
    Selection,
    Validation,
    baseline_map,
    baseline_recall,
    validate,
    validate_classes,
)


@dataclass
class Progress:
    """What a session remembers across checkpoints.

    Attributes:
        kept_step: step of the kept weights; None while nothing is kept.
        best: the selection's score of them.
        kept: their validation figures.
        warnings: of the last validation.
        kept_warnings: of the kept weights' validation.
        refit_steps: how many steps the second training takes; None until it begins.
        held: whether it holds the shared means where they began.
        stale: validations since the score last rose.
        owed: whether the validation due at the checkpoint's step was not done any more.
    """

    kept_step: int | None = None
    best: float | None = None
    kept: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    kept_warnings: list[str] = field(default_factory=list)
    refit_steps: int | None = None
    held: bool = False
    stale: int = 0
    owed: bool = False


class Session:
    """Everything of one run; implements the loop's `Events`.

    With `selection.refit` a run trains twice: first beside held-out rows, which tell for how many steps, then on all
    rows. The second training's steps are numbered on from the first's in files (`offset`), and from zero for the
    schedule, the order of rows and the noise.
    """

    def __init__(
        self,
        config: Config,
        data: TrainingData,
        run: RunDir,
        device: torch.device,
        origin: dict[str, Any],
        preset: str,
        world: World | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.run = run
        self.device = device
        self.origin = origin
        self.preset = preset
        self.world = world or World()
        training = config.training
        self.size = picture_size(config, data.info)
        self.augmentation = build_augmentation(config)
        if self.augmentation.active and self.size is None:
            raise IiaeError(
                "augmentation is for pictures, the data set holds features", "leave augment.* at 0"
            )
        self._build()
        per_epoch = self.order.steps_per_epoch
        self.total_steps = (
            training.steps if training.steps is not None else (training.epochs or 1) * per_epoch
        )
        self.validate_every = training.validate_every or per_epoch
        self.checkpoint_every = training.checkpoint_every or self.validate_every
        self.offset = 0
        self.saved_step = 0  # the newest checkpoint's
        self.learning_rate = build_schedule(config, self.total_steps)
        self.state = TrainState()
        self.memory = Progress()
        self.selection = Selection(
            config.selection.rule, config.selection.first_epoch, config.selection.patience
        )
        if data.validation is None and self.selection.rule != "last":
            console.say("no pairs to validate on: the final weights will be kept")
            self.selection = Selection("last")
        self.baseline = None
        if data.validation is not None and self.world.first:
            self.baseline = (
                baseline_map(data.train, data.validation)
                if data.by_class
                else baseline_recall(data.validation, config.evaluation.metric)
            )
        self._grid_pairs = (
            None if data.by_class else first_pairs(data.validation or data.train, training.samples)
        )
        self._bar: console.Progress | None = None
        self._writer: Any = None
        self._stop = Stop()
        self._clock = (time.monotonic(), 0)

    def _build(self) -> None:
        """A new model from the seed, what it takes from the training rows, its optimiser and the order of rows."""
        torch.manual_seed(self.config.training.seed)
        model = build_model(self.config, self.data.info)
        take_statistics(model, self.data, self.config)
        if self.config.training.precision == "fp64":
            model.double()
        self.model = place(model, self.device)
        self.world.same_weights(self.model)
        self.order = self.data.order(self.config.training.batch_size, self.config.training.seed)
        self._ranks: Ranks | None = None
        if self.world.size > 1:
            self._ranks = Ranks(
                self.world, self.model, self.order.batch_size, self.config.training.batch_norm
            )
        self.optimizer = build_optimizer(self.config, self.model)

    def _enter_refit(self, steps: int, held: bool) -> None:
        """Begin the second training."""
        self.memory.refit_steps, self.memory.held = steps, held
        self.memory.warnings = self.memory.kept_warnings  # nothing validates from here on
        self.data.use_all()
        self._build()
        if held:
            hold_linear_paths(self.model)
        self.state, self.offset = TrainState(), self.total_steps
        self.selection, self.baseline = Selection("last"), None
        self._clock = (time.monotonic(), 0)

    def resume(self) -> bool:
        """Take up the newest checkpoint; False where there is none."""
        checkpoint = self.run.latest_checkpoint() if self.world.first else None
        step = self.world.share(None if checkpoint is None else checkpoint.step)
        if step is None:
            return False
        if checkpoint is None:
            checkpoint = self.run.load_checkpoint(self.run.checkpoint_file(step))
        self.memory = self._progress_of(checkpoint.progress)
        self.selection.best, self.selection.stale = self.memory.best, self.memory.stale
        if self.memory.refit_steps is not None:
            self._enter_refit(self.memory.refit_steps, self.memory.held)
        try:
            self.model.load_state_dict(checkpoint.model)
            restore_optimizer(self.model, self.optimizer, checkpoint.optimizer)
        except (RuntimeError, KeyError) as error:
            raise IiaeError(
                f"the checkpoint in {self.run.path} does not fit this configuration",
                "start afresh with --overwrite",
            ) from error
        running = {name: values.to(self.device) for name, values in checkpoint.running.items()}
        self.saved_step = checkpoint.step
        self.state = TrainState(
            checkpoint.step - self.offset, running, self.memory.owed, self.selection.exhausted
        )
        if self.world.first:
            self.run.prune_checkpoints()
            self.run.truncate_metrics(checkpoint.step, validated=not self.memory.owed)
        return True

    def _progress_of(self, record: dict[str, Any]) -> Progress:
        """What a checkpoint says was remembered.

        Raises:
            IiaeError: of another kind than this version writes.
        """
        try:
            Progress(**record)  # knows every name
            return TypeAdapter(Progress).validate_python(record)
        except (TypeError, ValidationError) as error:
            raise IiaeError(
                f"the checkpoint in {self.run.path} remembers something else: {str(error).splitlines()[0]}",
                "start afresh with --overwrite",
            ) from error

    @property
    def steps_done(self) -> int:
        """Of both trainings."""
        return self.offset + self.state.step

    @property
    def finished(self) -> bool:
        """Whether every step and the last validation is done."""
        if self.state.owed:
            return False
        if self.memory.refit_steps is not None:
            return self.state.step >= self.memory.refit_steps
        return (self.state.step >= self.total_steps or self.state.ended) and not self._wants_refit

    @property
    def _wants_refit(self) -> bool:
        kept = self.memory.kept_step
        wanted = (
            self.config.selection.refit and self.memory.refit_steps is None and kept is not None
        )
        return wanted and (self.data.holds_out or kept == 0)

    def train(self, stop: Stop) -> bool:
        """Run to the end, or to the first step after `stop` asks for it; True at the end."""
        self._stop = stop
        self._clock = (time.monotonic(), self.state.step)
        with write_errors(self.run.path):  # TensorBoard's files are not written by this package
            if self.world.first:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(
                    str(self.run.tensorboard_folder), purge_step=self.steps_done
                )
            try:
                ended = self._train()
            finally:
                if self._writer is not None:
                    self._writer.close()
        if self.memory.kept_step is None:
            if self.world.first:
                if ended:
                    console.warn(
                        f"no validation satisfied selection.rule={self.selection.rule}: the final weights are kept"
                    )
                fit_erasure(self.trained, self.data, self.config.erasure)
                self._keep(None)
            if not ended:
                self.memory.kept_step = None  # a stand-in until resumed training keeps something
        return ended

    def _train(self) -> bool:
        ended = True
        if self.memory.refit_steps is None:
            if self.state.step == 0 and self.config.selection.from_start:
                if self.world.first:
                    self._validate_start()
                self._same_memory()
            if self.data.validation is not None or not self._wants_refit:
                ended = self._fit("training", self.total_steps, self.validate_every)
        if ended and self._wants_refit:
            kept = self.memory.kept_step
            self._enter_refit(kept or self.total_steps, held=kept == 0)
            means = ", the shared means held where they began" if kept == 0 else ""
            console.say(f"training again on all rows, {self.memory.refit_steps} steps{means}")
            self.checkpoint(0)
        if ended and self.memory.refit_steps is not None:
            ended = self._fit("training again", self.memory.refit_steps, self.memory.refit_steps)
        return ended

    def _same_memory(self) -> None:
        """Let every rank know what rank 0 has decided."""
        self.memory = Progress(**self.world.share(vars(self.memory)))

    def _fit(self, label: str, steps: int, validate_every: int) -> bool:
        training = self.config.training
        items = (self.order.batch_size, "pairs")
        objective = build_objective(self.config)
        if self._ranks is not None:
            objective = build_objective(self.config, self._ranks.whole)
        with self._feed() as feed, console.progress(label, steps, items=items) as self._bar:
            self._bar.start_at(self.state.step)
            ended = fit(
                model=self.model,
                objective=objective,
                optimizer=self.optimizer,
                learning_rate=self.learning_rate,
                batch_at=self._augmented(feed),
                state=self.state,
                total_steps=steps,
                seed=training.seed,
                events=self,
                log_every=training.log_every,
                validate_every=validate_every,
                checkpoint_every=self.checkpoint_every,
                bf16=training.precision == "bf16",
                compile_step=training.compile is True,
                share=self._ranks,
            )
        self._same_memory()
        return ended

    def _feed(self) -> Feed:
        order, part = self.order, slice(None) if self._ranks is None else self._ranks.rows
        return Feed(self.data, lambda step: order.indices(step)[part], self.size, self.device)

    def _augmented(self, feed: Feed) -> Callable[[int], Pair]:
        if not self.augmentation.active:
            return feed
        seed, part = self.config.training.seed, None if self._ranks is None else self._ranks.part
        return lambda step: self.augmentation(*feed(step), seed, step, part)

    # Events of the loop

    def progress(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(step)

    def log(self, step: int, terms: dict[str, float]) -> None:
        """Write averages to metrics.jsonl and TensorBoard; refuse to go on with a loss that is not finite."""
        if not self.world.first:
            return
        if not math.isfinite(terms["loss"]):
            raise IiaeError(
                f"the loss is {terms['loss']} at step {step}",
                "lower optimizer.lr; the newest checkpoint is whole, --resume continues from it",
            )
        now = time.monotonic()
        started, first = self._clock
        record = {
            "kind": "train",
            "step": self.offset + step,
            "epoch": step / self.order.steps_per_epoch,
            **terms,
            "annealing": kl_annealing(step, self.config.objective.annealing_steps),
            "lr": self.learning_rate(step - 1),
            "pairs_per_s": (step - first) * self.order.batch_size / max(1e-9, now - started),
        }
        self.run.append_metrics(record)
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"train/{name}", value, self.offset + step)
        if self._bar is not None:
            self._bar.facts |= loss_facts(terms) | {"memory": memory_text(self.device)}

    def validate(self, step: int) -> bool:
        """Measure, decide whether to keep the weights, draw the sample grid; False where a stop broke it off.

        Nothing is written before everything is measured, so that what is broken off leaves no trace.
        """
        done = bool(self.world.share(self._validated(step) if self.world.first else None))
        self.state.ended = bool(self.world.share(self.selection.exhausted))
        return done

    def _validated(self, step: int) -> bool:
        validation, grid = self._measure(), self._draw_samples()
        self._log_validation(step, validation)
        if self.selection.accepts(validation, step / self.order.steps_per_epoch):
            self._keep(validation)
        if self.selection.exhausted:
            console.say(
                f"step {step}: no better score in {self.selection.stale} validations: training ends here"
            )
        if grid is not None:
            with writing(
                self.run.samples_folder / f"step-{self.offset + step:08d}.png"
            ) as temporary:
                grid.save(temporary, format="PNG")
            self._writer.add_image(
                "samples", np.asarray(grid), self.offset + step, dataformats="HWC"
            )
        return True

    def _validate_start(self) -> None:
        """Keep the weights before the first step, for the time being or, where nothing can tell, for good."""
        validation = self._measure()
        self._log_validation(0, validation)
        if validation is None:
            self.memory.kept_step = 0
        elif self.selection.rule != "last":
            self._keep(validation)
            self.selection.start(validation, self.config.selection.least_gain)

    @property
    def trained(self) -> TrainedModel:
        """The model as it stands, for measuring."""
        return TrainedModel(self.model, self.size, self.device)

    def _measure(self) -> Validation | ClassValidation | None:
        fit_erasure(self.trained, self.data, self.config.erasure)
        held_out = self.data.validation
        if held_out is None:
            return None
        if self.data.by_class:
            return validate_classes(self.trained, held_out)
        metric = self.config.evaluation.metric
        return validate(self.trained, held_out, metric=metric)

    def checkpoint(self, step: int) -> None:
        """Save everything that continuing needs; every rank has the same, so one writes it."""
        self.memory.best, self.memory.stale = self.selection.best, self.selection.stale
        self.memory.owed = self.state.owed
        checkpoint = Checkpoint(
            step=self.offset + step,
            model=dict(self.model.state_dict()),
            optimizer=optimizer_tensors(self.model, self.optimizer),
            running=self.state.running,
            progress=vars(self.memory),
        )
        if self.world.first:
            self.run.save_checkpoint(checkpoint)
        self.saved_step = checkpoint.step

    def should_stop(self) -> bool:
        """Whether a signal or the time limit asks to stop, on any rank."""
        code = self.world.agree(self._stop.exit_code or 0)
        if code:
            self._stop.request(code)
        return bool(code)

    def _log_validation(self, step: int, validation: Validation | ClassValidation | None) -> None:
        if validation is None:
            return
        self.memory.warnings = validation.warnings(self.baseline)
        self.run.append_metrics(
            {"kind": "validation", "step": step, **validation.record(), "baseline": self.baseline}
        )
        for name, value in validation.scalars().items():
            self._writer.add_scalar(f"validation/{name}", value, step)
        if self._bar is not None:
            self._bar.facts |= validation.facts()
        console.say(f"step {step}: validation {validation.summary()}")

    def _keep(self, validation: Validation | ClassValidation | None) -> None:
        self.memory.kept_step = self.state.step
        if validation is not None:
            self.memory.kept, self.memory.kept_warnings = validation.record(), self.memory.warnings
        details = {
            "preset": self.preset,
            "step": self.state.step,
            "epoch": self.state.step / self.order.steps_per_epoch,
            "validation": self.memory.kept,
            "data": self.origin.get("data"),
            "refit": self.memory.refit_steps is not None,
            "held": self.memory.held,
            "train_classes": self.data.classes if self.data.by_class else None,
        }
        self.run.save_model(self.model, self.config, self.data.info, details)

    def _draw_samples(self) -> Image | None:
        if (
            not self.model.generative
            or self.size is None
            or not self._grid_pairs
            or not self._grid_pairs.pair_count
        ):
            return None
        return sample_grid(self.trained, self._grid_pairs, seed=self.config.training.seed)
