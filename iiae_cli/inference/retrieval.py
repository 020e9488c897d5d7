"""Nearest neighbours between latents, exact, in chunks of bounded memory, ties broken by gallery order.

Distances are computed in float64 by scikit-learn (or torch). Two distances closer than `TIE` times the data's scale
count as equal, so that identical latents tie whatever order a matrix product summed them in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.errors import IiaeError

Metric: TypeAlias = Literal["euclidean", "cosine"]
Backend: TypeAlias = Literal["sklearn", "torch"]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

TIE = 1e-12
CHUNK_BYTES = 256 * 2**20


def _prepared(queries: NDArray[Any], gallery: NDArray[Any], metric: Metric) -> tuple[Floats, Floats]:
    """Both in float64: unit rows for cosine, else moved by the gallery's mean, which changes no distance but its error.

    Raises:
        IiaeError: a value is not finite.
    """
    queries, gallery = (np.asarray(rows, dtype=np.float64) for rows in (queries, gallery))
    for name, rows in (("queries", queries), ("the gallery", gallery)):
        if not np.isfinite(rows).all():
            raise IiaeError(
                f"latents of {name} are not all finite", "encode them again; check the model and its inputs"
            )
    if metric == "euclidean":
        centre = gallery.mean(axis=0) if len(gallery) else 0.0
        return queries - centre, gallery - centre
    unit = []
    for rows in (queries, gallery):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit.append(rows / np.where(norms > 0, norms, 1.0))
    return unit[0], unit[1]


def _distance_chunks(
    queries: Floats, gallery: Floats, metric: Metric, backend: Backend
) -> Iterator[tuple[int, Floats]]:
    """(first query, distances (Q', G)) chunk by chunk: squared Euclidean, or cosine distance of unit rows."""
    rows = max(1, CHUNK_BYTES // (8 * max(1, len(gallery))))
    gallery_norms = np.einsum("ij,ij->i", gallery, gallery)
    for start in range(0, len(queries), rows):
        chunk = queries[start : start + rows]
        if backend == "sklearn":
            from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

            if metric == "cosine":
                yield start, cosine_distances(chunk, gallery)
            else:
                yield start, euclidean_distances(chunk, gallery, Y_norm_squared=gallery_norms, squared=True)
        else:
            import torch

            dots = (torch.from_numpy(chunk) @ torch.from_numpy(gallery).T).numpy()
            if metric == "cosine":
                yield start, np.clip(1.0 - dots, 0.0, 2.0)
            else:
                norms = np.einsum("ij,ij->i", chunk, chunk)
                yield start, np.maximum(norms[:, None] + gallery_norms[None, :] - 2.0 * dots, 0.0)


def _tolerance(queries: Floats, gallery: Floats, metric: Metric) -> float:
    if metric == "cosine":
        return TIE
    scale = max(float(np.square(rows).sum(axis=1).max(initial=0.0)) for rows in (queries, gallery))
    return TIE * max(scale, np.finfo(np.float64).tiny)


def nearest(
    queries: NDArray[Any], gallery: NDArray[Any], k: int, *, metric: Metric = "euclidean", backend: Backend = "sklearn"
) -> tuple[Ints, Floats]:
    """The k nearest gallery rows of every query.

    Args:
        queries: (Q, S).
        gallery: (G, S).
        k: how many; at most G are returned.
        metric: `euclidean`, or `cosine` (1 − cosine similarity; a zero vector is at distance 1 from everything).
        backend: who computes distances; results agree.

    Returns:
        Gallery rows (Q, K) and their distances (Q, K), nearest first, equal distances in gallery order.
    """
    queries, gallery = _prepared(queries, gallery, metric)
    k = min(k, len(gallery))
    tolerance = _tolerance(queries, gallery, metric)
    rows = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k))
    for start, chunk in _distance_chunks(queries, gallery, metric, backend):
        cuts = np.partition(chunk, k - 1, axis=1)[:, k - 1]
        for offset, (line, cut) in enumerate(zip(chunk, cuts, strict=True)):
            candidates = np.flatnonzero(line <= cut + tolerance)
            # Equal distances become exactly equal, then a stable sort keeps gallery order.
            order = candidates[np.argsort(_merge_ties(line[candidates], tolerance), kind="stable")][:k]
            rows[start + offset], distances[start + offset] = order, line[order]
    return rows, np.sqrt(distances) if metric == "euclidean" else distances


def _merge_ties(values: Floats, tolerance: float) -> Floats:
    """Values with every run of neighbours closer than `tolerance` set to the run's smallest."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new_run = np.diff(ordered, prepend=-np.inf) > tolerance
    merged = np.empty_like(values)
    merged[order] = ordered[np.maximum.accumulate(np.where(new_run, np.arange(len(values)), 0))]
    return merged


def partner_ranks(
    queries: NDArray[Any], gallery: NDArray[Any], *, metric: Metric = "euclidean", backend: Backend = "sklearn"
) -> Ints:
    """Rank, from 1, of every query's partner, gallery row i for query i: (Q,).

    Gallery rows strictly nearer than the partner count before it, equally near ones where they stand earlier in the
    gallery; a collapsed model with equal latents everywhere thus has recall 1/G, not 1.
    """
    queries, gallery = _prepared(queries, gallery, metric)
    tolerance = _tolerance(queries, gallery, metric)
    ranks = np.empty(len(queries), np.int64)
    columns = np.arange(len(gallery))
    for start, chunk in _distance_chunks(queries, gallery, metric, backend):
        partners = np.arange(start, start + len(chunk))
        own = chunk[np.arange(len(chunk)), partners][:, None]
        nearer = chunk < own - tolerance
        tied_before = (np.abs(chunk - own) <= tolerance) & (columns[None, :] < partners[:, None])
        ranks[partners] = 1 + (nearer | tied_before).sum(axis=1)
    return ranks
