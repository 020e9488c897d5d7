"""The paper's model with standardised features and erased means around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.extensions.erasure import LinearErasure, SharedPart
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.model.gaussian import DiagonalGaussian
from iiae_cli.model.iiae import IIAE
from iiae_cli.model.networks import Networks

SMALLEST_SCALE = (
    0.05  # of the overall scale, so that a dimension that hardly varies is not blown up
)


class Standardise(nn.Module):
    """Brings features (B, F) to zero mean and unit scale, and back.

    The statistics are buffers, saved with the weights: mean 0 and scale 1 until `fit` is called.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, rows: NDArray[Any], *, each: bool) -> None:
        """Takes the mean and scale of rows (N, F).

        The scale is the root mean square deviation over all dimensions, or with `each` every
        dimension's own, but no less than a twentieth of the former.
        """
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


class ExtendedIIAE(IIAE):
    """An IIAE whose inputs may be standardised and whose means may be erased from.

    Erasure is between the posteriors and whoever asks for one latent; `infer` and `generate`, which
    train, work without it. Nothing changes until the statistics and maps are fitted.

    Args:
        networks: as IIAE's, like `widths` and `options`.
        widths: channels or features of each domain.
        standardise: whether features are standardised.
        erase_shared: whether `encode_shared` erases from means.
        residual: whether exclusive means are z^x − f(z^s), to which `decode` adds f(z^s) again.
        options: IIAE's.
    """

    def __init__(
        self,
        networks: Networks,
        widths: Mapping[Domain, int],
        *,
        standardise: bool = False,
        erase_shared: bool = False,
        residual: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(networks, widths, **options)
        residual = residual and self.exclusive_dim > 0
        shared_dim = math.prod(self.shared_shape)

        def both(make: Callable[[Domain], nn.Module], wanted: bool) -> nn.ModuleDict:
            return nn.ModuleDict({domain: make(domain) for domain in DOMAINS if wanted})

        self.standardise = both(lambda domain: Standardise(widths[domain]), standardise)
        self.erase_shared = both(lambda _: LinearErasure(shared_dim), erase_shared)
        self.shared_part = both(lambda _: SharedPart(shared_dim, self.exclusive_dim), residual)

    def read(self, domain: Domain, inputs: Tensor) -> Tensor:
        """Returns inputs (B, …) of a domain as its networks read them."""
        inputs = super().read(domain, inputs)
        if domain in self.standardise:
            inputs = self.standardise[domain](inputs)
        return inputs

    def encode_shared(self, domain: Domain, inputs: Tensor) -> DiagonalGaussian:
        """r(z^s|·), its mean erased from."""
        posterior = super().encode_shared(domain, inputs)
        if domain in self.erase_shared:
            erased = self.erase_shared[domain](posterior.mean)
            posterior = DiagonalGaussian(erased, posterior.logvar)
        return posterior

    def encode_exclusive(self, domain: Domain, inputs: Tensor) -> DiagonalGaussian:
        """q(z^x|x) or q(z^y|y), its mean the residual z^x − f(z^s)."""
        posterior = super().encode_exclusive(domain, inputs)
        if domain in self.shared_part:
            predicted = self.shared_part[domain](self.encode_shared(domain, inputs).mean)
            posterior = DiagonalGaussian(posterior.mean - predicted, posterior.logvar)
        return posterior

    def decode(self, domain: Domain, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Mean of p(·|z, z^s) in the data's own units."""
        if domain in self.shared_part and exclusive is not None:
            predicted = self.shared_part[domain](shared.to(self.dtype))
            exclusive = exclusive.to(self.dtype) + predicted
        decoded = super().decode(domain, shared, exclusive)
        if domain in self.standardise:
            standardise = self.standardise[domain]
            assert isinstance(standardise, Standardise)
            decoded = standardise.inverse(decoded)
        return decoded
