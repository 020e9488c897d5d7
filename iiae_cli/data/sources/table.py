"""Tables of pairs, as spreadsheets write them: columns x,y[,split][,label] in any order.

Cells are separated by commas, semicolons, tabs or bars, whichever makes columns x and y of the
first line, or by the character in a line `sep=;` above it. Any number of columns `x_…`, `y_…` and
`shared_…` are generative factors of a pair: numbers if all their cells are (empty: unknown), else
text. A path is absolute (`~` too), a file:// address, or relative to the table, else to the working
folder; its parts may be separated by backslashes. A picture may recur in many rows.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading
from iiae_cli.data import names
from iiae_cli.data.datafile import SPLITS, Side, Split, nfc
from iiae_cli.data.names import Listings, Notes, split_of
from iiae_cli.model import DOMAINS

HINT = "its first line should be x,y[,split][,label], in UTF-8"
_PLAIN = (*DOMAINS, "split", "label")
_FACTORS = ("x_", "y_", "shared_")
_DECIMAL = re.compile(r"[-+]?\d*(,\d+)?")
_SEPARATORS = ",;\t|"


def read_table(table: Path, notes: Notes) -> tuple[Split, list[str]]:
    """Returns the files of all usable pairs, and each one's split or ""; notes the other rows."""
    lines, columns = _columns(table, notes)
    called: dict[str, str] = {}  # the table's name of each split
    listings: Listings = {}
    line_of: dict[tuple[str, ...], int] = {}
    label_of: dict[str, str] = {}
    kept, splits, pairs = list[int](), list[str](), list[list[Path]]()
    for row, line in enumerate(lines):
        cells = {name: columns[name][row] for name in _PLAIN if name in columns}
        label = nfc(cells.get("label", ""))
        try:
            empty = " and ".join(name for name, text in cells.items() if not text)
            _refuse_if(bool(empty), f"{empty} empty")
            split = _split_of(cells.get("split"), called)
            pair = [_path_of(cells[domain], table.parent, listings) for domain in DOMAINS]
            key = tuple(os.path.normpath(path.absolute()) for path in pair)
            _refuse_if(key in line_of, f"the same pair as in line {line_of.get(key)}")
            for other in (label_of.get(path, label) for path in key):
                what = f"label '{label}', but '{other}' above for the same picture"
                _refuse_if(other != label, what)
        except ValueError as error:
            notes.skipped.append(f"{table}:{line}: {error}")
            continue
        line_of[key] = line
        label_of.update(dict.fromkeys(key, label))
        kept.append(row)
        splits.append(split)
        pairs.append(pair)
    for split, name in called.items():
        names.read_as(split, name, notes)
    labels = [nfc(columns["label"][row]) for row in kept] if "label" in columns else None
    x, y = (
        Side(np.array(paths, object), [_name_of(path, table.parent) for path in paths], labels)
        for paths in ([pair[place] for pair in pairs] for place in range(2))
    )
    factors = {
        name.replace("/", "-"): _numbers(texts)[kept]
        for name, texts in columns.items()
        if name.startswith(_FACTORS)
    }
    return Split(x, y, factors), splits


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


def _numbers(texts: list[str]) -> NDArray[Any]:
    """Returns integers if all are, else floats (NaN for an empty text), else the texts."""
    column = np.array(texts)
    with suppress(ValueError, OverflowError):
        return column.astype(np.int64)
    with suppress(ValueError):
        return np.where(column == "", "nan", column).astype(np.float64) if any(texts) else column
    return column


# ---- the text


def _columns(table: Path, notes: Notes) -> tuple[list[int], dict[str, list[str]]]:
    """Returns lines, and the cells of known columns, missing ones empty; notes too long rows."""
    with reading(table, HINT):
        text = _text_of(table)
        lines = re.findall(r"[^\r\n]+", text[: 1 << 16])[:2]
        stated = re.fullmatch(r"(?i)sep=(.)", lines[0]) if lines else None
        above = lines[:1] if stated else []
        separator, header = _header(table, lines[len(above) :], stated[1] if stated else "")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows: dict[int, list[str]] = {}
        try:
            for cells in reader:
                rows[reader.line_num] = [cell.strip() for cell in cells]
        except csv.Error as error:
            raise IiaeError(
                f"{table} is not valid CSV at line {reader.line_num}: {error}",
                "close the quotes of that line, and double those inside a cell",
            ) from error
    filled = [line for line, row in rows.items() if any(row)][len(above) + 1 :]
    long = dict.fromkeys(line for line in filled if any(rows[line][len(header) :]))
    notes.skipped += [f"{table}:{line}: more cells than columns" for line in long]
    kept = {line: rows[line] + [""] * len(header) for line in filled if line not in long}
    columns = {name: [row[place] for row in kept.values()] for place, name in enumerate(header)}
    others = [name for name in columns if name and not _is_read(name)]
    if others:
        notes.decided.append(f"{table}: columns that are not read: {', '.join(others)}"[:400])
    for name in others if "split" not in columns else ():
        meant = {split_of(text) for text in columns[name]} - {None}
        is_one = name.startswith("is_") and split_of(name[3:]) is not None
        if len(meant) > 1 or is_one or names.divides(name):
            raise IiaeError(
                f"column '{name}' of {table} looks like splits, but is not called so",
                "call it split, of train, valid and test; or leave it out",
            )
    known = {name: texts for name, texts in columns.items() if _is_read(name)}
    if separator == ";":
        _mend_decimal_commas(table, known, notes)
    return [*kept], known


def _mend_decimal_commas(table: Path, columns: dict[str, list[str]], notes: Notes) -> None:
    for name, texts in columns.items():
        if name not in _PLAIN and all(map(_DECIMAL.fullmatch, texts)) and "," in "".join(texts):
            notes.decided.append(f"{table}: a comma in column '{name}' is a decimal point")
            columns[name] = [text.replace(",", ".") for text in texts]


def _is_read(column: str) -> bool:
    return column in _PLAIN or column.startswith(_FACTORS)


def _text_of(table: Path) -> str:
    """Returns the text of a table, without a byte order mark; refuses other encodings."""
    content = table.read_bytes()
    if b"\0" in content[:2]:  # no byte order mark, but a Latin letter
        content = (BOM_UTF16_BE if content.startswith(b"\0") else BOM_UTF16_LE) + content
    text = names.decoded(content, "replace")
    wrong = re.search("[\0\ufffd]", text)
    if wrong is not None:
        line = len(text[: wrong.end()].splitlines())
        new = table.with_stem(f"{table.stem}-utf8")
        command = f"iconv -f CP1252 -t UTF-8 {shlex.quote(str(table))} > {shlex.quote(str(new))}"
        raise IiaeError(
            f"{table} is not a text in UTF-8 or UTF-16: see line {line}",
            f"save it as CSV in UTF-8, or, if it is a text of Windows: {command}",
        )
    return text


def _header(table: Path, lines: Sequence[str], stated: str) -> tuple[str, list[str]]:
    """Returns the separator and the columns of a first line that has x and y."""
    if not lines:
        raise IiaeError(f"{table} holds no line", HINT)
    columns = {
        separator: [name.strip().lower() for name in next(csv.reader(lines, delimiter=separator))]
        for separator in stated or _SEPARATORS
    }
    separator = max(columns, key=lambda by: (len({*DOMAINS} & {*columns[by]}), len(columns[by])))
    header = columns[separator]
    wrong: list[str] = [name for name in DOMAINS if name not in header]
    wrong += [name for name in header if _is_read(name) and header.count(name) > 1]
    if wrong:
        held = ", ".join(header)[:200]
        raise IiaeError(f"{table} needs one column '{wrong[0]}': its first line has {held}", HINT)
    return separator, header


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
            if (found := names.find_file(place, listings)) is not None:
                _refuse_if(not found.is_file(), f"{cell} is not a file, or links to none")
                return found
    raise ValueError(f"{cell} does not exist, neither beside the table nor in the working folder")


def _name_of(path: Path, folder: Path) -> str:
    """Returns a name from a path, without what leads out of a folder."""
    inner = path.relative_to(folder) if path.is_relative_to(folder) else path
    parts = (inner.parent / inner.stem).parts
    return "/".join(part for part in parts if part not in (inner.anchor, ".."))
