"""Augmentation of picture pairs: a function of (seed, step), so resuming changes nothing.

What is drawn once for both pictures of a pair stays shared; what is drawn for each becomes
exclusive by construction. Geometry is drawn once, so that partners still lie on each other, unless
`apart` says that they do not. Parameters come from the CPU's generator whatever the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# At strength 1; pixels lie in [−1, 1].
TURN = math.pi / 12
ZOOM = 0.15
SHIFT = 0.24  # fraction of half a side
CONTRAST, LIGHT = 0.4, 0.3  # whole picture: exponent of the factor, and offset
TINT, CAST = 0.2, 0.15  # likewise for each channel

Draw: TypeAlias = Callable[..., Tensor]  # random numbers in [−1, 1) for every row: (B, *shape)


@dataclass(frozen=True)
class Augmentation:
    """Changes batches of pairs at random."""

    geometric: float = 0.0  # strength of turn, zoom and shift, the same for both pictures of a pair
    apart: bool = False  # draw turn, zoom and shift for each picture
    flip: float = 0.0  # probability of mirroring both pictures of a pair, left to right
    photometric: float = 0.0  # strength of contrast, light and tint, for each picture

    @property
    def active(self) -> bool:
        """Whether anything changes."""
        return any((self.geometric, self.flip, self.photometric))

    def __call__(self, x: Tensor, y: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Changes both pictures of every pair, (B, C, H, W) in [−1, 1], as (seed, step) decide."""
        state = np.random.SeedSequence((seed, 1, step)).generate_state(1, np.uint64)[0]
        count, generator = len(x), torch.Generator().manual_seed(int(state))

        def draw(*shape: int) -> Tensor:
            return 2.0 * torch.rand((count, *shape), generator=generator) - 1.0

        if self.geometric or self.flip:
            maps = self._affine(draw)
            x, y = _warp(x, maps), _warp(y, self._affine(draw) if self.apart else maps)
        if self.photometric:
            x, y = (self._recolour(pictures, draw) for pictures in (x, y))
        return x, y

    def _affine(self, draw: Draw) -> Tensor:
        """Draws maps (B, 2, 3) from coordinates of the output, in [−1, 1], to the input's."""
        angle = self.geometric * TURN * draw()
        scale = torch.exp(self.geometric * ZOOM * draw())
        mirror = torch.where(draw() < 2.0 * self.flip - 1.0, -1.0, 1.0)
        shift = self.geometric * SHIFT * draw(2)
        down = torch.stack([mirror * scale * angle.sin(), scale * angle.cos(), shift[:, 1]], dim=1)
        across = torch.stack(
            [mirror * scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], dim=1
        )
        return torch.stack([across, down], dim=1)

    def _recolour(self, pictures: Tensor, draw: Draw) -> Tensor:
        channels = pictures.shape[1]
        contrast, tint, light, cast = draw(1), draw(channels), draw(1), draw(channels)
        gain = torch.exp(self.photometric * (CONTRAST * contrast + TINT * tint))
        offset = self.photometric * (LIGHT * light + CAST * cast)
        gain, offset = (part[:, :, None, None].to(pictures.device) for part in (gain, offset))
        return (pictures * gain + offset).clamp(-1.0, 1.0)


def _warp(pictures: Tensor, maps: Tensor) -> Tensor:
    """Samples bilinearly; the border repeats outside."""
    maps = maps.to(pictures.device)
    grid = F.affine_grid(maps, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
