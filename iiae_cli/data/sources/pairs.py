"""Pairs of pictures: in folders, side by side in one picture, or named by a table.

    SOURCE/{train,valid,test}/{x,y}/NAME.ext    partners have equal stems; subfolders are part of it
    SOURCE/{x,y}/NAME.ext                       the same, divided by seeded fractions
    SOURCE/{train,valid,test}/NAME.ext          a pair in each picture, cut at width // 2, x left
    SOURCE/NAME.ext                             the same, divided by seeded fractions
    SOURCE.csv, SOURCE.tsv                      columns x,y[,split][,label]; tabs in a .tsv

`val` is taken for `valid`. Paths in a table are absolute, or relative to its folder, and a picture
may recur. Any number of columns `x_…`, `y_…` and `shared_…` are generative factors of a pair:
numbers where all their cells are (empty: unknown), else text.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of
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
    distinct,
    file_reading,
)
from iiae_cli.model import DOMAINS, Domain

DEFAULT_SIZE = 256  # where pictures differ in size; also of Maps, whose halves are 600 a side
FACTORS = ("x_", "y_", "shared_")
_HINT = "its first line should be x,y[,split][,label], in UTF-8 (separated by tabs in a .tsv)"


@dataclass(frozen=True)
class Pair:
    """Two picture files that belong together; one file where they are side by side."""

    files: Mapping[Domain, Path]
    names: Mapping[Domain, str]  # the rest of their ids, `SPLIT/NAME`
    label: str | None = None  # class of both, where known
    factors: Mapping[str, float | str] = field(default_factory=dict)  # the same in every pair


def plan_pairs(options: PrepareOptions) -> Plan:
    """Plan the user's own pairs, `options.source`."""
    assert options.source is not None
    if is_manifest(options.source):
        return _plan_manifest(options.source, options)
    return plan_folders(split_folders(options.source), options)


def plan_published(options: PrepareOptions) -> Plan:
    """Plan Facades or Maps in their archive's layout; Maps call their test split `val`."""
    assert options.source is not None
    found = [path for path in options.source.rglob("train") if path.is_dir()]
    train = min(found, key=lambda path: (len(path.parts), path), default=options.source / "train")
    folders = {"train": train, **split_folders(train.parent)}
    if "test" not in folders and "valid" in folders:
        folders["test"] = folders.pop("valid")
    size = options.image_size or DEFAULT_SIZE
    return plan_folders(folders, replace(options, image_size=size, side_by_side=True))


def plan_folders(folders: Mapping[str, Path], options: PrepareOptions) -> Plan:
    """Plan the pairs in the folders of splits; without any, `options.source` is divided."""
    skipped: list[str] = []
    find = _side_by_side if options.side_by_side else _match
    pairs = {split: find(folder, skipped) for split, folder in folders.items()}
    if not pairs:
        assert options.source is not None
        pairs = divide(find(options.source, skipped), options)
    return _plan_files(pairs, options, skipped)


def split_folders(source: Path) -> dict[str, Path]:
    """The folders `train`, `valid` (or `val`) and `test` of a source, those that exist."""
    folders = {split: source / split for split in SPLITS if (source / split).is_dir()}
    if "valid" not in folders and (source / "val").is_dir():
        folders["valid"] = source / "val"
    return folders


def divide(pairs: Sequence[Pair], options: PrepareOptions) -> dict[str, list[Pair]]:
    """Divide at random: fractions for valid and test, the rest for train; each in order."""
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    test = round(options.test_fraction * len(pairs))
    rest = test + round(options.valid_fraction * len(pairs))
    parts = {"train": order[rest:], "valid": order[test:rest], "test": order[:test]}
    return {name: [pairs[i] for i in sorted(parts[name])] for name in SPLITS}


def _match(folder: Path, skipped: list[str]) -> list[Pair]:
    """The pair of every stem that both domains have; files without a partner are noted."""
    stems: dict[str, dict[Domain, Path]] = {}
    for domain in DOMAINS:
        if not (folder / domain).is_dir():
            hint = "put the pictures of both domains in x/ and y/"
            if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
                hint = f"add --side-by-side where each picture holds x beside y, or {hint}"
            raise IiaeError(f"{folder} has no folder {domain}/", hint)
        for stem, path in _by_stem(folder / domain, skipped).items():
            stems.setdefault(stem, {})[domain] = path
    pairs = []
    for stem in sorted(stems, key=lambda text: natural_key(Path(text))):
        files = stems[stem]
        if len(files) == 2:
            pairs.append(Pair(files, dict.fromkeys(DOMAINS, stem)))
        else:
            skipped += [f"{path}: has no partner" for path in files.values()]
    return pairs


def _side_by_side(folder: Path, skipped: list[str]) -> list[Pair]:
    if all((folder / domain).is_dir() for domain in DOMAINS):
        raise IiaeError(
            f"{folder} holds x and y in folders of their own", "leave out --side-by-side"
        )
    return [
        Pair(dict.fromkeys(DOMAINS, path), dict.fromkeys(DOMAINS, stem))
        for stem, path in _by_stem(folder, skipped).items()
    ]


def _by_stem(folder: Path, skipped: list[str]) -> dict[str, Path]:
    """The pictures below a folder by stem; a second one of the same stem is noted."""
    stems: dict[str, Path] = {}
    for path in pictures_in(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in stems:
            skipped.append(f"{path}: {stems[stem].name} has the same stem")
        else:
            stems[stem] = path
    return stems


# ---- from files to splits


def _plan_files(
    pairs: Mapping[str, Sequence[Pair]], options: PrepareOptions, skipped: Sequence[str]
) -> Plan:
    """Plan pairs per split. If a picture recurs, each is stored once and pairs are indices."""
    limited = {name: items[: options.limit] for name, items in pairs.items() if items}
    files = {
        (name, domain): list(dict.fromkeys(pair.files[domain] for pair in items))
        for name, items in limited.items()
        for domain in DOMAINS
    }
    recurring = any(len(paths) < len(limited[name]) for (name, _), paths in files.items())
    size = _stored_size(options, {path for paths in files.values() for path in paths})

    def read(path: Path) -> tuple[NDArray[np.uint8], ...]:
        return _halves(path, size) if options.side_by_side else (decode(path, 3, size),)

    def reading_of(name: str, domain: Domain) -> str:  # one for both of what is side by side
        return name if options.side_by_side else f"{name}/{domain}"

    readings = {
        reading_of(*key): file_reading(reading_of(*key), paths, read, workers=options.workers)
        for key, paths in files.items()
    }

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits = {}
        for name, items in limited.items():
            row_of: dict[Domain, dict[Path, int]] = {}
            stored: dict[Domain, NDArray[np.uint8]] = {}
            for domain in DOMAINS:
                part, paths = rows[reading_of(name, domain)], files[name, domain]
                row_of[domain] = {paths[place]: row for row, place in enumerate(part.places)}
                if part.rows:
                    stored[domain] = part.rows[0 if domain == "x" else -1]
            whole = [
                pair for pair in items if all(pair.files[side] in row_of[side] for side in DOMAINS)
            ]
            if whole:
                splits[name] = _split_of(name, whole, row_of, stored, recurring)
        return Prepared(splits)

    return Plan(assemble, list(readings.values()), skipped=skipped)


def _stored_size(options: PrepareOptions, paths: Iterable[Path]) -> tuple[int, int]:
    """(H, W) of the stored pictures: --image-size, else their own where all agree, else 256."""
    if options.image_size is not None:
        return options.image_size, options.image_size
    sizes = set()
    for path in paths:
        with suppress(PictureError):  # named when it is decoded
            sizes.add(picture_size_of(path))
    if len(sizes) != 1:
        return DEFAULT_SIZE, DEFAULT_SIZE
    height, width = sizes.pop()
    return height, width // 2 if options.side_by_side else width


def _halves(path: Path, size: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    picture = decode(path)
    middle = picture.shape[1] // 2
    if middle == 0:
        raise PictureError(path, "is one pixel wide")
    halves = picture[:, :middle], picture[:, middle : 2 * middle]
    return tuple(np.array(resize_picture(Image.fromarray(half), size)) for half in halves)


def _split_of(
    name: str,
    pairs: Sequence[Pair],
    row_of: Mapping[Domain, Mapping[Path, int]],
    stored: Mapping[Domain, NDArray[np.uint8]],
    recurring: bool,
) -> Split:
    """The split of pairs whose pictures are rows of `stored`, (N, H, W, 3) in each domain."""
    labelled = any(pair.label is not None for pair in pairs)
    sides, indices = {}, []
    for domain in DOMAINS:
        wanted = [row_of[domain][pair.files[domain]] for pair in pairs]
        rows, first, inverse = np.unique(wanted, return_index=True, return_inverse=True)
        indices.append(inverse)
        named: Domain = domain if recurring else "x"  # partners share their id
        sides[domain] = Side(
            stored[domain] if len(rows) == len(stored[domain]) else stored[domain][rows],
            distinct([f"{name}/{pairs[i].names[named]}" for i in first]),
            [pairs[i].label or "" for i in first] if labelled else None,
        )
    factors = {
        factor: np.array([pair.factors[factor] for pair in pairs]) for factor in pairs[0].factors
    }
    return Split(sides["x"], sides["y"], factors, np.stack(indices, 1) if recurring else None)


# ---- tables


def is_manifest(path: Path) -> bool:
    """Whether `path` is named as a table."""
    return path.suffix.lower() in (".csv", ".tsv")


def pictures_of(manifest: Path) -> list[Path]:
    """The pictures that a table names; none where it cannot be read."""
    with suppress(IiaeError):
        return [path for _, pair in _rows(manifest, []) for path in pair.files.values()]
    return []


def _plan_manifest(manifest: Path, options: PrepareOptions) -> Plan:
    skipped: list[str] = []
    rows = list(_rows(manifest, skipped))
    if not rows:
        raise IiaeError(f"{manifest} names no pair", skipped[0] if skipped else _HINT)
    if any(split for split, _ in rows):
        pairs = {name: [pair for split, pair in rows if split == name] for name in SPLITS}
    else:
        pairs = divide([pair for _, pair in rows], options)
    plan = _plan_files(pairs, options, skipped)
    return replace(plan, attributes={**plan.attributes, "source_sha256": sha256_of(manifest)})


def _rows(manifest: Path, skipped: list[str]) -> Iterator[tuple[str, Pair]]:
    """(split, or nothing; pair) of every usable row, its pictures unread; the others are noted."""
    lines: dict[tuple[Path, ...], int] = {}
    labels: dict[Path, str | None] = {}
    table = _table(manifest, skipped)
    factors = {
        name: _numbers([row[name] for row in table.values()])
        for name in next(iter(table.values()), {})
        if name.startswith(FACTORS)
    }
    for number, (line, row) in enumerate(table.items()):
        files: dict[Domain, Path] = {domain: manifest.parent / row[domain] for domain in DOMAINS}
        key, label = tuple(files.values()), row.get("label")
        split = {"val": "valid"}.get(text := row.get("split", "").lower(), text)
        empty = [name for name, text in row.items() if not text and name not in factors]
        others = [labels[path] for path in key if labels.get(path, label) != label]
        trouble = ""
        if empty:
            trouble = f"{' and '.join(empty)} empty"
        elif split and split not in SPLITS:
            trouble = f"unknown split '{row['split']}' (splits: {', '.join(SPLITS)})"
        elif key in lines:
            trouble = f"the same pair as in line {lines[key]}"
        elif others:
            trouble = f"label '{label}', but '{others[0]}' above for the same picture"
        if trouble:
            skipped.append(f"{manifest}:{line}: {trouble}")
            continue
        lines[key] = line
        labels.update(dict.fromkeys(key, label))
        names = {domain: _name_of(path, manifest.parent) for domain, path in files.items()}
        values = {name.replace("/", "-"): column[number] for name, column in factors.items()}
        yield split, Pair(files, names, label, values)


def _table(manifest: Path, skipped: list[str]) -> dict[int, dict[str, str]]:
    """The cells of known columns by line; a missing one is empty, a row with too many is noted."""
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    rows = {}
    with reading(manifest, _HINT), manifest.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter=delimiter, restval="", strict=True)
        table.fieldnames = columns = [name.strip().lower() for name in table.fieldnames or ()]
        for column in DOMAINS:
            if columns.count(column) != 1:
                raise IiaeError(f"{manifest} needs one column '{column}'", _HINT)
        plain = ("x", "y", "split", "label")
        known = [name for name in columns if name in plain or name.startswith(FACTORS)]
        for row in table:
            if table.restkey in row:
                skipped.append(f"{manifest}:{table.line_num}: more cells than columns")
            else:
                rows[table.line_num] = {name: row[name].strip() for name in known}
    return rows


def _numbers(texts: list[str]) -> Sequence[float | str]:
    """Integers where all are; floats, NaN for an empty text, where all others are; or texts."""
    with suppress(ValueError, OverflowError):
        whole: list[int] = np.array(texts).astype(np.int64).tolist()
        return whole
    with suppress(ValueError):
        return [float(text) if text else math.nan for text in texts] if any(texts) else texts
    return texts


def _name_of(path: Path, folder: Path) -> str:
    """A name from a path, without what leads out of a folder."""
    inner = path.relative_to(folder) if path.is_relative_to(folder) else path
    parts = (inner.parent / inner.stem).parts
    return "/".join(part for part in parts if part not in (inner.anchor, ".."))
