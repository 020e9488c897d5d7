"""IDX files (MNIST, Fashion-MNIST), plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

MOST_BYTES = 2**31  # of one file; the largest known, EMNIST's, has 640 million
MOST_AXES = 8


def find_idx(folder: Path, name: str) -> Path | None:
    """The IDX file of a name in a folder, or in torchvision's `SET/raw` below it; plain before gzipped."""
    places = [folder, *sorted(folder.glob("*/raw")), folder / "raw"]
    candidates = [place / f"{name}{suffix}" for place in places for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes.

    Raises:
        IiaeError: not such a file, or truncated.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\x00\x00\x08":
                raise IiaeError(
                    f"{path} is not an IDX file of bytes",
                    "name the folder with MNIST's four original files",
                )
            axes = file.read(4 * head[3])
            shape = tuple(int.from_bytes(axes[at : at + 4], "big") for at in range(0, len(axes), 4))
            count = math.prod(shape)
            if len(axes) < 4 * head[3]:
                raise IiaeError(
                    f"{path} is truncated: {len(axes) + 4} bytes of its header",
                    "fetch the file again",
                )
            if count > MOST_BYTES or len(shape) > MOST_AXES:
                raise IiaeError(f"{path} says that it holds {shape} bytes", "fetch the file again")
            data = file.read(count + 1)  # no more than it says comes out of a .gz
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise IiaeError(f"{path} cannot be read: {error}", "fetch the file again") from error
    if len(data) != count:
        raise IiaeError(
            f"{path} is truncated: {len(data)} bytes of {shape}", "fetch the file again"
        )
    values: NDArray[Any] = np.frombuffer(data, np.uint8).reshape(shape)
    return values
