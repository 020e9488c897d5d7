"""NumPy's files as memory maps of numbers and texts; pickled objects are never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BROKEN = (Exception,)  # NumPy's readers evaluate and unpack whatever they find


def map_npy(path: Path) -> NDArray[Any]:
    """A `.npy` file as a read-only memory map, which costs nothing that the file does not hold.

    Raises:
        FileNotFoundError: there is none.
        Exception: whatever a damaged file makes of NumPy.
    """
    if path.exists() and not path.is_file():  # a pipe keeps its reader waiting
        raise ValueError("it is no file")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of arrays")
    return array


def is_pickled(error: BaseException) -> bool:
    """Whether an array was refused because it holds pickled objects."""
    return "allow_pickle" in str(error) or "Python objects" in str(error)
