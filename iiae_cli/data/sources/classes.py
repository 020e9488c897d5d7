"""Your own classes: pictures in folders, divided or to be divided into seen and unseen classes, or features as given.

SOURCE/{train,valid,test}/{x,y}/CLASS/…     divided already (`val` is taken for `valid`)
SOURCE/{x,y}/CLASS/…                        divided by --unseen-classes
SOURCE[/split1]/{train,test}_{sketch,image}_{features,paths,labels}.npy, or SOURCE.npz    features
"""

from __future__ import annotations

from pathlib import Path

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import SPLITS, sha256_of
from iiae_cli.data.sources.class_sets import (
    Pictures,
    class_pictures,
    divide_pictures,
    finish,
    keep_common,
    limit_pictures,
    limit_split,
)
from iiae_cli.data.sources.class_splits import GIVEN, split_unseen
from iiae_cli.data.sources.given_features import (
    has_features,
    read_features,
    read_seen,
    source_files,
)
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions
from iiae_cli.model import DOMAINS


def read_classes(
    source: Path,
    *,
    options: PrepareOptions,
    seed: int,
    limit: int | None,
    download: bool,
    workers: int,
) -> Plan:
    """Features of the user's own classes.

    Args:
        source: in a layout of this module.
        options: of unseen classes, the backbone and its fine-tuning.
        seed: of everything drawn.
        limit: at most so many rows of each domain and split, evenly over classes.
        download: whether the backbone's weights may be fetched.
        workers: decoding threads.

    Raises:
        IiaeError: another layout, features that are damaged, or as `picture_features`.
    """
    if options.class_split is not None:
        raise IiaeError(
            "--split names a list of Sketchy's classes",
            "name your own in a file: --unseen-classes FILE",
        )
    if not source.exists():
        raise IiaeError(
            f"{source} does not exist",
            "name a folder that holds train/x/CLASS, …, or x/CLASS and y/CLASS, or features",
        )
    features = find_features(source)
    if features is not None:
        return Plan(lambda rows, work: _read_given(features, options, limit))
    if not source.is_dir():
        raise IiaeError(
            f"{source} is neither a folder nor an .npz of features",
            "name a folder of pictures or features",
        )
    skipped: list[str] = []
    divided, split_name = _divided(source, options, seed, skipped)
    if options.backbone is None and not (
        options.backbone_weights and Path(options.backbone_weights).is_dir()
    ):
        raise IiaeError(
            f"{source} holds pictures, and classes are learnt from features",
            f"name a backbone: iiae prepare classes {source} --backbone resnet18 --download",
        )
    divided = {name: limit_pictures(pictures, limit) for name, pictures in divided.items()}

    from iiae_cli.data.sources.extraction import plan_features  # imports torch

    return plan_features(
        divided,
        options,
        split_name=split_name,
        epochs=0,
        skipped=skipped,
    )


def find_features(source: Path) -> Path | None:
    """Where SOURCE holds features: itself, its `split1`, or the only `.npz` in it."""
    if source.is_file():
        return source if source.suffix == ".npz" else None
    for folder in (source, source / "split1"):
        if has_features(folder):
            return folder
    archives = list(source.glob("*.npz"))
    return archives[0] if len(archives) == 1 else None


def _divided(
    source: Path, options: PrepareOptions, seed: int, skipped: list[str]
) -> tuple[dict[str, Pictures], str]:
    """Pictures by split and domain, and the division's name."""
    named = {split: source / split for split in SPLITS if (source / split).is_dir()}
    if "valid" not in named and named and (source / "val").is_dir():
        named["valid"] = source / "val"
    if not named:
        found = _pictures(source, source, skipped)
        if options.unseen_classes is None:
            raise IiaeError(
                f"{source} does not say which classes are for testing",
                f"say how many, or name a file that lists them: iiae prepare classes {source} --unseen-classes 10 …",
            )
        division = split_unseen({one.label for one in found["x"]}, options.unseen_classes, seed)
        return divide_pictures(found, division), division.name
    if options.unseen_classes is not None:
        raise IiaeError(
            f"{source} is divided into {', '.join(named)} already", "leave --unseen-classes out"
        )
    if "train" not in named:
        raise IiaeError(
            f"{source} has no folder train/",
            "put training classes in train/x/CLASS and train/y/CLASS",
        )
    return {split: _pictures(folder, source, skipped) for split, folder in named.items()}, GIVEN


def _pictures(folder: Path, root: Path, skipped: list[str]) -> Pictures:
    found: Pictures = {domain: class_pictures(folder / domain, root) for domain in DOMAINS}
    for domain, pictures in found.items():
        if not pictures:
            raise IiaeError(
                f"{folder / domain} holds no class with pictures",
                "put pictures in x/CLASS/NAME.png and y/CLASS/NAME.png",
            )
    kept = keep_common(found, str(folder), skipped)
    if not kept["x"]:
        raise IiaeError(
            f"{folder} has no class that both x/ and y/ hold",
            "name class folders alike in x/ and y/",
        )
    return kept


def _read_given(source: Path, options: PrepareOptions, limit: int | None) -> Prepared:
    if options.wants_backbone or options.unseen_classes is not None:
        raise IiaeError(
            f"{source} holds features that are divided already",
            "leave --backbone… and --unseen-classes out",
        )
    splits = {name: limit_split(split, limit) for name, split in read_features(source).items()}
    widths = {domain: splits["train"].side(domain).rows.shape[1] for domain in DOMAINS}
    found = finish(
        splits,
        split_name=GIVEN,
        backbone={"name": None, "weights": "given", "width": widths},
        seen=read_seen(source),
        what=f"the network of {source}",
        allow_leak=options.allow_leak,
        skipped=[],
    )
    found.attributes["source_sha256"] = sha256_of(*source_files(source))
    return found
