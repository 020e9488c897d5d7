"""Models around the paper's (standardised features, erased means), and two baselines.

Shapes: B batch, F features, S shared latent (flattened), E exclusive latent, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.iiae import IIAE, DiagonalGaussian, Posteriors, Reconstructions
from iiae_cli.model.networks import Networks
from iiae_cli.model.objective import Weights

SMALLEST_SCALE = 0.05  # times the overall scale; keeps almost constant dimensions from blowing up

# A baseline: the limit λ → 0 of Eq. 12, not divided by it. r is fitted to q by a small weight: r
# learns at full pace under Adam, while q and the features feel a thousandth of the pull.
ELBO_FIT = 1e-3
ELBO = Weights(1.0, ELBO_FIT, shared_prior_kl=1.0, exclusive_kl=1.0)


class Standardise(nn.Module):
    """Brings features (B, F) to zero mean and unit scale, and back; the identity until `fit`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, rows: NDArray[Any], *, each: bool) -> None:
        """Fits mean and scale to rows (N, F): one scale for all dimensions, or one for `each`."""
        deviation = np.std(rows, axis=0, dtype=np.float64)
        overall = float(np.sqrt(np.mean(deviation**2))) or 1.0
        scale = np.full(len(deviation), overall)
        if each:
            scale = np.maximum(deviation, SMALLEST_SCALE * overall)
        self.mean.copy_(torch.from_numpy(np.mean(rows, axis=0, dtype=np.float64)))
        self.scale.copy_(torch.from_numpy(scale))

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
    """An IIAE that can standardise its inputs and erase from its means.

    `infer` and `generate`, which train, work without erasure. Nothing changes until statistics and
    maps are fitted.
    """

    def __init__(
        self,
        networks: Networks,
        widths: Mapping[Domain, int],
        *,
        standardise: bool = False,
        erase_shared: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(networks, widths, **options)
        self.standardise, self.erase_shared = nn.ModuleDict(), nn.ModuleDict()
        for domain in DOMAINS:
            if standardise:
                self.standardise[domain] = Standardise(widths[domain])
            if erase_shared:
                self.erase_shared[domain] = LinearErasure(math.prod(self.shared_shape))

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
            standardise = self.standardise[domain]
            assert isinstance(standardise, Standardise)
            decoded = standardise.inverse(decoded)
        return decoded


@dataclass(frozen=True)
class Recombined(Reconstructions):
    """Reconstructions, and heads (B, 2S…) and (B, 2E) that encode two rows' decoded mixture."""

    read_again: Mapping[Domain, tuple[Tensor, Tensor]] = field(default_factory=dict)


class RecombiningIIAE(ExtendedIIAE):
    """An IIAE that also encodes its translations while it trains (GenAug, and a cycle).

    Row i's shared mean, the partner's as in translation, meets row i−1's exclusive one. Batch norm
    uses its running statistics there: those of the batch are the given pictures' alone.
    """

    def forward(self, x: Tensor, y: Tensor) -> tuple[Posteriors, Reconstructions]:
        """Runs all networks of a training step on pairs x (B, …) and y (B, …)."""
        posteriors, decoded = super().forward(x, y)
        read_again = {domain: self._read_again(domain, posteriors) for domain in DOMAINS}
        return posteriors, Recombined(decoded.mean, decoded.shared_only, read_again)

    def _read_again(self, domain: Domain, posteriors: Posteriors) -> tuple[Tensor, Tensor]:
        shared = posteriors.shared[other_domain(domain)].mean
        given = posteriors.exclusive[domain].mean.roll(1, dims=0)
        parts = (self.decoder, self.features, self.shared, self.exclusive)
        decoder, features, head, exclusive = networks = nn.ModuleList(p[domain] for p in parts)
        networks.eval()
        made = decoder(shared, given)
        heads = head(features(made)), exclusive(made)
        networks.train(self.training)
        return heads


class DualEncoder(ExtendedIIAE):
    """A baseline of r^x and r^y alone: it retrieves, without exclusive latents and decoders."""

    generative = False

    def __init__(
        self, networks: Networks, widths: Mapping[Domain, int], **extensions: bool
    ) -> None:
        super().__init__(networks, widths, exclusive_dim=0, **extensions)
        self.joint_shared = None  # nothing trains it

    def forward(self, x: Tensor, y: Tensor) -> tuple[Posteriors, Reconstructions]:
        """Runs all networks of a training step on pairs x (B, …) and y (B, …)."""
        return self.infer(x, y), Reconstructions({})
