"""Nearest neighbours between latents: exact, in chunks of bounded memory, ties broken by gallery order.

The gallery is read once, chunk by chunk, from an array or straight from a cache on disk. A backend proposes pairs by
fast arithmetic with a rigorous bound (`bounds.py`, `faiss_search.py`), `ties.py` measures and orders them; all backends
therefore give the same rows and the same distances, bit for bit.

Memory beside queries and result: one chunk of the gallery as it is stored and once more as it is multiplied
(`CHUNK_BYTES` each, twice that in float64), a block of queries and of products, and at most 2²² candidates: about
200 MiB, whatever the gallery's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.inference.bounds import (
    Engine,
    Frame,
    TooManyPairsError,
    count_nearer,
    near_pairs,
    single_is_exact,
)
from iiae_cli.inference.chunk import Chunk
from iiae_cli.inference.ties import Floats, Found, Ints, Metric, beyond, pair_distances

__all__ = [
    "Backend",
    "Floats",
    "Ints",
    "Metric",
    "Rows",
    "choose_backend",
    "nearest",
    "partner_ranks",
]

Backend: TypeAlias = Literal["auto", "sklearn", "torch", "faiss"]

CHUNK_BYTES = 64 * 2**20  # of gallery rows in float32
QUERY_BYTES = 16 * 2**20  # of a block of query rows in float32
QUERY_ROWS = 128  # of a block of queries at most
LONG = 1024  # dimensions from which chunks are twice, blocks four times as large: products run faster, other work is less
SMALL = (
    2**24
)  # multiplications that scikit-learn does in less time than another library takes to be loaded
_CENTRE_ROWS = 4096
_HUGE = 1e150  # beyond it squares leave float64


Proposer: TypeAlias = Callable[[NDArray[Any], Chunk, int, Floats], tuple[Ints, Ints]]


class Rows(Protocol):
    """Rows that are read in slices: an array, or a dataset of an open HDF5 file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S)."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows start … stop as an array."""


def choose_backend(backend: Backend, queries: int, gallery: int, width: int) -> Backend:
    """`backend`, or where it is `auto`: scikit-learn for small sizes, else torch."""
    if backend != "auto":
        return backend
    return "sklearn" if queries * gallery * width <= SMALL else "torch"


def nearest(
    queries: NDArray[Any],
    gallery: Rows,
    k: int,
    *,
    metric: Metric = "euclidean",
    backend: Backend = "auto",
) -> tuple[Ints, Floats]:
    """The k nearest gallery rows of every query.

    Args:
        queries: (Q, S).
        gallery: (G, S).
        k: how many; at most G are returned.
        metric: `euclidean`, or `cosine` (1 − cosine similarity; a zero vector is at distance 1 from everything).
        backend: who proposes pairs; results are equal.

    Returns:
        Gallery rows (Q, K) and their distances (Q, K), nearest first, equal distances in gallery order.

    Raises:
        IiaeError: values that are not finite; `faiss` where it is not installed.
    """
    queries = _numbers(queries)
    size = gallery.shape[0]
    k = min(k, size)
    if not len(queries) or not k:
        _check(queries, "queries")
        return np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    propose = _proposer(choose_backend(backend, len(queries), size, queries.shape[1]))
    rows = min(_block_rows(queries.shape[1]), max(1, 2**24 // k))
    blocks = [slice(start, start + rows) for start in range(0, len(queries), rows)]
    known = [Found.none() for _ in blocks]
    for chunk in chunks(queries, gallery, metric):
        for number, part in enumerate(blocks):
            few = queries[part]
            limits = beyond(known[number].cuts(len(few), k), metric)
            new = _search(few, chunk, min(k, len(chunk.rows)), limits, propose)
            known[number] = known[number].merged(new, len(few), k, metric)
    first = [
        found.first(len(queries[part]), k, metric)
        for part, found in zip(blocks, known, strict=True)
    ]
    found, distances = (np.concatenate(parts) for parts in zip(*first, strict=True))
    return found, np.sqrt(distances) if metric == "euclidean" else distances


def within(
    queries: NDArray[Any], gallery: Rows, candidates: Ints, k: int, *, metric: Metric
) -> tuple[Ints, Floats]:
    """The k nearest among given candidates, measured and ordered as `nearest` does it.

    Args:
        queries: (Q, S).
        gallery: (G, S).
        candidates: (Q, C) gallery rows, no row twice for one query, at least k; negative ones are none.
        k: how many.
        metric: distance.

    Returns:
        Gallery rows (Q, k) and their distances (Q, k).
    """
    queries = _numbers(queries)
    found = Found.none()
    for chunk in chunks(queries, gallery, metric):
        stop = chunk.start + len(chunk.rows)
        left, place = np.nonzero((candidates >= chunk.start) & (candidates < stop))
        rows = candidates[left, place]
        distances = pair_distances(queries, chunk.rows, (left, rows - chunk.start), metric)
        found = found.merged(Found(left, rows, distances), len(queries), k, metric)
    rows, distances = found.first(len(queries), k, metric)
    return rows, np.sqrt(distances) if metric == "euclidean" else distances


def partner_ranks(
    queries: NDArray[Any], gallery: Rows, *, metric: Metric = "euclidean", backend: Backend = "auto"
) -> Ints:
    """Rank, from 1, of every query's partner, gallery row i for query i: (Q,).

    Gallery rows strictly nearer than the partner count before it, equally near ones where they stand earlier in the
    gallery; a collapsed model with equal latents everywhere thus has recall 1/G, not 1.

    Args:
        queries: (Q, S).
        gallery: (G, S), G ≥ Q.
        metric: distance.
        backend: who multiplies; faiss has no such question and leaves it to torch.

    Raises:
        IiaeError: values that are not finite.
    """
    queries = _numbers(queries)
    ranks = np.ones(len(queries), np.int64)
    if not len(queries):
        return ranks
    partners = _numbers(gallery[: len(queries)])
    places = np.arange(len(queries))
    own = pair_distances(queries, partners, (places, places), metric)
    chosen = choose_backend(backend, len(queries), gallery.shape[0], queries.shape[1])
    engine: Engine = "sklearn" if chosen == "sklearn" else "torch"
    rows = _block_rows(queries.shape[1])
    for chunk in chunks(queries, gallery, metric):
        for start in range(0, len(queries), rows):
            part = slice(start, start + rows)
            ranks[part] += _before(queries[part], own[part], places[part], chunk, engine)
    return ranks


def _numbers(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows in float32 where that holds them, else in float64."""
    rows = np.asarray(rows)
    return rows.astype(
        np.float32 if rows.dtype in (np.float16, np.float32) else np.float64, copy=False
    )


def _block_rows(width: int) -> int:
    return max(1, min(QUERY_ROWS * (4 if width >= LONG else 1), QUERY_BYTES // (4 * max(1, width))))


def _check(rows: NDArray[Any], name: str) -> float:
    """The largest absolute value.

    Raises:
        IiaeError: a value is not finite.
    """
    if not rows.size:
        return 0.0
    low, high = torch.aminmax(torch.from_numpy(np.ascontiguousarray(rows)))
    largest = max(-float(low), float(high))
    if not largest < _HUGE:  # not a number compares as false
        raise IiaeError(
            f"latents of {name} are not all finite",
            "encode them again; check the model and its inputs",
        )
    return largest


def chunks(queries: NDArray[Any], gallery: Rows, metric: Metric) -> Iterator[Chunk]:
    """The gallery in order, each part with a frame that holds it and the queries.

    Raises:
        IiaeError: values that are not finite.
    """
    size, width = gallery.shape
    largest = _check(queries, "queries")
    # Any centre is right; one amid the data keeps the bounds tight.
    centre = np.zeros(width)
    step = max(1, CHUNK_BYTES * (2 if width >= LONG else 1) // (4 * max(1, width)))
    for start in range(0, size, step):
        rows = _numbers(gallery[start : start + step])
        around = max(largest, _check(rows, "the gallery"))
        if start == 0 and metric == "euclidean":
            centre = rows[:_CENTRE_ROWS].mean(axis=0, dtype=np.float64)
        yield Chunk(start, rows, metric, Frame.around(metric, centre, around))


def _search(
    queries: NDArray[Any], chunk: Chunk, k: int, limits: Floats, propose: Proposer
) -> Found:
    """Candidates among a chunk's rows, measured: all that can be among the k nearest within `limits`."""
    try:
        pairs = propose(queries, chunk, k, limits * chunk.squared_scale)
    except TooManyPairsError:
        half = len(queries) // 2
        parts = slice(0, half), slice(half, None)
        found = [
            Found.none().merged(
                _search(queries[part], chunk, k, limits[part], propose),
                len(queries[part]),
                k,
                chunk.metric,
            )
            for part in parts
        ]
        found[1].query += half
        return Found(
            *(
                np.concatenate([getattr(one, name) for one in found])
                for name in ("query", "row", "distance")
            )
        )
    return Found(
        pairs[0],
        pairs[1] + chunk.start,
        chunk.measure(queries, pairs, expected=len(queries) * (k + 16)),
    )


def _by_products(queries: NDArray[Any], chunk: Chunk, k: int, limits: Floats) -> tuple[Ints, Ints]:
    """Pairs by torch in float32; in float64 for the queries whose neighbours that cannot tell apart."""
    if not single_is_exact():
        return _in_double(queries, chunk, k, limits)
    crowded: NDArray[np.bool_]
    try:
        left, right = near_pairs(chunk.products(queries, torch.float32), k, limits)
        crowded = np.bincount(left, minlength=len(queries)) > 4 * (k + 16)
    except TooManyPairsError:
        if len(queries) == 1:
            raise
        return _in_double(queries, chunk, k, limits)
    if not crowded.any():
        return left, right
    again = np.flatnonzero(crowded)
    few, more = _in_double(queries[again], chunk, k, limits[again])
    clear = ~crowded[left]
    return np.concatenate([left[clear], again[few]]), np.concatenate([right[clear], more])


def _in_double(
    queries: NDArray[Any], chunk: Chunk, k: int, limits: Floats, engine: Engine = "torch"
) -> tuple[Ints, Ints]:
    return near_pairs(chunk.products(queries, torch.float64, engine), k, limits)


def _by_sklearn(queries: NDArray[Any], chunk: Chunk, k: int, limits: Floats) -> tuple[Ints, Ints]:
    return _in_double(queries, chunk, k, limits, "sklearn")


def _by_faiss(queries: NDArray[Any], chunk: Chunk, k: int, limits: Floats) -> tuple[Ints, Ints]:
    """Pairs by faiss' flat search; by torch for the queries whose neighbours that does not tell apart."""
    from iiae_cli.inference.faiss_search import flat_pairs

    left, right, open_ = flat_pairs(chunk.products(queries, torch.float32), k, limits)
    if not len(open_):
        return left, right
    few, more = _by_products(queries[open_], chunk, k, limits[open_])
    return np.concatenate([left, open_[few]]), np.concatenate([right, more])


def _proposer(backend: Backend) -> Proposer:
    if backend == "faiss":
        from iiae_cli.inference.faiss_search import import_faiss

        import_faiss()
        return _by_faiss
    return _by_sklearn if backend == "sklearn" else _by_products


def _before(
    queries: NDArray[Any], own: Floats, partners: Ints, chunk: Chunk, engine: Engine
) -> Ints:
    """How many of a chunk's rows stand before each query's partner, which is `own` away."""
    dtype = torch.float64 if engine == "sklearn" or not single_is_exact() else torch.float32
    near, far = (beyond(own, chunk.metric, sign) for sign in (-1, 1))
    scale = chunk.squared_scale
    try:
        try:
            counts, pairs = count_nearer(
                chunk.products(queries, dtype, engine), near * scale, far * scale
            )
        except TooManyPairsError:
            if dtype == torch.float64:
                raise
            counts, pairs = count_nearer(
                chunk.products(queries, torch.float64, engine), near * scale, far * scale
            )
    except TooManyPairsError:
        half = len(queries) // 2
        parts = slice(0, half), slice(half, None)
        return np.concatenate(
            [_before(queries[p], own[p], partners[p], chunk, engine) for p in parts]
        )
    left, right = pairs
    distances = chunk.measure(queries, pairs, expected=64 * len(queries))
    before = distances < near[left]
    before |= (distances <= far[left]) & (right + chunk.start < partners[left])
    return counts + np.bincount(left[before], minlength=len(queries))
