"""A split in memory: two sides of rows, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.model import Domain

SPLITS = ("train", "valid", "test")
SplitName: TypeAlias = Literal["train", "valid", "test"]
Rows: TypeAlias = NDArray[Any]


@dataclass
class Side:
    """One domain of a split.

    Attributes:
        rows: pictures (N, H, W, C) uint8 or features (N, F) float32. They may be a memory map:
            index them with slices or ascending integers.
        ids: a name for every row, unique in the split; partners of a paired set share theirs.
        labels: the class of every row, where known.
    """

    rows: Rows
    ids: list[str]
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: NDArray[np.int64]) -> Side:
        """These rows alone, in this order."""
        return Side(
            self.rows[indices],
            [self.ids[row] for row in indices],
            None if self.labels is None else [self.labels[row] for row in indices],
        )


@dataclass
class Split:
    """The two sides of a split, and which of their rows belong together.

    Attributes:
        x: pictures or features of domain x, their ids and labels.
        y: the same of domain y.
        factors: generative factors by name, one entry per pair, (M, …).
        pairs: (M, 2) rows of x and y; None where row i of x belongs to row i of y.
    """

    x: Side
    y: Side
    factors: dict[str, Rows] = field(default_factory=dict)
    pairs: NDArray[np.int64] | None = None

    def side(self, domain: Domain) -> Side:
        """The side of one domain."""
        return self.x if domain == "x" else self.y

    @property
    def pair_count(self) -> int:
        """Number of pairs M."""
        return len(self.x) if self.pairs is None else len(self.pairs)

    def pair_rows(self, indices: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """x and y rows of pairs (B,), each (B, …)."""
        rows_x, rows_y = self._rows_of(indices)
        return self.x.rows[rows_x], self.y.rows[rows_y]

    def take(self, rows_x: NDArray[np.int64], rows_y: NDArray[np.int64]) -> Split:
        """The split of these rows alone, in this order, without factors and pairs."""
        return Split(self.x.take(rows_x), self.y.take(rows_y))

    def take_pairs(self, indices: NDArray[np.int64]) -> Split:
        """The split of these pairs alone, in this order; its rows are aligned."""
        taken = self.take(*self._rows_of(indices))
        taken.factors = {name: values[indices] for name, values in self.factors.items()}
        return taken

    def _rows_of(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.pairs is None:
            return indices, indices
        return self.pairs[indices, 0], self.pairs[indices, 1]


@dataclass(frozen=True)
class DataInfo:
    """What a model needs to know of a data file.

    Attributes:
        name: of the data set.
        shape_x: (H, W, C) of a picture of x, or (F,) of a feature vector; `shape_y` likewise.
        counts: rows of x per split.
        attributes: everything the file says of its making.
        by_class: whether x and y belong together by class rather than one by one.
        pair_counts: pairs per split, other than `counts` where pictures recur.
    """

    name: str
    shape_x: tuple[int, ...]
    shape_y: tuple[int, ...]
    counts: dict[str, int]
    attributes: dict[str, str]
    by_class: bool = False
    pair_counts: dict[str, int] = field(default_factory=dict)

    @property
    def is_features(self) -> bool:
        """Whether rows are feature vectors rather than pictures."""
        return len(self.shape_x) == 1
