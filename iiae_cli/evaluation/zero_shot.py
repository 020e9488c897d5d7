"""Retrieval by class (paper, Table 3): a gallery item is relevant where it has the query's class.

The whole ranking of every query counts, so memory is bounded by working through chunks of queries, and time by sorting
plain 32-bit integers instead of positions: a cosine similarity rounded to 2⁻³⁰ (10⁻⁹), and in the lowest bit whether
the item is relevant. What is sorted then *is* the pattern of relevant ranks. Where a relevant item stands within a
rounding step of its neighbour, which item comes first is open: such queries, a few in a hundred unless latents are
equal, are ranked again by 64-bit keys, a similarity rounded to 2⁻⁴⁰ (10⁻¹²) above the gallery position. Those rank
equal similarities in gallery order, also where a matrix product summed them in another order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from iiae_cli.errors import IiaeError

MAP_CUTOFF = 200
PRECISION_CUTOFFS = (100, 200)
CHUNK_BYTES = 8 * 2**20  # of similarities, per thread
_SIMILARITY_BITS = 40  # fewer for galleries of more than two million
_KEY_BITS = 62
_SHORT_SCALE = 2.0**30 * (1 - 2.0**-10)  # a similarity of 1, and rounding beyond it, fits 31 bits


@dataclass(frozen=True)
class Ranking:
    """Figures of every query that has a relevant item, in the queries' order.

    Attributes:
        average_precision: (Q,) over the whole ranking: mean over *all* relevant items of the precision at their rank.
        average_precision_at: (Q,) over the first `MAP_CUTOFF`: the sum of those precisions divided by
            min(`MAP_CUTOFF`, relevant items in the gallery), the most that sum can be.
        average_precision_released: (Q,) the same sum divided by `MAP_CUTOFF`, as the paper's released code does.
        precision: (Q,) by cut-off K: relevant fraction of the first K (of all, where the gallery is smaller).
        without_relevant: queries left out, because nothing in the gallery has their class.
    """

    average_precision: NDArray[np.float64]
    average_precision_at: NDArray[np.float64]
    average_precision_released: NDArray[np.float64]
    precision: dict[int, NDArray[np.float64]]
    without_relevant: int

    def figures(self) -> dict[str, float]:
        """Means over queries, as `evaluate --json` names them."""
        return {
            "map@all": float(self.average_precision.mean()),
            f"map@{MAP_CUTOFF}": float(self.average_precision_at.mean()),
            f"map@{MAP_CUTOFF}_released": float(self.average_precision_released.mean()),
            **{f"precision@{k}": float(values.mean()) for k, values in self.precision.items()},
            "n": len(self.average_precision),
            "without_relevant": self.without_relevant,
        }


def rank_by_class(
    queries: NDArray[Any],
    gallery: NDArray[Any],
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
    *,
    threads: int | None = None,
) -> Ranking:
    """Rank the gallery for every query by cosine similarity; ties go to gallery order, a zero vector is at 0 from all.

    Args:
        queries: (Q, S).
        gallery: (G, S).
        query_labels: (Q,) classes.
        gallery_labels: (G,) classes.
        threads: that rank chunks of queries; None: one per usable core.

    Raises:
        IiaeError: latents that are not finite, or no query with a relevant item.
    """
    classes, codes = np.unique(np.asarray([*query_labels, *gallery_labels], dtype=np.str_), return_inverse=True)
    query_codes, gallery_codes = np.split(codes.astype(np.int32), [len(query_labels)])
    relevant = np.bincount(gallery_codes, minlength=len(classes))[query_codes]
    kept = relevant > 0
    if not kept.any():
        raise IiaeError("no query has an item of its class in the gallery", "check the labels of both domains")
    vectors, shelf = _unit(queries, "queries")[kept], _unit(gallery, "the gallery")
    query_codes, relevant = query_codes[kept], relevant[kept]

    ranker = _Ranker(shelf, gallery_codes, len(classes))
    rows = max(1, CHUNK_BYTES // (8 * len(shelf)))
    parts = [slice(start, start + rows) for start in range(0, len(vectors), rows)]

    def work(part: slice) -> dict[str, NDArray[np.float64]]:
        return ranker.figures(vectors[part], query_codes[part])

    # One thread a chunk: matrix products with threads of their own would wait for one another.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads or _usable_cores()) as pool:
        done = list(pool.map(work, parts))
    joined = {name: np.concatenate([one[name] for one in done]) for name in done[0]}
    return Ranking(
        average_precision=joined["all"] / relevant,
        average_precision_at=joined["cut"] / np.minimum(MAP_CUTOFF, relevant),
        average_precision_released=joined["cut"] / MAP_CUTOFF,
        precision={k: joined[f"precision@{k}"] for k in PRECISION_CUTOFFS},
        without_relevant=int((~kept).sum()),
    )


def _unit(rows: NDArray[Any], name: str) -> NDArray[np.float64]:
    values = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(values).all():
        raise IiaeError(f"latents of {name} are not all finite", "check the model and its inputs")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms > 0, norms, 1.0)


class _Ranker:
    """The gallery in order of classes, and room for one chunk of keys per thread."""

    def __init__(self, shelf: NDArray[np.float64], codes: NDArray[np.int32], classes: int) -> None:
        self._by_class = np.argsort(codes, kind="stable")
        self._shelf = shelf[self._by_class]
        self._stops = np.cumsum(np.bincount(codes, minlength=classes))
        self._starts = np.concatenate([[0], self._stops[:-1]])
        self._room = threading.local()

    def figures(self, vectors: NDArray[np.float64], codes: NDArray[np.int32]) -> dict[str, NDArray[np.float64]]:
        """Sums of precisions at relevant ranks, over the whole ranking and its first `MAP_CUTOFF`; precisions at K."""
        similarities, keys = self._arrays(len(vectors))
        # Descending similarity is ascending key.
        np.matmul(vectors * -_SHORT_SCALE, self._shelf.T, out=similarities)
        np.copyto(keys, similarities, casting="unsafe")
        keys <<= 1
        for line, code in zip(keys, codes, strict=True):
            line[self._starts[code] : self._stops[code]] |= 1
        keys.sort(axis=1)
        counts = (self._stops - self._starts)[codes]
        places = np.flatnonzero((keys & 1).astype(np.bool_))
        starts = np.cumsum(counts) - counts
        ranks = places - np.repeat(np.arange(len(codes)) * keys.shape[1], counts) + 1
        for row in self._undecided(keys, places, ranks, starts):
            part = slice(starts[row], starts[row] + counts[row])
            ranks[part] = self._ranks_with_ties(similarities[row], codes[row])
        return _sums(ranks, starts, counts, keys.shape[1])

    def _arrays(self, rows: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Reused: the system's clearing of new memory would take as long as the sorting."""
        if getattr(self._room, "rows", 0) < rows:
            shape = rows, len(self._shelf)
            self._room.similarities, self._room.keys = np.empty(shape), np.empty(shape, np.int32)
            self._room.rows = rows
        return self._room.similarities[:rows], self._room.keys[:rows]

    @staticmethod
    def _undecided(
        keys: NDArray[np.int32], places: NDArray[np.int64], ranks: NDArray[np.int64], starts: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Rows in which a relevant item is within one rounding step of another item beside it."""
        flat, last = keys.reshape(-1), keys.shape[1]
        here = flat[places] >> 1
        near = (ranks < last) & ((flat[np.minimum(places + 1, flat.size - 1)] >> 1) - here <= 1)
        near |= (ranks > 1) & (here - (flat[np.maximum(places - 1, 0)] >> 1) <= 1)
        return np.unique(np.searchsorted(starts, np.flatnonzero(near), side="right") - 1)

    def _ranks_with_ties(self, similarities: NDArray[np.float64], code: int) -> NDArray[np.int64]:
        """Ranks of one query's relevant items, equal similarities in gallery order."""
        bits = max(1, (len(similarities) - 1).bit_length())
        scale = 2.0 ** min(_SIMILARITY_BITS, _KEY_BITS - bits) / _SHORT_SCALE
        keys = np.rint(similarities * scale).astype(np.int64)
        keys <<= bits
        keys |= self._by_class
        relevant = np.sort(keys[self._starts[code] : self._stops[code]])
        keys.sort()
        return np.searchsorted(keys, relevant) + 1


def _sums(
    ranks: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64], size: int
) -> dict[str, NDArray[np.float64]]:
    """Per query from its relevant items' ranks, ascending, those of all queries in one array."""
    found = np.arange(1, len(ranks) + 1) - np.repeat(starts, counts)
    precisions = found / ranks
    figures = {
        "all": np.add.reduceat(precisions, starts),
        "cut": np.add.reduceat(np.where(ranks <= MAP_CUTOFF, precisions, 0.0), starts),
    }
    for k in PRECISION_CUTOFFS:
        figures[f"precision@{k}"] = np.add.reduceat((ranks <= k).astype(np.float64), starts) / min(k, size)
    return figures


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
