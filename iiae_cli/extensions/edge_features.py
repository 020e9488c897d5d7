"""A fixed description of small pictures: coarse colours, and edges by direction.

Sets of a thousand pairs are too small to learn edge detectors from, and what partners drawn by two
hands have in common is mostly where which edges run. A histogram of gradient directions in 8×8
cells (Dalal and Triggs, 2005) beside the cells' colours says that in some 700 numbers, from which
`model.linear_path=canonical` reads the shared vector linearly. A shared map is read from a map of
descriptions, each of its cells from those around it. The sign of a contrast does not count: a dark
line on white and a white one on dark look the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_cli.model.layers import PadToMultiple

DIRECTIONS = 8
MAP_DIRECTIONS = 4
SIDE = 32  # larger pictures are shrunk to it first, smaller ones taken as they are
CELLS = 8
FAINT = 0.05  # added to a neighbourhood's edge strength, so that flat areas are not blown up


def edge_directions(pictures: Tensor, directions: int = DIRECTIONS) -> Tensor:
    """Gradient magnitudes by direction: (B, C, H, W) in [−1, 1] → (B, directions, H, W), all ≥ 0.

    At every pixel the steepest channel's gradient counts, shared linearly between the two of the
    half circle's directions that are nearest to it.
    """
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 4
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 4
    power, steepest = (across.square() + down.square()).max(dim=1, keepdim=True)
    across, down = across.gather(1, steepest), down.gather(1, steepest)
    place = torch.atan2(down, across).remainder(math.pi) * (directions / math.pi)
    centres = torch.arange(directions, device=pictures.device, dtype=pictures.dtype)
    distance = (place - centres[:, None, None]).abs()
    distance = torch.minimum(distance, directions - distance)
    return power.sqrt() * (1 - distance).clamp_min(0)


def _pooled(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures at a size, in float32 and channels first, in which angles are quickest."""
    pictures = pictures.float().contiguous()
    return pictures if pictures.shape[-2:] == size else F.adaptive_avg_pool2d(pictures, size)


def edge_strengths(pictures: Tensor, cells: tuple[int, int], directions: int) -> Tensor:
    """Edges by direction in cells: pictures (B, C, H, W) in [−1, 1] → (B, directions, *cells).

    Each cell's strengths are divided by those of the 3×3 cells around it: lines may be faint.
    """
    edges = F.adaptive_avg_pool2d(edge_directions(pictures, directions), cells).sqrt()
    strength = F.pad(edges.square().sum(dim=1, keepdim=True).sqrt(), (1, 1, 1, 1), mode="replicate")
    return edges / (F.avg_pool2d(strength, 3, stride=1) + FAINT)


class PictureDescription(nn.Module):
    """Pictures (B, C, H, W) in [−1, 1] → (B, 64·(8 + C)): edges and colours of 8×8 cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = CELLS**2 * (DIRECTIONS + channels)

    def forward(self, pictures: Tensor) -> Tensor:
        """Describes a batch; no gradient passes."""
        with torch.no_grad():
            height, width = (min(SIDE, side) for side in pictures.shape[-2:])
            pictures = _pooled(pictures, (height, width))
            edges = edge_strengths(pictures, (CELLS, CELLS), DIRECTIONS)
            colours = F.adaptive_avg_pool2d(pictures, CELLS)
            return torch.cat([edges.flatten(1), colours.flatten(1)], dim=1)


class PictureMap(nn.Module):
    """Pictures (B, C, H, W) in [−1, 1] → (B, 16 + C, *grid): colours of cells, edges of quarters.

    Quarters are finer than `PictureDescription`'s cells, with four directions instead of eight.

    Args:
        channels: C.
        grid: that a trunk of convolutions has for such pictures.
        multiple: that it extends their sides to.
    """

    def __init__(self, channels: int, grid: tuple[int, int], multiple: int) -> None:
        super().__init__()
        self.width = 4 * MAP_DIRECTIONS + channels
        self.grid = grid
        self.extend = PadToMultiple(multiple)

    def forward(self, pictures: Tensor) -> Tensor:
        """Describes a batch; no gradient passes."""
        with torch.no_grad():
            height, width = self.grid
            pictures = _pooled(self.extend(pictures), (4 * height, 4 * width))
            quarters = edge_strengths(pictures, (2 * height, 2 * width), MAP_DIRECTIONS)
            described = torch.cat(
                [F.pixel_unshuffle(quarters, 2), F.adaptive_avg_pool2d(pictures, self.grid)], dim=1
            )
            return described.contiguous(memory_format=torch.channels_last)
