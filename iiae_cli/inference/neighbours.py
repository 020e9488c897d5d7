"""Exact nearest neighbours between latents, and the ranks of partners.

A backend proposes the k + `SPARE` nearest rows by float32 products, and float64 measures those
again. If the last proposal is no farther than the k-th neighbour, within the rounding error of a
product, every distance of that query is measured. So all backends return the same neighbours,
except with a probability below 10⁻⁹ that float32 misplaces a row by more than √S times 8 units of
its last place (Higham & Mary, 2019). Distances that round to the same 40 bits (relative for
Euclidean, absolute for cosine) tie and stand in gallery order, so that collapsed latents have
recall 1/N.

Shapes: Q queries, G gallery rows, S dimensions, K proposals, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.common.environment import extra
from iiae_cli.common.errors import IiaeError

Metric: TypeAlias = Literal["euclidean", "cosine"]
Backend: TypeAlias = Literal["auto", "sklearn", "torch", "faiss"]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Found: TypeAlias = tuple[Ints, Floats]  # rows (Q, K) and distances (Q, K)
Proposed: TypeAlias = tuple[NDArray[Any], NDArray[Any]]  # squared distances and rows (Q, k)
Propose: TypeAlias = Callable[[Tensor, int], Proposed]  # finds about k nearest rows, nearest first

PRODUCT_ROWS = 512  # queries per block of products
BLOCK_VALUES = 2**21  # values per block of products: 8 MiB in float32
SPARE = 8
SLICE_VALUES = 2**24  # values per slice of the gallery: 64 MiB in float32
QUERY_VALUES, QUERY_ROWS = 2**22, 4096  # most values and rows of queries searched at once
BATCH_VALUES = 2**17  # values of rows that are read repeatedly: they fit into a core's cache
SMALL = 2**24  # multiplications up to which loading another library costs more
NARROW = 512  # dimensions up to which faiss proposes faster than torch
LARGEST = 1e15  # sums of squares of larger values may leave float32


def choose_backend(backend: Backend, queries: int, gallery: int, width: int) -> Backend:
    """Returns the backend, `auto` resolved by these sizes: faiss only if it is installed."""
    if backend != "auto":
        return backend
    if queries * gallery * width <= SMALL:
        return "sklearn"
    return "faiss" if width <= NARROW and find_spec("faiss") else "torch"


def nearest(
    queries: NDArray[Any],
    gallery: NDArray[Any],
    k: int,
    *,
    metric: Metric = "euclidean",
    backend: Backend = "auto",
) -> Found:
    """Returns the gallery rows (Q, k) nearest to every query, and their distances.

    Returns all G rows if they are fewer than k. A zero vector is at cosine distance 1 from
    everything. Raises IiaeError if a value exceeds `LARGEST`, or faiss is missing.
    """
    queries, (size, width) = finite(queries, "queries"), gallery.shape
    chosen, k = choose_backend(backend, len(queries), size, width), min(k, size)
    rows, distances = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k))
    filled = 0
    for start, part in _checked_slices(gallery):
        centre, exact = _centre(part, metric), _exact(part, 1, metric)
        propose = PROPOSERS[chosen](_moved(exact, centre), metric)
        for block in slices(len(queries), min(QUERY_ROWS, QUERY_VALUES // max(width, k))):
            few = _exact(queries[block], 0, metric)
            near, apart = _search(few, exact, k, centre, metric, propose)
            near = np.concatenate([rows[block, :filled], near + start], axis=1)
            apart = np.concatenate([distances[block, :filled], apart], axis=1)
            near, apart = _first_of(near, apart, k, metric)
            rows[block, : near.shape[1]], distances[block, : near.shape[1]] = near, apart
        filled = min(k, start + len(part))
    return rows, distances


def _search(
    queries: Tensor, part: Tensor, k: int, centre: Tensor, metric: Metric, propose: Propose
) -> Found:
    """Returns K rows of a slice, the k nearest among them, and distances; ties in gallery order."""
    k, asked, moved = min(k, len(part)), min(k + SPARE, len(part)), _moved(queries, centre)
    approximate, near = propose(moved, asked)
    # A true neighbour is at most one error farther than the k-th, and seems at most another one.
    limit = approximate[:, k - 1] + 2 * _error(moved, approximate[:, k - 1])
    unsure = np.flatnonzero((approximate[:, -1] <= limit) & (asked < len(part)))
    close = approximate <= limit[:, None]
    close[unsure] = False
    near = np.sort(near[:, : max(k, close.sum(axis=1).max())], axis=1)
    distances = _measure(queries, part, near, metric)
    for crowd in slices(len(unsure), BLOCK_VALUES // len(part)):
        few = unsure[crowd]
        each = _distances(queries[few], part, metric)
        rows = np.broadcast_to(np.arange(len(part)), each.shape)
        near[few], distances[few] = _first_of(rows, each, near.shape[1], metric)
    return near, distances


def partner_ranks(
    queries: NDArray[Any], gallery: NDArray[Any], *, metric: Metric = "euclidean"
) -> Ints:
    """Returns the rank, from 1, of gallery row i among all rows for query i: (Q,), Q ≤ G.

    Rows strictly nearer than the partner stand before it, equally near ones if they stand earlier
    in the gallery. Raises IiaeError if a value exceeds `LARGEST`.
    """
    queries, places = finite(queries, "queries"), np.arange(len(queries))
    partners = _exact(finite(gallery[: len(queries)], "the gallery"), 1, metric)
    exact = _exact(queries, 0, metric)
    own = _measure(exact, partners, places[:, None], metric)[:, 0]
    ranks, own_keys = np.ones(len(queries), np.int64), _keys(own, metric)
    for start, part in _checked_slices(gallery):
        centre, exact_part = _centre(part, metric), _exact(part, 1, metric)
        moved_part = _moved(exact_part, centre)
        for block in slices(len(queries), min(PRODUCT_ROWS, QUERY_VALUES // queries.shape[1])):
            few, moved = exact[block], _moved(exact[block], centre)
            squared = own[block] * 2 if metric == "cosine" else own[block] ** 2
            error = _error(moved, squared)
            low, high = (
                torch.from_numpy((squared + sign * error - squares(moved)) / 2).float()[:, None]
                for sign in (-1, 1)
            )
            for first, scores in products(moved, moved_part):
                nearer = scores < low
                ranks[block] += nearer.sum(1).numpy()
                open_ = ((scores <= high) ^ nearer).nonzero().numpy().T
                rows = exact_part[first : first + scores.shape[1]]
                partner = places[block] - start - first
                ranks[block] += _before(few, rows, open_, own_keys[block], partner, metric)
    return ranks


def _before(
    queries: Tensor, rows: Tensor, pairs: Ints, own: Ints, partner: Ints, metric: Metric
) -> Ints:
    """Counts the `pairs` (2, P) that stand before each query's partner, of key `own` (Q,)."""
    left, right = pairs
    if len(left) > 16 * len(queries):
        each = _distances(queries, rows, metric)[left, right]
    else:
        each = _distances(queries[left][:, None], rows[right][:, None], metric)[:, 0, 0]
    keys = _keys(each, metric)
    before = (keys < own[left]) | ((keys == own[left]) & (right < partner[left]))
    return np.bincount(left[before], minlength=len(queries))


def _first_of(rows: Ints, distances: Floats, k: int, metric: Metric) -> Found:
    """Returns the k nearest of `rows` (Q, K) at these distances; ties stay in their order."""
    order = np.argsort(_keys(distances, metric), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1)


def _measure(queries: Tensor, gallery: Tensor, near: Ints, metric: Metric) -> Floats:
    """Returns the distances (Q, K) between every query and its rows `near` (Q, K)."""
    distances = np.empty(near.shape)
    for part in slices(len(near), BATCH_VALUES // max(1, near.shape[1] * queries.shape[1])):
        rows = gallery.index_select(0, torch.from_numpy(near[part].ravel()))
        rows = rows.view(-1, near.shape[1], rows.shape[1])
        distances[part] = _distances(queries[part, None], rows, metric)[:, 0]
    return distances


def _distances(a: Tensor, b: Tensor, metric: Metric) -> Floats:
    """Returns (…, M, N) distances of exact rows (…, M, S) and (…, N, S): differences first."""
    exact = "donot_use_mm_for_euclid_dist"
    found: Floats = torch.cdist(a.double(), b.double(), compute_mode=exact).numpy()
    return found if metric == "euclidean" else found**2 / 2


def _keys(distances: Floats, metric: Metric) -> Ints:
    """Returns integers in the order of the distances, equal for distances that tie."""
    if metric == "cosine":
        return np.rint(distances * 2.0**40).astype(np.int64)
    return (np.ascontiguousarray(distances).view(np.int64) + 2**11) >> 12  # 40 bits of the fraction


def _centre(part: NDArray[Any], metric: Metric) -> Tensor:
    """Returns a point (S,) around which float32 products are precise: 0 for rows on a sphere."""
    if metric == "cosine":
        return torch.zeros(())
    return torch.from_numpy(part[:4096].mean(axis=0, dtype=np.float64).astype(part.dtype))


def _moved(rows: Tensor, centre: Tensor) -> Tensor:
    return torch.sub(rows, centre, out=torch.empty(rows.shape))  # in float32


def _error(moved: Tensor, squared: NDArray[Any]) -> Floats:
    """Bounds the rounding error of `squared` distances (Q,) between rows (Q, S) and others."""
    unit, lengths = (8 * moved.shape[1] ** 0.5 + 8) * 2.0**-24, np.sqrt(squares(moved))
    found: Floats = unit * (lengths + np.sqrt(np.maximum(squared, 0))) ** 2
    return found + 1e-38  # float32 underflows below


def _exact(rows: NDArray[Any], side: Literal[0, 1], metric: Metric) -> Tensor:
    """Returns rows as they are, or for cosine (N, S + 2) of length 1 in float64.

    A zero vector points along a dimension of its own side, at right angles to the other side.
    """
    if metric == "euclidean":
        return torch.from_numpy(rows)
    count, width = rows.shape
    units, least = torch.zeros(count, width + 2, dtype=torch.float64), np.finfo(np.float64).tiny
    for part in slices(count, BATCH_VALUES // width):
        values = torch.from_numpy(rows[part]).double()
        values = values / values.abs().amax(1, keepdim=True).clamp_min(least)  # or squares vanish
        lengths = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        units[part, :width] = values / lengths.clamp_min(least)
        units[part, width + side] = lengths[:, 0] == 0
    return units


def _checked_slices(gallery: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yields (first row, rows) of the gallery; raises IiaeError if a value exceeds `LARGEST`."""
    size, width = gallery.shape
    for part in slices(size, SLICE_VALUES // max(1, width)):
        yield part.start, finite(gallery[part], "the gallery")


def finite(rows: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns finite rows in float32 if that is exact, else in float64; copies what is mapped."""
    single = rows.dtype in (np.float16, np.float32)
    rows = np.require(rows, np.float32 if single else np.float64, ["C", "W"])
    if not float(np.abs(rows).max(initial=0)) <= LARGEST:  # NaN compares as false
        message = f"latents of {name} are not all finite and at most {LARGEST:.0e}"
        raise IiaeError(message, "check the model and its inputs")
    return rows


def slices(count: int, step: int) -> Iterator[slice]:
    """Yields slices of `step` items, the last one shorter."""
    for start in range(0, count, max(1, step)):
        yield slice(start, start + max(1, step))


def squares(rows: Tensor) -> Floats:
    """Returns the squared lengths (N,) of rows."""
    squared: Floats = torch.linalg.vector_norm(rows, dim=1).double().square().numpy()
    return squared


# ---- proposals


def products(queries: Tensor, gallery: Tensor, least: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Yields (first row, |g|² / 2 - q·g (Q, C)), C at least `least`; overwrites the last block."""
    width = max(least, BLOCK_VALUES // max(1, len(queries)))
    buffer = torch.empty(len(queries), min(width, len(gallery)))
    for start in range(0, len(gallery), width):
        part = gallery[start : start + width]
        half = torch.linalg.vector_norm(part, dim=1).square_() / 2
        yield start, torch.addmm(half, queries, part.T, alpha=-1, out=buffer[:, : len(part)])


def _by_torch(gallery: Tensor, metric: Metric) -> Propose:
    """Collects rows nearer than the last known k-th best, and sorts them when there are many."""

    def propose(queries: Tensor, k: int) -> Proposed:
        best = [search(queries[block], k) for block in slices(len(queries), PRODUCT_ROWS)]
        values, rows = map(np.concatenate, zip(*best, strict=True))
        order = np.argsort(values, axis=1)
        values, rows = np.take_along_axis(values, order, 1), np.take_along_axis(rows, order, 1)
        return values * 2 + squares(queries)[:, None], rows

    def search(queries: Tensor, k: int) -> Proposed:
        best = np.full((len(queries), k), np.inf, np.float32), np.zeros((len(queries), k), np.int64)
        hits, waiting = list[tuple[Ints, NDArray[Any], Ints]](), 0
        for start, scores in products(queries, gallery, k):
            values, width = scores.numpy(), scores.shape[1]
            if start == 0:  # the k-th best itself is a hit
                limit = np.nextafter(np.partition(values, k - 1, axis=1)[:, k - 1 : k], np.inf)
            place = np.flatnonzero(values < limit)
            query = place // width
            hits.append((query, values.ravel()[place], start + place - query * width))
            waiting += len(query)
            if waiting > 2 * best[0].size:
                best = _merged(best, hits)
                limit, hits, waiting = best[0].max(axis=1, keepdims=True), [], 0
        return _merged(best, hits) if hits else best

    return propose


def _merged(best: Proposed, hits: Sequence[tuple[Ints, NDArray[Any], Ints]]) -> Proposed:
    """Returns the k least values (Q, k) of `best` and `hits`, with their rows, in any order."""
    query, values, rows = map(np.concatenate, zip(*hits, strict=True))
    order = np.argsort(query.astype(np.int16), kind="stable")  # a radix sort
    query, (count, k) = query[order], best[0].shape
    counts = np.bincount(query, minlength=count)
    column = k + np.arange(len(query)) - (counts.cumsum() - counts)[query]
    every_value = np.full((count, k + int(counts.max())), np.inf, np.float32)
    every_row = np.zeros(every_value.shape, np.int64)
    every_value[:, :k], every_row[:, :k] = best
    flat = query * every_value.shape[1] + column
    every_value.ravel()[flat], every_row.ravel()[flat] = values[order], rows[order]
    least = np.argpartition(every_value, k - 1, axis=1)[:, :k]
    return np.take_along_axis(every_value, least, 1), np.take_along_axis(every_row, least, 1)


def _by_sklearn(gallery: Tensor, metric: Metric) -> Propose:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(gallery.numpy())
    return lambda queries, k: index.kneighbors(queries.numpy(), k)


def _by_faiss(gallery: Tensor, metric: Metric) -> Propose:
    faiss = extra("faiss", "faiss")
    cosine = metric == "cosine"  # for rows of length 1 products are equivalent, and faster
    index = (faiss.IndexFlatIP if cosine else faiss.IndexFlatL2)(gallery.shape[1])
    index.add(gallery.numpy())

    def propose(queries: Tensor, k: int) -> Proposed:
        values, rows = index.search(queries.numpy(), k)
        return 2 - 2 * values if cosine else values, rows

    return propose


PROPOSERS = {"torch": _by_torch, "sklearn": _by_sklearn, "faiss": _by_faiss}
