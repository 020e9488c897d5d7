"""The latent cache (HDF5, schema `iiae.latents/1`): encoded pictures, self-describing.

    /shared/mean (N, S) [/shared/logvar], /exclusive/mean (N, E) [/exclusive/logvar]
    /ids (N) UTF-8, /labels (N) UTF-8 where known

Attributes: schema, fingerprint (of the model's weights), domain, shared_shape, preset, metric, source (JSON: the files
the rows came from, for montages), versions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli import __version__
from iiae_cli.data.hdf5 import (
    DAMAGED,
    check_schema,
    damage,
    member,
    open_hdf5,
    read_array,
    read_texts,
    text_attribute,
    write_texts,
)
from iiae_cli.errors import IiaeError
from iiae_cli.files import writing
from iiae_cli.inference.encoding import Encoded, LatentKind
from iiae_cli.model.iiae import DOMAINS, Domain

SCHEMA = "iiae.latents/1"
_REMEDY = "encode again: iiae encode INPUT --domain x|y -o FILE.h5"


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
        source: where the rows came from: `{"data": FILE, "split": NAME}`, or `{"pictures": true}` when ids are paths.
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


def write_latents(path: Path, cache: LatentCache, *, logvar: bool = False, dtype: str = "float32") -> None:
    """Write a cache, atomically.

    Args:
        path: an existing file is replaced.
        cache: what to write.
        logvar: whether log-variances are kept.
        dtype: of the arrays, `float32` or `float16`.
    """
    with writing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            {
                "schema": SCHEMA,
                "fingerprint": cache.fingerprint,
                "domain": cache.domain,
                "shared_shape": np.asarray(cache.shared_shape, np.int64),
                "preset": cache.preset,
                "metric": cache.metric,
                "source": json.dumps(cache.source),
                "versions": json.dumps({"iiae": __version__, "h5py": h5py.__version__}),
            }
        )
        for name in ("shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar"):
            values = getattr(cache.encoded, name)
            if values is not None and (logvar or name.endswith("mean")):
                with np.errstate(over="ignore"):
                    stored = values.astype(dtype)
                if not np.isfinite(stored).all():
                    raise IiaeError(f"{name} holds values that {dtype} cannot hold", "pass --dtype float32")
                file.create_dataset(name.replace("_", "/"), data=stored)
        write_texts(file, "ids", cache.ids)
        if cache.labels is not None:
            write_texts(file, "labels", cache.labels)


def is_latent_cache(path: Path) -> bool:
    """Whether a file is a readable HDF5 file of this schema."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with h5py.File(path, "r") as file:
            return text_attribute(file, "schema", "none") == SCHEMA
    except DAMAGED:
        return False


def read_latents(path: Path) -> LatentCache:
    """A whole cache.

    Raises:
        IiaeError: missing, damaged, or of another schema.
    """
    with open_hdf5(path, _REMEDY) as file:
        check_schema(file, path, SCHEMA, _REMEDY)
        with damage(path, _REMEDY):
            arrays = {
                f"{kind}_{part}": _latents(group, part)
                for kind in ("shared", "exclusive")
                if (group := member(file, kind)) is not None
                for part in group
            }
            domain, ids = text_attribute(file, "domain"), read_texts(file, "ids")
            if domain not in DOMAINS or ids is None:
                raise ValueError(f"domain {domain[:80]}" if ids is not None else "it has no ids")
            cache = LatentCache(
                encoded=Encoded(**arrays),
                ids=ids,
                labels=read_texts(file, "labels"),
                domain="x" if domain == "x" else "y",
                fingerprint=text_attribute(file, "fingerprint"),
                shared_shape=tuple(int(n) for n in file.attrs["shared_shape"]),
                preset=text_attribute(file, "preset", ""),
                metric=text_attribute(file, "metric", "euclidean"),
                source=_source(text_attribute(file, "source", "{}")),
            )
    lengths = {len(values) for values in arrays.values()} | {len(cache.ids)}
    if len(lengths) != 1 or not arrays or (cache.labels is not None and len(cache.labels) != len(cache)):
        raise IiaeError(f"{path} is damaged: its arrays differ in length", _REMEDY)
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
    if not isinstance(source, dict) or not all(isinstance(value, str | bool) for value in source.values()):
        raise ValueError("attribute source is no JSON object of texts")
    return source


def means_of(cache: LatentCache, kind: LatentKind, path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Means of one kind.

    Raises:
        IiaeError: the cache holds none of that kind.
    """
    try:
        return cache.encoded.mean(kind)
    except KeyError as error:
        raise IiaeError(f"{path} holds no {kind} latents", f"encode with --latents {kind} or both") from error


def merge_caches(caches: list[LatentCache], names: list[str]) -> LatentCache:
    """Rows of several caches, in the order given.

    Raises:
        IiaeError: different models, domains or contents, or an id that occurs twice.
    """
    first = caches[0]
    for cache, name in zip(caches, names, strict=True):
        if cache.fingerprint != first.fingerprint:
            raise IiaeError(f"{name} was encoded by another model than {names[0]}", "encode all shards by one run")
        if cache.domain != first.domain:
            raise IiaeError(f"{name} holds domain {cache.domain}, {names[0]} {first.domain}", "merge one domain only")
        if _parts(cache) != _parts(first) or (cache.labels is None) != (first.labels is None):
            raise IiaeError(f"{name} holds other arrays than {names[0]}", "encode all shards by the same options")
    ids = [one for cache in caches for one in cache.ids]
    doubled = next((one for one, count in _counts(ids).items() if count > 1), None)
    if doubled is not None:
        raise IiaeError(f"id {doubled} occurs in more than one place", "merge every shard once")
    encoded = Encoded(
        **{part: np.concatenate([getattr(cache.encoded, part) for cache in caches]) for part in _parts(first)}
    )
    labels = None if first.labels is None else [one for cache in caches for one in cache.labels or []]
    same_source = all(cache.source == first.source for cache in caches)
    return LatentCache(
        encoded,
        ids,
        labels,
        first.domain,
        first.fingerprint,
        first.shared_shape,
        first.preset,
        first.metric,
        first.source if same_source else {},
    )


def _parts(cache: LatentCache) -> list[str]:
    return [name for name, values in vars(cache.encoded).items() if values is not None]


def _counts(ids: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in ids:
        counts[one] = counts.get(one, 0) + 1
    return counts
