"""Building data files: one entry per data set name, each a function from options to splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.paths import data_folder
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.datafile import DataFile, Side, Split, sha256_of, versions_json, write_data_file
from iiae_cli.data.feature_options import FeatureOptions
from iiae_cli.data.pictures import resize_pictures
from iiae_cli.data.sources.cars import read_cars
from iiae_cli.data.sources.cdcb import (
    Recipe,
    colour_pair,
    embedded_digits,
    outline_pair,
    sketch_pair,
)
from iiae_cli.data.sources.class_sets import ClassSet
from iiae_cli.data.sources.classes import read_classes
from iiae_cli.data.sources.download import ARCHIVES, BY_HAND, archive_of, find_folder
from iiae_cli.data.sources.folders import read_pairs
from iiae_cli.data.sources.idx import FILES, find_idx, read_idx
from iiae_cli.data.sources.manifest import is_manifest, read_manifest
from iiae_cli.data.sources.settings import digest_of, settings_of
from iiae_cli.data.sources.side_by_side import read_side_by_side
from iiae_cli.data.sources.sketchy import read_sketchy
from iiae_cli.data.sources.work import NOTHING_KEPT, Reading, Work, row_reading
from iiae_cli.data.workspace import workspace
from iiae_cli.model import DOMAINS

TEST_DIGITS = 300
TRAIN_IDX = 50_000
FACADES_SIZE = 256  # the halves' own
# Maps' halves are 600 a side: 2,194 pairs are 4.7 GB, and the paper's pipeline reads them at 256 by area anyway.
MAPS_SIZE = 256
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
        side_by_side: whether each picture of the user's own holds a pair, x on its left.
        features: of sets of classes: which are unseen, and the backbone.
        work: keeps what is finished; `prepare_file` sees to it.
    """

    source: Path | None = None
    image_size: int | None = None
    limit: int | None = None
    seed: int = 0
    download: bool = False
    fractions: tuple[float, float] = (0.1, 0.1)
    workers: int = 1
    side_by_side: bool = False
    features: FeatureOptions = field(default_factory=FeatureOptions)
    work: Work = NOTHING_KEPT

    def settings(self, name: str) -> dict[str, Any]:
        """Everything that decides the arrays of a set's data file, as JSON values."""
        return settings_of(
            name,
            source=self.source,
            features=self.features,
            image_size=self.image_size,
            limit=self.limit,
            seed=self.seed,
            fractions=list(self.fractions),
            side_by_side=self.side_by_side,
        )


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
    if name not in BUILDERS:
        raise IiaeError(f"unknown data set '{name}'", _what_else(name))
    if options.features.wants_classes and name not in CLASS_SETS:
        raise IiaeError(
            f"{name} takes no --split, --unseen-classes or --backbone…",
            f"these are for {' and '.join(CLASS_SETS)}",
        )
    if options.side_by_side and name != "pairs":
        raise IiaeError(
            f"--side-by-side does not apply to {name}",
            "leave it out; it is for: iiae prepare pairs SOURCE",
        )
    return BUILDERS[name](options)


def _what_else(name: str) -> str:
    """A hint for somebody who names something else in a data set's place."""
    path = Path(name)
    if path.is_file() and path.suffix in (".h5", ".hdf5"):
        return f"to join shards: iiae prepare {name} … --merge -o OUTPUT; a data file is ready to train on as it is"
    if path.exists():
        return f"for pictures of your own: iiae prepare pairs {name}, or classes where pairs share a class alone"
    return f"data sets: {', '.join(BUILDERS)}"


def _coloured(
    grey: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]],
    recipe: Recipe,
    options: PrepareOptions,
    size: int | None = None,
) -> dict[str, Split]:
    """Pairs of grey pictures by a recipe, coloured first and resized to `size` after, as MNIST-CDCB was made.

    Args:
        grey: pictures (N, H, W) and labels (N,) per split.
        recipe: draws colours from one stream, split after split.
        options: for the seed.
        size: None: as they are.
    """
    rng = np.random.default_rng(options.seed)
    change = None if size is None else lambda rows: resize_pictures(rows, size)
    readings: list[Reading] = []
    factors: dict[str, dict[str, NDArray[Any]]] = {}
    for split, (pictures, labels) in grey.items():
        x, y, colours = recipe(pictures, rng)
        readings += [row_reading(f"{split}/x", x, change), row_reading(f"{split}/y", y, change)]
        factors[split] = {**colours, "class": labels}
    rows = options.work.read(readings)
    splits = {}
    for split, (pictures, labels) in grey.items():
        ids = [f"{split}/{number:05d}" for number in range(1, len(pictures) + 1)]
        names = [str(label) for label in labels]
        x, y = (rows[f"{split}/{domain}"].rows[0] for domain in DOMAINS)
        splits[split] = Split(Side(x, ids, names), Side(y, list(ids), list(names)), factors[split])
    return splits


def _digits(recipe: Recipe, options: PrepareOptions) -> Prepared:
    """scikit-learn's digits: 1,497 train and 300 test pairs, stratified and seeded; none to spare for valid."""
    from sklearn.model_selection import train_test_split

    grey, labels = embedded_digits(options.image_size or 32)
    divided: list[NDArray[np.int64]] = train_test_split(
        np.arange(len(grey)), test_size=TEST_DIGITS, stratify=labels, random_state=options.seed
    )
    rows = {
        split: some[: options.limit] for split, some in zip(("train", "test"), divided, strict=True)
    }
    splits = _coloured(
        {split: (grey[some], labels[some]) for split, some in rows.items()}, recipe, options
    )
    return Prepared(splits, {"source": "scikit-learn's bundled digits"})


def _idx_set(title: str, recipe: Recipe, options: PrepareOptions) -> Prepared:
    """An IDX set: 50,000 train pairs, the training digits left over as valid, all test digits as test."""
    folder = _idx_folder(title, options)
    if find_idx(folder, FILES["train"][0]) is None and any(
        (folder / split).is_dir() for split in ("train", "test")
    ):
        splits, skipped = read_side_by_side(
            folder,
            image_size=options.image_size,
            limit=options.limit,
            workers=options.workers,
            work=options.work,
        )
        return Prepared(splits, {"source": str(folder)}, skipped)
    arrays: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    used: list[Path] = []
    for split, names in FILES.items():
        paths = [find_idx(folder, name) for name in names]
        missing = next(
            (name for name, path in zip(names, paths, strict=True) if path is None), None
        )
        if missing is not None:
            raise IiaeError(
                f"{folder} holds no {missing}[.gz]",
                f"name the folder with {title}'s four IDX files, or pass --download",
            )
        present = [path for path in paths if path is not None]
        pictures, classes = (read_idx(path) for path in present)
        if pictures.ndim != 3 or len(pictures) != len(classes):
            raise IiaeError(
                f"{folder} has {pictures.shape} pictures, {classes.shape} labels",
                "fetch the files again",
            )
        used += present
        arrays[split] = (pictures, classes.astype(np.int64))
    images, labels = arrays["train"]
    parts = {
        "train": (images[:TRAIN_IDX], labels[:TRAIN_IDX]),
        "valid": (images[TRAIN_IDX:], labels[TRAIN_IDX:]),
        "test": arrays["test"],
    }
    parts = {
        split: (grey[: options.limit], digits[: options.limit])
        for split, (grey, digits) in parts.items()
    }
    splits = _coloured(parts, recipe, options, options.image_size)
    return Prepared(splits, {"source": title, "source_sha256": sha256_of(*used)})


def _idx_folder(title: str, options: PrepareOptions) -> Path:
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
            f"{title} could not be downloaded: {error}",
            "fetch its four IDX files elsewhere and name their folder",
        ) from error
    return root / str(kind.__name__) / "raw"


def _source_folder(name: str, options: PrepareOptions) -> tuple[Path, dict[str, str]]:
    """The folder with a set's files, from a folder, an archive or a download, and what to record of it."""
    return archive_of(name, options.source, options.download, data_folder() / "downloads")


def _cars(options: PrepareOptions) -> Prepared:
    folder, attributes = _source_folder("cars", options)
    splits, skipped = read_cars(
        folder, image_size=options.image_size, limit=options.limit, work=options.work
    )
    return Prepared(splits, attributes, skipped)


def _halves(name: str, own_size: int, options: PrepareOptions) -> Prepared:
    """A set of side-by-side pictures in its archive's layout; `val` is Maps' test split."""
    folder, attributes = _source_folder(name, options)
    splits, skipped = read_side_by_side(
        find_folder(folder, "train") or folder,
        image_size=options.image_size or own_size,
        limit=options.limit,
        workers=options.workers,
        need_test=True,
        work=options.work,
    )
    return Prepared(splits, attributes, skipped)


def _pairs(options: PrepareOptions) -> Prepared:
    source = options.source
    if source is None:
        raise IiaeError(
            "the source of your pairs was not named", "iiae prepare pairs SOURCE -o FILE.h5"
        )
    settings: dict[str, Any] = {
        "image_size": options.image_size,
        "fractions": options.fractions,
        "seed": options.seed,
        "limit": options.limit,
        "workers": options.workers,
        "work": options.work,
    }
    if options.side_by_side:
        if not source.is_dir():
            raise IiaeError(f"{source} is no folder of side-by-side pictures", "name their folder")
        splits, skipped = read_side_by_side(source, **settings)
    elif is_manifest(source):
        splits, skipped = read_manifest(source, **settings)
        return Prepared(
            splits, {"source": str(source), "source_sha256": sha256_of(source)}, skipped
        )
    else:
        splits, skipped = read_pairs(source, **settings)
    return Prepared(splits, {"source": str(source)}, skipped)


ClassReader = Callable[..., ClassSet]


def _class_set(name: str, read: ClassReader, options: PrepareOptions) -> Prepared:
    """A set of classes, whose rows are features."""
    source, attributes = options.source, {"source": str(options.source)}
    if source is None or (source.is_file() and source.suffix in ARCHIVE_SUFFIXES):
        source, attributes = _source_folder(name, options)
    if options.image_size is not None:
        raise IiaeError(
            "--image-size does not apply: this set is stored as features", "leave --image-size out"
        )
    found = read(
        source,
        options=options.features,
        seed=options.seed,
        limit=options.limit,
        download=options.download,
        workers=options.workers,
        work=options.work,
    )
    return Prepared(found.splits, {**attributes, **found.attributes}, found.skipped)


Builder = Callable[[PrepareOptions], Prepared]

BUILDERS: dict[str, Builder] = {
    "digits-cdcb": partial(_digits, colour_pair),
    "digits-edge": partial(_digits, outline_pair),
    "mnist-cdcb": partial(_idx_set, "MNIST", colour_pair),
    "fashion-cdcb": partial(_idx_set, "Fashion-MNIST", colour_pair),
    "fashion-edges": partial(_idx_set, "Fashion-MNIST", sketch_pair),
    "cars": _cars,
    "facades": partial(_halves, "facades", FACADES_SIZE),
    "maps": partial(_halves, "maps", MAPS_SIZE),
    "pairs": _pairs,
    "sketchy": partial(_class_set, "sketchy", read_sketchy),
    "classes": partial(_class_set, "classes", read_classes),
}
EMBEDDED = ("digits-cdcb", "digits-edge")
CLASS_SETS = ("sketchy", "classes")
DOWNLOADED = (*ARCHIVES, "mnist-cdcb", "fashion-cdcb", "fashion-edges")
ARCHIVE_SUFFIXES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip", ".7z")


def how_to_prepare(name: str, path: Path) -> str:
    """The command that makes a set's data file at `path`, and where its source comes from."""
    if name in BY_HAND:
        return f"{BY_HAND[name]} -o {path}"
    if name not in BUILDERS:
        return f"iiae prepare pairs SOURCE -o {path}, or iiae prepare classes SOURCE -o {path}"
    source = "" if name in EMBEDDED else " --download" if name in DOWNLOADED else " SOURCE"
    return f"iiae prepare {name}{source} -o {path}   (see iiae prepare --help)"


def prepare_file(
    name: str,
    path: Path,
    options: PrepareOptions,
    *,
    command: str,
    resume: bool = False,
    overwrite: bool = False,
    stop: Stop = NEVER,
) -> list[str]:
    """Build a set and write its data file; returns a line for every input that was left out.

    Args:
        name: of the set.
        path: the file; an existing one is replaced.
        options: of the builder.
        command: for the file's attributes.
        resume: whether what an interrupted call left is taken up.
        overwrite: whether it is dropped otherwise.
        stop: asked before every block.

    Raises:
        IiaeError: as `build`; interrupted work is in the way; or the file cannot be written.
        Interrupted: a signal came; what is finished is kept.
    """
    settings = options.settings(name)
    if name in EMBEDDED:  # made in a second, and by several runs at once where they train on it
        return build_and_write(name, path, options, command, digest_of(settings), None)
    with workspace(path, settings, resume=resume, overwrite=overwrite) as folder:
        options = replace(options, work=Work(folder, stop))
        return build_and_write(name, path, options, command, digest_of(settings), folder)


def build_and_write(
    name: str, path: Path, options: PrepareOptions, command: str, settings: str, folder: Path | None
) -> list[str]:
    """Build a set and write its data file; returns a line for every input that was left out.

    Args:
        name: of the set.
        path: the file; an existing one is replaced.
        options: of the builder, and where its rows come from.
        command: for the file's attributes.
        settings: digest of what decides the rows, likewise.
        folder: for the temporary file; None: beside `path`.

    Raises:
        IiaeError: as `build`, or the file cannot be written.
    """
    prepared = build(name, options)
    attributes = {
        **prepared.attributes,
        "command": command,
        "seed": str(options.seed),
        "settings_sha256": settings,
        "versions": versions_json(),
        "skipped": str(len(prepared.skipped)),
    }
    write_data_file(
        path, name, prepared.splits, attributes, skipped=prepared.skipped, folder=folder
    )
    return prepared.skipped


def is_prepared(name: str, path: Path, options: PrepareOptions) -> bool:
    """Whether a data file was made from the same source by the same options.

    Raises:
        IiaeError: the file is damaged or no data file.
    """
    return DataFile(path).info.attributes.get("settings_sha256") == digest_of(
        options.settings(name)
    )
