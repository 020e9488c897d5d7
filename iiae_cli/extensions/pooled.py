"""Shared vectors that do not know where content stands: `PooledNetworks`.

Convolutions that read across a picture's borders to the opposite side commute with cyclic shifts by
multiples of their stride, so the maximum over all places is the same wherever content stands. The
exclusive encoders are the flat networks' own and see places. Shapes: B batch; C H W of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iiae_cli.model.networks import LEAKY_SLOPE, FlatNetworks, PadToMultiple, normed


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
