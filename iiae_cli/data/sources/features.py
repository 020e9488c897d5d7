"""Features that already exist, of any width: the released layout, or one `.npz`.

    FOLDER/{train,valid,test}_{sketch,image}_features.npy    (N, D) numbers
    FOLDER/…_paths.npy                 (N,) texts, the class being the second-last part
    FOLDER/…_labels.npy                (N,) texts or integers, instead of paths
    FOLDER/classes_seen.txt            classes the features' network was trained on, where known

An `.npz` has the same names as keys, without suffix. `sketch` is x, `image` is y.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading
from iiae_cli.data.datafile import SPLITS, UNKNOWN, Seen, Side, Split
from iiae_cli.model import Domain

WORDS: dict[Domain, str] = {"x": "sketch", "y": "image"}
SEEN_FILE = "classes_seen.txt"


def has_features(folder: Path) -> bool:
    """Whether a folder is in the released layout."""
    return any(folder.glob("train_*_features.npy"))


def source_files(source: Path) -> list[Path]:
    """The files that `read_features` reads, in order."""
    if source.is_file():
        return [source]
    pattern = re.compile(r"\w+_(features|paths|labels)\.npy")
    return sorted(path for path in source.iterdir() if pattern.fullmatch(path.name))


def read_features(source: Path) -> dict[str, Split]:
    """Read the splits of given features.

    Args:
        source: a folder in the released layout, or an `.npz`.

    Raises:
        IiaeError: an array is missing, damaged, pickled, of another shape, or not finite.
    """
    arrays = _arrays(source)
    splits = {}
    for name in SPLITS:
        sides = {domain: _side(source, arrays, f"{name}_{word}") for domain, word in WORDS.items()}
        x, y = sides["x"], sides["y"]
        if x is not None and y is not None:
            splits[name] = Split(x, y)
        elif name == "train" or x is not None or y is not None:
            missing = WORDS["x" if x is None else "y"]
            raise IiaeError(
                f"{source} holds no {name}_{missing}_features",
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
    """The classes that the features' network was trained on, where `classes_seen.txt` says so."""
    path = (source if source.is_dir() else source.parent) / SEEN_FILE
    if not path.exists():
        return UNKNOWN
    with reading(path, "write one class per line, in UTF-8"):
        names = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    return Seen(tuple(sorted(names)))


def _arrays(source: Path) -> dict[str, NDArray[Any]]:
    """Every array by its name; those of a folder are mapped."""
    if source.is_dir():
        return {path.stem: _load(path) for path in source_files(source)}
    with reading(source, "fetch or make it again"), np.load(source, allow_pickle=False) as arrays:
        names = [name for name in arrays if re.fullmatch(r"\w+_(features|paths|labels)", name)]
        return {name: arrays[name] for name in names}


def _load(path: Path) -> NDArray[Any]:
    kind = "'f4'" if path.stem.endswith("features") else "'U'"
    hint = (
        "fetch or make it again; where you trust a pickled one, convert it once: "
        f"python -c \"import numpy as n; f='{path}'; n.save(f, n.array(n.load(f, "
        f"allow_pickle=True, encoding='latin1').tolist()).astype({kind}))\""
    )
    with reading(path, hint):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
    return array


def _side(source: Path, arrays: Mapping[str, NDArray[Any]], stem: str) -> Side | None:
    """Features (N, D), ids and labels of one split and domain; None where there are none."""
    values = arrays.get(f"{stem}_features")
    if values is None:
        return None
    where = f"{source}: {stem}_features"
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        raise IiaeError(
            f"{where} is {values.dtype} {values.shape}, not numbers (N, D)",
            "give one row per picture",
        )
    with np.errstate(over="ignore"):
        features = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise IiaeError(
            f"{where} has values that are not finite, first in row {bad[0]}",
            "extract the features again",
        )
    paths, labels = (
        _texts(arrays.get(f"{stem}_{name}"), f"{source}: {stem}_{name}", len(features))
        for name in ("paths", "labels")
    )
    if labels is None:
        if paths is None:
            raise IiaeError(
                f"{where} has neither {stem}_paths nor {stem}_labels beside it",
                "say the class of every row",
            )
        labels = [_class_of(path, f"{source}: {stem}_paths") for path in paths]
    ids = paths or [f"{stem}/{row:06d}" for row in range(len(features))]
    counts = Counter(ids)
    unique = [name if counts[name] == 1 else f"{name}#{row}" for row, name in enumerate(ids)]
    return Side(features, unique, labels)


def _texts(values: NDArray[Any] | None, where: str, count: int) -> list[str] | None:
    """A column of `count` texts; None where there is none."""
    if values is None:
        return None
    if values.dtype.kind not in "USiu" or values.ndim == 0 or values.size != len(values):
        raise IiaeError(
            f"{where} is {values.dtype} {values.shape}, not texts (N,)",
            "save an array of texts or integers",
        )
    if len(values) != count:
        raise IiaeError(
            f"{where} has {len(values)} texts for {count} rows", "give one for every row"
        )
    flat = values.reshape(-1)
    texts = np.char.decode(flat, "utf-8", "replace") if flat.dtype.kind == "S" else flat
    return [str(text) for text in texts.tolist()]


def _class_of(path: str, where: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    if len(parts) < 2:
        raise IiaeError(
            f"{where} has a path without a class: '{path}'",
            "paths are …/CLASS/NAME; or give …_labels.npy",
        )
    return parts[-2]
