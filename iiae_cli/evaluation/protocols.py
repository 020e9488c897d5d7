"""The paper's measurements as code: paired retrieval (Tables 2, 5), zero-shot (Tables 3, 6),
exclusive KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.metrics import median_rank, recall_at_k
from iiae_cli.evaluation.zero_shot import rank_by_class
from iiae_cli.inference.neighbours import Metric, partner_ranks
from iiae_cli.inference.trained import Encoded, TrainedModel
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.model.gaussian import DiagonalGaussian, kl_to_prior

RECALL_CUTOFFS = (1, 5, 10)
DIRECTIONS: tuple[tuple[Domain, Domain], ...] = (("x", "y"), ("y", "x"))


@dataclass
class EncodedPairs:
    """Latents of aligned pairs: row i of x belongs to row i of y."""

    x: Encoded
    y: Encoded

    def of(self, domain: Domain) -> Encoded:
        """One domain's latents."""
        return self.x if domain == "x" else self.y


def encode_pairs(trained: TrainedModel, split: Split, *, batch_size: int = 256) -> EncodedPairs:
    """Latents of every pair of a split whose rows are aligned (`Split.take_pairs` aligns one)."""
    x, y = (
        trained.encode(split.side(domain).rows, domain, batch_size=batch_size) for domain in DOMAINS
    )
    return EncodedPairs(x, y)


def direction_name(source: Domain, target: Domain) -> str:
    """`x_to_y` or `y_to_x`."""
    return f"{source}_to_{target}"


def retrieval_figures(
    x: NDArray[Any], y: NDArray[Any], metric: Metric = "euclidean"
) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 and median rank in both directions; only the true pair is a hit, all of y (x)
    is the gallery.

    Args:
        x: (N, S).
        y: (N, S), row i the partner of x's row i.
        metric: distance.
    """
    figures: dict[str, dict[str, float]] = {}
    for name, queries, gallery in (("x_to_y", x, y), ("y_to_x", y, x)):
        ranks = partner_ranks(queries, gallery, metric=metric)
        figures[name] = {
            **{f"recall@{k}": recall_at_k(ranks, k) for k in RECALL_CUTOFFS},
            "median_rank": median_rank(ranks),
            "n": len(ranks),
        }
    return figures


def baseline_vectors(rows: NDArray[Any], side: int = 32) -> NDArray[np.float64]:
    """What the training-free baseline compares: (N, …) → (N, P).

    Pictures: grey pixels at `side` × `side`, z-scored within each picture, so that distance ranks
    as correlation does. Features: as they are.
    """
    if rows.ndim == 2:
        return rows.astype(np.float64)
    blocks = []
    for start in range(0, len(rows), 1024):
        pictures = to_inputs(rows[start : start + 1024], (side, side)).double()
        if pictures.shape[1] == 3:
            weights = pictures.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]
            grey = (pictures * weights).sum(dim=1)
        else:
            grey = pictures.mean(dim=1)
        pixels = grey.flatten(1).numpy()
        pixels = pixels - pixels.mean(axis=1, keepdims=True)
        spread = pixels.std(axis=1, keepdims=True)
        blocks.append(pixels / np.where(spread > 0, spread, 1.0))
    return np.concatenate(blocks) if blocks else np.empty((0, side * side))


def baseline_figures(split: Split, metric: Metric) -> dict[str, dict[str, float]] | None:
    """`retrieval_figures` of the training-free baseline on aligned pairs; None where the domains'
    widths differ.
    """
    x, y = baseline_vectors(split.x.rows), baseline_vectors(split.y.rows)
    if x.shape[1] != y.shape[1]:
        return None
    return retrieval_figures(x, y, "euclidean" if split.x.rows.ndim == 4 else metric)


def paired_retrieval(
    pairs: EncodedPairs, split: Split, metric: Metric = "euclidean"
) -> dict[str, Any]:
    """Table 2's figures: by shared means, by exclusive means (its bracketed ablation), and the
    baseline's.

    The baseline needs equal widths in both domains and is left out otherwise; so is the exclusive
    ablation of a model without exclusive latents.
    """
    figures: dict[str, Any] = {
        "shared": retrieval_figures(pairs.x.mean("shared"), pairs.y.mean("shared"), metric),
    }
    if pairs.x.exclusive_mean is not None:
        figures["exclusive"] = retrieval_figures(
            pairs.x.mean("exclusive"), pairs.y.mean("exclusive"), metric
        )
    baseline = baseline_figures(split, metric)
    if baseline is not None:
        figures["baseline"] = baseline
    return figures


def class_retrieval(
    x: NDArray[Any], y: NDArray[Any], x_labels: Sequence[str], y_labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Table 3's figures in both directions: relevance by class, cosine, the other domain's whole
    split as gallery.

    Args:
        x: (N, S).
        y: (M, S).
        x_labels: (N,) classes.
        y_labels: (M,) classes.
    """
    return {
        "x_to_y": rank_by_class(x, y, x_labels, y_labels).figures(),
        "y_to_x": rank_by_class(y, x, y_labels, x_labels).figures(),
    }


def class_baselines(train: Split, split: Split) -> dict[str, dict[str, dict[str, float]]]:
    """Figures that need no training: `raw` rows as they are, `centred` each domain on its mean over
    `train`.

    Empty where the domains' widths differ. Pictures are compared as `baseline_vectors` gives them,
    `raw` only.
    """
    x, y = baseline_vectors(split.x.rows), baseline_vectors(split.y.rows)
    labels = split.x.labels or [], split.y.labels or []
    if x.shape[1] != y.shape[1]:
        return {}
    figures = {"raw": class_retrieval(x, y, *labels)}
    if split.x.rows.ndim == 2 and len(train.x) and len(train.y):
        means = (np.mean(rows, axis=0, dtype=np.float64) for rows in (train.x.rows, train.y.rows))
        figures["centred"] = class_retrieval(x - next(means), y - next(means), *labels)
    return figures


def zero_shot(pairs: EncodedPairs, train: Split, split: Split) -> dict[str, Any]:
    """Table 3 by shared means, beside the exclusive means and the training-free baselines.

    Args:
        pairs: latents of `split`.
        train: the training split of the same file, for the centred baseline.
        split: with labels in both domains.
    """
    labels = split.x.labels or [], split.y.labels or []
    figures: dict[str, Any] = class_retrieval(
        pairs.x.mean("shared"), pairs.y.mean("shared"), *labels
    )
    if pairs.x.exclusive_mean is not None:
        exclusive = class_retrieval(pairs.x.mean("exclusive"), pairs.y.mean("exclusive"), *labels)
        figures["exclusive"] = exclusive
    for name, baseline in class_baselines(train, split).items():
        figures[f"baseline_{name}"] = baseline
    return figures


def exclusive_kl(pairs: EncodedPairs) -> dict[Domain, float]:
    """KL(q(z^x|x)‖p) in nats, mean over rows, per domain; below about 3 an exclusive latent says
    next to nothing.
    """
    figures: dict[Domain, float] = {}
    for domain in DOMAINS:
        encoded = pairs.of(domain)
        if encoded.exclusive_mean is not None and encoded.exclusive_logvar is not None:
            halves = (encoded.exclusive_mean, encoded.exclusive_logvar)
            posterior = DiagonalGaussian(*(torch.from_numpy(half).double() for half in halves))
            figures[domain] = float(kl_to_prior(posterior).mean())
    return figures
