"""What a model takes from the training rows before the first step: scales, and where linear paths begin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.builders import picture_size
from iiae_cli.common import console
from iiae_cli.config.schema import Config
from iiae_cli.data.batches import to_inputs
from iiae_cli.extensions.linear_paths import canonical_maps
from iiae_cli.model import DOMAINS
from iiae_cli.model.iiae import IIAE, Standardise
from iiae_cli.model.networks import PassInput
from iiae_cli.training.data import TrainingData

CANONICAL_PAIRS = 10_000  # more change little
MAP_ROWS = 40_000  # cells of a map have one map in common, and there are many to a pair
SMALLEST_SCALE = (
    0.05  # of all dimensions' scale: a dimension that hardly varies is not blown up beyond it
)


def take_statistics(model: IIAE, data: TrainingData, config: Config) -> None:
    """Set a new model's statistics and linear paths as the configuration says; models without them are left alone."""
    for domain in DOMAINS:
        if domain in model.standardise:
            standardise = model.standardise[domain]
            assert isinstance(standardise, Standardise)
            mean, scale = scales(
                data.train.side(domain).rows, each=config.data.standardise == "each"
            )
            standardise.set(torch.from_numpy(mean), torch.from_numpy(scale))
    if config.model.linear_path == "canonical":
        _start_canonical(model, data, config)
    if config.model.linear_path != "two-covariance":
        return
    if data.info.shape_x != data.info.shape_y:
        console.say("the domains differ in width: linear paths begin at random")
        return
    x, y, labels_x, labels_y = data.pair_labels()
    with torch.no_grad():
        read_x = model.read("x", torch.from_numpy(np.asarray(x)))
        read_y = model.read("y", torch.from_numpy(np.asarray(y)))
    weight = two_covariance_map(
        read_x.numpy(),
        read_y.numpy(),
        labels_x,
        labels_y,
        model.shared_shape[0],
        config.model.linear_shrinkage,
    )
    model.start_linear_paths(torch.from_numpy(weight.astype(np.float32)))


def _start_canonical(model: IIAE, data: TrainingData, config: Config) -> None:
    """Let a picture model's linear paths begin as the canonical correlation of both domains' descriptions."""
    size = picture_size(config, data.info)
    cells = math.prod(model.shared_shape[1:])
    count = min(data.count, CANONICAL_PAIRS, max(1, MAP_ROWS // cells))
    blocks: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, count, 256):
        rows = data.rows(np.arange(start, min(start + 256, count)))
        for described, features, some in zip(blocks, model.features.values(), rows, strict=True):
            assert isinstance(features, PassInput) and features.describe is not None
            described.append(windows(features.describe(to_inputs(some, size))))
    x, y = (torch.cat(described).numpy() for described in blocks)
    maps = canonical_maps(x, y, model.shared_shape[0], config.model.linear_shrinkage)
    (weight_x, bias_x), (weight_y, bias_y) = (
        tuple(torch.from_numpy(part.astype(np.float32)) for part in one) for one in maps
    )
    model.start_canonical_paths((weight_x, weight_y), (bias_x, bias_y))


def windows(described: Tensor) -> Tensor:
    """Descriptions (B, F) as they are; of maps (B, F, 2H, 2W) the window of every cell of the latent, (B·H·W, F·16)."""
    if described.ndim == 2:
        return described
    return F.unfold(described, kernel_size=4, stride=2, padding=1).transpose(1, 2).flatten(0, 1)


def scales(rows: NDArray[Any], *, each: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (F,) and scale (F,) of rows (N, F).

    The scale is the root mean square deviation over all dimensions, or with `each` every dimension's own, but no less
    than a twentieth of the former.
    """
    deviation = np.std(rows, axis=0, dtype=np.float64)
    overall = float(np.sqrt(np.mean(deviation**2))) or 1.0
    scale = (
        np.maximum(deviation, SMALLEST_SCALE * overall)
        if each
        else np.full(len(deviation), overall)
    )
    return np.mean(rows, axis=0, dtype=np.float64), scale


def two_covariance_map(
    x: NDArray[Any],
    y: NDArray[Any],
    x_labels: Sequence[str],
    y_labels: Sequence[str],
    dim: int,
    shrinkage: float,
) -> NDArray[np.float64]:
    """The linear map (S, F) whose image has isotropic within-class variation, its S widest directions.

    In the linear-Gaussian model x = V z^s + W z^x + noise, of which an IIAE is the non-linear kin, the shared posterior
    mean weighs down what varies within a class. What varies there is estimated around each class's mean, in which
    both domains count alike, so that the gap between the domains is part of it; few rows estimate it badly, hence the
    shrinkage. Outputs have unit variance on average, as the prior has.

    Args:
        x: (N, F), centred on its mean; `y` (M, F) likewise.
        x_labels: (N,) classes; `y_labels` (M,) likewise.
        dim: S; where it exceeds F the last rows are zero.
        shrinkage: times the mean variance, added to the within-class covariance.
    """
    names_x, names_y = np.asarray(x_labels, dtype=np.str_), np.asarray(y_labels, dtype=np.str_)
    classes, codes = np.unique(np.concatenate([names_x, names_y]), return_inverse=True)
    rows = np.concatenate([x, y]).astype(np.float64)
    means = np.zeros((len(classes), rows.shape[1]))
    domains = np.zeros(len(classes))
    for part in (slice(len(x)), slice(len(x), None)):
        counts = np.bincount(codes[part], minlength=len(classes))
        sums = np.zeros_like(means)
        np.add.at(sums, codes[part], rows[part])
        means += sums / np.maximum(counts, 1)[:, None]
        domains += counts > 0
    means /= domains[:, None]
    deviations = rows - means[codes]
    within = deviations.T @ deviations / len(rows)
    variance = float(np.trace(within)) / len(within)
    values, vectors = np.linalg.eigh(within + (shrinkage * variance or 1.0) * np.eye(len(within)))
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    white = rows @ whiten
    spread, directions = np.linalg.eigh(white.T @ white / len(white))
    kept = directions[:, ::-1][:, :dim]
    scale = float(np.sqrt(np.mean(spread[::-1][:dim]))) or 1.0
    found = np.zeros((dim, rows.shape[1]))
    found[: kept.shape[1]] = (whiten @ kept).T / scale
    return found
