"""Exact distances of candidates, and their order: what every way of finding neighbours agrees on.

A distance is a function of its two rows alone: float64, differences first, summed by one fixed rule. Which chunk,
thread or library proposed a pair cannot change it, so searches that propose enough pairs return the same neighbours,
bit for bit. Distances closer than `TIE` (of the distance itself for squared Euclidean ones, absolute for cosine) tie,
because equal distances of different rows still round apart; a run of ties stands in gallery order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Metric: TypeAlias = Literal["euclidean", "cosine"]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

TIE = 1e-12
_BATCH_VALUES = 2**18  # of one batch of rows in float64, 2 MiB: stays in a core's cache


def beyond(distances: Floats, metric: Metric, sign: int = 1) -> Floats:
    """The largest (sign 1) or smallest (sign −1) distance that ties with each of `distances`."""
    return distances * (1.0 + sign * TIE) if metric == "euclidean" else distances + sign * TIE


def pair_distances(
    queries: NDArray[Any], gallery: NDArray[Any], pairs: tuple[Ints, Ints], metric: Metric
) -> Floats:
    """Squared Euclidean or cosine distance of each pair (query row, gallery row): (P,).

    Args:
        queries: (Q, S).
        gallery: (G, S).
        pairs: (P,) rows of queries, (P,) rows of the gallery.
        metric: distance; for cosine a zero vector is at distance 1 from everything.
    """
    found = np.empty(len(pairs[0]))
    # Where pairs are more than rows, a row's length is worth knowing beforehand; it is the same number.
    known = metric == "cosine" and len(found) > len(queries) + len(gallery)
    left, right = (row_lengths(queries), row_lengths(gallery)) if known else (found, found)
    step = max(1, _BATCH_VALUES // max(1, queries.shape[1]))
    for start in range(0, len(found), step):
        part = slice(start, start + step)
        a, b = (
            rows[of[part]].astype(np.float64, copy=False)
            for rows, of in zip((queries, gallery), pairs, strict=True)
        )
        if metric == "euclidean":
            found[part] = _sums(np.square(np.subtract(a, b)))
            continue
        lengths = (
            left[pairs[0][part]] * right[pairs[1][part]]
            if known
            else row_lengths(a) * row_lengths(b)
        )
        cosines = _sums(a * b) / np.where(lengths > 0, lengths, 1.0)
        found[part] = np.clip(1.0 - cosines, 0.0, 2.0)
    return found


def first_equal(rows: NDArray[Any]) -> Ints:
    """For every row the first row of equal bytes: (N,)."""
    first: dict[bytes, int] = {}
    return np.array(
        [first.setdefault(row.tobytes(), place) for place, row in enumerate(rows)], np.int64
    )


def row_lengths(rows: NDArray[Any]) -> Floats:
    """Euclidean lengths of rows (N, S) in float64, each a function of its row alone: (N,)."""
    found = np.empty(len(rows))
    step = max(1, _BATCH_VALUES // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        values = rows[start : start + step].astype(np.float64, copy=False)
        found[start : start + step] = np.sqrt(_sums(values * values))
    return found


def _sums(values: Floats) -> Floats:
    # Along contiguous rows numpy sums each by itself, pairwise: the same bits wherever the row stands.
    sums: Floats = values.sum(axis=1)
    return sums


@dataclass
class Found:
    """Candidates of Q queries, flat: `query` ascending; within one query by distance, then gallery row.

    Attributes:
        query: (P,) which query, from 0.
        row: (P,) of the gallery.
        distance: (P,) exact.
    """

    query: Ints
    row: Ints
    distance: Floats

    @classmethod
    def none(cls) -> Found:
        """No candidate yet."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))

    def cuts(self, count: int, k: int) -> Floats:
        """The k-th distance of each of `count` queries, infinite where fewer are known: (Q,)."""
        cuts = np.full(count, np.inf)
        starts, sizes = _segments(self.query, count)
        full = sizes >= k
        cuts[full] = self.distance[starts[full] + k - 1]
        return cuts

    def merged(self, other: Found, count: int, k: int, metric: Metric) -> Found:
        """Both, less what can no longer be among the first k.

        What stays are distances up to the k-th and its ties, of exactly equal ones the first k in the gallery: later
        ones could be chosen by no rule.
        """
        query, row, distance = (
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("query", "row", "distance")
        )
        order = _order(query, distance, row)
        sorted_ = Found(query[order], row[order], distance[order])
        keep = sorted_.distance <= beyond(sorted_.cuts(count, k), metric)[sorted_.query]
        places = np.arange(len(order))
        fresh = np.ones(len(order), bool)
        fresh[1:] = (np.diff(sorted_.query) != 0) | (np.diff(sorted_.distance) != 0)
        keep &= places - np.maximum.accumulate(np.where(fresh, places, 0)) < k
        return Found(sorted_.query[keep], sorted_.row[keep], sorted_.distance[keep])

    def first(self, count: int, k: int, metric: Metric) -> tuple[Ints, Floats]:
        """Rows (Q, K) and distances (Q, K) of the first k, ties in gallery order; each query must have k of them."""
        # Runs of ties: each distance is within the tolerance of the one before it.
        fresh = np.ones(len(self.query), bool)
        fresh[1:] = (np.diff(self.query) != 0) | (
            self.distance[1:] > beyond(self.distance[:-1], metric)
        )
        starts, _ = _segments(self.query, count)
        chosen = starts[:, None] + np.arange(k)
        if not fresh.all():
            chosen = np.lexsort((self.row, np.cumsum(fresh)))[chosen]
        return self.row[chosen], self.distance[chosen]


def _order(query: Ints, distance: Floats, row: Ints) -> Ints:
    """By query, distance and row; as `numpy.lexsort`, faster for the few queries of a block."""
    if len(query) and query.max() >= 2**16:
        return np.lexsort((row, distance, query))
    if (np.diff(row) < 0).any():
        order = np.argsort(row, kind="stable")
        order = order[np.argsort(distance[order], kind="stable")]
    else:
        order = np.argsort(distance, kind="stable")
    # A stable sort of 16-bit integers counts them.
    return order[np.argsort(query[order].astype(np.uint16), kind="stable")]


def _segments(query: Ints, count: int) -> tuple[Ints, Ints]:
    sizes = np.bincount(query, minlength=count)
    return np.cumsum(sizes) - sizes, sizes
