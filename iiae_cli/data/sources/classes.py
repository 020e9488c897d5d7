"""Two domains that belong together by class: pictures in folders, or features as given.

    SOURCE/{train,valid,test}/{x,y}/CLASS/…     divided already (`val` is taken for `valid`)
    SOURCE/{x,y}/CLASS/…                        divided by --unseen-classes
    SOURCE[/split1]/{train,test}_{sketch,image}_{features,paths,labels}.npy, or SOURCE.npz

x and y have lengths of their own, every row a class, and no pairs. A class that only one domain has
cannot be learnt from or retrieved, and is left out by name. Until pictures become features, the
rows of a side are their files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import sha256_of
from iiae_cli.data.datafile import (
    SPLITS,
    Seen,
    Side,
    Split,
    class_list_hash,
    normalise_class,
    refuse_leak,
)
from iiae_cli.data.pictures import pictures_in
from iiae_cli.data.sources.class_splits import CLASS_SPLITS, GIVEN, ClassDivision, split_unseen
from iiae_cli.data.sources.features import has_features, read_features, read_seen, source_files
from iiae_cli.data.sources.pairs import split_folders
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions
from iiae_cli.model import DOMAINS, Domain


def plan_classes(options: PrepareOptions) -> Plan:
    """Plan the features of the user's own classes, `options.source`."""
    source = options.source
    assert source is not None
    if options.class_split is not None:
        raise IiaeError(
            "--split names a list of Sketchy's classes",
            "name your own in a file: --unseen-classes FILE",
        )
    features = _find_features(source)
    if features is not None:
        if options.wants_backbone or options.unseen_classes is not None:
            raise IiaeError(
                f"{features} holds features that are divided already",
                "leave --backbone… and --unseen-classes out",
            )
        return Plan(lambda rows, work: _given(features, options))
    if not source.is_dir():
        raise IiaeError(
            f"{source} is neither a folder nor an .npz of features",
            "name a folder that holds train/x/CLASS, …, or x/CLASS and y/CLASS, or features",
        )
    skipped: list[str] = []
    divided, split_name = _divided(source, options, skipped)
    weights = options.backbone_weights
    if options.backbone is None and not (weights and Path(weights).is_dir()):
        raise IiaeError(
            f"{source} holds pictures, and classes are learnt from features",
            f"name a backbone: iiae prepare classes {source} --backbone resnet18 --download",
        )

    from iiae_cli.data.sources.extraction import plan_features  # imports torch

    return plan_features(divided, options, split_name=split_name, epochs=0, skipped=skipped)


def _find_features(source: Path) -> Path | None:
    """Where SOURCE holds features: itself, its `split1`, or the only `.npz` in it."""
    if source.is_file():
        return source if source.suffix == ".npz" else None
    for folder in (source, source / "split1"):
        if has_features(folder):
            return folder
    archives = list(source.glob("*.npz"))
    return archives[0] if len(archives) == 1 else None


def _given(source: Path, options: PrepareOptions) -> Prepared:
    splits = {
        name: limit_rows(split, options.limit) for name, split in read_features(source).items()
    }
    widths = {domain: splits["train"].side(domain).rows.shape[1] for domain in DOMAINS}
    prepared = finish(
        splits,
        split_name=GIVEN,
        backbone={"name": None, "weights": "given", "width": widths},
        seen=read_seen(source),
        what=f"the network of {source}",
        allow_leak=options.allow_leak,
        skipped=[],
    )
    prepared.attributes["source_sha256"] = sha256_of(*source_files(source))
    return prepared


def _divided(
    source: Path, options: PrepareOptions, skipped: list[str]
) -> tuple[dict[str, Split], str]:
    """Pictures by split, and the division's name."""
    folders = split_folders(source)
    if not folders:
        found = _pictures(source, source, skipped)
        if options.unseen_classes is None:
            raise IiaeError(
                f"{source} does not say which classes are for testing",
                "say how many, or name a file that lists them: "
                f"iiae prepare classes {source} --unseen-classes 10 …",
            )
        division = split_unseen(classes_of(found), options.unseen_classes, options.seed)
        return divide_classes(found, division, options.limit), division.name
    if options.unseen_classes is not None:
        raise IiaeError(
            f"{source} is divided into {', '.join(folders)} already", "leave --unseen-classes out"
        )
    if "train" not in folders:
        raise IiaeError(
            f"{source} has no folder train/",
            "put training classes in train/x/CLASS and train/y/CLASS",
        )
    splits = {name: _pictures(folder, source, skipped) for name, folder in folders.items()}
    return {name: limit_rows(split, options.limit) for name, split in splits.items()}, GIVEN


def _pictures(folder: Path, root: Path, skipped: list[str]) -> Split:
    x, y = (class_pictures(folder / domain, root=root) for domain in DOMAINS)
    split = keep_common(Split(x, y), str(folder), skipped)
    if not len(split.x):
        raise IiaeError(
            f"{folder} has no class with pictures in both x/ and y/",
            "put pictures in x/CLASS/NAME.png and y/CLASS/NAME.png",
        )
    return split


# ---- shared with sketchy and extraction


def class_pictures(*folders: Path, root: Path, normalise: bool = False) -> Side:
    """The pictures of `FOLDER/CLASS/…`, their ids relative to `root`; classes in order of names."""
    files: list[Path] = []
    labels: list[str] = []
    for folder in folders:
        inner = sorted(folder.iterdir()) if folder.is_dir() else []
        for place in inner:
            if place.is_dir() and not place.name.startswith("."):
                found = pictures_in(place)
                name = normalise_class(place.name) if normalise else place.name
                files += found
                labels += [name] * len(found)
    rows = np.empty(len(files), object)
    rows[:] = files
    return Side(rows, [path.relative_to(root).as_posix() for path in files], labels)


def classes_of(split: Split | None) -> list[str]:
    """The sorted classes of a split."""
    return [] if split is None else sorted({*(split.x.labels or []), *(split.y.labels or [])})


def keep_common(split: Split, where: str, skipped: list[str]) -> Split:
    """The rows of classes that both domains have; a line in `skipped` for every class left out."""
    labels = {domain: split.side(domain).labels or [] for domain in DOMAINS}
    lone = {*labels["x"]} ^ {*labels["y"]}
    for name in sorted(lone):
        domain: Domain = "x" if name in labels["x"] else "y"
        count = labels[domain].count(name)
        skipped.append(f"class {name} of {where}: only in {domain}, its {count} rows are left out")
    return _with_labels(split, {*labels["x"]} & {*labels["y"]}) if lone else split


def divide_classes(split: Split, division: ClassDivision, limit: int | None) -> dict[str, Split]:
    """Rows of training and of test classes, at most `limit` of each side."""
    parts = {"train": {*division.train}, "test": {*division.test}}
    return {
        name: limit_rows(_with_labels(split, classes), limit) for name, classes in parts.items()
    }


def _with_labels(split: Split, wanted: set[str]) -> Split:
    rows = (
        np.array([row for row, label in enumerate(side.labels or []) if label in wanted], np.int64)
        for side in (split.x, split.y)
    )
    return split.take(*rows)


def limit_rows(split: Split, limit: int | None) -> Split:
    """At most `limit` rows of each side, evenly over classes, in their order."""
    if limit is None:
        return split
    return split.take(*(_evenly(side.labels or [], limit) for side in (split.x, split.y)))


def _evenly(labels: Sequence[str], limit: int) -> NDArray[np.int64]:
    """At most `limit` rows, of every class as many as can be."""
    classes, which = np.unique(np.array(labels, np.str_), return_inverse=True)
    if limit < len(classes):
        raise IiaeError(
            f"--limit {limit} is fewer than the {len(classes)} classes",
            f"give --limit {len(classes)} or more",
        )
    turn = np.empty(len(labels), np.int64)  # a row's place within its class
    for label in range(len(classes)):
        turn[which == label] = np.arange((which == label).sum())
    return np.sort(np.lexsort((which, turn))[:limit])


def finish(
    splits: dict[str, Split],
    *,
    split_name: str,
    backbone: dict[str, Any],
    seen: Seen,
    what: str,
    allow_leak: bool,
    skipped: list[str],
) -> Prepared:
    """Leave out classes of one domain, check for a leak, and describe it all in attributes.

    Args:
        splits: by name.
        split_name: of the division of classes; a published name that the test classes do not bear
            out becomes `given`.
        backbone: how features came about; `classes_seen` is added.
        seen: classes that the backbone was trained on.
        what: the backbone, for an error.
        allow_leak: whether it may have seen test classes.
        skipped: lines of what was left out so far.

    Raises:
        IiaeError: nothing to train on, or the backbone has seen a test class.
    """
    splits = {name: keep_common(splits[name], name, skipped) for name in SPLITS if name in splits}
    train, test = classes_of(splits.get("train")), classes_of(splits.get("test"))
    if not train:
        raise IiaeError(
            "no class of the training split is in both domains", "name classes alike in x and y"
        )
    if split_name in CLASS_SPLITS and set(test) != set(CLASS_SPLITS[split_name]):
        console.warn(
            f"the test classes are not those of {split_name}; the split is recorded as '{GIVEN}'"
        )
        split_name = GIVEN
    refuse_leak(seen, test, what, allow_leak)
    both = {*train} & {*test}
    if both:
        console.say(
            f"{len(both)} of {len(test)} test classes are training classes too: not zero-shot"
        )
    told: dict[str, Any] = {
        "test_classes": test,
        "train_classes": train,
        "backbone": {**backbone, **seen.to_json()},
    }
    leak = seen.leak(test)
    if leak is not None:  # absent: unknown
        told["leak"] = leak
    attributes = {
        "alignment": "class",
        "split_name": split_name,
        "test_classes_sha256": class_list_hash(test),
        **{key: json.dumps(value, ensure_ascii=False) for key, value in told.items()},
    }
    return Prepared(splits, attributes, skipped)
