"""Layers, and the three families of networks that `iiae.py` composes (paper, appendix D).

* `ImageNetworks`: convolutions down to a grid, the shared latent a map (S, H, W);
* `FlatNetworks` (the Cars networks): the same grid, flattened, the shared latent a vector (S,);
* `FeatureNetworks`: linear layers on vectors, the shared latent a vector (S,).

Each family makes the same four kinds of network for a domain of `width` channels or features:

    exclusive   q(z^x|x)
    features    FE, which r and q read
    shared      r(z^s|·) of one domain's FE output, or q(z^s|x,y) of both, concatenated
    decoder     p(x|z^x, z^s), or p(x|z^s) if `exclusive_dim` is 0

Shapes: B batch; C channels; H W height, width; F features; S shared latent (channels of a map);
E exclusive latent; n = 1 or 2 domains. Heads return means and log-variances in one tensor: twice
the latent on dimension 1.

Pictures of any size work: they are extended to a multiple of 2^stages on entry and cropped on exit,
which does nothing at the paper's 256×256.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2


def init_paper_weights(module: nn.Module) -> None:
    """Initialises one layer as the released code does; for `Module.apply`.

    Convolutions N(0, 0.02), linear layers Glorot-uniform, batch-norm scale N(1, 0.02), biases 0.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


# (B, C, 2H, 2W) → (B, C', H, W), and back.
halving = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1)
doubling = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)


def normed(
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, activation: nn.Module, dropout: float = 0.0
) -> list[nn.Module]:
    """Returns a layer, its batch norm, dropout and activation, which works in place.

    The released networks' biases exist here too, fixed at zero: batch norm would subtract them.
    """
    assert layer.bias is not None
    layer.bias.requires_grad_(False)
    norm = nn.BatchNorm1d if isinstance(layer, nn.Linear) else nn.BatchNorm2d
    # torch's defaults are the released ones: eps 1e-5, momentum 0.1 (0.9 in TensorFlow's sense).
    dropouts = [nn.Dropout(dropout)] if dropout else []
    return [layer, norm(len(layer.bias)), *dropouts, activation]


class PadToMultiple(nn.Module):
    """Extends (B, C, H, W) at the bottom and right by edge replication to a multiple."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple

    def forward(self, pictures: Tensor) -> Tensor:
        """Pads a batch; returns it unchanged if its sides are multiples."""
        height, width = pictures.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            pictures = F.pad(pictures, (0, right, 0, bottom), mode="replicate")
        return pictures


# ---- encoders


def conv_trunk(channels: int, widths: Sequence[int], multiple: int) -> nn.Sequential:
    """Builds convolutions, batch norm and LeakyReLU: (B, C, H, W) → (B, widths[-1], H', W')."""
    layers: list[nn.Module] = [PadToMultiple(multiple)]
    for before, after in pairwise([channels, *widths]):
        layers += normed(halving(before, after), nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
    return nn.Sequential(*layers)


def linear_trunk(width: int, widths: Sequence[int]) -> nn.Sequential:
    """Builds linear layers with batch norm and LeakyReLU: (B, F) → (B, widths[-1])."""
    layers: list[nn.Module] = []
    for before, after in pairwise([width, *widths]):
        layers += normed(nn.Linear(before, after), nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
    return nn.Sequential(*layers)


def vector_head(width: int, hidden: Sequence[int], latent: int) -> nn.Sequential:
    """Builds a linear trunk and a last layer without norm: (B, F) → (B, 2·latent)."""
    return nn.Sequential(linear_trunk(width, hidden), nn.Linear(hidden[-1], 2 * latent))


# ---- decoders


def joined(shared: Tensor, exclusive: Tensor | None) -> Tensor:
    """Joins z^x, repeated in every cell of a map, and z^s: (B, E) and (B, S…) → (B, E + S…)."""
    if exclusive is None:
        return shared
    if shared.ndim == 4:
        exclusive = exclusive[:, :, None, None].expand(-1, -1, *shared.shape[-2:])
    return torch.cat([exclusive, shared], dim=1)


class ImageDecoder(nn.Module):
    """p(x|z^x, z^s) for pictures: transposed convolutions from a grid to tanh pixels.

    `entry` makes a grid of widths[0] channels of the joined latents; `dropout` is the rate in the
    first two stages. What exceeds `size` (H, W) is cropped.
    """

    def __init__(
        self, entry: nn.Module, widths: Sequence[int], size: tuple[int, int], dropout: float
    ) -> None:
        super().__init__()
        self.entry = entry
        self.size = size
        layers: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise(widths[:-1])):
            rate = dropout if stage < 2 else 0.0
            layers += normed(doubling(before, after), nn.ReLU(inplace=True), rate)
        self.stages = nn.Sequential(*layers, doubling(*widths[-2:]))

    def forward(self, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Decodes (B, S…) and (B, E) or None into pictures (B, C, H, W) in [−1, 1]."""
        pictures = torch.tanh(self.stages(self.entry(joined(shared, exclusive))))
        return pictures[..., : self.size[0], : self.size[1]]


class FeatureDecoder(nn.Module):
    """p(x|z^x, z^s) for features: linear, batch norm, ReLU, linear; no output activation."""

    def __init__(self, latent: int, hidden: int, width: int) -> None:
        super().__init__()
        first = normed(nn.Linear(latent, hidden), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*first, nn.Linear(hidden, width))

    def forward(self, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Decodes (B, S) and (B, E) or None into features (B, F)."""
        decoded: Tensor = self.layers(joined(shared, exclusive))
        return decoded


# ---- families


@dataclass(frozen=True)
class ImageNetworks:
    """For pictures, with a map as shared latent."""

    size: tuple[int, int]  # (H, W), the same in both domains, ≥ 16
    widths: Sequence[int]  # filters of FE and the exclusive encoder; paper: 32 … 256
    decoder_widths: Sequence[int]  # as many, filters of the decoder but its last; paper: 512 … 64
    shared_dim: int  # channels of the shared map; paper: 128
    dropout: float = 0.5  # in the decoder's first stages

    @property
    def multiple(self) -> int:
        """The number that pictures' sides are padded to a multiple of."""
        return int(2 ** (len(self.widths) + 1))

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the latent grid."""
        return -(-self.size[0] // self.multiple), -(-self.size[1] // self.multiple)

    @property
    def trunk_grid(self) -> tuple[int, int]:
        """(H, W) of the grid before the last halving."""
        return 2 * self.grid[0], 2 * self.grid[1]

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """The shape of a shared latent."""
        return self.shared_dim, *self.grid

    def exclusive(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, C, H, W) → (B, 2E)."""
        cells = self.trunk_grid[0] * self.trunk_grid[1] * self.widths[-1]
        trunk = conv_trunk(width, self.widths, self.multiple)
        return nn.Sequential(trunk, nn.Flatten(), nn.Linear(cells, 2 * exclusive_dim))

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, widths[-1], *trunk_grid)."""
        return conv_trunk(width, self.widths, self.multiple)

    def shared(self, *widths: int) -> nn.Module:
        """(B, n·widths[-1], *trunk_grid) → (B, 2S, *grid): one more convolution."""
        return halving(len(widths) * self.widths[-1], 2 * self.shared_dim)

    def decoder(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, S, *grid) and (B, E) → (B, C, H, W)."""
        widths = [self.shared_dim + exclusive_dim, *self.decoder_widths, width]
        return ImageDecoder(nn.Identity(), widths, self.size, self.dropout)


@dataclass(frozen=True)
class FlatNetworks(ImageNetworks):
    """For pictures, with a vector of `shared_dim` as shared latent (Cars)."""

    hidden: int = 256  # width of the linear heads, filters of FE's fifth convolution
    # Channels of the grid that the decoder begins with. The paper's table has 262,144 units here,
    # the released code 8·8·512 = 32,768; the code is followed.
    flat_width: int = 512

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """(S,)."""
        return (self.shared_dim,)

    @property
    def flat_features(self) -> int:
        """Width of FE's output."""
        return self.grid[0] * self.grid[1] * self.hidden

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, flat_features)."""
        super().features(width)  # draws random numbers: every seed keeps its initial weights
        trunk = conv_trunk(width, [*self.widths, self.hidden], self.multiple)
        return nn.Sequential(trunk, nn.Flatten())

    def shared(self, *widths: int) -> nn.Module:
        """(B, n·flat_features) → (B, 2S)."""
        return vector_head(len(widths) * self.flat_features, [self.hidden], self.shared_dim)

    def decoder(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, S) and (B, E) → (B, C, H, W)."""
        grid = (self.flat_width, *self.grid)
        layer = nn.Linear(self.shared_dim + exclusive_dim, math.prod(grid))
        layers = nn.Sequential(*normed(layer, nn.ReLU(inplace=True), self.dropout))
        entry = nn.Sequential(OrderedDict(layers=layers, grid=nn.Unflatten(1, grid)))
        widths = [self.flat_width, *self.decoder_widths, width]
        return ImageDecoder(entry, widths, self.size, self.dropout)


@dataclass(frozen=True)
class FeatureNetworks:
    """For feature vectors; the defaults are the paper's for 512-d VGG features (appendix D.2)."""

    feature_width: int = 512
    exclusive_hidden: Sequence[int] = (512, 256)
    shared_hidden: int = 256
    joint_hidden: int = 512
    decoder_hidden: int = 128
    shared_dim: int = 64

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """(S,)."""
        return (self.shared_dim,)

    def exclusive(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, F) → (B, 2E)."""
        return vector_head(width, self.exclusive_hidden, exclusive_dim)

    def features(self, width: int) -> nn.Module:
        """(B, F) → (B, feature_width)."""
        return linear_trunk(width, [self.feature_width])

    def shared(self, *widths: int) -> nn.Module:
        """(B, n·feature_width) → (B, 2S)."""
        hidden = self.shared_hidden if len(widths) == 1 else self.joint_hidden
        return vector_head(len(widths) * self.feature_width, [hidden], self.shared_dim)

    def decoder(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, S) and (B, E) → (B, F)."""
        return FeatureDecoder(self.shared_dim + exclusive_dim, self.decoder_hidden, width)


Networks: TypeAlias = ImageNetworks | FeatureNetworks
