"""Digits (or garments) with a coloured ground in x and a coloured digit in y, and edge variants.

`colour_pair` is MNIST-CDCB's recipe, derived from its 100 published samples (`docs/data.md`); the
two edge recipes make the domains differ in more than colour, so that raw pixels no longer solve the
retrieval. The pictures are scikit-learn's digits, or come from IDX files, plain or gzipped.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from iiae_cli.common.environment import data_folder
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of
from iiae_cli.data.datafile import Side, Split
from iiae_cli.data.names import Notes, folders_by
from iiae_cli.data.pictures import resize_pictures
from iiae_cli.data.sources.pairs import plan_folders
from iiae_cli.data.sources.plan import Plan, PrepareOptions

UInt8Array: TypeAlias = NDArray[np.uint8]
Drawn: TypeAlias = tuple[UInt8Array, UInt8Array, dict[str, NDArray[Any]]]  # x, y, factors
Recipe: TypeAlias = Callable[[NDArray[Any], np.random.Generator], Drawn]
Grey: TypeAlias = tuple[UInt8Array, NDArray[np.int64]]  # pictures (N, H, W) and labels (N,)
Parts: TypeAlias = dict[str, Grey]  # by split
Contents: TypeAlias = Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]]  # with their classes

DIGITS = "scikit-learn's bundled digits"
THRESHOLD = 102  # a grey value above it belongs to the digit
TEST_DIGITS = 300
TRAIN_IDX = 50_000
IDX_FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def _colours(count: int, rng: np.random.Generator) -> UInt8Array:
    return rng.integers(0, 256, size=(count, 1, 1, 3), dtype=np.uint8)


def colour_pair(grey: UInt8Array, rng: np.random.Generator) -> Drawn:
    """Draws MNIST-CDCB: white digit on a coloured background (x), coloured digit on black (y).

    `rng` draws both colours of every pair, uniform over RGB and independent. Grey below the
    threshold stays in y, grey above it stays in x. Returns x and y (N, H, W, 3), and the factors
    `x_color`, `y_color` (N, 3).
    """
    background, foreground = _colours(len(grey), rng), _colours(len(grey), rng)
    digit = grey[..., None]
    x = np.where(digit > THRESHOLD, digit, background)
    y = np.where(digit > THRESHOLD, foreground, digit)
    return x, y, {"x_color": background[:, 0, 0], "y_color": foreground[:, 0, 0]}


def outline_pair(grey: UInt8Array, rng: np.random.Generator) -> Drawn:
    """Draws x as `colour_pair` does, and in y the digit's coloured one-pixel outline on black."""
    x, _, factors = colour_pair(grey, rng)
    mask = grey > THRESHOLD
    ring = binary_dilation(mask, np.ones((1, 3, 3))) & ~mask
    y = np.where(ring[..., None], factors["y_color"][:, None, None], np.uint8(0))
    return x, y, factors


def sketch_pair(grey: UInt8Array, rng: np.random.Generator) -> Drawn:
    """Draws a garment's edge map, dark on white (x), and the garment on a random colour (y)."""
    ground = _colours(len(grey), rng)
    horizontal, vertical = np.gradient(grey.astype(np.float32), axis=(2, 1))
    strength = np.clip(2.0 * np.hypot(horizontal, vertical), 0, 255).astype(np.uint8)
    x = np.repeat(255 - strength[..., None], 3, axis=3)
    # The garment's own grey covers the ground by its opacity, so that soft borders stay soft.
    opacity = np.minimum(grey.astype(np.float32) / THRESHOLD, 1.0)[..., None]
    y = opacity * grey[..., None] + (1 - opacity) * ground
    return x, np.rint(y).astype(np.uint8), {"y_color": ground[:, 0, 0]}


def embedded_digits(size: int, seed: int) -> Parts:
    """Returns scikit-learn's digits as 0 or 255: 1,497 for train and 300 for test, stratified.

    They were made from 32×32 bilevel scans by counting the inked pixels, 0 to 16, of 4×4 blocks.
    Enlarged bicubically and cut at the recipe's threshold they are bilevel again.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = resize_pictures(np.rint(digits.images * (255 / 16)).astype(np.uint8), size)
    pictures = np.where(grey > THRESHOLD, 255, 0).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    divided = train_test_split(
        np.arange(len(labels)), test_size=TEST_DIGITS, stratify=labels, random_state=seed
    )
    train, test = ((pictures[rows], labels[rows]) for rows in divided)
    return {"train": train, "test": test}


def drawn_splits(contents: Contents, recipe: Recipe, options: PrepareOptions) -> dict[str, Split]:
    """Draws pairs from contents and classes by one random stream, then resizes to `image_size`."""
    rng, splits = np.random.default_rng(options.seed), {}
    for name, (content, classes) in contents.items():
        x, y, drawn = recipe(content[: options.limit], rng)
        if options.image_size is not None:
            x, y = (resize_pictures(pictures, options.image_size) for pictures in (x, y))
        factors = {**drawn, "class": classes[: options.limit]}
        ids = [f"{name}/{number:05d}" for number in range(1, len(x) + 1)]
        labels = list(map(str, factors["class"]))
        splits[name] = Split(Side(x, ids, labels), Side(y, ids, labels), factors)
    return splits


def plan_digits(recipe: Recipe, options: PrepareOptions, notes: Notes) -> Plan:
    """Plans scikit-learn's digits."""
    grey = embedded_digits(options.image_size or 32, options.seed)
    return Plan(drawn_splits(grey, recipe, options), {"source": DIGITS})


# ---- IDX files


def plan_idx(recipe: Recipe, options: PrepareOptions, notes: Notes) -> Plan:
    """Plans an IDX set; a folder of the published side-by-side pictures is read as it is."""
    folders = folders_by(options.source_path)
    if folders and find_idx(options.source_path, IDX_FILES[0]) is None:
        return plan_folders(folders, replace(options, side_by_side=True), notes)
    grey, attributes = read_parts(options)
    return Plan(drawn_splits(grey, recipe, options), attributes)


def read_parts(options: PrepareOptions) -> tuple[Parts, dict[str, str]]:
    """Reads 50,000 train digits, the rest as valid, all of test; returns the attributes, too."""
    folder = options.source_path
    paths = [path for name in IDX_FILES if (path := find_idx(folder, name)) is not None]
    if len(paths) < len(IDX_FILES):
        raise IiaeError(
            f"{folder} does not hold {', '.join(IDX_FILES)}, plain or .gz",
            "name the folder with the four IDX files, or pass --download alone",
        )
    train, train_labels, test, test_labels = map(read_idx, paths)
    for pictures, labels in ((train, train_labels), (test, test_labels)):
        if pictures.ndim != 3 or len(pictures) != len(labels):
            message = f"{folder} has {pictures.shape} pictures, {labels.shape} labels"
            raise IiaeError(message, "fetch the files again")
    parts = {
        "train": (train[:TRAIN_IDX], train_labels[:TRAIN_IDX].astype(np.int64)),
        "valid": (train[TRAIN_IDX:], train_labels[TRAIN_IDX:].astype(np.int64)),
        "test": (test, test_labels.astype(np.int64)),
    }
    return parts, {"source_sha256": sha256_of(*paths)}


def idx_folder(title: str, download: bool) -> Path | None:
    """Returns the folder of a set's IDX files: Debian's, or one into which they are downloaded.

    `title` is torchvision's.
    """
    if title == "FashionMNIST" and DEBIAN_FASHION.is_dir():
        return DEBIAN_FASHION
    if not download:
        return None
    from torchvision import datasets

    root = data_folder() / "downloads"
    try:
        for train in (True, False):
            getattr(datasets, title)(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise IiaeError(
            f"{title} could not be downloaded: {error}",
            "fetch its four IDX files elsewhere and name their folder",
        ) from error
    return root / title / "raw"


def find_idx(folder: Path, name: str) -> Path | None:
    """Returns the IDX file of a name in a folder, or in torchvision's `SET/raw`; plain first."""
    places = [folder, *sorted(folder.glob("*/raw")), folder / "raw"]
    names = (name, name.replace("-idx", ".idx"))  # as some mirrors name them
    candidates = [place / f"{n}{end}" for place in places for n in names for end in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> UInt8Array:
    """Reads an IDX file of unsigned bytes."""
    hint = "name the folder with MNIST's four original files, or fetch them again"
    with reading(path, hint), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read()
        if content[:3] != b"\0\0\x08":
            raise ValueError("it is not an IDX file of bytes")
        start = 4 + 4 * content[3]
        shape = np.frombuffer(content[4:start], ">u4")
        return np.frombuffer(content[start:], np.uint8).reshape(shape.tolist())
