"""Exact nearest neighbours between latents, and the ranks of partners.

A backend proposes the k + `SPARE` rows that are nearest by float32 products; float64 measures them
again. Where the last proposal is no farther than the k-th neighbour, up to the rounding of a
product, every distance of that query is measured. So all backends return the same neighbours, but
for a probability below 10⁻⁹ that float32 misplaces one by more than √S times 8 units of its last
place (Higham & Mary, 2019). Distances that round to the same 40 bits (relative for Euclidean ones,
absolute for cosine) tie and stand in gallery order, so that collapsed latents have recall 1/N.

Shapes: Q queries, G gallery rows, S dimensions, K proposals, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.common.errors import IiaeError

Metric: TypeAlias = Literal["euclidean", "cosine"]
Backend: TypeAlias = Literal["auto", "sklearn", "torch", "faiss"]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Found: TypeAlias = tuple[Ints, Floats]  # rows (Q, K) and distances (Q, K)
Hits: TypeAlias = tuple[Ints, Ints, NDArray[np.float32]]  # queries, rows and values (P,)
# Finds about the k nearest rows of a slice: squared distances (Q, k) and rows (Q, k), in any order.
Proposer: TypeAlias = Callable[[Tensor, int], tuple[NDArray[Any], NDArray[Any]]]

SPARE = 8
SLICE_VALUES = 2**24  # of the gallery, 64 MiB in float32
QUERY_VALUES = 2**22  # of a block of queries
QUERY_ROWS = 512
BLOCK_VALUES = 2**21  # of a block of products, 8 MiB in float32
BATCH_VALUES = 2**17  # of rows that are read a few times, so that they stay in a core's cache
SMALL = 2**24  # multiplications that scikit-learn does in less time than another library loads
_HUGE = 1e150  # beyond it squares leave float64


class Rows(Protocol):
    """Rows that are read in slices: an array, or a dataset of an open HDF5 file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S)."""

    def __getitem__(self, rows: slice, /) -> Any: ...


def choose_backend(backend: Backend, queries: int, gallery: int, width: int) -> Backend:
    """Returns the backend that `auto` stands for at these sizes."""
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
) -> Found:
    """Returns the rows (Q, k) of the gallery (G, S) nearest to every query, and their distances.

    All G rows if they are fewer than k. A zero vector is at cosine distance 1 from everything.
    Raises IiaeError if a value is not finite, or faiss is missing.
    """
    queries, (size, width) = _numbers(queries, "queries"), gallery.shape
    proposer = PROPOSERS[choose_backend(backend, len(queries), size, width)]
    k = min(k, size)
    rows, distances = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k))
    filled = 0
    for start, part in checked_slices(gallery):
        frame = Frame(queries, part, metric)
        propose = proposer(frame(part, 1))
        for block in _slices(len(queries), min(QUERY_ROWS, QUERY_VALUES // max(width, k))):
            near, apart = _search(queries[block], part, k, frame, propose)
            near = np.concatenate([rows[block, :filled], near + start], axis=1)
            apart = np.concatenate([distances[block, :filled], apart], axis=1)
            near, apart = first_of(near, apart, k, metric)
            rows[block, : near.shape[1]], distances[block, : near.shape[1]] = near, apart
        filled = min(k, start + len(part))
    return rows, distances


def _search(
    queries: NDArray[Any], part: NDArray[Any], k: int, frame: Frame, propose: Proposer
) -> Found:
    """Returns K rows of a slice, the k nearest among them, ties in gallery order, and distances."""
    k, asked = min(k, len(part)), min(k + SPARE, len(part))
    moved = frame(queries, 0)
    approximate, near = propose(moved, asked)
    order = np.argsort(approximate, axis=1)
    approximate, near = (np.take_along_axis(a, order, 1) for a in (approximate, near))
    # A true neighbour is at most an error farther than the k-th proposal seems, and seems one more.
    limit = approximate[:, k - 1] + 2 * frame.error(moved, approximate[:, k - 1])
    unsure = np.flatnonzero((approximate[:, -1] <= limit) & (asked < len(part)))
    close = approximate <= limit[:, None]
    close[unsure] = False
    near = np.sort(near[:, : max(k, close.sum(axis=1).max())], axis=1)
    distances = measure(queries, part, near, frame.metric)
    for crowd in _slices(len(unsure), BLOCK_VALUES // len(part)):
        few = unsure[crowd]
        each = _distances(queries[few], part, frame.metric)
        rows = np.broadcast_to(np.arange(len(part)), each.shape)
        near[few], distances[few] = first_of(rows, each, near.shape[1], frame.metric)
    return near, distances


def partner_ranks(queries: NDArray[Any], gallery: Rows, *, metric: Metric = "euclidean") -> Ints:
    """Returns the rank, from 1, of gallery row i among all rows for query i: (Q,), Q ≤ G.

    Rows strictly nearer than the partner stand before it, equally near ones if they stand earlier
    in the gallery. Raises IiaeError if a value is not finite.
    """
    queries, places = _numbers(queries, "queries"), np.arange(len(queries))
    partners = _numbers(gallery[: len(queries)], "the gallery")
    own = measure(queries, partners, places[:, None], metric)[:, 0]
    ranks, own_keys = np.ones(len(queries), np.int64), _keys(own, metric)
    for start, part in checked_slices(gallery):
        frame = Frame(queries, part, metric)
        moved_part = frame(part, 1)
        for block in _slices(len(queries), min(QUERY_ROWS, QUERY_VALUES // queries.shape[1])):
            few, moved = queries[block], frame(queries[block], 0)
            squared = own[block] * 2 if metric == "cosine" else (own[block] * frame.scale) ** 2
            error = frame.error(moved, squared)
            low, high = (
                torch.from_numpy((squared + sign * error - _squares(moved)) / 2).float()[:, None]
                for sign in (-1, 1)
            )
            for first, scores in _products(moved, moved_part):
                nearer = scores < low
                ranks[block] += nearer.sum(1).numpy()
                open_ = ((scores <= high) ^ nearer).nonzero().numpy().T
                rows, partner = part[first : first + scores.shape[1]], places[block] - start - first
                ranks[block] += _before(few, rows, open_, own_keys[block], partner, metric)
    return ranks


def _before(
    queries: NDArray[Any], rows: NDArray[Any], pairs: Ints, own: Ints, partner: Ints, metric: Metric
) -> Ints:
    """Counts those of `pairs` (2, P) before each query's partner, of key `own` (Q,)."""
    left, right = pairs
    if len(left) > 16 * len(queries):
        each = _distances(queries, rows, metric)[left, right]
    else:
        each = _distances(queries[left][:, None], rows[right][:, None], metric)[:, 0, 0]
    keys = _keys(each, metric)
    before = (keys < own[left]) | ((keys == own[left]) & (right < partner[left]))
    counts: Ints = np.bincount(left[before], minlength=len(queries))
    return counts


def first_of(rows: Ints, distances: Floats, k: int, metric: Metric) -> Found:
    """Returns the k nearest of `rows` (Q, K) at these distances; ties stay in their order."""
    order = np.argsort(_keys(distances, metric), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1)


def measure(queries: NDArray[Any], gallery: NDArray[Any], near: Ints, metric: Metric) -> Floats:
    """Returns the distances (Q, K) between every query and its rows `near` (Q, K)."""
    distances = np.empty(near.shape)
    for part in _slices(len(near), BATCH_VALUES // max(1, near.shape[1] * queries.shape[1])):
        distances[part] = _distances(queries[part, None], gallery[near[part]], metric)[:, 0]
    return distances


def _distances(a: NDArray[Any], b: NDArray[Any], metric: Metric) -> Floats:
    """Returns (…, M, N) distances of rows (…, M, S) and (…, N, S): float64, differences first."""
    left, right = (torch.from_numpy(rows).double() for rows in (a, b))
    if metric == "cosine":
        left, right = unit_rows(left, 0), unit_rows(right, 1)
    found: Floats = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    return found if metric == "euclidean" else found**2 / 2


def _keys(distances: Floats, metric: Metric) -> Ints:
    """Returns integers in the order of the distances; equal ones for distances that tie."""
    if metric == "cosine":
        return np.rint(distances * 2.0**40).astype(np.int64)
    return (np.ascontiguousarray(distances).view(np.int64) + 2**11) >> 12  # 40 bits of the fraction


class Frame:
    """Moves rows to where float32 products are precise: amid the data, or to unit length."""

    def __init__(self, queries: NDArray[Any], part: NDArray[Any], metric: Metric) -> None:
        self.metric = metric
        largest = max(_largest_value(queries), _largest_value(part))
        # Powers of two, which round nothing; 2¹⁰⁰ is within float32.
        self.scale = min(2.0 ** -float(np.frexp(largest)[1]), 2.0**100)
        centre = part[:4096].mean(axis=0, dtype=np.float64).astype(part.dtype)
        self._centre = torch.from_numpy(centre) * self.scale

    def __call__(self, rows: NDArray[Any], side: Literal[0, 1]) -> Tensor:
        """Returns rows (N, S) of the queries, side 0, or of the gallery in float32."""
        cosine = self.metric == "cosine"
        moved = torch.empty(len(rows), rows.shape[1] + (2 if cosine else 0))
        for part in _slices(len(rows), BATCH_VALUES // rows.shape[1]):
            values = torch.from_numpy(rows[part])
            values = unit_rows(values, side) if cosine else values * self.scale - self._centre
            moved[part] = values
        return moved

    def error(self, moved: Tensor, squared: NDArray[Any]) -> Floats:
        """Bounds the rounding of the `squared` distances (Q,) of rows (Q, S) to others."""
        unit = (8 * moved.shape[1] ** 0.5 + 8) * 2.0**-24
        found: Floats = unit * (np.sqrt(_squares(moved)) + np.sqrt(np.maximum(squared, 0))) ** 2
        return found + 1e-38  # below it float32 underflows


def _products(queries: Tensor, gallery: Tensor, least: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Yields (first row, |g|² / 2 - q·g (Q, C)): half of what squared distances exceed |q|² by.

    C is at least `least` in the first block. A block is overwritten by the next one.
    """
    width = max(least, BLOCK_VALUES // max(1, len(queries)))
    buffer = torch.empty(len(queries), min(width, len(gallery)))
    for start in range(0, len(gallery), width):
        part = gallery[start : start + width]
        half = torch.linalg.vector_norm(part, dim=1).square_() / 2
        yield start, torch.addmm(half, queries, part.T, alpha=-1, out=buffer[:, : len(part)])


def _by_torch(gallery: Tensor) -> Proposer:
    """Collects what is nearer than the k-th best of a while ago, and sorts it out now and then."""

    def nearest(queries: Tensor, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        blocks = _products(queries, gallery, k)
        best, rows = next(blocks)[1].topk(k, dim=1, largest=False, sorted=False)
        limit, hits, waiting = best.amax(dim=1, keepdim=True), list[Hits](), 0
        for start, block in blocks:
            place, width = np.flatnonzero((block < limit).numpy()), block.shape[1]
            query = place // width
            hits.append((query, start + place - query * width, block.numpy().ravel()[place]))
            waiting += len(query)
            if waiting > best.numel():
                best, rows = _merged(best, rows, hits)
                limit, hits, waiting = best.amax(dim=1, keepdim=True), [], 0
        best, rows = _merged(best, rows, hits)
        return best.numpy() * 2 + _squares(queries)[:, None], rows.numpy()

    return nearest


def _merged(best: Tensor, rows: Tensor, hits: Sequence[Hits]) -> tuple[Tensor, Tensor]:
    """Returns the k best values (Q, k) and their rows of these and of hits, in any order."""
    if not hits:
        return best, rows
    query, row, value = map(np.concatenate, zip(*hits, strict=True))
    order = np.argsort(query.astype(np.int16), kind="stable")  # a radix sort
    query, row, value = query[order], row[order], value[order]
    # From a list of pairs to a table, beside what is known.
    count, k = best.shape
    counts = np.bincount(query, minlength=count)
    column = k + np.arange(len(query)) - (counts.cumsum() - counts)[query]
    near = torch.full((count, k + int(counts.max())), torch.inf)
    where = torch.zeros(near.shape, dtype=torch.int64)
    near[:, :k], where[:, :k] = best, rows
    near.numpy()[query, column], where.numpy()[query, column] = value, row
    best, chosen = near.topk(k, dim=1, largest=False, sorted=False)
    return best, where.gather(1, chosen)


def _by_sklearn(gallery: Tensor) -> Proposer:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(gallery.numpy())
    return lambda queries, k: index.kneighbors(queries.numpy(), k)


def _by_faiss(gallery: Tensor) -> Proposer:
    try:
        import faiss
    except ImportError as error:
        install = "pip install 'iiae-cli[faiss]', or leave out --backend faiss"
        raise IiaeError("faiss is not installed", install) from error
    index = faiss.IndexFlatL2(gallery.shape[1])
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


def checked_slices(gallery: Rows) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yields (first row, rows) of the gallery; raises IiaeError if a value is not finite."""
    size, width = gallery.shape
    for part in _slices(size, SLICE_VALUES * (4 if width >= 1024 else 1) // max(1, width)):
        yield part.start, _numbers(gallery[part], "the gallery")


def _numbers(rows: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns finite rows in float32 if that holds them, else in float64."""
    single = rows.dtype in (np.float16, np.float32)
    rows = np.ascontiguousarray(rows, np.float32 if single else np.float64)
    if not _largest_value(rows) < _HUGE:  # not a number compares as false
        raise IiaeError(
            f"latents of {name} are not all finite",
            "encode them again; check the model and its inputs",
        )
    return rows


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, max(1, step)):
        yield slice(start, start + max(1, step))


def _largest_value(rows: NDArray[Any]) -> float:
    return max(float(rows.max(initial=0)), -float(rows.min(initial=0)))


def _squares(rows: Tensor) -> Floats:
    """Returns the squared lengths (N,) of rows."""
    squared: Floats = torch.linalg.vector_norm(rows, dim=1).double().square().numpy()
    return squared
