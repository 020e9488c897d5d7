"""Decodes picture files to arrays of 8 bits per channel, and resizes pictures.

Every mode that Pillow opens is read, as docs/data.md says; `SEEN` counts changes on the way. A file
that cannot be read raises `PictureError`, so that a caller can name and skip it.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iiae_cli.common.files import OF_CONTENT

# Others are no pictures of a data set, and one of them, EPS, is a program that Pillow would run.
FORMATS = ["PNG", "JPEG", "JPEG2000", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF"]
with suppress(ImportError):  # an optional package
    import_module("pillow_heif").register_heif_opener()
    FORMATS.append("HEIF")
_KINDS = Image.registered_extensions()
SUFFIXES = {suffix for suffix, kind in _KINDS.items() if kind in (*FORMATS, "MPO")}
# An unreadable file is named by us; what else Pillow has to say, such as of EXIF, changes no pixel.
warnings.filterwarnings("ignore", module=r"PIL\.")
_ORIENTATION, _PHOTOMETRIC, _COLOUR_MAP, _SAMPLE_FORMAT = 274, 262, 320, 339  # EXIF's and TIFF's
_FAX = (2, 3, 4)  # compressions of TIFF in which zero is white unless a tag says otherwise
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # which convert to any of the others
Read = TypeVar("Read")
Item = TypeVar("Item")
Source: TypeAlias = Path | Image.Image  # a picture file, or a picture in memory
Pixels: TypeAlias = NDArray[np.uint8]
Size: TypeAlias = tuple[int, int]  # (H, W)


class PictureError(Exception):
    """A file that is no readable picture."""

    def __init__(self, path: Source, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class _UnusableError(Exception):
    """The reason why a picture that Pillow reads is of no use."""


# ---- what was read


class PictureCounts:
    """The files that this process read as pictures, each counted once, and those it left out."""

    def __init__(self) -> None:
        # Mode, size (W, H) as shown, and changes of every picture; the kind of every other path.
        self.read: dict[Path, tuple[str, tuple[int, int], list[str]]] = {}
        self.left_out: dict[Path, str] = {}

    def take(self) -> dict[str, Any]:
        """Returns everything as JSON, and forgets it; `sizes` are the smallest and largest, W×H."""
        read = self.read.values()
        sizes = sorted({size for _, size, _ in read}, key=lambda size: (size[0] * size[1], size))
        seen = {
            "read": len(read),
            "modes": _counted(mode for mode, _, _ in read),
            "sizes": list(dict.fromkeys(f"{w}×{h}" for w, h in sizes[:1] + sizes[-1:])),
            "changes": _counted(change for _, _, changes in read for change in changes),
            "left_out": _counted(self.left_out.values()),
        }
        self.read, self.left_out = {}, {}
        return seen


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


SEEN = PictureCounts()


def line_of(seen: Mapping[str, Any], skipped: int = 0) -> str:
    """Formats what `take` returned, and the number of skipped inputs, as a line for people."""
    modes = ", ".join(f"{mode} {count}" for mode, count in seen["modes"].items())
    parts = [f"pictures: {seen['read']} read ({modes}), {' to '.join(seen['sizes'])}"]
    parts += [f"{count} {change}" for change, count in seen["changes"].items()]
    return "; ".join(parts + [f"{skipped} skipped"] * (skipped > 0))


# ---- decoding


def decode(
    path: Source, channels: int = 3, size: Size | None = None, part: tuple[int, int] = (0, 1)
) -> Pixels:
    """Returns a picture or its file as (H, W, channels), at its own or another size.

    `channels` are 1 grey, 2 grey and opacity, 3 RGB, 4 RGBA. `part` (i, n) is the i-th, from 0, of
    n pictures of equal width that lie side by side.
    """
    changes: list[str] = []
    with _opened(path) as opened:
        mode = opened.mode
        whole = _plain(opened, channels, changes)
    place, count = part
    width, odd = divmod(whole.width, count)
    if not width:
        raise PictureError(path, "is one pixel wide")
    if odd:
        changes.append("read without an odd last column")
    shown = whole.crop((width * place, 0, width * (place + 1), whole.height))
    if size is not None and (whole.height, width) != size:
        shown = resize_picture(shown, size)
        changes.append(f"resized to {size[1]}×{size[0]}")
    if isinstance(path, Path):
        SEEN.read.setdefault(path, (mode, whole.size, changes))
    return np.asarray(shown).reshape(shown.height, shown.width, channels)


def picture_size_of(path: Path) -> Size:
    """Returns a picture file's size from its header, with EXIF's rotation applied."""
    with _opened(path) as image:
        tags = getattr(image, "tag_v2", {})  # a TIFF's width and height are turned already
        width, height = tags.get(256, image.width), tags.get(257, image.height)
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


@contextmanager
def _opened(path: Source) -> Iterator[Image.Image]:
    """Opens a picture and reads its header; whatever Pillow raises inside is a PictureError."""
    if isinstance(path, Path) and not os.path.lexists(path):
        raise PictureError(path, "does not exist")
    try:
        if isinstance(path, Image.Image):
            yield path
            return
        if not path.is_file():  # a reader would wait for a pipe
            raise ValueError("it is not a file")
        # By its path Pillow would map an uncompressed TIFF, which garbles one that EXIF turns.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if not image.width * image.height:
                raise _UnusableError("has no pixels")
            yield image
    except Exception as error:  # its readers pass on whatever they stumble over
        code, reason = getattr(error, "errno", None), "is not a readable picture"
        if code and code not in OF_CONTENT:  # the file may be whole
            reason = f"cannot be read: {os.strerror(code)}"
        why = {_UnusableError: str(error), Image.DecompressionBombError: "has too many pixels"}
        why[MemoryError] = "does not fit into the memory"
        raise PictureError(path, why.get(type(error), reason)) from error


def read_all(
    paths: Sequence[Item], read: Callable[[Item], Read], workers: int = 1
) -> list[Read | PictureError]:
    """Returns `read` of each path, or its error, by `workers` threads."""

    def attempt(path: Item) -> Read | PictureError:
        try:
            return read(path)
        except PictureError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(attempt, paths))


# ---- modes


def _plain(opened: Image.Image, channels: int, changes: list[str]) -> Image.Image:
    """Returns a picture upright, in 8 bits and the mode of `channels`, transparency on white."""
    mode, raw = opened.mode, str(getattr(opened, "tile", ""))  # how the file holds its values
    _refuse_misread(opened, raw)
    clear, few = opened.info.get("transparency"), re.search(r"L;([24])", raw)
    if isinstance(clear, int) and few:  # as the file holds it, not as values are read
        opened.info["transparency"] = clear * 255 // (2 ** int(few[1]) - 1)
    if getattr(opened, "is_animated", False):
        changes.append("first of several frames")
    if opened.getexif().get(_ORIENTATION, 1) in range(2, 9):
        changes.append("turned as EXIF says")
    unlike_srgb = abs(opened.info.get("gamma", 0.45) - 0.45) > 0.05  # sRGB's is 1/2.2
    if unlike_srgb and not {"srgb", "icc_profile"} & {*opened.info}:
        changes.append("read without their gamma")
    image = ImageOps.exif_transpose(opened)
    if mode == "F" or mode.startswith("I"):
        image = _of_numbers(image, unsigned="I;32N" in raw, changes=changes)
    elif ";16" in raw:
        dark = ", almost black" if np.asarray(image.convert("L")).max() < 16 else ""
        changes.append(f"cut to the upper 8 of 16 bits{dark}")
    image = _in_srgb(image, changes)
    eight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode, "RGB")
    image = image if image.mode in _PLAIN else image.convert(eight)
    if image.has_transparency_data and channels not in (2, 4):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            changes.append("flattened on white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image)
    if channels < 3 and Image.getmodebase(mode) == "RGB":
        changes.append("made grey")
    return image.convert(_MODES[channels])


def _refuse_misread(opened: Image.Image, raw: str) -> None:
    """Raises for a file that Pillow reads as other values than it holds."""
    mode, clear, tags = opened.mode, opened.info.get("transparency"), getattr(opened, "tag_v2", {})
    zero_is, colours = tags.get(_PHOTOMETRIC), tags.get(_COLOUR_MAP, ())
    misread = {
        "a TIFF without a photometric tag": tags and zero_is is None and tags.get(259) not in _FAX,
        "a TIFF in which zero is white, of more than 8 bits": zero_is == 0 and mode[0] in "IF",
        "a TIFF of signed bytes": mode == "L" and tags.get(_SAMPLE_FORMAT) in (2, (2,)),
        "a TIFF with a colour map of 8 bits": mode == "P" and 0 < max(colours, default=0) < 256,
        "a JPEG in CMYK without Adobe's mark": (mode, opened.format) == ("CMYK", "JPEG")
        and "adobe" not in opened.info,
        "a PNG with a transparent colour of 16 bits": isinstance(clear, tuple) and ";16" in raw,
    }
    for kind, found in misread.items():
        if found:
            raise _UnusableError(f"is {kind}, which Pillow misreads: save it as a PNG of 8 bits")


def _of_numbers(image: Image.Image, *, unsigned: bool, changes: list[str]) -> Image.Image:
    """Scales numbers, whose sign Pillow may misread, to 0 … 255 over the range of `_range_of`."""
    values = np.asarray(image)
    values = values.view(np.uint32) if unsigned else values
    if not np.isfinite(values).all():
        raise _UnusableError("holds values that are not finite")
    low, high, name = _range_of(values)
    scaled = np.rint((values.astype(np.float64) - low) * 255 / (high - low)).clip(0, 255)
    inner = np.percentile(scaled, (1, 99))
    lost = values.min() < values.max() and inner[1] - inner[0] < 8  # by a few far away
    changes.append(f"scaled from {name}" + (", almost all to one shade" if lost else ""))
    shown = Image.fromarray(scaled.astype(np.uint8))
    shown.info["icc_profile"] = image.info.get("icc_profile")
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        shown.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return shown


def _range_of(values: NDArray[Any]) -> tuple[float, float, str]:
    """Returns the range that docs/data.md chooses for values: lowest, highest, and its name."""
    low, high = float(values.min()), float(values.max())
    slack, tops = 0.0, [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
    if values.dtype.kind == "f":
        slack = 0.05  # of the range, by which they may overshoot it
        tops = [1, *(2**bits - 1 for bits in range(8, 17))]
        spare = values.size // 500
        inner = np.partition(values, (spare, -1 - spare), axis=None)
        if inner[spare] >= -slack and 1 / 16 <= inner[-1 - spare] <= 1 + slack:
            return 0.0, 1.0, "0 to 1"
    top = next((top for top in tops if high <= top * (1 + slack)), math.inf)
    if low >= -slack * top and high >= top / 16:
        return 0.0, float(top), f"0 to {top}"
    return low, high if high > low else low + 1, "their own range"


def _in_srgb(image: Image.Image, changes: list[str]) -> Image.Image:
    """Converts a picture to sRGB if it embeds another readable profile."""
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


# ---- resizing: bicubic to more pixels, as MNIST-CDCB was enlarged; by area to fewer, as the paper
# shrinks: exactly if both sides shrink by whole factors, else by a triangle of the same width.


def resize_picture(image: Image.Image, size: Size) -> Image.Image:
    """Resizes a picture of 8 bits a channel; opacity weighs its colours."""
    kind = filter_of((image.height, image.width), size)
    return image.resize(size[::-1], Image.Resampling["BOX" if kind == "area" else kind.upper()])


def resize_pictures(pictures: Pixels, side: int) -> Pixels:
    """Resizes pictures (N, H, W) or (N, H, W, C) to a square."""
    if pictures.shape[1:3] == (side, side):
        return pictures
    resized = np.empty((len(pictures), side, side, *pictures.shape[3:]), np.uint8)
    for row, picture in enumerate(pictures):
        resized[row] = resize_picture(Image.fromarray(picture), (side, side))
    return resized


def filter_of(old: Size, new: Size) -> str:
    """Returns the kernel that resizes `old` to `new`: bicubic, area or bilinear."""
    if new[0] * new[1] > old[0] * old[1]:
        return "bicubic"
    whole = all(before % after == 0 for before, after in zip(old, new, strict=True))
    return "area" if whole else "bilinear"
