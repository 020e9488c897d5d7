"""Your own pairs from a manifest: a CSV file (or `.tsv`, tab-separated) with the columns `x,y[,split][,label]`, and any
number of columns `x_…`, `y_…` and `shared_…`: generative factors of a pair, which domain x, y or both hold.

Paths are absolute, or relative to the manifest's folder. Without a column `split` pairs are divided by seeded
fractions. A label is the class of both pictures. A picture may recur in many pairs; it is then stored once. A factor is
a number where all its cells are, else text; an empty cell is unknown. Training has no use for factors: `evaluate` looks
for them in the latents.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import SPLITS, sha256_of
from iiae_cli.data.sources.pairing import Pair, divide, plan_pairs
from iiae_cli.data.sources.plan import Plan

SUFFIXES = (".csv", ".tsv")
LAYOUT = "its first line should be x,y[,split][,label] (separated by tabs in a .tsv)"
_WHOLE = re.compile(r"[+-]?\d{1,18}")  # what 64 bits hold
FACTORS = ("x_", "y_", "shared_")


def is_manifest(path: Path) -> bool:
    """Whether `path` is named as a manifest."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def read_manifest(
    manifest: Path,
    *,
    image_size: int | None,
    fractions: tuple[float, float],
    seed: int,
    limit: int | None = None,
    workers: int = 1,
) -> Plan:
    """Plan the splits of a manifest's pairs.

    Args:
        manifest: the file.
        image_size: side that every picture is resized to; None: the pictures' own where all agree, else 256.
        fractions: of pairs for `valid` and `test` where there is no column `split`.
        seed: of that division.
        limit: at most so many pairs per split.
        workers: decoding threads.

    Raises:
        IiaeError: missing, no such table, a column is missing, or no row can be used.
    """
    skipped: list[str] = []
    rows = list(_rows(manifest, skipped))
    if not rows:
        raise IiaeError(
            f"{manifest} names no pair",
            f"the first row that was left out: {skipped[0]}" if skipped else LAYOUT,
        )
    rows = _with_numbers(rows)
    if all(split is None for split, _ in rows):
        pairs = divide([pair for _, pair in rows], fractions, seed)
    else:
        pairs = {split: [pair for given, pair in rows if given == split] for split in SPLITS}
    pairs = {split: found[:limit] for split, found in pairs.items()}
    recurring = any(_recurs(found) for found in pairs.values())
    pairs = {split: _named(found, manifest.parent, recurring) for split, found in pairs.items()}
    return plan_pairs(
        pairs,
        source=manifest,
        image_size=image_size,
        workers=workers,
        skipped=skipped,
        recurring=recurring,
        attributes={"source": str(manifest), "source_sha256": sha256_of(manifest)},
    )


def pictures_of(manifest: Path) -> list[Path]:
    """The pictures that a manifest names, each once; none where it cannot be read."""
    try:
        pairs = [pair for _, pair in _rows(manifest, [])]
    except IiaeError:
        return []
    return list(dict.fromkeys(path for pair in pairs for path in (pair.x, pair.y)))


def _rows(manifest: Path, skipped: list[str]) -> Iterator[tuple[str | None, Pair]]:
    """(split if given, pair) of every row that can be used, its pictures not yet looked at; the others are noted."""
    seen: dict[tuple[Path, Path], int] = {}
    labels: dict[Path, str] = {}
    for line, row in _table(manifest, skipped):
        x, y = manifest.parent / row["x"], manifest.parent / row["y"]
        split, label = row.get("split"), row.get("label")
        factors = {
            name.replace("/", "-"): value for name, value in row.items() if name.startswith(FACTORS)
        }
        if empty := [
            name for name, value in row.items() if not value and not name.startswith(FACTORS)
        ]:
            skipped.append(f"{manifest}:{line}: {' and '.join(empty)} empty")
        elif split is not None and _split(split) is None:
            skipped.append(
                f"{manifest}:{line}: unknown split '{split}' (splits: {', '.join(SPLITS)})"
            )
        elif (x, y) in seen:
            skipped.append(f"{manifest}:{line}: the same pair as in line {seen[x, y]}")
        elif label is not None and (
            other := {labels.get(x, label), labels.get(y, label)} - {label}
        ):
            skipped.append(
                f"{manifest}:{line}: label '{label}', but '{min(other)}' above for the same picture"
            )
        else:
            seen[x, y] = line
            if label is not None:
                labels[x] = labels[y] = label
            yield (
                None if split is None else _split(split),
                Pair(x, y, row["x"], row["y"], label, factors),
            )


def _with_numbers(rows: list[tuple[str | None, Pair]]) -> list[tuple[str | None, Pair]]:
    """The same rows, their factors numbers where every cell of the column is one, or empty, or else text."""
    columns = {
        name: numbers
        for name in rows[0][1].factors
        if (numbers := _numbers([str(pair.factors[name]) for _, pair in rows])) is not None
    }
    return [
        (
            split,
            replace(
                pair,
                factors={**pair.factors, **{name: found[row] for name, found in columns.items()}},
            ),
        )
        for row, (split, pair) in enumerate(rows)
    ]


def _numbers(texts: list[str]) -> list[int] | list[float] | None:
    """Whole numbers where all are, numbers (NaN for an empty text) where all others are, None for anything else."""
    if all(_WHOLE.fullmatch(text) for text in texts):
        return [int(text) for text in texts]
    try:
        numbers = [float(text) if text else math.nan for text in texts]
    except ValueError:
        return None
    return numbers if any(texts) else None


def _split(text: str) -> str | None:
    name = "valid" if text.lower() == "val" else text.lower()
    return name if name in SPLITS else None


def _table(manifest: Path, skipped: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, values by column) of every row, for the columns that are known; a cell that is missing is empty.

    Rows with more cells than columns are noted: an unquoted comma in a path shifts all that follow.
    """
    tabs = manifest.suffix.lower() == ".tsv"
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t" if tabs else ",", restval="", strict=True)
            table.fieldnames = columns = [name.strip().lower() for name in table.fieldnames or ()]
            for column in ("x", "y"):
                if columns.count(column) != 1:
                    count = "no" if column not in columns else "more than one"
                    raise IiaeError(f"{manifest} has {count} column '{column}'", LAYOUT)
            known = [
                name
                for name in columns
                if name in ("x", "y", "split", "label") or name.startswith(FACTORS)
            ]
            for row in table:
                if table.restkey in row:
                    skipped.append(f"{manifest}:{table.line_num}: more cells than columns")
                    continue
                yield table.line_num, {column: row[column].strip() for column in known}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        )
        raise IiaeError(
            f"{manifest} {reason}", "name a table in UTF-8 with the columns x,y[,split][,label]"
        ) from error


def _recurs(pairs: list[Pair]) -> bool:
    return len({pair.x for pair in pairs}) < len(pairs) or len({pair.y for pair in pairs}) < len(
        pairs
    )


def _named(pairs: list[Pair], folder: Path, recurring: bool) -> list[Pair]:
    """Pairs with names from their paths: those of x for both where every picture has one partner."""
    names_x = _names([pair.x for pair in pairs], folder)
    names_y = _names([pair.y for pair in pairs], folder)
    return [
        replace(
            pair, x_name=names_x[pair.x], y_name=names_y[pair.y] if recurring else names_x[pair.x]
        )
        for pair in pairs
    ]


def _names(paths: list[Path], folder: Path) -> dict[Path, str]:
    """A name of every path: unique, without its suffix, and without what would lead out of a folder."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        inner = path.relative_to(folder) if path.is_relative_to(folder) else path
        plain = name = "/".join(
            part for part in (inner.parent / inner.stem).parts if part not in (inner.anchor, "..")
        )
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        names[path] = name
    return names
