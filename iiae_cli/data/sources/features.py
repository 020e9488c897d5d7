"""Features that already exist, of any width: the released layout, or one `.npz`.

    FOLDER/{train,valid,test}_{sketch,image}_features.npy    (N, D) numbers
    FOLDER/…_paths.npy                 (N,) texts, the class being the second-last part
    FOLDER/…_labels.npy                (N,) texts or integers, instead of paths
    FOLDER/classes_seen.txt            classes the features' network was trained on, where known

An `.npz` has the same names as keys, without suffix. `sketch` is x, `image` is y.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading
from iiae_cli.data.datafile import SPLITS, UNKNOWN, Seen, Side, Split
from iiae_cli.data.sources.plan import distinct
from iiae_cli.model import DOMAINS, Domain

WORDS: dict[Domain, str] = {"x": "sketch", "y": "image"}
_STEM = re.compile(r"\w+_(features|paths|labels)")
_HINT = "make it again; where you trust a pickled array, save it anew as plain numbers or text"


def has_features(folder: Path) -> bool:
    """Whether a folder is in the released layout."""
    return any(folder.glob("train_*_features.npy"))


def source_files(source: Path) -> list[Path]:
    """The files that `read_features` reads, in order."""
    if source.is_file():
        return [source]
    return sorted(path for path in source.glob("*.npy") if _STEM.fullmatch(path.stem))


def read_features(source: Path) -> dict[str, Split]:
    """Read the splits of a folder in the released layout, or of an `.npz`.

    Raises:
        IiaeError: an array is missing, damaged, pickled, of another shape, or not finite.
    """
    arrays = _arrays(source)
    splits = {}
    for name in SPLITS:
        present = [word for word in WORDS.values() if f"{name}_{word}_features" in arrays]
        if len(present) == 2:
            x, y = (_side(source, arrays, f"{name}_{word}") for word in present)
            splits[name] = Split(x, y)
        elif present or name == "train":
            missing = next(word for word in WORDS.values() if word not in present)
            raise IiaeError(
                f"{source} holds no {name}_{missing}_features",
                "both domains of a split are needed",
            )
    for domain in DOMAINS:
        widths = {split.side(domain).rows.shape[1] for split in splits.values()}
        if len(widths) > 1:
            raise IiaeError(
                f"the features of {WORDS[domain]} in {source} differ in width: {sorted(widths)}",
                "extract all splits by one network",
            )
    return splits


def read_seen(source: Path) -> Seen:
    """The classes that the features' network was trained on, where `classes_seen.txt` says so."""
    path = (source if source.is_dir() else source.parent) / "classes_seen.txt"
    if not path.exists():
        return UNKNOWN
    with reading(path, "write one class per line, in UTF-8"):
        names = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    return Seen(tuple(sorted(names)))


def _arrays(source: Path) -> dict[str, NDArray[Any]]:
    """Every array by its name; those of a folder are mapped."""
    arrays: dict[str, NDArray[Any]] = {}
    if source.is_file():
        with reading(source, _HINT), np.load(source, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive if _STEM.fullmatch(name)}
    for path in source_files(source):
        with reading(path, _HINT):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it is an archive of arrays")
            arrays[path.stem] = array
    return arrays


def _side(source: Path, arrays: Mapping[str, NDArray[Any]], stem: str) -> Side:
    """Features (N, D), ids and labels of one split and domain."""
    values, where = arrays[f"{stem}_features"], f"{source}: {stem}_features"
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        raise IiaeError(
            f"{where} is {values.dtype} {values.shape}, not numbers (N, D)",
            "save one row per picture",
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
        _texts(arrays[name], f"{source}: {name}", len(features)) if name in arrays else None
        for name in (f"{stem}_paths", f"{stem}_labels")
    )
    if labels is None:
        if paths is None:
            raise IiaeError(
                f"{where} has neither {stem}_paths nor {stem}_labels beside it",
                "name the class of every row",
            )
        labels = [_class_of(path, f"{source}: {stem}_paths") for path in paths]
    ids = paths or [f"{stem}/{row:06d}" for row in range(len(features))]
    return Side(features, distinct(ids), labels)


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
            f"{where} has a path without a class: '{path}'",
            "paths are …/CLASS/NAME; or save …_labels.npy",
        )
    return parts[-2]
