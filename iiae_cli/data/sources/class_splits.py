"""Which classes are unseen: Sketchy Extended's published lists, a number drawn by seed, or a file.

A zero-shot figure means nothing without its list of test classes, so every division has a name and
a hash, and both go into the data file. `sempcyc-25` is the paper's split 1, `eccv18-21` its split
2; `sake-25` is what later work uses, and its figures compare with neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import normalise_class

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
DEFAULT_SPLIT = "sempcyc-25"
GIVEN = "given"


@dataclass(frozen=True)
class ClassDivision:
    """Classes to train on and classes to test on, both sorted.

    Attributes:
        name: a key of `CLASS_SPLITS`, `unseen-N-seedS`, or `given`.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def named_classes(name: str) -> tuple[str, ...]:
    """The test classes of a published split."""
    if name not in CLASS_SPLITS:
        raise IiaeError(f"unknown class split '{name}'", f"--split takes {', '.join(CLASS_SPLITS)}")
    return CLASS_SPLITS[name]


def split_named(classes: Iterable[str], name: str) -> ClassDivision:
    """Divide classes by a published list."""
    return _divide(sorted(classes), named_classes(name), name, f"split {name}")


def split_unseen(classes: Iterable[str], unseen: str, seed: int) -> ClassDivision:
    """Divide classes by `--unseen-classes`.

    Args:
        classes: all of them.
        unseen: a number, of classes drawn by `seed`; or a file with one class per line (# begins a
            comment).
        seed: of the draw.

    Raises:
        IiaeError: no such file or class, or nothing is left to train or to test on.
    """
    known = sorted(classes)
    if unseen.isdecimal():
        count = int(unseen)
        if not 0 < count < len(known):
            raise IiaeError(
                f"--unseen-classes {count} leaves nothing to train or to test on: "
                f"there are {len(known)} classes",
                f"give a number from 1 to {max(1, len(known) - 1)}",
            )
        drawn = np.random.default_rng(seed).choice(len(known), count, replace=False)
        return _divide(known, [known[i] for i in drawn], f"unseen-{count}-seed{seed}", "the draw")
    try:
        lines = Path(unseen).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise IiaeError(
            f"--unseen-classes {unseen} is neither a number nor a readable text file",
            "give a number, or a file with one class per line",
        ) from error
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not wanted:
        raise IiaeError(f"{unseen} names no class", "write one class per line")
    return _divide(known, wanted, GIVEN, unseen)


def _divide(known: Sequence[str], wanted: Sequence[str], name: str, what: str) -> ClassDivision:
    """Test classes are those of `known` that `wanted` names, in whichever spelling."""
    spelling = {normalise_class(label): label for label in known}
    missing = sorted({label for label in wanted if normalise_class(label) not in spelling})
    if missing:
        some = ", ".join(known[:10]) + (" …" if len(known) > 10 else "")
        raise IiaeError(
            f"the source has no class {', '.join(missing)} of {what}",
            f"name the folder of the whole set; its {len(known)} classes: {some}",
        )
    test = {spelling[normalise_class(label)] for label in wanted}
    train = tuple(label for label in known if label not in test)
    if not train:
        raise IiaeError(
            f"{what} leaves no class to train on",
            "leave at least one class out of the test classes",
        )
    return ClassDivision(name, train, tuple(sorted(test)))
