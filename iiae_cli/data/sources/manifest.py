"""Pairs from a manifest: a CSV file (or `.tsv`, tab-separated) with columns `x,y[,split][,label]`.

Any number of columns `x_…`, `y_…` and `shared_…` are generative factors of a pair, which domain x,
y or both hold. Paths are absolute, or relative to the manifest's folder. Without a column `split`
pairs are divided by seeded fractions. A label is the class of both pictures. A picture may recur in
many pairs; it is then stored once. A factor is a number where all its cells are, else text; an
empty cell is unknown. Training has no use for factors: `evaluate` looks for them in the latents.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of
from iiae_cli.data.datafile import SPLITS
from iiae_cli.data.sources.pairs import Pair, divide, plan_pairs
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions, ReadRows, Work
from iiae_cli.model import DOMAINS

SUFFIXES = (".csv", ".tsv")
FACTORS = ("x_", "y_", "shared_")
_LAYOUT = "its first line should be x,y[,split][,label] (separated by tabs in a .tsv)"
_HINT = "name a table in UTF-8 with the columns x,y[,split][,label]"
_WHOLE = re.compile(r"[+-]?\d{1,18}")  # what 64 bits hold


def is_manifest(path: Path) -> bool:
    """Whether `path` is named as a manifest."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def plan_manifest(options: PrepareOptions) -> Plan:
    """Plan the pairs of a manifest, `options.source`."""
    manifest, skipped = options.source, list[str]()
    assert manifest is not None
    rows = list(_rows(manifest, skipped))
    if not rows:
        raise IiaeError(f"{manifest} names no pair", skipped[0] if skipped else _LAYOUT)
    pairs = _with_numbers([pair for _, pair in rows])
    splits = [split for split, _ in rows]
    if not any(splits):
        divided = divide(pairs, options.fractions, options.seed)
    else:
        divided = {
            name: [pair for split, pair in zip(splits, pairs, strict=True) if split == name]
            for name in SPLITS
        }
    limited = {
        name: _named(found[: options.limit], manifest.parent) for name, found in divided.items()
    }
    plan = plan_pairs(limited, options, skipped)

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        prepared = plan.assemble(rows, work)
        prepared.attributes["source_sha256"] = sha256_of(manifest)
        return prepared

    return replace(plan, assemble=assemble)


def pictures_of(manifest: Path) -> list[Path]:
    """The pictures that a manifest names, each once; none where it cannot be read."""
    try:
        pairs = [pair for _, pair in _rows(manifest, [])]
    except IiaeError:
        return []
    return list(dict.fromkeys(path for pair in pairs for path in pair.files.values()))


def _rows(manifest: Path, skipped: list[str]) -> Iterator[tuple[str, Pair]]:
    """(split, or nothing; pair) of every usable row, its pictures unread; the others are noted."""
    lines: dict[tuple[Path, ...], int] = {}
    labels: dict[Path, str] = {}
    for line, row in _table(manifest, skipped):
        files = {domain: manifest.parent / row[domain] for domain in DOMAINS}
        key, label = tuple(files.values()), row.get("label")
        split = {"val": "valid"}.get(text := row.get("split", "").lower(), text)
        empty = [name for name, text in row.items() if not text and not name.startswith(FACTORS)]
        others = {labels.get(path, label) for path in key} - {label}
        trouble = None
        if empty:
            trouble = f"{' and '.join(empty)} empty"
        elif split and split not in SPLITS:
            trouble = f"unknown split '{row['split']}' (splits: {', '.join(SPLITS)})"
        elif key in lines:
            trouble = f"the same pair as in line {lines[key]}"
        elif others:
            other = min(text for text in others if text is not None)
            trouble = f"label '{label}', but '{other}' above for the same picture"
        if trouble is not None:
            skipped.append(f"{manifest}:{line}: {trouble}")
            continue
        lines[key] = line
        if label is not None:
            labels.update(dict.fromkeys(key, label))
        factors = {
            name.replace("/", "-"): text for name, text in row.items() if name.startswith(FACTORS)
        }
        yield split, Pair(files, {}, label, factors)


def _table(manifest: Path, skipped: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, values by column) of every row, for known columns; a cell that is missing is empty.

    Rows with more cells than columns are noted: an unquoted comma in a path shifts what follows.
    """
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    with reading(manifest, _HINT), manifest.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter=delimiter, restval="", strict=True)
        table.fieldnames = columns = [name.strip().lower() for name in table.fieldnames or ()]
        for column in DOMAINS:
            if columns.count(column) != 1:
                count = "no" if column not in columns else "more than one"
                raise IiaeError(f"{manifest} has {count} column '{column}'", _LAYOUT)
        known = [
            name
            for name in columns
            if name in ("x", "y", "split", "label") or name.startswith(FACTORS)
        ]
        for row in table:
            if table.restkey in row:
                skipped.append(f"{manifest}:{table.line_num}: more cells than columns")
            else:
                yield table.line_num, {column: row[column].strip() for column in known}


def _with_numbers(pairs: list[Pair]) -> list[Pair]:
    """The same pairs, factors as numbers where every cell of the column is one, or empty."""
    columns = {
        name: _numbers([str(pair.factors[name]) for pair in pairs]) for name in pairs[0].factors
    }
    return [
        replace(pair, factors={name: values[row] for name, values in columns.items()})
        for row, pair in enumerate(pairs)
    ]


def _numbers(texts: list[str]) -> list[int] | list[float] | list[str]:
    """Integers where all are; floats, NaN for an empty text, where all others are; or texts."""
    if all(_WHOLE.fullmatch(text) for text in texts):
        return [int(text) for text in texts]
    try:
        return [float(text) if text else math.nan for text in texts] if any(texts) else texts
    except ValueError:
        return texts


def _named(pairs: list[Pair], folder: Path) -> list[Pair]:
    """Pairs with names from their paths."""
    names = {domain: _names([pair.files[domain] for pair in pairs], folder) for domain in DOMAINS}
    return [
        replace(pair, names={domain: names[domain][pair.files[domain]] for domain in DOMAINS})
        for pair in pairs
    ]


def _names(paths: list[Path], folder: Path) -> dict[Path, str]:
    """A name of every path: unique, without its suffix, and without what leads out of a folder."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        inner = path.relative_to(folder) if path.is_relative_to(folder) else path
        inner = inner.parent / inner.stem
        plain = name = "/".join(part for part in inner.parts if part not in (inner.anchor, ".."))
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        names[path] = name
    return names
