"""Features of pictures in two domains paired by class, given or extracted.

Given features, of any width, are in the released layout, or in one `.npz`:

    FOLDER/{train,valid,test}_{sketch,image}_features.npy    (N, D) numbers
    FOLDER/…_paths.npy                 (N,) texts, the class being the second-last part
    FOLDER/…_labels.npy                (N,) texts or integers, instead of paths
    FOLDER/classes_seen.txt            classes the features' network was trained on, where known

An `.npz` has the same names as keys, without suffix. `sketch` is x, `image` is y.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of
from iiae_cli.data.datafile import (
    CLASS_SPLITS,
    SPLITS,
    UNKNOWN,
    Seen,
    Side,
    Split,
    class_list_hash,
    nfc,
    normalise_class,
    refuse_leak,
)
from iiae_cli.data.names import Notes, distinct, split_of
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions, ReadRows, Work
from iiae_cli.model import DOMAINS, Domain

GIVEN = "given"  # name of a division that is not a published one
WORDS: dict[Domain, str] = {"x": "sketch", "y": "image"}
_STEM = re.compile(r"(\w+)_(sketch|image)_(features|paths|labels)")
_HINT = "save plain numbers or text with numpy.save or numpy.savez: pickled arrays are not read"


def plan_existing(
    source: Path,
    options: PrepareOptions,
    backbone: dict[str, Any],
    split_name: str = GIVEN,
    *,
    normalise: bool = False,
) -> Plan:
    """Plans given features, in the released layout or an `.npz`, made by a `backbone`."""

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        notes = Notes()
        splits = read_features(source, notes, normalise_class if normalise else nfc)
        made = finish(
            {name: limit_rows(split, options.limit) for name, split in splits.items()},
            options,
            split_name=split_name,
            backbone={**backbone, "width": splits["train"].x.rows.shape[1]},
            seen=read_seen(source),
            what=f"the network of {source}",
        )
        made.attributes.update(notes.attributes())
        made.skipped[:0] = notes.skipped
        return made

    return Plan(assemble, attributes={"source_sha256": sha256_of(*source_files(source))})


def has_features(folder: Path) -> bool:
    """Returns whether a folder is in the released layout."""
    return any(_key(path.stem).startswith("train_") for path in folder.glob("*_features.npy"))


def _key(name: str) -> str:
    """Returns an array's name with its split under the standard name."""
    match = _STEM.fullmatch(name)
    split = split_of(match[1]) if match else None
    return name.replace(match[1], split, 1) if match and split else name


def source_files(source: Path) -> list[Path]:
    """Returns the files that `read_features` reads, in order."""
    if source.is_file():
        return [source]
    return sorted(path for path in source.glob("*.npy") if _STEM.fullmatch(path.stem))


def read_features(
    source: Path, notes: Notes, spell: Callable[[str], str] = nfc
) -> dict[str, Split]:
    """Reads the splits of a folder in the released layout, or of an `.npz`; `spell` their classes.

    Raises IiaeError if an array is missing, damaged, pickled, or of another shape.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in _arrays(source, notes):
        key = _key(name)
        if key in arrays:
            raise IiaeError(f"{source} holds two {key}, one as {name}", "leave one of them out")
        arrays[key] = array
        if _STEM.sub(r"\1", key) not in SPLITS:
            notes.skipped.append(f"{source}: {name} belongs to no split ({', '.join(SPLITS)})")
        elif key != name:
            notes.decided.append(f"{name} is read as {key}")
    splits = {}
    for name in SPLITS:
        missing = [word for word in WORDS.values() if f"{name}_{word}_features" not in arrays]
        if not missing:
            x, y = (_side(source, arrays, f"{name}_{word}", spell) for word in WORDS.values())
            splits[name] = Split(x, y)
        elif len(missing) == 1 or name == "train":
            raise IiaeError(
                f"{source} holds no {name}_{missing[0]}_features",
                "both domains of a split are needed",
            )
    for domain, word in WORDS.items():
        widths = {split.side(domain).rows.shape[1] for split in splits.values()}
        if len(widths) > 1:
            raise IiaeError(
                f"the features of {word} in {source} differ in width: {sorted(widths)}",
                "extract all splits by one network",
            )
    return splits


def read_seen(source: Path) -> Seen:
    """Reads the classes that the features' network was trained on, if `classes_seen.txt` exists."""
    path = (source if source.is_dir() else source.parent) / "classes_seen.txt"
    if not path.exists():
        return UNKNOWN
    with reading(path, "write one class per line, in UTF-8"):
        names = {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()} - {""}
    return Seen(tuple(sorted(names)))


def _arrays(source: Path, notes: Notes) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields every array with its name, mapped if from a folder; notes those of other names."""
    held = sorted(path.stem for path in source.glob("*.npy"))
    if source.is_file():
        with reading(source, _HINT), np.load(source, allow_pickle=False) as archive:
            held = archive.files
            yield from ((name, archive[name]) for name in held if _STEM.fullmatch(name))
    if others := [name for name in held if not _STEM.fullmatch(name)]:
        notes.decided.append(f"{source}: arrays that are not read: {', '.join(others)}"[:400])
    if source.is_file():
        return
    for path in source_files(source):
        with reading(path, _HINT):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it is an archive of arrays")
            yield path.stem, array


def _side(
    source: Path, arrays: Mapping[str, NDArray[Any]], stem: str, spell: Callable[[str], str]
) -> Side:
    values, where = arrays[f"{stem}_features"], f"{source}: {stem}"
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        raise IiaeError(
            f"{where}_features is {values.dtype} {values.shape}, not numbers (N, D)",
            "save one row per picture",
        )
    columns = {
        name: _texts(arrays[f"{stem}_{name}"], f"{where}_{name}", len(values))
        for name in ("paths", "labels")
        if f"{stem}_{name}" in arrays
    }
    if not columns:
        raise IiaeError(
            f"{where}_features has neither {stem}_paths nor {stem}_labels beside it",
            "name the class of every row",
        )
    ids = columns.get("paths") or [f"{stem}/{row:06d}" for row in range(len(values))]
    labels = columns.get("labels") or [_class_of(path, where) for path in ids]
    with np.errstate(over="ignore"):  # infinite features are refused later, by name
        features = values.astype(np.float32)
    return Side(features, distinct(ids), [spell(label) for label in labels])


def _texts(values: NDArray[Any], where: str, count: int) -> list[str]:
    if values.dtype.kind not in "USiu" or values.size != count:
        raise IiaeError(
            f"{where} is {values.dtype} {values.shape}, not {count} texts",
            "save an array of texts or integers, one for every row",
        )
    flat = values.reshape(-1)
    texts = np.char.decode(flat, "utf-8", "replace") if flat.dtype.kind == "S" else flat
    return [str(text) for text in texts.tolist()]


def _class_of(path: str, where: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    if len(parts) < 2:
        raise IiaeError(
            f"{where}_paths has a path without a class: '{path}'",
            "paths are …/CLASS/NAME; or save …_labels.npy",
        )
    return parts[-2]


# ---- classes, and what the data file says of them


def classes_of(split: Split | None) -> list[str]:
    """Returns the sorted classes of a split."""
    return [] if split is None else sorted({*(split.x.labels or []), *(split.y.labels or [])})


def keep_common(split: Split, where: str, skipped: list[str]) -> Split:
    """Returns the rows of classes in both domains; adds a line to `skipped` for each other."""
    x, y = split.x.labels or [], split.y.labels or []
    lone = {*x} ^ {*y}
    for name in sorted(lone):
        domain, count = ("x", x.count(name)) if name in x else ("y", y.count(name))
        skipped.append(f"class {name} of {where}: only in {domain}, its {count} rows are left out")
    return _with_labels(split, {*x} & {*y}) if lone else split


def divide_classes(
    split: Split, wanted: Sequence[str], what: str, options: PrepareOptions
) -> dict[str, Split]:
    """Divides into train and test, whose classes are `wanted` by `what`, in whichever spelling."""
    known = classes_of(split)
    spelling: dict[str, str] = {}
    for label in known:
        if spelling.setdefault(normalise_class(label), label) != label:
            raise IiaeError(
                f"{spelling[normalise_class(label)]} and {label} are two spellings of one class",
                "join their folders, or rename one",
            )
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
    """Returns at most `limit` rows of each side, evenly over classes, in their order."""
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
    turn = np.empty(len(labels), np.int64)  # a row's position in its class
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
    """Drops classes of one domain only, checks for a leak, and describes the set in attributes.

    `split_name` is the division's; `given` and published names are decided by the test classes.
    `backbone` records how features were made, and `what` names it in an error; `seen` are the
    classes that it was trained on. Raises IiaeError if there is nothing to train on, values are not
    finite, or the backbone has seen a test class.
    """
    skipped: list[str] = []
    splits = {name: keep_common(splits[name], name, skipped) for name in SPLITS if name in splits}
    for side in (split.side(domain) for split in splits.values() for domain in DOMAINS):
        bad = np.flatnonzero(~np.isfinite(side.rows).all(axis=1))
        if len(bad):
            raise IiaeError(
                f"the features of {side.ids[bad[0]]} are not finite", f"check {what}, and its input"
            )
    train, test = classes_of(splits.get("train")), classes_of(splits.get("test"))
    if not train:
        raise IiaeError(
            "no class of the training split is in both domains", "name classes the same in x and y"
        )
    if split_name in (GIVEN, *CLASS_SPLITS):
        published = (name for name, classes in CLASS_SPLITS.items() if {*classes} == {*test})
        named, split_name = split_name, next(published, GIVEN)
        if named not in (split_name, GIVEN):
            console.warn(f"the test classes are not those of {named}: recorded as '{split_name}'")
    refuse_leak(seen, test, what, options.allow_leak)
    if both := {*train} & {*test}:
        count = f"{len(both)} of {len(test)} test classes"
        console.say(f"{count} are training classes too: not zero-shot")
    values = {
        "test_classes": test,
        "train_classes": train,
        "backbone": {**backbone, **seen.to_json()},
        "leak": seen.leak(test),
    }
    attributes = {
        "alignment": "class",
        "split_name": split_name,
        "test_classes_sha256": class_list_hash(test),
    }
    for key, value in values.items():
        if value is not None:  # an unknown leak
            attributes[key] = json.dumps(value, ensure_ascii=False)
    return Prepared(splits, attributes, skipped)
