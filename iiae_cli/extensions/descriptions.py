"""Descriptions of pictures that linear paths read, beyond the paper.

Edges by direction (histograms of gradients in cells; Dalal and Triggs, 2005), coarse colours, and
the likeness to whitened patches of training pictures (Coates and Ng, 2011), as a thousand pairs are
too few to learn edge detectors from. Partners are often each other's mirror image, so a picture's
description has a share of its mirror image's.

Shapes: B batch; C H W of pictures; D directions; K patches; N rows; F numbers of a description.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_cli.model.networks import PadToMultiple

DIRECTIONS = 8
MAP_DIRECTIONS = 4
SIDE = 32  # larger pictures are shrunk to it first, smaller ones taken as they are
EDGE_CELLS = (5, 8)  # cells a side, coarse and fine
COLOUR_CELLS = 8
LEVELS = 3  # of each channel, in histograms of colours
HISTOGRAM_CELLS = 4
FAINT = 0.05  # added to a neighbourhood's edge strength, so that flat areas are not blown up

PATCH = 12  # side of a patch; every second place has one
PATCH_CELLS = 3
FLAT = 0.04  # added to a patch's variance, so that flat areas are not blown up
LEAST_CONTRAST = 0.36  # variance of a patch that may become a filter
WHITENING = 0.1  # added to the variances of patches, so that whitening does not amplify noise
THRESHOLD = 0.25  # of a filter's response
MOST_ROWS = 40_000  # patches that the whitening is fitted to

# Variances over training pictures to which the parts of a description are scaled: coarse edges,
# fine edges, mean colours, histograms of colours, patches.
VARIANCES = (22.0, 22.0, 29.0, 15.0, 73.0)
LEAST_VARIANCE = 1e-6  # a part that varies less is left out
MIRRORED = 0.25  # share of the mirror image's description


def edge_directions(pictures: Tensor, directions: int = DIRECTIONS) -> Tensor:
    """Returns the steepest channel's gradient by direction: (B, C, H, W) in [−1, 1] → (B, D, H, W).

    Each magnitude is shared linearly between the two nearest directions of the half circle; signs
    do not count.
    """
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 4
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 4
    power, steepest = (across.square() + down.square()).max(dim=1, keepdim=True)  # (B, 1, H, W)
    across, down = across.gather(1, steepest), down.gather(1, steepest)
    angle = torch.atan2(down, across).remainder(math.pi) * (directions / math.pi)
    centres = torch.arange(directions, device=pictures.device, dtype=pictures.dtype)
    distance = (angle - centres[:, None, None]).abs()  # (B, D, H, W)
    distance = torch.minimum(distance, directions - distance)
    return power.sqrt() * (1 - distance).clamp_min(0)


def edge_strengths(pictures: Tensor, cells: tuple[int, int], directions: int) -> Tensor:
    """Returns edges in cells over the 3×3 cells around each: (B, C, H, W) → (B, D, *cells)."""
    edges = F.adaptive_avg_pool2d(edge_directions(pictures, directions), cells).sqrt()
    strength = F.pad(edges.square().sum(dim=1, keepdim=True).sqrt(), (1, 1, 1, 1), mode="replicate")
    return edges / (F.avg_pool2d(strength, 3, stride=1) + FAINT)


def colour_histograms(pictures: Tensor, cells: int) -> Tensor:
    """Returns roots of the shares that 3ᶜ colours have of cells: (B, C, H, W) → (B, 3ᶜ, *cells)."""
    channels = pictures.shape[1]
    levels = torch.linspace(-1, 1, LEVELS, device=pictures.device)
    colours = torch.cartesian_prod(*[levels] * channels).view(-1, channels, 1, 1)
    # A softmax over −2·(squared distance to a colour), without the picture's square.
    nearness = F.conv2d(pictures, 4 * colours, -2 * colours.square().sum(dim=(1, 2, 3)))
    return F.adaptive_avg_pool2d(nearness.softmax(dim=1), cells).sqrt()


def _pooled(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns pictures at a size, in float32 and channels first, in which angles are quickest."""
    return F.adaptive_avg_pool2d(pictures.float().contiguous(), size)


def _shrunk(pictures: Tensor) -> Tensor:
    height, width = (min(SIDE, side) for side in pictures.shape[-2:])
    return _pooled(pictures, (height, width))


def _padded(small: Tensor) -> tuple[Tensor, Tensor]:
    """Returns pictures with a margin, and the contrast of the patch at every second place.

    (B, C, H, W) → (B, C, H + 10, W + 10), (B, 1, ⌊H/2⌋, ⌊W/2⌋)
    """
    padded = F.pad(small, (PATCH // 2 - 1,) * 4, mode="replicate")
    mean, power = (
        F.avg_pool2d(values.mean(dim=1, keepdim=True), PATCH, stride=2)
        for values in (padded, padded.square())
    )
    return padded, ((power - mean.square()).clamp_min(0) + FLAT).sqrt()


@torch.no_grad()
def patches(pictures: Tensor, numbers: Tensor) -> Tensor:
    """Returns patches by number, of those at every second place: (B, C, H, W), (N,) → (N, C·144).

    Each has mean 0 and, but for flat ones, variance 1; larger pictures are shrunk first.
    """
    padded, contrast = _padded(_shrunk(pictures))
    height, width = contrast.shape[2:]
    windows = padded.unfold(2, PATCH, 2).unfold(3, PATCH, 2)  # (B, C, ⌊H/2⌋, ⌊W/2⌋, 12, 12), a view
    picture, place = numbers // (height * width), numbers % (height * width)
    rows = windows[picture, :, place // width, place % width].flatten(1)
    return (rows - rows.mean(dim=1, keepdim=True)) / contrast.flatten()[numbers, None]


def description_width(channels: int, count: int) -> int:
    """Returns F of a `PictureDescription` of so many channels and patches."""
    edges = DIRECTIONS * sum(cells**2 for cells in EDGE_CELLS)
    colours = COLOUR_CELLS**2 * channels + HISTOGRAM_CELLS**2 * int(LEVELS**channels)
    return edges + colours + PATCH_CELLS**2 * count


class PictureDescription(nn.Module):
    """Edges, colours, and how much each of K training patches is there, all in cells.

    K is even: half of the patches are mirror images of the others. At odd widths the mirror image's
    share is one pixel off.
    """

    filters: Tensor  # (K, C, 12, 12)
    thresholds: Tensor  # (K,)
    scales: Tensor  # of the five parts, which give them `VARIANCES`

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.register_buffer("filters", torch.zeros(count, channels, PATCH, PATCH))
        self.register_buffer("thresholds", torch.zeros(count))
        self.register_buffer("scales", torch.ones(len(VARIANCES)))

    def start(self, pictures: Tensor) -> None:
        """Draws the patches from training pictures (N, C, H, W), by a fixed seed; fits the scales.

        A filter is the scalar product with a whitened patch of length 1; drawn patches serve almost
        as well as a learned dictionary. Where too few have some contrast, filters are zero.
        """
        both = torch.cat([pictures, pictures.flip(3)])
        count = _padded(_shrunk(both))[1].numel()
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_ROWS]
        rows = patches(both, drawn).double()
        mean = rows.mean(dim=0)
        variances, axes = torch.linalg.eigh(torch.cov(rows.T))
        whiten = (axes / (variances.clamp_min(0) + WHITENING).sqrt()) @ axes.T
        half = len(self.filters) // 2
        varied = rows[rows.square().mean(dim=1) > LEAST_CONTRAST][:half]
        filters = F.normalize((varied - mean) @ whiten) @ whiten
        filters = filters.view(-1, *self.filters.shape[1:])
        self.thresholds.fill_(THRESHOLD)
        for start, part in ((0, filters), (half, filters.flip(3))):
            self.filters[start : start + len(part)] = part
            self.thresholds[start : start + len(part)] += part.flatten(1) @ mean
        given = torch.stack([part.var(dim=0).sum() for part in self._parts(pictures)])
        scales = (torch.tensor(VARIANCES[: len(given)]) / given).sqrt()
        self.scales[: len(given)] = scales.where(given > LEAST_VARIANCE, 0.0)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, C, H, W) in [−1, 1] → (B, F)."""
        with torch.autocast(pictures.device.type, enabled=False):
            parts = zip(self.scales.float(), self._parts(pictures), strict=False)
            return torch.cat([(scale * part).flatten(1) for scale, part in parts], dim=1)

    @torch.no_grad()
    def _parts(self, pictures: Tensor) -> list[Tensor]:
        """Returns the unscaled parts (B, …) in the order of `VARIANCES`; without patches, four."""
        small = _shrunk(pictures)
        edges = [edge_strengths(small, (cells, cells), DIRECTIONS) for cells in EDGE_CELLS]
        colours = [
            F.adaptive_avg_pool2d(small, COLOUR_CELLS),
            colour_histograms(small, HISTOGRAM_CELLS),
        ]
        parts = [(part, part.flip(1).roll(1, dims=1)) for part in edges]  # angles become π − angle
        parts += [(part, part) for part in colours]
        if len(self.filters):
            padded, contrast = _padded(small)  # filters sum to 0: means need not be taken out
            likeness = F.conv2d(padded, self.filters.float(), stride=2) / contrast
            likeness = (likeness - self.thresholds.float()[:, None, None]).clamp_min(0)
            likeness = F.adaptive_avg_pool2d(likeness, PATCH_CELLS).sqrt()
            parts.append((likeness, likeness.roll(len(self.filters) // 2, dims=1)))
        return [part.lerp(mirrored.flip(3), MIRRORED) for part, mirrored in parts]


@torch.no_grad()
def describe_cells(pictures: Tensor, grid: tuple[int, int], multiple: int) -> Tensor:
    """Returns colours of cells and edges of their quarters: (B, C, H, W) → (B, 16 + C, *grid).

    `grid` is what a trunk of convolutions makes of pictures padded to a `multiple`.
    """
    height, width = grid
    pictures = _pooled(PadToMultiple(multiple)(pictures), (4 * height, 4 * width))
    quarters = edge_strengths(pictures, (2 * height, 2 * width), MAP_DIRECTIONS)
    edges, colours = F.pixel_unshuffle(quarters, 2), F.adaptive_avg_pool2d(pictures, grid)
    return torch.cat([edges, colours], dim=1).contiguous(memory_format=torch.channels_last)
