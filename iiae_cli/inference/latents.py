"""Encodes rows into the latent cache (HDF5, schema `iiae.latents/2`), which describes itself.

    /shared/mean (N, S) [/shared/logvar], /exclusive/mean (N, E) [/exclusive/logvar]
    /ids (N) UTF-8, /labels (N) UTF-8 where known, /skipped (K) UTF-8: a line per unreadable input

Attributes: schema, fingerprint (of the model's weights), domain, shared_shape, preset, metric,
source (JSON: the files the rows came from, for montages), versions; from `iiae encode` also job
(JSON: everything that decides the values), and of a shard part (its number, of how many, and the
blocks of the whole job).

A job's rows are divided into numbered blocks of a few batches. One call, a resumed call and shards
make the same blocks, so all run the same batches, and memory holds a few blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from iiae_cli import __version__
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.common.files import writing
from iiae_cli.data import hdf5
from iiae_cli.data.batches import ahead
from iiae_cli.data.blocks import Arrays, BlockStore, Part, PartFile, in_order
from iiae_cli.data.hubs import INPUT_SIZE
from iiae_cli.inference.inputs import Block, Inputs, none_read
from iiae_cli.inference.trained import ARRAYS, KINDS, Array, Encoded, LatentKind, TrainedModel
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.runs import LoadedModel

SCHEMA = "iiae.latents/2"
REMEDY = "encode again: iiae encode INPUT --domain x|y -o FILE.h5"


@dataclass(frozen=True)
class LatentFormat:
    """Which parts of a model's posteriors a cache keeps."""

    kinds: tuple[LatentKind, ...] = KINDS
    logvar: bool = False
    dtype: str = "float32"  # or float16

    def stored(self, encoded: Encoded, ids: Sequence[str]) -> Arrays:
        """Returns the arrays in their stored type; raises IiaeError if a value does not fit it."""
        arrays: Arrays = {}
        kept = [f"{kind}_{part}" for kind in self.kinds for part in ("mean", "logvar")]
        for name in kept if self.logvar else kept[::2]:
            if (values := getattr(encoded, name)) is None:
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
    """Latents of N pictures of one domain; those of a file are memory maps in their stored type."""

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
    job: dict[str, Any] = field(default_factory=dict)  # of `iiae encode`; `total` is its blocks
    part: Part | None = None  # of the job, in a shard
    total: int = 0

    @classmethod
    def head_of(cls, loaded: LoadedModel, domain: Domain, source: dict[str, Any]) -> LatentCache:
        """Returns an empty cache of a run's model."""
        model, preset = loaded.model, loaded.details.get("preset") or ""
        settings = loaded.fingerprint, model.shared_shape, preset, loaded.metric, source
        return cls(Encoded(), [], None, domain, *settings)

    @classmethod
    def read(cls, path: Path) -> LatentCache:
        """Opens a file; raises IiaeError if it is missing, damaged, or of another schema."""
        with hdf5.open_hdf5(path, REMEDY, SCHEMA) as file:
            known = hdf5.text_attributes(file)
            domain, ids = known["domain"], hdf5.read_texts(file, "ids")
            records = (known.get(name, "{}") for name in ("source", "job"))
            source, job = (dict(json.loads(record)) for record in records)
            texts = all(isinstance(value, str | bool) for value in source.values())
            if domain not in DOMAINS or not texts or ids is None:
                raise ValueError(f"domain {domain[:80]}, source {str(source)[:80]}, or no ids")
            cache = cls(
                Encoded(**_arrays(file, len(ids))),
                ids,
                hdf5.read_texts(file, "labels"),
                domain,
                known["fingerprint"],
                tuple(int(side) for side in file.attrs["shared_shape"]),
                known.get("preset", ""),
                known.get("metric", "euclidean"),
                source,
                hdf5.read_texts(file, "skipped") or [],
                job,
            )
            if cache.labels is not None and len(cache.labels) != len(ids):
                raise ValueError(f"{len(ids)} ids but {len(cache.labels)} labels")
            if "part" in file.attrs:
                index, count, cache.total = map(int, file.attrs["part"])
                cache.part = Part(index, count)
        return cache

    @property
    def shared(self) -> Array:
        """Means (N, S) of the shared latents, a map flattened as (C, H, W)."""
        return self.encoded.mean("shared")

    @property
    def exclusive(self) -> Array:
        """Means (N, E) of the exclusive latents; raises IiaeError if there are none."""
        return self.encoded.mean("exclusive")

    def attributes(self) -> dict[str, Any]:
        """Returns what the rows are of."""
        names = ("fingerprint", "domain", "shared_shape", "preset", "metric", "source")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path | str, form: LatentFormat | None = None) -> None:
        """Writes a cache of the means, atomically, for `retrieve --index` and `Model.retrieve`."""
        latents = (form or LatentFormat()).stored(self.encoded, self.ids)
        _write(Path(path), self, lambda: [{**vars(self), **latents}])


def _arrays(file: h5py.File, count: int) -> Arrays:
    arrays = {}
    for name in ARRAYS:
        data = name.replace("_", "/")
        if data in file:
            values = arrays[name] = hdf5.read_or_map(file[data], most=0)
            if values.ndim != 2 or len(values) != count or values.dtype.kind != "f":
                raise ValueError(f"{data} holds no numbers ({count}, S)")
    if count and not any(values.size for values in arrays.values()):
        raise ValueError("it holds no latents")
    return arrays


def _write(
    path: Path,
    head: LatentCache,
    blocks: Callable[[], Iterable[Mapping[str, Any]]],
    folder: Path | None = None,
) -> LatentCache:
    """Writes a cache of blocks of texts and latents, atomically; returns it without latents.

    The blocks are read twice, one in memory at a time.
    """
    head = replace(head, ids=[], labels=[], skipped=[])
    for block in blocks():
        for name in ("ids", "labels", "skipped"):
            getattr(head, name).extend(map(str, _column(block, name)))
    if head.job and head.part is None and not head.ids:
        raise none_read(head.skipped)
    with writing(path, folder=folder) as temporary, hdf5.new_hdf5(temporary) as file:
        _describe(file, head)
        # Held until the file is closed, as freeing a dataset writes its buffer.
        targets: dict[str, h5py.Dataset] = {}
        done = 0
        for block in blocks():
            for name in ARRAYS:
                values = _column(block, name)
                if len(values) == 0:
                    continue
                if name not in targets:
                    shape = (len(head.ids), values.shape[1])
                    targets[name] = file.create_dataset(name.replace("_", "/"), shape, values.dtype)
                targets[name][done : done + len(values)] = values
            done += len(_column(block, "ids"))
    return head


def _column(block: Mapping[str, Any], name: str) -> Any:
    return () if block.get(name) is None else block[name]


def _describe(file: h5py.File, head: LatentCache) -> None:
    """Writes attributes and texts."""
    versions = {"iiae": __version__, "h5py": h5py.__version__}
    attributes = {"schema": SCHEMA, "versions": versions, **head.attributes()}
    if head.job:
        attributes["job"] = json.dumps(head.job, sort_keys=True)
    if head.part is not None:
        attributes["part"] = head.part.index, head.part.count, head.total
    for name, value in attributes.items():
        plain = np.asarray(value, np.int64) if isinstance(value, tuple) else value
        file.attrs[name] = json.dumps(plain) if isinstance(plain, dict) else plain
    hdf5.write_column(file, "ids", head.ids)
    for name, column in (("labels", head.labels), ("skipped", head.skipped)):
        if column:
            hdf5.write_column(file, name, column)


def made_by(path: Path) -> tuple[str, str] | None:
    """Returns fingerprint and domain of a latent cache; None for any other file."""
    with suppress(IiaeError), hdf5.open_hdf5(path, REMEDY, SCHEMA) as file:
        texts = hdf5.text_attributes(file)
        return texts["fingerprint"], texts["domain"]
    return None


# ---- jobs that can be interrupted and divided


@dataclass(frozen=True)
class EncodeJob:
    """Rows, and the model that encodes them."""

    trained: TrainedModel
    inputs: Inputs
    form: LatentFormat
    batch_size: int
    head: LatentCache  # without rows

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        inputs: Inputs,
        domain: Domain,
        form: LatentFormat,
        batch_size: int | None,
    ) -> EncodeJob:
        """Returns the job that encodes inputs; batches [by size] fit into a core's caches."""
        size = loaded.size or (INPUT_SIZE if inputs.source.get("pictures") else None)
        fitting = 256 if size is None else max(8, min(64, (1 << 20) // (size[0] * size[1])))
        head = LatentCache.head_of(loaded, domain, inputs.source)
        return cls(TrainedModel.of(loaded), inputs, form, batch_size or fitting, head)

    @property
    def block_rows(self) -> int:
        """Rows in a block: about a second's work, so that signals are answered soon."""
        return self.batch_size * (4 if self.batch_size >= 64 else 1)

    @property
    def total(self) -> int:
        """Number of blocks."""
        return -(-self.inputs.total // self.block_rows)

    def settings(self) -> dict[str, Any]:
        """Returns everything that decides the values, as JSON; errors name the keys."""
        head = {name.replace("_", " "): value for name, value in self.head.attributes().items()}
        more = {"options": asdict(self.form), "batch size": self.batch_size, "version": __version__}
        settings = {"model": head.pop("fingerprint"), **head, **more, **self.inputs.digests()}
        return dict(json.loads(json.dumps(settings)))

    def rows_of(self, numbers: range) -> range:
        """Returns the positions of the inputs in a range of blocks."""
        stop = min(self.inputs.total, numbers.stop * self.block_rows)
        return range(min(stop, numbers.start * self.block_rows), stop)

    def make(self, store: BlockStore, numbers: range, stop: Stop = NEVER) -> None:
        """Encodes the blocks that the store lacks, reading the next rows meanwhile.

        Raises IiaeError if a block cannot be stored; an interruption keeps finished blocks.
        """
        rows = {number: self.rows_of(range(number, number + 1)) for number in numbers}

        def made(missing: list[int]) -> Iterator[Arrays]:
            read = ahead(lambda n: self.inputs.read(rows[n].start, rows[n].stop), missing)
            return map(self._encoded, read)

        store.fill({number: len(part) for number, part in rows.items()}, made, "encoding", stop)

    def write(self, path: Path, store: BlockStore, part: Part | None = None) -> LatentCache:
        """Writes the cache of the job, or of a part of it, from the store's blocks; returns it.

        Raises IiaeError if no input of the whole job could be read.
        """
        numbers = (part or Part(0, 1)).of(self.total)
        head = replace(self.head, job=dict(store.job), part=part, total=self.total)
        return _write(path, head, lambda: map(store.read, numbers), store.folder)

    def _encoded(self, block: Block) -> Arrays:
        """Returns texts (empty columns left out) and latents."""
        texts = {"ids": block.ids, "labels": block.labels, "skipped": block.skipped}
        arrays: Arrays = {name: np.array(text, np.str_) for name, text in texts.items() if text}
        if block.ids:
            encoded = self.trained.encode(
                block.rows, self.head.domain, self.form.kinds, batch_size=self.batch_size
            )
            arrays |= self.form.stored(encoded, block.ids)
        return arrays


def read_shards(paths: Sequence[str]) -> list[LatentCache]:
    """Returns all shards of a job, in order; raises IiaeError unless each is named once."""
    shards = {Path(path): LatentCache.read(Path(path)) for path in paths}
    files = []
    for path, shard in shards.items():
        if shard.part is None:
            raise IiaeError(f"{path} is not a shard", "name the files that --shard I/N wrote")
        files.append(PartFile(path, shard.part, shard.total, shard.job, {}))
    return [shards[file.path] for file in in_order(files, "iiae encode …")]


def merge(path: Path, shards: Sequence[LatentCache]) -> LatentCache:
    """Writes the cache that these shards make up, in order; otherwise as `EncodeJob.write`."""
    head = replace(shards[0], part=None)
    return _write(path, head, lambda: ({**vars(s), **vars(s.encoded)} for s in shards))
