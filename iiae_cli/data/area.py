"""Resizing by exact area: a new pixel is the mean of that part of the old picture which it covers.

Torch's `area` and Pillow's box filter do this only where sizes divide. At 600 → 256 a new pixel covers 2.34 old ones a
side: torch weighs each of the three or four that it touches alike, Pillow takes two or three whole ones. Here each
counts by the fraction covered: `rows · picture · columnsᵀ` with two small matrices of overlaps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=8)  # a set has few sizes; a photo's matrix takes megabytes
def overlap_weights(old: int, new: int) -> NDArray[np.float32]:
    """How much of each of `old` pixels in a row each of `new` pixels of the same row covers.

    Returns:
        (new, old), read-only; every row sums to 1.
    """
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    covered = np.maximum(covered, 0)
    weights: NDArray[np.float32] = (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.setflags(write=False)
    return weights


def sizes_divide(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether either size of every axis is a multiple of the other, so that ordinary area filters are exact."""
    return all(a % b == 0 or b % a == 0 for a, b in zip(old, new, strict=True))


def resize_by_area(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture (H, W) or (H, W, C) at `size` = (H, W), rounded to whole values."""
    # Nearly all weights of a photo are 0: as a sparse matrix this costs one pass over the picture.
    from scipy.sparse import csr_array

    values: NDArray[np.float32] = picture.astype(np.float32)
    for new in size:  # rows first; then the axes are swapped, and columns are rows
        weights = csr_array(overlap_weights(len(values), new))
        means = weights @ values.reshape(len(values), -1)
        values = means.reshape(new, *values.shape[1:]).swapaxes(0, 1)
    return np.ascontiguousarray(np.rint(values).astype(np.uint8))
