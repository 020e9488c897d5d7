"""Sets in IDX files, plain or gzipped: MNIST and Fashion-MNIST, coloured by a recipe of `cdcb`."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import data_folder, reading, sha256_of
from iiae_cli.data.sources.cdcb import Recipe, coloured_splits
from iiae_cli.data.sources.pairs import plan_halves
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
TRAIN_IDX = 50_000
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_MOST_BYTES = 2**31  # of one file; the largest known, EMNIST's, has 640 million


def plan_idx(title: str, recipe: Recipe, options: PrepareOptions) -> Plan:
    """Plan an IDX set: 50,000 train pairs, the training digits left over as valid, all of test.

    A folder of the published side-by-side pictures is taken as it is.

    Args:
        title: of the set.
        recipe: colours its pictures.
        options: source, seed, size and limit.
    """
    folder = _folder(title, options)
    paths = {split: [find_idx(folder, name) for name in names] for split, names in FILES.items()}
    if paths["train"][0] is None and any((folder / split).is_dir() for split in FILES):
        return plan_halves(replace(options, source=folder), divided=True)
    arrays, used = {}, []
    for split, names in FILES.items():
        present = [path for path in paths[split] if path is not None]
        if len(present) < len(names):
            missing = names[paths[split].index(None)]
            raise IiaeError(
                f"{folder} holds no {missing}[.gz]",
                f"name the folder with {title}'s four IDX files, or pass --download",
            )
        pictures, labels = map(read_idx, present)
        if pictures.ndim != 3 or len(pictures) != len(labels):
            raise IiaeError(
                f"{folder} has {pictures.shape} pictures, {labels.shape} labels",
                "fetch the files again",
            )
        used += present
        arrays[split] = (pictures, labels.astype(np.int64))
    rows = {
        "train": ("train", slice(TRAIN_IDX)),
        "valid": ("train", slice(TRAIN_IDX, None)),
        "test": ("test", slice(None)),
    }
    grey = {
        name: (arrays[part][0][some][: options.limit], arrays[part][1][some][: options.limit])
        for name, (part, some) in rows.items()
    }
    attributes = {"source": title, "source_sha256": sha256_of(*used)}
    return Plan(
        lambda rows, work: Prepared(
            coloured_splits(grey, recipe, options.seed, options.image_size), attributes
        )
    )


def _folder(title: str, options: PrepareOptions) -> Path:
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
    """Fetch an IDX set by torchvision, which verifies checksums and tries its mirrors."""
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


def find_idx(folder: Path, name: str) -> Path | None:
    """The IDX file of a name in a folder, or in torchvision's `SET/raw` below it; plain first."""
    places = [folder, *sorted(folder.glob("*/raw")), folder / "raw"]
    candidates = [place / f"{name}{suffix}" for place in places for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    Raises:
        IiaeError: no such file, or truncated.
    """
    hint = "name the folder with MNIST's four original files, or fetch them again"
    with reading(path, hint), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\x00\x00\x08":
            raise ValueError("it is not an IDX file of bytes")
        extents = file.read(4 * head[3])
        if len(extents) < 4 * head[3]:
            raise ValueError("its header is truncated")
        shape = tuple(np.frombuffer(extents, ">u4").tolist())
        count = math.prod(shape)
        if count > _MOST_BYTES:
            raise ValueError(f"it claims to hold {shape} bytes")
        data = file.read(count + 1)  # no more than it claims comes out of a .gz
        if len(data) != count:
            raise ValueError(f"it is truncated: {len(data)} bytes of {shape}")
        return np.frombuffer(data, np.uint8).reshape(shape)
