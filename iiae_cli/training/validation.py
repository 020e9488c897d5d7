"""Validation on held-out rows, which weights are kept, and what to warn of.

Sets that are paired one by one are validated by Recall@1 of held-out pairs, sets that are paired by class by mAP@all of
held-out classes. Both kinds of validation answer the same questions: score, scalars, facts, summary, warnings.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.protocols import (
    baseline_figures,
    class_baselines,
    class_retrieval,
    encode_pairs,
    exclusive_kl,
    retrieval_figures,
)
from iiae_cli.evaluation.translation import Subject, translation_figures
from iiae_cli.inference.neighbours import Metric
from iiae_cli.inference.trained import Encoded, TrainedModel

DEAD_LATENT_NATS = 3.0
METRICS: tuple[Metric, ...] = ("euclidean", "cosine")


@dataclass(frozen=True)
class Validation:
    """Figures of one validation; every pair of values is (x→y, y→x) or (x, y).

    Attributes:
        shared_recall: Recall@1 by shared means.
        exclusive_hits: queries whose partner is first by exclusive means; None without exclusive latents.
        exclusive_kl: KL(q(z^x|x)‖p), KL(q(z^y|y)‖p) in nats; None likewise.
        guided_l1: error of guided translation; None of a dual encoder, which has no decoders.
        pairs: how many pairs were compared.
        metric: which distance between shared means they were compared by.
    """

    shared_recall: tuple[float, float]
    exclusive_hits: tuple[int, int] | None
    exclusive_kl: tuple[float, float] | None
    guided_l1: tuple[float, float] | None
    pairs: int
    metric: Metric = "euclidean"

    def record(self) -> dict[str, Any]:
        """As plain values for metrics.jsonl."""
        return asdict(self)

    @property
    def score(self) -> float:
        """What the selection compares: the sum of both directions' shared Recall@1."""
        return sum(self.shared_recall)

    def scalars(self) -> dict[str, float]:
        """For TensorBoard."""
        names = ("recall_x_to_y", "recall_y_to_x", "l1_x_to_y", "l1_y_to_x")
        scalars = dict(zip(names, (*self.shared_recall, *(self.guided_l1 or ())), strict=False))
        return scalars | _kl_scalars(self.exclusive_kl)

    def facts(self) -> dict[str, str]:
        """For the live display."""
        return {"Recall@1": f"{self.shared_recall[0]:.3f} / {self.shared_recall[1]:.3f}"}

    def summary(self) -> str:
        """One line for people."""
        forward, back = self.shared_recall
        translated = (
            "" if self.guided_l1 is None else ", guided L1 {:.3f} / {:.3f}".format(*self.guided_l1)
        )
        return f"Recall@1 {forward:.3f} / {back:.3f} of {self.pairs}{translated}{_kl_summary(self.exclusive_kl)}"

    def warnings(self, baseline: tuple[float, float] | None) -> list[str]:
        """What a person should know of a trained model: a dead exclusive latent, retrieval below the baseline.

        Recall counts as below where the difference is more than two standard errors of so many pairs.
        """
        warnings = _dead_latents(self.exclusive_kl)
        for direction, recall, raw in zip(
            _ARROWS, self.shared_recall, baseline or (), strict=False
        ):
            noise = (recall * (1.0 - recall) / self.pairs) ** 0.5
            if recall + 2.0 * noise < raw:
                warnings.append(
                    f"shared retrieval {direction} is below the training-free baseline on validation: Recall@1 "
                    f"{recall:.3f} against {raw:.3f}. Train longer, or try a larger objective.reconstruction_weight"
                )
        return warnings


@dataclass(frozen=True)
class ClassValidation:
    """Figures of one validation on held-out classes; every pair of values is (x→y, y→x) or (x, y).

    Attributes:
        shared_map: mAP@all by shared means, cosine.
        exclusive_kl: KL(q(z^x|x)‖p), KL(q(z^y|y)‖p) in nats; None without exclusive latents.
        classes: how many were compared.
        rows: of x and of y.
    """

    shared_map: tuple[float, float]
    exclusive_kl: tuple[float, float] | None
    classes: int
    rows: tuple[int, int]

    def record(self) -> dict[str, Any]:
        """As plain values for metrics.jsonl."""
        return asdict(self)

    @property
    def score(self) -> float:
        """What the selection compares: the sum of both directions' shared mAP@all."""
        return sum(self.shared_map)

    def scalars(self) -> dict[str, float]:
        """For TensorBoard."""
        scalars = {"map_x_to_y": self.shared_map[0], "map_y_to_x": self.shared_map[1]}
        return scalars | _kl_scalars(self.exclusive_kl)

    def facts(self) -> dict[str, str]:
        """For the live display."""
        return {"mAP@all": f"{self.shared_map[0]:.3f} / {self.shared_map[1]:.3f}"}

    def summary(self) -> str:
        """One line for people."""
        forward, back = self.shared_map
        return f"mAP@all {forward:.3f} / {back:.3f} of {self.classes} classes{_kl_summary(self.exclusive_kl)}"

    def warnings(self, baseline: tuple[float, float] | None) -> list[str]:
        """As `Validation.warnings`; the baseline is the raw features' mAP@all, centred on the training mean."""
        warnings = _dead_latents(self.exclusive_kl)
        for direction, figure, raw in zip(_ARROWS, self.shared_map, baseline or (), strict=False):
            if figure < raw:
                warnings.append(
                    f"shared retrieval {direction} is below the training-free baseline on validation: mAP@all "
                    f"{figure:.3f} against {raw:.3f} of the centred features. A model of features stays collapsed for "
                    "long where objective.reconstruction_weight is small: train longer, raise it a hundredfold, or use "
                    "--preset features"
                )
        return warnings


_ARROWS = ("x→y", "y→x")


def _kl_scalars(nats: tuple[float, float] | None) -> dict[str, float]:
    return {
        f"kl_exclusive_{domain}": value for domain, value in zip("xy", nats or (), strict=False)
    }


def _kl_summary(nats: tuple[float, float] | None) -> str:
    return "".join(
        f", KL(z^{domain}) {value:.1f}" for domain, value in zip("xy", nats or (), strict=False)
    )


def _dead_latents(nats: tuple[float, float] | None) -> list[str]:
    return [
        f"the exclusive latent of {domain} is dying: KL {value:.1f} nats, below {DEAD_LATENT_NATS:.0f}, says "
        "next to nothing of its domain. Try objective.reconstruction=l2 where its pictures are mostly "
        "background, a larger objective.reconstruction_weight or annealing_steps, or fewer model.stages"
        for domain, value in zip("xy", nats or (), strict=False)
        if value < DEAD_LATENT_NATS
    ]


def validate(
    trained: TrainedModel,
    split: Split,
    *,
    metric: Metric | Literal["auto"],
    batch_size: int = 256,
) -> Validation:
    """Measure a model on aligned held-out pairs; `auto` is the distance with the higher recall, Euclidean of equals."""
    pairs = encode_pairs(trained, split, batch_size=batch_size)
    metrics = METRICS if metric == "auto" else (metric,)
    recalls = {one: _recalls(pairs.x, pairs.y, one) for one in metrics}
    best = max(recalls, key=lambda one: recalls[one][0] + recalls[one][1])
    guided = None
    if trained.network.generative:
        translation = translation_figures(Subject(trained, pairs, split, batch_size=batch_size))
        guided = (_number(translation["x_to_y"]["l1"]), _number(translation["y_to_x"]["l1"]))
    hits = None
    kl = exclusive_kl(pairs)
    if kl:
        exclusive = retrieval_figures(pairs.x.mean("exclusive"), pairs.y.mean("exclusive"), best)
        hits = (
            round(exclusive["x_to_y"]["recall@1"] * len(split.x)),
            round(exclusive["y_to_x"]["recall@1"] * len(split.x)),
        )
    return Validation(
        shared_recall=recalls[best],
        exclusive_hits=hits,
        exclusive_kl=(kl["x"], kl["y"]) if kl else None,
        guided_l1=guided,
        pairs=len(split.x),
        metric=best,
    )


def _recalls(x: Encoded, y: Encoded, metric: Metric) -> tuple[float, float]:
    figures = retrieval_figures(x.mean("shared"), y.mean("shared"), metric)
    return figures["x_to_y"]["recall@1"], figures["y_to_x"]["recall@1"]


def _number(figure: float | None) -> float:
    return math.nan if figure is None else figure


def validate_classes(trained: TrainedModel, split: Split) -> ClassValidation:
    """Measure a model on rows of held-out classes."""
    pairs = encode_pairs(trained, split)
    labels_x, labels_y = split.x.labels or [], split.y.labels or []
    figures = class_retrieval(pairs.x.mean("shared"), pairs.y.mean("shared"), labels_x, labels_y)
    kl = exclusive_kl(pairs)
    return ClassValidation(
        shared_map=(figures["x_to_y"]["map@all"], figures["y_to_x"]["map@all"]),
        exclusive_kl=(kl["x"], kl["y"]) if kl else None,
        classes=len({*labels_x} & {*labels_y}),
        rows=(len(split.x), len(split.y)),
    )


def baseline_map(train: Split, split: Split) -> tuple[float, float] | None:
    """mAP@all of the raw rows, centred on the training mean; None where the domains' widths differ."""
    figures = class_baselines(train, split)
    if "centred" not in figures:
        return None
    return figures["centred"]["x_to_y"]["map@all"], figures["centred"]["y_to_x"]["map@all"]


def baseline_recall(split: Split, metric: Metric | Literal["auto"]) -> tuple[float, float] | None:
    """Recall@1 of the training-free baseline on the same pairs; None where the domains' widths differ."""
    figures = baseline_figures(split, "cosine" if metric == "auto" else metric)
    if figures is None:
        return None
    return figures["x_to_y"]["recall@1"], figures["y_to_x"]["recall@1"]


@dataclass
class Selection:
    """Decides which weights are kept.

    Args:
        rule: `recall`: highest sum of both directions' shared Recall@1 (mAP@all where rows are paired by class), the
            later of equals. `paper`: the same among validations with at most one exclusive hit per direction. `last`:
            always the newest.
        first_epoch: epochs that must be complete before weights may be kept.
        patience: validations in a row without a better score that are enough; 0: any number may follow.
        best: what the next score must reach.
        stale: validations since the score last rose.
    """

    rule: Literal["recall", "paper", "last"] = "recall"
    first_epoch: int = 0
    patience: int = 0
    best: float | None = None
    stale: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether patience is."""
        return 0 < self.patience <= self.stale

    def start(self, validation: Validation | ClassValidation, least_gain: float) -> None:
        """Keep the weights before the first step, unless a later score exceeds theirs by a fraction of it."""
        self.best = validation.score * (1.0 + least_gain)

    def accepts(self, validation: Validation | ClassValidation | None, epochs_done: float) -> bool:
        """Whether the weights just validated are to be kept; remembers their score when they are.

        `validation` may be None only under `last`.
        """
        if self.rule == "last":
            return True
        assert validation is not None
        if epochs_done < self.first_epoch:
            return False
        hits = getattr(validation, "exclusive_hits", None)
        if self.rule == "paper" and hits is not None and max(hits) > 1:
            return False
        score = validation.score
        self.stale = 0 if self.best is None or score > self.best else self.stale + 1
        if self.best is not None and score < self.best:
            return False
        self.best = score
        return True
