"""Which gallery rows can be a query's nearest: lower bounds of distances by matrix products, rigorous ones.

A product in float32 takes half the time of float64 but orders near neighbours wrongly. Its error is bounded: a
dot product of n terms, summed in any order, is off by at most γ·|a|·|b| with γ = n·u, u the unit of rounding (Higham,
Accuracy and Stability of Numerical Algorithms, §3.1). So every pair whose *lower* bound exceeds the k-th smallest
*upper* bound is out for certain, and the few that stay are measured exactly (`ties.py`). Products are summed in pieces
of `PIECE` dimensions, which keeps n and with it γ small for long rows. Where the bound does not separate (clusters far
from the centre, crowds of ties), the same is done in float64, whose γ is 10⁹ times smaller.

Both sides are first moved by a centre near the data, which changes no Euclidean distance but makes lengths, and bounds,
small; then scaled by a power of two, so that float32 neither overflows nor underflows. For cosine, rows are made unit.

Shapes: Q queries, C gallery rows of one block, S dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.inference.ties import TIE, Floats, Ints, Metric

Engine: TypeAlias = Literal["torch", "sklearn"]

PIECE = 1024
BLOCK_VALUES = 2**21  # of one block of products, 8 MiB in float32
GROUP = 64  # products whose smallest is found first
PAIRS = 2**22  # candidates of one search at most, 80 MiB
_PREPARED_VALUES = 2**19
_UNITS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@cache
def single_is_exact() -> bool:
    """Whether torch multiplies float32 as such, and not in bfloat16 or TF32 as a program may have allowed it to."""
    ones = torch.ones(128, 128)
    almost = ones + 2.0**-16
    return bool((ones @ almost == 128 * (1 + 2.0**-16)).all())


class TooManyPairsError(Exception):
    """The bound lets more pairs through than `PAIRS`."""


@dataclass(frozen=True)
class Frame:
    """How rows are moved before they are multiplied: a centre (S,) and a scale, a power of two; or to unit length."""

    metric: Metric
    centre: Floats
    scale: float

    @classmethod
    def around(cls, metric: Metric, centre: Floats, largest: float) -> Frame:
        """A frame in which rows with absolute values up to `largest` become at most about 1."""
        bound = max(largest, float(np.abs(centre).max(initial=0.0)))
        return cls(metric, centre, 2.0 ** -np.frexp(bound)[1] if bound > 0 else 1.0)


@dataclass(frozen=True)
class Side:
    """Rows in a frame.

    Attributes:
        rows: (N, S) float32 or float64.
        squares: (N,) float64, their squared lengths; 1 for cosine.
    """

    rows: torch.Tensor
    squares: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)


def prepare(rows: NDArray[Any], frame: Frame, dtype: torch.dtype) -> Side:
    """Rows moved to a frame, rounded once."""
    prepared = torch.empty(rows.shape, dtype=dtype)
    squares = torch.empty(len(rows), dtype=torch.float64)
    centre = torch.from_numpy(frame.centre)
    step = max(1, _PREPARED_VALUES // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        values = torch.from_numpy(np.ascontiguousarray(rows[part])).to(torch.float64, copy=True)
        if frame.metric == "euclidean":
            values.sub_(centre).mul_(frame.scale)
            squares[part] = torch.linalg.vector_norm(values, dim=1).square_()
        else:
            # Scaled before they are squared: nothing overflows.
            values.mul_(frame.scale)
            lengths = torch.linalg.vector_norm(values, dim=1, keepdim=True)
            values.div_(torch.where(lengths > 0, lengths, 1.0))
            squares[part] = 1.0
        prepared[part] = values
    return Side(prepared, squares)


@dataclass
class Products:
    """Lower bounds of the distances between two sides, block by block.

    With L the blocks that `blocks` yields: distance ≥ L + row, and distance ≤ L + row + slack_row + slack_column,
    everything in the frame's scale (squared Euclidean distances are multiplied by its square).

    Attributes:
        queries: (Q, S).
        gallery: (G, S).
        metric: distance.
        engine: who multiplies; scikit-learn does so in float64.
    """

    queries: Side
    gallery: Side
    metric: Metric
    engine: Engine = "torch"
    _buffers: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    @cached_property
    def gamma(self) -> float:
        """Error of a product, in parts of |a|·|b|; with room for rounded inputs, sums of bounds, and ties."""
        width = self.queries.rows.shape[1]
        piece = min(width, PIECE) if self.engine == "torch" else width
        return (piece + width // PIECE + 32) * _UNITS[self.queries.rows.dtype] + 4 * TIE

    @cached_property
    def row(self) -> torch.Tensor:
        """(Q,) float64."""
        if self.metric == "cosine":
            return torch.full((len(self.queries),), 1.0 - self.gamma, dtype=torch.float64)
        return self.queries.squares * (1.0 - 2.0 * self.gamma)

    @cached_property
    def slack_row(self) -> torch.Tensor:
        """(Q,) float64; with room for what float32 loses below 10⁻³⁸."""
        if self.metric == "cosine":
            return torch.full((len(self.queries),), 2.0 * self.gamma, dtype=torch.float64)
        return self.queries.squares * (4.0 * self.gamma) + 1e-32 * max(
            1, self.queries.rows.shape[1]
        )

    @cached_property
    def slack_column(self) -> torch.Tensor:
        """(G,) of the sides' type."""
        if self.metric == "cosine":
            return torch.zeros(len(self.gallery), dtype=self.gallery.rows.dtype)
        return (self.gallery.squares * (4.0 * self.gamma)).to(self.gallery.rows.dtype)

    @cached_property
    def _column(self) -> torch.Tensor:
        """(G,), what a block starts from."""
        if self.metric == "cosine":
            return torch.zeros(len(self.gallery), dtype=self.gallery.rows.dtype)
        return (self.gallery.squares * (1.0 - 2.0 * self.gamma)).to(self.gallery.rows.dtype)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first gallery row, L (Q, C)); a block is overwritten by the next one.

        C is a multiple of `GROUP`: columns behind the gallery's last row are infinite.
        """
        width = max(1, BLOCK_VALUES // max(1, len(self.queries)) // GROUP) * GROUP
        for start in range(0, len(self.gallery), width):
            stop = min(start + width, len(self.gallery))
            padded = -(-(stop - start) // GROUP) * GROUP
            block = self._buffer(padded)
            block[:, stop - start :] = float("inf")
            self._fill(block[:, : stop - start], slice(start, stop))
            yield start, block

    def _buffer(self, columns: int) -> torch.Tensor:
        shape = (len(self.queries), columns)
        if shape not in self._buffers:
            self._buffers.clear()
            self._buffers[shape] = torch.empty(shape, dtype=self.queries.rows.dtype)
        return self._buffers[shape]

    def _fill(self, block: torch.Tensor, part: slice) -> None:
        a, b = self.queries.rows, self.gallery.rows[part]
        if self.engine == "sklearn":
            block.copy_(self._by_sklearn(a, b, part))
            return
        factor = -1.0 if self.metric == "cosine" else -2.0
        if self.metric == "euclidean":
            block.copy_(self._column[part].expand_as(block))
        for start in range(0, a.shape[1], PIECE):
            piece = slice(start, start + PIECE)
            block.addmm_(
                a[:, piece],
                b[:, piece].T,
                alpha=factor,
                beta=float(start > 0 or self.metric == "euclidean"),
            )

    def _by_sklearn(self, a: torch.Tensor, b: torch.Tensor, part: slice) -> torch.Tensor:
        from sklearn.metrics.pairwise import euclidean_distances, linear_kernel

        if self.metric == "cosine":
            return -torch.from_numpy(linear_kernel(a.numpy(), b.numpy()))
        squares = self.gallery.squares[part]
        distances = torch.from_numpy(
            euclidean_distances(a.numpy(), b.numpy(), Y_norm_squared=squares.numpy(), squared=True)
        )
        return distances - self.queries.squares[:, None] - 2.0 * self.gamma * squares


def near_pairs(products: Products, k: int, limits: Floats) -> tuple[Ints, Ints]:
    """Every pair that can be among a query's k nearest, and few others: rows of queries, of the gallery.

    Args:
        products: of Q queries.
        k: how many neighbours.
        limits: (Q,) distances, in the products' scale, that are known not to be exceeded by the k nearest.

    Raises:
        TooManyPairsError: more than `PAIRS`.
    """
    dtype = products.queries.rows.dtype
    room = products.slack_row
    limit = known = (torch.from_numpy(limits) - products.row).to(dtype)
    best = torch.full((len(products.queries), k), float("inf"), dtype=dtype)
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    total = 0
    for start, block in products.blocks():
        size = _group_size(block.shape[1], k)
        groups = block.view(len(block), -1, size)
        least = groups.amin(dim=2) if size > 1 else block
        # The smallest of k groups are k different rows, so their upper bounds bound the k-th smallest.
        slack = torch.nn.functional.pad(
            products.slack_column[start : start + block.shape[1]],
            (0, max(0, start + block.shape[1] - len(products.gallery))),
        )
        upper = least + slack.view(-1, size).amax(dim=1)
        best = torch.cat([best, upper], dim=1).topk(k, dim=1, largest=False, sorted=False).values
        limit = torch.minimum((best.amax(dim=1).double() + room).to(dtype), known)
        query, group = (least <= limit[:, None]).nonzero(as_tuple=True)
        values = groups[query, group]
        hit, place = (values <= limit[query][:, None]).nonzero(as_tuple=True)
        column = start + group[hit] * size + place
        inside = column < len(products.gallery)
        found.append((query[hit][inside], column[inside], values[hit, place][inside]))
        total += len(found[-1][0])
        if total > PAIRS:
            found = [_within(*one, limit) for one in found]
            total = sum(len(one[0]) for one in found)
            if total > PAIRS and len(products.queries) > 1:
                raise TooManyPairsError
    pairs = [_within(*one, limit)[:2] for one in found]
    queries, rows = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return queries, rows


def _within(
    query: torch.Tensor, column: torch.Tensor, value: torch.Tensor, limit: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    keep = value <= limit[query]
    return query[keep], column[keep], value[keep]


def _group_size(columns: int, k: int) -> int:
    """As large as leaves about 2 k groups, a divisor of `GROUP`."""
    size = GROUP
    while size > 1 and columns < 2 * k * size:
        size //= 2
    return size


def count_nearer(products: Products, near: Floats, far: Floats) -> tuple[Ints, tuple[Ints, Ints]]:
    """How many gallery rows are nearer than `near` for certain, and the pairs that may be within `far`.

    Args:
        products: of Q queries.
        near: (Q,) distances in the products' scale.
        far: (Q,) likewise, no smaller.

    Returns:
        Counts (Q,), and the open pairs: rows of queries, rows of the gallery.

    Raises:
        TooManyPairsError: more than `PAIRS`.
    """
    dtype = products.queries.rows.dtype
    most = (torch.from_numpy(far) - products.row).to(dtype)[:, None]
    certain = torch.from_numpy(near) - products.row - products.slack_row
    counts = torch.zeros(len(near), dtype=torch.int64)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    total = 0
    for start, block in products.blocks():
        slack = float(products.slack_column[start : start + block.shape[1]].max())
        nearer = block < (certain - slack).to(dtype)[:, None]
        counts += nearer.sum(dim=1)
        query, column = ((block <= most) ^ nearer).nonzero(as_tuple=True)
        found.append((query, start + column))
        total += len(query)
        if total > PAIRS and len(products.queries) > 1:
            raise TooManyPairsError
    queries, rows = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return counts.numpy(), (queries, rows)
