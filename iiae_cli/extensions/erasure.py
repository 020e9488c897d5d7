"""What is taken out of posterior *means* after training, so that each latent says only its own.

Retrieval and translation use means, which carry faint traces that no sample carries: the noise of
the posterior drowns them, so the bound does not pay for removing them, but a probe reads them.
Three linear steps in closed form take them out; none of them reads a label, and none touches the
weights.

* **Channel** (`channel_basis`): a mean's component along a direction says at most ½ log(1 + SNR)
  nats, where SNR is its variance over the posterior's. Directions whose SNR is below a threshold
  say next to nothing by the model's own account and are set to their average: reverse water-filling
  for a Gaussian channel.
* **LEACE** (`leace`; Belrose et al., NeurIPS 2023): the least change, in every norm at once, after
  which no linear map reads a concept. The concept is the model's own exclusive mean, and it is
  erased where it predicts what the two shared means of a pair disagree in.
* **Residual** (`shared_regression`): z' = z − f(z^s), what remains of an exclusive mean after
  subtracting what the shared latent predicts of it. The decoder adds f(z^s) back, so this is a
  change of coordinates: reconstructions stay as they are. f is fitted with the *partner's* shared
  mean as the instrument: that cannot know this domain's exclusive factors, so whatever of them
  leaks into this domain's shared mean is not mistaken for shared.

Shapes: N rows, S shared (flattened), E exclusive, k directions kept, r rank. Fits are in float64,
buffers in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iiae_cli.extensions.closed_forms import thin_svd
from iiae_cli.model.gaussian import DiagonalGaussian

SMALLEST_VARIANCE = 1e-10  # of the largest: directions below it are taken for rounding errors


class LinearErasure(nn.Module):
    """mean ↦ centre + left · rightᵀ(mean − centre); the identity while its rank is 0.

    Everything passes the r numbers rightᵀ(mean − centre), so what is erased cannot survive as a
    rounding error. Buffers are saved with the weights; the data decide their rank.
    """

    centre: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("left", torch.zeros(width, 0))
        self.register_buffer("right", torch.zeros(width, 0))

    def set(self, centre: Tensor, left: Tensor, right: Tensor) -> None:
        """Takes a map: centre (S,), left and right (S, r)."""
        self.make_room(left.shape[1])
        self.centre.copy_(centre)
        self.left.copy_(left)
        self.right.copy_(right)

    def make_room(self, rank: int) -> None:
        """Takes the shape of a map of this rank, at most S; rank 0 is the identity."""
        width = len(self.centre)
        self.left, self.right = (self.centre.new_zeros(width, min(rank, width)) for _ in range(2))

    def forward(self, mean: Tensor) -> Tensor:
        """Returns means (B, S…) of the same shape."""
        if not self.left.shape[1]:
            return mean
        kept = (mean.flatten(1) - self.centre) @ self.right
        return (self.centre + kept @ self.left.T).view_as(mean)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}left")
        if saved is not None and saved.ndim == 2:
            self.make_room(saved.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SharedPart(nn.Module):
    """f(z^s): what a shared mean predicts of an exclusive one; zero until weight is set."""

    centre: Tensor
    weight: Tensor

    def __init__(self, shared: int, exclusive: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(shared))
        self.register_buffer("weight", torch.zeros(exclusive, shared))

    def forward(self, shared: Tensor) -> Tensor:
        """Returns (B, E) of shared means (B, S…): weight · (mean − centre)."""
        predicted: Tensor = (shared.flatten(1) - self.centre) @ self.weight.T
        return predicted


@dataclass(frozen=True)
class Basis:
    """Directions of a shared mean, strongest first; coordinates are (mean − centre) · right.

    The posterior's noise has unit variance in coordinates.
    """

    centre: Tensor  # (S,) average mean
    left: Tensor  # (S, k) from coordinates back to means
    right: Tensor  # (S, k) from means to coordinates
    snr: Tensor  # (k,) variance of each coordinate: its signal-to-noise ratio

    def coordinates(self, mean: Tensor) -> Tensor:
        """Returns (N, k) float64 of means (N, S)."""
        return (mean.double() - self.centre) @ self.right


def channel_basis(mean: Tensor, noise: Tensor, least_snr: float) -> Basis:
    """The directions in which means vary at least `least_snr` times as much as samples scatter.

    The projection on them, left · rightᵀ, is the principal-component projection of means (N, S)
    whose noise, of average variance (S,), was made isotropic.
    """
    mean, scale = mean.double(), noise.double().sqrt()
    centre = mean.mean(dim=0)
    white = (mean - centre) / scale
    rows, width = white.shape
    if width <= rows:
        snr, directions = torch.linalg.eigh(white.T @ white / rows)
    else:  # a wide latent: the rows' Gram matrix has the same spectrum
        snr, mixing = torch.linalg.eigh(white @ white.T / rows)
        directions = (
            white.T @ mixing / (rows * snr.clamp(min=SMALLEST_VARIANCE * float(snr[-1]))).sqrt()
        )
    kept = (snr >= least_snr) & (snr > SMALLEST_VARIANCE * snr[-1])
    snr, directions = snr[kept].flip(0), directions[:, kept].flip(1)
    return Basis(centre, scale[:, None] * directions, directions / scale[:, None], snr)


def leace(
    values: Tensor,
    concept: Tensor,
    *,
    partner: Tensor | None = None,
    least_correlation: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Least-squares concept erasure: v − A·Bᵀ(v − v̄) is uncorrelated with the concept.

    r is at most the rank of their cross-covariance. A singular covariance is replaced by its
    pseudo-inverse. Beyond LEACE, two arguments spare what a concept predicts by accident.

    Args:
        values: (N, D).
        concept: (N, C).
        partner: (N, D) what the other domain says of the same rows. With it, only what the concept
            predicts of the *difference* is erased: what both domains say is shared.
        least_correlation: canonical correlations up to this one are left alone.

    Returns:
        A and B, each (D, r).
    """
    values, concept = (part.double() - part.double().mean(dim=0) for part in (values, concept))
    variances, axes = _spectrum(values)
    whiten, colour = (axes / variances.sqrt()) @ axes.T, (axes * variances.sqrt()) @ axes.T
    concept_variances, concept_axes = _spectrum(concept)
    seen = values if partner is None else values - partner.double()
    white_concept = concept @ (concept_axes / concept_variances.sqrt())
    directions, correlation, _ = _svd(whiten @ seen.T @ white_concept / len(values))
    erased = directions[:, correlation > max(least_correlation, SMALLEST_VARIANCE**0.5)]
    return colour @ erased, whiten @ erased


def _spectrum(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (r,) and axes (D, r) of centred rows (N, D), without those that do not vary."""
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = variances > SMALLEST_VARIANCE * variances[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return variances[kept], axes[:, kept]


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, sizes, right = (torch.from_numpy(part) for part in thin_svd(matrix.numpy()))
    return left, sizes, right


def without(
    basis: Basis,
    mean: Tensor,
    concept: Tensor,
    *,
    partner: Tensor | None = None,
    least_correlation: float = 0.0,
) -> Basis:
    """The basis of means (N, S) after `leace` of a concept (N, C): fewer directions."""
    others = None if partner is None else basis.coordinates(partner)
    removed, read = leace(
        basis.coordinates(mean), concept, partner=others, least_correlation=least_correlation
    )
    remaining = torch.eye(len(basis.snr), dtype=torch.float64) - removed @ read.T
    rank = len(basis.snr) - removed.shape[1]
    towards, sizes, source = _svd(remaining)
    right = basis.right @ source[:rank].T
    snr = ((mean.double() - basis.centre) @ right).square().mean(dim=0)
    return Basis(basis.centre, basis.left @ (towards[:, :rank] * sizes[:rank]), right, snr)


def shared_regression(
    exclusive: Tensor, basis: Basis, mean: Tensor, partner: Tensor, ridge: float
) -> Tensor:
    """Weights (E, S) of f: what shared means predict of exclusive ones.

    The instrumental-variable estimate in coordinates whose noise is one, the partner's shared mean
    (N, S) being the instrument: its covariance with z, over its covariance with this domain's mean
    (N, S) plus `ridge`. The latter is made symmetric and not negative, as the covariance of one
    latent is. With `ridge` 1 and the mean as its own instrument this is the regression of z on
    *samples* of the shared posterior.
    """
    own, other = basis.coordinates(mean), basis.coordinates(partner)
    other = other - other.mean(dim=0)
    centred = exclusive.double() - exclusive.double().mean(dim=0)
    agreement = other.T @ own / len(own)
    variances, axes = torch.linalg.eigh(0.5 * (agreement + agreement.T))
    inverse = (axes / (variances.clamp(min=0.0) + ridge)) @ axes.T
    weights: Tensor = (basis.right @ inverse @ (other.T @ centred / len(own))).T
    return weights


def fit_maps(
    erase: LinearErasure | None,
    shared_part: SharedPart | None,
    shared: DiagonalGaussian,
    exclusive: Tensor | None,
    partner: Tensor | None,
    *,
    least_snr: float,
    least_correlation: float | None,
    ridge: float,
) -> None:
    """Fits one domain's maps to its posteriors on training rows.

    Args:
        erase: what is erased from shared means; None: nothing.
        shared_part: f of the residual; None: exclusive means stay as they are.
        shared: r(z^s|·) (N, S).
        exclusive: (N, E) means; None for a model without them.
        partner: (N, S) the other domain's shared means. Rows that are paired by class have none:
            their own means are the instrument, and LEACE is plain.
        least_snr: of the channel; 0 without it.
        least_correlation: of LEACE; None without it.
        ridge: of the residual's regression.
    """
    mean = shared.mean
    basis = channel_basis(mean, torch.exp(shared.logvar.double()).mean(dim=0), least_snr)
    if exclusive is not None:
        exclusive = exclusive.double()
    if shared_part is not None and exclusive is not None:
        instrument = mean if partner is None else partner
        weight = shared_regression(exclusive, basis, mean, instrument, ridge)
        shared_part.centre.copy_(basis.centre)
        shared_part.weight.copy_(weight)
        exclusive = exclusive - (mean.double() - basis.centre) @ weight.T
    if erase is not None:
        if least_correlation is not None and exclusive is not None:
            basis = without(
                basis, mean, exclusive, partner=partner, least_correlation=least_correlation
            )
        erase.set(basis.centre, basis.left, basis.right)
