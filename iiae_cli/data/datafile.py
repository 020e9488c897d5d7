"""The prepared data file (HDF5, schema `iiae.data/2`): self-describing, readable with h5py alone.

Per split `train`, `valid`, `test` (`valid` may be empty):

    /SPLIT/x, /SPLIT/y            (N, H, W, C) uint8 pictures, or (N, F) float32 features
    /SPLIT/x_ids, /SPLIT/y_ids    (N,) UTF-8 of fixed length, like all texts
    /SPLIT/x_labels, …/y_labels   (N,) UTF-8, where classes are known
    /SPLIT/factors/NAME           (N, …) generative factors of each pair, numbers or UTF-8
    /SPLIT/pairs                  (M, 2) rows of x and y, where pictures recur in many pairs

and /skipped (K,) UTF-8, a line for every input that was left out.

Rows of x and y belong together one by one, or as `pairs` says. Where the attribute `alignment` is
`class`, they belong together by their labels alone, and the two domains may differ in length; a
file whose domains differ in length and have labels is read so too. Arrays are stored contiguously,
so that a split larger than memory can be mapped instead of read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.data.blocks import PART_SCHEMA
from iiae_cli.data.hdf5 import (
    check_schema,
    dataset,
    free_memory,
    member,
    new_hdf5,
    open_hdf5,
    printable,
    read_array,
    read_texts,
    refuse_beyond_memory,
    text_attribute,
    text_attributes,
    write_texts,
)
from iiae_cli.model import DOMAINS, Domain

SPLITS = ("train", "valid", "test")
SplitName: TypeAlias = Literal["train", "valid", "test"]
Rows: TypeAlias = NDArray[Any]


@dataclass
class Side:
    """One domain of a split.

    Attributes:
        rows: pictures (N, H, W, C) uint8 or features (N, F) float32. They may be a memory map:
            index them with slices or ascending integers.
        ids: a name for every row, unique in the split; partners of a paired set share theirs.
        labels: the class of every row, where known.
    """

    rows: Rows
    ids: list[str]
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: NDArray[np.int64]) -> Side:
        """These rows alone, in this order."""
        return Side(
            self.rows[indices],
            [self.ids[row] for row in indices],
            None if self.labels is None else [self.labels[row] for row in indices],
        )


@dataclass
class Split:
    """The two sides of a split, and which of their rows belong together.

    Attributes:
        x: pictures or features of domain x, their ids and labels.
        y: the same of domain y.
        factors: generative factors by name, one entry per pair, (M, …).
        pairs: (M, 2) rows of x and y; None where row i of x belongs to row i of y.
    """

    x: Side
    y: Side
    factors: dict[str, Rows] = field(default_factory=dict)
    pairs: NDArray[np.int64] | None = None

    def side(self, domain: Domain) -> Side:
        """The side of one domain."""
        return self.x if domain == "x" else self.y

    @property
    def pair_count(self) -> int:
        """Number of pairs M."""
        return len(self.x) if self.pairs is None else len(self.pairs)

    def pair_rows(self, indices: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """x and y rows of pairs (B,), each (B, …)."""
        rows_x, rows_y = self._rows_of(indices)
        return self.x.rows[rows_x], self.y.rows[rows_y]

    def take(self, rows_x: NDArray[np.int64], rows_y: NDArray[np.int64]) -> Split:
        """The split of these rows alone, in this order, without factors and pairs."""
        return Split(self.x.take(rows_x), self.y.take(rows_y))

    def take_pairs(self, indices: NDArray[np.int64]) -> Split:
        """The split of these pairs alone, in this order; its rows are aligned."""
        taken = self.take(*self._rows_of(indices))
        taken.factors = {name: values[indices] for name, values in self.factors.items()}
        return taken

    def _rows_of(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.pairs is None:
            return indices, indices
        return self.pairs[indices, 0], self.pairs[indices, 1]


@dataclass(frozen=True)
class DataInfo:
    """What a model needs to know of a data file.

    Attributes:
        name: of the data set.
        shape_x: (H, W, C) of a picture of x, or (F,) of a feature vector; `shape_y` likewise.
        counts: rows of x per split.
        attributes: everything the file says of its making.
        by_class: whether x and y belong together by class rather than one by one.
        pair_counts: pairs per split, other than `counts` where pictures recur.
    """

    name: str
    shape_x: tuple[int, ...]
    shape_y: tuple[int, ...]
    counts: dict[str, int]
    attributes: dict[str, str]
    by_class: bool = False
    pair_counts: dict[str, int] = field(default_factory=dict)

    @property
    def is_features(self) -> bool:
        """Whether rows are feature vectors rather than pictures."""
        return len(self.shape_x) == 1


def normalise_class(name: str) -> str:
    """A class name as the published lists spell it: `hot-air balloon` → `hot_air_balloon`."""
    return name.strip().replace("-", "_").replace(" ", "_")


def class_list_hash(names: Iterable[str]) -> str:
    """SHA-256 in hex over the sorted distinct names, joined by newlines, UTF-8."""
    return hashlib.sha256("\n".join(sorted({*names})).encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """Classes that some weights were trained on, sorted."""

    classes: tuple[str, ...] = ()
    complete: bool = True  # there are no others; not known of features and weights of others

    def and_also(self, classes: Iterable[str]) -> Seen:
        """The same after training on more classes."""
        return Seen(tuple(sorted({*self.classes, *classes})), self.complete)

    def among(self, test_classes: Iterable[str]) -> list[str]:
        """The test classes that were seen, whichever spelling."""
        seen = {normalise_class(name) for name in self.classes}
        return sorted(name for name in set(test_classes) if normalise_class(name) in seen)

    def leak(self, test_classes: Iterable[str]) -> list[str] | None:
        """The test classes that were seen; None where that is unknown."""
        found = self.among(test_classes)
        return found if found or self.complete else None

    def to_json(self) -> dict[str, Any]:
        """`classes_seen`: a list, or None where nothing is known; `classes_seen_complete`."""
        known = list(self.classes) if self.classes or self.complete else None
        return {"classes_seen": known, "classes_seen_complete": self.complete}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Seen:
        """From what `to_json` returned; unknown where nothing is said."""
        classes = values.get("classes_seen")
        if classes is None:
            return UNKNOWN
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes_seen is no list of names")
        return cls(tuple(sorted(classes)), bool(values.get("classes_seen_complete", True)))

    @classmethod
    def of_header(cls, header: Mapping[str, str]) -> Seen:
        """From the header of a weights file, whose values are JSON."""
        keys = ("classes_seen", "classes_seen_complete")
        return cls.of_json({key: json.loads(header[key]) for key in keys if key in header})

    @classmethod
    def of_data_file(cls, attributes: Mapping[str, str]) -> Seen:
        """From a data file's attribute `backbone`; a damaged one is an error."""
        try:
            return cls.of_json(json.loads(attributes.get("backbone", "{}")))
        except (ValueError, AttributeError, RecursionError) as error:
            raise IiaeError(
                f"the data file's attribute backbone is damaged: {error}",
                "make the file again: iiae prepare …",
            ) from error


NONE_SEEN = Seen()
UNKNOWN = Seen(complete=False)


def refuse_leak(seen: Seen, test_classes: Iterable[str], what: str, allow: bool) -> None:
    """Refuse `what`, weights or features, where it has seen a test class, unless `allow`."""
    found = seen.among(test_classes)
    if found and not allow:
        raise IiaeError(
            f"{what} was trained on {len(found)} of the test classes: {', '.join(found)}",
            "use weights of this split's training classes, or pass --allow-leak: the data file "
            "and its figures say so",
        )


SCHEMA = "iiae.data/2"
_CHECKED = 65_536  # rows of features looked at together
_HINT = "make it again: iiae prepare NAME … --overwrite"


def write_data_file(
    path: Path,
    name: str,
    splits: dict[str, Split],
    attributes: dict[str, str],
    *,
    skipped: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Write a whole data file, atomically.

    Args:
        path: where; an existing file is replaced.
        name: of the data set.
        splits: those of `SPLITS`; absent ones are written empty.
        attributes: what to say of the file's making: source checksums, command, versions.
        skipped: a line for every input left out.
        folder: for the temporary file; None: beside `path`.
    """
    empty = _empty_like(next(iter(splits.values())))
    with writing(path, folder=folder) as temporary, new_hdf5(temporary) as file:
        told = {key: printable(value) for key, value in attributes.items()}
        file.attrs.update({"schema": SCHEMA, "name": name, **told})
        if skipped:
            write_texts(file, "skipped", skipped)
        for split_name in SPLITS:
            _write_split(file.create_group(split_name), splits.get(split_name, empty))


def _write_split(group: h5py.Group, split: Split) -> None:
    for domain in DOMAINS:
        side = split.side(domain)
        group.create_dataset(domain, data=side.rows)
        write_texts(group, f"{domain}_ids", side.ids)
        if side.labels is not None:
            write_texts(group, f"{domain}_labels", side.labels)
    for name, values in split.factors.items():
        factors = group.require_group("factors")
        if values.dtype.kind in "OU":
            write_texts(factors, name, values.tolist())
        else:
            factors.create_dataset(name, data=values)
    if split.pairs is not None:
        group.create_dataset("pairs", data=split.pairs)


def _empty_like(split: Split) -> Split:
    none = np.empty(0, np.int64)
    return replace(
        split.take(none, none),
        factors={name: values[:0] for name, values in split.factors.items()},
        pairs=None if split.pairs is None else split.pairs[:0],
    )


def is_hdf5(path: Path) -> bool:
    """Whether `path` is named as an HDF5 file."""
    return path.suffix.lower() in (".h5", ".hdf5")


class DataFile:
    """A prepared file, opened lazily: `info` reads shapes only, `split` reads or maps arrays.

    Args:
        path: the file, as everything names it.
        copy: a copy of it on a faster disk, which is read in its place.

    Raises:
        IiaeError: missing, damaged, of another schema, or inconsistent in itself.
    """

    def __init__(self, path: Path, copy: Path | None = None) -> None:
        self.path = path
        self._place = copy or path
        with open_hdf5(self._place, _HINT) as file:
            if text_attributes(file).get("schema") == PART_SCHEMA:
                raise IiaeError(
                    f"{path} is one shard of a data set",
                    "join all shards first: iiae prepare SHARD.h5… --merge -o FILE.h5",
                )
            check_schema(file, path, SCHEMA, _HINT)
            groups = {name: _group(file, name) for name in SPLITS if name in file}
            shapes = {domain: _shape(groups, domain) for domain in DOMAINS}
            counts = {name: len(group["x"]) for name, group in groups.items()}
            pairs = {
                name: len(data)
                for name, group in groups.items()
                if (data := dataset(group, "pairs")) is not None
            }
            self.info = DataInfo(
                name=text_attribute(file, "name", path.stem),
                shape_x=shapes["x"],
                shape_y=shapes["y"],
                counts={name: counts.get(name, 0) for name in SPLITS},
                pair_counts={name: pairs.get(name, counts.get(name, 0)) for name in SPLITS},
                attributes=text_attributes(file),
                by_class=_by_class(groups, text_attribute(file, "alignment", "")),
            )

    def skipped(self) -> list[str]:
        """A line for every input that was left out when the file was made."""
        with open_hdf5(self._place, _HINT) as file:
            return read_texts(file, "skipped") or []

    def split(self, name: str) -> Split:
        """One split; read at once where it fits in half of the free memory, else memory-mapped.

        Raises:
            IiaeError: the split is unknown, damaged, or rows, ids and labels differ in number.
        """
        with self._opened(name) as group:
            x, y = (
                Side(_read_or_map(group, domain, self._place), *_texts(group, domain))
                for domain in DOMAINS
            )
            factors = _group(group, "factors") if "factors" in group else {}
            split = Split(x, y, {factor: _factor(factors, factor) for factor in factors})
            if "pairs" in group:
                split.pairs = read_array(group, "pairs").astype(np.int64)
                _check_pairs(split.pairs, (len(x), len(y)))
            for factor, column in split.factors.items():
                if column.shape[:1] != (split.pair_count,):
                    raise ValueError(
                        f"{split.pair_count} pairs but {column.shape} values of factor {factor}"
                    )
        return split

    def domain_rows(self, name: str, domain: Domain) -> tuple[Rows, list[str], list[str] | None]:
        """Rows (mapped where they can be), ids and labels (where known) of one domain of a split.

        Raises:
            IiaeError: as `split`.
        """
        with self._opened(name) as group:
            ids, labels = _texts(group, domain)
            return _read_or_map(group, domain, self._place, most=0), ids, labels

    @contextmanager
    def _opened(self, name: str) -> Iterator[h5py.Group]:
        if name not in SPLITS:
            raise IiaeError(f"unknown split '{name}'", f"splits: {', '.join(SPLITS)}")
        with open_hdf5(self._place, _HINT) as file:
            if name not in file:
                raise IiaeError(f"{self.path} has no split '{name}'", f"it has: {', '.join(file)}")
            yield _group(file, name)


# What follows raises ValueError on damage, inside of `open_hdf5`.


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    group = member(parent, name)
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{name} is no group")
    return group


def _shape(groups: dict[str, h5py.Group], domain: Domain) -> tuple[int, ...]:
    """The shape of a row of a domain, equal in all splits."""
    shapes = set()
    for group in groups.values():
        data = dataset(group, domain)
        if data is None or (data.ndim, data.dtype) not in ((4, np.uint8), (2, np.float32)):
            raise ValueError(
                f"{group.name}/{domain} holds no uint8 pictures (N, H, W, C) "
                "and no float32 features (N, F)"
            )
        shapes.add(tuple(int(size) for size in data.shape[1:]))
    if len(shapes) != 1 or 0 in (shape := shapes.pop()):
        raise ValueError("it has no split, empty rows, or splits of different shapes")
    return shape


def _by_class(groups: dict[str, h5py.Group], alignment: str) -> bool:
    unequal = any(
        len(group["x"]) != len(group["y"]) and "pairs" not in group for group in groups.values()
    )
    labelled = all(f"{d}_labels" in group for group in groups.values() for d in DOMAINS)
    if alignment == "class" and not labelled:
        raise ValueError("it pairs by class, but has rows without labels")
    return labelled and (unequal or alignment == "class")


def _texts(group: h5py.Group, domain: Domain) -> tuple[list[str], list[str] | None]:
    """Ids and labels (where known) of a domain, as many as rows."""
    ids, labels = (read_texts(group, f"{domain}_{what}") for what in ("ids", "labels"))
    for what, texts in (("ids", ids or []), ("labels", labels)):
        if texts is not None and len(texts) != len(group[domain]):
            raise ValueError(
                f"{len(group[domain])} rows but {len(texts)} {what} in {group.name}/{domain}"
            )
    return ids or [], labels


def _check_pairs(pairs: NDArray[np.int64], rows: tuple[int, int]) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not ((pairs >= 0) & (pairs < rows)).all():
        raise ValueError("pairs lie outside its rows")


def _factor(factors: h5py.Group, name: str) -> Rows:
    data = dataset(factors, name)
    if data is not None and data.dtype.kind == "S":
        return np.array(read_texts(factors, name), object)
    return read_array(factors, name)


def _read_or_map(group: h5py.Group, name: str, path: Path, most: int | None = None) -> Rows:
    """The array in memory, or a map where it takes more than `most` bytes [half of the free]."""
    data = dataset(group, name)
    if data is None:
        raise ValueError(f"{name} is missing")
    offset = data.id.get_offset()
    if data.nbytes > (free_memory() // 2 if most is None else most) and offset is not None:
        values: Rows = np.memmap(path, data.dtype, "r", offset, data.shape)
    else:
        refuse_beyond_memory(data)
        values = data[()]
    for start in range(0, len(values), _CHECKED) if values.dtype.kind == "f" else ():
        if not np.isfinite(values[start : start + _CHECKED]).all():
            raise ValueError(f"{data.name} holds values that are not finite")
    return values


def versions() -> dict[str, str]:
    """Versions of what decides an array's bytes, for a file's attributes."""
    import PIL

    from iiae_cli import __version__

    return {
        "iiae": __version__,
        "h5py": h5py.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
