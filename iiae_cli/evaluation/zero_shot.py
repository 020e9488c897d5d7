"""Retrieval by class (paper, Table 3): a gallery item is relevant where it has the query's class.

The whole ranking of every query counts, so memory is bounded by working through chunks of queries, and time by sorting
plain integers: a cosine similarity is rounded to a multiple of 2⁻⁴⁰ (10⁻¹²) and the gallery position packed below it
into one 64-bit key. Sorting keys ranks by similarity, equal ones in gallery order, several times faster than sorting
positions; rounding also lets equal latents tie although a matrix product summed them in another order.
"""

from __future__ import annotations

import os
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
CHUNK_BYTES = 16 * 2**20  # of similarities, per thread
_SIMILARITY_BITS = 40  # fewer for galleries of more than two million
_KEY_BITS = 62


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

    rows = max(1, CHUNK_BYTES // (8 * len(shelf)))
    parts = [slice(start, start + rows) for start in range(0, len(vectors), rows)]

    def work(part: slice) -> dict[str, NDArray[np.float64]]:
        return _rank_chunk(vectors[part] @ shelf.T, query_codes[part], gallery_codes, relevant[part])

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


def _rank_chunk(
    similarities: NDArray[np.float64],
    query_codes: NDArray[np.int32],
    gallery_codes: NDArray[np.int32],
    relevant: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Sums of precisions at relevant ranks, over the whole ranking and its first `MAP_CUTOFF`, and precisions at K."""
    size = len(gallery_codes)
    position_bits = max(1, (size - 1).bit_length())
    scale = float(2 ** min(_SIMILARITY_BITS, _KEY_BITS - position_bits))
    # Descending similarity is ascending key: −similarity in the upper bits, the gallery position in the lower ones.
    keys = np.multiply(similarities, -scale, out=similarities)
    np.rint(keys, out=keys)
    packed = keys.astype(np.int64)
    packed <<= position_bits
    packed |= np.arange(size)
    packed.sort(axis=1)
    packed &= (1 << position_bits) - 1
    counts = np.arange(1, relevant.max() + 1, dtype=np.float64)
    figures = {name: np.empty(len(packed)) for name in ("all", "cut", *(f"precision@{k}" for k in PRECISION_CUTOFFS))}
    for row, order in enumerate(packed):
        ranks = np.flatnonzero(gallery_codes[order] == query_codes[row]) + 1  # of the relevant items, ascending
        precisions = counts[: len(ranks)] / ranks
        figures["all"][row] = precisions.sum()
        figures["cut"][row] = precisions[: np.searchsorted(ranks, MAP_CUTOFF, side="right")].sum()
        for k in PRECISION_CUTOFFS:
            figures[f"precision@{k}"][row] = np.searchsorted(ranks, k, side="right") / min(k, size)
    return figures


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
