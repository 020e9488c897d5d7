"""Models and loss terms beyond the paper's: standardised, erased; a baseline.

Shapes: B batch, F features, S shared latent (flattened), E exclusive latent, r rank, D dimensions
of any rows. If several processes share a batch, `gather` turns one's rows into the whole batch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.extensions.encoders import attentive
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.iiae import IIAE, DiagonalGaussian, Posteriors, Reconstructions, full
from iiae_cli.model.networks import Networks
from iiae_cli.model.objective import Term

FEWEST_ROWS = 4  # bias-corrected distance correlation needs as many
RIDGE = 1e-4  # times the mean variance, for directions in which a batch does not vary


class Standardise(nn.Module):
    """Brings features (B, F) to zero mean and one scale, and back; the identity until `fit`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, rows: NDArray[Any]) -> None:
        """Fits the mean and one scale for all dimensions to rows (N, F)."""
        deviation = np.std(rows, axis=0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(np.mean(rows, axis=0, dtype=np.float64)))
        self.scale.fill_(float(np.sqrt(np.mean(deviation**2))) or 1.0)

    def forward(self, features: Tensor) -> Tensor:
        """Standardises a batch."""
        return (features - self.mean) / self.scale

    def inverse(self, standardised: Tensor) -> Tensor:
        """Returns a batch in the data's own units."""
        return standardised * self.scale + self.mean


class LinearErasure(nn.Module):
    """mean ↦ centre + left · rightᵀ(mean − centre); the identity while its rank is 0.

    Everything passes the r numbers rightᵀ(mean − centre), so what is erased cannot survive as a
    rounding error. The data decide the rank.
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
        """Sets the map: centre (S,), left and right (S, r)."""
        self.load_state_dict({"centre": centre, "left": left, "right": right})

    def make_room(self, rank: int) -> None:
        """Resizes the map to a rank; rank 0 is the identity."""
        self.left, self.right = (self.centre.new_zeros(len(self.centre), rank) for _ in range(2))

    def forward(self, mean: Tensor) -> Tensor:
        """Erases from means (B, S…); the shape stays."""
        if not self.left.shape[1]:
            return mean
        kept = (mean.flatten(1) - self.centre) @ self.right  # (B, r)
        return (self.centre + kept @ self.left.T).view_as(mean)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}left")
        if saved is not None and saved.ndim == 2:
            self.make_room(saved.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ExtendedIIAE(IIAE):
    """An IIAE that can standardise its inputs and erase from its means, once these are fitted.

    `attention` is the number of heads with which exclusive encoders pool over places, 0 for none.
    `infer` and `generate`, which train, work without erasure.
    """

    standardise: Mapping[Domain, Standardise]  # empty for pictures
    erase_shared: Mapping[Domain, LinearErasure]  # empty where nothing is erased

    def __init__(
        self,
        networks: Networks,
        widths: Mapping[Domain, int],
        *,
        standardise: bool = False,
        erase_shared: bool = False,
        attention: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(networks, widths, **options)
        for domain, encoder in self.exclusive.items() if attention else ():
            self.exclusive[domain] = attentive(encoder, attention)

        def both(make: Callable[[Domain], nn.Module], wanted: bool) -> Any:
            return nn.ModuleDict({domain: make(domain) for domain in DOMAINS if wanted})

        width = math.prod(self.shared_shape)
        self.standardise = both(lambda domain: Standardise(widths[domain]), standardise)
        self.erase_shared = both(lambda domain: LinearErasure(width), erase_shared)

    def read(self, domain: Domain, inputs: Tensor) -> Tensor:
        """Returns inputs (B, …) of a domain in the form that its networks read."""
        inputs = super().read(domain, inputs)
        if domain in self.standardise:
            inputs = self.standardise[domain](inputs)
        return inputs

    def encode_shared(self, domain: Domain, inputs: Tensor) -> DiagonalGaussian:
        """Returns r(z^s|·) with an erased mean."""
        shared = super().encode_shared(domain, inputs)
        if domain in self.erase_shared:
            shared = DiagonalGaussian(self.erase_shared[domain](shared.mean), shared.logvar)
        return shared

    def decode(self, domain: Domain, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Returns the mean of p(·|z, z^s) in the data's own units."""
        decoded = super().decode(domain, shared, exclusive)
        if domain in self.standardise:
            decoded = self.standardise[domain].inverse(decoded)
        return decoded


class DualEncoder(ExtendedIIAE):
    """A baseline of r^x and r^y alone: it retrieves, without exclusive latents and decoders."""

    generative = False

    def __init__(self, networks: Networks, widths: Mapping[Domain, int], **extensions: Any) -> None:
        super().__init__(networks, widths, exclusive_dim=0, **extensions)
        self.joint_shared = None  # nothing trains it

    def forward(self, x: Tensor, y: Tensor) -> tuple[Posteriors, Reconstructions]:
        """Runs all networks of a training step on pairs x (B, …) and y (B, …)."""
        return self.infer(x, y), Reconstructions({})


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
    content and none of this domain's style, so what z^x shares with r^y(z^s|y) is content.
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
    """Returns the distance correlation of exclusive (B, E) and shared means (B, S…), B ≥ 4, else 0.

    Gradients reach the exclusive posterior alone. Exclusive means are whitened first ("affinely
    invariant", Dueck et al., 2014), so that directions of little variance count as well.
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

    It is at most 1, and zero for independent variables alone (Székely, Rizzo & Bakirov, 2007); this
    form (Székely & Rizzo, 2014) is zero on average in small batches as well.
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
