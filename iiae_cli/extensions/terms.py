"""Terms beyond the paper's bound: `contrastive`, `dependence` and `recombination`.

Shapes: B batch, S shared latent, E exclusive latent, D dimensions of any rows. If several processes
share a batch, `gather` makes the whole batch's rows of one process's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iiae_cli.extensions.extended import Recombined
from iiae_cli.model import Domain, other_domain
from iiae_cli.model.iiae import DiagonalGaussian, Posteriors, Reconstructions, full
from iiae_cli.model.objective import Term

FEWEST_ROWS = 4  # bias-corrected distance correlation needs as many
RIDGE = 1e-4  # times the mean variance, for directions in which a batch does not vary


# ---- contrastive: each shared mean should find its own partner's in the batch


def contrastive_term(
    weight: float, temperature: float, gather: Callable[[Tensor], Tensor] = lambda rows: rows
) -> Term:
    """Builds InfoNCE of a batch's shared means: ln B − loss ≤ I(r^x; r^y), bounding the II."""

    def value(posteriors: Posteriors, _: Reconstructions) -> Tensor:
        x, y = gather(posteriors.shared["x"].mean), gather(posteriors.shared["y"].mean)
        return info_nce(x, y, temperature)

    return Term("contrastive", weight, value)


def info_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Returns InfoNCE (van den Oord et al., 2018) in both directions, in nats; ln B at chance.

    With s_ij the cosine of x_i and y_j and τ > 0 the temperature, it is the mean of −log
    softmax_j(s_ij/τ) at j = i, and the same over i. Rows i of x and y (B, S…) are partners.
    """
    x, y = (F.normalize(means.float().flatten(1), dim=1) for means in (x, y))
    similarities = x @ y.T / temperature  # (B, B)
    partners = torch.arange(len(x), device=similarities.device)
    x_to_y, y_to_x = (F.cross_entropy(rows, partners) for rows in (similarities, similarities.T))
    return 0.5 * (x_to_y + y_to_x)


# ---- dependence: exclusive means should say nothing of the shared content


def dependence_term(weight: float, gather: Callable[[Tensor], Tensor] = lambda rows: rows) -> Term:
    """Builds the distance correlation of each domain's exclusive and the *partner's* shared means.

    The paper limits by a KL how much z^x holds, not what. The partner's picture has the same
    content and none of this domain's manner, so what z^x shares with r^y(z^s|y) is content.
    """

    def whole(posterior: DiagonalGaussian) -> DiagonalGaussian:
        return DiagonalGaussian(gather(posterior.mean), gather(posterior.logvar))

    def values(posteriors: Posteriors, _: Reconstructions) -> dict[Domain, Tensor]:
        return {
            domain: dependence(whole(own), whole(posteriors.shared[other_domain(domain)]))
            for domain, own in posteriors.exclusive.items()
        }

    return Term("dependence", weight, values)


def dependence(exclusive: DiagonalGaussian, partner: DiagonalGaussian) -> Tensor:
    """Returns the squared distance correlation of exclusive (B, E) and shared means (B, S…).

    A bias-corrected scalar, at most 1; 0 on average if the two are independent, and 0 in batches of
    fewer than four rows. Gradients reach the exclusive posterior alone. Exclusive means are
    whitened first ("affinely invariant", Dueck et al., 2014), so that directions of little variance
    count as well.
    """
    means = full(exclusive.mean).flatten(1)
    if len(means) < FEWEST_ROWS:
        return means.sum() * 0.0
    shared = full(partner.mean.detach()).flatten(1)
    logvar = full(partner.logvar.detach()).flatten(1)
    in_noise = shared * torch.exp(-0.5 * logvar.mean(dim=0))  # a dimension's signal over its noise
    return distance_correlation(whitened(means), in_noise)


def whitened(values: Tensor) -> Tensor:
    """Returns rows (B, D) with zero mean and unit covariance, up to `RIDGE`."""
    centred = values - values.mean(dim=0)
    covariance = centred.T @ centred / len(values)
    ridge = RIDGE * covariance.diagonal().mean() + torch.finfo(values.dtype).tiny
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(values))
    white: Tensor = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    return white


def distance_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Returns the bias-corrected squared distance correlation of (B, D) and (B, D'), B ≥ 4.

    Zero for independent variables alone (Székely, Rizzo & Bakirov, 2007); this form (Székely &
    Rizzo, 2014) is zero on average in small batches as well.
    """
    a, b = _centred_distances(a), _centred_distances(b)
    scale = (a.square().sum() * b.square().sum()).clamp(min=torch.finfo(a.dtype).tiny).sqrt()
    return (a * b).sum() / scale


def _centred_distances(values: Tensor) -> Tensor:
    """Returns U-centred distances (B, B): rows and columns sum to zero, the diagonal is zero."""
    rows = len(values)
    others = ~torch.eye(rows, dtype=torch.bool, device=values.device)
    squares = (values[:, None] - values[None]).square().sum(dim=2)
    # Off the diagonal only: the gradient of a root at zero is infinite.
    squares = torch.where(others, squares, 1.0).clamp(min=torch.finfo(values.dtype).tiny)
    distances = squares.sqrt() * others
    sums = distances.sum(dim=0) / (rows - 2)
    centred = distances - sums[:, None] - sums[None] + distances.sum() / ((rows - 1) * (rows - 2))
    return centred * others


# ---- recombination: what is decoded of two rows' latents should be read as these latents


def recombination_term(weight: float) -> Term:
    """Builds the distance between latents of two rows and those read in their decoded mixture.

    The two rows' latents are targets, in units of a latent's variance in the batch. Empty outside
    of training.
    """

    def values(posteriors: Posteriors, decoded: Reconstructions) -> dict[Domain, Tensor]:
        heads = decoded.read_again if isinstance(decoded, Recombined) else {}
        return {
            domain: relative_error(shared, posteriors.shared[other_domain(domain)].mean)
            + relative_error(exclusive, posteriors.exclusive[domain].mean.roll(1, dims=0))
            for domain, (shared, exclusive) in heads.items()
        }

    return Term("recombination", weight, values)


def relative_error(heads: Tensor, target: Tensor) -> Tensor:
    """Returns the heads' mean squared distance to targets (B, …), over the targets' variance."""
    means, target = DiagonalGaussian.from_heads(heads).mean, full(target.detach())
    spread = (target - target.mean(dim=0)).square().mean()
    return (means - target).square().mean() / (spread + torch.finfo(spread.dtype).tiny)
