"""Tables of pairs, as spreadsheets write them: columns x,y[,split][,label] in any order.

Cells are separated by commas, semicolons, tabs or bars, whichever makes columns x and y of the
first line, or by the character in a line `sep=;` above it. Any number of columns `x_…`, `y_…` and
`shared_…` are generative factors of a pair: numbers if all their cells are (empty: unknown), else
text. A path is absolute (`~` too), a file:// address, or relative to the table, else to the working
folder; its parts may be separated by backslashes. A picture may recur in many rows.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading
from iiae_cli.data.datafile import SPLITS, nfc
from iiae_cli.data.names import Listings, Notes, divides, find_file, read_as, split_of
from iiae_cli.model import DOMAINS, Domain

_SAVE = "save it as CSV in UTF-8"
HINT = "its first line should be x,y[,split][,label], in UTF-8"
_PLAIN = (*DOMAINS, "split", "label")
_FACTORS = ("x_", "y_", "shared_")
_DECIMAL = re.compile(r"[-+]?\d*(,\d+)?")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Pair:
    """Two picture files that belong together; one file where they are side by side."""

    files: Mapping[Domain, Path]
    names: Mapping[Domain, str]  # NAME in their ids, `SPLIT/NAME`
    label: str | None = None  # class of both, where known
    factors: Mapping[str, float | str] = field(default_factory=dict)  # the same in every pair


def is_table(path: Path) -> bool:
    """Returns whether `path` is named as a table, and is no folder."""
    return path.suffix.lower() in (".csv", ".tsv") and not path.is_dir()


def pictures_of(table: Path) -> list[Path]:
    """Returns the pictures that a table names; none if it cannot be read."""
    with suppress(IiaeError):
        return [path for _, pair in pairs_of(table, Notes()) for path in pair.files.values()]
    return []


def pairs_of(table: Path, notes: Notes) -> Iterator[tuple[str, Pair]]:
    """Yields (split or "", pair) of every usable row, its pictures unread; notes the others."""
    lines: dict[tuple[str, ...], int] = {}
    labels: dict[str, str | None] = {}
    called: dict[str, str] = {}  # the table's name of each split
    listings: Listings = {}
    cells = _cells(table, notes)
    factors = {
        name: _numbers([row[name] for row in cells.values()])
        for name in next(iter(cells.values()), {})
        if name.startswith(_FACTORS)
    }
    for number, (line, row) in enumerate(cells.items()):
        label = nfc(row["label"]) if "label" in row else None
        try:
            empty = [name for name in row if not row[name] and name not in factors]
            _refuse_if(bool(empty), f"{' and '.join(empty)} empty")
            split = _split_of(row.get("split"), called)
            paths = [_path_of(row[domain], table.parent, listings) for domain in DOMAINS]
            key = tuple(os.path.abspath(path) for path in paths)  # noqa: PTH100 - without `..`
            _refuse_if(key in lines, f"the same pair as in line {lines.get(key)}")
            for other in (labels.get(path, label) for path in key):
                what = f"label '{label}', but '{other}' above for the same picture"
                _refuse_if(other != label, what)
        except ValueError as error:
            notes.skipped.append(f"{table}:{line}: {error}")
            continue
        lines[key] = line
        labels.update(dict.fromkeys(key, label))
        files = dict(zip(DOMAINS, paths, strict=True))
        names = {domain: _name_of(path, table.parent) for domain, path in files.items()}
        values = {name.replace("/", "-"): column[number] for name, column in factors.items()}
        yield split, Pair(files, names, label, values)
    read_as(called, notes)


def _refuse_if(problem: bool, what: str) -> None:
    if problem:
        raise ValueError(what)


def _split_of(cell: str | None, called: dict[str, str]) -> str:
    """Returns the split that a cell means, "" without such a column; each may have one name."""
    if cell is None:
        return ""
    split = split_of(cell)
    if split is None:
        raise ValueError(f"unknown split '{cell}' (splits: {', '.join(SPLITS)})")
    name = cell.lower()
    if called.setdefault(split, name) != name:
        raise IiaeError(
            f"the split {split} is called both {called[split]} and {name}",
            "give each split one name in column split",
        )
    return split


def _numbers(texts: list[str]) -> Sequence[float | str]:
    """Returns integers if all are, else floats (NaN for an empty text), else the texts."""
    with suppress(ValueError, OverflowError):
        whole: list[int] = np.array(texts).astype(np.int64).tolist()
        return whole
    with suppress(ValueError):
        return [float(text) if text else math.nan for text in texts] if any(texts) else texts
    return texts


# ---- the text


def _cells(table: Path, notes: Notes) -> dict[int, dict[str, str]]:
    """Returns the cells of known columns by line, missing ones empty; notes rows with too many."""
    rows = {}
    with reading(table, HINT):
        text = _text_of(table)
        stated = re.match(r"(?i)sep=(.)[\r\n]+", text)
        body = text[stated.end() if stated else 0 :].lstrip("\r\n")
        above = len(text[: len(text) - len(body)].splitlines())
        first = re.findall(r"[^\r\n]+", body[: 1 << 16])[:1]
        separator, columns = _header(table, first, stated[1] if stated else "")
        known = [name for name in columns if _is_read(name)]
        reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True)
        try:
            for cells in reader:
                line, row = above + reader.line_num, [cell.strip() for cell in cells]
                if any(row[len(columns) :]):
                    notes.skipped.append(f"{table}:{line}: more cells than columns")
                elif any(row):
                    rows[line] = row + [""] * (len(columns) - len(row))
        except csv.Error as error:
            raise IiaeError(
                f"{table} is not valid CSV at line {above + reader.line_num}: {error}",
                "close the quotes of that line, and double those inside a cell",
            ) from error
    del rows[min(rows)]  # the header
    others = [name for name in columns if name and name not in known]
    if others:
        notes.decided.append(f"{table}: columns that are not read: {', '.join(others)}"[:400])
    for name in others if "split" not in known else ():
        meant = {split_of(row[columns.index(name)]) for row in rows.values()} - {None}
        is_one = name.startswith("is_") and split_of(name[3:]) is not None
        if len(meant) > 1 or is_one or divides(name):
            raise IiaeError(
                f"column '{name}' of {table} looks like splits, but is not called so",
                "call it split, of train, valid and test; or leave it out",
            )
    named = {line: {name: row[columns.index(name)] for name in known} for line, row in rows.items()}
    if separator == ";":
        _decimal_points(table, named, notes)
    return named


def _decimal_points(table: Path, rows: dict[int, dict[str, str]], notes: Notes) -> None:
    for name in next(iter(rows.values()), {}):
        texts = {row[name] for row in rows.values()}
        if name not in _PLAIN and all(map(_DECIMAL.fullmatch, texts)) and "," in "".join(texts):
            notes.decided.append(f"{table}: a comma in column '{name}' is a decimal point")
            for row in rows.values():
                row[name] = row[name].replace(",", ".")


def _is_read(column: str) -> bool:
    return column in _PLAIN or column.startswith(_FACTORS)


def _text_of(table: Path) -> str:
    content = table.read_bytes()
    if content.startswith((b"PK\3\4", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")):
        raise IiaeError(f"{table} is a spreadsheet or compressed, not text", _SAVE)
    if re.match(rb"\xff\xfe\0\0|\0\0\xfe\xff|.\0\0\0|\0\0\0", content):
        raise IiaeError(f"{table} is in UTF-32", _SAVE)
    coding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    if coding == "utf-8" and b"\0" in content[:2]:  # no byte order mark, but a Latin letter
        coding = "utf-16-be" if content.startswith(b"\0") else "utf-16-le"
    try:
        text = content.decode(coding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = len(content[: error.start + 1].splitlines())
        new = table.with_stem(f"{table.stem}-utf8")
        command = f"iconv -f CP1252 -t UTF-8 {shlex.quote(str(table))} > {shlex.quote(str(new))}"
        raise IiaeError(
            f"{table} is not in {coding.upper()}: see line {line}",
            f"{_SAVE}, or: {command}",
        ) from error
    if "\0" in text:
        raise IiaeError(f"{table} holds NUL characters, so it is not text", _SAVE)
    return text


def _header(table: Path, lines: Sequence[str], stated: str) -> tuple[str, list[str]]:
    """Returns the separator and the columns of a first line that has x and y."""
    if not lines:
        raise IiaeError(f"{table} holds no line", HINT)
    columns = {
        separator: [name.strip().lower() for name in next(csv.reader(lines, delimiter=separator))]
        for separator in stated or _SEPARATORS
    }
    found = max(columns.items(), key=lambda item: (len({*DOMAINS} & {*item[1]}), len(item[1])))
    separator, names = found
    wrong: list[str] = [name for name in DOMAINS if name not in names]
    wrong += [name for name in names if _is_read(name) and names.count(name) > 1]
    if wrong:
        called = _SEPARATORS.get(separator, separator) if len(names) > 1 else "nothing"
        raise IiaeError(
            f"{table} needs one column '{wrong[0]}': its first line, separated by {called}, has "
            f"{', '.join(names)[:200]}",
            HINT,
        )
    return separator, names


# ---- the paths in it


def _path_of(cell: str, folder: Path, listings: Listings) -> Path:
    """Returns the existing file that a cell names; ValueError says what was looked for."""
    path = cell
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", cell):
        address = re.fullmatch(r"(?i)file:(?://(?:localhost)?)?(/(?!/).*)", cell)
        if address is None:
            raise ValueError(f"{cell} is not on this machine")
        path = unquote(address[1])
    home = os.path.expanduser  # Path.expanduser raises without a home
    for text in dict.fromkeys((path, path.replace("\\", "/"))):
        for place in (folder / text, Path(text), Path(home(text))):
            if (found := find_file(place, listings)) is not None:
                _refuse_if(not found.is_file(), f"{cell} is not a file, or links to none")
                return found
    if re.match(r"/?[A-Za-z]:|\\\\|//", path):
        raise ValueError(f"{cell} is a path on Windows")
    raise ValueError(f"{cell} does not exist, neither beside the table nor in the working folder")


def _name_of(path: Path, folder: Path) -> str:
    """Returns a name from a path, without what leads out of a folder."""
    inner = path.relative_to(folder) if path.is_relative_to(folder) else path
    parts = (inner.parent / inner.stem).parts
    return "/".join(part for part in parts if part not in (inner.anchor, ".."))
