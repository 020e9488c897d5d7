"""Tables of pairs, as spreadsheets write them: columns x,y[,split][,label] in any order.

Cells are separated by commas, semicolons, tabs or bars, whichever makes columns x and y of the
first line. Columns `x_…`, `y_…` and `shared_…` are generative factors of a pair: numbers if all
their cells are (empty: unknown), else text. A path is absolute (`~` too), or relative to the table,
else to the working folder; backslashes may separate its parts. A picture may recur in many rows.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading
from iiae_cli.data import names
from iiae_cli.data.datafile import SPLITS, Side, Split, nfc
from iiae_cli.data.names import Listings, Notes, split_of
from iiae_cli.model import DOMAINS

HINT = "its first line should be x,y[,split][,label], in UTF-8, and every quote closed"
_PLAIN = (*DOMAINS, "split", "label")
_FACTORS = ("x_", "y_", "shared_")
_DECIMAL = re.compile(r"[-+]?\d*(,\d+)?")
_SEPARATORS = ",;\t|"


def read_table(table: Path, notes: Notes) -> tuple[Split, list[str]]:
    """Returns the files of all usable pairs, and each one's split or ""; notes the other rows."""
    lines, columns = _columns(table, notes)
    called: dict[str, str] = {}  # the table's name of each split
    listings: Listings = {}
    label_of: dict[str, str] = {}
    kept, splits, pairs = list[int](), list[str](), list[list[Path]]()
    for row, line in enumerate(lines):
        cells = {name: columns[name][row] for name in _PLAIN if name in columns}
        label = nfc(cells.get("label", ""))
        try:
            empty = " and ".join(name for name, text in cells.items() if not text)
            if empty:
                raise ValueError(f"{empty} empty")
            split = _split_of(cells.get("split"), called)
            pair = [_path_of(cells[domain], table.parent, listings) for domain in DOMAINS]
            key = [os.path.normpath(path.absolute()) for path in pair]
            for path in key:
                if (other := label_of.get(path, label)) != label:
                    what = f"label '{label}', but '{other}' above for the same picture"
                    raise ValueError(what)
        except ValueError as error:
            notes.skipped.append(f"{table}:{line}: {error}")
            continue
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
        separator, header = _header(table, text)
        reader = csv.DictReader(
            io.StringIO(text, newline=""), header, None, "", delimiter=separator, strict=True
        )
        next(reader)
        lines, rows = list[int](), list[dict[str, str]]()
        try:
            for row in reader:
                if "".join(row.pop(None, [])).strip():
                    notes.skipped.append(f"{table}:{reader.line_num}: more cells than columns")
                elif any(row.values()):
                    lines.append(reader.line_num)
                    rows.append(row)
        except csv.Error as error:
            line = reader.reader.line_num
            raise IiaeError(f"{table} is not valid CSV at line {line}: {error}", HINT) from error
    columns = {name: [row[name].strip() for row in rows] for name in header}
    others = [name for name in header if name and not _is_read(name)]
    if others:
        notes.decided.append(f"{table}: columns that are not read: {', '.join(others)}"[:400])
    for name in others if "split" not in header else ():
        meant = {split_of(text) for text in columns[name]} - {None}
        is_one = name.startswith("is_") and split_of(name[3:]) is not None
        if len(meant) > 1 or is_one or names.divides(name):
            raise IiaeError(
                f"column '{name}' of {table} looks like splits, but is not called so",
                "call it split, of train, valid and test; or leave it out",
            )
    known = {name: texts for name, texts in columns.items() if _is_read(name)}
    for name, texts in known.items() if separator == ";" else ():
        commas = name.startswith(_FACTORS) and any("," in text for text in texts)
        if commas and all(map(_DECIMAL.fullmatch, texts)):
            notes.decided.append(f"{table}: a comma in column '{name}' is a decimal point")
            known[name] = [text.replace(",", ".") for text in texts]
    return lines, known


def _is_read(column: str) -> bool:
    return column in _PLAIN or column.startswith(_FACTORS)


def _text_of(table: Path) -> str:
    text = names.decoded(table.read_bytes(), "replace")
    wrong = re.search("[\0\ufffd]", text)
    if wrong is not None:
        line = len(text[: wrong.end()].splitlines())
        raise IiaeError(
            f"{table} is not a text in UTF-8 or UTF-16: see line {line}",
            "save it as CSV in UTF-8; if it is a text of Windows: iconv -f CP1252 -t UTF-8 "
            f"{shlex.quote(str(table))} > {shlex.quote(f'{table}-utf8{table.suffix}')}",
        )
    return text


def _header(table: Path, text: str) -> tuple[str, list[str]]:
    """Returns the separator and the columns of a first line that has x and y."""
    first = text.splitlines()[:1] or [""]
    columns = {
        separator: [name.strip().lower() for name in next(csv.reader(first, delimiter=separator))]
        for separator in _SEPARATORS
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
    home = os.path.expanduser  # Path.expanduser raises without a home
    for text in dict.fromkeys((cell, cell.replace("\\", "/"))):
        for place in (folder / text, Path(text), Path(home(text))):
            if (found := names.find_file(place, listings)) is not None:
                if not found.is_file():
                    raise ValueError(f"{cell} is not a file, or links to none")
                return found
    raise ValueError(f"{cell} does not exist, neither beside the table nor in the working folder")


def _name_of(path: Path, folder: Path) -> str:
    """Returns a name from a path, without what leads out of a folder."""
    inner = path.relative_to(folder) if path.is_relative_to(folder) else path
    parts = (inner.parent / inner.stem).parts
    return "/".join(part for part in parts if part not in (inner.anchor, ".."))
