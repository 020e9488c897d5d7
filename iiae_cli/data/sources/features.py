"""Features of pictures in two domains paired by class, given or extracted.

Given features, of any width, are in the released layout, or in one `.npz` with the same names as
keys: `{train,valid,test}_{sketch,image}_{features,paths,labels}`, sketch being x and image y.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of
from iiae_cli.data import datafile
from iiae_cli.data.datafile import CLASS_SPLITS, SPLITS, Seen, Side, Split, nfc, normalise_class
from iiae_cli.data.names import Notes, distinct, split_of
from iiae_cli.data.sources.plan import Plan, PrepareOptions
from iiae_cli.model import DOMAINS, Domain

GIVEN = "given"  # name of a division that is not a published one
WORDS: dict[Domain, str] = {"x": "sketch", "y": "image"}
_STEM = re.compile(r"(\w+)_(sketch|image)_(features|paths|labels)")
_LAYOUT = "a split needs, of both domains, features (N, D), and N paths …/CLASS/NAME or labels"
_HINT = "save plain numbers or text with numpy.save or numpy.savez: pickled arrays are not read"


def plan_existing(
    source: Path,
    options: PrepareOptions,
    notes: Notes,
    backbone: dict[str, Any],
    split_name: str = GIVEN,
    spell: Callable[[str], str] = nfc,
) -> Plan:
    """Plans given features, in the released layout or an `.npz`, made by a `backbone`."""
    splits = read_features(source, notes, spell)
    read = {"source_sha256": sha256_of(*source_files(source))}
    plan = Plan(limited(splits, options.limit), read, by_class=True)
    made = {**backbone, "width": splits["train"].x.rows.shape[1]}
    describe(plan, split_name, made, datafile.UNKNOWN, f"the network of {source}")
    return plan


def has_features(folder: Path) -> bool:
    """Returns whether a folder is in the released layout."""
    return any(_key(path.stem).startswith("train_") for path in folder.glob("*_features.npy"))


def _key(name: str) -> str:
    """Returns an array's name with its split's standard name; "" if it is not read."""
    match = _STEM.fullmatch(name)
    split = split_of(match[1]) if match else None
    return f"{split}_{match[2]}_{match[3]}" if match and split else ""


def source_files(source: Path) -> list[Path]:
    """Returns the files that `read_features` reads, in order."""
    if source.is_file():
        return [source]
    return sorted(path for path in source.glob("*.npy") if _key(path.stem))


def read_features(
    source: Path, notes: Notes, spell: Callable[[str], str] = nfc
) -> dict[str, Split]:
    """Reads the splits of a folder in the released layout, or of an `.npz`; `spell` their classes.

    Raises IiaeError if an array is missing, damaged, pickled, or of another shape.
    """
    arrays, splits = _arrays(source, notes), {}
    for name in SPLITS:
        stems = [f"{name}_{word}" for word in WORDS.values()]
        if name == "train" or any(f"{stem}_features" in arrays for stem in stems):
            x, y = (_side(source, arrays, stem, spell) for stem in stems)
            splits[name] = Split(x, y)
    for domain, word in WORDS.items():
        widths = {split.side(domain).rows.shape[1] for split in splits.values()}
        if len(widths) > 1:
            raise IiaeError(
                f"the features of {word} in {source} differ in width: {sorted(widths)}",
                "extract all splits by one network",
            )
    return splits


def _arrays(source: Path, notes: Notes) -> dict[str, NDArray[Any]]:
    """Returns the arrays by standard name, mapped if from a folder; notes the others."""
    if source.is_file():
        with reading(source, _HINT), np.load(source, allow_pickle=False) as archive:
            held = archive.files
            found = {name: archive[name] for name in held if _key(name)}
    else:
        held, found = sorted(path.stem for path in source.glob("*.npy")), {}
        for path in source_files(source):
            with reading(path, _HINT):
                found[path.stem] = np.lib.format.open_memmap(path, mode="r")
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in found.items():
        key = _key(name)
        if key in arrays:
            raise IiaeError(f"{source} holds two {key}, one as {name}", "leave one of them out")
        arrays[key] = array
        if key != name:
            notes.decided.append(f"{name} is read as {key}")
    if others := [name for name in held if name not in found]:
        notes.decided.append(f"{source}: arrays that are not read: {', '.join(others)}"[:400])
    return arrays


def _side(
    source: Path, arrays: Mapping[str, NDArray[Any]], stem: str, spell: Callable[[str], str]
) -> Side:
    values, paths, labels = (arrays.get(f"{stem}_{w}") for w in ("features", "paths", "labels"))
    if values is None or (paths is None and labels is None):
        lacking = "features" if values is None else "paths"
        raise IiaeError(f"{source} holds no {stem}_{lacking}", _LAYOUT)
    where = f"{source}: {stem}"
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        what = f"{where}_features is {values.dtype} {values.shape}, not numbers (N, D)"
        raise IiaeError(what, _LAYOUT)
    ids = [f"{stem}/{row:06d}" for row in range(len(values))]
    if paths is not None:
        ids = _texts(paths, f"{where}_paths", len(values))
    if labels is not None:
        classes = _texts(labels, f"{where}_labels", len(values))
    else:
        classes = [_class_of(path, where) for path in ids]
    with np.errstate(over="ignore"):  # infinite features are refused later, by name
        features = values.astype(np.float32)
    return Side(features, distinct(ids), list(map(spell, classes)))


def _texts(values: NDArray[Any], where: str, count: int) -> list[str]:
    if values.dtype.kind not in "USiu" or values.size != count:
        what = f"{where} is {values.dtype} {values.shape}, not {count} texts"
        raise IiaeError(what, _LAYOUT)
    texts = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
    return list(map(str, texts.reshape(-1).tolist()))


def _class_of(path: str, where: str) -> str:
    parts = re.findall(r"[^\\/]+", path)
    if len(parts) < 2:
        raise IiaeError(f"{where}_paths has a path without a class: '{path}'", _LAYOUT)
    return str(parts[-2])


# ---- classes, and what the data file says of them


def keep_common(split: Split, where: str, skipped: list[str]) -> Split:
    """Returns the rows of classes in both domains; adds a line to `skipped` for each other."""
    common, lost = split.classes, list[str]()
    for domain in DOMAINS:
        for name, count in sorted(Counter(split.side(domain).labels).items()):
            if name not in common:
                lost.append(
                    f"class {name} of {where}: only in {domain}, its {count} rows are left out"
                )
    skipped += lost
    return _with_labels(split, common) if lost else split


def divide_classes(split: Split, wanted: Sequence[str], what: str) -> dict[str, Split]:
    """Divides into train and test, whose classes are `wanted` by `what`, in whichever spelling."""
    known, named = split.classes, {normalise_class(label): label for label in wanted}
    missing = sorted(named[key] for key in {*named} - {*map(normalise_class, known)})
    if missing:
        some = ", ".join(known[:10]) + (" …" if len(known) > 10 else "")
        raise IiaeError(
            f"the source has no class {', '.join(missing)} of {what}",
            f"name the folder of the whole set; its {len(known)} classes: {some}",
        )
    test = {label for label in known if normalise_class(label) in named}
    train = {*known} - test
    if not test or not train:
        raise IiaeError(
            f"{what} leaves no class to train or to test on",
            f"choose some of the {len(known)} classes, not all",
        )
    return {"train": _with_labels(split, train), "test": _with_labels(split, test)}


def _with_labels(split: Split, wanted: Iterable[str]) -> Split:
    labels = (np.array(side.labels or [], np.str_) for side in (split.x, split.y))
    return split.take(*(np.flatnonzero(np.isin(column, [*wanted])) for column in labels))


def limited(splits: Mapping[str, Split], limit: int | None) -> dict[str, Split]:
    """Returns at most `limit` rows of each side, evenly over classes, in their order."""
    if limit is None:
        return dict(splits)
    return {
        name: split.take(*(_evenly(side.labels or [], limit) for side in (split.x, split.y)))
        for name, split in splits.items()
    }


def _evenly(labels: Sequence[str], limit: int) -> NDArray[np.int64]:
    seen: Counter[str] = Counter()
    keys = []
    for row, label in enumerate(labels):
        keys.append((seen[label], label, row))  # a row's position in its class comes first
        seen[label] += 1
    if limit < len(seen):
        message = f"--limit {limit} is fewer than the {len(seen)} classes"
        raise IiaeError(message, f"pass --limit {len(seen)} or more")
    return np.array(sorted(row for *_, row in sorted(keys)[:limit]), np.int64)


def describe(plan: Plan, split_name: str, backbone: dict[str, Any], seen: Seen, what: str) -> None:
    """Drops classes of one domain only, and describes the set in attributes.

    `split_name` is the division's; test classes decide whether it is a published one. `backbone`,
    which is called `what` in errors, made the features and has `seen` classes.
    """
    for name in [name for name in SPLITS if name in plan.splits]:
        split = plan.splits[name] = keep_common(plan.splits[name], name, plan.skipped)
        for side in (split.x, split.y):
            bad = np.flatnonzero(~np.isfinite(side.rows).all(axis=1))
            if len(bad):
                message = f"the features of {side.ids[bad[0]]} are not finite"
                raise IiaeError(message, f"check {what}, and its input")
    train = plan.splits["train"].classes
    test = plan.splits["test"].classes if "test" in plan.splits else []
    if not train:
        raise IiaeError(
            "no class of the training split is in both domains", "name classes the same in x and y"
        )
    if split_name in (GIVEN, *CLASS_SPLITS):
        published = (name for name, classes in CLASS_SPLITS.items() if {*classes} == {*test})
        named, split_name = split_name, next(published, GIVEN)
        if named not in (split_name, GIVEN):
            console.warn(f"the test classes are not those of {named}: recorded as '{split_name}'")
    if both := {*train} & {*test}:
        count = f"{len(both)} of {len(test)} test classes"
        console.say(f"{count} are training classes too: not zero-shot")
    plan.attributes |= {
        "alignment": "class",
        "split_name": split_name,
        "test_classes_sha256": datafile.class_list_hash(test),
        "test_classes": json.dumps(test, ensure_ascii=False),
        "train_classes": json.dumps(train, ensure_ascii=False),
        "backbone": json.dumps({**backbone, **seen.to_json()}, ensure_ascii=False),
    }
    leak = seen.leak(test)
    if leak is not None:  # it is known
        plan.attributes["leak"] = json.dumps(leak, ensure_ascii=False)
