"""Two domains that belong together by class: your own, and Sketchy Extended.

Layouts: docs/data.md. A class that only one domain has is left out by name; classes are written in
NFC. Until pictures become features, the rows of a side are their files. Sketchy Extended has
sketches (x) and photos (y) of 125 classes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading
from iiae_cli.data import names
from iiae_cli.data.datafile import CLASS_SPLITS, Side, Split, nfc, normalise_class
from iiae_cli.data.names import Notes
from iiae_cli.data.sources import features
from iiae_cli.data.sources.features import GIVEN, has_features, keep_common, plan_existing
from iiae_cli.data.sources.pairs import domain_folders
from iiae_cli.data.sources.plan import Plan, PrepareOptions
from iiae_cli.model import DOMAINS

DEFAULT_SPLIT = "sempcyc-25"
RELEASED = {"sempcyc-25": "split1", "eccv18-21": "split2"}
EPOCHS = 10
_TRANSFORM = "tx_000000000000"


def plan_classes(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans the features of the user's own classes, `options.source`."""
    source = options.source_path
    given = source / "split1" if has_features(source / "split1") else source
    if given.is_file() or has_features(given):
        if options.wants_backbone or options.unseen_classes is not None:
            raise IiaeError(
                f"{given} holds features that are already divided",
                "leave --backbone… and --unseen-classes out",
            )
        return plan_existing(given, options, notes, {"name": None, "weights": "given"})
    command = f"iiae prepare classes {shlex.quote(str(source))} --backbone resnet18"
    divided, split_name = _divided(source, options, notes, command)
    if options.backbone is None and not Path(options.backbone_weights or "none").is_dir():
        message = f"{source} holds pictures, and classes are learnt from features"
        raise IiaeError(message, f"name a backbone: {command} --download")
    from iiae_cli.data.sources.extraction import plan_features  # imports torch

    return plan_features(divided, options, split_name=split_name, epochs=0)


def _divided(
    source: Path, options: PrepareOptions, notes: Notes, command: str
) -> tuple[dict[str, Split], str]:
    """Returns the splits of files, and the division's name."""
    folders = names.folders_by(source)
    if folders and "train" not in folders:
        raise IiaeError(
            f"{source} has no folder train/",
            "put training classes in train/x/CLASS and train/y/CLASS",
        )
    splits = {
        name: _pictures(sides, folders.get(name, source), source, name, notes)
        for name, sides in domain_folders(folders, options, notes).items()
    }
    if "" not in splits:
        if options.unseen_classes is not None:
            message = f"{source} is already divided into {', '.join(splits)}"
            raise IiaeError(message, "leave --unseen-classes out")
        return splits, GIVEN
    if options.unseen_classes is None:
        raise IiaeError(
            f"{source} does not say which classes are for testing",
            f"say how many, or name a file that lists them: {command} --unseen-classes 10",
        )
    return divide_unseen(splits[""], options)


def _pictures(
    domains: Mapping[str, Path], folder: Path, root: Path, split: str, notes: Notes
) -> Split:
    """Finds the pictures of a split in the folders of its domains, which lie in `folder`."""
    x, y = (_class_pictures(domains[domain], root=root, notes=notes) for domain in DOMAINS)
    for side in (x, y):
        names.refuse_held_out(folder, side.rows.tolist(), split)
    both = keep_common(Split(x, y), str(folder), notes.skipped)
    if not len(both.x):
        raise IiaeError(
            f"{folder} has no class with pictures in both x/ and y/",
            "put pictures in x/CLASS/NAME.png and y/CLASS/NAME.png",
        )
    return both


def _class_pictures(*folders: Path, root: Path, notes: Notes, normalise: bool = False) -> Side:
    """Lists the pictures of `FOLDER/CLASS/…`, ids relative to `root`, in order of class names."""
    files: list[Path] = []
    labels: list[str] = []
    for folder in folders:
        places: dict[str, Path] = {}
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        names.note_rest(folder, inside, notes)
        for place in (path for path in inside if not names.is_hidden(path)):
            label = normalise_class(place.name) if normalise else nfc(place.name)
            if places.setdefault(label, place) != place:
                raise IiaeError(
                    f"{str(places[label])!a} and {place.name!a} are both the class {label}",
                    "join them in one folder, or rename one",
                )
            pictures = names.pictures_in(place)
            if not pictures:
                notes.decided.append(f"{place} holds no pictures")
            files += pictures
            labels += [label] * len(pictures)
    ids = [path.relative_to(root).as_posix() for path in files]
    return Side(np.array(files, object), ids, labels)


def divide_unseen(split: Split, options: PrepareOptions) -> tuple[dict[str, Split], str]:
    """Divides by `--unseen-classes`, a number or file, into train and test; returns a name, too."""
    unseen, known = str(options.unseen_classes), split.classes
    if unseen.isdecimal():
        count = min(int(unseen), len(known))
        drawn = np.random.default_rng(options.seed).choice(len(known), count, replace=False)
        wanted, name = [known[i] for i in drawn], f"unseen-{count}-seed{options.seed}"
    else:
        path = Path(unseen)
        with reading(path, "--unseen-classes takes a number, or a text file of one class per line"):
            lines = names.decoded(path.read_bytes()).splitlines()
        wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        name = GIVEN
    return features.divide_classes(split, wanted, f"--unseen-classes {unseen}"), name


# ---- Sketchy


def plan_sketchy(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans Sketchy's features: the released ones if SOURCE holds them, else from its pictures."""
    source, split_name = options.source_path, options.split or DEFAULT_SPLIT
    if options.split is not None and options.unseen_classes is not None:
        raise IiaeError("--split and --unseen-classes exclude each other", "pass one of them")
    if not options.wants_backbone and options.unseen_classes is None:
        part = RELEASED.get(split_name, "none")
        for folder in (source, source / "SketchyVGG" / part, source / part):
            if has_features(folder):
                backbone = {"name": "vgg16", "weights": "released"}
                named = options.split or GIVEN
                return plan_existing(folder, options, notes, backbone, named, normalise_class)
    pictures = keep_common(find_pictures(source, notes), str(source), notes.skipped)
    if options.unseen_classes is not None:
        divided, split_name = divide_unseen(pictures, options)
    else:
        wanted = CLASS_SPLITS[split_name]
        divided = features.divide_classes(pictures, wanted, f"split {split_name}")
    from iiae_cli.data.sources.extraction import plan_features  # imports torch

    return plan_features(divided, options, split_name=split_name, epochs=EPOCHS)


def find_pictures(source: Path, notes: Notes) -> Split:
    """Finds the files of sketches and photos, class names normalised."""
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
    extended = [folder for folder in places if folder.is_dir()][:1]
    if not extended:
        notes.decided.append(f"{source} has no extended_photo/: Sketchy, not Sketchy Extended")
    transforms = sorted({*root.glob("sketch/tx_*/"), *root.glob("photo/tx_*/")})
    others = [path for path in transforms if path not in (sketches[0], photos[0])]
    notes.decided += [f"{path} is not read, as it is another transform" for path in others]
    names.note_rest(source, [*transforms, *extended], notes)
    return Split(
        _class_pictures(sketches[0], root=source, notes=notes, normalise=True),
        _class_pictures(photos[0], *extended, root=source, notes=notes, normalise=True),
    )
