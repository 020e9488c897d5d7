"""Products in float32 that propose neighbours: by torch, scikit-learn or faiss.

Shapes: Q queries, G rows of a slice of the gallery, S dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.common.errors import IiaeError

Metric: TypeAlias = Literal["euclidean", "cosine"]
Backend: TypeAlias = Literal["auto", "sklearn", "torch", "faiss"]
Floats: TypeAlias = NDArray[np.float64]
# Finds about the k nearest rows of a slice: squared distances (Q, k) and rows (Q, k), in any order.
Proposer: TypeAlias = Callable[[Tensor, int], tuple[NDArray[Any], NDArray[Any]]]

BLOCK_VALUES = 2**21  # of a block of products, 8 MiB in float32
BATCH_VALUES = 2**17  # of rows that are read a few times, so that they stay in a core's cache
SMALL = 2**24  # multiplications that scikit-learn does in less time than another library loads
_GROUP = 64  # products of which the smallest is compared first


def choose_backend(backend: Backend, queries: int, gallery: int, width: int) -> Backend:
    """Returns the backend that `auto` stands for at these sizes."""
    if backend != "auto":
        return backend
    return "sklearn" if queries * gallery * width <= SMALL else "torch"


def import_faiss() -> Any:
    """Returns the faiss library; raises IiaeError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        install = "pip install 'iiae-cli[faiss]', or leave out --backend faiss and --approximate"
        raise IiaeError("faiss is not installed", install) from error
    return faiss


class Frame:
    """Moves rows to where float32 products are precise: amid the data, or to unit length for
    cosine.
    """

    def __init__(self, queries: NDArray[Any], part: NDArray[Any], metric: Metric) -> None:
        self.metric = metric
        largest = max(largest_value(queries), largest_value(part))
        # Powers of two, which round nothing; 2¹⁰⁰ is within float32.
        self.scale = min(2.0 ** -float(np.frexp(largest)[1]), 2.0**100)
        centre = part[:4096].mean(axis=0, dtype=np.float64).astype(part.dtype)
        self._centre = torch.from_numpy(centre) * self.scale

    def __call__(self, rows: NDArray[Any], side: Literal[0, 1]) -> Tensor:
        """Returns rows (N, S) of the queries, side 0, or of the gallery in float32."""
        spare = 2 if self.metric == "cosine" else 0
        moved = torch.empty(len(rows), rows.shape[1] + spare)
        step = max(1, BATCH_VALUES // rows.shape[1])
        for start in range(0, len(rows), step):
            values = torch.from_numpy(rows[start : start + step])
            moved[start : start + step] = (
                unit_rows(values, side)
                if self.metric == "cosine"
                else (values * self.scale).sub_(self._centre)
            )
        return moved

    def error(self, moved: Tensor, squared: NDArray[Any]) -> Floats:
        """Bounds the rounding of squared distances between rows (Q, S) and what is so far from
        them.
        """
        unit = (8 * moved.shape[1] ** 0.5 + 8) * 2.0**-24
        found: Floats = unit * (np.sqrt(squares(moved)) + np.sqrt(np.maximum(squared, 0))) ** 2
        return found + 1e-38  # below it float32 underflows


class Products:
    """Products of queries with a slice of the gallery, block by block."""

    def __init__(self, gallery: Tensor) -> None:
        self._gallery = gallery
        self._half = torch.linalg.vector_norm(gallery, dim=1).square_() / 2

    def blocks(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yields (first row, |g|² / 2 - q·g (Q, C)): half of what a squared distance exceeds |q|²
        by.

        C is a multiple of `_GROUP`: columns behind the last row are infinite. A block is
        overwritten by the next one.
        """
        padded = -(-len(self._gallery) // _GROUP) * _GROUP
        width = min(padded, -(-BLOCK_VALUES // (len(queries) * _GROUP)) * _GROUP)
        buffer = torch.empty(len(queries), width)
        for start in range(0, len(self._gallery), width):
            part = self._gallery[start : start + width]
            block = buffer[:, : -(-len(part) // _GROUP) * _GROUP]
            block[:, len(part) :] = torch.inf
            half = self._half[start : start + width]
            torch.addmm(half, queries, part.T, alpha=-1, out=block[:, : len(part)])
            yield start, block

    def nearest(self, queries: Tensor, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Proposes; of most blocks only the smallest value of each group of columns is compared."""
        best = torch.full((len(queries), k), torch.inf)
        rows = torch.zeros((len(queries), k), dtype=torch.int64)
        for start, block in self.blocks(queries):
            size = _GROUP
            while size > 1 and block.shape[1] < 2 * k * size:
                size //= 2
            groups = block.view(len(block), size, -1)
            least = groups.amin(dim=1)
            limit = best.amax(dim=1)
            if start == 0 and k <= least.shape[1]:
                # The smallest of k groups are k rows: the k-th nearest is no farther.
                limit = least.kthvalue(k, dim=1).values
                limit = torch.nextafter(limit, torch.tensor(torch.inf))
            query, group = (least < limit[:, None]).nonzero(as_tuple=True)
            values = groups[query, :, group]
            hit, place = (values < limit[query, None]).nonzero(as_tuple=True)
            query, row = query[hit], start + place * least.shape[1] + group[hit]
            # From a list of pairs to a table, beside what is known.
            counts = torch.bincount(query, minlength=len(queries))
            column = k + torch.arange(len(query)) - (counts.cumsum(0) - counts)[query]
            near = torch.full((len(queries), k + int(counts.max())), torch.inf)
            where = torch.zeros(near.shape, dtype=torch.int64)
            near[:, :k], where[:, :k] = best, rows
            near[query, column], where[query, column] = values[hit, place], row
            best, chosen = near.topk(k, dim=1, largest=False, sorted=False)
            rows = where.gather(1, chosen)
        return best.numpy() * 2 + squares(queries)[:, None], rows.numpy()


def _by_torch(gallery: Tensor) -> Proposer:
    return Products(gallery).nearest


def _by_sklearn(gallery: Tensor) -> Proposer:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(gallery.numpy())
    return lambda queries, k: index.kneighbors(queries.numpy(), k)


def _by_faiss(gallery: Tensor) -> Proposer:
    index = import_faiss().IndexFlatL2(gallery.shape[1])
    index.add(gallery.numpy())
    return lambda queries, k: index.search(queries.numpy(), k)


PROPOSERS = {"torch": _by_torch, "sklearn": _by_sklearn, "faiss": _by_faiss}


def unit_rows(rows: Tensor, side: Literal[0, 1]) -> Tensor:
    """Returns rows (…, S + 2) of length 1, whose squared distances are twice the cosine ones.

    A zero vector points along a dimension of its side's own, at right angles to all of the other.
    """
    least = torch.finfo(rows.dtype).tiny
    rows = rows / rows.abs().amax(-1, keepdim=True).clamp_min(least)  # so that no square overflows
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    spare = torch.zeros(*rows.shape[:-1], 2, dtype=rows.dtype)
    spare[..., side : side + 1] = lengths == 0
    return torch.cat([rows / lengths.clamp_min(least), spare], dim=-1)


def largest_value(rows: NDArray[Any]) -> float:
    """Returns the largest absolute value."""
    if not rows.size:
        return 1.0
    low, high = torch.aminmax(torch.from_numpy(rows))
    return max(-float(low), float(high))


def squares(rows: Tensor) -> Floats:
    """Returns the squared lengths (N,) of rows."""
    lengths: Floats = torch.linalg.vector_norm(rows, dim=1).double().numpy()
    return lengths**2
