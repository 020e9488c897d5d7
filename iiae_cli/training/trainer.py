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
from pydantic import TypeAdapter
from torch import Tensor

from iiae_cli import builders
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sync_file
from iiae_cli.common.signals import Stop
from iiae_cli.config.schema import Config
from iiae_cli.extensions.linear_paths import hold_linear_paths
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model.objective import kl_annealing
from iiae_cli.runs.directory import HINT, Checkpoint, RunDir
from iiae_cli.runs.weights import place
from iiae_cli.training.closed_form import take_statistics
from iiae_cli.training.data import TrainingData
from iiae_cli.training.distributed import Share, World
from iiae_cli.training.feed import Feed
from iiae_cli.training.journal import Journal
from iiae_cli.training.keeper import Keeper, Progress
from iiae_cli.training.loop import (
    Networks,
    Schedule,
    TrainState,
    compiled,
    fit,
    optimizer_tensors,
    restore_optimizer,
)


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
        self.deadline: float | None = None  # `time.monotonic()` at which to stop
        self.state = TrainState(owed=config.selection.from_start)
        self.journal = Journal(run, device)
        self.keeper = Keeper(config, data, run, details, self.journal, first=world.first)

    def _build(self) -> None:
        """A new model from seed and training rows, its optimiser, and the order of rows."""
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
            memory = TypeAdapter(Progress).validate_python(checkpoint.progress)
        self.keeper.restore(memory)
        if memory.refit_steps is not None:
            self._enter_refit(memory.refit_steps, memory.held)
        with reading(checkpoints.path(step), HINT):
            self.model.load_state_dict(checkpoint.model)
            restore_optimizer(self.model, self.optimizer, checkpoint.optimizer)
        running = {name: values.to(self.device) for name, values in checkpoint.running.items()}
        self.saved_step = step
        self.state = TrainState(step - self.offset, running, memory.owed, self.keeper.enough)
        if self.world.first:
            checkpoints.prune()
            self.run.truncate_metrics(step, validated=not memory.owed)
        return True

    @property
    def steps_done(self) -> int:
        """Of both trainings."""
        return self.offset + self.state.step

    @property
    def finished(self) -> bool:
        """Whether every step and the last validation is done."""
        refit = self.keeper.memory.refit_steps
        if refit is not None:
            return not self.state.owed and self.state.step >= refit
        ended = self.state.step >= self.total_steps or self.state.ended
        return ended and not self.state.owed and not self.keeper.wants_refit

    def train(self) -> bool:
        """Run to the end, or to the first step after a stop is asked for; True at the end."""
        if not self.world.first:
            return self._train()
        with self.journal.writing_from(self.steps_done):
            ended = self._train()
        whole = TrainedModel(self.model, self.size, self.device)  # which no stop interrupts
        step = self.state.step
        self.keeper.keep_last(whole, step, self._epoch(step), ended=ended)
        return ended

    def _train(self) -> bool:
        ended, memory = True, self.keeper.memory
        if memory.refit_steps is None:
            ended = self._fit("training", self.total_steps, self.validate_every)
        if ended and self.keeper.wants_refit:
            kept = self.keeper.memory.kept_step
            self._enter_refit(kept or self.total_steps, held=kept == 0)
            means = ", the shared means held where they began" if kept == 0 else ""
            steps = self.keeper.memory.refit_steps
            console.say(f"training again on all rows, {steps} steps{means}")
            self.checkpoint(0)
        again = self.keeper.memory.refit_steps
        if ended and again is not None:
            ended = self._fit("training again", again, again)
        return ended

    def _enter_refit(self, steps: int, held: bool) -> None:
        """Begin the second training."""
        self.keeper.enter_refit(steps, held)
        self.data.use_all()
        self._build()
        if held:
            hold_linear_paths(self.model)
        self.state, self.offset = TrainState(), self.total_steps

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
        self.keeper.memory = self.world.share(self.keeper.memory)
        return ended

    def _augmented(self, feed: Feed, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        return lambda step: self.augmentation(*feed(step), seed, step)

    # Events of the loop

    def progress(self, step: int) -> None:
        """Move the bar. The time limit counts from here on, so that every call gets on."""
        self.stop.deadline = self.deadline
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
            "epoch": self._epoch(step),
            **terms,
            "annealing": kl_annealing(step, config.objective.annealing_steps),
            "lr": builders.build_schedule(config, self.total_steps)(step - 1),
            "pairs_per_s": self.journal.pairs_per_second(step, self.order.batch_size),
        }
        self.journal.terms(self.offset + step, figures, terms)

    def validate(self, step: int) -> bool:
        """Measure on the first rank, which decides for all; False if a stop broke it off."""
        done, first = True, self.world.first
        if first:
            done = self.keeper.validate(self.trained, step, self._epoch(step), self.offset)
        done, self.state.ended = self.world.share((done, self.keeper.enough))
        return done

    def _epoch(self, step: int) -> float:
        return step / self.order.steps_per_epoch

    def checkpoint(self, step: int) -> None:
        """Save everything that continuing needs; every rank has the same, so one writes it."""
        memory, selection = self.keeper.memory, self.keeper.selection
        memory.best, memory.stale, memory.owed = selection.best, selection.stale, self.state.owed
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
                progress=vars(memory),
            )
        )

    def should_stop(self) -> bool:
        """Whether a signal or the time limit asks any rank to stop."""
        code = self.world.agree(self.stop.exit_code or 0)
        if code:
            self.stop.request(code)
        return bool(code)
