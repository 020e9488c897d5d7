"""Pairs of pictures: from folders, or side by side in one picture; `manifest` reads tables.

    SOURCE/{train,valid,test}/{x,y}/NAME.ext    partners have equal stems; subfolders are part of it
    SOURCE/{x,y}/NAME.ext                       the same, divided by seeded fractions
    SOURCE/{train,valid,test}/NAME.ext          a pair in each picture, cut at width // 2, x left
    SOURCE/NAME.ext                             the same, divided by seeded fractions

`val` is taken for `valid`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import SPLITS, Side, Split
from iiae_cli.data.pictures import (
    SUFFIXES,
    PictureError,
    decode,
    natural_key,
    picture_size_of,
    pictures_in,
    resize_picture,
)
from iiae_cli.data.sources.plan import (
    Plan,
    Prepared,
    PrepareOptions,
    ReadRows,
    Work,
    file_reading,
)
from iiae_cli.model import DOMAINS, Domain

DEFAULT_SIZE = 256  # where pictures differ in size
Item = TypeVar("Item")


@dataclass(frozen=True)
class Pair:
    """Two picture files that belong together."""

    files: Mapping[Domain, Path]
    names: Mapping[Domain, str]  # the rest of their ids, `SPLIT/NAME`
    label: str | None = None  # class of both, where known
    factors: Mapping[str, float | str] = field(default_factory=dict)  # the same in every pair


def split_folders(source: Path) -> dict[str, Path]:
    """The folders `train`, `valid` (or `val`) and `test` of a source, those that exist."""
    found = {split: source / split for split in SPLITS if (source / split).is_dir()}
    if "valid" not in found and (source / "val").is_dir():
        found["valid"] = source / "val"
    return found


def divide(
    items: Sequence[Item], fractions: tuple[float, float], seed: int
) -> dict[str, list[Item]]:
    """Divide at random: `fractions` for valid and test, the rest for train; each in order."""
    order = np.random.default_rng(seed).permutation(len(items))
    valid, test = (round(fraction * len(items)) for fraction in fractions)
    parts = {
        "test": order[:test],
        "valid": order[test : test + valid],
        "train": order[test + valid :],
    }
    return {name: [items[i] for i in sorted(parts[name])] for name in SPLITS}


def stored_size(options: PrepareOptions, paths: Iterable[Path], halves: int = 1) -> tuple[int, int]:
    """(H, W) of the stored pictures: --image-size, else their own where all agree, else 256."""
    if options.image_size is not None:
        return options.image_size, options.image_size
    sizes = set()
    for path in paths:
        with suppress(PictureError):  # named when it is decoded
            sizes.add(picture_size_of(path))
    height, width = sizes.pop() if len(sizes) == 1 else (DEFAULT_SIZE, halves * DEFAULT_SIZE)
    return height, width // halves


# ---- pairs of files


def plan_folders(options: PrepareOptions) -> Plan:
    """Plan the pairs of a folder, `options.source`."""
    source = options.source
    assert source is not None
    if not source.is_dir():
        raise IiaeError(
            f"folder {source} does not exist",
            "name a folder that holds x/ and y/, or train/x and train/y …",
        )
    skipped: list[str] = []
    folders = split_folders(source)
    pairs = {split: _match(folder, skipped) for split, folder in folders.items()}
    if not folders:
        pairs = divide(_match(source, skipped), options.fractions, options.seed)
    return plan_pairs(pairs, options, skipped)


def _match(folder: Path, skipped: list[str]) -> list[Pair]:
    """The pair of every stem that both domains have; files without a partner are noted."""
    stems: dict[str, dict[Domain, Path]] = {}
    for domain in DOMAINS:
        if not (folder / domain).is_dir():
            raise IiaeError(f"{folder} has no folder {domain}/", _hint_for(folder))
        for stem, path in by_stem(folder / domain, skipped):
            stems.setdefault(stem, {})[domain] = path
    pairs = []
    for stem in sorted(stems, key=lambda text: natural_key(Path(text))):
        files = stems[stem]
        if len(files) == 2:
            pairs.append(Pair(files, dict.fromkeys(DOMAINS, stem)))
        else:
            skipped += [f"{path}: has no partner" for path in files.values()]
    return pairs


def _hint_for(folder: Path) -> str:
    hint = "put the pictures of both domains in x/ and y/"
    if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        picture = "each picture holds x on its left and y on its right"
        return f"add --side-by-side where {picture}, or {hint}"
    return hint


def by_stem(folder: Path, skipped: list[str]) -> list[tuple[str, Path]]:
    """(stem, file) of the pictures below a folder; a second one of the same stem is noted."""
    stems: dict[str, Path] = {}
    for path in pictures_in(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in stems:
            skipped.append(f"{path}: {stems[stem].name} has the same stem")
        else:
            stems[stem] = path
    return list(stems.items())


def plan_pairs(
    pairs: Mapping[str, Sequence[Pair]], options: PrepareOptions, skipped: Sequence[str]
) -> Plan:
    """Plan splits of pairs, of each the first `options.limit`.

    Where a picture stands in several pairs, each picture is stored once and pairs are indices. An
    unreadable picture is left out with its partners.

    Args:
        pairs: per split.
        options: source, size, limit and threads.
        skipped: lines of what was left out so far.
    """
    limited = {name: found[: options.limit] for name, found in pairs.items() if found}
    every = [pair for found in limited.values() for pair in found]
    paths = {path for pair in every for path in pair.files.values()}
    size = stored_size(options, paths)
    files = {
        (name, domain): list(dict.fromkeys(pair.files[domain] for pair in found))
        for name, found in limited.items()
        for domain in DOMAINS
    }
    recurring = any(len(paths) < len(limited[name]) for (name, _), paths in files.items())
    readings = [
        file_reading(
            f"{name}/{domain}",
            paths,
            lambda path: (decode(path, 3, size),),
            ((*size, 3),),
            workers=options.workers,
        )
        for (name, domain), paths in files.items()
    ]

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits, lost = {}, list(skipped)
        for name, found in limited.items():
            read = {domain: rows[f"{name}/{domain}"] for domain in DOMAINS}
            for domain in DOMAINS:
                lost += [_lost(error, found, domain) for error in read[domain].errors]
            kept = {
                domain: {files[name, domain][place]: row for row, place in enumerate(part.places)}
                for domain, part in read.items()
            }
            arrays = {domain: part.rows[0] for domain, part in read.items()}
            splits[name] = _split_of(name, found, kept, arrays, recurring)
        if not any(split.pair_count for split in splits.values()):
            first = f"the first that was left out: {lost[0]}" if lost else "give them equal stems"
            raise IiaeError(f"{options.source} holds no readable pair", first)
        return Prepared(splits, {"source": str(options.source)}, lost)

    return Plan(assemble, readings)


def _lost(error: PictureError, pairs: Sequence[Pair], domain: Domain) -> str:
    other: Domain = "y" if domain == "x" else "x"
    partners = [pair.files[other] for pair in pairs if pair.files[domain] == error.path]
    left = f"its partner {partners[0]}" if len(partners) == 1 else f"its {len(partners)} pairs"
    return f"{error} (left out with {left})"


def _split_of(
    name: str,
    pairs: Sequence[Pair],
    kept: Mapping[Domain, Mapping[Path, int]],
    arrays: Mapping[Domain, NDArray[np.uint8]],
    recurring: bool,
) -> Split:
    """The split of the pairs whose pictures both are `kept`: rows of `arrays`, (N, H, W, 3)."""
    whole = [
        pair for pair in pairs if all(pair.files[domain] in kept[domain] for domain in DOMAINS)
    ]
    labelled = any(pair.label is not None for pair in pairs)
    sides, indices = {}, {}
    for domain in DOMAINS:
        first: dict[Path, Pair] = {}  # the first pair of each picture, in the order of the rows
        for pair in whole:
            first.setdefault(pair.files[domain], pair)
        named: Domain = domain if recurring else "x"  # partners share their id
        sides[domain] = Side(
            _taken(arrays[domain], [kept[domain][path] for path in first]),
            [f"{name}/{pair.names[named]}" for pair in first.values()],
            [pair.label or "" for pair in first.values()] if labelled else None,
        )
        row_of = {path: row for row, path in enumerate(first)}
        indices[domain] = [row_of[pair.files[domain]] for pair in whole]
    factors = {
        factor: _column([pair.factors[factor] for pair in whole]) for factor in pairs[0].factors
    }
    joined = np.array([indices["x"], indices["y"]], np.int64).T if recurring else None
    return Split(sides["x"], sides["y"], factors, joined)


def _taken(pictures: NDArray[np.uint8], rows: list[int]) -> NDArray[np.uint8]:
    """These rows in this order; no copy where they are all."""
    return pictures if rows == list(range(len(pictures))) else pictures[np.array(rows, np.int64)]


def _column(values: Sequence[float | str]) -> NDArray[Any]:
    """A factor of every pair; text as objects, so that h5py stores it whatever its length."""
    return np.array(values, object if any(isinstance(value, str) for value in values) else None)


# ---- side by side


def plan_halves(options: PrepareOptions, *, need_test: bool = False, divided: bool = False) -> Plan:
    """Plan the pairs of a folder of side-by-side pictures, `options.source`.

    Args:
        options: source, size, limit, fractions and threads.
        need_test: whether `val` is the test split where there is no other, as in Maps' archive.
        divided: whether the source must have splits of its own.
    """
    source, skipped = options.source, list[str]()
    assert source is not None
    folders = split_folders(source)
    if need_test and "test" not in folders and "valid" in folders:
        folders["test"] = folders.pop("valid")
    for folder in (source, *folders.values()):
        if all((folder / domain).is_dir() for domain in DOMAINS):
            raise IiaeError(
                f"{folder} holds x and y in folders of their own", "leave out --side-by-side"
            )
    found = {split: by_stem(folder, skipped) for split, folder in folders.items()}
    if not folders and not divided:
        found = divide(by_stem(source, skipped), options.fractions, options.seed)
    found = {split: files[: options.limit] for split, files in found.items()}
    size = stored_size(options, [path for files in found.values() for _, path in files], halves=2)
    readings = [
        file_reading(
            split,
            [path for _, path in files],
            lambda path: _halves(path, size),
            ((*size, 3),) * 2,
            workers=options.workers,
        )
        for split, files in found.items()
    ]

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits, lost = {}, list(skipped)
        for split, files in found.items():
            lost += map(str, rows[split].errors)
            ids = [f"{split}/{files[place][0]}" for place in rows[split].places]
            if ids:
                x, y = rows[split].rows
                splits[split] = Split(Side(x, ids), Side(y, list(ids)))
        if not splits:
            first = f"the first that was left out: {lost[0]}" if lost else "put them in train/ …"
            raise IiaeError(f"{source} holds no readable side-by-side pictures", first)
        return Prepared(splits, {"source": str(source)}, lost)

    return Plan(assemble, readings)


def _halves(path: Path, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    picture = decode(path)
    middle = picture.shape[1] // 2
    if middle == 0:
        raise PictureError(path, "is one pixel wide")
    left, right = picture[:, :middle], picture[:, middle : 2 * middle]
    return _resized(left, size), _resized(right, size)


def _resized(half: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if half.shape[:2] == size:
        return half.copy()  # a view would keep the whole picture in memory
    return np.asarray(resize_picture(Image.fromarray(half), size))
