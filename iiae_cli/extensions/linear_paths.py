"""Linear paths: each shared mean gains a linear map of its input, begun at a closed form.

A network that has seen few classes, or few pairs, keeps what tells these apart and loses what would
tell others apart. A linear path that begins at a closed form (`closed_forms.py`) has that already,
and training continues from there. Features are mapped themselves, pictures by a fixed description
(`edge_features.py`).

Shapes: B batch, W features that FE returns, F numbers that stand beside them, S shared latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_cli.extensions.edge_features import PictureDescription, PictureMap
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.model.networks import FeatureNetworks, FlatNetworks, ImageNetworks

START_LOGVAR = -2.0  # of shared posteriors that begin at a closed form


class PassInput(nn.Module):
    """A feature extractor whose input, or a description of it, continues beside its output.

    Args:
        trunk: the extractor, to (B, W) or a map (B, W, H, W).
        describe: makes (B, F), or a map of the same grid, of the input; None: the input itself.
    """

    def __init__(self, trunk: nn.Module, describe: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.describe = nn.Identity() if describe is None else describe

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (B, W + F, …)."""
        features = self.trunk(inputs)
        return torch.cat([features, self.describe(inputs).to(features.dtype)], dim=1)


class LinearPathHead(nn.Module):
    """r or q of a vector latent: the mean of `head` plus a linear map of what stands beside.

    Args:
        head: (B, n·W) → (B, 2S), for n = 1 (r) or 2 (q) domains.
        extracted: W, of each domain.
        beside: F of each domain.
        shared_dim: S.
    """

    learned: Tensor

    def __init__(
        self, head: nn.Sequential, extracted: int, beside: Sequence[int], shared_dim: int
    ) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("learned", torch.ones(()))  # 0: the mean is held at the linear map
        self.linear = nn.Linear(sum(beside), shared_dim)
        self._pieces = _pieces(extracted, beside)

    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Makes it the linear map alone, weight (S, ΣF) and bias (S,), with small variances."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        shared_dim = len(weight)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)
            last.weight[:shared_dim] = 0.0
            last.bias[:shared_dim] = 0.0
            last.bias[shared_dim:] = START_LOGVAR

    def hold(self) -> None:
        """Keeps the mean at the linear map as it is; only variances learn from now on."""
        self.learned.zero_()
        self.linear.requires_grad_(False)

    def forward(self, read: Tensor) -> Tensor:
        """Returns heads (B, 2S) of the domains' `PassInput` outputs (B, Σ(W + F))."""
        pieces = torch.split(read, self._pieces, dim=1)
        mean, logvar = self.head(torch.cat(pieces[0::2], dim=1)).chunk(2, dim=1)
        linear = self.linear(torch.cat(pieces[1::2], dim=1))
        return torch.cat([self.learned * mean + linear, logvar], dim=1)


class DescribedMapHead(nn.Conv2d):
    """r or q of a map latent: one halving convolution reads features and descriptions alike.

    Args:
        extracted: W, of each domain.
        beside: F of each domain.
        shared_dim: S.
    """

    def __init__(self, extracted: int, beside: Sequence[int], shared_dim: int) -> None:
        self._pieces = _pieces(extracted, beside)
        super().__init__(sum(self._pieces), 2 * shared_dim, kernel_size=4, stride=2, padding=1)

    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Makes it a linear map of the descriptions alone, with small variances.

        Args:
            weight: (S, ΣF·16), for the 16 places of a window in each channel.
            bias: (S,).
        """
        shared = len(weight)
        assert self.bias is not None
        with torch.no_grad():
            described = torch.split(self.weight, self._pieces, dim=1)[1::2]
            widths = [part.shape[1] for part in described]
            self.weight[:shared] = 0.0
            for part, values in zip(
                described, torch.split(weight.view(shared, -1, 4, 4), widths, dim=1), strict=True
            ):
                part[:shared] = values
                part[shared:] = 0.0
            self.bias[:shared] = bias
            self.bias[shared:] = START_LOGVAR


def _pieces(extracted: int, beside: Sequence[int]) -> list[int]:
    """Channels of joined `PassInput` outputs: W and F of each domain in turn."""
    return [width for count in beside for width in (extracted, count)]


@dataclass(frozen=True)
class LinearPathFeatures(FeatureNetworks):
    """Feature networks whose shared means gain a linear map of the features."""

    def features(self, width: int) -> nn.Module:
        """(B, F) → (B, W + F)."""
        return PassInput(super().features(width))

    def shared(self, *widths: int) -> nn.Module:
        """(B, Σ(W + F)) → (B, 2S)."""
        head = super().shared(*widths)
        assert isinstance(head, nn.Sequential)
        return LinearPathHead(head, self.feature_width, widths, self.shared_dim)


@dataclass(frozen=True)
class DescribedFlat(FlatNetworks):
    """Flat networks whose shared means gain a linear map of the pictures' descriptions."""

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, W + F)."""
        return PassInput(super().features(width), PictureDescription(width))

    def shared(self, *widths: int) -> nn.Module:
        """(B, Σ(W + F)) → (B, 2S)."""
        head = super().shared(*widths)
        assert isinstance(head, nn.Sequential)
        beside = [PictureDescription(width).width for width in widths]
        return LinearPathHead(head, self.flat_features, beside, self.shared_dim)


@dataclass(frozen=True)
class DescribedMaps(ImageNetworks):
    """Image networks whose shared heads read a map of descriptions too."""

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, W + F, *trunk_grid)."""
        return PassInput(super().features(width), self._describe(width))

    def shared(self, *widths: int) -> nn.Module:
        """(B, Σ(W + F), *trunk_grid) → (B, 2S, *grid)."""
        beside = [self._describe(width).width for width in widths]
        return DescribedMapHead(self.widths[-1], beside, self.shared_dim)

    def _describe(self, channels: int) -> PictureMap:
        return PictureMap(channels, self.trunk_grid, self.multiple)


def start_linear_paths(
    model: IIAE, weights: Mapping[Domain, Tensor], biases: Mapping[Domain, Tensor]
) -> None:
    """Lets each shared encoder begin as its own linear map, and the joint one as their mean.

    Args:
        model: with linear paths.
        weights: (S, F) of each domain; of a map latent (S, F·16), as `described_rows` are.
        biases: (S,) of each domain.
    """
    for domain, path in model.shared.items():
        assert isinstance(path, LinearPathHead | DescribedMapHead)
        path.start(weights[domain], biases[domain])  # type: ignore[index]
    if model.generative:
        assert isinstance(model.joint_shared, LinearPathHead | DescribedMapHead)
        joint = torch.cat([weights[domain] for domain in DOMAINS], dim=1)
        model.joint_shared.start(joint / 2, (biases["x"] + biases["y"]) / 2)


def hold_linear_paths(model: IIAE) -> None:
    """Keeps every shared mean at its linear path; everything else continues to learn."""
    for path in model.modules():
        if isinstance(path, LinearPathHead):
            path.hold()


def described_rows(model: IIAE, domain: Domain, pictures: Tensor) -> Tensor:
    """Returns what a domain's linear path reads of pictures: (B, F), or of a map (B·H·W, F·16).

    The latter are the 4×4 windows of every cell of the latent.
    """
    features = model.features[domain]
    assert isinstance(features, PassInput)
    described: Tensor = features.describe(pictures)
    if described.ndim == 2:
        return described
    return F.unfold(described, kernel_size=4, stride=2, padding=1).transpose(1, 2).flatten(0, 1)
