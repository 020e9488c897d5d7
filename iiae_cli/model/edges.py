"""A fixed description of small pictures: coarse colours, and edges by direction. Nothing in it is learned.

Sets of a thousand pairs are too small to learn edge detectors from, and what partners drawn by two hands have in common
is mostly where which edges run. A histogram of gradient directions in 8×8 cells (Dalal and Triggs, 2005) beside the
cells' colours says that in some 700 numbers, from which `model.linear_path=canonical` reads the shared latent linearly.
The sign of a contrast does not count: a dark line on white and a white one on dark look the same. Beyond the paper.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIRECTIONS = 8
SIDE = 32  # larger pictures are shrunk to it first, smaller ones taken as they are
CELLS = 8
FAINT = 0.05  # added to a neighbourhood's edge strength, so that flat areas are not blown up


def edge_directions(pictures: Tensor, directions: int = DIRECTIONS) -> Tensor:
    """Gradient magnitudes by direction: pictures (B, C, H, W) in [−1, 1] → (B, directions, H, W), all ≥ 0.

    At every pixel the steepest channel's gradient counts, shared linearly between the two of the half circle's
    directions that are nearest to it.
    """
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 4
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 4
    power, steepest = (across.square() + down.square()).max(dim=1, keepdim=True)
    across, down = across.gather(1, steepest), down.gather(1, steepest)
    place = torch.atan2(down, across).remainder(math.pi) * (directions / math.pi)
    centres = torch.arange(directions, device=pictures.device, dtype=pictures.dtype)[None, :, None, None]
    distance = (place - centres).abs()
    distance = torch.minimum(distance, directions - distance)
    return power.sqrt() * (1 - distance).clamp_min(0)


class PictureDescription(nn.Module):
    """Pictures (B, C, H, W) in [−1, 1] → (B, F), F = 64 · (8 + C).

    Each cell's edge strengths are divided by those of the 3×3 cells around it, as lines may be faint or bold.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = CELLS**2 * (DIRECTIONS + channels)

    def forward(self, pictures: Tensor) -> Tensor:
        """Describe a batch; no gradient passes."""
        with torch.no_grad():
            pictures = pictures.float()
            height, width = (min(SIDE, side) for side in pictures.shape[-2:])
            pictures = F.adaptive_avg_pool2d(pictures, (height, width))
            edges = F.adaptive_avg_pool2d(edge_directions(pictures), CELLS).sqrt()
            strength = F.pad(edges.square().sum(dim=1, keepdim=True).sqrt(), (1, 1, 1, 1), mode="replicate")
            edges = edges / (F.avg_pool2d(strength, 3, stride=1) + FAINT)
            colours = F.adaptive_avg_pool2d(pictures, CELLS)
            return torch.cat([edges.flatten(1), colours.flatten(1)], dim=1)
