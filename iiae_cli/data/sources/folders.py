"""Your own pairs from folders of pictures.

Layouts: `SOURCE/{train,valid,test}/{x,y}/NAME.ext` (`val` is taken for `valid`) with equal stems, or
`SOURCE/{x,y}/…`, divided by seeded fractions.
Subfolders count as part of the stem, so `x/cats/1.png` pairs with `y/cats/1.jpg`.
"""

from __future__ import annotations

from pathlib import Path

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.pictures import SUFFIXES, natural_key, pictures_in
from iiae_cli.data.sources.pairing import Pair, divide, plan_pairs, split_folders
from iiae_cli.data.sources.plan import Plan


def read_pairs(
    source: Path,
    *,
    image_size: int | None,
    fractions: tuple[float, float],
    seed: int,
    limit: int | None = None,
    workers: int = 1,
) -> Plan:
    """Plan the splits of a folder of pairs.

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
            f"folder {source} does not exist",
            "name a folder that holds x/ and y/, or train/x and train/y …",
        )
    skipped: list[str] = []
    if named := split_folders(source):
        pairs = {split: _match(folder, skipped) for split, folder in named.items()}
    else:
        pairs = divide(_match(source, skipped), fractions, seed)
    if not any(pairs.values()):
        raise IiaeError(
            f"{source} holds no pair of pictures with equal names in x/ and y/",
            "give partners equal stems",
        )
    pairs = {split: found[:limit] for split, found in pairs.items()}
    return plan_pairs(
        pairs,
        source=source,
        image_size=image_size,
        workers=workers,
        skipped=skipped,
        attributes={"source": str(source)},
    )


def _match(folder: Path, skipped: list[str]) -> list[Pair]:
    """The pair of every stem that both domains have; files without a partner are noted."""
    stems: dict[str, dict[str, Path]] = {}
    for domain in ("x", "y"):
        place = folder / domain
        if not place.is_dir():
            raise IiaeError(f"{folder} has no folder {domain}/", _remedy(folder))
        for path in pictures_in(place):
            stem = str(path.relative_to(place).with_suffix(""))
            known = stems.setdefault(stem, {})
            if domain in known:
                skipped.append(f"{path}: {known[domain].name} has the same stem")
            else:
                known[domain] = path
    found: list[Pair] = []
    for stem in sorted(stems, key=lambda text: natural_key(Path(text))):
        match stems[stem]:
            case {"x": x, "y": y}:
                found.append(Pair(x, y, stem, stem))
            case {"x": alone} | {"y": alone}:
                skipped.append(f"{alone}: has no partner")
    return found


def _remedy(folder: Path) -> str:
    remedy = "put the pictures of both domains in x/ and y/"
    if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        return f"add --side-by-side where each picture holds x on its left and y on its right, or {remedy}"
    return remedy
