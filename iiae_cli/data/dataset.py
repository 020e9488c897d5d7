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
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli.errors import IiaeError
from iiae_cli.files import writing

SCHEMA = "iiae.data/1"
SPLITS = ("train", "valid", "test")
SplitName: TypeAlias = Literal["train", "valid", "test"]
Rows: TypeAlias = NDArray[Any]
DomainName: TypeAlias = Literal["x", "y"]
DOMAINS: tuple[DomainName, DomainName] = ("x", "y")

_TEXT = h5py.string_dtype("utf-8")


@dataclass
class Split:
    """One split. `x` and `y` may be memory maps; index them with slices or sorted integer arrays.

    Attributes:
        x: (N, H, W, C) uint8 or (N, F) float32; `y` likewise.
        x_ids: a name for every row, unique in the split; partners of a paired set share theirs.
        labels: class names per domain, where known.
        factors: generative factors by name, one entry per pair, (M, …).
        pairs: (M, 2) rows of x and y; None where row i of x belongs to row i of y.
    """

    x: Rows
    y: Rows
    x_ids: list[str]
    y_ids: list[str]
    x_labels: list[str] | None = None
    y_labels: list[str] | None = None
    factors: dict[str, Rows] = field(default_factory=dict)
    pairs: NDArray[np.int64] | None = None

    def rows(self, domain: DomainName) -> Rows:
        """The pictures or features of one domain."""
        return self.x if domain == "x" else self.y

    def ids(self, domain: DomainName) -> list[str]:
        """The row names of one domain."""
        return self.x_ids if domain == "x" else self.y_ids

    def labels(self, domain: DomainName) -> list[str] | None:
        """The class names of one domain, where known."""
        return self.x_labels if domain == "x" else self.y_labels

    @property
    def pair_count(self) -> int:
        """Number of pairs M."""
        return len(self.x) if self.pairs is None else len(self.pairs)

    def pair_rows(self, indices: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """x and y rows of pairs (B,), each (B, …)."""
        if self.pairs is None:
            return self.x[indices], self.y[indices]
        return self.rows_at(self.pairs[indices])

    def rows_at(self, rows: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """x and y rows (B, …) named by row numbers of x and y (B, 2)."""
        return self.x[rows[:, 0]], self.y[rows[:, 1]]

    def take_rows(self, rows_x: NDArray[np.int64], rows_y: NDArray[np.int64]) -> Split:
        """The split of these rows alone, in this order; factors and pairs, which belong to pairs, are left out."""
        return Split(
            x=self.x[rows_x],
            y=self.y[rows_y],
            x_ids=[self.x_ids[i] for i in rows_x],
            y_ids=[self.y_ids[i] for i in rows_y],
            x_labels=None if self.x_labels is None else [self.x_labels[i] for i in rows_x],
            y_labels=None if self.y_labels is None else [self.y_labels[i] for i in rows_y],
        )

    def take_pairs(self, indices: NDArray[np.int64]) -> Split:
        """The split of these pairs alone, in this order."""
        rows_x = indices if self.pairs is None else self.pairs[indices, 0]
        rows_y = indices if self.pairs is None else self.pairs[indices, 1]
        taken = self.take_rows(rows_x, rows_y)
        return replace(taken, factors={name: values[indices] for name, values in self.factors.items()})


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
        except OSError as error:
            raise IiaeError(f"{self.path} is damaged in {self._data.name}: {error}", self._remedy) from error
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
    with writing(path, folder=folder) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update({"schema": SCHEMA, "name": name, **attributes})
        if skipped:
            file.create_dataset("skipped", data=skipped, dtype=_TEXT)
        for split_name in SPLITS:
            split = splits.get(split_name) or _empty_like(some)
            group = file.create_group(split_name)
            for domain in ("x", "y"):
                group.create_dataset(domain, data=split.rows(domain))
                group.create_dataset(f"{domain}_ids", data=split.ids(domain), dtype=_TEXT)
                labels = split.labels(domain)
                if labels is not None:
                    group.create_dataset(f"{domain}_labels", data=labels, dtype=_TEXT)
            for factor, values in split.factors.items():
                dtype = _TEXT if values.dtype.kind in "OU" else None
                group.create_dataset(f"factors/{factor}", data=values, dtype=dtype)
            if split.pairs is not None:
                group.create_dataset("pairs", data=split.pairs)


def _empty_like(split: Split) -> Split:
    return Split(
        x=split.x[:0],
        y=split.y[:0],
        x_ids=[],
        y_ids=[],
        x_labels=None if split.x_labels is None else [],
        y_labels=None if split.y_labels is None else [],
        factors={name: values[:0] for name, values in split.factors.items()},
        pairs=None if split.pairs is None else split.pairs[:0],
    )


def is_hdf5(path: Path) -> bool:
    """Whether `path` is named as an HDF5 file."""
    return path.suffix.lower() in (".h5", ".hdf5")


def open_hdf5(path: Path, remedy: str) -> h5py.File:
    """Open an HDF5 file for reading.

    Args:
        path: the file.
        remedy: hint for a file that is missing or damaged.

    Raises:
        IiaeError: missing, no permission, truncated, or no HDF5 at all.
    """
    if not path.exists():
        raise IiaeError(f"{path} does not exist", remedy)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if isinstance(error, PermissionError):
            raise IiaeError(f"no permission to read {path}", "check the file's permissions") from error
        reason = "truncated" if "truncated" in str(error) else "not a readable HDF5 file"
        raise IiaeError(f"{path} is {reason}", remedy) from error


def check_schema(file: h5py.File, path: Path, schema: str, remedy: str) -> None:
    """Refuse a file of another schema.

    Raises:
        IiaeError: the `schema` attribute is missing or another one.
    """
    found = file.attrs.get("schema")
    if found != schema:
        raise IiaeError(f"{path} has schema {found or 'none'}, expected {schema}", remedy)


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
            check_schema(file, path, SCHEMA, self._remedy)
            shapes = {d: self._shape(file, d) for d in ("x", "y")}
            self.info = DataInfo(
                name=str(file.attrs.get("name", path.stem)),
                shape_x=shapes["x"],
                shape_y=shapes["y"],
                counts={s: len(file[s]["x"]) if s in file else 0 for s in SPLITS},
                pair_counts={s: len(file[s].get("pairs", file[s]["x"])) if s in file else 0 for s in SPLITS},
                attributes={key: str(value) for key, value in file.attrs.items()},
                by_class=self._by_class(file),
            )

    def _by_class(self, file: h5py.File) -> bool:
        groups = [file[split] for split in SPLITS if split in file]
        unequal = any(len(group["x"]) != len(group["y"]) and "pairs" not in group for group in groups)
        labelled = all(f"{domain}_labels" in group for group in groups for domain in ("x", "y"))
        if file.attrs.get("alignment") == "class" and not labelled:
            raise IiaeError(f"{self.path} pairs by class, but has rows without labels", self._remedy)
        return labelled and (unequal or file.attrs.get("alignment") == "class")

    def _shape(self, file: h5py.File, domain: str) -> tuple[int, ...]:
        shapes = set()
        for split in SPLITS:
            if split in file:
                data = file[split].get(domain) if isinstance(file[split], h5py.Group) else None
                if not isinstance(data, h5py.Dataset) or data.ndim not in (2, 4):
                    raise IiaeError(
                        f"{self.path} holds no pictures (N, H, W, C) or features (N, F) at /{split}/{domain}",
                        self._remedy,
                    )
                if data.dtype != (np.uint8 if data.ndim == 4 else np.float32):
                    raise IiaeError(f"{self.path} has {data.dtype} values at /{split}/{domain}", self._remedy)
                shapes.add(tuple(int(n) for n in data.shape[1:]))
        if len(shapes) != 1:
            raise IiaeError(f"{self.path} has no split, or splits of different shapes", self._remedy)
        return shapes.pop()

    def skipped(self) -> list[str]:
        """A line for every input that was left out when the file was made."""
        with open_hdf5(self._place, self._remedy) as file:
            try:
                return _texts(file, "skipped") or []
            except (OSError, AttributeError, TypeError, ValueError) as error:
                raise IiaeError(f"{self.path} is damaged in /skipped: {error}", self._remedy) from error

    def split(self, name: str) -> Split:
        """One split; read at once where it fits in half of the free memory, else memory-mapped.

        Raises:
            IiaeError: the split is unknown, damaged, or rows, ids and labels differ in number.
        """
        if name not in SPLITS:
            raise IiaeError(f"unknown split '{name}'", f"splits: {', '.join(SPLITS)}")
        with open_hdf5(self._place, self._remedy) as file:
            if name not in file:
                raise IiaeError(f"{self.path} has no split '{name}'", f"it has: {', '.join(file)}")
            group = file[name]
            try:
                split = Split(
                    x=_read_or_map(group["x"], self._place),
                    y=_read_or_map(group["y"], self._place),
                    x_ids=_texts(group, "x_ids") or [],
                    y_ids=_texts(group, "y_ids") or [],
                    x_labels=_texts(group, "x_labels"),
                    y_labels=_texts(group, "y_labels"),
                    factors={k: _factor(v) for k, v in group["factors"].items()} if "factors" in group else {},
                    pairs=group["pairs"][()].astype(np.int64) if "pairs" in group else None,
                )
            except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
                raise IiaeError(f"{self.path} is damaged in /{name}: {error}", self._remedy) from error
        self._check(name, split)
        return split

    def domain_rows(self, name: str, domain: DomainName) -> tuple[StoredRows, list[str], list[str] | None]:
        """Rows, ids and labels (where known) of one domain of a split; the rows are read as they are used.

        Raises:
            IiaeError: as `split`.
        """
        if name not in SPLITS:
            raise IiaeError(f"unknown split '{name}'", f"splits: {', '.join(SPLITS)}")
        with open_hdf5(self._place, self._remedy) as file:
            if name not in file:
                raise IiaeError(f"{self.path} has no split '{name}'", f"it has: {', '.join(file)}")
            try:
                ids, labels = (_texts(file[name], f"{domain}_{what}") for what in ("ids", "labels"))
            except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
                raise IiaeError(f"{self.path} is damaged in /{name}: {error}", self._remedy) from error
        rows = StoredRows(self._place, f"{name}/{domain}", self._remedy)
        self._check_count(name, domain, len(rows), ids or [], labels)
        return rows, ids or [], labels

    def _check(self, name: str, split: Split) -> None:
        for domain in DOMAINS:
            self._check_count(name, domain, len(split.rows(domain)), split.ids(domain), split.labels(domain))
        if split.pairs is not None:
            limits = (len(split.x), len(split.y))
            if split.pairs.ndim != 2 or split.pairs.shape[1] != 2 or not _within(split.pairs, limits):
                raise IiaeError(f"{self.path} has pairs outside its rows in /{name}/pairs", self._remedy)
        for factor, column in split.factors.items():
            if len(column) != split.pair_count:
                raise IiaeError(
                    f"{self.path} has {split.pair_count} pairs but {len(column)} values of factor {factor} in /{name}",
                    self._remedy,
                )

    def _check_count(self, name: str, domain: DomainName, rows: int, ids: list[str], labels: list[str] | None) -> None:
        for what, values in (("ids", ids), ("labels", labels)):
            if values is not None and len(values) != rows:
                raise IiaeError(
                    f"{self.path} has {rows} rows but {len(values)} {what} in /{name}/{domain}", self._remedy
                )


def _within(pairs: NDArray[np.int64], limits: tuple[int, int]) -> bool:
    return len(pairs) == 0 or bool(pairs.min() >= 0 and pairs[:, 0].max() < limits[0] and pairs[:, 1].max() < limits[1])


def _texts(group: h5py.Group, name: str) -> list[str] | None:
    return [str(text) for text in group[name].asstr()[()]] if name in group else None


def _factor(data: h5py.Dataset) -> Rows:
    values: Rows = data.asstr()[()] if h5py.check_string_dtype(data.dtype) is not None else data[()]
    return values


def _read_or_map(data: h5py.Dataset, path: Path) -> Rows:
    """The array in memory, or a read-only memory map where it would take more than half of the free memory."""
    offset = data.id.get_offset()
    if data.nbytes > _free_memory() // 2 and offset is not None:
        return np.memmap(path, dtype=data.dtype, mode="r", offset=offset, shape=data.shape)
    values: Rows = data[()]
    return values


def _free_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    try:
        with Path("/proc/meminfo").open() as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


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

    return {"iiae": __version__, "h5py": h5py.__version__, "numpy": np.__version__, "pillow": PIL.__version__}


def versions_json() -> str:
    """`versions()` as one JSON text."""
    return json.dumps(versions(), sort_keys=True)
