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
from iiae_cli.common.paths import data_folder
from iiae_cli.data.datafile import sha256_of
from iiae_cli.data.sources.cdcb import Recipe, coloured_splits
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions
from iiae_cli.data.sources.side_by_side import read_side_by_side

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

TRAIN_IDX = 50_000
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
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


def plan_idx(title: str, recipe: Recipe, options: PrepareOptions) -> Plan:
    """An IDX set: 50,000 train pairs, the training digits left over as valid, all test digits as test.

    A folder of the published side-by-side pictures is taken as it is.

    Raises:
        IiaeError: files are missing, damaged, or do not fit.
    """
    folder = _source(title, options)
    if find_idx(folder, FILES["train"][0]) is None and any(
        (folder / split).is_dir() for split in ("train", "test")
    ):
        return read_side_by_side(
            folder, image_size=options.image_size, limit=options.limit, workers=options.workers
        )
    arrays: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    used: list[Path] = []
    for split, names in FILES.items():
        paths = [path for name in names if (path := find_idx(folder, name)) is not None]
        if len(paths) < len(names):
            missing = next(name for name in names if find_idx(folder, name) is None)
            raise IiaeError(
                f"{folder} holds no {missing}[.gz]",
                f"name the folder with {title}'s four IDX files, or pass --download",
            )
        pictures, classes = map(read_idx, paths)
        if pictures.ndim != 3 or len(pictures) != len(classes):
            raise IiaeError(
                f"{folder} has {pictures.shape} pictures, {classes.shape} labels",
                "fetch the files again",
            )
        used += paths
        arrays[split] = (pictures, classes.astype(np.int64))
    pictures, labels = arrays["train"]
    parts = {
        "train": (pictures[:TRAIN_IDX], labels[:TRAIN_IDX]),
        "valid": (pictures[TRAIN_IDX:], labels[TRAIN_IDX:]),
        "test": arrays["test"],
    }
    limited = {
        split: (grey[: options.limit], digits[: options.limit])
        for split, (grey, digits) in parts.items()
    }
    attributes = {"source": title, "source_sha256": sha256_of(*used)}
    return Plan(
        lambda rows, work: Prepared(
            coloured_splits(limited, recipe, options.seed, options.image_size), attributes
        )
    )


def _source(title: str, options: PrepareOptions) -> Path:
    if options.source is not None:
        if not options.source.is_dir():
            raise IiaeError(
                f"folder {options.source} does not exist",
                f"name the folder with {title}'s IDX files",
            )
        return options.source
    if title == "Fashion-MNIST" and DEBIAN_FASHION.is_dir():
        return DEBIAN_FASHION
    if options.download:
        return _download(title)
    raise IiaeError(
        f"the source of {title} was not named",
        "name the folder with its IDX files (iiae prepare … SOURCE), "
        f"or pass --download to fetch {title}",
    )


def _download(title: str) -> Path:
    """Fetch an IDX set by torchvision into the data folder; it verifies checksums and tries its mirrors."""
    from torchvision.datasets import MNIST, FashionMNIST

    root = data_folder() / "downloads"
    kind = FashionMNIST if title == "Fashion-MNIST" else MNIST
    try:
        for train in (True, False):
            kind(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise IiaeError(
            f"{title} could not be downloaded: {error}",
            "fetch its four IDX files elsewhere and name their folder",
        ) from error
    return root / str(kind.__name__) / "raw"
