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
        part = RELEASED.get(split_name, "none")
        for folder in (source, source / "SketchyVGG" / part, source / part):
            if has_features(folder):
                backbone = {"name": "vgg16", "weights": "released"}
                named = options.split or GIVEN
                return plan_existing(folder, options, backbone, named, normalise=True)
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
    """Files of sketches and photos, class names normalised.

    Raises:
        IiaeError: they are in neither layout.
    """
    for root in (source, source / "256x256"):
        sketches, photos = (sorted((root / d).glob(f"{_TRANSFORM}*")) for d in ("sketch", "photo"))
        if sketches and photos:
            break
    else:
        raise IiaeError(
            f"{source} is not laid out as Sketchy",
            f"it should hold sketch/{_TRANSFORM}/CLASS, photo/{_TRANSFORM}/CLASS and "
            "extended_photo/CLASS, or the released features of the split",
        )
    places = (root / "extended_photo", source / "extended_photo")
    extended = [folder for folder in places if folder.is_dir()]
    if not extended:
        console.say(f"{source} has no extended_photo/: this is Sketchy, not Sketchy Extended")
    return Split(
        class_pictures(sketches[0], root=source, normalise=True),
        class_pictures(photos[0], *extended[:1], root=source, normalise=True),
    )
