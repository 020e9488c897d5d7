"""Fits in closed form to training rows: starts of linear paths, and what is erased from means.

Retrieval and translation use posterior *means*, which carry faint traces that no sample carries:
the posterior's noise drowns them, so the bound does not pay for removing them, but a probe reads
them. `fit_erasure` removes them after training by two linear steps that neither read a label nor
touch the weights: the channel (`channel_basis`) and LEACE (`leace`).

Shapes: N rows, F features, S shared (flattened), E exclusive, D and C dimensions of any rows, k
directions kept, r rank. Fits are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular, svd
from torch import Tensor

from iiae_cli.extensions.extended import LinearErasure
from iiae_cli.model.iiae import DiagonalGaussian

CORRELATION_POWER = 0.75
SMALLEST_VARIANCE = 1e-10  # times the largest; directions below are rounding errors

Floats: TypeAlias = NDArray[np.float64]
AffineMap: TypeAlias = tuple[Floats, Floats]  # weights (S, F) and biases (S,)


# ---- where linear paths begin


def canonical_maps(
    x: NDArray[Any], y: NDArray[Any], dim: int, shrinkage: float
) -> tuple[AffineMap, AffineMap]:
    """Fits maps of partners x and y (N, F) onto the directions in which they agree most.

    Canonical correlation (Hotelling, 1936), `shrinkage` > 0 as in `_shrunk`. Each direction is
    weighed by a power of its correlation, as one in which partners hardly agree only adds noise to
    distances. Outputs have mean zero, and x's unit variance on average; what exceeds F is zero.
    """
    means = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    centred = x - means[0], y - means[1]
    lower_x, lower_y = (cholesky(_shrunk(rows, shrinkage), lower=True) for rows in centred)
    across = centred[0].T @ centred[1] / len(x)
    white = solve_triangular(lower_x, across, lower=True)
    white = solve_triangular(lower_y, white.T, lower=True).T
    left, correlations, right = (part.numpy() for part in thin_svd(torch.from_numpy(white)))
    kept = min(dim, len(correlations))
    power = correlations[:kept] ** CORRELATION_POWER
    weights = []
    for lower, directions in ((lower_x, left[:, :kept]), (lower_y, right[:kept].T)):
        weight = np.zeros((dim, len(lower)))
        weight[:kept] = (solve_triangular(lower.T, directions) * power).T
        weights.append(weight)
    scale = _deviation(centred[0] @ weights[0].T)
    weight_x, weight_y = (weight / scale for weight in weights)
    return (weight_x, -weight_x @ means[0]), (weight_y, -weight_y @ means[1])


def common_map(
    x: NDArray[Any], y: NDArray[Any], dim: int, shrinkage: float
) -> tuple[AffineMap, AffineMap]:
    """Fits the same weights to partners x and y (N, F), each domain around its own mean.

    Directions, powers and `shrinkage` are those of `canonical_maps` with one covariance for both
    domains, and of the cross-covariance the symmetric part: half as much to estimate.
    """
    means = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    centred = x - means[0], y - means[1]
    across = centred[0].T @ centred[1] / len(x)
    kept, width = min(dim, len(across)), len(across)
    correlations, directions = eigh(
        (across + across.T) / 2,
        _shrunk(np.concatenate(centred), shrinkage),
        subset_by_index=(width - kept, width - 1),
    )
    weight = np.zeros((dim, width))
    weight[:kept] = (directions * correlations.clip(0) ** CORRELATION_POWER).T[::-1]
    weight /= _deviation(centred[0] @ weight.T)
    return (weight, -weight @ means[0]), (weight, -weight @ means[1])


def _deviation(outputs: Floats) -> float:
    """Returns the root of the mean square, or 1 for zeros."""
    return float(np.sqrt(np.mean(outputs**2))) or 1.0


def _shrunk(centred: Floats, shrinkage: float) -> Floats:
    """Returns the covariance (F, F) of centred rows plus `shrinkage` times its mean variance."""
    covariance: Floats = centred.T @ centred / len(centred)
    added = shrinkage * float(np.trace(covariance)) / len(covariance)
    return covariance + (added or 1.0) * np.eye(len(covariance))


def two_covariance_map(
    x: NDArray[Any], y: NDArray[Any], labels: Sequence[Sequence[str]], dim: int, shrinkage: float
) -> Floats:
    """Fits weights (S, F): the S widest directions after isotropic within-class variation.

    In the linear-Gaussian model x = V z^s + W z^x + noise the shared posterior mean weighs down
    what varies within a class, around a mean in which both domains count alike: their gap is part
    of it. Rows (N, F) are centred. Outputs have unit variance; what exceeds F is zero.
    """
    classes, codes = np.unique(np.concatenate(labels), return_inverse=True)
    rows = np.concatenate([x, y]).astype(np.float64)
    means = np.zeros((len(classes), rows.shape[1]))
    domains = np.zeros(len(classes))  # in which a class occurs
    for part in (slice(len(x)), slice(len(x), None)):
        counts = np.bincount(codes[part], minlength=len(classes))
        sums = np.zeros_like(means)
        np.add.at(sums, codes[part], rows[part])
        means += sums / np.maximum(counts, 1)[:, None]
        domains += counts > 0
    means /= domains[:, None]
    values, vectors = np.linalg.eigh(_shrunk(rows - means[codes], shrinkage))
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    white = rows @ whiten
    spread, directions = np.linalg.eigh(white.T @ white / len(white))
    kept = directions[:, ::-1][:, :dim]
    scale = float(np.sqrt(np.mean(spread[::-1][:dim]))) or 1.0
    weight = np.zeros((dim, rows.shape[1]))
    weight[: kept.shape[1]] = (whiten @ kept).T / scale
    return weight


def thin_svd(matrix: Tensor) -> tuple[Tensor, ...]:
    """Returns a thin SVD, by LAPACK's slow driver if the fast one fails."""
    try:
        parts = svd(matrix.numpy(), full_matrices=False)
    except LinAlgError:
        parts = svd(matrix.numpy(), full_matrices=False, lapack_driver="gesvd")
    return tuple(torch.from_numpy(part) for part in parts)


# ---- what is erased from posterior means


def channel_basis(mean: Tensor, noise: Tensor, least_snr: float) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the directions in which means (N, S) vary `least_snr` times as much as samples.

    Returns the average mean (S,) and, strongest first, left and right (S, k): coordinates are
    (mean − average) · right, and left leads back. The posterior's noise, on average `noise` (S,),
    has variance 1 in them, and so means have their signal-to-noise ratio. Along a direction a mean
    says at most ½ log(1 + SNR) nats: reverse water-filling for a Gaussian channel.
    """
    mean, scale = mean.double(), noise.double().sqrt()
    centre = mean.mean(dim=0)
    white = (mean - centre) / scale
    tall = len(white) >= white.shape[1]
    gram = white.T @ white if tall else white @ white.T  # the smaller one; the same spectrum
    snr, directions = torch.linalg.eigh(gram / len(white))
    if not tall:
        directions = torch.nn.functional.normalize(white.T @ directions, dim=0)
    kept = (snr >= least_snr) & (snr > SMALLEST_VARIANCE * snr[-1])
    directions = directions[:, kept].flip(1)
    return centre, scale[:, None] * directions, directions / scale[:, None]


def leace(
    values: Tensor, concept: Tensor, partner: Tensor, least_correlation: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Fits least-squares concept erasure (LEACE; Belrose et al., NeurIPS 2023): A, B, each (D, r).

    With a `partner` of zeros, v − A·Bᵀ(v − v̄) is the least change of values (N, D), in every norm,
    after which no linear map reads the concept (N, C). With what the other domain says of the same
    rows (N, D), only what the concept predicts of the *difference* is erased, as what both say is
    shared; canonical correlations up to `least_correlation` are left alone.
    """
    values, concept = (part.double() - part.double().mean(dim=0) for part in (values, concept))
    variances, axes = _spectrum(values)
    whiten, colour = (axes / variances.sqrt()) @ axes.T, (axes * variances.sqrt()) @ axes.T
    concept_variances, concept_axes = _spectrum(concept)
    white_concept = concept @ (concept_axes / concept_variances.sqrt())
    seen = values - partner.double()
    directions, correlation, _ = thin_svd(whiten @ seen.T @ white_concept / len(values))
    erased = directions[:, correlation > max(least_correlation, SMALLEST_VARIANCE**0.5)]
    return colour @ erased, whiten @ erased


def _spectrum(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Returns variances (r,) and axes (D, r) of centred rows (N, D) without constant ones."""
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = variances > SMALLEST_VARIANCE * variances[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return variances[kept], axes[:, kept]


def fit_erasure(
    erase: LinearErasure,
    shared: DiagonalGaussian,
    exclusive: Tensor,
    partner: Tensor,
    *,
    least_snr: float,
    least_correlation: float,
) -> None:
    """Fits one domain's erasure to its posteriors on training pairs.

    `shared` is r(z^s|·) (N, S), `exclusive` means (N, E), `partner` the other domain's shared means
    (N, S). Nothing is erased where all is noise.
    """
    noise = torch.exp(shared.logvar.double()).mean(dim=0)
    centre, left, right = channel_basis(shared.mean, noise, least_snr)
    if right.shape[1]:
        # The concept is the model's own exclusive mean, where it predicts what a pair's two
        # shared means disagree in.
        own = (shared.mean.double() - centre) @ right
        other = (partner.double() - centre) @ right
        removed, read = leace(own, exclusive, other, least_correlation)
        remaining = torch.eye(len(removed), dtype=torch.float64) - removed @ read.T
        rank = len(removed) - removed.shape[1]
        towards, sizes, source = thin_svd(remaining)
        left, right = left @ (towards[:, :rank] * sizes[:rank]), right @ source[:rank].T
    erase.set(centre, left, right)
