"""Validates a model in training, and keeps the weights that do best."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from iiae_cli.common import console
from iiae_cli.common.errors import Interrupted
from iiae_cli.config.schema import Config
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.report.grids import first_pairs, sample_grid
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.weights import save_weights
from iiae_cli.training.closed_form import fit_erasure
from iiae_cli.training.data import TrainingData
from iiae_cli.training.journal import Journal
from iiae_cli.training.validation import Selection, Validation, baseline, validate


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


class Keeper:
    """Decides on the first rank which weights are kept.

    Args:
        config: of the run.
        data: training and validation rows.
        run: where weights are kept.
        details: what the kept weights' header says of the run.
        journal: of the run.
        first: whether this is the first rank.
    """

    def __init__(
        self,
        config: Config,
        data: TrainingData,
        run: RunDir,
        details: dict[str, Any],
        journal: Journal,
        *,
        first: bool,
    ) -> None:
        self._config, self._data, self._run = config, data, run
        self._details, self._journal = details, journal
        self.memory = Progress()
        chosen, held_out = config.selection, data.validation
        self.selection = Selection(chosen.rule, chosen.first_epoch, chosen.patience)
        if held_out is None and self.selection.rule != "last":
            console.say("no pairs to validate on: the final weights will be kept")
            self.selection = Selection("last")
        self.baseline = None
        if held_out is not None and first:
            metric = config.evaluation.metric
            self.baseline = baseline(data.train, held_out, metric=metric, by_class=data.by_class)
        self._grid_pairs = None
        if not data.by_class and not data.info.is_features:
            self._grid_pairs = first_pairs(held_out or data.train, config.training.samples)

    @property
    def wants_refit(self) -> bool:
        """Whether a second training, on all rows, is still to begin."""
        kept = self.memory.kept_step
        if not self._config.selection.refit or self.memory.refit_steps is not None or kept is None:
            return False
        return self._data.holds_out or kept == 0

    @property
    def enough(self) -> bool:
        """Whether no further step of this training is wanted."""
        return self.selection.exhausted or (self._data.validation is None and self.wants_refit)

    def restore(self, memory: Progress) -> None:
        """Remember what a checkpoint says."""
        self.memory = memory
        self.selection.best, self.selection.stale = memory.best, memory.stale

    def enter_refit(self, steps: int, held: bool) -> None:
        """Keep the last weights of the second training, in which nothing validates."""
        self.memory.refit_steps, self.memory.held = steps, held
        self.memory.warnings = self.memory.kept_warnings
        self.selection, self.baseline = Selection("last"), None

    def validate(self, trained: TrainedModel, step: int, epoch: float, offset: int) -> bool:
        """Measure, decide whether to keep the weights, draw the sample grid; False if interrupted.

        Nothing is written before everything is measured.
        """
        try:
            validation = self._measure(trained)
            pairs, grid = self._grid_pairs, None
            if step and pairs is not None and pairs.pair_count and trained.network.generative:
                grid = sample_grid(trained, pairs, seed=self._config.training.seed)
        except Interrupted:
            console.say(f"step {step}: the validation was broken off; --resume begins with it")
            return False
        if validation is not None:
            self.memory.warnings = validation.warnings(self.baseline)
            self._journal.validation(step, validation, self.baseline)
        if step == 0:
            self._keep_start(trained, validation)
        elif self.selection.accepts(validation, epoch):
            self.keep(trained, step, epoch, validation)
        if self.selection.exhausted:
            stale = self.selection.stale
            console.say(f"step {step}: no better score in {stale} validations: training ends here")
        if grid is not None:
            self._journal.samples(grid, offset + step)
        return True

    def _measure(self, trained: TrainedModel) -> Validation | None:
        fit_erasure(trained, self._data, self._config.erasure)
        held_out, metric = self._data.validation, self._config.evaluation.metric
        if held_out is None:
            return None
        return validate(trained, held_out, metric=metric, by_class=self._data.by_class)

    def _keep_start(self, trained: TrainedModel, validation: Validation | None) -> None:
        """Keep the first weights for the time being or, if nothing is held out, for good."""
        if validation is None:
            self.memory.kept_step = 0
        elif self.selection.rule != "last":
            self.keep(trained, 0, 0.0, validation)
            self.selection.start(validation, self._config.selection.least_gain)

    def keep_last(self, trained: TrainedModel, step: int, epoch: float, *, ended: bool) -> None:
        """Keep the weights as they are where no validation kept any; a stand-in unless `ended`."""
        if self.memory.kept_step is not None:
            return
        if ended:
            rule = self.selection.rule
            console.warn(
                f"no validation satisfied selection.rule={rule}: the last weights are kept"
            )
        fit_erasure(trained, self._data, self._config.erasure)
        self.keep(trained, step, epoch, None)
        if not ended:
            self.memory.kept_step = None

    def keep(
        self, trained: TrainedModel, step: int, epoch: float, validation: Validation | None
    ) -> None:
        """Write weights as those that are kept."""
        memory, data = self.memory, self._data
        memory.kept_step = step
        if validation is not None:
            memory.kept, memory.kept_warnings = validation.record(), memory.warnings
        details = {
            **self._details,
            "step": step,
            "epoch": epoch,
            "validation": memory.kept,
            "refit": memory.refit_steps is not None,
            "held": memory.held,
            "train_classes": data.classes if data.by_class else None,
        }
        save_weights(self._run.model_file, trained.network, self._config, data.info, details)
