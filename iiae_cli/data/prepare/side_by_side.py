"""Pictures that hold a pair side by side: `SOURCE/{train,valid,test}/NAME.png`, cut at width // 2, x on the left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.data.dataset import SPLITS, Split
from iiae_cli.data.pictures import PictureError, decode, pictures_in, shrink_or_enlarge
from iiae_cli.errors import IiaeError


def read_side_by_side(
    source: Path, *, image_size: int | None, limit: int | None = None
) -> tuple[dict[str, Split], list[str]]:
    """Splits of a folder of side-by-side pictures, and a line for every picture left out.

    Args:
        source: the folder.
        image_size: side that both halves are resized to; None: the first picture's own.
        limit: at most so many pairs per split.

    Raises:
        IiaeError: no readable picture.
    """
    splits: dict[str, Split] = {}
    skipped: list[str] = []
    size = None if image_size is None else (image_size, image_size)
    for split in SPLITS:
        folder = source / split
        paths = pictures_in(folder)[:limit] if folder.is_dir() else []
        ids: list[str] = []
        halves: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]] = ([], [])
        for path in paths:
            try:
                picture = decode(path)
            except PictureError as error:
                skipped.append(str(error))
                continue
            middle = picture.shape[1] // 2
            if middle == 0:
                skipped.append(f"{path}: is one pixel wide")
                continue
            size = size or (picture.shape[0], middle)
            for side, half in zip(halves, (picture[:, :middle], picture[:, middle : 2 * middle]), strict=True):
                side.append(_at(half, size))
            ids.append(f"{split}/{path.relative_to(folder).with_suffix('')}")
        if ids:
            splits[split] = Split(np.stack(halves[0]), np.stack(halves[1]), ids, list(ids))
    if not splits:
        raise IiaeError(f"{source} holds no readable side-by-side pictures", "put them in train/ and test/")
    return splits, skipped


def _at(half: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if half.shape[:2] == size:
        return half
    return np.asarray(shrink_or_enlarge(Image.fromarray(half), size))
