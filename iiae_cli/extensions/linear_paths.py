"""Regularised canonical correlation: where the linear paths of a picture model begin.

Two linear maps, one per domain, onto the directions in which partners agree most (Hotelling, 1936), each direction
weighed by a power of its correlation, as one in which partners hardly agree only adds noise to distances. A closed form
on some hundreds of numbers per picture: seconds, and for a thousand pairs better than what minutes of gradient descent
find (docs/small-sets.md).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular, svd

CORRELATION_POWER = 0.75

Floats: TypeAlias = NDArray[np.float64]
AffineMap: TypeAlias = tuple[Floats, Floats]


def canonical_maps(
    x: NDArray[Any], y: NDArray[Any], dim: int, shrinkage: float
) -> tuple[AffineMap, AffineMap]:
    """Weights (S, F) and biases (S,) of x and of y.

    Outputs have mean zero over these rows, and x's unit variance on average over dimensions, as the prior has.

    Args:
        x: (N, F) rows.
        y: (N, G) rows, row i the partner of x's row i.
        dim: S; what exceeds F or G is zero.
        shrinkage: > 0, times a domain's mean variance, added to its covariance.
    """
    means = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    centred = x - means[0], y - means[1]
    lower_x, lower_y = (_factor(rows, shrinkage) for rows in centred)
    across = centred[0].T @ centred[1] / len(x)
    white = solve_triangular(lower_x, across, lower=True)
    white = solve_triangular(lower_y, white.T, lower=True).T
    left, correlations, right = _svd(white)
    kept = min(dim, len(correlations))
    power = correlations[:kept] ** CORRELATION_POWER
    found = []
    for lower, directions in ((lower_x, left[:, :kept]), (lower_y, right[:kept].T)):
        weight = np.zeros((dim, len(lower)))
        weight[:kept] = (solve_triangular(lower.T, directions) * power).T
        found.append(weight)
    scale = float(np.sqrt(np.mean((centred[0] @ found[0].T) ** 2))) or 1.0
    weight_x, weight_y = (weight / scale for weight in found)
    return (weight_x, -weight_x @ means[0]), (weight_y, -weight_y @ means[1])


def _svd(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    """A thin SVD. LAPACK's fast driver fails on a rare matrix, however healthy; its slow one does not."""
    try:
        left, sizes, right = svd(matrix, full_matrices=False)
    except LinAlgError:
        left, sizes, right = svd(matrix, full_matrices=False, lapack_driver="gesvd")
    return left, sizes, right


def _factor(rows: Floats, shrinkage: float) -> Floats:
    """The lower Cholesky factor of a shrunk covariance (F, F)."""
    covariance = rows.T @ rows / len(rows)
    added = shrinkage * float(np.trace(covariance)) / len(covariance)
    factor: Floats = cholesky(covariance + (added or 1.0) * np.eye(len(covariance)), lower=True)
    return factor
