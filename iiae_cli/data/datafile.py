"""The prepared data file (HDF5, schema `iiae.data/1`): self-describing, readable with h5py alone.

Per split `train`, `valid`, `test` (a set with nothing to spare for validation has an empty `valid`):

    /SPLIT/x, /SPLIT/y            (N, H, W, C) uint8 pictures, or (N, F) float32 features
    /SPLIT/x_ids, /SPLIT/y_ids    (N,) UTF-8
    /SPLIT/x_labels, …/y_labels   (N,) UTF-8, where classes are known
    /SPLIT/factors/NAME           (N, …) generative factors of each pair, numbers or UTF-8, where known
    /SPLIT/pairs                  (M, 2) rows of x and y, where pictures recur in many pairs

and /skipped (K,) UTF-8, a line for every input that was left out.

Rows of x and y belong together one by one, or as `pairs` says. Where the attribute `alignment` is `class`, they belong
together by their labels alone, and the two domains may differ in length; a file whose domains differ in length and have
labels is read so too.

Arrays are stored contiguously, so that a split larger than memory can be mapped instead of read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.data.hdf5 import (
    DAMAGED,
    TEXT,
    check_schema,
    damage,
    dataset,
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
from iiae_cli.data.hdf5 import free_memory as _free_memory
from iiae_cli.data.late_rows import LateRows
from iiae_cli.model import DOMAINS, Domain

SCHEMA = "iiae.data/1"
PART_SCHEMA = "iiae.data-part/1"  # of what `iiae prepare --shard` writes, see `prepare.part_files`
SPLITS = ("train", "valid", "test")
SplitName: TypeAlias = Literal["train", "valid", "test"]
Rows: TypeAlias = NDArray[Any]

_CHECKED = 65_536  # rows of features looked at together


@dataclass
class Side:
    """One domain of a split.

    Attributes:
        rows: pictures (N, H, W, C) uint8 or features (N, F) float32. They may be a memory map: index them with slices
            or ascending integers.
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


class StoredRows:
    """Rows of a dataset in an HDF5 file, read by slices; nothing else of the file is touched.

    Args:
        path: the file, kept open.
        name: of the dataset.
        remedy: hint for a file that turns out damaged.
    """

    def __init__(self, path: Path, name: str, remedy: str) -> None:
        self.path = path
        self._remedy = remedy
        self._data: h5py.Dataset = open_hdf5(path, remedy)[name]
        self.shape: tuple[int, ...] = tuple(self._data.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Rows:
        try:
            values: Rows = self._data[rows]
        except DAMAGED as error:
            raise IiaeError(
                f"{self.path} is damaged in {self._data.name}: {error}", self._remedy
            ) from error
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise IiaeError(
                f"{self.path} holds values that are not finite in {self._data.name}", self._remedy
            )
        return values


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
        attributes: said of the file's making: source checksums, command, versions.
        skipped: a line for every input left out.
        folder: for the temporary file; None: beside `path`.
    """
    some = next(iter(splits.values()))
    with writing(path, folder=folder) as temporary, new_hdf5(temporary) as file:
        file.attrs.update(
            {"schema": SCHEMA, "name": name, **{k: printable(v) for k, v in attributes.items()}}
        )
        if skipped:
            write_texts(file, "skipped", skipped)
        for split_name in SPLITS:
            split = splits.get(split_name) or _empty_like(some)
            group = file.create_group(split_name)
            for domain in DOMAINS:
                side = split.side(domain)
                _write_rows(group, domain, side.rows)
                write_texts(group, f"{domain}_ids", side.ids)
                if side.labels is not None:
                    write_texts(group, f"{domain}_labels", side.labels)
            for factor, values in split.factors.items():
                dtype = TEXT if values.dtype.kind in "OU" else None
                group.create_dataset(f"factors/{factor}", data=values, dtype=dtype)
            if split.pairs is not None:
                group.create_dataset("pairs", data=split.pairs)


def _write_rows(group: h5py.Group, name: str, rows: Rows | LateRows) -> None:
    if not isinstance(rows, LateRows):
        group.create_dataset(name, data=rows)
        return
    target = group.create_dataset(name, rows.shape, rows.dtype)
    done = 0
    for block in rows.blocks():
        target[done : done + len(block)] = block
        done += len(block)


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
        self._remedy = "make it again with 'iiae prepare NAME -o FILE.h5 --overwrite'"
        with open_hdf5(self._place, self._remedy) as file:
            _refuse_part(file, path)
            check_schema(file, path, SCHEMA, self._remedy)
            with damage(path, self._remedy):
                groups = self._groups(file)
                shapes = {d: self._shape(groups, d) for d in ("x", "y")}
                counts = {split: len(group["x"]) for split, group in groups.items()}
                pairs = {
                    split: len(rows)
                    for split, group in groups.items()
                    if (rows := dataset(group, "pairs"))
                }
                self.info = DataInfo(
                    name=text_attribute(file, "name", path.stem),
                    shape_x=shapes["x"],
                    shape_y=shapes["y"],
                    counts={split: counts.get(split, 0) for split in SPLITS},
                    pair_counts={split: pairs.get(split, counts.get(split, 0)) for split in SPLITS},
                    attributes=text_attributes(file),
                    by_class=self._by_class(groups, text_attribute(file, "alignment", "")),
                )

    def _groups(self, file: h5py.File) -> dict[str, h5py.Group]:
        groups = {split: found for split in SPLITS if (found := member(file, split)) is not None}
        for split, group in groups.items():
            if not isinstance(group, h5py.Group):
                raise IiaeError(f"{self.path} holds no group at /{split}", self._remedy)
        return groups

    def _by_class(self, groups: dict[str, h5py.Group], alignment: str) -> bool:
        unequal = any(
            len(group["x"]) != len(group["y"]) and member(group, "pairs") is None
            for group in groups.values()
        )
        labelled = all(
            member(group, f"{domain}_labels") is not None
            for group in groups.values()
            for domain in ("x", "y")
        )
        if alignment == "class" and not labelled:
            raise IiaeError(
                f"{self.path} pairs by class, but has rows without labels", self._remedy
            )
        return labelled and (unequal or alignment == "class")

    def _shape(self, groups: dict[str, h5py.Group], domain: str) -> tuple[int, ...]:
        shapes = set()
        for split, group in groups.items():
            data = dataset(group, domain)
            if data is None or data.ndim not in (2, 4):
                raise IiaeError(
                    f"{self.path} holds no pictures (N, H, W, C) or features (N, F) at /{split}/{domain}",
                    self._remedy,
                )
            if data.dtype != (np.uint8 if data.ndim == 4 else np.float32):
                raise IiaeError(
                    f"{self.path} has {data.dtype} values at /{split}/{domain}", self._remedy
                )
            shapes.add(tuple(int(n) for n in data.shape[1:]))
        if len(shapes) != 1:
            raise IiaeError(
                f"{self.path} has no split, or splits of different shapes", self._remedy
            )
        shape = shapes.pop()
        if 0 in shape:
            raise IiaeError(
                f"{self.path} holds rows of shape {shape}, which are empty", self._remedy
            )
        return shape

    def skipped(self) -> list[str]:
        """A line for every input that was left out when the file was made."""
        with (
            open_hdf5(self._place, self._remedy) as file,
            damage(self.path, self._remedy, " in /skipped"),
        ):
            return read_texts(file, "skipped") or []

    def split(self, name: str) -> Split:
        """One split; read at once where it fits in half of the free memory, else memory-mapped.

        Raises:
            IiaeError: the split is unknown, damaged, or rows, ids and labels differ in number.
        """
        if name not in SPLITS:
            raise IiaeError(f"unknown split '{name}'", f"splits: {', '.join(SPLITS)}")
        with (
            open_hdf5(self._place, self._remedy) as file,
            damage(self.path, self._remedy, f" in /{name}"),
        ):
            group = self._groups(file).get(name)
            if group is None:
                raise IiaeError(f"{self.path} has no split '{name}'", f"it has: {', '.join(file)}")
            x, y = (
                Side(
                    _read_or_map(group, domain, self._place),
                    read_texts(group, f"{domain}_ids") or [],
                    read_texts(group, f"{domain}_labels"),
                )
                for domain in DOMAINS
            )
            split = Split(
                x,
                y,
                factors=_factors(group),
                pairs=None
                if member(group, "pairs") is None
                else read_array(group, "pairs").astype(np.int64),
            )
        self._check(name, split)
        return split

    def domain_rows(
        self, name: str, domain: Domain
    ) -> tuple[StoredRows, list[str], list[str] | None]:
        """Rows, ids and labels (where known) of one domain of a split; the rows are read as they are used.

        Raises:
            IiaeError: as `split`.
        """
        if name not in SPLITS:
            raise IiaeError(f"unknown split '{name}'", f"splits: {', '.join(SPLITS)}")
        with (
            open_hdf5(self._place, self._remedy) as file,
            damage(self.path, self._remedy, f" in /{name}"),
        ):
            group = self._groups(file).get(name)
            if group is None:
                raise IiaeError(f"{self.path} has no split '{name}'", f"it has: {', '.join(file)}")
            ids, labels = (read_texts(group, f"{domain}_{what}") for what in ("ids", "labels"))
        rows = StoredRows(self._place, f"{name}/{domain}", self._remedy)
        self._check_count(name, domain, len(rows), ids or [], labels)
        return rows, ids or [], labels

    def _check(self, name: str, split: Split) -> None:
        for domain in DOMAINS:
            side = split.side(domain)
            self._check_count(name, domain, len(side), side.ids, side.labels)
        if split.pairs is not None:
            limits = (len(split.x), len(split.y))
            if (
                split.pairs.ndim != 2
                or split.pairs.shape[1] != 2
                or not _within(split.pairs, limits)
            ):
                raise IiaeError(
                    f"{self.path} has pairs outside its rows in /{name}/pairs", self._remedy
                )
        for factor, column in split.factors.items():
            if column.ndim == 0 or len(column) != split.pair_count:
                raise IiaeError(
                    f"{self.path} has {split.pair_count} pairs but {column.shape} values of factor {factor} in /{name}",
                    self._remedy,
                )

    def _check_count(
        self, name: str, domain: Domain, rows: int, ids: list[str], labels: list[str] | None
    ) -> None:
        for what, values in (("ids", ids), ("labels", labels)):
            if values is not None and len(values) != rows:
                raise IiaeError(
                    f"{self.path} has {rows} rows but {len(values)} {what} in /{name}/{domain}",
                    self._remedy,
                )


def _refuse_part(file: h5py.File, path: Path) -> None:
    with damage(path, "make it again: iiae prepare …"):
        if text_attribute(file, "schema", "none") == PART_SCHEMA:
            raise IiaeError(
                f"{path} is one shard of a data set",
                "join all shards first: iiae prepare SHARD.h5… --merge -o FILE.h5",
            )


def _within(pairs: NDArray[np.int64], limits: tuple[int, int]) -> bool:
    return len(pairs) == 0 or bool(
        pairs.min() >= 0 and pairs[:, 0].max() < limits[0] and pairs[:, 1].max() < limits[1]
    )


def _factors(group: h5py.Group) -> dict[str, Rows]:
    factors = member(group, "factors")
    if factors is not None and not isinstance(factors, h5py.Group):
        raise ValueError("factors is no group")
    return {} if factors is None else {name: _factor(factors, name) for name in factors}


def _factor(factors: h5py.Group, name: str) -> Rows:
    data = member(factors, name)
    if isinstance(data, h5py.Dataset) and h5py.check_string_dtype(data.dtype) is not None:
        return np.array(read_texts(factors, name), object)
    return read_array(factors, name)


def _read_or_map(group: h5py.Group, name: str, path: Path) -> Rows:
    """The array in memory, or a read-only memory map where it would take more than half of the free memory."""
    data = dataset(group, name)
    if data is None:
        raise ValueError(f"{name} is missing")
    offset = data.id.get_offset()
    if data.nbytes > _free_memory() // 2 and offset is not None:
        values: Rows = np.memmap(path, dtype=data.dtype, mode="r", offset=offset, shape=data.shape)
    else:
        refuse_beyond_memory(data)
        values = data[()]
    for start in range(0, len(values), _CHECKED) if values.dtype.kind == "f" else ():
        if not np.isfinite(values[start : start + _CHECKED]).all():
            raise ValueError(f"{data.name} holds values that are not finite")
    return values


def sha256_of(*paths: Path) -> str:
    """One hex digest over the contents of files, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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


def versions_json() -> str:
    """`versions()` as one JSON text."""
    return json.dumps(versions(), sort_keys=True)
