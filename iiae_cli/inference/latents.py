"""The latent cache (HDF5, schema `iiae.latents/1`): encoded pictures, self-describing.

    /shared/mean (N, S) [/shared/logvar], /exclusive/mean (N, E) [/exclusive/logvar] /ids (N) UTF-8,
    /labels (N) UTF-8 where known, /skipped (K) UTF-8: a line for every input that could not be read

Attributes: schema, fingerprint (of the model's weights), domain, shared_shape, preset, metric,
source (JSON: the files the rows came from, for montages), versions. Of `iiae encode` also: options
(JSON), inputs (a digest of the whole list of inputs), inputs_content (a digest of what was in
them), and in a shard's cache shard (JSON, see `Shard`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli import __version__
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.data.hdf5 import (
    DAMAGED,
    check_schema,
    damage,
    member,
    new_hdf5,
    open_hdf5,
    read_array,
    read_texts,
    text_attribute,
    write_texts,
)
from iiae_cli.inference.trained import Encoded, LatentKind
from iiae_cli.model import DOMAINS, Domain

SCHEMA = "iiae.latents/1"
ARRAYS = ("shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar")
REMEDY = "encode again: iiae encode INPUT --domain x|y -o FILE.h5"


@dataclass
class LatentCache:
    """Latents of N pictures of one domain.

    Attributes:
        encoded: means, and log-variances where kept.
        ids: (N,) names.
        labels: (N,) class names, where known.
        domain: of every row.
        fingerprint: of the model that encoded them.
        shared_shape: shape of one shared latent.
        preset: of that model.
        metric: distance that the model's configuration compares shared means by.
        source: where the rows came from: `{"data": FILE, "split": NAME}`, or `{"pictures": true}`
            when ids are paths.
    """

    encoded: Encoded
    ids: list[str]
    labels: list[str] | None
    domain: Domain
    fingerprint: str
    shared_shape: tuple[int, ...]
    preset: str = ""
    metric: str = "euclidean"
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def head(self) -> dict[str, Any]:
        """Attributes of the file."""
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "domain": self.domain,
            "shared_shape": np.asarray(self.shared_shape, np.int64),
            "preset": self.preset,
            "metric": self.metric,
            "source": json.dumps(self.source),
            "versions": json.dumps({"iiae": __version__, "h5py": h5py.__version__}),
        }


@dataclass(frozen=True)
class LatentFormat:
    """What of a model's posteriors a cache keeps.

    Attributes:
        kinds: of latents.
        logvar: whether log-variances are kept.
        dtype: `float32` or `float16`.
    """

    kinds: tuple[LatentKind, ...] = ("shared", "exclusive")
    logvar: bool = False
    dtype: str = "float32"

    def stored(self, encoded: Encoded, name_of: Callable[[int], str]) -> dict[str, NDArray[Any]]:
        """The arrays as they are written, by their names in `Encoded`.

        Args:
            encoded: of some rows.
            name_of: the id of a row, for an error.

        Raises:
            IiaeError: a value is not finite, or beyond what `dtype` can hold.
        """
        found: dict[str, NDArray[Any]] = {}
        for name in ARRAYS:
            kind, _, part = name.partition("_")
            values: NDArray[Any] | None = getattr(encoded, name)
            if values is None or kind not in self.kinds or not (self.logvar or part == "mean"):
                continue
            with np.errstate(over="ignore"):
                stored = values.astype(self.dtype)
            bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
            if len(bad):
                row = int(bad[0])
                if np.isfinite(values[row]).all():
                    raise IiaeError(
                        f"{name} of {name_of(row)} holds values that {self.dtype} cannot hold",
                        "pass --dtype float32",
                    )
                raise IiaeError(
                    f"the latents of {name_of(row)} are not finite", "check this input and the run"
                )
            found[name] = stored
        return found


def write_latents(
    path: Path, cache: LatentCache, *, logvar: bool = False, dtype: str = "float32"
) -> None:
    """Write a cache, atomically.

    Args:
        path: an existing file is replaced.
        cache: what to write.
        logvar: whether log-variances are kept.
        dtype: of the arrays, `float32` or `float16`.
    """
    arrays = LatentFormat(logvar=logvar, dtype=dtype).stored(
        cache.encoded, lambda row: cache.ids[row]
    )
    widths = {name: (values.shape[1], values.dtype) for name, values in arrays.items()}
    write_stream(path, cache.head(), widths, [arrays], ids=cache.ids, labels=cache.labels)


def write_stream(
    path: Path,
    head: Mapping[str, Any],
    arrays: Mapping[str, tuple[int, np.dtype[Any]]],
    blocks: Iterable[Mapping[str, NDArray[Any]]],
    *,
    ids: Sequence[str],
    labels: Sequence[str] | None,
    skipped: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Write a cache, atomically, of which one block is in memory at a time.

    Args:
        path: an existing file is replaced.
        head: its attributes.
        arrays: (width, dtype) by names as in `Encoded`.
        blocks: rows of every array, in order; together as many as `ids`.
        ids: (N,).
        labels: (N,), where known.
        skipped: lines of inputs left out.
        folder: for the temporary file; None: beside `path`.
    """
    with writing(path, folder=folder) as temporary, new_hdf5(temporary) as file:
        file.attrs.update(head)
        targets = {
            name: file.create_dataset(name.replace("_", "/"), (len(ids), width), dtype)
            for name, (width, dtype) in arrays.items()
        }
        done = 0
        for block in blocks:
            count = len(next(iter(block.values())))
            for name, target in targets.items():
                target[done : done + count] = block[name]
            done += count
        if done != len(ids):
            raise ValueError(f"{done} rows for {len(ids)} ids")
        for name, texts in (("ids", ids), ("labels", labels), ("skipped", skipped or None)):
            if texts is not None:
                write_texts(file, name, texts)


def is_latent_cache(path: Path) -> bool:
    """Whether a file is a readable HDF5 file of this schema."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with h5py.File(path, "r", locking=False) as file:
            return text_attribute(file, "schema", "none") == SCHEMA
    except DAMAGED:
        return False


def read_latents(path: Path) -> LatentCache:
    """A whole cache.

    Raises:
        IiaeError: missing, damaged, or of another schema.
    """
    with open_hdf5(path, REMEDY) as file:
        check_schema(file, path, SCHEMA, REMEDY)
        with damage(path, REMEDY):
            arrays = {
                f"{kind}_{part}": _latents(group, part)
                for kind in ("shared", "exclusive")
                if (group := member(file, kind)) is not None
                for part in group
            }
            ids = read_texts(file, "ids")
            if ids is None:
                raise ValueError("it has no ids")
            cache = LatentCache(
                encoded=Encoded(**arrays),
                ids=ids,
                labels=read_texts(file, "labels"),
                **read_attributes(file),
            )
    lengths = {len(values) for values in arrays.values()} | {len(cache.ids)}
    if (
        len(lengths) != 1
        or not arrays
        or (cache.labels is not None and len(cache.labels) != len(cache))
    ):
        raise IiaeError(f"{path} is damaged: its arrays differ in length", REMEDY)
    return cache


def _latents(group: h5py.Group, part: str) -> NDArray[np.float32]:
    """(N, D) finite numbers."""
    with np.errstate(over="ignore"):
        values = read_array(group, part).astype(np.float32)
    if values.ndim != 2 or values.shape[1] == 0 or not np.isfinite(values).all():
        raise ValueError(f"{group.name}/{part} holds no finite (N, D) numbers")
    return values


def _source(text: str) -> dict[str, Any]:
    """A mapping of names to texts or true, as `LatentCache.source` says."""
    source = json.loads(text)
    if not isinstance(source, dict) or not all(
        isinstance(value, str | bool) for value in source.values()
    ):
        raise ValueError("attribute source is no JSON object of texts")
    return source


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """What a cache's attributes say, by `LatentCache`'s names.

    Raises:
        KeyError: one that every cache has is missing.
        ValueError: one has no such value.
    """
    domain = text_attribute(file, "domain")
    if domain not in DOMAINS:
        raise ValueError(f"domain {domain[:80]}")
    return {
        "domain": domain,
        "fingerprint": text_attribute(file, "fingerprint"),
        "shared_shape": tuple(int(n) for n in file.attrs["shared_shape"]),
        "preset": text_attribute(file, "preset", ""),
        "metric": text_attribute(file, "metric", "euclidean"),
        "source": _source(text_attribute(file, "source", "{}")),
    }


def means_of(
    cache: LatentCache, kind: LatentKind, path: Path
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Means of one kind.

    Raises:
        IiaeError: the cache holds none of that kind.
    """
    try:
        return cache.encoded.mean(kind)
    except KeyError as error:
        raise IiaeError(
            f"{path} holds no {kind} latents", f"encode with --latents {kind} or both"
        ) from error
