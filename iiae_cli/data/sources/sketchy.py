"""Sketchy Extended: sketches (x) and photos (y) of 125 classes, from the original folders or the released features.

SOURCE/sketch/tx_000000000000/CLASS/*.png              sketches
SOURCE/photo/tx_000000000000/CLASS/*.jpg               photos
SOURCE/extended_photo/CLASS/*.jpg                      more photos
SOURCE/256x256/{sketch,photo}/tx_000000000000*/CLASS   the same in the resized archive
SOURCE/[SketchyVGG/]split{1,2}/{train,test}_{sketch,image}_{features,paths}.npy    the paper's features
"""

from __future__ import annotations

from pathlib import Path

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import Split, sha256_of
from iiae_cli.data.leaks import UNKNOWN, normalise_class
from iiae_cli.data.sources.class_sets import (
    Pictures,
    class_pictures,
    classes_of,
    divide_pictures,
    finish,
    keep_common,
    limit_pictures,
    limit_split,
)
from iiae_cli.data.sources.class_splits import (
    CLASS_SPLITS,
    DEFAULT_SPLIT,
    GIVEN,
    named_classes,
    split_named,
    split_unseen,
)
from iiae_cli.data.sources.given_features import has_features, read_features, source_files
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions
from iiae_cli.model import Domain

RELEASED = {"sempcyc-25": "split1", "eccv18-21": "split2"}
PUBLISHED = {"x": 75_479, "y": 73_002}
EPOCHS = 10
_WORDS: dict[Domain, str] = {"x": "sketch", "y": "photo"}
_TRANSFORM = "tx_000000000000"


def find_pictures_of(source: Path) -> Pictures | None:
    """Sketches and photos of SOURCE with normalised class names; None where it is in neither layout.

    Raises:
        IiaeError: several folders could be meant.
    """
    for root in (source, source / "256x256"):
        sketches, photos = _domain_folder(root, "x"), _domain_folder(root, "y")
        if sketches is not None and photos is not None:
            break
    else:
        return None
    found: Pictures = {
        "x": class_pictures(sketches, source, normalise=True),
        "y": class_pictures(photos, source, normalise=True),
    }
    extended = next(
        (one for one in (root / "extended_photo", source / "extended_photo") if one.is_dir()), None
    )
    if extended is None:
        console.say(f"{source} has no extended_photo/: this is Sketchy, not Sketchy Extended")
    else:
        found["y"] += class_pictures(extended, source, normalise=True)
    return found


def _domain_folder(root: Path, domain: Domain) -> Path | None:
    """`ROOT/sketch/tx_000000000000`, or the only folder that begins so."""
    folder = root / _WORDS[domain]
    exact = folder / _TRANSFORM
    if exact.is_dir():
        return exact
    others = sorted(one for one in folder.glob(f"{_TRANSFORM}*") if one.is_dir())
    if len(others) > 1:
        raise IiaeError(
            f"{folder} has several {_TRANSFORM}* folders",
            f"leave one: {', '.join(one.name for one in others)}",
        )
    return others[0] if others else None


def find_released(source: Path, class_split: str) -> Path | None:
    """The folder of the released features for a split, or None where SOURCE holds none.

    Raises:
        IiaeError: they are there, but not for this split.
    """
    if has_features(source):
        return source
    for root in (source / "SketchyVGG", source):
        if any((root / name).is_dir() for name in RELEASED.values()):
            break
    else:
        return None
    folder = root / RELEASED.get(class_split, "none")
    if not has_features(folder):
        here = [name for name, part in RELEASED.items() if has_features(root / part)]
        raise IiaeError(
            f"{root} holds no released features for {class_split}",
            f"it has --split {' or '.join(here) or 'none'}; any split can be made from the pictures",
        )
    return folder


def read_sketchy(
    source: Path,
    *,
    options: PrepareOptions,
    seed: int,
    limit: int | None,
    download: bool,
    workers: int,
) -> Plan:
    """Sketchy's features: the released ones where SOURCE holds them, else from its pictures.

    Args:
        source: in a layout of this module.
        options: of the split, the backbone and its fine-tuning.
        seed: of everything drawn.
        limit: at most so many rows of each domain and split, evenly over classes.
        download: whether the backbone's weights may be fetched.
        workers: decoding threads.

    Raises:
        IiaeError: another layout, a class of the split is missing, or as `picture_features`.
    """
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
            folder = released
            return Plan(lambda rows, work: _read_released(folder, class_split, options, limit))
    found = find_pictures_of(source)
    if found is None:
        raise IiaeError(
            f"{source} is not laid out as Sketchy",
            f"it should hold sketch/{_TRANSFORM}/CLASS, photo/{_TRANSFORM}/CLASS and extended_photo/CLASS",
        )
    if {domain: len(pictures) for domain, pictures in found.items()} != PUBLISHED:
        console.say(
            f"{len(found['x']):,} sketches and {len(found['y']):,} photos; Sketchy Extended was published with "
            f"{PUBLISHED['x']:,} and {PUBLISHED['y']:,}"
        )
    skipped: list[str] = []
    found = keep_common(found, str(source), skipped)
    classes = {one.label for one in found["x"]}
    if options.unseen_classes is not None:
        division = split_unseen(classes, options.unseen_classes, seed)
    else:
        division = split_named(classes, class_split)
    divided = {
        name: limit_pictures(pictures, limit)
        for name, pictures in divide_pictures(found, division).items()
    }

    from iiae_cli.data.sources.extraction import plan_features  # imports torch

    return plan_features(
        divided,
        options,
        split_name=division.name,
        epochs=EPOCHS,
        skipped=skipped,
    )


def _read_released(
    folder: Path, class_split: str, options: PrepareOptions, limit: int | None
) -> Prepared:
    splits = {
        name: limit_split(_normalised(split), limit)
        for name, split in read_features(folder).items()
    }
    test = set(classes_of(splits.get("test")))
    if options.class_split is None:  # a folder named outright may be either split
        class_split = next(
            (name for name, classes in CLASS_SPLITS.items() if set(classes) == test), GIVEN
        )
        console.say(f"{folder} holds class split {class_split}, by its test classes")
    found = finish(
        splits,
        split_name=class_split,
        backbone={"name": "vgg16", "weights": "released", "width": splits["train"].x.rows.shape[1]},
        seen=UNKNOWN,
        what=f"the network of {folder}",
        allow_leak=options.allow_leak,
        skipped=[],
    )
    found.attributes["source_sha256"] = sha256_of(*source_files(folder))
    return found


def _normalised(split: Split) -> Split:
    split.x.labels = [normalise_class(one) for one in split.x.labels or []]
    split.y.labels = [normalise_class(one) for one in split.y.labels or []]
    return split
