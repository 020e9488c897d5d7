"""Layers, encoders and decoders (paper, appendix D; the released code where the two differ).

Pictures whose sides are no multiple of 2^stages are extended by edge replication on entry and
cropped on exit, so that any size works; at the paper's 256×256 both steps do nothing.

Shapes: B batch, C channels, H W height and width, F features, S shared and E exclusive latent. A
head returns means and log-variances in one tensor: twice the latent on dimension 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
NORM_EPS = 1e-5
NORM_MOMENTUM = 0.1  # 0.9 in TensorFlow's sense


def init_paper_weights(module: nn.Module) -> None:
    """Initialises one layer as the released code does; use with `Module.apply`.

    Convolutions N(0, 0.02), linear layers Glorot-uniform, batch-norm scale N(1, 0.02), biases zero.
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


def halving(in_channels: int, out_channels: int) -> nn.Conv2d:
    """(B, C, 2H, 2W) → (B, D, H, W)."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)


def doubling(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """(B, C, H, W) → (B, D, 2H, 2W)."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)


def normed(
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, activation: nn.Module, dropout: float = 0.0
) -> list[nn.Module]:
    """A layer, its batch norm, dropout and activation.

    The released networks' layers have biases here too. Batch norm subtracts them again, so their
    gradient is zero but for rounding: they do not learn and stay at zero.
    """
    assert layer.bias is not None
    layer.bias.requires_grad_(False)
    norm: nn.Module
    if isinstance(layer, nn.Linear):
        norm = nn.BatchNorm1d(layer.out_features, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    else:
        norm = nn.BatchNorm2d(layer.out_channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    return [layer, norm, *([nn.Dropout(dropout)] if dropout else []), activation]


# Activations work in place: neither batch norm nor dropout needs its output again.


def conv_trunk(channels: int, widths: Sequence[int], multiple: int = 1) -> nn.Sequential:
    """Convolutions with batch norm and LeakyReLU: (B, C, H, W) → (B, widths[-1], H', W')."""
    layers: list[nn.Module] = [PadToMultiple(multiple)]
    for width in widths:
        layers += normed(halving(channels, width), nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
        channels = width
    return nn.Sequential(*layers)


def linear_trunk(width: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with batch norm and LeakyReLU: (B, F) → (B, widths[-1])."""
    layers: list[nn.Module] = []
    for following in widths:
        layers += normed(nn.Linear(width, following), nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
        width = following
    return nn.Sequential(*layers)


def vector_head(width: int, hidden: Sequence[int], latent: int) -> nn.Sequential:
    """A linear trunk and a last layer without norm: (B, F) → (B, 2·latent)."""
    return nn.Sequential(linear_trunk(width, hidden), nn.Linear(hidden[-1], 2 * latent))


def grid_after(size: int, stages: int) -> int:
    """Side of the grid after `stages` halvings of a side, extended to a multiple of 2^stages."""
    cell: int = 2**stages
    return -(-size // cell)


class PadToMultiple(nn.Module):
    """Extends (B, C, H, W) at the bottom and right by edge replication to a multiple."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple

    def forward(self, pictures: Tensor) -> Tensor:
        """Extends a batch; returns it as it is if its sides are multiples already."""
        height, width = pictures.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            pictures = F.pad(pictures, (0, right, 0, bottom), mode="replicate")
        return pictures


def joined(shared: Tensor, exclusive: Tensor | None) -> Tensor:
    """Both latents on dimension 1, the exclusive one first: (B, E + S…)."""
    return shared if exclusive is None else torch.cat([exclusive, shared], dim=1)


class TiledEntry(nn.Module):
    """Repeats z^x in every cell of the map z^s: (B, S, H, W) and (B, E) → (B, E + S, H, W)."""

    def forward(self, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Joins a batch of latents."""
        if exclusive is not None:
            exclusive = exclusive[:, :, None, None].expand(-1, -1, *shared.shape[-2:])
        return joined(shared, exclusive)


class FlatEntry(nn.Module):
    """Spreads vectors over a grid: (B, S) and (B, E) → (B, width, *grid)."""

    def __init__(self, latent: int, width: int, grid: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.shape = (width, *grid)
        layer = nn.Linear(latent, width * grid[0] * grid[1])
        self.layers = nn.Sequential(*normed(layer, nn.ReLU(inplace=True), dropout))

    def forward(self, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Joins a batch of latents, channels before rows and columns."""
        cells: Tensor = self.layers(joined(shared, exclusive))
        return cells.view(-1, *self.shape)


class ImageDecoder(nn.Module):
    """p(x|z^x, z^s) for pictures: transposed convolutions from a grid to tanh pixels.

    Args:
        entry: from both latents to a grid of `in_channels`.
        in_channels: of that grid.
        widths: output channels of every transposed convolution but the last.
        channels: C of the picture.
        size: (H, W) of the picture; what the stages make beyond it is cropped.
        dropout: rate in the first two stages.
    """

    def __init__(
        self,
        entry: nn.Module,
        in_channels: int,
        *,
        widths: Sequence[int],
        channels: int,
        size: tuple[int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.entry = entry
        self.size = size
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            rate = dropout if index < 2 else 0.0
            layers += normed(doubling(in_channels, width), nn.ReLU(inplace=True), rate)
            in_channels = width
        self.stages = nn.Sequential(*layers, doubling(in_channels, channels))

    def forward(self, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Decodes (B, S…) and (B, E) or None into pictures (B, C, H, W) in [−1, 1]."""
        pictures = torch.tanh(self.stages(self.entry(shared, exclusive)))
        return pictures[..., : self.size[0], : self.size[1]]


class FeatureDecoder(nn.Module):
    """p(x|z^x, z^s) for features: linear, batch norm, ReLU, linear; no output activation."""

    def __init__(self, latent: int, hidden: int, width: int) -> None:
        super().__init__()
        first = normed(nn.Linear(latent, hidden), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*first, nn.Linear(hidden, width))

    def forward(self, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Decodes (B, S) and (B, E) or None into features (B, F)."""
        features: Tensor = self.layers(joined(shared, exclusive))
        return features
