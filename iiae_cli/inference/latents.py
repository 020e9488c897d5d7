"""The latent cache (HDF5, schema `iiae.latents/2`): encoded pictures, self-describing.

    /shared/mean (N, S) [/shared/logvar], /exclusive/mean (N, E) [/exclusive/logvar]
    /ids (N) UTF-8, /labels (N) UTF-8 where known, /skipped (K) UTF-8: a line per unreadable input

Attributes: schema, fingerprint (of the model's weights), domain, shared_shape, preset, metric,
source (JSON: the files the rows came from, for montages), versions; from `iiae encode` also job
(JSON: everything that decides the values), and of a shard part (its number, of how many, and the
blocks of the whole job).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli import __version__
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, writing
from iiae_cli.data.blocks import Part
from iiae_cli.data.hdf5 import (
    check_schema,
    dataset,
    new_hdf5,
    read_only,
    read_texts,
    text_attribute,
    text_column,
    write_column,
)
from iiae_cli.inference.trained import Array, Encoded, LatentKind
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.runs import LoadedModel

SCHEMA = "iiae.latents/2"
KINDS: tuple[LatentKind, ...] = ("shared", "exclusive")
ARRAYS = ("shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar")
REMEDY = "encode again: iiae encode INPUT --domain x|y -o FILE.h5"


@dataclass
class LatentCache:
    """Latents of N pictures of one domain."""

    encoded: Encoded
    ids: list[str]  # (N,)
    labels: list[str] | None  # (N,) class names, where known
    domain: Domain
    fingerprint: str  # of the model that encoded them
    shared_shape: tuple[int, ...]  # of one shared latent
    preset: str = ""
    metric: str = "euclidean"  # that the model's configuration compares shared means by
    # {"data": FILE, "split": NAME}, {"features": FILE}, or {"pictures": true} if ids are paths
    source: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)  # a line for every input left out

    @property
    def shared(self) -> Array:
        """Means (N, S) of the shared latents, a map flattened as (C, H, W)."""
        return self.encoded.mean("shared")

    @property
    def exclusive(self) -> Array:
        """Means (N, E) of the exclusive latents; raises IiaeError if there are none."""
        return self.encoded.mean("exclusive")

    def save(self, path: Path | str) -> None:
        """Writes the means to a file, which `retrieve --index` and `Model.retrieve` take."""
        write_latents(Path(path), self)

    # ---- as a gallery, like `Gallery`

    @property
    def head(self) -> LatentCache:
        """What describes all rows."""
        return self

    def means(self, kind: LatentKind) -> Array:
        """Returns the means (N, S) of one kind; raises IiaeError if there are none."""
        return self.encoded.mean(kind)

    def columns(self) -> dict[str, list[str]]:
        """Returns ids, labels where known, and a line for every input left out."""
        return {"ids": self.ids, "labels": self.labels or [], "skipped": self.skipped}

    @classmethod
    def head_of(cls, loaded: LoadedModel, domain: Domain, source: dict[str, Any]) -> LatentCache:
        """Returns the cache of a run's model before there are rows."""
        model, preset = loaded.model, loaded.details.get("preset") or ""
        settings = loaded.fingerprint, model.shared_shape, preset, loaded.metric, source
        return cls(Encoded(), [], None, domain, *settings)

    def attributes(self) -> dict[str, Any]:
        """Returns the file's attributes, as JSON."""
        names = ("fingerprint", "domain", "shared_shape", "preset", "metric", "source")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class LatentFormat:
    """What a cache keeps of a model's posteriors."""

    kinds: tuple[LatentKind, ...] = KINDS
    logvar: bool = False
    dtype: str = "float32"  # or float16

    def stored(self, encoded: Encoded, ids: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns the arrays as they are written; raises IiaeError if one cannot be."""
        arrays: dict[str, NDArray[Any]] = {}
        for name in ARRAYS:
            kind, _, part = name.partition("_")
            values: NDArray[Any] | None = getattr(encoded, name)
            if values is None or kind not in self.kinds or not (self.logvar or part == "mean"):
                continue
            with np.errstate(over="ignore"):
                arrays[name] = values.astype(self.dtype, copy=False)
            for row in np.flatnonzero(~np.isfinite(arrays[name]).all(axis=1)).tolist():
                raise IiaeError(
                    f"{name} of {ids[row]} is not finite, or beyond what {self.dtype} can hold",
                    "check this input and the run, or pass --dtype float32",
                )
        return arrays


def write_latents(path: Path, cache: LatentCache, form: LatentFormat | None = None) -> None:
    """Writes a cache, atomically; an existing file is replaced."""
    arrays = (form or LatentFormat()).stored(cache.encoded, cache.ids)
    texts = {"ids": cache.ids, "labels": cache.labels}
    write_stream(path, cache.attributes(), texts, [arrays])


def write_stream(
    path: Path,
    head: Mapping[str, Any],
    texts: Mapping[str, Sequence[str] | None],
    blocks: Iterable[Mapping[str, NDArray[Any]]],
    *,
    folder: Path | None = None,
) -> None:
    """Writes a cache, atomically, with one block of its arrays in memory at a time.

    `texts` are ids (N,), and labels (N,) and skipped (K,) if any. The temporary file lies in
    `folder`, else beside `path`.
    """
    count, done = len(texts["ids"] or ()), 0
    with writing(path, folder=folder) as temporary, new_hdf5(temporary) as file:
        file.attrs["schema"] = SCHEMA
        file.attrs["versions"] = json.dumps({"iiae": __version__, "h5py": h5py.__version__})
        for name, value in head.items():
            if name in ("shared_shape", "part"):
                file.attrs[name] = np.asarray(value, np.int64)
            else:
                file.attrs[name] = value if isinstance(value, str) else json.dumps(value)
        # Held until the file is closed: a dataset that is let go of writes what it has buffered.
        targets: dict[str, h5py.Dataset] = {}
        for block in blocks:
            for name, values in block.items():
                if name not in targets:
                    shape = (count, values.shape[1])
                    targets[name] = file.create_dataset(name.replace("_", "/"), shape, values.dtype)
                targets[name][done : done + len(values)] = values
            done += len(next(iter(block.values())))
        for name, column in texts.items():
            if column or name == "ids":
                write_column(file, name, column or ())


class StoredRows:
    """Rows (N, S) of a cache, read in slices."""

    def __init__(self, path: Path, data: h5py.Dataset) -> None:
        self._path, self._data = path, data
        self.shape: tuple[int, ...] = data.shape

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        with reading(self._path, REMEDY):
            values: NDArray[Any] = self._data[rows]
            if not np.isfinite(values).all():
                raise ValueError(f"{self._data.name} holds values that are not finite")
            return values


class Gallery:
    """A latent cache that stays on disk, its rows read in slices.

    `head` is a cache without rows. `job` is what made the cache, and `skipped` has a line for every
    input left out. Of a shard, `part` says which, and `total` is the number of blocks of the whole
    job. Raises IiaeError if the file is missing, damaged, or of another schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, REMEDY):
            self._file = file = read_only(path)
            check_schema(file, path, SCHEMA, REMEDY)
            ids, labels = text_column(file, "ids"), text_column(file, "labels")
            arrays = {name: dataset(file, name.replace("_", "/")) for name in ARRAYS}
            self._arrays = {name: data for name, data in arrays.items() if data is not None}
            if ids is None or (len(ids) and not self._arrays):
                raise ValueError("it has no ids or no latents")
            for data in self._arrays.values():
                if data.ndim != 2 or 0 in data.shape[1:] or data.dtype.kind != "f":
                    raise ValueError(f"{data.name} holds no (N, S) numbers")
            columns = (ids, labels, *self._arrays.values())
            if {len(data) for data in columns if data is not None} != {len(ids)}:
                raise ValueError("its arrays differ in length")
            self.job = dict(json.loads(text_attribute(file, "job", "{}")))
            self.skipped = read_texts(file, "skipped") or []
            self.part, self.total = None, 0
            if "part" in file.attrs:
                index, count, self.total = map(int, file.attrs["part"])
                if not 0 <= index < count:
                    raise ValueError(f"there is no shard {index} of {count}")
                self.part = Part(index, count)
            self.head = _head(file)
            self._size = len(ids)

    def __len__(self) -> int:
        return self._size

    def means(self, kind: LatentKind) -> StoredRows:
        """Returns the means (N, S) of one kind; raises IiaeError if the cache holds none."""
        if f"{kind}_mean" not in self._arrays:
            raise IiaeError(
                f"{self.path} holds no {kind} latents", f"encode with --latents {kind} or both"
            )
        return StoredRows(self.path, self._arrays[f"{kind}_mean"])

    def columns(self) -> dict[str, list[str]]:
        """Returns all ids, all labels where known, and a line for every input left out."""
        with reading(self.path, REMEDY):
            names = ("ids", "labels", "skipped")
            return {name: read_texts(self._file, name) or [] for name in names}

    def blocks(self, size: int = 1 << 14) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields `size` rows of all arrays, as they are stored, and the next ones."""
        for start in range(0, self._size, size):
            part = slice(start, start + size)
            yield {name: StoredRows(self.path, data)[part] for name, data in self._arrays.items()}

    def read(self) -> LatentCache:
        """Returns the whole cache."""
        with np.errstate(over="ignore"):
            rows = {name: StoredRows(self.path, data)[:] for name, data in self._arrays.items()}
            arrays = {name: values.astype(np.float32) for name, values in rows.items()}
        texts = self.columns()
        ids, labels = texts["ids"], texts["labels"] or None
        return replace(self.head, encoded=Encoded(**arrays), ids=ids, labels=labels)


def _head(file: h5py.File) -> LatentCache:
    domain = text_attribute(file, "domain")
    source = dict(json.loads(text_attribute(file, "source", "{}")))
    texts = all(isinstance(value, str | bool) for value in source.values())
    if domain not in DOMAINS or not texts:
        raise ValueError(f"domain {domain[:80]}, source {str(source)[:80]}")
    return LatentCache(
        Encoded(),
        [],
        None,
        domain,
        text_attribute(file, "fingerprint"),
        tuple(int(side) for side in file.attrs["shared_shape"]),
        text_attribute(file, "preset", ""),
        text_attribute(file, "metric", "euclidean"),
        source,
    )


def is_gallery(path: Path, fingerprint: str, queries: Domain | None) -> bool:
    """Returns whether a file is a whole cache of this model, of another domain than `queries`."""
    try:
        head = Gallery(path).head
    except IiaeError:
        return False
    return head.fingerprint == fingerprint and head.domain != queries


def is_latent_cache(path: Path) -> bool:
    """Returns whether a file is readable HDF5 of this schema."""
    try:
        with reading(path, REMEDY), read_only(path) as file:
            return text_attribute(file, "schema", "none") == SCHEMA
    except IiaeError:
        return False
