"""One model in training: built from configuration and rows, fitted, validated, kept and saved.

With `selection.refit` a run trains twice: first beside held-out rows, which decide for how many
steps, then on all rows. The second training's steps are numbered on from the first's in files
(`offset`), and from zero for the schedule, the order of rows and the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import TypeAdapter
from torch import Tensor

from iiae_cli import builders
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.common.files import reading, sync_file
from iiae_cli.common.signals import Stop
from iiae_cli.config.schema import Config
from iiae_cli.extensions.linear_paths import hold_linear_paths
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model.objective import kl_annealing
from iiae_cli.report.samples import first_pairs, sample_grid
from iiae_cli.runs.checkpoints import HINT, Checkpoint
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.weights import place, save_weights
from iiae_cli.training.closed_form import fit_erasure, take_statistics
from iiae_cli.training.data import TrainingData
from iiae_cli.training.distributed import Share, World
from iiae_cli.training.feed import Feed
from iiae_cli.training.journal import Journal
from iiae_cli.training.loop import (
    Networks,
    Schedule,
    TrainState,
    compiled,
    fit,
    optimizer_tensors,
    restore_optimizer,
)
from iiae_cli.training.validation import Selection, Validation, baseline, validate


@dataclass(frozen=True)
class InterruptibleModel(TrainedModel):
    """A model whose long work asks for a stop before every batch."""

    stop: Stop = field(default_factory=Stop)

    def inputs(self, rows: NDArray[Any]) -> Tensor:
        """Stored rows as the network takes them.

        Raises:
            Interrupted: work should stop.
        """
        self.stop.check()
        return super().inputs(rows)


@dataclass
class Progress:
    """What a run remembers across checkpoints.

    Attributes:
        kept_step: step of the kept weights; None while nothing is kept.
        best: the selection's score of them.
        kept: their validation figures.
        warnings: of the last validation.
        kept_warnings: of the kept weights' validation.
        refit_steps: how many steps the second training takes; None until it begins.
        held: whether it holds the shared means where they began.
        stale: validations since the score last rose.
        owed: whether the validation due at the checkpoint's step is still to be done.
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


class Trainer:
    """Implements the loop's `Events`.

    Args:
        config: with precision and compilation chosen.
        data: training and validation rows.
        run: where everything is written.
        device: that computes.
        details: what the kept weights' header says of the run.
        world: the ranks that train together.
        stop: asked after every step and before every batch of a validation.
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
        self.augmentation = builders.build_augmentation(config)
        if self.augmentation.active and self.size is None:
            raise IiaeError(
                "augmentation is for pictures, the data set holds features", "leave augment.* at 0"
            )
        self._build()
        training, per_epoch = config.training, self.order.steps_per_epoch
        self.total_steps = training.steps or (training.epochs or 1) * per_epoch
        self.validate_every = training.validate_every or per_epoch
        self.offset = 0
        self.saved_step = 0  # the newest checkpoint's
        self.state = TrainState(owed=config.selection.from_start)
        self.memory = Progress()
        chosen = config.selection
        self.selection = Selection(chosen.rule, chosen.first_epoch, chosen.patience)
        held_out, self.baseline = data.validation, None
        if held_out is None and self.selection.rule != "last":
            console.say("no pairs to validate on: the final weights will be kept")
            self.selection = Selection("last")
        if held_out is not None and world.first:
            metric = config.evaluation.metric
            self.baseline = baseline(data.train, held_out, metric=metric, by_class=data.by_class)
        self._grid_pairs = None
        if not data.by_class:
            self._grid_pairs = first_pairs(held_out or data.train, training.samples)
        self.journal = Journal(run, device)

    def _build(self) -> None:
        """A new model from the seed, what it takes from the training rows, its optimiser and the
        order of rows.
        """
        training = self.config.training
        torch.manual_seed(training.seed)
        model = builders.build_model(self.config, self.data.info)
        take_statistics(model, self.data, self.config)
        if training.precision == "fp64":
            model.double()
        self.model = place(model, self.device)
        self.trained = InterruptibleModel(self.model, self.size, self.device, self.stop)
        self.order = self.data.order(training.batch_size, training.seed)
        self.share = Share(self.world, self.order.batch_size)
        self.optimizer = builders.build_optimizer(self.config, self.model)

    # From start or checkpoint to the end

    def resume(self) -> bool:
        """Continue from the newest checkpoint; False if there is none."""
        checkpoints = self.run.checkpoints
        checkpoint = checkpoints.latest() if self.world.first else None
        step = self.world.share(None if checkpoint is None else checkpoint.step)
        if step is None:
            return False
        if checkpoint is None:
            checkpoint = checkpoints.load(step)
        with reading(checkpoints.path(step), HINT):
            self.memory = TypeAdapter(Progress).validate_python(checkpoint.progress)
        self.selection.best, self.selection.stale = self.memory.best, self.memory.stale
        if self.memory.refit_steps is not None:
            self._enter_refit(self.memory.refit_steps, self.memory.held)
        with reading(checkpoints.path(step), HINT):
            self.model.load_state_dict(checkpoint.model)
            restore_optimizer(self.model, self.optimizer, checkpoint.optimizer)
        running = {name: values.to(self.device) for name, values in checkpoint.running.items()}
        self.saved_step = step
        self.state = TrainState(step - self.offset, running, self.memory.owed, self._enough)
        if self.world.first:
            checkpoints.prune()
            self.run.truncate_metrics(step, validated=not self.memory.owed)
        return True

    @property
    def steps_done(self) -> int:
        """Of both trainings."""
        return self.offset + self.state.step

    @property
    def finished(self) -> bool:
        """Whether every step and the last validation is done."""
        if self.memory.refit_steps is not None:
            return not self.state.owed and self.state.step >= self.memory.refit_steps
        ended = self.state.step >= self.total_steps or self.state.ended
        return ended and not self.state.owed and not self._wants_refit

    @property
    def _enough(self) -> bool:
        """Whether no further step of this training is wanted."""
        return self.selection.exhausted or (self.data.validation is None and self._wants_refit)

    @property
    def _wants_refit(self) -> bool:
        kept = self.memory.kept_step
        if not self.config.selection.refit or self.memory.refit_steps is not None or kept is None:
            return False
        return self.data.holds_out or kept == 0

    def train(self) -> bool:
        """Run to the end, or to the first step after a stop is asked for; True at the end."""
        if not self.world.first:
            return self._train()
        with self.journal.writing_from(self.steps_done):
            ended = self._train()
        if self.memory.kept_step is None:
            if ended:
                rule = self.selection.rule
                console.warn(
                    f"no validation satisfied selection.rule={rule}: the final weights are kept"
                )
            fit_erasure(
                TrainedModel(self.model, self.size, self.device), self.data, self.config.erasure
            )
            self._keep(None)
            if not ended:
                self.memory.kept_step = None  # a stand-in until resumed training keeps something
        return ended

    def _train(self) -> bool:
        ended = True
        if self.memory.refit_steps is None:
            ended = self._fit("training", self.total_steps, self.validate_every)
        if ended and self._wants_refit:
            kept = self.memory.kept_step
            self._enter_refit(kept or self.total_steps, held=kept == 0)
            means = ", the shared means held where they began" if kept == 0 else ""
            console.say(f"training again on all rows, {self.memory.refit_steps} steps{means}")
            self.checkpoint(0)
        steps = self.memory.refit_steps
        if ended and steps is not None:
            ended = self._fit("training again", steps, steps)
        return ended

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

    def _fit(self, label: str, steps: int, validate_every: int) -> bool:
        training, device = self.config.training, self.device
        every = training.checkpoint_every or self.validate_every
        rate = builders.build_schedule(self.config, self.total_steps)
        seed = self.world.seed(training.seed)
        schedule = Schedule(steps, training.log_every, validate_every, every, rate, seed)
        networks = Networks(self.model, training.precision == "bf16").train()
        wrapped = self.share.wrapped(networks, device, local=training.batch_norm == "local")
        graphs = device.type == "cuda" and self.world.size == 1
        step = compiled(wrapped, graphs=graphs) if training.compile is True else wrapped
        order, rows, first = self.order, self.share.rows, self.state.step
        with (
            Feed(self.data, lambda step: order.indices(step)[rows], self.size, device) as feed,
            self.journal.showing(label, steps, first, order.batch_size),
        ):
            batch_at = feed if not self.augmentation.active else self._augmented(feed, seed)
            objective = builders.build_objective(self.config, self.share.gather)
            ended = fit(
                step, objective, self.optimizer, batch_at, self.state, schedule, self, self.share
            )
        self.memory = self.world.share(self.memory)
        return ended

    def _augmented(self, feed: Feed, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        return lambda step: self.augmentation(*feed(step), seed, step)

    # Events of the loop

    def progress(self, step: int) -> None:
        """Move the bar."""
        self.journal.progress(step)

    def log(self, step: int, terms: dict[str, float]) -> None:
        """Write averages; refuse to go on with a loss that is not finite."""
        if not math.isfinite(terms["loss"]):
            raise IiaeError(
                f"the loss is {terms['loss']} at step {step}",
                "lower optimizer.lr; the newest checkpoint is whole, --resume continues from it",
            )
        config = self.config
        figures = {
            "epoch": step / self.order.steps_per_epoch,
            **terms,
            "annealing": kl_annealing(step, config.objective.annealing_steps),
            "lr": builders.build_schedule(config, self.total_steps)(step - 1),
            "pairs_per_s": self.journal.pairs_per_second(step, self.order.batch_size),
        }
        self.journal.record("train", {"step": self.offset + step, **figures}, figures)
        self.journal.show_terms(terms)

    def validate(self, step: int) -> bool:
        """Measure, decide whether to keep the weights, draw the sample grid; False if a stop broke
        it off.

        Nothing is written before everything is measured, so that what is broken off leaves no
        trace.
        """
        done = self.world.share(self._validated(step) if self.world.first else True)
        self.state.ended = self.world.share(self._enough)
        return done

    def _validated(self, step: int) -> bool:
        try:
            validation = self._measure(self.trained)
            grid = self._draw_samples() if step else None
        except Interrupted:
            console.say(f"step {step}: the validation was broken off; --resume begins with it")
            return False
        if validation is not None:
            self._log_validation(step, validation)
        if step == 0:
            self._keep_start(validation)
        elif self.selection.accepts(validation, step / self.order.steps_per_epoch):
            self._keep(validation)
        if self.selection.exhausted:
            stale = self.selection.stale
            console.say(f"step {step}: no better score in {stale} validations: training ends here")
        if grid is not None:
            self.journal.samples(grid, self.offset + step)
        return True

    def _measure(self, trained: TrainedModel) -> Validation | None:
        fit_erasure(trained, self.data, self.config.erasure)
        held_out, metric = self.data.validation, self.config.evaluation.metric
        if held_out is None:
            return None
        return validate(trained, held_out, metric=metric, by_class=self.data.by_class)

    def _draw_samples(self) -> Image | None:
        pairs = self._grid_pairs
        if not self.model.generative or self.size is None or not pairs or not pairs.pair_count:
            return None
        return sample_grid(self.trained, pairs, seed=self.config.training.seed)

    def _log_validation(self, step: int, validation: Validation) -> None:
        self.memory.warnings = validation.warnings(self.baseline)
        record = {"step": step, **validation.record(), "baseline": self.baseline}
        self.journal.record("validation", record, validation.scalars())
        self.journal.show(validation.facts())
        console.say(f"step {step}: validation {validation.summary()}")

    def _keep_start(self, validation: Validation | None) -> None:
        """Keep the weights before the first step, for the time being or, where nothing can tell,
        for good.
        """
        if validation is None:
            self.memory.kept_step = 0
        elif self.selection.rule != "last":
            self._keep(validation)
            self.selection.start(validation, self.config.selection.least_gain)

    def _keep(self, validation: Validation | None) -> None:
        self.memory.kept_step = self.state.step
        if validation is not None:
            self.memory.kept, self.memory.kept_warnings = validation.record(), self.memory.warnings
        details = {
            **self.details,
            "step": self.state.step,
            "epoch": self.state.step / self.order.steps_per_epoch,
            "validation": self.memory.kept,
            "refit": self.memory.refit_steps is not None,
            "held": self.memory.held,
            "train_classes": self.data.classes if self.data.by_class else None,
        }
        save_weights(self.run.model_file, self.model, self.config, self.data.info, details)

    def checkpoint(self, step: int) -> None:
        """Save everything that continuing needs; every rank has the same, so one writes it."""
        self.memory.best, self.memory.stale = self.selection.best, self.selection.stale
        self.memory.owed = self.state.owed
        self.state.running = self.share.mean(self.state.running)
        self.saved_step = self.offset + step
        if not self.world.first:
            return
        if self.run.metrics_file.exists():
            sync_file(self.run.metrics_file)  # after a power failure, a checkpoint has its metrics
        self.run.checkpoints.save(
            Checkpoint(
                self.saved_step,
                model=dict(self.model.state_dict()),
                optimizer=optimizer_tensors(self.model, self.optimizer),
                running=self.state.running,
                progress=vars(self.memory),
            )
        )

    def should_stop(self) -> bool:
        """Whether a signal or the time limit asks any rank to stop."""
        code = self.world.agree(self.stop.exit_code or 0)
        if code:
            self.stop.request(code)
        return bool(code)
