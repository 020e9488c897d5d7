"""The Interaction Information Auto-Encoder: which network reads what (paper, Figures 1 and 2).

A training step passes named records on, so that the maths reads like the paper: `infer` returns the
posteriors q and r, `sample` draws latents from q, `generate` decodes them into the means of p, and
`objective.py` compares them.

Shapes: B batch; S shared latent (a map (S, H, W) or a vector (S,)); E exclusive latent. Inputs are
pictures (B, C, H, W) in [−1, 1], or features (B, F).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from iiae_cli.model import DOMAINS, Domain
from iiae_cli.model.networks import Networks, init_paper_weights

MAX_LOGVAR = 9.21035  # log(10⁴), in the released code: variances stay at or below 10⁴


def full(values: Tensor) -> Tensor:
    """Returns values in float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(logvar))) over every dimension after the first.

    Log-variances are clamped when the value is made, so sampling and every KL see the same figure.
    """

    mean: Tensor  # (B, …)
    logvar: Tensor  # (B, …), at most `MAX_LOGVAR`

    @classmethod
    def from_heads(cls, heads: Tensor) -> DiagonalGaussian:
        """Splits heads (B, 2·D, …) into means and log-variances (B, D, …), in float32 at least."""
        mean, logvar = full(heads).chunk(2, dim=1)
        return cls(mean, logvar.clamp(max=MAX_LOGVAR))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draws a reparameterised sample (B, …): mean + exp(logvar / 2) · ε with ε ~ N(0, I)."""
        noise = torch.randn(
            self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator
        )
        return self.mean + torch.exp(0.5 * self.logvar) * noise


@dataclass(frozen=True)
class Posteriors:
    """The encoders' outputs for a batch of pairs, and the inputs that they read."""

    inputs: Mapping[Domain, Tensor]  # (B, …), the targets of reconstructions
    exclusive: Mapping[Domain, DiagonalGaussian]  # q(z^x|x), q(z^y|y)  (B, E); empty in II (Eq. 22)
    joint_shared: DiagonalGaussian | None  # q(z^s|x,y)  (B, S…); None where nothing is generated
    shared: Mapping[Domain, DiagonalGaussian]  # r^x(z^s|x), r^y(z^s|y)  (B, S…)


@dataclass(frozen=True)
class Latents:
    """One sample of every latent of a batch."""

    exclusive: Mapping[Domain, Tensor]  # (B, E); empty in II
    shared: Tensor  # (B, S…)


@dataclass(frozen=True)
class Reconstructions:
    """Means of the likelihoods p, in the shapes of `Posteriors.inputs`."""

    mean: Mapping[Domain, Tensor]  # of p(x|z^x, z^s), p(y|z^y, z^s)
    shared_only: Mapping[Domain, Tensor] = field(default_factory=dict)  # ELBO + λ·II: of p(·|z^s)


class IIAE(nn.Module):
    """The networks of two domains and the joint shared encoder q(z^s|x,y).

    `networks` makes them, for domains of `widths` channels or features. `exclusive_dim` is E, or 0
    without exclusive latents (II); `shared_decoders` adds decoders p(·|z^s) (ELBO + λ·II).
    """

    generative: ClassVar[bool] = True  # whether there are decoders
    joint_shared: nn.Module | None  # None where nothing is generated

    def __init__(
        self,
        networks: Networks,
        widths: Mapping[Domain, int],
        *,
        exclusive_dim: int,
        shared_decoders: bool = False,
    ) -> None:
        super().__init__()
        self.shared_shape = networks.shared_shape
        self.exclusive_dim = exclusive_dim

        def both(make: Callable[..., nn.Module], wanted: bool, *more: int) -> nn.ModuleDict:
            domains = DOMAINS if wanted else ()
            return nn.ModuleDict({domain: make(widths[domain], *more) for domain in domains})

        # Their order is that of random initialisation: a seed stands for the same weights.
        self.exclusive = both(networks.exclusive, exclusive_dim > 0, exclusive_dim)
        self.features = both(networks.features, True)
        self.shared = both(networks.shared, True)
        self.decoder = both(networks.decoder, self.generative, exclusive_dim)
        self.shared_decoder = both(networks.decoder, shared_decoders, 0)
        self.joint_shared = networks.shared(widths["x"], widths["y"])
        self.apply(init_paper_weights)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters, and so of the networks' inputs."""
        return next(self.parameters()).dtype

    def read(self, domain: Domain, inputs: Tensor) -> Tensor:
        """Returns inputs (B, …) of a domain in the form that its networks read."""
        return inputs.to(self.dtype)

    # ---- training, on pairs

    def forward(self, x: Tensor, y: Tensor) -> tuple[Posteriors, Reconstructions]:
        """Runs all networks of a training step on pairs x (B, …) and y (B, …)."""
        posteriors = self.infer(x, y)
        return posteriors, self.generate(self.sample(posteriors))

    def infer(self, x: Tensor, y: Tensor) -> Posteriors:
        """Returns all posteriors of pairs x (B, …) and y (B, …); each FE runs once."""
        inputs: dict[Domain, Tensor] = {"x": self.read("x", x), "y": self.read("y", y)}
        features = {domain: self.features[domain](inputs[domain]) for domain in DOMAINS}
        joint_shared = None
        if self.joint_shared is not None:
            both = torch.cat([features["x"], features["y"]], dim=1)  # on channels: (B, 2·F, …)
            joint_shared = DiagonalGaussian.from_heads(self.joint_shared(both))
        exclusive = {
            domain: DiagonalGaussian.from_heads(self.exclusive[domain](inputs[domain]))
            for domain in DOMAINS
            if domain in self.exclusive
        }
        shared = {
            domain: DiagonalGaussian.from_heads(self.shared[domain](features[domain]))
            for domain in DOMAINS
        }
        return Posteriors(inputs, exclusive, joint_shared, shared)

    @staticmethod
    def sample(posteriors: Posteriors, generator: torch.Generator | None = None) -> Latents:
        """Draws z^x ~ q(z^x|x), z^y ~ q(z^y|y) and z^s ~ q(z^s|x,y)."""
        assert posteriors.joint_shared is not None
        exclusive = {domain: q.sample(generator) for domain, q in posteriors.exclusive.items()}
        return Latents(exclusive, posteriors.joint_shared.sample(generator))

    def generate(self, latents: Latents) -> Reconstructions:
        """Decodes a batch of latents into both domains, in the units of `Posteriors.inputs`."""
        shared, exclusive = latents.shared, latents.exclusive
        mean = {domain: self.decoder[domain](shared, exclusive.get(domain)) for domain in DOMAINS}
        shared_only = {
            domain: self.shared_decoder[domain](shared, None)
            for domain in DOMAINS
            if domain in self.shared_decoder
        }
        return Reconstructions(mean, shared_only)

    # ---- use, on one domain

    def encode_shared(self, domain: Domain, inputs: Tensor) -> DiagonalGaussian:
        """Returns r(z^s|·) of one domain alone (B, S…): what retrieval and translation use."""
        features = self.features[domain](self.read(domain, inputs))
        return DiagonalGaussian.from_heads(self.shared[domain](features))

    def encode_exclusive(self, domain: Domain, inputs: Tensor) -> DiagonalGaussian:
        """Returns q(z^x|x) or q(z^y|y) (B, E); raises ValueError without exclusive latents."""
        if domain not in self.exclusive:
            raise ValueError("this model was trained without exclusive latents")
        return DiagonalGaussian.from_heads(self.exclusive[domain](self.read(domain, inputs)))

    def decode(self, domain: Domain, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Returns the mean of p(·|z, z^s): pictures (B, C, H, W) in [−1, 1], or features (B, F).

        `shared` is (B, S…) or flattened (B, S); `exclusive` is (B, E), or None for a model without
        exclusive latents. Raises ValueError without decoders.
        """
        if domain not in self.decoder:
            raise ValueError("this model was trained without decoders")
        shared = shared.to(self.dtype).reshape(-1, *self.shared_shape)
        exclusive = None if exclusive is None else exclusive.to(self.dtype)
        decoded: Tensor = self.decoder[domain](shared, exclusive)
        return decoded
