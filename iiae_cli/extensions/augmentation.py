"""Augmentation of picture pairs: a function of (seed, step), so resuming changes nothing.

What is drawn once for both pictures of a pair stays shared; what is drawn for each becomes
exclusive by construction. Geometry (turn, zoom, shift, flip) is therefore drawn once, so that
partners still lie on each other; `misalign` adds a little of its own to each, for pairs whose
pictures do not lie on each other anyway. Light, contrast, tint, greyness and erased rectangles are
drawn for each. Parameters come from the CPU's generator whatever the device.

Every strength is 0 by default; 1 means: turns up to 15°, zoom by up to 15 %, shifts up to 12 % of
the side; contrast by up to 50 %, light up to 0.3, each channel up to 20 % and 0.15 beside (pixels
in [−1, 1]).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TURN = math.pi / 12
ZOOM = 0.15
SHIFT = 0.24  # of half a side
CONTRAST, LIGHT = 0.4, 0.3
TINT, CAST = 0.2, 0.15
ERASED = (0.06, 0.25)  # half sides of an erased rectangle, of the picture's side


@dataclass(frozen=True)
class Augmentation:
    """Changes a batch of pairs.

    Args:
        geometric: strength of turn, zoom and shift, the same for both pictures of a pair.
        flip: probability of mirroring both pictures of a pair, left to right.
        misalign: strength of turn, zoom and shift drawn for each picture, beside the pair's.
        photometric: strength of contrast, light and tint, drawn for each picture.
        grey: probability of losing colour, for each picture.
        erase: probability of a rectangle of one random colour, for each picture.
    """

    geometric: float = 0.0
    flip: float = 0.0
    misalign: float = 0.0
    photometric: float = 0.0
    grey: float = 0.0
    erase: float = 0.0

    @property
    def active(self) -> bool:
        """Whether anything changes."""
        return any(vars(self).values())

    def __call__(self, x: Tensor, y: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Changes both pictures of every pair, (B, C, H, W) in [−1, 1], as (seed, step) decide."""
        state = np.random.SeedSequence((seed, 1, step)).generate_state(1, np.uint64)[0]
        draw = _Draw(int(state), len(x))
        if self.geometric or self.flip or self.misalign:
            both = _affine(self.geometric, self.flip, draw)
            x, y = (_warp(rows, self._misaligned(both, draw)) for rows in (x, y))
        return self._recolour(x, draw), self._recolour(y, draw)

    def _misaligned(self, both: Tensor, draw: _Draw) -> Tensor:
        return both @ _affine(self.misalign, 0.0, draw) if self.misalign else both

    def _recolour(self, pictures: Tensor, draw: _Draw) -> Tensor:
        channels, height, width = pictures.shape[1:]
        if self.photometric:
            strength = self.photometric
            gain = torch.exp(strength * (CONTRAST * draw.signed(1) + TINT * draw.signed(channels)))
            offset = strength * (LIGHT * draw.signed(1) + CAST * draw.signed(channels))
            gain, offset = (
                values[:, :, None, None].to(pictures.device) for values in (gain, offset)
            )
            pictures = pictures * gain + offset
        if self.grey:
            lost = (draw.unit() < self.grey)[:, None, None, None].to(pictures.device)
            pictures = torch.where(lost, pictures.mean(dim=1, keepdim=True), pictures)
        if self.erase:
            inside = _rectangles(height, width, self.erase, draw).to(pictures.device)
            colour = draw.signed(channels)[:, :, None, None].to(pictures.device)
            pictures = torch.where(inside, colour, pictures)
        return pictures.clamp(-1.0, 1.0) if self.photometric else pictures


class _Draw:
    """Random numbers for the rows of a batch."""

    def __init__(self, seed: int, rows: int) -> None:
        self._rows = rows
        self._generator = torch.Generator().manual_seed(seed)

    def unit(self, *shape: int) -> Tensor:
        """(B, *shape) in [0, 1)."""
        return torch.rand((self._rows, *shape), generator=self._generator)

    def signed(self, *shape: int) -> Tensor:
        """(B, *shape) in [−1, 1)."""
        return 2.0 * self.unit(*shape) - 1.0


def _affine(strength: float, flip: float, draw: _Draw) -> Tensor:
    """Maps (B, 3, 3) from coordinates in changed pictures, in [−1, 1], to those that they read."""
    angle = strength * TURN * draw.signed()
    scale = torch.exp(strength * ZOOM * draw.signed())
    mirror = torch.where(draw.unit() < flip, -1.0, 1.0)
    maps = torch.zeros(len(angle), 3, 3)
    maps[:, 0, 0], maps[:, 0, 1] = mirror * scale * angle.cos(), -scale * angle.sin()
    maps[:, 1, 0], maps[:, 1, 1] = mirror * scale * angle.sin(), scale * angle.cos()
    maps[:, :2, 2] = strength * SHIFT * draw.signed(2)
    maps[:, 2, 2] = 1.0
    return maps


def _warp(pictures: Tensor, maps: Tensor) -> Tensor:
    """Bilinear; what comes in from outside repeats the border."""
    grid = F.affine_grid(maps[:, :2].to(pictures.device), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _rectangles(height: int, width: int, chance: float, draw: _Draw) -> Tensor:
    """Masks (B, 1, H, W), empty but for a rectangle in a fraction `chance` of them."""
    least, most = ERASED
    centre, half = draw.unit(2), least + (most - least) * draw.unit(2)
    half = torch.where(draw.unit(1) < chance, half, -1.0)
    rows, columns = ((torch.arange(side) + 0.5) / side for side in (height, width))
    down = (rows - centre[:, :1]).abs() < half[:, :1]
    across = (columns - centre[:, 1:]).abs() < half[:, 1:]
    return down[:, None, :, None] & across[:, None, None, :]
