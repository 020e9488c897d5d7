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
from iiae_cli.data import hdf5
from iiae_cli.data.blocks import Part
from iiae_cli.inference.trained import Array, Encoded, LatentKind
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.runs import LoadedModel

SCHEMA = "iiae.latents/2"
KINDS: tuple[LatentKind, ...] = ("shared", "exclusive")
ARRAYS = ("shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar")
REMEDY = "encode again: iiae encode INPUT --domain x|y -o FILE.h5"


@dataclass(frozen=True)
class LatentFormat:
    """Which parts of a model's posteriors a cache keeps."""

    kinds: tuple[LatentKind, ...] = KINDS
    logvar: bool = False
    dtype: str = "float32"  # or float16

    def stored(self, encoded: Encoded, ids: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns the arrays in their stored type; raises IiaeError if a value does not fit it."""
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
    metric: str = "euclidean"  # the configured distance between shared means
    # {"data": FILE, "split": NAME}, {"features": FILE}, or {"pictures": true} if ids are paths
    source: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)  # a line for every input left out

    @classmethod
    def head_of(cls, loaded: LoadedModel, domain: Domain, source: dict[str, Any]) -> LatentCache:
        """Returns an empty cache of a run's model."""
        model, preset = loaded.model, loaded.details.get("preset") or ""
        settings = loaded.fingerprint, model.shared_shape, preset, loaded.metric, source
        return cls(Encoded(), [], None, domain, *settings)

    @property
    def shared(self) -> Array:
        """Means (N, S) of the shared latents, a map flattened as (C, H, W)."""
        return self.encoded.mean("shared")

    @property
    def exclusive(self) -> Array:
        """Means (N, E) of the exclusive latents; raises IiaeError if there are none."""
        return self.encoded.mean("exclusive")

    def means(self, kind: LatentKind) -> Array:
        """Returns the means of one kind; raises IiaeError if there are none."""
        return self.encoded.mean(kind)

    def attributes(self) -> dict[str, Any]:
        """Returns the file's attributes, as JSON."""
        names = ("fingerprint", "domain", "shared_shape", "preset", "metric", "source")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path | str, form: LatentFormat | None = None) -> None:
        """Writes a cache of the means, atomically, for `retrieve --index` and `Model.retrieve`."""
        arrays = (form or LatentFormat()).stored(self.encoded, self.ids)
        texts = {"ids": self.ids, "labels": self.labels}
        write_stream(Path(path), self.attributes(), texts, [arrays])


def write_stream(
    path: Path,
    head: Mapping[str, Any],
    texts: Mapping[str, Sequence[str] | None],
    blocks: Iterable[Mapping[str, NDArray[Any]]],
    *,
    folder: Path | None = None,
) -> None:
    """Writes a cache, atomically, with one block of its arrays in memory at a time.

    `texts` are ids (N,), and labels (N,) and skipped (K,) if any. The temporary file is in
    `folder`, else beside `path`.
    """
    count, done = len(texts["ids"] or ()), 0
    with writing(path, folder=folder) as temporary, hdf5.new_hdf5(temporary) as file:
        file.attrs["schema"] = SCHEMA
        file.attrs["versions"] = json.dumps({"iiae": __version__, "h5py": h5py.__version__})
        for name, value in head.items():
            if name in ("shared_shape", "part"):
                file.attrs[name] = np.asarray(value, np.int64)
            else:
                file.attrs[name] = value if isinstance(value, str) else json.dumps(value)
        # Held until the file is closed, as freeing a dataset writes its buffer.
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
                hdf5.write_column(file, name, column or ())


class StoredRows:
    """Rows (N, S) of a cache, read in slices."""

    def __init__(self, path: Path, data: h5py.Dataset) -> None:
        self._path, self._data = path, data
        self.shape: tuple[int, ...] = data.shape
        if data.ndim != 2 or not data.shape[1] or data.dtype.kind != "f":
            raise ValueError(f"{data.name} holds no (N, S) numbers")

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        with reading(self._path, REMEDY):
            values: NDArray[Any] = self._data[rows]
            if not np.isfinite(values).all():
                raise ValueError(f"{self._data.name} holds values that are not finite")
            return values


class Gallery:
    """A latent cache whose rows stay on disk and are read in slices.

    `head` is the cache without rows. `job` is what made it; of a shard, `part` says which, and
    `total` is the number of blocks of the whole job. Raises IiaeError if the file is missing,
    damaged, or of another schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part, self.total = None, 0
        with reading(path, REMEDY):
            file = hdf5.read_only(path)
            hdf5.check_schema(file, path, SCHEMA, REMEDY)
            arrays = {name: hdf5.dataset(file, name.replace("_", "/")) for name in ARRAYS}
            self._rows = {
                name: StoredRows(path, data) for name, data in arrays.items() if data is not None
            }
            self.head = _head(file)
            self.job = dict(json.loads(hdf5.text_attribute(file, "job", "{}")))
            if "part" in file.attrs:
                index, count, self.total = map(int, file.attrs["part"])
                self.part = Part(index, count)
            lengths = {len(self.head.labels or self.head.ids)}
            lengths |= {rows.shape[0] for rows in self._rows.values()}
            if lengths != {len(self)} or (len(self) and not self._rows):
                raise ValueError("its arrays differ in length, or there are none")

    def __len__(self) -> int:
        return len(self.head.ids)

    def means(self, kind: LatentKind) -> StoredRows:
        """Returns the means (N, S) of one kind; raises IiaeError if the cache holds none."""
        if f"{kind}_mean" not in self._rows:
            raise IiaeError(
                f"{self.path} holds no {kind} latents", f"encode with --latents {kind} or both"
            )
        return self._rows[f"{kind}_mean"]

    def blocks(self, size: int = 1 << 14) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields all rows, `size` at a time, as they are stored."""
        for start in range(0, len(self), size):
            yield {name: rows[start : start + size] for name, rows in self._rows.items()}

    def read(self) -> LatentCache:
        """Returns the whole cache, without the list of skipped inputs."""
        with np.errstate(over="ignore"):
            arrays = {name: rows[:].astype(np.float32) for name, rows in self._rows.items()}
        return replace(self.head, encoded=Encoded(**arrays), skipped=[])


def _head(file: h5py.File) -> LatentCache:
    domain, ids = hdf5.text_attribute(file, "domain"), hdf5.read_texts(file, "ids")
    source = dict(json.loads(hdf5.text_attribute(file, "source", "{}")))
    texts = all(isinstance(value, str | bool) for value in source.values())
    if domain not in DOMAINS or not texts or ids is None:
        raise ValueError(f"domain {domain[:80]}, source {str(source)[:80]}, or no ids")
    return LatentCache(
        Encoded(),
        ids,
        hdf5.read_texts(file, "labels"),
        domain,
        hdf5.text_attribute(file, "fingerprint"),
        tuple(int(side) for side in file.attrs["shared_shape"]),
        hdf5.text_attribute(file, "preset", ""),
        hdf5.text_attribute(file, "metric", "euclidean"),
        source,
        hdf5.read_texts(file, "skipped") or [],
    )


def made_by(path: Path) -> tuple[str, str] | None:
    """Returns fingerprint and domain of a latent cache; None for any other file."""
    try:
        with reading(path, REMEDY), hdf5.read_only(path) as file:
            if hdf5.text_attribute(file, "schema", "none") != SCHEMA:
                return None
            return hdf5.text_attribute(file, "fingerprint", ""), hdf5.text_attribute(
                file, "domain", ""
            )
    except IiaeError:
        return None
