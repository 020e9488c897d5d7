"""Pictures of another size: bicubic where that makes more pixels, by area where it makes fewer.

MNIST-CDCB was enlarged bicubically, and the paper's pipeline shrinks by area. Sides that shrink by
whole factors are averaged exactly; others by a triangle of the same width. Values are whole, as
those of a saved picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

Filter: TypeAlias = Literal["bicubic", "area", "bilinear"]
_PILLOW: dict[Filter, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
}


def resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, C, H, W) uint8 at `size` = (H, W)."""
    import torch.nn.functional as F  # preparing pictures needs no torch

    kind = filter_of((pictures.shape[-2], pictures.shape[-1]), size)
    if kind == "area":
        return F.interpolate(pictures.float(), size, mode="area").round_().to(pictures.dtype)
    if pictures.device.type == "cpu":
        return F.interpolate(pictures, size, mode=kind, antialias=True)
    smooth = F.interpolate(pictures.float(), size, mode=kind, antialias=True)
    return smooth.round_().clamp_(0, 255).to(pictures.dtype)


def resize_picture(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of 8 bits a channel at `size` = (H, W); opacity weighs its colours."""
    kind = filter_of((image.height, image.width), size)
    return image.resize((size[1], size[0]), _PILLOW[kind])


def filter_of(old: tuple[int, int], new: tuple[int, int]) -> Filter:
    """How pictures of (H, W) are resized to another (H, W)."""
    if new[0] * new[1] > old[0] * old[1]:
        return "bicubic"
    whole = all(before % after == 0 for before, after in zip(old, new, strict=True))
    return "area" if whole else "bilinear"
