"""Encoders beyond the paper's: linear paths, pooled shared and attentive exclusive encoders.

Linear paths: each shared mean gains a linear map of its input, or of a description of a picture
(`descriptions.py`), that starts in closed form (`closed_forms.py`). A network that has seen few
classes or pairs loses what tells others apart; the path keeps it.

Pooling: convolutions that read across a picture's borders to the opposite side commute with cyclic
shifts by multiples of their stride, so the maximum over all places does not depend on where content
stands. The exclusive encoders remain the flat networks' own and see places.

Attention: the paper's linear layer sums over places, so a thin digit's colour looks darker than a
thick one's. A weighted mean over places does not depend on how much of them content covers.

Shapes: B batch; C H W of pictures; W features of FE, F numbers beside them; S shared latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_cli.extensions.descriptions import (
    MAP_DIRECTIONS,
    PictureDescription,
    describe_cells,
    description_width,
)
from iiae_cli.model import Domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.model.networks import (
    LEAKY_SLOPE,
    FeatureNetworks,
    FlatNetworks,
    ImageNetworks,
    PadToMultiple,
    init_paper_weights,
    normed,
)

Maps: TypeAlias = Mapping[Domain, tuple[Tensor, Tensor]]  # weights (S, F) or (S, F·16), biases (S,)

SHARPNESS = 10  # of attention: its small initial weights would attend to all places alike
START_LOGVAR = -2.0  # of shared posteriors that start in closed form


# ---- heads


class PassInput(nn.Module):
    """A feature extractor that also returns its input, or a description of it."""

    def __init__(self, trunk: nn.Module, describe: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk = trunk
        self.describe = describe

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (B, W + F, …)."""
        features = self.trunk(inputs)
        return torch.cat([features, self.describe(inputs).to(features.dtype)], dim=1)


def _pieces(extracted: int, beside: Sequence[int]) -> list[int]:
    """Returns the channels of joined `PassInput` outputs: W and F of each domain in turn."""
    return [width for count in beside for width in (extracted, count)]


class LinearPathHead(nn.Module):
    """r or q of a vector latent: the mean of `head`, (B, ΣW) → (B, 2S), plus a linear map of ΣF."""

    learned: Tensor

    def __init__(
        self, head: nn.Module, extracted: int, beside: Sequence[int], shared_dim: int
    ) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("learned", torch.ones(()))  # 0: the mean is held at the linear map
        self.linear = nn.Linear(sum(beside), shared_dim)
        self._pieces = _pieces(extracted, beside)

    @torch.no_grad()
    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Makes the mean a linear map alone, weight (S, ΣF), bias (S,), with small variances."""
        *_, last = self.head.modules()
        assert isinstance(last, nn.Linear)
        shared_dim = len(weight)
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)
        last.weight[:shared_dim] = 0.0
        last.bias[:shared_dim] = 0.0
        last.bias[shared_dim:] = START_LOGVAR

    def forward(self, read: Tensor) -> Tensor:
        """Returns heads (B, 2S) from the domains' `PassInput` outputs (B, Σ(W + F))."""
        pieces = torch.split(read, self._pieces, dim=1)
        mean, logvar = self.head(torch.cat(pieces[0::2], dim=1)).chunk(2, dim=1)
        linear = self.linear(torch.cat(pieces[1::2], dim=1))
        return torch.cat([self.learned * mean + linear, logvar], dim=1)


class DescribedMapHead(nn.Conv2d):
    """r or q of a map latent: one halving convolution reads both features and descriptions."""

    def __init__(self, extracted: int, beside: Sequence[int], shared_dim: int) -> None:
        self._pieces = _pieces(extracted, beside)
        super().__init__(sum(self._pieces), 2 * shared_dim, kernel_size=4, stride=2, padding=1)

    @torch.no_grad()
    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Makes the mean a linear map of 4×4 windows, weight (S, ΣF·16), bias (S,)."""
        shared_dim = len(weight)
        assert self.bias is not None
        described = torch.split(self.weight, self._pieces, dim=1)[1::2]
        windows = torch.split(weight.view(shared_dim, -1, 4, 4), self._pieces[1::2], dim=1)
        self.weight[:shared_dim] = 0.0
        for part, values in zip(described, windows, strict=True):
            part[:shared_dim] = values
            part[shared_dim:] = 0.0
        self.bias[:shared_dim] = bias
        self.bias[shared_dim:] = START_LOGVAR


# ---- networks with paths, by the shapes of `networks.py`


@dataclass(frozen=True)
class LinearPathFeatures(FeatureNetworks):
    """Feature networks whose shared means gain a linear map of the features."""

    def features(self, width: int) -> nn.Module:
        """(B, F) → (B, W + F)."""
        return PassInput(super().features(width), nn.Identity())

    def shared(self, *widths: int) -> nn.Module:
        """(B, Σ(W + F)) → (B, 2S)."""
        return LinearPathHead(super().shared(*widths), self.feature_width, widths, self.shared_dim)


@dataclass(frozen=True)
class DescribedFlat(FlatNetworks):
    """Flat networks whose shared means gain a linear map of the pictures' descriptions."""

    patches: int = 0

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, W + F)."""
        return PassInput(super().features(width), PictureDescription(width, self.patches))

    def shared(self, *widths: int) -> nn.Module:
        """(B, Σ(W + F)) → (B, 2S)."""
        beside = [description_width(channels, self.patches) for channels in widths]
        return LinearPathHead(super().shared(*widths), self.flat_features, beside, self.shared_dim)


@dataclass(frozen=True)
class DescribedMaps(ImageNetworks):
    """Image networks whose shared heads read a map of descriptions too."""

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, W + F, *trunk_grid)."""
        describe = partial(describe_cells, grid=self.trunk_grid, multiple=self.multiple)
        return PassInput(super().features(width), describe)

    def shared(self, *widths: int) -> nn.Module:
        """(B, Σ(W + F), *trunk_grid) → (B, 2S, *grid)."""
        beside = [4 * MAP_DIRECTIONS + width for width in widths]
        return DescribedMapHead(self.widths[-1], beside, self.shared_dim)


def description(model: IIAE, domain: Domain) -> Any:
    """Returns what describes a domain's inputs: a function, or a `PictureDescription`."""
    features = model.features[domain]
    assert isinstance(features, PassInput)
    return features.describe


def described_rows(model: IIAE, domain: Domain, pictures: Tensor) -> Tensor:
    """Returns what a domain's path reads: (B, F), or every cell's 4×4 window (B·H·W, F·16)."""
    described: Tensor = description(model, domain)(pictures)
    if described.ndim == 2:
        return described
    return F.unfold(described, kernel_size=4, stride=2, padding=1).transpose(1, 2).flatten(0, 1)


def start_linear_paths(model: IIAE, maps: Maps) -> None:
    """Starts each shared encoder at its map, and q at their mean."""
    for domain, path in model.shared.items():
        assert isinstance(path, LinearPathHead | DescribedMapHead)
        path.start(*maps[domain])  # type: ignore[index]
    if model.generative:
        assert isinstance(model.joint_shared, LinearPathHead | DescribedMapHead)
        (weight_x, bias_x), (weight_y, bias_y) = maps["x"], maps["y"]
        model.joint_shared.start(torch.cat([weight_x, weight_y], dim=1) / 2, (bias_x + bias_y) / 2)


def hold_linear_paths(model: IIAE) -> None:
    """Fixes every shared mean at its linear path; everything else continues to learn."""
    for path in model.modules():
        if isinstance(path, LinearPathHead):
            path.learned.zero_()
            path.linear.requires_grad_(False)


# ---- pooled shared encoders


class Wrap(nn.Module):
    """Extends (B, C, H, W) by one pixel of the opposite side all around."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns (B, C, H + 2, W + 2); twice as fast as torch's padding on channels last."""
        rows = torch.cat([pictures[:, :, -1:], pictures, pictures[:, :, :1]], dim=2)
        return torch.cat([rows[:, :, :, -1:], rows, rows[:, :, :, :1]], dim=3)


@dataclass(frozen=True)
class PooledNetworks(FlatNetworks):
    """Flat networks whose shared encoders pool over places; wrapped convolutions of `widths`."""

    @property
    def flat_features(self) -> int:
        """Width of FE's output."""
        return self.widths[-1]

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, widths[-1])."""
        layers: list[nn.Module] = [PadToMultiple(2 ** len(self.widths))]
        for after in self.widths:
            convolution = nn.Conv2d(width, after, kernel_size=4, stride=2)
            layers += [Wrap(), *normed(convolution, nn.LeakyReLU(LEAKY_SLOPE, inplace=True))]
            width = after
        return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())


# ---- attentive exclusive encoders


class AttentionPooling(nn.Module):
    """A mean over a map's places per head, weighted by a softmax of scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.scores = nn.Conv2d(width, heads, kernel_size=1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) → (B, heads·C)."""
        scores = SHARPNESS * self.scores(maps).flatten(2)
        weights = scores.softmax(dim=2)  # (B, heads, H·W)
        means: Tensor = weights @ maps.flatten(2).mT
        return means.flatten(1)


def attentive(encoder: nn.Module, heads: int) -> nn.Module:
    """Returns the exclusive encoder of image or flat networks with attention for its flattening."""
    trunk, _, linear = encoder.children()
    norm = [layer for layer in trunk.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
    width, latent = norm.num_features, int(linear.out_features)  # type: ignore[arg-type]
    pooled = nn.Sequential(AttentionPooling(width, heads), nn.Linear(heads * width, latent))
    return nn.Sequential(trunk, *pooled.apply(init_paper_weights))
