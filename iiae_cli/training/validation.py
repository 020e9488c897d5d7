"""Validates on held-out rows, and decides which weights are kept.

Sets paired one by one are validated by Recall@1 of held-out pairs, sets paired by class by mAP@all
of held-out classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from iiae_cli.config import SelectionSection
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation import retrieval
from iiae_cli.evaluation.translation import Subject, l1, translation_figures
from iiae_cli.inference.neighbours import Metric
from iiae_cli.inference.trained import LatentKind, TrainedModel
from iiae_cli.model import Domain
from iiae_cli.training.data import TrainingData

Both = tuple[float, float]  # (x→y, y→x) or (x, y)

REVIVE = (
    "Else try larger values of objective.annealing_steps or objective.reconstruction_weight, "
    "as --preset pairs-small has"
)


@dataclass(frozen=True)
class Validation:
    """Figures of one validation."""

    shared: Both  # Recall@1 by shared means; mAP@all, cosine, where rows are paired by class
    exclusive_kl: Mapping[Domain, float]  # KL(q(z^x|x)‖p) in nats; empty without them
    counts: dict[str, Any]  # what was compared: `pairs`, or `classes` and `rows` of x and y
    exclusive_hits: tuple[int, int] | None = None  # queries whose partner comes first by z^x, z^y
    guided_l1: Both | None = None  # L1 of guided translation; None by class or without decoders
    metric: Metric = "euclidean"  # distance between shared means

    @property
    def name(self) -> str:
        """The figure in `shared`."""
        return "mAP@all" if "classes" in self.counts else "Recall@1"

    def record(self) -> dict[str, Any]:
        """Returns plain values for metrics.jsonl."""
        kl = {"exclusive_kl": tuple(self.exclusive_kl.values()) or None}
        if "classes" in self.counts:
            return {"shared_map": self.shared, **kl, **self.counts}
        hits = {"exclusive_hits": self.exclusive_hits}
        rest = {"guided_l1": self.guided_l1, **self.counts, "metric": self.metric}
        return {"shared_recall": self.shared, **hits, **kl, **rest}

    def summary(self) -> str:
        """Returns one line for people."""
        compared = self.counts.get("pairs") or f"{self.counts['classes']} classes"
        text = f"{self.name} {as_text(self.shared)} of {compared}"
        if self.guided_l1 is not None:
            text += f", guided L1 {as_text(self.guided_l1)}"
        return text + "".join(f", KL(z^{d}) {nats:.1f}" for d, nats in self.exclusive_kl.items())

    @property
    def dying(self) -> dict[Domain, str]:
        """A warning for each exclusive latent that carries almost nothing, by domain."""
        return {
            domain: f"the exclusive latent of {domain} is dying: KL {nats:.1f} nats, below "
            f"{retrieval.DYING_NATS:.0f}; right only if {domain} shows nothing of its own. {REVIVE}"
            for domain, nats in self.exclusive_kl.items()
            if nats < retrieval.DYING_NATS
        }

    def warnings(self, baseline: Both | None) -> list[str]:
        """Returns warnings of dying exclusive latents and of retrieval below the baseline."""
        warnings = [*self.dying.values()]
        advice = "Train longer, or try a larger objective.reconstruction_weight"
        if "classes" in self.counts:
            advice += " (a hundredfold), or --preset features"
        # Recall is below by more than two standard errors; mAP over classes by any difference.
        pairs = self.counts.get("pairs", math.inf)
        for way, figure, raw in zip(("x→y", "y→x"), self.shared, baseline or (), strict=False):
            if figure + 2.0 * math.sqrt(figure * (1 - figure) / pairs) < raw:
                warnings.append(
                    f"shared retrieval {way} is below the training-free baseline on validation: "
                    f"{self.name} {figure:.3f} against {raw:.3f}. {advice}"
                )
        return warnings


def as_text(both: Both) -> str:
    """Formats figures of both directions for people."""
    return "{:.3f} / {:.3f}".format(*both)


def validate(
    trained: TrainedModel, split: Split, metric: Metric | Literal["auto"], *, by_class: bool = False
) -> Validation:
    """Measures a model on held-out rows, aligned pairs unless they are paired `by_class`.

    `auto` takes the metric with the higher recall, Euclidean if they are equal; by class it is
    always cosine.
    """
    pairs = retrieval.encode_pairs(trained, split)
    kl = retrieval.exclusive_kl(pairs)
    if by_class:
        ranked = retrieval.class_retrieval(*retrieval.both_means(pairs, "shared"), split)
        counts = {"classes": len(split.classes), "rows": (len(split.x), len(split.y))}
        return Validation(_both(ranked, "map@all"), kl, counts, metric="cosine")
    metrics: tuple[Metric, ...] = ("euclidean", "cosine") if metric == "auto" else (metric,)
    recalls = {metric: _recall(pairs, "shared", metric) for metric in metrics}
    best = max(recalls, key=lambda metric: sum(recalls[metric]))
    count, hits, guided = len(split.x), None, None
    if kl:
        x_to_y, y_to_x = _recall(pairs, "exclusive", best)
        hits = round(x_to_y * count), round(y_to_x * count)
    if trained.network.generative:
        guided = _both(translation_figures(Subject(trained, pairs, split), {"l1": l1}), "l1")
    return Validation(recalls[best], kl, {"pairs": count}, hits, guided, best)


def baseline(data: TrainingData, metric: Metric | Literal["auto"]) -> Both | None:
    """Returns the figures of `validate` without training; None if the domains' widths differ."""
    if data.validation is None:
        return None
    if data.by_class:
        centred = retrieval.baselines(data.validation, data.train).get("baseline_centred")
        return None if centred is None else _both(centred, "map@all")
    own: Metric = "cosine" if metric == "auto" else metric
    raw = retrieval.baselines(data.validation, None, own).get("baseline")
    return None if raw is None else _both(raw, "recall@1")


def _recall(pairs: retrieval.EncodedPairs, kind: LatentKind, metric: Metric) -> Both:
    return _both(
        retrieval.retrieval_figures(*retrieval.both_means(pairs, kind), metric), "recall@1"
    )


def _both(figures: dict[str, Any], key: str) -> Both:
    x_to_y, y_to_x = (figures[direction][key] for direction in ("x_to_y", "y_to_x"))
    return (math.nan if x_to_y is None else x_to_y, math.nan if y_to_x is None else y_to_x)


@dataclass
class Progress:
    """The part of a training's state that decides about weights, kept in checkpoints."""

    kept_step: int | None = None  # of the kept weights; None while nothing is kept
    best: float | None = None  # the score to reach
    kept: dict[str, Any] | None = None  # the kept weights' validation figures
    warnings: list[str] = field(default_factory=list)  # of the last validation
    kept_warnings: list[str] = field(default_factory=list)  # of the kept weights' validation
    refit_steps: int | None = None  # steps of the second training; None until it begins
    held: bool = False  # whether that training keeps the shared means fixed
    stale: int = 0  # validations since the score last rose
    owed: bool = False  # whether a validation is due

    def accepts(
        self, validation: Validation | None, epochs_done: float, selection: SelectionSection
    ) -> bool:
        """Returns whether to keep the weights just validated, and if so remembers their score.

        `recall`: the highest score, the later of equals. `paper`: the same with at most one
        exclusive hit per direction. `last`, or nothing to validate on: always, except before the
        first step.
        """
        if selection.rule == "last" or validation is None:
            return epochs_done > 0
        if epochs_done == 0:
            self.best = sum(validation.shared) * (1.0 + selection.least_gain)
            return True
        if epochs_done < selection.first_epoch:
            return False
        if selection.rule == "paper" and max(validation.exclusive_hits or (0,)) > 1:
            return False
        score = sum(validation.shared)
        self.stale = 0 if self.best is None or score > self.best else self.stale + 1
        if self.best is not None and score < self.best:
            return False
        self.best = score
        return True
