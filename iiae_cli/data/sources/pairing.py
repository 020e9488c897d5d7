"""What sources of picture files have in common: which split a pair belongs to, and reading pairs into a split.

How pairs are found is each source's own (`folders`, `side_by_side`, `manifest`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import SPLITS, Side, Split
from iiae_cli.data.pictures import PictureError, decode, picture_size_of
from iiae_cli.data.sources.plan import Plan, Prepared, ReadRows, Work, file_reading
from iiae_cli.model import DOMAINS, Domain

DEFAULT_SIZE = 256  # where pictures differ in size
Item = TypeVar("Item")


@dataclass(frozen=True)
class Pair:
    """Two picture files that belong together.

    Attributes:
        x: file of x; `y` likewise.
        x_name: the rest of its id, `SPLIT/NAME`; `y_name` likewise.
        label: class of both, where known.
        factors: generative factors by name, the same names in every pair: numbers, or text.
    """

    x: Path
    y: Path
    x_name: str
    y_name: str
    label: str | None = None
    factors: Mapping[str, float | str] = field(default_factory=dict)


def split_folders(source: Path) -> dict[str, Path]:
    """The folders `train`, `valid` (or `val`) and `test` of a source, those that there are."""
    found = {split: source / split for split in SPLITS if (source / split).is_dir()}
    if "valid" not in found and (source / "val").is_dir():
        found["valid"] = source / "val"
    return found


def divide(
    found: Sequence[Item], fractions: tuple[float, float], seed: int
) -> dict[str, list[Item]]:
    """`found` at random in three: these fractions for valid and test, the rest for train; each in the given order."""
    order = np.random.default_rng(seed).permutation(len(found))
    valid, test = (round(fraction * len(found)) for fraction in fractions)
    parts = {
        "test": order[:test],
        "valid": order[test : test + valid],
        "train": order[test + valid :],
    }
    return {name: [found[i] for i in sorted(parts[name])] for name in SPLITS}


def common_size(paths: Iterable[Path]) -> tuple[int, int] | None:
    """(H, W) of picture files where all agree, else None; unreadable ones are passed over."""
    sizes = set()
    for path in paths:
        try:
            sizes.add(picture_size_of(path))
        except PictureError:
            continue  # named when it is decoded
    return sizes.pop() if len(sizes) == 1 else None


def plan_pairs(
    pairs: dict[str, list[Pair]],
    *,
    source: Path,
    image_size: int | None,
    workers: int,
    skipped: list[str],
    recurring: bool = False,
    attributes: Mapping[str, str],
) -> Plan:
    """Plan to decode pairs into splits.

    Args:
        pairs: per split.
        source: what an error names.
        image_size: side that every picture is resized to; None: the pictures' own where all agree, else 256.
        workers: decoding threads.
        skipped: gets a line for every unreadable picture, which is left out with its partners.
        recurring: whether pictures stand in several pairs; each is then stored once, and pairs are indices.
        attributes: of the data file.

    Raises:
        IiaeError: no pair can be read.
    """
    if image_size is not None:
        size = (image_size, image_size)
    else:
        files = {path for found in pairs.values() for pair in found for path in (pair.x, pair.y)}
        size = common_size(files) or (DEFAULT_SIZE, DEFAULT_SIZE)
    pairs = {name: found for name, found in pairs.items() if found}
    partners = {
        f"{name}/{domain}": _partners(found, domain)
        for name, found in pairs.items()
        for domain in DOMAINS
    }
    readings = [
        file_reading(
            name,
            list(files),
            lambda path: (decode(path, 3, size),),
            ((*size, 3),),
            workers=workers,
        )
        for name, files in partners.items()
    ]

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits: dict[str, Split] = {}
        for name, found in pairs.items():
            both = [f"{name}/{domain}" for domain in DOMAINS]
            x, y = (
                _Pictures(list(partners[one]), rows[one], partners[one], skipped) for one in both
            )
            splits[name] = _split_of(name, found, x, y, recurring)
        if not any(split.pair_count for split in splits.values()):
            raise IiaeError(
                f"{source} holds no readable pair", f"the first that was left out: {skipped[0]}"
            )
        return Prepared(splits, dict(attributes), skipped)

    return Plan(assemble, readings)


def _partners(pairs: list[Pair], domain: Domain) -> dict[Path, list[Path]]:
    """The pictures of a domain, each once, with those that they are paired with."""
    partners: dict[Path, list[Path]] = {}
    for pair in pairs:
        one, other = (pair.x, pair.y) if domain == "x" else (pair.y, pair.x)
        partners.setdefault(one, []).append(other)
    return partners


class _Pictures:
    """What came of a domain's pictures; a line in `skipped` for each that could not be read.

    Attributes:
        rows: by path.
        pictures: (N, H, W, 3).
    """

    def __init__(
        self,
        paths: list[Path],
        found: ReadRows,
        partners: dict[Path, list[Path]],
        skipped: list[str],
    ) -> None:
        for error in found.errors:
            others = partners[error.path]
            left = f"its partner {others[0]}" if len(others) == 1 else f"its {len(others)} pairs"
            skipped.append(f"{error} (left out with {left})")
        self.rows = {paths[place]: row for row, place in enumerate(found.places)}
        (self.pictures,) = found.rows


def _split_of(name: str, pairs: list[Pair], x: _Pictures, y: _Pictures, recurring: bool) -> Split:
    whole = [pair for pair in pairs if pair.x in x.rows and pair.y in y.rows]
    rows_x: dict[Path, Pair] = {}  # the first pair of each picture, in the order of the stored rows
    rows_y: dict[Path, Pair] = {}
    for pair in whole:
        rows_x.setdefault(pair.x, pair)
        rows_y.setdefault(pair.y, pair)
    labelled = any(pair.label is not None for pair in pairs)
    split = Split(
        Side(
            _taken(x.pictures, [x.rows[path] for path in rows_x]),
            [f"{name}/{pair.x_name}" for pair in rows_x.values()],
            [pair.label or "" for pair in rows_x.values()] if labelled else None,
        ),
        Side(
            _taken(y.pictures, [y.rows[path] for path in rows_y]),
            [f"{name}/{pair.y_name}" for pair in rows_y.values()],
            [pair.label or "" for pair in rows_y.values()] if labelled else None,
        ),
        factors={
            factor: _column([pair.factors[factor] for pair in whole]) for factor in pairs[0].factors
        },
    )
    if recurring:
        row_of_x, row_of_y = (
            {path: row for row, path in enumerate(rows)} for rows in (rows_x, rows_y)
        )
        indices = [(row_of_x[pair.x], row_of_y[pair.y]) for pair in whole]
        split.pairs = np.array(indices, np.int64).reshape(-1, 2)
    return split


def _taken(pictures: NDArray[np.uint8], rows: list[int]) -> NDArray[np.uint8]:
    """These rows in this order; no copy where they are all."""
    return pictures if rows == list(range(len(pictures))) else pictures[np.array(rows, np.int64)]


def _column(values: Sequence[float | str]) -> NDArray[Any]:
    """A factor of every pair; text as objects, so that h5py stores it whatever its length."""
    return np.array(values, dtype=object if any(isinstance(one, str) for one in values) else None)
