"""IDX files (MNIST, Fashion-MNIST), plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.errors import IiaeError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


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
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise IiaeError(f"{path} cannot be read: {error}", "fetch the file again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise IiaeError(f"{path} is not an IDX file of bytes", "name the folder with MNIST's four original files")
    shape = tuple(int.from_bytes(data[4 * i + 4 : 4 * i + 8], "big") for i in range(data[3]))
    header = 4 + 4 * data[3]
    if len(data) - header != int(np.prod(shape, dtype=np.int64)):
        raise IiaeError(f"{path} is truncated: {len(data) - header} bytes of {shape}", "fetch the file again")
    values: NDArray[Any] = np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    return values
