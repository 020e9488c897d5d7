"""Sketchy Extended: sketches (x) and photos (y) of 125 classes, as pictures or released features.

SOURCE/sketch/tx_000000000000/CLASS/*.png              sketches
SOURCE/photo/tx_000000000000/CLASS/*.jpg               photos
SOURCE/extended_photo/CLASS/*.jpg                      more photos
SOURCE/256x256/{sketch,photo}/tx_000000000000*/CLASS   the same in the resized archive
SOURCE/[SketchyVGG/]split{1,2}/{train,test}_{sketch,image}_{features,paths}.npy
"""

from __future__ import annotations

from pathlib import Path

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import sha256_of
from iiae_cli.data.datafile import UNKNOWN, Split, normalise_class
from iiae_cli.data.sources.class_splits import (
    CLASS_SPLITS,
    DEFAULT_SPLIT,
    GIVEN,
    named_classes,
    split_named,
    split_unseen,
)
from iiae_cli.data.sources.classes import (
    class_pictures,
    classes_of,
    divide_classes,
    finish,
    keep_common,
    limit_rows,
)
from iiae_cli.data.sources.features import has_features, read_features, source_files
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions

RELEASED = {"sempcyc-25": "split1", "eccv18-21": "split2"}
PUBLISHED = (75_479, 73_002)
EPOCHS = 10
_TRANSFORM = "tx_000000000000"


def plan_sketchy(options: PrepareOptions) -> Plan:
    """Plan Sketchy's features: the released ones where SOURCE holds them, else of its pictures."""
    source = options.source
    assert source is not None
    if options.class_split is not None and options.unseen_classes is not None:
        raise IiaeError("--split and --unseen-classes exclude each other", "give one of them")
    if not source.is_dir():
        raise IiaeError(
            f"folder {source} does not exist",
            "name the folder that holds sketch/, photo/ and extended_photo/",
        )
    class_split = options.class_split or DEFAULT_SPLIT
    named_classes(class_split)
    if not options.wants_backbone and options.unseen_classes is None:
        released = find_released(source, class_split)
        if released is not None:
            return Plan(lambda rows, work: _released(released, class_split, options))
    found = find_pictures(source)
    if found is None:
        raise IiaeError(
            f"{source} is not laid out as Sketchy",
            f"it should hold sketch/{_TRANSFORM}/CLASS, photo/{_TRANSFORM}/CLASS and "
            "extended_photo/CLASS",
        )
    counts = (len(found.x), len(found.y))
    if counts != PUBLISHED:
        console.say(
            f"{counts[0]:,} sketches and {counts[1]:,} photos; Sketchy Extended was published with "
            f"{PUBLISHED[0]:,} and {PUBLISHED[1]:,}"
        )
    skipped: list[str] = []
    found = keep_common(found, str(source), skipped)
    if options.unseen_classes is not None:
        division = split_unseen(classes_of(found), options.unseen_classes, options.seed)
    else:
        division = split_named(classes_of(found), class_split)
    divided = divide_classes(found, division, options.limit)

    from iiae_cli.data.sources import extraction  # imports torch

    return extraction.plan_features(
        divided, options, split_name=division.name, epochs=EPOCHS, skipped=skipped
    )


def find_pictures(source: Path) -> Split | None:
    """Files of sketches and photos, class names normalised; None where it is in neither layout."""
    for root in (source, source / "256x256"):
        sketches, photos = (_domain_folder(root / word) for word in ("sketch", "photo"))
        if sketches is not None and photos is not None:
            break
    else:
        return None
    places = (root / "extended_photo", source / "extended_photo")
    extended = [folder for folder in places if folder.is_dir()][:1]
    if not extended:
        console.say(f"{source} has no extended_photo/: this is Sketchy, not Sketchy Extended")
    return Split(
        class_pictures(sketches, root=source, normalise=True),
        class_pictures(photos, *extended, root=source, normalise=True),
    )


def _domain_folder(folder: Path) -> Path | None:
    """`FOLDER/tx_000000000000`, or the only folder that begins so."""
    exact = folder / _TRANSFORM
    if exact.is_dir():
        return exact
    others = sorted(path for path in folder.glob(f"{_TRANSFORM}*") if path.is_dir())
    if len(others) > 1:
        raise IiaeError(
            f"{folder} has several {_TRANSFORM}* folders",
            f"leave one: {', '.join(path.name for path in others)}",
        )
    return others[0] if others else None


def find_released(source: Path, class_split: str) -> Path | None:
    """The folder of the released features for a split, or None where SOURCE holds none.

    Raises:
        IiaeError: they are there, but not for this split.
    """
    if has_features(source):
        return source
    roots = (source / "SketchyVGG", source)
    root = next(
        (root for root in roots if any((root / part).is_dir() for part in RELEASED.values())), None
    )
    if root is None:
        return None
    folder = root / RELEASED.get(class_split, "none")
    if not has_features(folder):
        here = [name for name, part in RELEASED.items() if has_features(root / part)]
        raise IiaeError(
            f"{root} holds no released features for {class_split}",
            f"it has --split {' or '.join(here) or 'none'}; "
            "any split can be made from the pictures",
        )
    return folder


def _released(folder: Path, class_split: str, options: PrepareOptions) -> Prepared:
    splits = read_features(folder)
    for split in splits.values():
        for side in (split.x, split.y):
            side.labels = [normalise_class(label) for label in side.labels or []]
    splits = {name: limit_rows(split, options.limit) for name, split in splits.items()}
    test = set(classes_of(splits.get("test")))
    if options.class_split is None:  # a folder named outright may be either split
        known = (name for name, classes in CLASS_SPLITS.items() if set(classes) == test)
        class_split = next(known, GIVEN)
        console.say(f"{folder} holds class split {class_split}, by its test classes")
    width = splits["train"].x.rows.shape[1]
    prepared = finish(
        splits,
        split_name=class_split,
        backbone={"name": "vgg16", "weights": "released", "width": width},
        seen=UNKNOWN,
        what=f"the network of {folder}",
        allow_leak=options.allow_leak,
        skipped=[],
    )
    prepared.attributes["source_sha256"] = sha256_of(*source_files(folder))
    return prepared
