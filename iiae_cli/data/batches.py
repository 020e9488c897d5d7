"""The rows of each training step, their conversion to network inputs and back, augmentation.

Orders are functions of seed and step, so that a run can resume. Resizing happens here, so that a
data file keeps its native resolution: 60,000 pairs at 256×256 would be 23 GB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.data.pictures import Item, Read, filter_of


def to_inputs(
    rows: NDArray[np.generic], size: tuple[int, int] | None, device: torch.device | str = "cpu"
) -> Tensor:
    """Converts stored rows to network inputs on a device.

    Pictures (B, H, W, C) uint8 become (B, C, H, W) float32 in [−1, 1], resized if `size` = (H, W)
    is another; features (B, F) stay as they are.
    """
    return from_stored(stored_tensor(rows).to(device, non_blocking=True), size)


def stored_tensor(rows: NDArray[np.generic]) -> Tensor:
    """Returns stored rows as a contiguous tensor of their own type, safe to hand on."""
    # A copy if rows are a read-only map, or would be shared.
    copied = rows.ndim <= 2 or not rows.flags.writeable
    return torch.from_numpy(np.array(rows, order="C") if copied else np.ascontiguousarray(rows))


def from_stored(rows: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Converts rows on the device as `to_inputs` does; nothing waits for the device."""
    if rows.ndim == 2:
        return rows.float()
    pictures = rows.permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory
    if size is not None and tuple(pictures.shape[-2:]) != size:
        pictures = resize(pictures, size)
    return pictures.float().div_(127.5).sub_(1.0)


def resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes pictures (B, C, H, W) uint8 to `size` = (H, W) by the kernels of `pictures.py`."""
    kind = filter_of((pictures.shape[-2], pictures.shape[-1]), size)
    if kind == "area":
        return F.interpolate(pictures.float(), size, mode="area").round_().to(pictures.dtype)
    if pictures.device.type == "cpu":
        return F.interpolate(pictures, size, mode=kind, antialias=True)
    smooth = F.interpolate(pictures.float(), size, mode=kind, antialias=True)
    return smooth.round_().clamp_(0, 255).to(pictures.dtype)


def to_pictures(outputs: Tensor) -> NDArray[np.uint8]:
    """Converts network output (B, C, H, W) in [−1, 1] to pictures (B, H, W, C) uint8."""
    scaled = outputs.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    pictures: NDArray[np.uint8] = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return np.ascontiguousarray(pictures)


def ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Generator[Read, None, None]:
    """Yields `read` of each item in order, while a thread reads the next one."""
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming: Future[Read] | None = None
        for item in items:
            previous, coming = coming, pool.submit(read, item)
            if previous is not None:
                yield previous.result()
        if coming is not None:
            yield coming.result()


class PairOrder:
    """Draws the pairs of every training step: a fresh permutation of `count` each epoch.

    The epoch's remainder, smaller than a batch, is left out.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < batch_size:
            raise ValueError(f"{count} pairs are fewer than one batch of {batch_size}")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.steps_per_epoch = count // batch_size
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Returns pairs (B,) of step 0, 1, …, ascending (so mapped rows read faster)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            self._epoch = epoch
        start = position * self.batch_size
        return np.sort(self._permutation[start : start + self.batch_size])


class ClassOrder:
    """Draws the rows of every step for x and y paired by class: one of each per class.

    A batch of the default size holds every class once, as the paper's sampler does; other sizes
    walk through one permutation of the classes after another. An epoch draws as many pairs as the
    larger domain has rows.
    """

    def __init__(
        self, labels_x: Sequence[str], labels_y: Sequence[str], batch_size: int | None, seed: int
    ) -> None:
        names = [np.asarray(labels, dtype=np.str_) for labels in (labels_x, labels_y)]
        self.classes: list[str] = np.intersect1d(names[0], names[1]).tolist()
        count = len(self.classes)
        if count < 2:
            raise ValueError(f"{count} classes have rows in both domains, two are needed")
        self.batch_size, self.seed = batch_size or count, seed
        # For each domain: rows grouped by class, and the groups' boundaries.
        self._domains: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for labels in names:
            groups = [np.flatnonzero(labels == name) for name in self.classes]
            self._domains.append((np.concatenate(groups), np.cumsum([0, *map(len, groups)])))
        longest = max(len(rows) for rows, _ in self._domains)
        self.steps_per_epoch = max(1, longest // self.batch_size)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Returns rows of x and y (B, 2) of step 0, 1, …."""
        count = len(self.classes)
        first = step * self.batch_size
        rounds = range(first // count, (first + self.batch_size - 1) // count + 1)
        draws = [np.random.default_rng((self.seed, 0, turn)) for turn in rounds]
        walk = np.concatenate([draw.permutation(count) for draw in draws])
        drawn = walk[first - rounds[0] * count :][: self.batch_size]
        draw = np.random.default_rng((self.seed, 1, step))
        columns = [
            rows[draw.integers(starts[drawn], starts[drawn + 1])] for rows, starts in self._domains
        ]
        return np.stack(columns, axis=1)


# ---- augmentation (beyond the paper)

# At strength 1; pixels lie in [−1, 1].
TURN = math.pi / 12
ZOOM = 0.15
SHIFT = 0.24  # fraction of half a side
CONTRAST, LIGHT = 0.4, 0.3  # whole picture: exponent of the factor, and offset
TINT, CAST = 0.2, 0.15  # the same for each channel

Draw: TypeAlias = Callable[..., Tensor]  # random numbers in [−1, 1) for every row: (B, *shape)


@dataclass(frozen=True)
class Augmentation:
    """Changes pairs at random, as a function of (seed, step), so resuming changes nothing.

    What is drawn once for both pictures of a pair stays shared; what is drawn for each becomes
    exclusive by construction. Geometry is drawn once, so that partners still coincide, unless
    `apart`. Parameters come from the CPU's generator whatever the device.
    """

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
        cos, sin = scale * angle.cos(), scale * angle.sin()
        across = torch.stack([mirror * cos, -sin, shift[:, 0]], dim=1)
        down = torch.stack([mirror * sin, cos, shift[:, 1]], dim=1)
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
