"""Validation on held-out rows, which weights are kept, and what to warn of.

Sets that are paired one by one are validated by Recall@1 of held-out pairs, sets that are paired by
class by mAP@all of held-out classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.disentanglement import DYING_NATS
from iiae_cli.evaluation.retrieval import (
    EncodedPairs,
    baseline_figures,
    class_baselines,
    class_retrieval,
    encode_pairs,
    exclusive_kl,
    retrieval_figures,
)
from iiae_cli.evaluation.translation import Subject, translation_figures
from iiae_cli.inference.neighbours import Metric
from iiae_cli.inference.trained import LatentKind, TrainedModel

METRICS: tuple[Metric, ...] = ("euclidean", "cosine")
Both = tuple[float, float]  # (x→y, y→x) or (x, y)


@dataclass(frozen=True)
class Validation:
    """Figures of one validation.

    Attributes:
        shared: Recall@1 by shared means; mAP@all, cosine, where rows are paired by class.
        exclusive_kl: KL(q(z^x|x)‖p), KL(q(z^y|y)‖p) in nats; None without exclusive latents.
        counts: how much was compared: `pairs`, or `classes` and `rows` of x and y.
        exclusive_hits: queries whose partner is first by exclusive means; None by class and without
            them.
        guided_l1: error of guided translation; None by class and without decoders.
        metric: distance between shared means.
    """

    shared: Both
    exclusive_kl: Both | None
    counts: dict[str, Any]
    exclusive_hits: tuple[int, int] | None = None
    guided_l1: Both | None = None
    metric: Metric = "euclidean"

    @property
    def by_class(self) -> bool:
        """Whether rows are paired by class."""
        return "classes" in self.counts

    @property
    def name(self) -> str:
        """What `shared` measures."""
        return "mAP@all" if self.by_class else "Recall@1"

    @property
    def score(self) -> float:
        """What the selection compares: the sum of both directions."""
        return sum(self.shared)

    def record(self) -> dict[str, Any]:
        """As plain values for metrics.jsonl."""
        kl = {"exclusive_kl": self.exclusive_kl}
        if self.by_class:
            return {"shared_map": self.shared, **kl, **self.counts}
        hits = {"exclusive_hits": self.exclusive_hits}
        rest = {"guided_l1": self.guided_l1, **self.counts, "metric": self.metric}
        return {"shared_recall": self.shared, **hits, **kl, **rest}

    def scalars(self) -> dict[str, float]:
        """For TensorBoard."""
        name = "map" if self.by_class else "recall"
        scalars: dict[str, float] = {}
        for key, both in ((name, self.shared), ("l1", self.guided_l1)):
            if both is not None:
                scalars |= {f"{key}_x_to_y": both[0], f"{key}_y_to_x": both[1]}
        for domain, nats in zip("xy", self.exclusive_kl or (), strict=False):
            scalars[f"kl_exclusive_{domain}"] = nats
        return scalars

    def summary(self) -> str:
        """One line for people."""
        of = f"{self.counts['classes']} classes" if self.by_class else str(self.counts["pairs"])
        text = f"{self.name} {_pair(self.shared)} of {of}"
        if self.guided_l1 is not None:
            text += f", guided L1 {_pair(self.guided_l1)}"
        nats = zip("xy", self.exclusive_kl or (), strict=False)
        return text + "".join(f", KL(z^{domain}) {value:.1f}" for domain, value in nats)

    def facts(self) -> dict[str, str]:
        """For the live display."""
        return {self.name: _pair(self.shared)}

    def warnings(self, baseline: Both | None) -> list[str]:
        """What to warn of: a dead exclusive latent, retrieval below the baseline.

        Recall counts as below if the difference is more than two standard errors of so many pairs.
        """
        warnings = [
            f"the exclusive latent of {domain} is dying: KL {value:.1f} nats, below "
            f"{DYING_NATS:.0f}, says next to nothing of its domain. Try "
            "objective.reconstruction=l2 where its pictures are mostly background, a larger "
            "objective.reconstruction_weight or annealing_steps, or fewer model.stages"
            for domain, value in zip("xy", self.exclusive_kl or (), strict=False)
            if value < DYING_NATS
        ]
        advice = "Train longer, or try a larger objective.reconstruction_weight"
        if self.by_class:
            advice = (
                "A model of features stays collapsed for long where "
                "objective.reconstruction_weight is small: train longer, raise it a hundredfold, "
                "or use --preset features"
            )
        for way, figure, raw in zip(("x→y", "y→x"), self.shared, baseline or (), strict=False):
            pairs = self.counts.get(
                "pairs", math.inf
            )  # mAP is over classes: no noise is allowed for
            if figure + 2.0 * math.sqrt(figure * (1 - figure) / pairs) < raw:
                warnings.append(
                    f"shared retrieval {way} is below the training-free baseline on validation: "
                    f"{self.name} {figure:.3f} against {raw:.3f}. {advice}"
                )
        return warnings


def _pair(both: Both) -> str:
    return "{:.3f} / {:.3f}".format(*both)


def _both(figures: dict[str, Any], key: str) -> Both:
    x_to_y, y_to_x = (figures[direction][key] for direction in ("x_to_y", "y_to_x"))
    return (math.nan if x_to_y is None else x_to_y, math.nan if y_to_x is None else y_to_x)


def validate(
    trained: TrainedModel, split: Split, *, metric: Metric | Literal["auto"], by_class: bool = False
) -> Validation:
    """Measure a model on held-out rows, aligned pairs unless they are paired `by_class`.

    The metric `auto` is the distance with the higher recall, Euclidean of equals; by class it is
    always cosine.
    """
    pairs = encode_pairs(trained, split)
    kl = exclusive_kl(pairs)
    nats = (kl["x"], kl["y"]) if kl else None
    if by_class:
        labels_x, labels_y = split.x.labels or [], split.y.labels or []
        ranked = class_retrieval(pairs.x.mean("shared"), pairs.y.mean("shared"), labels_x, labels_y)
        counts = {"classes": len({*labels_x} & {*labels_y}), "rows": (len(split.x), len(split.y))}
        return Validation(_both(ranked, "map@all"), nats, counts, metric="cosine")
    metrics = METRICS if metric == "auto" else (metric,)
    recalls = {metric: _recall(pairs, "shared", metric) for metric in metrics}
    best = max(recalls, key=lambda metric: sum(recalls[metric]))
    count, hits, guided = len(split.x), None, None
    if kl:
        x_to_y, y_to_x = _recall(pairs, "exclusive", best)
        hits = round(x_to_y * count), round(y_to_x * count)
    if trained.network.generative:
        guided = _both(translation_figures(Subject(trained, pairs, split)), "l1")
    return Validation(recalls[best], nats, {"pairs": count}, hits, guided, best)


def _recall(pairs: EncodedPairs, kind: LatentKind, metric: Metric) -> Both:
    return _both(retrieval_figures(pairs.x.mean(kind), pairs.y.mean(kind), metric), "recall@1")


def baseline(
    train: Split, split: Split, *, metric: Metric | Literal["auto"], by_class: bool
) -> Both | None:
    """What `validate` measures, of the baseline; None if the domains' widths differ."""
    if by_class:
        centred = class_baselines(train, split).get("centred")
        return None if centred is None else _both(centred, "map@all")
    figures = baseline_figures(split, "cosine" if metric == "auto" else metric)
    return None if figures is None else _both(figures, "recall@1")


@dataclass
class Selection:
    """Decides which weights are kept.

    Args:
        rule: `recall`: the highest score, the later of equals. `paper`: the same among validations
            with at most one exclusive hit per direction. `last`: always the newest.
        first_epoch: epochs that must be complete before weights may be kept.
        patience: validations in a row without a better score that are enough; 0: any number may
            follow.
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

    def start(self, validation: Validation, least_gain: float) -> None:
        """Keep the first weights, unless a later score exceeds theirs by a fraction."""
        self.best = validation.score * (1.0 + least_gain)

    def accepts(self, validation: Validation | None, epochs_done: float) -> bool:
        """Whether the weights just validated are to be kept; if so, their score is remembered.

        `validation` may be None only under `last`.
        """
        if self.rule == "last":
            return True
        assert validation is not None
        if epochs_done < self.first_epoch:
            return False
        if self.rule == "paper" and max(validation.exclusive_hits or (0,)) > 1:
            return False
        score = validation.score
        self.stale = 0 if self.best is None or score > self.best else self.stale + 1
        if self.best is not None and score < self.best:
            return False
        self.best = score
        return True
