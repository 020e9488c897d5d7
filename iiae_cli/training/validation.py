"""Validation on held-out pairs, which weights are kept, and what to warn of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from iiae_cli.data.dataset import Split
from iiae_cli.evaluation.protocols import (
    baseline_figures,
    encode_pairs,
    exclusive_kl,
    guided_translation,
    retrieval_figures,
)
from iiae_cli.inference.retrieval import Metric
from iiae_cli.model.iiae import IIAE

DEAD_LATENT_NATS = 3.0


@dataclass(frozen=True)
class Validation:
    """Figures of one validation; every pair of values is (x→y, y→x) or (x, y).

    Attributes:
        shared_recall: Recall@1 by shared means.
        exclusive_hits: queries whose partner is first by exclusive means; None without exclusive latents.
        exclusive_kl: KL(q(z^x|x)‖p), KL(q(z^y|y)‖p) in nats; None likewise.
        guided_l1: error of guided translation.
        pairs: how many pairs were compared.
    """

    shared_recall: tuple[float, float]
    exclusive_hits: tuple[int, int] | None
    exclusive_kl: tuple[float, float] | None
    guided_l1: tuple[float, float]
    pairs: int

    def record(self) -> dict[str, Any]:
        """As plain values for metrics.jsonl."""
        return asdict(self)


def validate(
    model: IIAE, split: Split, *, size: tuple[int, int] | None, device: Any, metric: Metric, batch_size: int = 256
) -> Validation:
    """Measure a model on aligned held-out pairs."""
    pairs = encode_pairs(model, split, size=size, device=device, batch_size=batch_size)
    shared = retrieval_figures(pairs.x.mean("shared"), pairs.y.mean("shared"), metric)
    translation = guided_translation(model, pairs, split, size=size, device=device, batch_size=batch_size)
    hits = None
    kl = exclusive_kl(pairs)
    if kl:
        exclusive = retrieval_figures(pairs.x.mean("exclusive"), pairs.y.mean("exclusive"), metric)
        hits = (
            round(exclusive["x_to_y"]["recall@1"] * len(split.x)),
            round(exclusive["y_to_x"]["recall@1"] * len(split.x)),
        )
    return Validation(
        shared_recall=(shared["x_to_y"]["recall@1"], shared["y_to_x"]["recall@1"]),
        exclusive_hits=hits,
        exclusive_kl=(kl["x"], kl["y"]) if kl else None,
        guided_l1=(translation["x_to_y"]["l1"], translation["y_to_x"]["l1"]),
        pairs=len(split.x),
    )


def baseline_recall(split: Split, metric: Metric) -> tuple[float, float] | None:
    """Recall@1 of the training-free baseline on the same pairs; None where the domains' widths differ."""
    figures = baseline_figures(split, metric)
    if figures is None:
        return None
    return figures["x_to_y"]["recall@1"], figures["y_to_x"]["recall@1"]


@dataclass
class Selection:
    """Decides which weights are kept.

    Args:
        rule: `recall`: highest sum of both directions' shared Recall@1, the later of equals. `paper`: the same among
            validations with at most one exclusive hit per direction. `last`: always the newest.
        first_epoch: epochs that must be complete before weights may be kept.
        best: highest sum so far.
    """

    rule: Literal["recall", "paper", "last"] = "recall"
    first_epoch: int = 0
    best: float | None = None

    def accepts(self, validation: Validation | None, epochs_done: float) -> bool:
        """Whether the weights just validated are to be kept; remembers their score when they are.

        `validation` may be None only under `last`.
        """
        if self.rule == "last":
            return True
        assert validation is not None
        if epochs_done < self.first_epoch:
            return False
        if self.rule == "paper" and validation.exclusive_hits is not None and max(validation.exclusive_hits) > 1:
            return False
        score = sum(validation.shared_recall)
        if self.best is not None and score < self.best:
            return False
        self.best = score
        return True


def warnings_of(validation: Validation, baseline: tuple[float, float] | None) -> list[str]:
    """What a person should know of a trained model: a dead exclusive latent, retrieval below the baseline.

    Recall counts as below where the difference is more than two standard errors of so many validation pairs.
    """
    warnings = []
    for domain, nats in zip("xy", validation.exclusive_kl or (), strict=False):
        if nats < DEAD_LATENT_NATS:
            warnings.append(
                f"the exclusive latent of {domain} is dying: KL {nats:.1f} nats, below {DEAD_LATENT_NATS:.0f}, says "
                "next to nothing of its domain. Try objective.reconstruction=l2 where its pictures are mostly "
                "background, a larger objective.reconstruction_weight or annealing_steps, or fewer model.stages"
            )
    for direction, recall, raw in zip(("x→y", "y→x"), validation.shared_recall, baseline or (), strict=False):
        noise = (recall * (1.0 - recall) / validation.pairs) ** 0.5
        if recall + 2.0 * noise < raw:
            warnings.append(
                f"shared retrieval {direction} is below the training-free baseline on validation: Recall@1 "
                f"{recall:.3f} against {raw:.3f}. Train longer, or try a larger objective.reconstruction_weight"
            )
    return warnings


def hold_out(pair_count: int, fraction: float, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Split pairs 0…N−1 into (training, validation) indices, both ascending; at least two pairs validate."""
    held = max(2, round(pair_count * fraction))
    order = np.random.default_rng((seed, pair_count)).permutation(pair_count)
    return np.sort(order[held:]), np.sort(order[:held])
