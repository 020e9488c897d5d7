"""What sets of classes have in common: two domains that belong together by class, and what their data file says of it.

x and y have lengths of their own, every row a class, and no pairs. A class that only one domain has cannot be learnt
from or retrieved, and is left out by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import SPLITS, Split
from iiae_cli.data.leaks import Seen, class_list_hash, normalise_class, refuse_leak
from iiae_cli.data.pictures import pictures_in
from iiae_cli.data.sources.class_splits import CLASS_SPLITS, GIVEN, ClassDivision
from iiae_cli.data.sources.plan import Prepared
from iiae_cli.model import DOMAINS, Domain


class Picture(NamedTuple):
    """A picture file, its class, and its name in the data file."""

    path: Path
    label: str
    id: str


Pictures: TypeAlias = dict[Domain, list[Picture]]


def class_pictures(folder: Path, root: Path, *, normalise: bool = False) -> list[Picture]:
    """The pictures of `FOLDER/CLASS/…`, their ids relative to `root`; classes in order of their names."""
    if not folder.is_dir():
        return []
    classes = sorted(
        one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")
    )
    return [
        Picture(
            path,
            normalise_class(one.name) if normalise else one.name,
            path.relative_to(root).as_posix(),
        )
        for one in classes
        for path in pictures_in(one)
    ]


def lone_classes(x: Iterable[str], y: Iterable[str]) -> dict[str, Domain]:
    """Classes that only one domain has, and which."""
    in_x, in_y = set(x), set(y)
    return {name: "x" if name in in_x else "y" for name in sorted(in_x ^ in_y)}


def keep_common(pictures: Pictures, where: str, skipped: list[str]) -> Pictures:
    """The pictures of classes that both domains have; a line in `skipped` for every class left out."""
    lone = lone_classes(*([one.label for one in pictures[domain]] for domain in DOMAINS))
    for name, domain in lone.items():
        count = sum(one.label == name for one in pictures[domain])
        skipped.append(_lone_line(name, domain, count, where))
    return {
        domain: [one for one in pictures[domain] if one.label not in lone] for domain in DOMAINS
    }


def keep_common_rows(split: Split, where: str, skipped: list[str]) -> Split:
    """The rows of classes that both domains have; a line in `skipped` for every class left out."""
    labels = {domain: np.array(split.side(domain).labels, dtype=np.str_) for domain in DOMAINS}
    lone = lone_classes(*(values.tolist() for values in labels.values()))
    for name, domain in lone.items():
        skipped.append(_lone_line(name, domain, int((labels[domain] == name).sum()), where))
    rows = {
        domain: np.flatnonzero(~np.isin(values, list(lone))) for domain, values in labels.items()
    }
    return split.take(rows["x"], rows["y"]) if lone else split


def _lone_line(name: str, domain: Domain, count: int, where: str) -> str:
    return f"class {name} of {where}: only in {domain}, its {count} rows are left out"


def evenly(labels: Sequence[str], limit: int | None) -> NDArray[np.int64]:
    """At most `limit` rows, of every class as many as can be, in their order.

    Raises:
        IiaeError: fewer rows than classes are asked for.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    classes, which = np.unique(np.array(labels), return_inverse=True)
    if limit < len(classes):
        raise IiaeError(
            f"--limit {limit} is fewer than the {len(classes)} classes",
            f"give --limit {len(classes)} or more",
        )
    turn = np.empty(len(labels), np.int64)  # a row's place within its class
    for one in range(len(classes)):
        turn[which == one] = np.arange((which == one).sum())
    return np.sort(np.lexsort((which, turn))[:limit])


def limit_pictures(pictures: Pictures, limit: int | None) -> Pictures:
    """At most `limit` pictures of each domain, evenly over classes."""
    return {
        domain: [found[row] for row in evenly([one.label for one in found], limit)]
        for domain, found in pictures.items()
    }


def limit_split(split: Split, limit: int | None) -> Split:
    """At most `limit` rows of each domain, evenly over classes."""
    return (
        split
        if limit is None
        else split.take(*(evenly(split.side(one).labels or [], limit) for one in DOMAINS))
    )


def divide_pictures(pictures: Pictures, division: ClassDivision) -> dict[str, Pictures]:
    """Pictures of training and of test classes."""
    return {
        name: {
            domain: [one for one in found if one.label in classes]
            for domain, found in pictures.items()
        }
        for name, classes in (("train", set(division.train)), ("test", set(division.test)))
    }


def classes_of(split: Split | None) -> list[str]:
    """The sorted classes of a split."""
    return [] if split is None else sorted({*(split.x.labels or []), *(split.y.labels or [])})


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
    """Leave out classes of one domain, check for a leak, and say it all in attributes.

    Args:
        splits: by name.
        split_name: of the division of classes; a published name that the test classes do not bear out is `given`.
        backbone: how features came about; `classes_seen` is added.
        seen: classes that the backbone was trained on.
        what: the backbone, for an error.
        allow_leak: whether it may have seen test classes.
        skipped: lines of what was left out so far.

    Raises:
        IiaeError: nothing to train on, or the backbone has seen a test class.
    """
    splits = {
        name: keep_common_rows(splits[name], name, skipped) for name in SPLITS if name in splits
    }
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
    both = sorted(set(train) & set(test))
    if both:
        console.say(
            f"{len(both)} of {len(test)} test classes are training classes too: not zero-shot"
        )
    attributes = {
        "alignment": "class",
        "split_name": split_name,
        "test_classes_sha256": class_list_hash(test),
        "test_classes": json.dumps(test, ensure_ascii=False),
        "train_classes": json.dumps(train, ensure_ascii=False),
        "backbone": json.dumps({**backbone, **seen.to_json()}, ensure_ascii=False),
    }
    leak = seen.leak(test)
    if leak is not None:  # absent: unknown
        attributes["leak"] = json.dumps(leak, ensure_ascii=False)
    return Prepared(splits, attributes, skipped)
