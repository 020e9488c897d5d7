"""Proposes neighbours by float32 products, with torch, scikit-learn or faiss.

Shapes: Q queries, G gallery rows, S dimensions, k proposals; blocks of C gallery rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.common.errors import IiaeError

Metric: TypeAlias = Literal["euclidean", "cosine"]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Proposed: TypeAlias = tuple[NDArray[Any], NDArray[Any]]  # squared distances and rows (Q, k)
# Finds about the k nearest rows of a gallery, nearest first.
Propose: TypeAlias = Callable[[Tensor, int], Proposed]

PRODUCT_ROWS = 512  # queries per block of products
BLOCK_VALUES = 2**21  # values per block of products: 8 MiB in float32
_LAST, _SIGNLESS = np.iinfo(np.int64).max, np.int32(0x7FFFFFFF)


def products(queries: Tensor, gallery: Tensor, least: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Yields (first row, |g|² / 2 - q·g (Q, C)): half of squared distances, less |q|² / 2.

    C is at least `least` in the first block. The next block overwrites the last.
    """
    width = max(least, BLOCK_VALUES // max(1, len(queries)))
    buffer = torch.empty(len(queries), min(width, len(gallery)))
    for start in range(0, len(gallery), width):
        part = gallery[start : start + width]
        half = torch.linalg.vector_norm(part, dim=1).square_() / 2
        yield start, torch.addmm(half, queries, part.T, alpha=-1, out=buffer[:, : len(part)])


def _by_torch(gallery: Tensor, metric: Metric) -> Propose:
    """Collects rows nearer than the last known k-th best, and sorts them when there are many."""

    def propose(queries: Tensor, k: int) -> Proposed:
        keys = [nearest_keys(queries[block], k) for block in slices(len(queries), PRODUCT_ROWS)]
        halves, rows = _unpacked(np.sort(np.concatenate(keys), axis=1))
        return halves * 2 + squares(queries)[:, None], rows

    def nearest_keys(queries: Tensor, k: int) -> Ints:
        best, hits, waiting = np.full((len(queries), k), _LAST), list[tuple[Ints, Ints]](), 0
        for start, values in products(queries, gallery, k):
            block, width = values.numpy(), values.shape[1]
            if start == 0:
                limit = np.partition(block, k - 1, axis=1)[:, k - 1 : k]
                near = block <= limit
            else:
                near = block < limit
            place = np.flatnonzero(near)
            query = place // width
            keys = _packed(block.ravel()[place], start + place - query * width)
            hits.append((query, keys))
            waiting += len(query)
            if waiting > best.size:
                best = _merged(best, hits)
                limit, hits, waiting = _unpacked(best.max(axis=1, keepdims=True))[0], [], 0
        return _merged(best, hits)

    return propose


def _packed(values: NDArray[np.float32], rows: Ints) -> Ints:
    """Returns integers in the order of the values, with the rows in their lower half."""
    bits = values.view(np.int32)
    return (np.where(bits < 0, bits ^ _SIGNLESS, bits).astype(np.int64) << 32) | rows


def _unpacked(keys: Ints) -> tuple[NDArray[np.float32], Ints]:
    bits = (keys >> 32).astype(np.int32)
    return np.where(bits < 0, bits ^ _SIGNLESS, bits).view(np.float32), keys & 0xFFFFFFFF


def _merged(best: Ints, hits: Sequence[tuple[Ints, Ints]]) -> Ints:
    """Returns the k least keys (Q, k) of `best` and `hits`, in any order."""
    if not hits:
        return best
    query, keys = map(np.concatenate, zip(*hits, strict=True))
    order = np.argsort(query.astype(np.int16), kind="stable")  # a radix sort
    query, keys = query[order], keys[order]
    # From a list of pairs to a table, beside the known keys.
    count, k = best.shape
    counts = np.bincount(query, minlength=count)
    column = k + np.arange(len(query)) - (counts.cumsum() - counts)[query]
    table = np.full((count, k + int(counts.max())), _LAST)
    table[:, :k] = best
    table[query, column] = keys
    return np.partition(table, k - 1, axis=1)[:, :k]


def _by_sklearn(gallery: Tensor, metric: Metric) -> Propose:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(gallery.numpy())
    return lambda queries, k: index.kneighbors(queries.numpy(), k)


def _by_faiss(gallery: Tensor, metric: Metric) -> Propose:
    try:
        import faiss
    except ImportError as error:
        install = "pip install 'iiae-cli[faiss]', or leave out --backend faiss"
        raise IiaeError("faiss is not installed", install) from error
    cosine = metric == "cosine"  # for rows of length 1 products are equivalent, and faster
    index = (faiss.IndexFlatIP if cosine else faiss.IndexFlatL2)(gallery.shape[1])
    index.add(gallery.numpy())

    def propose(queries: Tensor, k: int) -> Proposed:
        values, rows = index.search(queries.numpy(), k)
        return 2 - 2 * values if cosine else values, rows

    return propose


PROPOSERS = {"torch": _by_torch, "sklearn": _by_sklearn, "faiss": _by_faiss}


def slices(count: int, step: int) -> Iterator[slice]:
    """Yields slices of `step` items, the last one shorter."""
    for start in range(0, count, max(1, step)):
        yield slice(start, start + max(1, step))


def squares(rows: Tensor) -> Floats:
    """Returns the squared lengths (N,) of rows."""
    squared: Floats = torch.linalg.vector_norm(rows, dim=1).double().square().numpy()
    return squared
