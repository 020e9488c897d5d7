"""Approximate search by faiss' IVF-flat, for galleries that many queries search.

A query looks into the few lists of gallery rows whose centroids are nearest. The index file (z.h5,
z.faiss) holds the centroids; the vectors come from the cache. A file made for other latents, or
damaged, is made again. What is found is measured and ordered exactly, and compared with the exact
neighbours of a sample of the queries. Memory: the gallery, twice.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.inference.neighbours import (
    Floats,
    Ints,
    Metric,
    Rows,
    checked_slices,
    first_of,
    import_faiss,
    measure,
    nearest,
    unit_rows,
)

SCHEMA = "iiae.index/3"
RECALL = 0.95  # of the exact neighbours that the sample's queries must find
SAMPLE = 100
_SPARE = 16  # neighbours asked for beyond k, to be ordered exactly


def search(
    queries: NDArray[Any], gallery: Rows, k: int, *, metric: Metric, path: Path, fingerprint: str
) -> tuple[Ints, Floats, dict[str, Any]]:
    """Searches more and more lists until the sample's queries find `RECALL` of their neighbours.

    The index at `path` is read if it belongs to this gallery (G, S) and the model of this
    fingerprint, else made. Returns rows of the gallery (Q, k), their exact distances, and how they
    were found: the fraction of the sample's exact neighbours, lists looked into per query, and of
    how many. Raises IiaeError if faiss is missing or a value is not finite.
    """
    k = min(k, gallery.shape[0])
    rows = np.concatenate([part for _, part in checked_slices(gallery)])
    vectors, looked = _directions(rows, metric), _directions(queries, metric)
    digest = hashlib.blake2b(rows.data, digest_size=16).hexdigest()
    header = {"schema": SCHEMA, "fingerprint": fingerprint, "metric": metric, "rows": digest}
    centroids = _read(path, header)
    built = centroids is None
    if centroids is None:
        centroids = _centroids(vectors, metric)
        with writing(path) as temporary:
            save_tensors({"centroids": torch.from_numpy(centroids)}, temporary, header)
    index, count = _index(vectors, centroids, metric), len(centroids)
    asked = min(k + _SPARE, len(rows))
    few = np.unique(np.linspace(0, len(queries) - 1, min(SAMPLE, len(queries))).astype(np.int64))
    wanted, _ = nearest(queries[few], rows, k, metric=metric)
    recall, index.nprobe = 0.0, 4
    while recall < RECALL and index.nprobe < count:
        index.nprobe = min(2 * index.nprobe, count)
        found = index.search(looked[few], asked)[1]
        hits = sum(len(np.intersect1d(*pair)) for pair in zip(found, wanted, strict=True))
        recall = hits / max(1, wanted.size)
    probes, found = index.nprobe, index.search(looked, asked)[1]
    # A query whose lists hold too few rows looks into all of them.
    short = np.flatnonzero((found < 0).any(axis=1))
    if len(short):
        index.nprobe = count
        found[short] = index.search(looked[short], asked)[1]
    near = np.sort(found, axis=1)
    near, distances = first_of(near, measure(queries, rows, near, metric), k, metric)
    console.say(
        f"index {path} {'made' if built else 'read'}; {probes} of {count} lists; "
        f"recall@{k} {recall:.3f} on {len(few)} of {len(queries)} queries"
    )
    about = {"index": str(path), "recall": recall, "sample": len(few)}
    return near, distances, {**about, "probes": probes, "lists": count, "made": built}


def _read(path: Path, header: dict[str, str]) -> NDArray[np.float32] | None:
    """Returns the centroids in a file; None if it is missing, damaged, or of other rows."""
    try:
        found, tensors = read_tensors(path, SCHEMA, "remove it; it is made again")
    except (IiaeError, OSError):
        return None
    # A copy: the tensor is a view of the file, which another program may cut short.
    return tensors["centroids"].numpy().copy() if found == header else None


def _centroids(vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Returns the centroids (√G, S) that k-means finds from a sample of the rows (seed 0)."""
    count, width = vectors.shape
    lists = max(1, min(round(count**0.5), count // 39))
    sample = np.random.default_rng(0).choice(count, min(count, 64 * lists), replace=False)
    settings = {"niter": 10, "seed": 0, "min_points_per_centroid": 1}
    means = import_faiss().Kmeans(width, lists, spherical=metric == "cosine", **settings)
    means.train(vectors[np.sort(sample)])
    centroids: NDArray[np.float32] = means.centroids
    return centroids


def _directions(rows: NDArray[Any], metric: Metric) -> NDArray[np.float32]:
    """Returns rows in float32 as faiss compares them: at unit length for cosine."""
    values = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
    return values.numpy() if metric == "euclidean" else unit_rows(values, 0)[:, :-2].numpy()


def _index(vectors: NDArray[np.float32], centroids: NDArray[np.float32], metric: Metric) -> Any:
    faiss = import_faiss()
    kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    quantizer = faiss.IndexFlat(vectors.shape[1], kind)
    quantizer.add(centroids)
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], len(centroids), kind)
    index.is_trained = True
    index.add(np.ascontiguousarray(vectors))
    return index
