"""Translation against the true partner (paper, Table 4), guided by it or sampled: L1, SSIM, LPIPS.

Measures are functions of two batches that return one number per picture, so that the best of N
samples can be chosen picture by picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.protocols import DIRECTIONS, EncodedPairs, direction_name
from iiae_cli.inference.trained import TrainedModel, inference, prior_samples
from iiae_cli.model import Domain

Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Figures: TypeAlias = dict[str, float | int | None]

_SSIM_MARGIN = 5  # pixels around a window's centre; the window is a Gaussian of σ = 1.5
_HIGHER_IS_BETTER = frozenset({"ssim"})


def l1(translated: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference per row (B,), of pictures (B, C, H, W) or features (B, F)."""
    return (translated.float() - wanted.float()).abs().flatten(1).mean(dim=1)


def ssim(translated: Tensor, wanted: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) per picture (B,): mean over channels and windows.

    torchmetrics' windows of 11 pixels, of which only those inside the picture count, as its
    releases differ in what they do with the border. A side under 11 pixels has none: NaN.

    Args:
        translated: (B, C, H, W) in [−1, 1].
        wanted: likewise.
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


FEATURE_MEASURES: Mapping[str, Measure] = {"l1": l1}
PICTURE_MEASURES: Mapping[str, Measure] = {"l1": l1, "ssim": ssim}


def translation_figures(
    trained: TrainedModel,
    pairs: EncodedPairs,
    split: Split,
    *,
    measures: Mapping[str, Measure] = FEATURE_MEASURES,
    samples: int = 0,
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, Figures]:
    """How close each row's translation comes to its partner, per direction.

    Guided: with the partner's exclusive mean. Sampled: with N draws from the prior, `_mean` over
    all and `_best` over inputs of the best of each one's N (the smallest L1 or LPIPS, the largest
    SSIM); a model without exclusive latents has nothing to sample. None if not finite.

    Args:
        trained: the model.
        pairs: latents of `split`.
        split: of aligned rows.
        measures: by name; pictures are compared in [−1, 1], features as they are.
        samples: N; 0 for guided translation only.
        seed: of the samples.
        batch_size: rows at once.
    """
    figures: dict[str, Figures] = {}
    exclusive_dim, count = trained.network.exclusive_dim, len(split.x)
    samples = samples if exclusive_dim else 0
    drawn = prior_samples(samples, count, exclusive_dim, seed).numpy() if samples else None
    for way in DIRECTIONS:
        rows = split.side(way[1]).rows
        partner = pairs.of(way[1]).exclusive_mean
        outputs = translated_batches(trained, pairs, way, partner, batch_size)
        guided = _measured(trained, rows, outputs, measures)
        entry: Figures = {name: _mean(values) for name, values in guided.items()}
        if drawn is not None:
            entry["samples"] = samples
            sampled = []
            for number in range(samples):
                outputs = translated_batches(trained, pairs, way, drawn[:, number], batch_size)
                sampled.append(_measured(trained, rows, outputs, measures))
            for name in measures:
                values = np.stack([by_name[name] for by_name in sampled])  # (samples, N)
                best = values.max(axis=0) if name in _HIGHER_IS_BETTER else values.min(axis=0)
                entry |= {f"{name}_mean": _mean(values), f"{name}_best": _mean(best)}
        figures[direction_name(*way)] = {**entry, "n": count}
    return figures


def translated_batches(
    trained: TrainedModel,
    pairs: EncodedPairs,
    way: tuple[Domain, Domain],
    exclusive: NDArray[np.float32] | None,
    batch_size: int = 256,
) -> Iterator[tuple[slice, Tensor]]:
    """Decode every row's shared mean in the other domain: the rows of each batch, and its outputs.

    Args:
        trained: the model.
        pairs: latents of N aligned rows.
        way: from which domain to which.
        exclusive: (N, E) latents of the target domain; None for a model without them.
        batch_size: rows at once.
    """
    source, target = way
    shared = torch.from_numpy(pairs.of(source).mean("shared"))
    for start in range(0, len(shared), batch_size):
        part = slice(start, start + batch_size)
        own = None
        if exclusive is not None:
            own = torch.from_numpy(exclusive[part]).to(trained.device)
        with inference(trained.network):
            outputs = trained.network.decode(target, shared[part].to(trained.device), own)
        yield part, outputs


def _measured(
    trained: TrainedModel,
    rows: NDArray[Any],
    outputs: Iterator[tuple[slice, Tensor]],
    measures: Mapping[str, Measure],
) -> dict[str, NDArray[np.float64]]:
    """Every measure (N,) of outputs against the rows that they should be."""
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in measures}
    for part, translated in outputs:
        wanted = trained.inputs(rows[part])
        for name, measure in measures.items():
            values[name].append(measure(translated, wanted).double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in values.items()}


def _mean(values: NDArray[np.float64]) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None
