"""Building data files: one entry per data set name, each a function from options to splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iiae_cli.data.dataset import Split, sha256_of, versions_json, write_data_file
from iiae_cli.data.feature_options import FeatureOptions
from iiae_cli.data.prepare.cdcb import Recipe, colour_pair, embedded_digits, outline_pair, resize_pictures, sketch_pair
from iiae_cli.data.prepare.class_sets import ClassSet
from iiae_cli.data.prepare.classes import read_classes
from iiae_cli.data.prepare.folders import read_pairs
from iiae_cli.data.prepare.idx import FILES, find_idx, read_idx
from iiae_cli.data.prepare.side_by_side import read_side_by_side
from iiae_cli.data.prepare.sketchy import read_sketchy
from iiae_cli.data.prepare.workspace import remove_workspace, workspace_of
from iiae_cli.errors import IiaeError
from iiae_cli.places import data_folder

TEST_DIGITS = 300
TRAIN_IDX = 50_000
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class PrepareOptions:
    """What a builder may be told.

    Attributes:
        source: file or folder that the data comes from.
        image_size: side of the stored pictures; None: the set's own.
        limit: at most so many pairs per split.
        seed: of colours and of random divisions.
        download: whether the source may be fetched.
        fractions: of pairs for valid and test, where the source has no splits.
        workers: decoding threads.
        features: of sets of classes: which are unseen, and the backbone.
    """

    source: Path | None = None
    image_size: int | None = None
    limit: int | None = None
    seed: int = 0
    download: bool = False
    fractions: tuple[float, float] = (0.1, 0.1)
    workers: int = 1
    features: FeatureOptions = field(default_factory=FeatureOptions)


@dataclass
class Prepared:
    """What a builder gives: splits, attributes of the source, and a line for every input left out."""

    splits: dict[str, Split]
    attributes: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def build(name: str, options: PrepareOptions) -> Prepared:
    """Build the splits of a data set.

    Raises:
        IiaeError: unknown set, or a source that is missing or damaged.
    """
    if name in LATER:
        raise IiaeError(
            f"this version cannot prepare '{name}' yet",
            "arrange its pictures as SOURCE/train/x, SOURCE/train/y, … and run: iiae prepare pairs SOURCE",
        )
    if name not in BUILDERS:
        raise IiaeError(f"unknown data set '{name}'", f"data sets: {', '.join(BUILDERS)}")
    if options.features.wants_classes and name not in CLASS_SETS:
        raise IiaeError(
            f"{name} takes no --split, --unseen-classes or --backbone…", f"these are for {' and '.join(CLASS_SETS)}"
        )
    return BUILDERS[name](options)


def _pairs_of(
    split: str,
    grey: NDArray[np.uint8],
    labels: NDArray[np.int64],
    recipe: Recipe,
    rng: np.random.Generator,
    size: int | None = None,
) -> Split:
    """Pairs of grey pictures by a recipe, coloured first and resized to `size` after, as MNIST-CDCB was made."""
    x, y, factors = recipe(grey, rng)
    if size is not None:
        x, y = resize_pictures(x, size), resize_pictures(y, size)
    ids = [f"{split}/{number:05d}" for number in range(1, len(grey) + 1)]
    names = [str(label) for label in labels]
    return Split(x, y, ids, list(ids), names, list(names), {**factors, "class": labels})


def _digits(recipe: Recipe, options: PrepareOptions) -> Prepared:
    """scikit-learn's digits: 1,497 train and 300 test pairs, stratified and seeded; none to spare for valid."""
    from sklearn.model_selection import train_test_split

    grey, labels = embedded_digits(options.image_size or 32)
    divided: list[NDArray[np.int64]] = train_test_split(
        np.arange(len(grey)), test_size=TEST_DIGITS, stratify=labels, random_state=options.seed
    )
    rng = np.random.default_rng(options.seed)
    splits = {}
    for split, rows in zip(("train", "test"), divided, strict=True):
        rows = rows[: options.limit]
        splits[split] = _pairs_of(split, grey[rows], labels[rows], recipe, rng)
    return Prepared(splits, {"source": "scikit-learn's bundled digits"})


def _idx_set(title: str, recipe: Recipe, options: PrepareOptions) -> Prepared:
    """An IDX set: 50,000 train pairs, the training digits left over as valid, all test digits as test."""
    folder = _idx_folder(title, options)
    if find_idx(folder, FILES["train"][0]) is None and any((folder / split).is_dir() for split in ("train", "test")):
        splits, skipped = read_side_by_side(folder, image_size=options.image_size, limit=options.limit)
        return Prepared(splits, {"source": str(folder)}, skipped)
    arrays: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    used: list[Path] = []
    for split, names in FILES.items():
        paths = [find_idx(folder, name) for name in names]
        missing = next((name for name, path in zip(names, paths, strict=True) if path is None), None)
        if missing is not None:
            raise IiaeError(
                f"{folder} holds no {missing}[.gz]",
                f"name the folder with {title}'s four IDX files, or pass --download",
            )
        present = [path for path in paths if path is not None]
        pictures, classes = (read_idx(path) for path in present)
        if pictures.ndim != 3 or len(pictures) != len(classes):
            raise IiaeError(f"{folder} has {pictures.shape} pictures, {classes.shape} labels", "fetch the files again")
        used += present
        arrays[split] = (pictures, classes.astype(np.int64))
    images, labels = arrays["train"]
    parts = {
        "train": (images[:TRAIN_IDX], labels[:TRAIN_IDX]),
        "valid": (images[TRAIN_IDX:], labels[TRAIN_IDX:]),
        "test": arrays["test"],
    }
    rng = np.random.default_rng(options.seed)
    splits = {}
    for split, (grey, digits) in parts.items():
        rows = slice(options.limit)
        splits[split] = _pairs_of(split, grey[rows], digits[rows], recipe, rng, options.image_size)
    return Prepared(splits, {"source": title, "source_sha256": sha256_of(*used)})


def _idx_folder(title: str, options: PrepareOptions) -> Path:
    if options.source is not None:
        if not options.source.is_dir():
            raise IiaeError(f"folder {options.source} does not exist", f"name the folder with {title}'s IDX files")
        return options.source
    if title == "Fashion-MNIST" and DEBIAN_FASHION.is_dir():
        return DEBIAN_FASHION
    if options.download:
        return _download(title)
    remedy = f"name the folder with its IDX files (iiae prepare … SOURCE), or pass --download to fetch {title}"
    raise IiaeError(f"the source of {title} was not named", remedy)


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
            f"{title} could not be downloaded: {error}", "fetch its four IDX files elsewhere and name their folder"
        ) from error
    return root / str(kind.__name__) / "raw"


def _pairs(options: PrepareOptions) -> Prepared:
    if options.source is None:
        raise IiaeError("the folder of your pairs was not named", "iiae prepare pairs SOURCE -o FILE.h5")
    found = read_pairs(
        options.source,
        image_size=options.image_size,
        fractions=options.fractions,
        seed=options.seed,
        limit=options.limit,
        workers=options.workers,
    )
    return Prepared(found.splits, {"source": str(options.source)}, found.skipped)


ClassReader = Callable[..., ClassSet]


def _class_set(name: str, read: ClassReader, options: PrepareOptions) -> Prepared:
    """A set of classes, whose rows are features."""
    if options.source is None:
        raise IiaeError(f"the folder of {name} was not named", f"iiae prepare {name} SOURCE -o FILE.h5")
    if options.image_size is not None:
        raise IiaeError("--image-size does not apply: this set is stored as features", "leave --image-size out")
    found = read(
        options.source,
        options=options.features,
        seed=options.seed,
        limit=options.limit,
        download=options.download,
        workers=options.workers,
    )
    return Prepared(found.splits, {"source": str(options.source), **found.attributes}, found.skipped)


Builder = Callable[[PrepareOptions], Prepared]

BUILDERS: dict[str, Builder] = {
    "digits-cdcb": partial(_digits, colour_pair),
    "digits-edge": partial(_digits, outline_pair),
    "mnist-cdcb": partial(_idx_set, "MNIST", colour_pair),
    "fashion-cdcb": partial(_idx_set, "Fashion-MNIST", colour_pair),
    "fashion-edges": partial(_idx_set, "Fashion-MNIST", sketch_pair),
    "pairs": _pairs,
    "sketchy": partial(_class_set, "sketchy", read_sketchy),
    "classes": partial(_class_set, "classes", read_classes),
}
EMBEDDED = ("digits-cdcb", "digits-edge")
CLASS_SETS = ("sketchy", "classes")
LATER = ("cars", "facades", "maps")


def prepare_file(name: str, path: Path, options: PrepareOptions, *, command: str) -> list[str]:
    """Build a set and write its data file; returns a line for every input that was left out.

    Raises:
        IiaeError: as `build`; or the file cannot be written.
    """
    if name in CLASS_SETS:
        options = replace(options, features=replace(options.features, work=workspace_of(path)))
    prepared = build(name, options)
    attributes = {
        **prepared.attributes,
        "command": command,
        "seed": str(options.seed),
        "versions": versions_json(),
        "skipped": str(len(prepared.skipped)),
    }
    write_data_file(path, name, prepared.splits, attributes)
    if name in CLASS_SETS:
        remove_workspace(workspace_of(path))
    return prepared.skipped
