"""Retrieval by class (paper, Table 3): a gallery item is relevant where it has the query's class.

The whole ranking of every query counts, so memory is bounded by working through chunks of queries,
and time by sorting plain 32-bit integers instead of positions: a cosine similarity rounded to 2⁻³⁰
(10⁻⁹), and in the lowest bit whether the item is relevant. What is sorted then *is* the pattern of
relevant ranks. Where a relevant item stands within a rounding step of one that is not, which item
comes first is open: such queries, a few in a hundred unless latents are equal, are ranked again by
64-bit keys, a similarity rounded to 2⁻⁴⁰ (10⁻¹²) above the gallery position. Those rank equal
similarities in gallery order, also where a matrix product summed them in another order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from iiae_cli.common.errors import IiaeError

_Figures: TypeAlias = dict[str, NDArray[Any]]

MAP_CUTOFF = 200
PRECISION_CUTOFFS = (100, 200)
CHUNK_BYTES = 16 * 2**20  # of similarities, per thread
_COLUMNS, _TOGETHER = 512, 8  # of the gallery, queries: what a processor's cache holds
_SIMILARITY_BITS = 40  # fewer for galleries of more than two million
_KEY_BITS = 62
_SHORT_SCALE = 2.0**30 * (1 - 2.0**-10)  # a similarity of 1, and rounding beyond it, fits 31 bits


@dataclass(frozen=True)
class Ranking:
    """Figures of every query that has a relevant item, in the queries' order.

    Attributes:
        average_precision: (Q,) over the whole ranking: mean over *all* relevant items of the
            precision at their rank.
        average_precision_at: (Q,) over the first `MAP_CUTOFF`: the sum of those precisions divided
            by min(`MAP_CUTOFF`, relevant items in the gallery), the most that sum can be.
        average_precision_released: (Q,) the same sum divided by `MAP_CUTOFF`, as the paper's
            released code does.
        precision: (Q,) by cut-off K: relevant fraction of the first K (of all, where the gallery is
            smaller).
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
    """Rank the gallery for every query by cosine similarity; ties go to gallery order, a zero
    vector is at 0 from all.

    Args:
        queries: (Q, S).
        gallery: (G, S).
        query_labels: (Q,) classes.
        gallery_labels: (G,) classes.
        threads: that rank chunks of queries; None: one per usable core.

    Raises:
        IiaeError: latents that are not finite, or no query with a relevant item.
    """
    classes, codes = np.unique(
        np.asarray([*query_labels, *gallery_labels], dtype=np.str_), return_inverse=True
    )
    query_codes, gallery_codes = np.split(codes.astype(np.int32), [len(query_labels)])
    relevant = np.bincount(gallery_codes, minlength=len(classes))[query_codes]
    kept = relevant > 0
    if not kept.any():
        raise IiaeError(
            "no query has an item of its class in the gallery", "check the labels of both domains"
        )
    vectors, shelf = _unit(queries, "queries")[kept], _unit(gallery, "the gallery")
    query_codes, relevant = query_codes[kept], relevant[kept]

    size = max(1, CHUNK_BYTES // (8 * len(shelf)))
    ranker = _Ranker(shelf, gallery_codes, len(classes), size)

    # One thread a chunk: matrix products with threads of their own would wait for one another.
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads or _usable_cores()) as pool,
    ):

        def in_chunks(rank: Callable[..., _Figures], rows: NDArray[np.int64]) -> _Figures:
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            done = list(pool.map(lambda part: rank(vectors[part], query_codes[part]), parts))
            return {name: np.concatenate([one[name] for one in done]) for name in done[0]}

        found = in_chunks(ranker.by_short_keys, np.arange(len(vectors)))
        undecided = np.flatnonzero(found.pop("undecided"))
        if undecided.size:
            for name, values in in_chunks(ranker.by_long_keys, undecided).items():
                found[name][undecided] = values
    return Ranking(
        average_precision=found["all"] / relevant,
        average_precision_at=found["cut"] / np.minimum(MAP_CUTOFF, relevant),
        average_precision_released=found["cut"] / MAP_CUTOFF,
        precision={k: found[f"precision@{k}"] for k in PRECISION_CUTOFFS},
        without_relevant=int((~kept).sum()),
    )


def _unit(rows: NDArray[Any], name: str) -> NDArray[np.float64]:
    values = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(values).all():
        raise IiaeError(f"latents of {name} are not all finite", "check the model and its inputs")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms > 0, norms, 1.0)


class _Room(threading.local):
    """Arrays that a thread uses for one chunk after another: the system's clearing of new ones
    takes long.
    """

    def __init__(self, rows: int, size: int, places: np.dtype[Any]) -> None:
        together = min(rows, _TOGETHER)
        self.keys = np.empty((rows, size), np.int32)
        self.block = np.empty(rows * min(size, _COLUMNS))
        self.marks = np.empty((together, size), places)
        self.steps = np.empty((together, size - 1), np.int32)


class _Ranker:
    """Ranks chunks of up to `rows` queries against a gallery, which it holds in order of
    classes.
    """

    def __init__(
        self, shelf: NDArray[np.float64], codes: NDArray[np.int32], classes: int, rows: int
    ) -> None:
        self._by_class = np.argsort(codes, kind="stable")
        self._shelf = np.empty(
            shelf.shape[::-1]
        )  # items are columns: a product reads them a quarter faster
        for row, component in zip(self._shelf, shelf.T, strict=True):
            row[:] = component[self._by_class]
        self._counts = np.bincount(codes, minlength=classes)
        stops = np.cumsum(self._counts)
        self._slices = [slice(*ends) for ends in zip([0, *stops[:-1]], stops, strict=True)]
        self._places = np.arange(1, len(shelf) + 1, dtype=np.min_scalar_type(len(shelf)))
        self._room = _Room(rows, len(shelf), self._places.dtype)

    def by_short_keys(self, vectors: NDArray[np.float64], codes: NDArray[np.int32]) -> _Figures:
        """`_sums` of queries (R, S) of classes (R,), and which are undecided: their ties are broken
        at will.
        """
        everything, ranks, undecided = self._short_keys(vectors), [], []
        for start in range(0, len(codes), _TOGETHER):
            keys, own = everything[start : start + _TOGETHER], codes[start : start + _TOGETHER]
            keys <<= 1
            for line, code in zip(keys, own, strict=True):
                relevant = line[self._slices[code]]
                relevant |= 1
            keys.sort(axis=1)
            ranks += self._ranks(keys, own)
            undecided.append(_undecided(keys, self._room.steps[: len(own)]))
        return {**_sums(ranks, len(self._places)), "undecided": np.concatenate(undecided)}

    def by_long_keys(self, vectors: NDArray[np.float64], codes: NDArray[np.int32]) -> _Figures:
        """`_sums` of queries (R, S) of classes (R,), equal similarities in gallery order."""
        bits = max(1, (len(self._places) - 1).bit_length())
        scale = 2.0 ** min(_SIMILARITY_BITS, _KEY_BITS - bits)
        ranks = []
        for line, code in zip((vectors * -scale) @ self._shelf, codes, strict=True):
            keys = np.rint(line, out=line).astype(np.int64)
            keys <<= bits
            keys |= self._by_class
            relevant = np.sort(keys[self._slices[code]])
            keys.sort()
            ranks.append(np.searchsorted(keys, relevant) + 1)
        return _sums(ranks, len(self._places))

    def _short_keys(self, vectors: NDArray[np.float64]) -> NDArray[np.int32]:
        """(R, G), which the thread's next chunk overwrites."""
        keys = self._room.keys[: len(vectors)]
        scaled = vectors * -_SHORT_SCALE  # descending similarity is ascending key
        # So few columns at once that they are cast while they lie in the processor's cache.
        for start in range(0, len(self._places), _COLUMNS):
            some = keys[:, start : start + _COLUMNS]
            products = self._room.block[: some.size].reshape(some.shape)
            np.matmul(scaled, self._shelf[:, start : start + _COLUMNS], out=products)
            np.copyto(some, products, casting="unsafe")
        return keys

    def _ranks(self, keys: NDArray[np.int32], codes: NDArray[np.int32]) -> list[NDArray[Any]]:
        """Where each line's lowest bits are set, from 1. Sorting finds out faster than branching at
        every key.
        """
        marks = self._room.marks[: len(keys)]
        np.copyto(marks, keys, casting="unsafe")
        marks &= 1
        marks *= self._places
        marks.sort(axis=1)
        return [line[-self._counts[code] :].copy() for line, code in zip(marks, codes, strict=True)]


def _undecided(keys: NDArray[np.int32], steps: NDArray[np.int32]) -> NDArray[np.bool_]:
    """In which lines a relevant item stands beside one that is not, and within a rounding step of
    it.

    Sorted keys of two such items differ by 1 or 3: their lowest bits differ, and the others by one
    at most.

    Args:
        keys: (R, G), sorted.
        steps: (R, G - 1) to work in.
    """
    np.subtract(keys[:, 1:], keys[:, :-1], out=steps)
    steps *= 1 - 2**31  # takes 2³¹ from odd numbers, nothing from even ones
    found: NDArray[np.bool_] = steps.min(axis=1, initial=0) <= 3 - 2**31
    return found


def _sums(each: list[NDArray[Any]], size: int) -> _Figures:
    """Sums of precisions at relevant ranks, over the whole ranking and its first `MAP_CUTOFF`;
    precisions at K.

    Args:
        each: ranks of every query's relevant items, ascending from 1.
        size: of the gallery.
    """
    counts = np.array([len(ranks) for ranks in each])
    ranks, starts = np.concatenate(each), np.cumsum(counts) - counts
    found = np.arange(1, len(ranks) + 1)
    found -= np.repeat(starts, counts)
    precisions = found / ranks
    figures = {"all": np.add.reduceat(precisions, starts)}
    precisions *= ranks <= MAP_CUTOFF
    figures["cut"] = np.add.reduceat(precisions, starts)
    for k in PRECISION_CUTOFFS:
        figures[f"precision@{k}"] = np.add.reduceat(ranks <= k, starts, dtype=np.float64) / min(
            k, size
        )
    return figures


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
