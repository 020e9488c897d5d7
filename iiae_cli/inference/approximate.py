"""An approximate index for galleries that many queries search: faiss' IVF-flat, kept beside its
cache.

The gallery is divided into lists around centroids, and a query looks into the few lists whose
centroids are nearest. The index file (z.h5, z.faiss) holds the division alone, centroids and every
row's list, as plain checked arrays; the vectors come from the cache. A file made for other latents,
or damaged, is made again. What is found is measured and ordered exactly, and compared with the
exact neighbours of a sample of the queries. Memory: the gallery in float32, twice.

Shapes: Q queries, G gallery rows, S dimensions, L lists.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.inference.neighbours import (
    Floats,
    Ints,
    Metric,
    Rows,
    checked_slices,
    measured_first,
    nearest,
)
from iiae_cli.inference.products import import_faiss, unit_rows

SCHEMA = "iiae.index/2"
RECALL = 0.95  # of the exact neighbours that the sample's queries must find
SAMPLE = 100
_SPARE = 16  # neighbours asked for beyond k, to be ordered exactly
Division: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32]]  # centroids (L, S), list (G,)


@dataclass(frozen=True)
class Approximate:
    """What an approximate search found, and how good it is.

    Attributes:
        rows: (Q, k) of the gallery.
        distances: (Q, k), exact.
        recall: fraction of the exact neighbours found for the sample's queries.
        sample: number of queries that recall was measured on.
        probes: lists looked into per query.
        lists: number of lists.
        built: whether the index was made just now.
    """

    rows: Ints
    distances: Floats
    recall: float
    sample: int
    probes: int
    lists: int
    built: bool


def search(
    queries: NDArray[Any], gallery: Rows, k: int, *, metric: Metric, path: Path, fingerprint: str
) -> Approximate:
    """Searches more and more lists until the sample's queries find `RECALL` of their neighbours.

    Args:
        queries: (Q, S).
        gallery: (G, S).
        k: how many neighbours; at most G.
        metric: distance.
        path: the index file; read if it belongs to this gallery, else written.
        fingerprint: of the model that encoded the gallery.

    Raises:
        IiaeError: faiss is not installed, a value is not finite, or the file cannot be written.
    """
    k = min(k, gallery.shape[0])
    rows = np.concatenate([part for _, part in checked_slices(gallery)])
    digest = hashlib.blake2b(rows.data, digest_size=16).hexdigest()
    header = {"schema": SCHEMA, "fingerprint": fingerprint, "metric": metric, "rows": digest}
    vectors = _directions(rows, metric)
    division = _read(path, header, vectors.shape)
    built = division is None
    if division is None:
        division = _divide(vectors, metric)
        tensors = [torch.from_numpy(values) for values in division]
        content = {**header, "content": _digest(tensors)}
        with writing(path) as temporary:
            save_tensors(
                dict(zip(("centroids", "lists"), tensors, strict=True)), temporary, content
            )
    index, lists = _index(vectors, division, metric), len(division[0])
    looked, asked = _directions(queries, metric), min(k + _SPARE, len(rows))
    few = np.unique(np.linspace(0, len(queries) - 1, min(SAMPLE, len(queries))).astype(np.int64))
    wanted, _ = nearest(queries[few], rows, k, metric=metric)
    recall, index.nprobe = 0.0, 4
    while recall < RECALL and index.nprobe < lists:
        index.nprobe = min(2 * index.nprobe, lists)
        found = index.search(looked[few], asked)[1]
        hits = sum(len(np.intersect1d(*pair)) for pair in zip(found, wanted, strict=True))
        recall = hits / max(1, wanted.size)
    probes, found = index.nprobe, index.search(looked, asked)[1]
    # A query whose lists hold too few rows looks into all of them.
    short = np.flatnonzero((found < 0).any(axis=1))
    if len(short):
        index.nprobe = lists
        found[short] = index.search(looked[short], asked)[1]
    near, distances = measured_first(queries, rows, found, k, metric)
    return Approximate(near, distances, recall, len(few), probes, lists, built)


def _divide(vectors: NDArray[np.float32], metric: Metric) -> Division:
    """Returns √G lists around centroids that k-means finds from a sample of the rows (seed 0)."""
    lists = max(1, min(round(len(vectors) ** 0.5), len(vectors) // 39))
    sample = np.random.default_rng(0).choice(
        len(vectors), min(len(vectors), 64 * lists), replace=False
    )
    means = import_faiss().Kmeans(
        vectors.shape[1],
        lists,
        niter=10,
        seed=0,
        spherical=metric == "cosine",
        min_points_per_centroid=1,
    )
    means.train(vectors[np.sort(sample)])
    return means.centroids, means.index.search(vectors, 1)[1][:, 0].astype(np.int32)


def _read(path: Path, header: dict[str, str], shape: tuple[int, ...]) -> Division | None:
    """Returns the division in a file; None if it is missing, damaged, or belongs to other rows."""
    try:
        found, tensors = read_tensors(path, SCHEMA, "remove it; it is made again")
        centroids, lists = tensors["centroids"], tensors["lists"]
    except (IiaeError, OSError, KeyError):
        return None
    sound = (
        found == {**found, **header, "content": _digest([centroids, lists])}
        and (centroids.dtype, lists.dtype) == (torch.float32, torch.int32)
        and centroids.ndim == 2
        and centroids.shape[1] == shape[1]
        and lists.shape == (shape[0],)
        and bool(torch.isfinite(centroids).all())
        and bool(((lists >= 0) & (lists < len(centroids))).all())
    )
    # Copies: the tensors are a view of the file, which another program may cut short.
    return (centroids.numpy().copy(), lists.numpy().copy()) if sound else None


def _digest(tensors: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _directions(rows: NDArray[Any], metric: Metric) -> NDArray[np.float32]:
    """Returns rows in float32 as faiss compares them: at unit length for cosine."""
    values = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
    return values.numpy() if metric == "euclidean" else unit_rows(values, 0)[:, :-2].numpy()


def _index(vectors: NDArray[np.float32], division: Division, metric: Metric) -> Any:
    faiss = import_faiss()
    kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    quantizer = faiss.IndexFlat(vectors.shape[1], kind)
    quantizer.add(division[0])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], len(division[0]), kind)
    index.is_trained = True
    vectors, numbers = np.ascontiguousarray(vectors), np.arange(len(vectors))
    lists = division[1].astype(np.int64)
    pointers = (faiss.swig_ptr(values) for values in (vectors, numbers, lists))
    index.add_core(len(vectors), *pointers)
    return index
