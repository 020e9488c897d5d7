"""Augmentation of picture pairs: a function of (seed, step), so resuming changes nothing.

What is drawn once for both pictures of a pair stays shared; what is drawn for each becomes
exclusive by construction. Geometry is therefore drawn once, so that partners still lie on each
other; `misalign` adds a little of its own to each, for pairs whose pictures do not lie on each
other anyway. Parameters come from the CPU's generator whatever the device.
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
SHIFT = 0.24  # of half a side
CONTRAST, LIGHT = 0.4, 0.3  # of the picture: exponent of the factor, and what is added
TINT, CAST = 0.2, 0.15  # the same of each channel
ERASED = (0.06, 0.25)  # half sides of an erased rectangle, of the picture's side

Draw: TypeAlias = Callable[..., Tensor]  # random numbers in [0, 1) for every row: (B, *shape)


@dataclass(frozen=True)
class Augmentation:
    """Changes a batch of pairs."""

    geometric: float = 0.0  # strength of turn, zoom and shift, the same for both pictures of a pair
    flip: float = 0.0  # probability of mirroring both pictures of a pair, left to right
    misalign: float = 0.0  # strength of turn, zoom and shift, for each picture beside the pair's
    photometric: float = 0.0  # strength of contrast, light and tint, for each picture
    grey: float = 0.0  # probability of losing colour, for each picture
    erase: float = 0.0  # probability of a rectangle of one random colour, for each picture

    @property
    def active(self) -> bool:
        """Whether anything changes."""
        return any(vars(self).values())

    def __call__(self, x: Tensor, y: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Changes both pictures of every pair, (B, C, H, W) in [−1, 1], as (seed, step) decide."""
        state = np.random.SeedSequence((seed, 1, step)).generate_state(1, np.uint64)[0]
        count, generator = len(x), torch.Generator().manual_seed(int(state))

        def draw(*shape: int) -> Tensor:
            return torch.rand((count, *shape), generator=generator)

        if self.geometric or self.flip or self.misalign:
            both = _affine(self.geometric, self.flip, draw)
            x, y = (self._warp(pictures, both, draw) for pictures in (x, y))
        return self._recolour(x, draw), self._recolour(y, draw)

    def _warp(self, pictures: Tensor, maps: Tensor, draw: Draw) -> Tensor:
        """Bilinear; what comes in from outside repeats the border."""
        if self.misalign:
            maps = maps @ _affine(self.misalign, 0.0, draw)
        maps = maps[:, :2].to(pictures.device)
        grid = F.affine_grid(maps, list(pictures.shape), align_corners=False)
        return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)

    def _recolour(self, pictures: Tensor, draw: Draw) -> Tensor:
        channels, height, width = pictures.shape[1:]
        if strength := self.photometric:
            contrast, tint = _signed(draw(1)), _signed(draw(channels))
            light, cast = _signed(draw(1)), _signed(draw(channels))
            gain = torch.exp(strength * (CONTRAST * contrast + TINT * tint))
            offset = strength * (LIGHT * light + CAST * cast)
            pictures = pictures * _per_channel(gain, pictures) + _per_channel(offset, pictures)
        if self.grey:
            lost = _per_channel((draw() < self.grey)[:, None], pictures)
            pictures = torch.where(lost, pictures.mean(dim=1, keepdim=True), pictures)
        if self.erase:
            inside = _rectangles(height, width, self.erase, draw).to(pictures.device)
            colour = _per_channel(_signed(draw(channels)), pictures)
            pictures = torch.where(inside, colour, pictures)
        return pictures.clamp(-1.0, 1.0) if self.photometric else pictures


def _signed(values: Tensor) -> Tensor:
    """[0, 1) → [−1, 1)."""
    return 2.0 * values - 1.0


def _per_channel(values: Tensor, pictures: Tensor) -> Tensor:
    """(B, C) → (B, C, 1, 1)."""
    return values[:, :, None, None].to(pictures.device)


def _affine(strength: float, flip: float, draw: Draw) -> Tensor:
    """Maps (B, 3, 3) from coordinates in changed pictures, in [−1, 1], to those that they read."""
    angle = strength * TURN * _signed(draw())
    scale = torch.exp(strength * ZOOM * _signed(draw()))
    mirror = torch.where(draw() < flip, -1.0, 1.0)
    maps = torch.zeros(len(angle), 3, 3)
    maps[:, 0, 0], maps[:, 0, 1] = mirror * scale * angle.cos(), -scale * angle.sin()
    maps[:, 1, 0], maps[:, 1, 1] = mirror * scale * angle.sin(), scale * angle.cos()
    maps[:, :2, 2] = strength * SHIFT * _signed(draw(2))
    maps[:, 2, 2] = 1.0
    return maps


def _rectangles(height: int, width: int, chance: float, draw: Draw) -> Tensor:
    """Masks (B, 1, H, W), empty but for a rectangle in a fraction `chance` of them."""
    least, most = ERASED
    centre, half = draw(2), least + (most - least) * draw(2)
    half = torch.where(draw(1) < chance, half, -1.0)
    rows, columns = ((torch.arange(side) + 0.5) / side for side in (height, width))
    down = (rows - centre[:, :1]).abs() < half[:, :1]
    across = (columns - centre[:, 1:]).abs() < half[:, 1:]
    return down[:, None, :, None] & across[:, None, None, :]
