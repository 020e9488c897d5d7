"""The Interaction Information Auto-Encoder: which network reads what (paper, Figures 1 and 2).

The three steps of training hand on named records, so that the maths reads like the paper:
`infer` gives the posteriors q and r, `sample` draws latents from q, `generate` decodes them into the means of p;
`objective.py` compares them.

Shapes: B batch, C H W pictures, F features, S shared latent (a map (C, H, W) or a vector (D,)), E exclusive latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from iiae_cli.extensions.edge_features import PictureDescription, PictureMap
from iiae_cli.extensions.erasure import LinearErasure, SharedPart
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.model.gaussian import DiagonalGaussian, Part
from iiae_cli.model.networks import (
    ConvTrunk,
    DescribedMapHead,
    FeatureDecoder,
    ImageDecoder,
    LinearPathHead,
    LinearTrunk,
    PassInput,
    feature_exclusive_encoder,
    flat_shared_head,
    grid_after,
    image_exclusive_encoder,
    init_paper_weights,
    map_shared_head,
)


@dataclass(frozen=True)
class Posteriors:
    """Posteriors of a batch of pairs, and the inputs that the networks read.

    A dual encoder has neither `exclusive` nor `joint_shared`, the II ablation (Eq. 22) no `exclusive`.
    """

    inputs: Mapping[Domain, Tensor]  # (B, …) each, what reconstructions are compared with
    exclusive: Mapping[Domain, DiagonalGaussian]  # q(z^x|x), q(z^y|y)  (B, E); or empty
    joint_shared: DiagonalGaussian | None  # q(z^s|x,y)  (B, S…)
    shared: Mapping[Domain, DiagonalGaussian]  # r^x(z^s|x), r^y(z^s|y)  (B, S…)


@dataclass(frozen=True)
class Latents:
    """One sample of every latent of a batch."""

    exclusive: Mapping[Domain, Tensor]  # (B, E); empty in the II ablation
    shared: Tensor  # (B, S…)


@dataclass(frozen=True)
class Reconstructions:
    """Means of p(x|z^x, z^s), p(y|z^y, z^s) and, in the ELBO + λ·II ablation, of p(x|z^s), p(y|z^s)."""

    mean: Mapping[Domain, Tensor]
    shared_only: Mapping[Domain, Tensor] = field(default_factory=dict)


class Standardise(nn.Module):
    """Features (B, F) to zero mean and unit scale by statistics of the training rows, and back.

    Beyond the paper, whose networks read features as they are. The statistics are buffers, so they are saved with the
    weights; they say nothing (mean 0, scale 1) until `set` is called.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def set(self, mean: Tensor, scale: Tensor) -> None:
        """Take statistics: mean (F,) and scale (F,), all of it positive."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, features: Tensor) -> Tensor:
        """What the networks read."""
        return (features - self.mean) / self.scale

    def inverse(self, standardised: Tensor) -> Tensor:
        """Back in the data's own units."""
        return standardised * self.scale + self.mean


@dataclass
class DomainNetworks:
    """The networks of one domain.

    Attributes:
        standardise: what inputs pass before every network; None leaves them as they are.
        exclusive: q(z^x|x), heads (B, 2E); None where the objective has no exclusive latents.
        features: FE, read by both r and the joint encoder.
        shared: r(z^s|·) on FE's output, heads (B, 2S…).
        decoder: p(x|z^x, z^s); None in a dual encoder, which generates nothing.
        shared_decoder: p(x|z^s), only for ELBO + λ·II.
    """

    exclusive: nn.Module | None
    features: nn.Module
    shared: nn.Module
    decoder: nn.Module | None
    shared_decoder: nn.Module | None = None
    standardise: Standardise | None = None


class IIAE(nn.Module):
    """Two domains' networks and the joint shared encoder q(z^s|x,y).

    Args:
        x: networks of domain x.
        y: networks of domain y.
        joint_shared: q(z^s|x,y) on both FEs' outputs, concatenated on dimension 1; None in a dual encoder.
        shared_shape: shape of one shared latent: (C, H, W) or (D,).
        exclusive_dim: E; 0 without exclusive latents.
    """

    def __init__(
        self,
        *,
        x: DomainNetworks,
        y: DomainNetworks,
        joint_shared: nn.Module | None,
        shared_shape: tuple[int, ...],
        exclusive_dim: int,
    ) -> None:
        super().__init__()
        networks = {"x": x, "y": y}

        def by_domain(kind: str) -> nn.ModuleDict:
            parts = {domain: getattr(networks[domain], kind) for domain in DOMAINS}
            return nn.ModuleDict({d: part for d, part in parts.items() if part is not None})

        self.exclusive = by_domain("exclusive")
        self.features = by_domain("features")
        self.shared = by_domain("shared")
        self.decoder = by_domain("decoder")
        self.shared_decoder = by_domain("shared_decoder")
        self.standardise = by_domain("standardise")
        self.joint_shared = joint_shared
        self.shared_shape = shared_shape
        self.exclusive_dim = exclusive_dim
        # Beyond the paper: what `add_erasure` puts between the posteriors and whoever asks for one latent.
        self.erase_shared = nn.ModuleDict()
        self.shared_part = nn.ModuleDict()
        self.apply(init_paper_weights)

    @property
    def generative(self) -> bool:
        """Whether there are decoders, and what trains them; without, this is a dual encoder: r alone (InfoNCE)."""
        return bool(self.decoder)

    def add_erasure(self, *, shared: bool, exclusive: bool) -> None:
        """Let `encode_shared` erase from shared means, and `encode_exclusive` and `decode` use exclusive residuals.

        Nothing changes until `erasure.py`'s maps are set. `infer` and `generate`, which train, never use them.
        """
        width = math.prod(self.shared_shape)
        for domain in DOMAINS:
            if shared:
                self.erase_shared[domain] = LinearErasure(width)
            if exclusive and self.exclusive_dim:
                self.shared_part[domain] = SharedPart(width, self.exclusive_dim)

    def read(self, domain: Domain, inputs: Tensor) -> Tensor:
        """Inputs (B, …) as the networks read them."""
        inputs = inputs.to(self._dtype)
        if domain in self.standardise:
            inputs = self.standardise[domain](inputs)
        return inputs

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def infer(self, x: Tensor, y: Tensor) -> Posteriors:
        """All posteriors of a batch of pairs, x (B, …) and y (B, …); each FE runs once."""
        inputs: dict[Domain, Tensor] = {"x": self.read("x", x), "y": self.read("y", y)}
        features = {domain: self.features[domain](inputs[domain]) for domain in DOMAINS}
        joint = None
        if self.joint_shared is not None:
            joint = DiagonalGaussian.from_heads(
                self.joint_shared(torch.cat(list(features.values()), dim=1))
            )
        exclusive: dict[Domain, DiagonalGaussian] = {}
        if self.exclusive:
            for domain in DOMAINS:
                heads = self.exclusive[domain](inputs[domain])
                exclusive[domain] = DiagonalGaussian.from_heads(heads)
        shared = {
            domain: DiagonalGaussian.from_heads(self.shared[domain](features[domain]))
            for domain in DOMAINS
        }
        return Posteriors(inputs, exclusive, joint, shared)

    @staticmethod
    def sample(
        posteriors: Posteriors, generator: torch.Generator | None = None, part: Part | None = None
    ) -> Latents:
        """z^x ~ q(z^x|x), z^y ~ q(z^y|y), z^s ~ q(z^s|x,y), reparameterised; `part` as in `DiagonalGaussian.sample`."""
        assert posteriors.joint_shared is not None
        exclusive = {
            domain: posterior.sample(generator, part)
            for domain, posterior in posteriors.exclusive.items()
        }
        return Latents(exclusive, posteriors.joint_shared.sample(generator, part))

    def generate(self, latents: Latents) -> Reconstructions:
        """Decode a batch of latents into both domains, in the units of `Posteriors.inputs`."""
        mean: dict[Domain, Tensor] = {
            domain: self.decoder[domain](latents.shared, latents.exclusive.get(domain))
            for domain in DOMAINS
        }
        if not self.shared_decoder:
            return Reconstructions(mean)
        return Reconstructions(
            mean,
            {domain: self.shared_decoder[domain](latents.shared, None) for domain in DOMAINS},
        )

    def start_linear_paths(self, weight: Tensor) -> None:
        """Let every shared encoder begin as one linear map of standardised features, `weight` (S, F).

        The joint encoder begins as the mean of both domains'. Only for models with linear paths and equal widths.
        """
        for path in self._linear_paths():
            copies = path.linear.in_features // weight.shape[1]
            path.start(torch.cat([weight] * copies, dim=1) / copies)

    def start_canonical_paths(
        self, weights: tuple[Tensor, Tensor], biases: tuple[Tensor, Tensor]
    ) -> None:
        """Let each domain's shared encoder begin as its own linear map, weights (S, F) and biases (S,) of x and y.

        The joint encoder begins as the mean of both.
        """
        for path, weight, bias in zip(self.shared.values(), weights, biases, strict=True):
            assert isinstance(path, LinearPathHead | DescribedMapHead)
            path.start(weight, bias)
        if isinstance(self.joint_shared, LinearPathHead | DescribedMapHead):
            self.joint_shared.start(torch.cat(weights, dim=1) / 2, (biases[0] + biases[1]) / 2)

    def hold_linear_paths(self) -> None:
        """Keep every shared mean at its linear path from now on; everything else goes on learning."""
        for path in self._linear_paths():
            path.hold()

    def _linear_paths(self) -> list[LinearPathHead]:
        return [part for part in self.modules() if isinstance(part, LinearPathHead)]

    def encode_shared(self, domain: Domain, inputs: Tensor) -> DiagonalGaussian:
        """r(z^s|·) of one domain alone: what retrieval and translation use."""
        features = self.features[domain](self.read(domain, inputs))
        posterior = DiagonalGaussian.from_heads(self.shared[domain](features))
        if domain not in self.erase_shared:
            return posterior
        return DiagonalGaussian(self.erase_shared[domain](posterior.mean), posterior.logvar)

    def encode_exclusive(self, domain: Domain, inputs: Tensor) -> DiagonalGaussian:
        """q(z^x|x) or q(z^y|y); with exclusive residuals, of z^x − f(z^s).

        Raises:
            ValueError: this model has no exclusive latents (II ablation).
        """
        if not self.exclusive:
            raise ValueError("this model was trained without exclusive latents")
        heads = self.exclusive[domain](self.read(domain, inputs))
        posterior = DiagonalGaussian.from_heads(heads)
        if domain not in self.shared_part:
            return posterior
        predicted = self.shared_part[domain](self.encode_shared(domain, inputs).mean)
        return DiagonalGaussian(posterior.mean - predicted, posterior.logvar)

    def decode(self, domain: Domain, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Mean of p(·|z, z^s) in `domain`: pictures in [−1, 1] or features. `shared` may be flattened (B, S).

        Raises:
            ValueError: this model is a dual encoder, without decoders.
        """
        if not self.decoder:
            raise ValueError("this model was trained without decoders")
        shared = shared.to(self._dtype)
        exclusive = None if exclusive is None else exclusive.to(self._dtype)
        if domain in self.shared_part and exclusive is not None:
            exclusive = exclusive + self.shared_part[domain](shared)
        decoded: Tensor = self.decoder[domain](shared.reshape(-1, *self.shared_shape), exclusive)
        if domain in self.standardise:
            decoded = self.standardise[domain].inverse(decoded)  # type: ignore[operator]
        return decoded


def image_iiae(
    *,
    channels_x: int,
    channels_y: int,
    size: tuple[int, int],
    widths: Sequence[int],
    decoder_widths: Sequence[int],
    shared_channels: int,
    exclusive_dim: int,
    dropout: float = 0.5,
    exclusive_latents: bool = True,
    shared_decoders: bool = False,
    decoders: bool = True,
    linear_path: bool = False,
    flat_hidden: int | None = None,
    flat_width: int = 512,
) -> IIAE:
    """An IIAE on pictures.

    Args:
        channels_x: channels of domain x.
        channels_y: channels of domain y.
        size: (H, W), the same in both domains, ≥ 16.
        widths: filters of FE's and the exclusive encoder's convolutions; the paper: 32, 64, 128, 256.
        decoder_widths: filters of the decoder's transposed convolutions but the last; as many as `widths`.
        shared_channels: channels of the shared map (paper: 128), or with `flat_hidden` the shared vector's width.
        exclusive_dim: E (paper: 8).
        dropout: in the decoder's first stages (paper: 0.5).
        exclusive_latents: False for the II ablation.
        shared_decoders: True for the ELBO + λ·II ablation.
        decoders: False for a dual encoder, which has no joint encoder either.
        linear_path: the shared encoders read a description of the pictures too, for the caller to start:
            `DescribedMapHead`s a `PictureMap`, a flat model's `LinearPathHead`s a `PictureDescription`.
        flat_hidden: hidden width of the flat (Cars) variant, whose FE has a fifth convolution of this width
            (paper: 256); None for a map latent.
        flat_width: grid channels that the flat decoder starts from. The paper's table has 262,144 units here, the
            released code 8·8·512 = 32,768; the code is followed.

    Raises:
        ValueError: `decoder_widths` and `widths` differ in length.
    """
    if len(decoder_widths) != len(widths):
        raise ValueError(
            f"{len(widths)} encoder widths need as many decoder widths, not {len(decoder_widths)}"
        )
    stages = len(widths) + 1
    multiple = 2**stages
    grid = (grid_after(size[0], stages), grid_after(size[1], stages))
    trunk_grid = (2 * grid[0], 2 * grid[1])
    flat_features = 0 if flat_hidden is None else grid[0] * grid[1] * flat_hidden

    def decoder(channels: int, exclusive: int) -> ImageDecoder:
        return ImageDecoder(
            shared_channels=shared_channels,
            exclusive_dim=exclusive,
            grid=grid,
            widths=decoder_widths,
            channels=channels,
            size=size,
            dropout=dropout,
            flat_width=None if flat_hidden is None else flat_width,
        )

    def description(channels: int) -> PictureDescription | PictureMap:
        return (
            PictureMap(channels, trunk_grid, multiple)
            if flat_hidden is None
            else PictureDescription(channels)
        )

    def shared_head(*channels: int) -> nn.Module:
        if flat_hidden is None:
            if linear_path:
                return DescribedMapHead(
                    widths[-1], [description(one).width for one in channels], shared_channels
                )
            return map_shared_head(len(channels) * widths[-1], shared_channels)
        head = flat_shared_head(len(channels) * flat_features, flat_hidden, shared_channels)
        if linear_path:
            return LinearPathHead(
                head, flat_features, [description(one).width for one in channels], shared_channels
            )
        return head

    def domain(channels: int) -> DomainNetworks:
        features: nn.Module = ConvTrunk(channels, widths, multiple)
        if flat_hidden is not None:
            features = nn.Sequential(
                ConvTrunk(channels, [*widths, flat_hidden], multiple), nn.Flatten()
            )
        if linear_path:
            features = PassInput(features, description(channels))
        return DomainNetworks(
            exclusive=image_exclusive_encoder(channels, widths, trunk_grid, exclusive_dim, multiple)
            if exclusive_latents
            else None,
            features=features,
            shared=shared_head(channels),
            decoder=decoder(channels, exclusive_dim if exclusive_latents else 0)
            if decoders
            else None,
            shared_decoder=decoder(channels, 0) if shared_decoders else None,
        )

    joint = shared_head(channels_x, channels_y)
    return IIAE(
        x=domain(channels_x),
        y=domain(channels_y),
        joint_shared=joint if decoders else None,
        shared_shape=(shared_channels, *grid) if flat_hidden is None else (shared_channels,),
        exclusive_dim=exclusive_dim if exclusive_latents else 0,
    )


def feature_iiae(
    *,
    width_x: int,
    width_y: int,
    feature_width: int = 512,
    exclusive_hidden: Sequence[int] = (512, 256),
    shared_hidden: int = 256,
    joint_hidden: int = 512,
    decoder_hidden: int = 128,
    shared_dim: int = 64,
    exclusive_dim: int = 64,
    exclusive_latents: bool = True,
    shared_decoders: bool = False,
    decoders: bool = True,
    standardise: bool = False,
    linear_path: bool = False,
) -> IIAE:
    """An IIAE on feature vectors (paper, appendix D.2); the defaults are the paper's for 512-d VGG features.

    Two additions are not the paper's: `standardise` puts a `Standardise` before every network of a domain, whose
    statistics are the caller's to set; `linear_path` makes the shared encoders `LinearPathHead`s, likewise for the
    caller to start.
    """

    def head(inputs: list[int], hidden: int) -> nn.Module:
        plain = flat_shared_head(len(inputs) * feature_width, hidden, shared_dim)
        return LinearPathHead(plain, feature_width, inputs, shared_dim) if linear_path else plain

    def domain(width: int) -> DomainNetworks:
        def decoder(exclusive: int) -> FeatureDecoder:
            return FeatureDecoder(
                shared_dim=shared_dim, exclusive_dim=exclusive, hidden=decoder_hidden, width=width
            )

        trunk = LinearTrunk(width, [feature_width])
        return DomainNetworks(
            exclusive=feature_exclusive_encoder(width, exclusive_hidden, exclusive_dim)
            if exclusive_latents
            else None,
            features=PassInput(trunk) if linear_path else trunk,
            shared=head([width], shared_hidden),
            decoder=decoder(exclusive_dim if exclusive_latents else 0) if decoders else None,
            shared_decoder=decoder(0) if shared_decoders else None,
            standardise=Standardise(width) if standardise else None,
        )

    return IIAE(
        x=domain(width_x),
        y=domain(width_y),
        joint_shared=head([width_x, width_y], joint_hidden) if decoders else None,
        shared_shape=(shared_dim,),
        exclusive_dim=exclusive_dim if exclusive_latents else 0,
    )
