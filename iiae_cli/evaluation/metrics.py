"""Figures of merit as pure functions of ranks and arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def recall_at_k(ranks: NDArray[np.int64], k: int) -> float:
    """Fraction of queries whose one partner ranks among the first k; ranks (Q,) count from 1
    (paper, Table 2).
    """
    return float(np.mean(ranks <= k))


def median_rank(ranks: NDArray[np.int64]) -> float:
    """Median of the partners' ranks (Q,), from 1."""
    return float(np.median(ranks))
