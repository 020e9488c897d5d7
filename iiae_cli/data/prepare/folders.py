"""Your own pairs from folders of pictures.

Layouts: `SOURCE/{train,valid,test}/{x,y}/NAME.ext` (`val` is taken for `valid`) with equal stems, or
`SOURCE/{x,y}/…`, divided by seeded fractions.
Subfolders count as part of the stem, so `x/cats/1.png` pairs with `y/cats/1.jpg`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iiae_cli.data.dataset import SPLITS, Split
from iiae_cli.data.pictures import PictureError, decode_all, natural_key, picture_size_of, pictures_in
from iiae_cli.errors import IiaeError

DEFAULT_SIZE = 256  # where pictures differ in size


@dataclass
class FolderPairs:
    """What was read.

    Attributes:
        splits: by name.
        skipped: one line for every picture left out.
    """

    splits: dict[str, Split]
    skipped: list[str] = field(default_factory=list)


def read_pairs(
    source: Path,
    *,
    image_size: int | None,
    fractions: tuple[float, float],
    seed: int,
    limit: int | None = None,
    workers: int = 1,
) -> FolderPairs:
    """Read a folder of pairs.

    Args:
        source: in one of the layouts of this module.
        image_size: side that every picture is resized to; None: the pictures' own where all agree, else 256.
        fractions: of pairs for `valid` and `test` where the folder has no splits.
        seed: of that division.
        limit: at most so many pairs per split.
        workers: decoding threads.

    Raises:
        IiaeError: no such folder, another layout, or no pair of equal names.
    """
    if not source.is_dir():
        raise IiaeError(
            f"folder {source} does not exist", "name a folder that holds x/ and y/, or train/x and train/y …"
        )
    named = {split: source / split for split in SPLITS if (source / split).is_dir()}
    if "valid" not in named and named and (source / "val").is_dir():
        named["valid"] = source / "val"
    skipped: list[str] = []
    if named:
        pairs = {split: _match(folder, skipped) for split, folder in named.items()}
    else:
        pairs = _divide(_match(source, skipped), fractions, seed)
    if limit is not None:
        pairs = {split: found[:limit] for split, found in pairs.items()}
    if not any(pairs.values()):
        raise IiaeError(
            f"{source} holds no pair of pictures with equal names in x/ and y/", "give partners equal stems"
        )
    size = (image_size, image_size) if image_size else _common_size(pairs)
    splits = {name: _read_split(name, found, size, workers, skipped) for name, found in pairs.items() if found}
    if not any(len(split.x) for split in splits.values()):
        raise IiaeError(f"{source} holds no readable pair", "check the pictures named above")
    return FolderPairs(splits, skipped)


Found = list[tuple[str, Path, Path]]


def _match(folder: Path, skipped: list[str]) -> Found:
    """(stem, x file, y file) of every stem that both domains have; files without a partner are noted."""
    stems: dict[str, dict[str, Path]] = {}
    for domain in ("x", "y"):
        place = folder / domain
        if not place.is_dir():
            raise IiaeError(f"{folder} has no folder {domain}/", "put the pictures of both domains in x/ and y/")
        for path in pictures_in(place):
            stem = str(path.relative_to(place).with_suffix(""))
            known = stems.setdefault(stem, {})
            if domain in known:
                skipped.append(f"{path}: {known[domain].name} has the same stem")
            else:
                known[domain] = path
    found: Found = []
    for stem in sorted(stems, key=lambda text: natural_key(Path(text))):
        match stems[stem]:
            case {"x": x, "y": y}:
                found.append((stem, x, y))
            case {"x": alone} | {"y": alone}:
                skipped.append(f"{alone}: has no partner")
    return found


def _divide(found: Found, fractions: tuple[float, float], seed: int) -> dict[str, Found]:
    order = np.random.default_rng(seed).permutation(len(found))
    valid, test = (round(fraction * len(found)) for fraction in fractions)
    parts = {"test": order[:test], "valid": order[test : test + valid], "train": order[test + valid :]}
    return {name: [found[i] for i in sorted(parts[name])] for name in SPLITS}


def _common_size(pairs: dict[str, Found]) -> tuple[int, int]:
    sizes = set()
    for found in pairs.values():
        for _, *paths in found:
            for path in paths:
                try:
                    sizes.add(picture_size_of(path))
                except PictureError:
                    continue  # named when it is decoded
    return sizes.pop() if len(sizes) == 1 else (DEFAULT_SIZE, DEFAULT_SIZE)


def _read_split(split: str, found: Found, size: tuple[int, int], workers: int, skipped: list[str]) -> Split:
    ids: list[str] = []
    rows: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]] = ([], [])
    decoded_x = decode_all([x for _, x, _ in found], 3, size, workers)
    decoded_y = decode_all([y for _, _, y in found], 3, size, workers)
    for (stem, path_x, path_y), x, y in zip(found, decoded_x, decoded_y, strict=True):
        if isinstance(x, PictureError) or isinstance(y, PictureError):
            for broken, partner in ((x, path_y), (y, path_x)):
                if isinstance(broken, PictureError):
                    skipped.append(f"{broken} (left out with its partner {partner})")
            continue
        ids.append(f"{split}/{stem}")
        rows[0].append(x)
        rows[1].append(y)
    empty = np.empty((0, *size, 3), np.uint8)
    return Split(
        x=np.stack(rows[0]) if ids else empty, y=np.stack(rows[1]) if ids else empty, x_ids=ids, y_ids=list(ids)
    )
