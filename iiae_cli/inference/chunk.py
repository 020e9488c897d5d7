"""Part of a gallery while it is searched: its rows as stored, and moved to the frame in which they are multiplied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.inference.bounds import Engine, Frame, Products, Side, prepare
from iiae_cli.inference.ties import Floats, Ints, Metric, first_equal, pair_distances


@dataclass
class Chunk:
    """Consecutive rows of a gallery.

    Attributes:
        start: the first one's number in the gallery.
        rows: (G, S) float32 or float64.
        metric: distance.
        frame: that holds them and the queries.
    """

    start: int
    rows: NDArray[Any]
    metric: Metric
    frame: Frame
    _sides: dict[torch.dtype, Side] = field(default_factory=dict)
    _first_equal: Ints | None = None

    @property
    def squared_scale(self) -> float:
        """What turns a distance, squared where Euclidean, into the frame's."""
        return self.frame.scale**2 if self.metric == "euclidean" else 1.0

    def products(
        self, queries: NDArray[Any], dtype: torch.dtype, engine: Engine = "torch"
    ) -> Products:
        """Bounds of the distances between queries (Q, S) and the chunk's rows."""
        if dtype not in self._sides:
            self._sides[dtype] = prepare(self.rows, self.frame, dtype)
        return Products(
            prepare(queries, self.frame, dtype), self._sides[dtype], self.metric, engine
        )

    def measure(self, queries: NDArray[Any], pairs: tuple[Ints, Ints], expected: int) -> Floats:
        """Exact distances of pairs (query, row of the chunk): (P,).

        Where there are far more of them than `expected`, many rows are likely to be equal: each is measured once.
        """
        if len(pairs[0]) <= 8 * expected:
            return pair_distances(queries, self.rows, pairs, self.metric)
        if self._first_equal is None:
            self._first_equal = first_equal(self.rows)
        left, right = first_equal(queries)[pairs[0]], self._first_equal[pairs[1]]
        codes, back = np.unique(left * len(self.rows) + right, return_inverse=True)
        different = codes // len(self.rows), codes % len(self.rows)
        return pair_distances(queries, self.rows, different, self.metric)[back]
