"""Exact nearest neighbours between latents, and the ranks of partners.

A backend proposes the k + `SPARE` rows that are nearest by float32 products. Their distances are
measured again in float64 and ordered by distance, then by position in the gallery. Where the last
proposal is no farther than the k-th neighbour, up to the rounding of a product, float32 cannot tell
which rows belong to the first k: every distance of that query is then measured in float64. So all
backends return the same neighbours.

What is exact: neighbours and ranks follow float64 distances, each of them a function of its two
rows alone. Distances that round to the same 40 bits (relative for Euclidean ones, absolute for
cosine) tie, and ties stand in gallery order, so that collapsed latents have recall 1/N. What
differs from an ideal ranking: distances closer than 2⁻⁴⁰ on two sides of a rounding step, and, with
a probability below 10⁻⁹, a neighbour that float32 misplaces by more than √S times 8 units of its
last place (Higham & Mary, 2019; the worst case is S units). Crowds that float32 cannot resolve cost
time.

Shapes: Q queries, G gallery rows, S dimensions, K proposals, P pairs. Memory: one slice of the
gallery as it is stored and as it is multiplied (in a crowd also in float64), and one block of
products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.inference.products import (
    BATCH_VALUES,
    BLOCK_VALUES,
    PROPOSERS,
    Backend,
    Floats,
    Frame,
    Metric,
    Products,
    Proposer,
    choose_backend,
    largest_value,
    squares,
    unit_rows,
)

__all__ = [
    "Backend",
    "Floats",
    "Ints",
    "Metric",
    "Rows",
    "checked_slices",
    "choose_backend",
    "measured_first",
    "nearest",
    "partner_ranks",
]

Ints: TypeAlias = NDArray[np.int64]
Found: TypeAlias = tuple[Ints, Floats]  # rows (Q, K) and distances (Q, K)

SPARE = 8
SLICE_VALUES = 2**24  # of the gallery, 64 MiB in float32
QUERY_VALUES = 2**22  # of a block of queries
QUERY_ROWS = 512
_HUGE = 1e150  # beyond it squares leave float64


class Rows(Protocol):
    """Rows that are read in slices: an array, or a dataset of an open HDF5 file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S)."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Returns rows start … stop as an array."""


def nearest(
    queries: NDArray[Any],
    gallery: Rows,
    k: int,
    *,
    metric: Metric = "euclidean",
    backend: Backend = "auto",
) -> Found:
    """Returns the gallery rows (Q, k) nearest to every query, and their distances (Q, k).

    Args:
        queries: (Q, S).
        gallery: (G, S), read once, in slices.
        k: how many; all G rows if they are fewer.
        metric: a zero vector is at cosine distance 1 from everything.
        backend: what proposes neighbours.

    Raises:
        IiaeError: a value is not finite, or faiss is not installed.
    """
    queries, (size, width) = _numbers(queries, "queries"), gallery.shape
    proposer = PROPOSERS[choose_backend(backend, len(queries), size, width)]
    k = min(k, size)
    rows, distances = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k))
    filled = 0
    for start, part in checked_slices(gallery):
        frame = Frame(queries, part, metric)
        propose = proposer(frame(part, 1))
        for block in _blocks(len(queries), max(width, k)):
            known = rows[block, :filled], distances[block, :filled]
            near, apart = _search(queries[block], part, k, frame, propose)
            merged = _merged(known, (near + start, apart), k, metric)
            stop = merged[0].shape[1]
            rows[block, :stop], distances[block, :stop] = merged
        filled = min(k, start + len(part))
    return rows, distances


def _search(
    queries: NDArray[Any], part: NDArray[Any], k: int, frame: Frame, propose: Proposer
) -> Found:
    """Returns rows of a slice (Q, K) in gallery order, the k nearest among them, and distances."""
    k, asked = min(k, len(part)), min(k + SPARE, len(part))
    moved = frame(queries, 0)
    approximate, near = propose(moved, asked)
    order = np.argsort(approximate, axis=1)
    approximate, near = (np.take_along_axis(a, order, 1) for a in (approximate, near))
    # A true neighbour is at most one error farther than the k-th proposal seems, and seems one
    # more.
    limit = approximate[:, k - 1] + 2 * frame.error(moved, approximate[:, k - 1])
    unsure = np.flatnonzero((approximate[:, -1] <= limit) & (asked < len(part)))
    close = approximate <= limit[:, None]
    close[unsure] = False
    near = np.sort(near[:, : max(k, close.sum(axis=1).max())], axis=1)
    distances = measure(queries, part, near, frame.metric)
    step = max(1, BLOCK_VALUES // len(part))
    for start in range(0, len(unsure), step):
        few = unsure[start : start + step]
        each = _distances(queries[few], part, frame.metric)
        first = _smallest(_keys(each, frame.metric), near.shape[1])
        near[few], distances[few] = first, np.take_along_axis(each, first, 1)
    return near, distances


def partner_ranks(queries: NDArray[Any], gallery: Rows, *, metric: Metric = "euclidean") -> Ints:
    """Returns the rank, from 1, of gallery row i among all rows for query i: (Q,).

    Rows strictly nearer than the partner stand before it, equally near ones if they stand earlier
    in the gallery.

    Args:
        queries: (Q, S).
        gallery: (G, S), G ≥ Q.
        metric: as in `nearest`.

    Raises:
        IiaeError: a value is not finite.
    """
    queries, places = _numbers(queries, "queries"), np.arange(len(queries))
    partners = _numbers(gallery[: len(queries)], "the gallery")
    own = measure(queries, partners, places[:, None], metric)[:, 0]
    ranks, own_keys = np.ones(len(queries), np.int64), _keys(own, metric)
    for start, part in checked_slices(gallery):
        frame = Frame(queries, part, metric)
        products = Products(frame(part, 1))
        for block in _blocks(len(queries), queries.shape[1]):
            few, moved = queries[block], frame(queries[block], 0)
            squared = own[block] * 2 if metric == "cosine" else (own[block] * frame.scale) ** 2
            error = frame.error(moved, squared)
            low, high = (
                torch.from_numpy((squared + sign * error - squares(moved)) / 2).float()[:, None]
                for sign in (-1, 1)
            )
            for first, scores in products.blocks(moved):
                nearer = scores < low
                ranks[block] += nearer.sum(1).numpy()
                open_ = ((scores <= high) ^ nearer).nonzero().numpy().T
                rows, partner = part[first : first + scores.shape[1]], places[block] - start - first
                ranks[block] += _before(few, rows, open_, own_keys[block], partner, metric)
    return ranks


def measured_first(
    queries: NDArray[Any], gallery: NDArray[Any], near: Ints, k: int, metric: Metric
) -> Found:
    """Returns the first k of the rows `near` (Q, K) of the gallery, and their distances."""
    near = np.sort(near, axis=1)
    none = near[:, :0], np.empty((len(near), 0))
    return _merged(none, (near, measure(queries, gallery, near, metric)), k, metric)


def measure(queries: NDArray[Any], gallery: NDArray[Any], near: Ints, metric: Metric) -> Floats:
    """Returns the distances (Q, K) between every query and its rows `near` (Q, K) of the
    gallery.
    """
    distances = np.empty(near.shape)
    step = max(1, BATCH_VALUES // max(1, near.shape[1] * queries.shape[1]))
    for start in range(0, len(near), step):
        part = slice(start, start + step)
        pairs = queries[part, None], gallery[near[part]]
        distances[part] = _distances(*pairs, metric)[:, 0]
    return distances


def _distances(a: NDArray[Any], b: NDArray[Any], metric: Metric) -> Floats:
    """Returns (…, M, N) distances of rows (…, M, S) and (…, N, S), differences first, in
    float64.
    """
    left, right = (torch.from_numpy(rows).double() for rows in (a, b))
    if metric == "cosine":
        left, right = unit_rows(left, 0), unit_rows(right, 1)
    found = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
    distances: Floats = found.numpy() if metric == "euclidean" else found.square().numpy() / 2
    return distances


def _keys(distances: Floats, metric: Metric) -> Ints:
    """Returns integers in the order of the distances; equal ones for distances that tie."""
    if metric == "cosine":
        return np.rint(distances * 2.0**40).astype(np.int64)
    return (np.ascontiguousarray(distances).view(np.int64) + 2**11) >> 12  # 40 bits of the fraction


def _merged(known: Found, new: Found, k: int, metric: Metric) -> Found:
    """Returns the first k of both; `known` stands earlier in the gallery, `new` is in its order."""
    rows, distances = (np.concatenate(parts, axis=1) for parts in zip(known, new, strict=True))
    order = np.argsort(_keys(distances, metric), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1)


def _smallest(keys: Ints, k: int) -> Ints:
    """Returns the places (Q, k), ascending, of the k smallest keys (Q, G), of equal ones
    the first.
    """
    last = np.partition(keys, k - 1, axis=1)[:, k - 1 : k]
    below, equal = keys < last, keys == last
    keep = below | (equal & (np.cumsum(equal, axis=1) <= k - below.sum(axis=1, keepdims=True)))
    places: Ints = keep.nonzero()[1].reshape(len(keys), k)
    return places


def _before(
    queries: NDArray[Any], rows: NDArray[Any], pairs: Ints, own: Ints, partner: Ints, metric: Metric
) -> Ints:
    """Counts the rows of `pairs` (2, P) that stand before each query's partner, of key
    `own` (Q,).
    """
    left, right = pairs
    if len(left) > 16 * len(queries):
        keys = _keys(_distances(queries, rows, metric), metric)[left, right]
    else:
        each = _distances(queries[left][:, None], rows[right][:, None], metric)
        keys = _keys(each[:, 0, 0], metric)
    before = (keys < own[left]) | ((keys == own[left]) & (right < partner[left]))
    counts: Ints = np.bincount(left[before], minlength=len(queries))
    return counts


def _numbers(rows: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns rows in float32 if that holds them, else in float64.

    Raises:
        IiaeError: a value is not finite.
    """
    rows = np.asarray(rows)
    single = rows.dtype in (np.float16, np.float32)
    rows = np.ascontiguousarray(rows, np.float32 if single else np.float64)
    if not largest_value(rows) < _HUGE:  # not a number compares as false
        raise IiaeError(
            f"latents of {name} are not all finite",
            "encode them again; check the model and its inputs",
        )
    return rows


def checked_slices(gallery: Rows) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yields (first row, rows) of the gallery in order."""
    size, width = gallery.shape
    step = max(1, SLICE_VALUES * (4 if width >= 1024 else 1) // max(1, width))
    for start in range(0, size, step):
        yield start, _numbers(gallery[start : start + step], "the gallery")


def _blocks(count: int, values: int) -> Iterator[slice]:
    """Yields slices of queries, of so many values each."""
    step = max(1, min(QUERY_ROWS, QUERY_VALUES // max(1, values)))
    for start in range(0, count, step):
        yield slice(start, start + step)
