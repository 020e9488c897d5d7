"""Pictures that hold a pair side by side, cut at width // 2, x on the left: Facades, Maps, MNIST-CDCB's, your own.

Layouts: `SOURCE/{train,valid,test}/NAME.png` (`val` is taken for `valid`), or `SOURCE/NAME.png` where fractions are
given to divide them by.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import Side, Split
from iiae_cli.data.pictures import PictureError, decode, pictures_in
from iiae_cli.data.resize import resize_picture
from iiae_cli.data.sources.pairing import DEFAULT_SIZE, common_size, divide, split_folders
from iiae_cli.data.sources.plan import Plan, Prepared, ReadRows, Work, file_reading

Picture: TypeAlias = NDArray[np.uint8]


def read_side_by_side(
    source: Path,
    *,
    image_size: int | None,
    limit: int | None = None,
    workers: int = 1,
    fractions: tuple[float, float] | None = None,
    seed: int = 0,
    need_test: bool = False,
) -> Plan:
    """Plan the splits of a folder of side-by-side pictures.

    Args:
        source: the folder.
        image_size: side that both halves are resized to; None: the halves' own where all agree, else 256.
        limit: at most so many pairs per split.
        workers: decoding threads.
        fractions: of pairs for `valid` and `test` where the folder has no splits; None: it must have them.
        seed: of that division.
        need_test: whether `val` is the test split where there is no other, as in Maps' archive.

    Raises:
        IiaeError: the halves are in folders of their own, or there is no readable picture.
    """
    folders = split_folders(source)
    if need_test and "test" not in folders and "valid" in folders:
        folders["test"] = folders.pop("valid")
    if parted := [
        place
        for place in (source, *folders.values())
        if (place / "x").is_dir() and (place / "y").is_dir()
    ]:
        raise IiaeError(
            f"{parted[0]} holds x and y in folders of their own", "leave out --side-by-side"
        )
    skipped: list[str] = []
    found = {split: _by_stem(folder, skipped) for split, folder in folders.items()}
    if not folders and fractions is not None:
        found = divide(_by_stem(source, skipped), fractions, seed)
    found = {split: files[:limit] for split, files in found.items()}
    size = (image_size, image_size) if image_size is not None else _common_half(found)
    readings = [
        file_reading(
            split,
            [path for _, path in files],
            lambda path: _halves(path, size),
            ((*size, 3),) * 2,
            workers=workers,
        )
        for split, files in found.items()
    ]

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits: dict[str, Split] = {}
        for split, files in found.items():
            x, y = rows[split].rows
            skipped.extend(map(str, rows[split].errors))
            if len(x):
                ids = [f"{split}/{files[place][0]}" for place in rows[split].places]
                splits[split] = Split(Side(x, ids), Side(y, list(ids)))
        if not splits:
            raise IiaeError(
                f"{source} holds no readable side-by-side pictures",
                f"the first that was left out: {skipped[0]}"
                if skipped
                else "put them in train/ and test/",
            )
        return Prepared(splits, {"source": str(source)}, skipped)

    return Plan(assemble, readings)


def _by_stem(folder: Path, skipped: list[str]) -> list[tuple[str, Path]]:
    """(stem, file) of the pictures below a folder; a second one of the same stem is noted."""
    found: dict[str, Path] = {}
    for path in pictures_in(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in found:
            skipped.append(f"{path}: {found[stem].name} has the same stem")
        else:
            found[stem] = path
    return list(found.items())


def _common_half(found: dict[str, list[tuple[str, Path]]]) -> tuple[int, int]:
    size = common_size(path for files in found.values() for _, path in files)
    return (DEFAULT_SIZE, DEFAULT_SIZE) if size is None else (size[0], size[1] // 2)


def _halves(path: Path, size: tuple[int, int]) -> tuple[Picture, Picture]:
    picture = decode(path)
    middle = picture.shape[1] // 2
    if middle == 0:
        raise PictureError(path, "is one pixel wide")
    return _at(picture[:, :middle], size), _at(picture[:, middle : 2 * middle], size)


def _at(half: Picture, size: tuple[int, int]) -> Picture:
    if half.shape[:2] == size:
        return half.copy()  # a view would keep the whole picture in memory
    return np.asarray(resize_picture(Image.fromarray(half), size))
