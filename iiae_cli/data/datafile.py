"""The prepared data file (HDF5, schema `iiae.data/2`), whose layout docs/data.md shows; classes.

Rows of x and y are paired one by one, or by `pairs`. If the attribute `alignment` is `class`, or
the domains differ in length and have labels, they are paired by labels alone. Arrays are stored
contiguously, so that a split larger than memory can be mapped instead of read.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import PIL
from numpy.typing import NDArray
from pydantic import TypeAdapter

import iiae_cli
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.data import hdf5
from iiae_cli.model import DOMAINS, Domain

SCHEMA = "iiae.data/2"
SPLITS = ("train", "valid", "test")
Rows: TypeAlias = NDArray[Any]

_HINT = "make it again: iiae prepare NAME … --overwrite (or join shards: --merge)"


# ---- a split in memory


@dataclass
class Side:
    """One domain of a split."""

    # Pictures (N, H, W, C) uint8 or features (N, F) float32, perhaps a memory map: index them with
    # slices or ascending integers.
    rows: Rows
    ids: list[str]  # unique in the split; partners of a paired set share theirs
    labels: list[str] | None = None  # the class of every row, where known

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: NDArray[np.int64]) -> Side:
        """Returns these rows alone, in this order."""
        ids = [self.ids[row] for row in indices]
        labels = None if self.labels is None else [self.labels[row] for row in indices]
        return Side(self.rows[indices], ids, labels)


@dataclass
class Split:
    """The two sides of a split, and their pairs."""

    x: Side
    y: Side
    factors: dict[str, Rows] = field(default_factory=dict)  # by name, one entry per pair (M, …)
    pairs: NDArray[np.int64] | None = None  # (M, 2) rows of x and y; None: row i of both

    def side(self, domain: Domain) -> Side:
        """Returns one domain's side."""
        return self.x if domain == "x" else self.y

    @property
    def pair_count(self) -> int:
        """Number of pairs M."""
        return len(self.x) if self.pairs is None else len(self.pairs)

    @property
    def classes(self) -> list[str]:
        """The classes that both sides have rows of."""
        return sorted({*(self.x.labels or [])} & {*(self.y.labels or [])})

    def take(self, rows_x: NDArray[np.int64], rows_y: NDArray[np.int64]) -> Split:
        """Returns these rows alone, in this order, without factors and pairs."""
        return Split(self.x.take(rows_x), self.y.take(rows_y))

    def take_pairs(self, indices: NDArray[np.int64]) -> Split:
        """Returns these pairs alone, in this order; the rows are aligned."""
        rows_x = rows_y = indices
        if self.pairs is not None:
            rows_x, rows_y = self.pairs[indices].T
        taken = self.take(rows_x, rows_y)
        taken.factors = {name: values[indices] for name, values in self.factors.items()}
        return taken

    def drawn(self, most: int, *, by_class: bool) -> Split:
        """Returns at most so many pairs, or rows of each side, drawn by a fixed seed."""

        def draw(count: int) -> NDArray[np.int64]:
            return np.sort(np.random.default_rng(0).permutation(count)[:most])

        if by_class:
            return self.take(draw(len(self.x)), draw(len(self.y)))
        return self.take_pairs(draw(self.pair_count))


# ---- writing


def write_data_file(
    path: Path,
    name: str,
    splits: dict[str, Split],
    attributes: dict[str, str],
    *,
    skipped: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Writes a data file, atomically, its temporary file in `folder` or beside it.

    Absent splits are written empty; `skipped` has a line for every input left out.
    """
    none = np.empty(0, np.int64)
    empty = next(iter(splits.values())).take(none, none)
    with writing(path, folder=folder) as temporary, hdf5.new_hdf5(temporary) as file:
        file.attrs.update({"schema": SCHEMA, "name": name})
        for key, value in attributes.items():  # bytes of file names may be no UTF-8
            file.attrs[key] = value.encode("utf-8", "backslashreplace").decode()
        if skipped:
            hdf5.write_column(file, "skipped", skipped)
        for split_name in SPLITS:
            _write_split(file.create_group(split_name), splits.get(split_name, empty))


def _write_split(group: h5py.Group, split: Split) -> None:
    for domain in DOMAINS:
        side = split.side(domain)
        hdf5.write_column(group, domain, side.rows)
        hdf5.write_column(group, f"{domain}_ids", side.ids)
        if side.labels is not None:
            hdf5.write_column(group, f"{domain}_labels", side.labels)
    for name, values in split.factors.items():
        hdf5.write_column(group.require_group("factors"), name, values)
    if split.pairs is not None:
        hdf5.write_column(group, "pairs", split.pairs)


def versions() -> dict[str, str]:
    """Returns the versions that decide an array's bytes, for a file's attributes."""
    modules = {"iiae": iiae_cli, "h5py": h5py, "numpy": np, "pillow": PIL}
    return {name: str(module.__version__) for name, module in modules.items()}


# ---- reading


@dataclass(frozen=True)
class DataInfo:
    """The facts about a data file that a model needs."""

    name: str  # of the data set
    shape_x: tuple[int, ...]  # (H, W, C) of a picture of x, or (F,) of a feature vector
    shape_y: tuple[int, ...]
    counts: dict[str, int]  # pairs per split, rows of x if none are listed
    attributes: dict[str, str]  # how the file was made
    by_class: bool = False  # x and y are paired by class, not one by one

    @property
    def is_features(self) -> bool:
        """Whether rows are feature vectors rather than pictures."""
        return len(self.shape_x) == 1


class DataFile:
    """A prepared file, opened lazily: `info` reads shapes only, `split` reads or maps arrays.

    Raises IiaeError if the file is missing, damaged, of another schema, or inconsistent in itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with hdf5.open_hdf5(path, _HINT, SCHEMA) as file:
            attributes = hdf5.text_attributes(file)
            groups = {name: file[name] for name in SPLITS if name in file}
            shape_x, shape_y = (_shape(groups, domain) for domain in DOMAINS)
            counts = dict.fromkeys(SPLITS, 0)
            for name, group in groups.items():
                counts[name] = len(group["pairs" if "pairs" in group else "x"])
            name, by_class = attributes.get("name", path.stem), _by_class(groups, attributes)
            self.info = DataInfo(name, shape_x, shape_y, counts, attributes, by_class)

    def skipped(self) -> list[str]:
        """Returns a line for every input that was left out when the file was made."""
        with hdf5.open_hdf5(self.path, _HINT) as file:
            return hdf5.read_texts(file, "skipped") or []

    def split(self, name: str, most: int | None = None) -> Split:
        """Reads one split; maps domains of more than `most` bytes [half of the free memory]."""
        with hdf5.open_hdf5(self.path, _HINT) as file:
            if name not in file:
                held = ", ".join(split for split in SPLITS if split in file)
                raise IiaeError(f"{self.path} has no split '{name}'", f"it has: {held}")
            group = file[name]
            split = Split(_side(group, "x", most), _side(group, "y", most))
            if "pairs" in group:
                pairs = split.pairs = hdf5.read_column(group["pairs"]).astype(np.int64)
                rows = (len(split.x), len(split.y))
                if pairs.shape[1:] != (2,) or not ((pairs >= 0) & (pairs < rows)).all():
                    raise ValueError("pairs lie outside its rows")
            for factor, values in group.get("factors", {}).items():
                column = split.factors[factor] = hdf5.read_column(values)
                if column.shape[:1] != (split.pair_count,):
                    raise ValueError(f"not one value of factor {factor} for each pair")
        return split


def _side(group: h5py.Group, domain: Domain, most: int | None) -> Side:
    ids, labels = (hdf5.read_texts(group, f"{domain}_{what}") for what in ("ids", "labels"))
    side = Side(hdf5.read_or_map(group[domain], most), ids or [], labels)
    for what, texts in (("ids", side.ids), ("labels", labels)):
        if texts is not None and len(texts) != len(side):
            raise ValueError(f"{len(side)} rows but {len(texts)} {what} in {group[domain].name}")
    return side


def _shape(groups: dict[str, h5py.Group], domain: Domain) -> tuple[int, ...]:
    shapes = set()
    for group in groups.values():
        data = group[domain]
        if (data.ndim, data.dtype) not in ((4, np.uint8), (2, np.float32)):
            kinds = "uint8 pictures (N, H, W, C) or float32 rows (N, F)"
            raise ValueError(f"{group.name}/{domain} holds no {kinds}")
        shapes.add(tuple(int(size) for size in data.shape[1:]))
    if len(shapes) != 1 or 0 in (shape := shapes.pop()):
        raise ValueError("it has no split, empty rows, or splits of different shapes")
    return shape


def _by_class(groups: dict[str, h5py.Group], attributes: dict[str, str]) -> bool:
    alone = [group for group in groups.values() if "pairs" not in group]
    unequal = any(len(group["x"]) != len(group["y"]) for group in alone)
    labelled = all(f"{d}_labels" in group for group in groups.values() for d in DOMAINS)
    stated = attributes.get("alignment") == "class"
    if stated and not labelled:
        raise ValueError("it pairs by class, but has rows without labels")
    return labelled and (unequal or stated)


# ---- classes, and which of them a network has seen

# Published lists of Sketchy's test classes, by name: the paper's split 1, its split 2, and later
# work's. A zero-shot figure means nothing without its list, so each has a hash, too.
_LISTS = Path(__file__).with_name("class_splits.txt").read_text(encoding="utf-8").splitlines()
CLASS_SPLITS = {name: tuple(classes) for name, *classes in map(str.split, _LISTS)}


def nfc(text: str) -> str:
    """Returns a text in Unicode's composed form, in which names are compared."""
    return unicodedata.normalize("NFC", text)


def normalise_class(name: str) -> str:
    """Returns a class name as published lists spell it: `hot-air balloon` → `hot_air_balloon`."""
    return nfc(name).strip().replace("-", "_").replace(" ", "_")


def class_list_hash(names: Iterable[str]) -> str:
    """Returns the SHA-256, in hex, of the sorted distinct names, joined by newlines, in UTF-8."""
    text = "\n".join(sorted({*names}))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Seen:
    """The classes that some weights were trained on, sorted."""

    classes: tuple[str, ...] = ()
    complete: bool = True  # there are no others; unknown for other people's features and weights

    def and_also(self, classes: Iterable[str]) -> Seen:
        """Returns the classes seen after training on more."""
        return Seen(tuple(sorted({*self.classes, *classes})), self.complete)

    def leak(self, test_classes: Iterable[str]) -> list[str] | None:
        """Returns the test classes that were seen, in whichever spelling; None if unknown."""
        seen = {normalise_class(name) for name in self.classes}
        leaked = sorted(name for name in {*test_classes} if normalise_class(name) in seen)
        return leaked or ([] if self.complete else None)

    def to_json(self) -> dict[str, Any]:
        """Returns `classes_seen`, a list, or None if unknown, and `classes_seen_complete`."""
        known = list(self.classes) if self.classes or self.complete else None
        return {"classes_seen": known, "classes_seen_complete": self.complete}

    @classmethod
    def of_data_file(cls, attributes: Mapping[str, str]) -> Seen:
        """Reads `to_json` from a data file's attribute `backbone`; raises if it is damaged."""
        try:
            record = json.loads(attributes.get("backbone", "{}"))
            if record.get("classes_seen") is None:
                return UNKNOWN
            classes = TypeAdapter(tuple[str, ...]).validate_python(record["classes_seen"])
            return cls(classes, bool(record.get("classes_seen_complete", True)))
        except (ValueError, AttributeError, RecursionError) as error:
            raise IiaeError("the data file's attribute backbone is damaged", _HINT) from error


NONE_SEEN = Seen()
UNKNOWN = Seen(complete=False)


def refuse_leak(seen: Seen, test_classes: Iterable[str], what: str, allow: bool) -> None:
    """Raises if `what`, weights or features, has seen a test class, unless `allow`."""
    leaked = seen.leak(test_classes)
    if leaked and not allow:
        message = f"{what} was trained on {len(leaked)} of the test classes: {', '.join(leaked)}"
        raise IiaeError(message, "use weights of this split's training classes, or --allow-leak")
