"""A penalty on what exclusive means say of the shared content.

It is their distance correlation with the *partner's* shared mean. The paper bounds I(Z^x; Z^s) by a
capacity: the KL of q(z^x|x) to the prior limits how much z^x says, not what it says it of, and if
there is capacity to spare, z^x holds the class too. This measures the dependence itself. The
partner's picture has the same content and none of this domain's manner, so whatever z^x has in
common with r^y(z^s|y) is content.

Distance correlation (Székely, Rizzo & Bakirov, 2007) is zero for independent variables alone,
whatever the form of the dependence, and has nothing to tune; the bias-corrected form (Székely &
Rizzo, 2014) is zero on average for independent ones in small batches as well. The exclusive means
are whitened first ("affinely invariant", Dueck et al., 2014), so that no direction is overlooked
because it varies little.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iiae_cli.model import Domain, other_domain
from iiae_cli.model.gaussian import DiagonalGaussian, full
from iiae_cli.model.iiae import Posteriors, Reconstructions
from iiae_cli.model.objective import Term

FEWEST_ROWS = 4  # below, the bias-corrected form does not exist
RIDGE = 1e-4  # of the mean variance: a whitened batch may have directions in which nothing varies


def dependence_term(weight: float, gather: Callable[[Tensor], Tensor] = lambda rows: rows) -> Term:
    """The penalty of both domains; `gather` makes the whole batch's rows of one process's."""

    def whole(posterior: DiagonalGaussian) -> DiagonalGaussian:
        return DiagonalGaussian(gather(posterior.mean), gather(posterior.logvar))

    def values(posteriors: Posteriors, _: Reconstructions) -> dict[Domain, Tensor]:
        return {
            domain: dependence(whole(own), whole(posteriors.shared[other_domain(domain)]))
            for domain, own in posteriors.exclusive.items()
        }

    return Term("dependence", weight, values)


def dependence(exclusive: DiagonalGaussian, partner: DiagonalGaussian) -> Tensor:
    """Bias-corrected squared distance correlation of exclusive and the partners' shared means.

    Gradients reach the exclusive posterior alone: the shared latent is the measure here.

    Args:
        exclusive: (B, E) of one domain.
        partner: (B, S…) shared posterior of the *other* domain, row i the partner of row i.

    Returns:
        A scalar, at most 1; 0 on average if the two are independent (so a batch may well be
        below), and in batches of fewer than four rows.
    """
    means = full(exclusive.mean).flatten(1)
    if len(means) < FEWEST_ROWS:
        return means.sum() * 0.0
    shared = full(partner.mean.detach()).flatten(1)
    logvar = full(partner.logvar.detach()).flatten(1)
    in_noise = shared * torch.exp(-0.5 * logvar.mean(dim=0))
    return distance_correlation(whitened(means), in_noise)


def whitened(values: Tensor) -> Tensor:
    """Rows (B, D) with zero mean and unit covariance, up to `RIDGE`."""
    centred = values - values.mean(dim=0)
    covariance = centred.T @ centred / len(values)
    ridge = RIDGE * covariance.diagonal().mean() + torch.finfo(values.dtype).tiny
    factor = torch.linalg.cholesky(
        covariance + ridge * torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
    )
    white: Tensor = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    return white


def distance_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Bias-corrected squared distance correlation of rows (B, D) and (B, C), B ≥ 4."""
    a, b = _centred_distances(a), _centred_distances(b)
    scale = (a.square().sum() * b.square().sum()).clamp(min=torch.finfo(a.dtype).tiny).sqrt()
    return (a * b).sum() / scale


def _centred_distances(values: Tensor) -> Tensor:
    """U-centred Euclidean distances (B, B): rows and columns sum to zero, the diagonal is zero."""
    rows = len(values)
    others = ~torch.eye(rows, dtype=torch.bool, device=values.device)
    squares = (values[:, None] - values[None]).square().sum(dim=2)
    distances = (
        torch.where(others, squares, 1.0).clamp(min=torch.finfo(values.dtype).tiny).sqrt() * others
    )
    sums = distances.sum(dim=0) / (rows - 2)
    centred = distances - sums[:, None] - sums[None] + distances.sum() / ((rows - 1) * (rows - 2))
    return centred * others
