"""NumPy's files, read as numbers and texts alone.

Pickled objects are never loaded, and memory follows what is stored, not what is declared.
"""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What NumPy was seen to raise on damaged files, beside ValueError; its readers evaluate and unpack what they find.
BROKEN = (
    *(
        OSError,
        ValueError,
        EOFError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        SyntaxError,
        MemoryError,
    ),
    *(
        RuntimeError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
    ),
)


def map_npy(path: Path) -> NDArray[Any]:
    """A `.npy` file as a read-only memory map: a header that says more than the file holds costs nothing.

    Raises:
        FileNotFoundError: there is none.
        ValueError: no array, or one of pickled objects.
        OSError: and others of `BROKEN`, damaged.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no file")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of arrays")
    return array


def is_pickled(error: BaseException) -> bool:
    """Whether an array was refused because it holds pickled objects."""
    return "allow_pickle" in str(error) or "Python objects" in str(error)
