"""Two domains that belong together by class: pictures in folders, or features that exist.

    SOURCE/{train,valid,test}/{x,y}/CLASS/…     divided already (`val` is taken for `valid`)
    SOURCE/{x,y}/CLASS/…                        divided by --unseen-classes
    SOURCE[/split1]/{train,test}_{sketch,image}_{features,paths,labels}.npy, or SOURCE.npz

x and y have lengths of their own, every row a class, and no pairs. A class that only one domain has
cannot be learnt from or retrieved, and is left out by name. Until pictures become features, the
rows of a side are their files.

A zero-shot figure means nothing without its list of test classes, so every division has a name and
a hash, and both go into the data file. Of the published lists of Sketchy Extended `sempcyc-25` is
the paper's split 1, `eccv18-21` its split 2; `sake-25` is what later work uses, and its figures
compare with neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from iiae_cli.data.sources.features import has_features, read_features, read_seen, source_files
from iiae_cli.data.sources.pairs import split_folders
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions, ReadRows, Work
from iiae_cli.model import DOMAINS

_LISTS = {
    "sempcyc-25": (
        "bear bell cannon door eyeglasses geyser guitar hamburger jack_o_lantern lobster "
        "motorcycle mushroom pear racket rhinoceros saw saxophone spoon squirrel tank teapot "
        "tiger trumpet violin wheelchair"
    ),
    "eccv18-21": (
        "bat cabin cow dolphin door giraffe helicopter mouse pear raccoon rhinoceros saw scissors "
        "seagull skyscraper songbird sword tree wheelchair windmill window"
    ),
    "sake-25": (
        "cup swan harp squirrel snail ray pineapple volcano rifle scissors parrot windmill "
        "teddy_bear tree wine_bottle deer chicken airplane wheelchair tank umbrella butterfly "
        "camel horse bell"
    ),
}
CLASS_SPLITS = {name: tuple(text.split()) for name, text in _LISTS.items()}
GIVEN = "given"  # name of a division that is not one of these


def plan_classes(options: PrepareOptions) -> Plan:
    """Plan the features of the user's own classes, `options.source`."""
    source = options.source
    assert source is not None
    if options.split is not None:
        raise IiaeError(
            "--split names a list of Sketchy's classes",
            "name your own in a file: --unseen-classes FILE",
        )
    features = source / "split1" if has_features(source / "split1") else source
    if features.is_file() or has_features(features):
        if options.wants_backbone or options.unseen_classes is not None:
            raise IiaeError(
                f"{features} holds features that are divided already",
                "leave --backbone… and --unseen-classes out",
            )
        return plan_existing(features, options, {"name": None, "weights": "given"})
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


def plan_existing(
    source: Path,
    options: PrepareOptions,
    backbone: dict[str, Any],
    split_name: str = GIVEN,
    *,
    normalise: bool = False,
) -> Plan:
    """Plan features that exist, in the released layout or an `.npz`, made by a `backbone`."""

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits = read_features(source)
        for side in [split.side(domain) for split in splits.values() for domain in DOMAINS]:
            if normalise:
                side.labels = [normalise_class(label) for label in side.labels or []]
        return finish(
            {name: limit_rows(split, options.limit) for name, split in splits.items()},
            options,
            split_name=split_name,
            backbone={**backbone, "width": splits["train"].x.rows.shape[1]},
            seen=read_seen(source),
            what=f"the network of {source}",
        )

    return Plan(assemble, attributes={"source_sha256": sha256_of(*source_files(source))})


def _divided(
    source: Path, options: PrepareOptions, skipped: list[str]
) -> tuple[dict[str, Split], str]:
    """Pictures by split, and the division's name."""
    folders = split_folders(source)
    if not folders:
        pictures = _pictures(source, source, skipped)
        if options.unseen_classes is None:
            raise IiaeError(
                f"{source} does not say which classes are for testing",
                "say how many, or name a file that lists them: "
                f"iiae prepare classes {source} --unseen-classes 10 …",
            )
        return divide_unseen(pictures, options)
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
        for place in sorted(folder.iterdir()) if folder.is_dir() else ():
            if place.is_dir() and not place.name.startswith("."):
                pictures = pictures_in(place)
                files += pictures
                labels += [normalise_class(place.name) if normalise else place.name] * len(pictures)
    rows = np.empty(len(files), object)
    rows[:] = files
    return Side(rows, [path.relative_to(root).as_posix() for path in files], labels)


def classes_of(split: Split | None) -> list[str]:
    """The sorted classes of a split."""
    return [] if split is None else sorted({*(split.x.labels or []), *(split.y.labels or [])})


def keep_common(split: Split, where: str, skipped: list[str]) -> Split:
    """The rows of classes that both domains have; a line in `skipped` for every class left out."""
    x, y = split.x.labels or [], split.y.labels or []
    lone = {*x} ^ {*y}
    for name in sorted(lone):
        domain, count = ("x", x.count(name)) if name in x else ("y", y.count(name))
        skipped.append(f"class {name} of {where}: only in {domain}, its {count} rows are left out")
    return _with_labels(split, {*x} & {*y}) if lone else split


def divide_unseen(split: Split, options: PrepareOptions) -> tuple[dict[str, Split], str]:
    """Divide by `--unseen-classes`: a number, drawn by seed, or a file of one class per line.

    Returns the splits train and test, and the division's name.
    """
    unseen, known = str(options.unseen_classes), classes_of(split)
    if unseen.isdecimal():
        count = min(int(unseen), len(known))
        drawn = np.random.default_rng(options.seed).choice(len(known), count, replace=False)
        wanted, name = [known[i] for i in drawn], f"unseen-{count}-seed{options.seed}"
    else:
        try:
            lines = Path(unseen).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise IiaeError(
                f"--unseen-classes {unseen} is neither a number nor a readable text file",
                "pass a number, or a file with one class per line",
            ) from error
        wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        name = GIVEN
    return divide_classes(split, wanted, f"--unseen-classes {unseen}", options), name


def divide_classes(
    split: Split, wanted: Sequence[str], what: str, options: PrepareOptions
) -> dict[str, Split]:
    """Splits train and test, the test classes being `wanted` by `what`, in whichever spelling."""
    known = classes_of(split)
    spelling = {normalise_class(label): label for label in known}
    missing = sorted({label for label in wanted if normalise_class(label) not in spelling})
    if missing:
        some = ", ".join(known[:10]) + (" …" if len(known) > 10 else "")
        raise IiaeError(
            f"the source has no class {', '.join(missing)} of {what}",
            f"name the folder of the whole set; its {len(known)} classes: {some}",
        )
    test = {spelling[normalise_class(label)] for label in wanted}
    if not test or len(test) == len(known):
        raise IiaeError(
            f"{what} leaves no class to train or to test on",
            f"choose some of the {len(known)} classes, not all",
        )
    parts = {"train": {*known} - test, "test": test}
    return {
        name: limit_rows(_with_labels(split, classes), options.limit)
        for name, classes in parts.items()
    }


def _with_labels(split: Split, wanted: set[str]) -> Split:
    labels = (np.array(side.labels or [], np.str_) for side in (split.x, split.y))
    return split.take(*(np.flatnonzero(np.isin(column, [*wanted])) for column in labels))


def limit_rows(split: Split, limit: int | None) -> Split:
    """At most `limit` rows of each side, evenly over classes, in their order."""
    if limit is None:
        return split
    return split.take(*(_evenly(side.labels or [], limit) for side in (split.x, split.y)))


def _evenly(labels: Sequence[str], limit: int) -> NDArray[np.int64]:
    classes, which = np.unique(np.array(labels, np.str_), return_inverse=True)
    if limit < len(classes):
        raise IiaeError(
            f"--limit {limit} is fewer than the {len(classes)} classes",
            f"pass --limit {len(classes)} or more",
        )
    turn = np.empty(len(labels), np.int64)  # a row's place within its class
    for label in range(len(classes)):
        turn[which == label] = np.arange((which == label).sum())
    return np.sort(np.lexsort((which, turn))[:limit])


def finish(
    splits: dict[str, Split],
    options: PrepareOptions,
    *,
    split_name: str,
    backbone: dict[str, Any],
    seen: Seen,
    what: str,
) -> Prepared:
    """Leave out classes of one domain, check for a leak, and describe it all in attributes.

    Args:
        splits: of features.
        options: whether a leak is allowed.
        split_name: of the division; `given` and published names are decided by the test classes.
        backbone: how features came about, for the data file; `what` names it in an error.
        seen: classes that the backbone was trained on.

    Raises:
        IiaeError: nothing to train on, or the backbone has seen a test class.
    """
    skipped: list[str] = []
    splits = {name: keep_common(splits[name], name, skipped) for name in SPLITS if name in splits}
    train, test = classes_of(splits.get("train")), classes_of(splits.get("test"))
    if not train:
        raise IiaeError(
            "no class of the training split is in both domains", "name classes alike in x and y"
        )
    if split_name in (GIVEN, *CLASS_SPLITS):
        published = (name for name, classes in CLASS_SPLITS.items() if {*classes} == {*test})
        named, split_name = split_name, next(published, GIVEN)
        if named != split_name and named != GIVEN:
            console.warn(f"the test classes are not those of {named}: recorded as '{split_name}'")
    refuse_leak(seen, test, what, options.allow_leak)
    both = {*train} & {*test}
    if both:
        console.say(
            f"{len(both)} of {len(test)} test classes are training classes too: not zero-shot"
        )
    values: dict[str, Any] = {
        "test_classes": test,
        "train_classes": train,
        "backbone": {**backbone, **seen.to_json()},
    }
    leak = seen.leak(test)
    if leak is not None:  # absent: unknown
        values["leak"] = leak
    attributes = {
        "alignment": "class",
        "split_name": split_name,
        "test_classes_sha256": class_list_hash(test),
        **{key: json.dumps(value, ensure_ascii=False) for key, value in values.items()},
    }
    return Prepared(splits, attributes, skipped)
