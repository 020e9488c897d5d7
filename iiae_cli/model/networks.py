"""Encoders and decoders (paper, appendix D; released code where the two differ).

Three families share the interfaces that `iiae.py` composes:

* image, *map* latent: convolutions down to a grid, shared latent of shape (C, H, W);
* image, *flat* latent (the Cars variant): the same grid flattened into a vector (D,);
* features: linear layers on vectors.

Pictures whose sides are no multiple of 2^stages are extended by edge replication on entry and cropped on exit, so
that any size works; at the paper's 256×256 both steps do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_cli.model.convolutions import DoublingConv, HalvingConv

LEAKY_SLOPE = 0.2
NORM_EPS = 1e-5
NORM_MOMENTUM = 0.1  # 0.9 in TensorFlow's sense
START_LOGVAR = -2.0  # of shared encoders that begin as a closed form

Activation: TypeAlias = Literal["leaky_relu", "relu"]


def init_paper_weights(module: nn.Module) -> None:
    """Initialise one layer as the released code does; use with `Module.apply`.

    Convolutions N(0, 0.02), linear layers Glorot-uniform, batch-norm scale N(1, 0.02), every bias zero.
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


def drop(inputs: Tensor, rate: float) -> Tensor:
    """Dropout: zero with probability `rate`, otherwise scaled by 1 / (1 − rate).

    On a CPU a mask takes one random byte a value where the rate is a whole number of 256ths (the paper's is a half).
    torch draws a random number for each, which takes a few times as long. Values are drawn in the order of memory.
    """
    threshold = 256 * rate
    if inputs.ndim != 4:  # a few features per row: nothing to gain
        return F.dropout(inputs, rate)
    dense = inputs.is_contiguous() or inputs.is_contiguous(memory_format=torch.channels_last)
    if (
        inputs.device.type != "cpu"
        or torch.compiler.is_compiling()
        or threshold != int(threshold)
        or not dense
    ):
        return F.dropout(inputs, rate)
    count = inputs.numel()
    draws = (
        torch.empty(-(-count // 8), dtype=torch.int64)
        .random_(-(2**63), None)
        .view(torch.uint8)[:count]
    )
    kept = (draws >= int(threshold)).as_strided(inputs.shape, inputs.stride())
    return inputs * kept.to(inputs.dtype).mul_(1 / (1 - rate))


class Dropout(nn.Dropout):
    """`drop` in training, nothing otherwise."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop values of a tensor of any shape."""
        return drop(inputs, self.p) if self.training else inputs


def _normed(
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear,
    dims: int,
    activation: Activation,
    dropout: float = 0.0,
) -> list[nn.Module]:
    """A layer, its batch norm, dropout and activation.

    The released networks' layers have biases here too. Batch norm subtracts them again, so their gradient is zero but
    for rounding; that noise is not worth computing. They stay where they are, at zero.
    """
    norm_cls = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert layer.bias is not None
    layer.bias.requires_grad_(False)
    layers: list[nn.Module] = [layer, norm_cls(width, eps=NORM_EPS, momentum=NORM_MOMENTUM)]
    if dropout > 0:
        layers.append(Dropout(dropout))
    # In place: neither batch norm nor dropout needs its output again, and memory traffic is what these layers cost.
    layers.append(
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
        if activation == "leaky_relu"
        else nn.ReLU(inplace=True)
    )
    return layers


def grid_after(size: int, stages: int) -> int:
    """Side of the grid after `stages` halvings of a picture side, extended to a multiple of 2^stages."""
    cell: int = 2**stages
    return -(-size // cell)


class PadToMultiple(nn.Module):
    """Extend (B, C, H, W) at the bottom and right by edge replication to a multiple of `multiple`."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple

    def forward(self, pictures: Tensor) -> Tensor:
        """Extend a batch; nothing happens where its sides are multiples already."""
        height, width = pictures.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            pictures = F.pad(pictures, (0, right, 0, bottom), mode="replicate")
        return pictures


class ConvTrunk(nn.Sequential):
    """Convolutions 4×4 stride 2, each with batch norm and LeakyReLU(0.2): (B, C, H, W) → (B, widths[-1], H', W')."""

    def __init__(
        self, in_channels: int, widths: Sequence[int], pad_multiple: int | None = None
    ) -> None:
        layers: list[nn.Module] = [PadToMultiple(pad_multiple)] if pad_multiple else []
        for width in widths:
            layers += _normed(HalvingConv(in_channels, width), 2, "leaky_relu")
            in_channels = width
        super().__init__(*layers)


class LinearTrunk(nn.Sequential):
    """Linear layers, each with batch norm and LeakyReLU(0.2): (B, F) → (B, widths[-1])."""

    def __init__(self, in_width: int, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            layers += _normed(nn.Linear(in_width, width), 1, "leaky_relu")
            in_width = width
        super().__init__(*layers)


def image_exclusive_encoder(
    channels: int,
    widths: Sequence[int],
    grid: tuple[int, int],
    exclusive_dim: int,
    pad_multiple: int,
) -> nn.Sequential:
    """q(z^x|x) for pictures: trunk → flatten → linear; (B, C, H, W) → (B, 2E). `grid` is the trunk's output grid."""
    return nn.Sequential(
        ConvTrunk(channels, widths, pad_multiple),
        nn.Flatten(),
        nn.Linear(widths[-1] * grid[0] * grid[1], 2 * exclusive_dim),
    )


def map_shared_head(in_channels: int, shared_channels: int) -> nn.Module:
    """r(z^s|·) or q(z^s|x,y) with a map latent: one more halving convolution to (B, 2·shared_channels, H, W)."""
    return HalvingConv(in_channels, 2 * shared_channels)


def flat_shared_head(in_width: int, hidden: int, shared_dim: int) -> nn.Sequential:
    """r or q with a vector latent: linear, batch norm, LeakyReLU, linear; (B, in_width) → (B, 2·shared_dim).

    The Cars networks and the feature networks share it.
    """
    return nn.Sequential(LinearTrunk(in_width, [hidden]), nn.Linear(hidden, 2 * shared_dim))


def feature_exclusive_encoder(
    width: int, hidden: Sequence[int], exclusive_dim: int
) -> nn.Sequential:
    """q(z^x|x) for features: (B, F) → (B, 2E)."""
    trunk = LinearTrunk(width, hidden)
    return nn.Sequential(trunk, nn.Linear(hidden[-1], 2 * exclusive_dim))


class PassInput(nn.Module):
    """A feature extractor whose input, or a description of it, goes on beside its output: (B, …) → (B, W + F, …).

    Args:
        trunk: the extractor, to (B, W) or a map (B, W, H, W).
        describe: what makes (B, F), or a map of the same grid, of the input; None: features, which go on as they are.
    """

    def __init__(self, trunk: nn.Module, describe: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.describe = describe

    def forward(self, inputs: Tensor) -> Tensor:
        """Output and input, concatenated."""
        features = self.trunk(inputs)
        beside = inputs if self.describe is None else self.describe(inputs)
        return torch.cat([features, beside.to(features.dtype)], dim=1)


class LinearPathHead(nn.Module):
    """r or q on `PassInput`'s output: the mean of `head`, plus a linear map of the features themselves.

    Beyond the paper. A network of few classes' features keeps what tells these classes apart and loses what would tell
    others; a linear path that starts as a closed-form solution (`start`) has that already, and training goes on from
    there.

    Args:
        head: (B, W·n) → (B, 2S), for n = 1 (r) or 2 (q, both domains).
        extracted: W, per domain.
        inputs: F of each domain.
        shared_dim: S.
    """

    learned: Tensor

    def __init__(
        self, head: nn.Module, extracted: int, inputs: Sequence[int], shared_dim: int
    ) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("learned", torch.ones(()))  # 0: the mean is held at the linear map
        self.linear = nn.Linear(sum(inputs), shared_dim)
        self._pieces = [width for one in inputs for width in (extracted, one)]

    def start(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Begin as the linear map alone, `weight` (S, ΣF) and `bias` (S,) or none, with small variances."""
        assert isinstance(self.head, nn.Sequential)
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        shared_dim = len(weight)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.zero_()
            if bias is not None:
                self.linear.bias.copy_(bias)
            last.weight[:shared_dim] = 0.0
            last.bias[:shared_dim] = 0.0
            last.bias[shared_dim:] = START_LOGVAR

    def hold(self) -> None:
        """Keep the mean at the linear map as it is; only the variances are learned from now on."""
        self.learned.zero_()
        self.linear.requires_grad_(False)

    def forward(self, joined: Tensor) -> Tensor:
        """Heads (B, 2S) of one domain's, or both domains', `PassInput` outputs (B, Σ(W + F))."""
        pieces = torch.split(joined, self._pieces, dim=1)
        mean, logvar = self.head(torch.cat(pieces[0::2], dim=1)).chunk(2, dim=1)
        return torch.cat(
            [self.learned * mean + self.linear(torch.cat(pieces[1::2], dim=1)), logvar], dim=1
        )


class DescribedMapHead(HalvingConv):
    """r or q with a map latent on `PassInput`'s output: one convolution reads features and descriptions.

    Beyond the paper: `map_shared_head` with more to read, of which a closed form says where to begin (`start`).

    Args:
        extracted: W, of each domain.
        inputs: F of each domain: one (r) or both (q).
        shared_channels: S.
    """

    def __init__(self, extracted: int, inputs: Sequence[int], shared_channels: int) -> None:
        pieces = [width for one in inputs for width in (extracted, one)]
        super().__init__(sum(pieces), 2 * shared_channels)
        self._pieces = pieces

    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Begin as a linear map of the descriptions alone, with small variances.

        Args:
            weight: (S, ΣF·16), the 16 places of a window for each of the domains' channels.
            bias: (S,).
        """
        shared = len(weight)
        assert self.bias is not None
        with torch.no_grad():
            described = torch.split(self.weight, self._pieces, dim=1)[1::2]
            self.weight[:shared] = 0.0
            given = torch.split(
                weight.view(shared, -1, 4, 4), [part.shape[1] for part in described], dim=1
            )
            for part, values in zip(described, given, strict=True):
                part[:shared] = values
                part[shared:] = 0.0
            self.bias[:shared] = bias
            self.bias[shared:] = START_LOGVAR


class ImageDecoder(nn.Module):
    """p(x|z^x, z^s) for pictures: transposed convolutions 4×4 stride 2 from the latent grid to tanh pixels.

    Args:
        shared_channels: channels of the shared map; with `flat_dim` the width of the shared vector instead.
        exclusive_dim: E; 0 for a decoder that sees z^s only (paper, Eq. 22).
        grid: (H, W) of the grid that the first transposed convolution reads.
        widths: output channels of every transposed convolution but the last.
        channels: channels of the picture.
        size: (H, W) of the picture; what the stages produce beyond it is cropped.
        dropout: rate in the first two stages and in the flat entry.
        flat_width: channels that the flat (Cars) variant's linear entry gives each grid cell; None for a map latent.
    """

    def __init__(
        self,
        *,
        shared_channels: int,
        exclusive_dim: int,
        grid: tuple[int, int],
        widths: Sequence[int],
        channels: int,
        size: tuple[int, int],
        dropout: float,
        flat_width: int | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.size = size
        self.flat_width = flat_width
        in_channels = shared_channels + exclusive_dim
        self.entry: nn.Module | None = None
        if flat_width is not None:
            cells = grid[0] * grid[1] * flat_width
            self.entry = nn.Sequential(*_normed(nn.Linear(in_channels, cells), 1, "relu", dropout))
            in_channels = flat_width
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            stage = DoublingConv(in_channels, width)
            layers += _normed(stage, 2, "relu", dropout if index < 2 else 0.0)
            in_channels = width
        layers.append(DoublingConv(in_channels, channels))
        self.stages = nn.Sequential(*layers)

    def forward(self, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Decode (B, S…) and (B, E) or None into pictures (B, C, H, W) in [−1, 1]."""
        if self.entry is not None and self.flat_width is not None:
            joined = shared if exclusive is None else torch.cat([exclusive, shared], dim=1)
            hidden = self.entry(joined).view(-1, self.flat_width, *self.grid)
        elif exclusive is None:
            hidden = shared
        else:
            tiled = exclusive[:, :, None, None].expand(-1, -1, *shared.shape[-2:])
            hidden = torch.cat([tiled, shared], dim=1)
        pictures = torch.tanh(self.stages(hidden))
        return pictures[..., : self.size[0], : self.size[1]]


class FeatureDecoder(nn.Module):
    """p(x|z^x, z^s) for features: linear, batch norm, ReLU, linear; no output activation."""

    def __init__(self, *, shared_dim: int, exclusive_dim: int, hidden: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_normed(nn.Linear(shared_dim + exclusive_dim, hidden), 1, "relu"),
            nn.Linear(hidden, width),
        )

    def forward(self, shared: Tensor, exclusive: Tensor | None) -> Tensor:
        """Decode (B, S) and (B, E) or None into features (B, F)."""
        joined = shared if exclusive is None else torch.cat([exclusive, shared], dim=1)
        features: Tensor = self.layers(joined)
        return features
