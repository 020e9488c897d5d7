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
from iiae_cli.data.datafile import Split
from iiae_cli.data.sources.classes import (
    CLASS_SPLITS,
    GIVEN,
    class_pictures,
    divide_classes,
    divide_unseen,
    keep_common,
    plan_existing,
)
from iiae_cli.data.sources.features import has_features
from iiae_cli.data.sources.plan import Plan, PrepareOptions

DEFAULT_SPLIT = "sempcyc-25"
RELEASED = {"sempcyc-25": "split1", "eccv18-21": "split2"}
PUBLISHED = (75_479, 73_002)
EPOCHS = 10
_TRANSFORM = "tx_000000000000"


def plan_sketchy(options: PrepareOptions) -> Plan:
    """Plan Sketchy's features: the released ones where SOURCE holds them, else of its pictures."""
    source, split_name = options.source, options.split or DEFAULT_SPLIT
    assert source is not None
    if options.split is not None and options.unseen_classes is not None:
        raise IiaeError("--split and --unseen-classes exclude each other", "pass one of them")
    if split_name not in CLASS_SPLITS:
        raise IiaeError(
            f"unknown class split '{split_name}'", f"--split takes {', '.join(CLASS_SPLITS)}"
        )
    if not options.wants_backbone and options.unseen_classes is None:
        released = find_released(source, split_name)
        if released is not None:
            backbone = {"name": "vgg16", "weights": "released"}
            return plan_existing(
                released, options, backbone, options.split or GIVEN, normalise=True
            )
    skipped: list[str] = []
    pictures = keep_common(find_pictures(source), str(source), skipped)
    if options.unseen_classes is not None:
        divided, split_name = divide_unseen(pictures, options)
    else:
        wanted = CLASS_SPLITS[split_name]
        divided = divide_classes(pictures, wanted, f"split {split_name}", options)

    from iiae_cli.data.sources import extraction  # imports torch

    return extraction.plan_features(
        divided, options, split_name=split_name, epochs=EPOCHS, skipped=skipped
    )


def find_pictures(source: Path) -> Split:
    """Files of sketches and photos, class names normalised; a word on what is not published so.

    Raises:
        IiaeError: they are in neither layout.
    """
    for root in (source, source / "256x256"):
        sketches, photos = (_domain_folder(root / word) for word in ("sketch", "photo"))
        if sketches is not None and photos is not None:
            break
    else:
        raise IiaeError(
            f"{source} is not laid out as Sketchy",
            f"it should hold sketch/{_TRANSFORM}/CLASS, photo/{_TRANSFORM}/CLASS and "
            "extended_photo/CLASS",
        )
    places = (root / "extended_photo", source / "extended_photo")
    extended = [folder for folder in places if folder.is_dir()][:1]
    x = class_pictures(sketches, root=source, normalise=True)
    y = class_pictures(photos, *extended, root=source, normalise=True)
    if not extended:
        console.say(f"{source} has no extended_photo/: this is Sketchy, not Sketchy Extended")
    elif (len(x), len(y)) != PUBLISHED:
        console.say(
            f"{len(x):,} sketches and {len(y):,} photos; Sketchy Extended was published with "
            f"{PUBLISHED[0]:,} and {PUBLISHED[1]:,}"
        )
    return Split(x, y)


def _domain_folder(folder: Path) -> Path | None:
    """`FOLDER/tx_000000000000`, or the only folder that begins so."""
    if (folder / _TRANSFORM).is_dir():
        return folder / _TRANSFORM
    others = sorted(path for path in folder.glob(f"{_TRANSFORM}*") if path.is_dir())
    if len(others) > 1:
        raise IiaeError(
            f"{folder} has several {_TRANSFORM}* folders",
            f"leave one: {', '.join(path.name for path in others)}",
        )
    return others[0] if others else None


def find_released(source: Path, split_name: str) -> Path | None:
    """The folder of the released features for a split, or None where SOURCE holds none.

    Raises:
        IiaeError: they are there, but not for this split.
    """
    if has_features(source):
        return source
    folders = [top / part for top in (source / "SketchyVGG", source) for part in RELEASED.values()]
    released = {folder.name: folder for folder in folders if has_features(folder)}
    if released and RELEASED.get(split_name) not in released:
        here = [name for name, part in RELEASED.items() if part in released]
        raise IiaeError(
            f"{source} holds no released features for {split_name}",
            f"it has --split {' or '.join(here)}; any split can be made from the pictures",
        )
    return released[RELEASED[split_name]] if released else None
