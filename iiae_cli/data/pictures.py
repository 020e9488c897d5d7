"""Picture files: which ones there are, how one becomes an array, and its size another.

Every mode that Pillow opens is read (docs/data.md says how), and what was changed on the way is
counted in `SEEN`. Files that cannot be read raise `PictureError`, so that a caller can name, count
and skip them.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import missing
from iiae_cli.data.modes import ORIENTATION, UnusableError, plain
from iiae_cli.data.seen import SEEN

if TYPE_CHECKING:
    from torch import Tensor

# Others that Pillow knows are no pictures of a data set, and one of them, EPS, is a program that it
# would run.
FORMATS = {
    "PNG": ".png .apng",
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "JPEG2000": ".jp2 .j2k .jpc .jpf .jpx .j2c",
    "BMP": ".bmp",
    "DIB": ".dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "AVIF": ".avif .avifs",
}
with suppress(ImportError):  # an optional package
    import_module("pillow_heif").register_heif_opener()
    FORMATS["HEIF"] = ".heic .heif .hif"
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes.split()}
MAX_PIXELS = 2**26  # 67 million; a picture takes up to 24 bytes for each of them on its way
# An unreadable file is named by us; what else Pillow has to say, such as of EXIF, changes no pixel.
warnings.filterwarnings("ignore", module=r"PIL\.")
_JUNK = {"thumbs.db", "desktop.ini", "@eadir", "__macosx", "lost+found"}
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
    changes: list[str] = []
    with _opened(path) as opened:
        mode = opened.mode
        image = plain(opened, channels, changes)
    shown = image.size
    if size is not None and shown != (size[1], size[0]):
        image = resize_picture(image, size)
        changes.append(f"resized to {size[1]}×{size[0]}")
    SEEN.add(path, mode, shown, changes)
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def picture_size_of(path: Path) -> tuple[int, int]:
    """(H, W) of a picture file from its header, as shown (EXIF rotation applied)."""
    with _opened(path) as image:
        tags = getattr(image, "tag_v2", {})  # a TIFF's width and height are turned already
        width, height = tags.get(256, image.width), tags.get(257, image.height)
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header is read; whatever Pillow raises inside is a PictureError."""
    if not os.path.lexists(path):
        raise PictureError(path, "does not exist")
    try:
        if not path.is_file():  # a reader would wait for a pipe
            raise ValueError("it is not a file")
        with Image.open(path, formats=tuple(FORMATS)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if not image.width * image.height:
                raise UnusableError("has no pixels")
            yield image
    except UnusableError as error:
        raise PictureError(path, str(error)) from error
    except Image.DecompressionBombError as error:
        raise PictureError(path, "has too many pixels") from error
    except Exception as error:  # its readers pass on whatever they stumble over
        raise PictureError(path, "is not a readable picture") from error


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


def is_hidden(path: Path) -> bool:
    """Whether a name is one that systems, not people, write into folders."""
    return path.name[0] == "." or path.name.lower() in _JUNK


def pictures_in(folder: Path, without: Collection[Path] = ()) -> list[Path]:
    """Every picture file below a folder, through links, hidden ones left out, in natural order."""
    return sorted(_walk(folder, frozenset(), without), key=natural_key)


def _walk(
    folder: Path, above: frozenset[tuple[int, int]], without: Collection[Path]
) -> Iterator[Path]:
    """Picture files below a folder, which lies in those `above` (device, inode); notes others."""
    try:
        paths, status = list(folder.iterdir()), folder.stat()
    except OSError:
        SEEN.leave_out(folder, "unreadable folder")
        return
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to where it lies
        return
    for path in paths:
        if is_hidden(path) or path in without:
            continue
        if os.path.isdir(path):  # noqa: PTH112 - Path's own raise in a folder that cannot be entered
            yield from _walk(path, above | {here}, without)
        elif not os.path.isfile(path):  # noqa: PTH113
            SEEN.leave_out(path, "broken link" if path.is_symlink() else "special file")
        elif path.suffix.lower() in SUFFIXES:
            yield path
        else:
            SEEN.leave_out(path, path.suffix.lower() or "no suffix")


def expand_inputs(inputs: Iterable[str], *, nul: bool = False) -> list[str]:
    """Replace `-` by the paths on standard input, one a line, or NUL-separated."""
    paths: list[str] = []
    for word in inputs:
        paths += _listed(sys.stdin.buffer.read(), nul) if word == "-" else [word]
    if not paths:
        raise IiaeError(
            "no input paths were given", "name pictures or folders, or pipe paths to '-'"
        )
    return paths


def _listed(content: bytes, nul: bool) -> list[str]:
    """The paths of a list, in which Windows may have written line ends and a byte order mark."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", "replace")
    else:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    if nul:
        return [part for part in text.split("\0") if part]
    lines = (line if os.path.lexists(line) else line.rstrip("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip()]


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
