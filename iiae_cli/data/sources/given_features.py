"""Features that are there already, of any width: the released layout, or one `.npz`.

    FOLDER/{train,valid,test}_{sketch,image}_features.npy    (N, D) numbers
    FOLDER/…_paths.npy                                       (N,) texts, the class being the second-last part
    FOLDER/…_labels.npy                                      (N,) texts or integers, instead of paths
    FOLDER/classes_seen.txt                                  classes the features' network was trained on, where known

An `.npz` has the same names as keys, without suffix. `sketch` is x, `image` is y.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.arrays import BROKEN, is_pickled, map_npy
from iiae_cli.data.datafile import SPLITS, Side, Split
from iiae_cli.data.leaks import UNKNOWN, Seen
from iiae_cli.model import Domain

FILE_NAMES: dict[Domain, str] = {"x": "sketch", "y": "image"}
SEEN_FILE = "classes_seen.txt"

Get = Callable[[str], "tuple[NDArray[Any], str] | None"]


def has_features(folder: Path) -> bool:
    """Whether a folder is in the released layout."""
    return any(folder.glob("train_*_features.npy"))


def source_files(source: Path) -> list[Path]:
    """The files that `read_features` reads, in order."""
    if source.is_file():
        return [source]
    return sorted(
        one
        for one in source.iterdir()
        if re.fullmatch(r"\w+_(features|paths|labels)\.npy", one.name)
    )


def read_features(source: Path) -> dict[str, Split]:
    """Splits of given features.

    Args:
        source: a folder in the released layout, or an `.npz`.

    Raises:
        IiaeError: an array is missing, damaged, pickled, of another shape, or not finite.
    """
    with _arrays(source) as get:
        splits = {}
        for name in SPLITS:
            parts: dict[str, Side] = {}
            for domain, word in FILE_NAMES.items():
                found = _domain(get, f"{name}_{word}")
                if found is not None:
                    parts[domain] = Side(*found)
            if len(parts) == 2:
                splits[name] = Split(parts["x"], parts["y"])
            elif parts or name == "train":
                missing = next(word for domain, word in FILE_NAMES.items() if domain not in parts)
                raise IiaeError(
                    f"{source} holds no {name}_{missing}_features",
                    "both domains of a split are needed",
                )
    widths = {
        domain: {split.side(domain).rows.shape[1] for split in splits.values()}
        for domain in FILE_NAMES
    }
    for domain, found_widths in widths.items():
        if len(found_widths) > 1:
            raise IiaeError(
                f"the features of {FILE_NAMES[domain]} in {source} differ in width: {sorted(found_widths)}",
                "extract all splits by one network",
            )
    return splits


def read_seen(source: Path) -> Seen:
    """The classes that the features' network was trained on, where `classes_seen.txt` beside them says so.

    Raises:
        IiaeError: it is no text.
    """
    path = (source if source.is_dir() else source.parent) / SEEN_FILE
    if not path.is_file():
        return UNKNOWN
    try:
        names = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise IiaeError(f"{path} is no text in UTF-8", "write one class per line") from error
    return Seen(tuple(sorted(names)))


def _domain(get: Get, stem: str) -> tuple[NDArray[np.float32], list[str], list[str]] | None:
    """Features (N, D), ids and labels of one split and domain; None where there are none."""
    found = get(f"{stem}_features")
    if found is None:
        return None
    values, where = found
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
    paths, labels = get(f"{stem}_paths"), get(f"{stem}_labels")
    if labels is not None:
        classes = _texts(*labels)
        ids = (
            _texts(*paths)
            if paths is not None
            else [f"{stem}/{row:06d}" for row in range(len(features))]
        )
    elif paths is not None:
        ids = _texts(*paths)
        classes = [_class_of(one, paths[1]) for one in ids]
    else:
        raise IiaeError(
            f"{where} has neither {stem}_paths nor {stem}_labels beside it",
            "say the class of every row",
        )
    for what, texts in (("paths", ids), ("labels", classes)):
        if len(texts) != len(features):
            raise IiaeError(
                f"{where} has {len(features)} rows but {len(texts)} {what}",
                "give one for every row",
            )
    return features, _unique(ids), classes


def _texts(values: NDArray[Any], where: str) -> list[str]:
    if values.dtype.kind not in "USiu" or values.ndim == 0 or values.size != len(values):
        raise IiaeError(
            f"{where} is {values.dtype} {values.shape}, not texts (N,)",
            "save an array of texts or integers",
        )
    flat = values.reshape(-1)
    texts = np.char.decode(flat, "utf-8", "replace") if flat.dtype.kind == "S" else flat
    return [str(one) for one in texts.tolist()]


def _class_of(path: str, where: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    if len(parts) < 2:
        raise IiaeError(
            f"{where} has a path without a class: '{path}'",
            "paths are …/CLASS/NAME; or give …_labels.npy",
        )
    return parts[-2]


def _unique(ids: list[str]) -> list[str]:
    """Ids, those that recur numbered."""
    counts = Counter(ids)
    return [one if counts[one] == 1 else f"{one}#{row}" for row, one in enumerate(ids)]


@contextmanager
def _arrays(source: Path) -> Iterator[Get]:
    """A function from an array's name to the array and what to call it."""
    if source.is_dir():
        yield lambda name: _load_npy(source / f"{name}.npy")
        return
    arrays, _ = _load(lambda: np.load(source, allow_pickle=False), str(source))
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise IiaeError(
            f"{source} holds one array", "name an .npz, or the folder of the .npy files"
        )
    with arrays:
        yield (
            lambda name: _load(lambda: arrays[name], f"{source}:{name}") if name in arrays else None
        )


def _load_npy(path: Path) -> tuple[NDArray[Any], str] | None:
    return _load(lambda: map_npy(path), str(path)) if path.exists() else None


def _load(read: Callable[[], Any], where: str) -> tuple[Any, str]:
    try:
        found = read()
        if isinstance(found, bytes):  # what an .npz gives for a member that is no array
            raise ValueError("it is no array")
        return found, where
    except BROKEN as error:
        if not is_pickled(error):
            reason = " ".join(str(error).split()) or type(error).__name__
            raise IiaeError(
                f"{where} cannot be read: {reason[:300]}", "fetch or make it again"
            ) from error
        kind = "'f4'" if where.endswith("features.npy") else "'U'"
        raise IiaeError(
            f"{where} is a pickled object array, which could run code when read",
            "where you trust it, convert it once: python -c \"import numpy as n; f='"
            + where
            + "'; "
            f"n.save(f, n.array(n.load(f, allow_pickle=True, encoding='latin1').tolist()).astype({kind}))\"",
        ) from error
