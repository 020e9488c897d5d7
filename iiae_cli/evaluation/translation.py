"""Translation against the true partner (paper, Table 4), guided by it or sampled: L1, SSIM, LPIPS.

Measures are functions of two batches that return one number per picture, so that the best of
several samples can be chosen picture by picture.

Shapes: N rows, B of them in a batch, E exclusive dimensions; pictures (B, C, H, W) in [−1, 1] or
features (B, F).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.retrieval import DIRECTIONS, EncodedPairs, direction_name
from iiae_cli.inference.trained import TrainedModel, inference, prior_samples
from iiae_cli.model import Domain

Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Figures: TypeAlias = dict[str, float | int | None]

_SSIM_MARGIN = 5  # pixels around a window's centre; the window is a Gaussian of σ = 1.5
_HIGHER_IS_BETTER = frozenset({"ssim"})


def l1(translated: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference per row (B,)."""
    return (translated.float() - wanted.float()).abs().flatten(1).mean(dim=1)


def ssim(translated: Tensor, wanted: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) per picture (B,): mean over channels and windows.

    torchmetrics' windows of 11 pixels, of which only those inside the picture count, as its
    releases differ in what they do with the border. A side under 11 pixels has none: NaN.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(wanted.shape[-2:]) <= 2 * _SSIM_MARGIN:
        return wanted.new_full((len(wanted),), math.nan)
    _, windows = structural_similarity_index_measure(
        (translated.float() + 1) / 2,
        (wanted.float() + 1) / 2,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    inside = slice(_SSIM_MARGIN, -_SSIM_MARGIN)
    return windows[..., inside, inside].flatten(1).mean(dim=1)


@dataclass(frozen=True)
class Subject:
    """What is measured: a model on the rows of a split."""

    trained: TrainedModel
    pairs: EncodedPairs  # latents of the rows
    split: Split  # aligned rows, unless they are paired by class
    seed: int = 0  # of every draw
    batch_size: int = 256  # rows at once

    def parts(self) -> Iterator[slice]:
        """The rows of each batch."""
        for start in range(0, len(self.split.x), self.batch_size):
            yield slice(start, start + self.batch_size)

    def samples(self, count: int) -> list[NDArray[np.float32]]:
        """Exclusive latents (N, E) from the prior, `count` times; none for a model without them."""
        exclusive_dim = self.trained.network.exclusive_dim
        if not count or not exclusive_dim:
            return []
        drawn = prior_samples(count, range(len(self.split.x)), exclusive_dim, self.seed).numpy()
        return [drawn[:, number] for number in range(count)]

    def translated(
        self, way: tuple[Domain, Domain], exclusive: NDArray[np.float32] | None
    ) -> Iterator[Tensor]:
        """Batches of the rows decoded in the other domain, with its exclusive latents (N, E)."""
        network, device = self.trained.network, self.trained.device
        shared = torch.from_numpy(self.pairs.of(way[0]).mean("shared"))
        for part in self.parts():
            own = None if exclusive is None else torch.from_numpy(exclusive[part]).to(device)
            with inference(network):
                outputs = network.decode(way[1], shared[part].to(device), own)
            yield outputs


FEATURE_MEASURES: Mapping[str, Measure] = {"l1": l1}
PICTURE_MEASURES: Mapping[str, Measure] = {"l1": l1, "ssim": ssim}


def translation_figures(
    subject: Subject, measures: Mapping[str, Measure] = FEATURE_MEASURES, samples: int = 0
) -> dict[str, Figures]:
    """How close each row's translation comes to its partner, per direction.

    Guided: with the partner's exclusive mean. Sampled: with draws from the prior, `_mean` over all
    and `_best` over inputs of each one's best (the smallest L1 or LPIPS, the largest SSIM). A
    figure is None if it is not finite.
    """
    figures: dict[str, Figures] = {}
    drawn = subject.samples(samples)
    for way in DIRECTIONS:
        guided = _measured(subject, way, subject.pairs.of(way[1]).exclusive_mean, measures)
        entry: Figures = {name: _mean(values) for name, values in guided.items()}
        sampled = [_measured(subject, way, exclusive, measures) for exclusive in drawn]
        if sampled:
            entry["samples"] = len(sampled)
            for name in measures:
                values = np.stack([by_name[name] for by_name in sampled])  # (samples, N)
                best = values.max(axis=0) if name in _HIGHER_IS_BETTER else values.min(axis=0)
                entry |= {f"{name}_mean": _mean(values), f"{name}_best": _mean(best)}
        figures[direction_name(*way)] = {**entry, "n": len(subject.split.x)}
    return figures


def _measured(
    subject: Subject,
    way: tuple[Domain, Domain],
    exclusive: NDArray[np.float32] | None,
    measures: Mapping[str, Measure],
) -> dict[str, NDArray[np.float64]]:
    """Every measure (N,) of translations against the partners."""
    rows = subject.split.side(way[1]).rows
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in measures}
    batches = zip(subject.parts(), subject.translated(way, exclusive), strict=True)
    for part, outputs in batches:
        wanted = subject.trained.inputs(rows[part])
        for name, measure in measures.items():
            values[name].append(measure(outputs, wanted).double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in values.items()}


def _mean(values: NDArray[np.float64]) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None
