"""Picture files: which ones there are, how one becomes an array, and its size another.

Any mode is read: grey, palette, transparency (shown on white), 16-bit, rotated by EXIF. Files that
cannot be read raise `PictureError`, so that a caller can name, count and skip them.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import missing

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# Others that Pillow knows are no pictures of a data set, and one of them, EPS, is a program that it
# would run.
FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF")
MAX_PIXELS = 2**26  # 67 million; a picture takes up to 24 bytes for each of them on its way
# An unreadable file is named by us; what else Pillow has to say, such as of EXIF, changes no pixel.
warnings.filterwarnings("ignore", module=r"PIL\.")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
Read = TypeVar("Read")


class PictureError(Exception):
    """One file is no picture that can be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


# ---- decoding


def decode(path: Path, channels: int = 3, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A picture file as (H, W, channels) uint8, at its own size or `size` = (H, W).

    `channels` are 1 grey, 2 grey and opacity, 3 RGB, 4 RGBA.
    """
    with _opened(path) as opened:
        image = _plain(ImageOps.exif_transpose(opened), channels)
    if size is not None and image.size != (size[1], size[0]):
        image = resize_picture(image, size)
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def picture_size_of(path: Path) -> tuple[int, int]:
    """(H, W) of a picture file from its header, as shown (EXIF rotation applied)."""
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header is read; whatever Pillow raises inside is a PictureError."""
    if not os.path.lexists(path):
        raise PictureError(path, "does not exist")
    try:
        if not path.is_file():  # a reader would wait for a pipe
            raise ValueError("it is not a file")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except Image.DecompressionBombError as error:
        raise PictureError(path, "has too many pixels") from error
    except Exception as error:  # its readers pass on whatever they stumble over
        raise PictureError(path, "is not a readable picture") from error


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """8 bits per channel in the mode of `channels`, transparency on white."""
    if image.mode.startswith("I"):  # 16 bits
        values = np.asarray(image, dtype=np.float32) * (255 / 65535)
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.has_transparency_data and channels not in (2, 4):
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(_MODES[channels])


def read_all(
    paths: Sequence[Path], read: Callable[[Path], Read], workers: int = 1
) -> Iterator[Read | PictureError]:
    """What `read` makes of each path, or its error, in order; `workers` threads read ahead."""

    def attempt(path: Path) -> Read | PictureError:
        try:
            return read(path)
        except PictureError as error:
            return error

    if workers <= 1:
        yield from map(attempt, paths)
        return
    with ThreadPoolExecutor(workers) as pool:
        block = workers * 64  # bounds what is decoded but not yet used
        for start in range(0, len(paths), block):
            yield from pool.map(attempt, paths[start : start + block])


# ---- resizing: bicubic to more pixels, as MNIST-CDCB was enlarged; by area to fewer, as the paper
# shrinks: exactly if both sides shrink by whole factors, else by a triangle of the same width.


def resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, C, H, W) uint8 at `size` = (H, W)."""
    import torch.nn.functional as F  # preparing pictures needs no torch

    kind = _filter_of((pictures.shape[-2], pictures.shape[-1]), size)
    if kind == "area":
        return F.interpolate(pictures.float(), size, mode="area").round_().to(pictures.dtype)
    if pictures.device.type == "cpu":
        return F.interpolate(pictures, size, mode=kind, antialias=True)
    smooth = F.interpolate(pictures.float(), size, mode=kind, antialias=True)
    return smooth.round_().clamp_(0, 255).to(pictures.dtype)


def resize_picture(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of 8 bits a channel at `size` = (H, W); opacity weighs its colours."""
    kind = _filter_of((image.height, image.width), size)
    resampling = Image.Resampling["BOX" if kind == "area" else kind.upper()]
    return image.resize((size[1], size[0]), resampling)


def resize_pictures(pictures: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, H, W) or (N, H, W, C) to `size` × `size`."""
    if pictures.shape[1:3] == (size, size):
        return pictures
    resized = np.empty((len(pictures), size, size, *pictures.shape[3:]), np.uint8)
    for row, picture in enumerate(pictures):
        resized[row] = resize_picture(Image.fromarray(picture), (size, size))
    return resized


def _filter_of(old: tuple[int, int], new: tuple[int, int]) -> str:
    if new[0] * new[1] > old[0] * old[1]:
        return "bicubic"
    whole = all(before % after == 0 for before, after in zip(old, new, strict=True))
    return "area" if whole else "bilinear"


# ---- finding


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which `2.png` stands before `10.png`."""
    parts = re.split(r"(\d+)", str(path))
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def pictures_in(folder: Path) -> list[Path]:
    """Every picture file below a folder, hidden ones left out, in natural order."""
    paths = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return sorted(paths, key=natural_key)


def expand_inputs(inputs: Iterable[str], *, nul: bool = False) -> list[str]:
    """Replace `-` by the paths on standard input, one a line, or NUL-separated."""
    paths: list[str] = []
    for word in inputs:
        if word == "-":
            text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
            paths += [part for part in text.split("\0" if nul else "\n") if part]
        else:
            paths.append(word)
    if not paths:
        raise IiaeError(
            "no input paths were given", "name pictures or folders, or pipe paths to '-'"
        )
    return paths


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """Picture files from files and folders (recursive), in the order given.

    A file named outright is taken whatever its suffix; among several, it may turn out missing when
    it is decoded.
    """
    paths: list[Path] = []
    for word in inputs:
        path = Path(word)
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises on names that are too long
            inside = pictures_in(path)
            if not inside:
                raise IiaeError(
                    f"folder {path} holds no pictures",
                    f"it should hold {', '.join(sorted(SUFFIXES))} files",
                )
            paths += inside
        elif len(inputs) == 1 and not os.path.lexists(path):
            raise missing(path, "check the path")
        else:
            paths.append(path)
    return paths
