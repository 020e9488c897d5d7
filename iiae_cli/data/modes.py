"""A picture of any mode that Pillow opens, in 8 bits per channel; docs/data.md has the rules."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106  # EXIF and TIFF tags
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # which convert to any of the others
_SLACK = 0.05  # of a range, by which floats may overshoot it


class UnusableError(Exception):
    """Why a picture that Pillow reads is of no use."""


def plain(opened: Image.Image, channels: int, changes: list[str]) -> Image.Image:
    """Upright in 8 bits per channel and the mode of `channels`, transparency on white."""
    mode, raw = opened.mode, str(getattr(opened, "tile", ""))  # how the file holds its values
    tags = dict(getattr(opened, "tag_v2", {}))  # both are gone once the pixels are read
    if getattr(opened, "is_animated", False):
        changes.append("first of several frames")
    if opened.getexif().get(ORIENTATION, 1) in range(2, 9):
        changes.append("turned as EXIF says")
    image = ImageOps.exif_transpose(opened)
    if mode == "F" or mode.startswith("I"):
        values = np.asarray(image)
        eight = _eight_bits(values.view(np.uint32) if "I;32N" in raw else values, changes)
        profile = image.info.get("icc_profile")
        image = Image.fromarray(255 - eight if tags.get(_PHOTOMETRIC) == 0 else eight)
        image.info["icc_profile"] = profile
    elif ";16" in raw:
        changes.append("cut to the upper 8 of 16 bits")
    image = _in_srgb(image, changes)
    image = image if image.mode in _PLAIN else image.convert("RGB")
    if image.has_transparency_data and channels not in (2, 4):
        image = _on_white(image.convert("RGBA"), changes)
    if channels < 3 and Image.getmodebase(mode) == "RGB":
        changes.append("made grey")
    return image.convert(_MODES[channels])


def _on_white(image: Image.Image, changes: list[str]) -> Image.Image:
    if image.getchannel("A").getextrema() != (255, 255):
        changes.append("flattened on white")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)


def _eight_bits(values: NDArray[Any], changes: list[str]) -> NDArray[np.uint8]:
    """Numbers of more than 8 bits as 0 … 255 over the range that `_range_of` finds."""
    if not np.isfinite(values).all():
        raise UnusableError("holds values that are not finite")
    low, high, name = _range_of(values)
    changes.append(f"scaled from {name}")
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _range_of(values: NDArray[Any]) -> tuple[float, float, str]:
    """The range that a picture's values fill: lowest, highest, and how it is called.

    It is the smallest usual one that holds them, 0 … 1 for all but one float in 500, or else (they
    are negative, too large, or fill less than a sixteenth) the picture's own.
    """
    low, high = float(values.min()), float(values.max())
    slack, tops = 0.0, [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
    if values.dtype.kind == "f":
        slack, tops = _SLACK, [1, *(2**bits - 1 for bits in range(8, 17))]
        spare = values.size // 500
        inner = np.partition(values, (spare, -1 - spare), axis=None)
        if inner[spare] >= -slack and 1 / 16 <= inner[-1 - spare] <= 1 + slack:
            return 0.0, 1.0, "0 to 1"
    top = next((top for top in tops if high <= top * (1 + slack)), math.inf)
    if low >= -slack * top and high >= top / 16:
        return 0.0, float(top), f"0 to {top}"
    return low, high if high > low else low + 1, "their own range"


def _in_srgb(image: Image.Image, changes: list[str]) -> Image.Image:
    """The picture in sRGB, where it embeds another profile that can be read."""
    if image.mode == "LAB" or not image.info.get("icc_profile"):
        return image
    try:
        from PIL import ImageCms  # Pillow may be built without

        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[profile.profile.xcolor_space]
        if mode != "RGB" and image.mode not in {"L": ("1", "L", "LA"), "CMYK": ("CMYK",)}[mode]:
            raise ValueError("the profile is of other colours than the picture")
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        srgb = ImageCms.createProfile("sRGB")
        shown = ImageCms.profileToProfile(image.convert(mode), profile, srgb, outputMode="RGB")
        assert shown is not None  # it is where not done in place
        if alpha is not None:
            shown.putalpha(alpha)
    except Exception:  # whatever a damaged profile brings about
        changes.append("read without their colour profile")
        return image
    changes.append("converted to sRGB")
    return shown
