"""Diagonal Gaussians as values: a mean and a log-variance that travel together.

The log-variance is clamped from above at log 10⁴ (released code) when the value is made, so
sampling and every KL see the same clamped figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOGVAR = 9.21035  # log(10⁴): variances stay at or below 10⁴


def full(values: Tensor) -> Tensor:
    """Returns values in float32, or as they are if they are float64."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(logvar))) over every dimension after the first."""

    mean: Tensor  # (B, …)
    logvar: Tensor  # (B, …), at most `MAX_LOGVAR`

    @classmethod
    def from_heads(cls, heads: Tensor) -> DiagonalGaussian:
        """Splits heads (B, 2·D, …) into means and log-variances (B, D, …), in float32 at least."""
        mean, logvar = full(heads).chunk(2, dim=1)
        return cls(mean, logvar.clamp(max=MAX_LOGVAR))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One reparameterised sample (B, …): mean + exp(logvar / 2) · ε with ε ~ N(0, I)."""
        noise = torch.randn(
            self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator
        )
        return self.mean + torch.exp(0.5 * self.logvar) * noise


def kl_between(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    """KL(q ‖ p) in nats, summed over latent dimensions: (B,)."""
    ratio = torch.exp(q.logvar - p.logvar)
    distance = (q.mean - p.mean).square() * torch.exp(-p.logvar)
    return 0.5 * (ratio + distance - 1.0 + p.logvar - q.logvar).flatten(1).sum(dim=1)


def kl_to_prior(q: DiagonalGaussian) -> Tensor:
    """KL(q ‖ N(0, I)) in nats, summed over latent dimensions: (B,)."""
    return 0.5 * (torch.exp(q.logvar) + q.mean.square() - 1.0 - q.logvar).flatten(1).sum(dim=1)
