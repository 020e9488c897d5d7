"""Finds pictures in files and folders, and reads splits and domains from their names.

Names compare in Unicode's composed form (NFC), as macOS writes decomposed ones (NFD); written names
keep the file system's spelling. No folder of test pictures gets into training, and whatever is not
read is counted in `SEEN`, or is a line in `Notes.skipped`.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import missing
from iiae_cli.data.datafile import SPLITS, nfc
from iiae_cli.data.pictures import SEEN, SUFFIXES
from iiae_cli.model import DOMAINS

Listings: TypeAlias = dict[Path, dict[str, list[Path]]]  # folders by names in NFC

_WORDS = {
    "train": "train training trn",
    "valid": "valid validation validate val dev devel development",
    "test": "test tests testing tst eval evaluation holdout heldout",
}
HELD_OUT = {"valid", "test"}
_MEANINGS = {word: split for split, words in _WORDS.items() for word in words.split()}
_FILLERS = "images image imgs img pics pictures photos data files old new set part full small"
_FILLERS += " split list lists ids names classes"
_DIVISIONS = {"split", "splits", "partition", "partitions", "subset", "fold", "folds", "phase"}
LISTS = {"", ".txt", ".lst", ".list", ".csv", ".tsv", ".json"}  # files that may name pictures
PUT_SPLITS = "splits are SOURCE/train, SOURCE/valid, SOURCE/test, each of x/ and y/ (not trainA/)"
_JUNK = {"thumbs.db", "desktop.ini", "__macosx", "lost+found", "$recycle.bin"}
_JUNK |= {"@eadir", "#recycle", "#snapshot", "system volume information"}
_JUNK |= {"@recycle", "@recently-snapshot", "~snapshot", "_gsdata_", "__pycache__", "cvs"}


# ---- pictures


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Returns a sort key under which `2.png` stands before `10.png`."""
    parts = re.split(r"(\d+)", str(path))
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def is_hidden(path: Path) -> bool:
    """Returns whether a name is one that systems, not people, write into folders."""
    return path.name[0] == "." or path.name.lower() in _JUNK


def pictures_in(folder: Path, without: Collection[Path] = ()) -> list[Path]:
    """Returns all visible picture files below a folder, through links, in natural order."""
    return sorted(_walk(folder, {*folder.resolve().parents}, without), key=natural_key)


def _walk(folder: Path, above: Set[Path], without: Collection[Path]) -> Iterator[Path]:
    """Yields pictures below a folder, whose real path has others `above`; counts the rest."""
    if folder in without:
        return
    try:
        paths, here = list(folder.iterdir()), folder.resolve()
    except OSError:
        SEEN.left_out[folder] = "unreadable folder"
        return
    if here in above:
        SEEN.left_out[folder] = "link to a folder that it lies in"
        return
    for path in paths:
        if is_hidden(path):
            continue
        suffix = path.suffix.lower()
        if os.path.isdir(path):
            yield from _walk(path, above | {here}, without)
        elif not os.path.isfile(path):
            SEEN.left_out[path] = "broken link" if path.is_symlink() else "special file"
        elif suffix in SUFFIXES:
            yield path
        else:
            SEEN.left_out[path] = suffix or "no suffix"


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """Returns picture files from files and folders (recursive), in the order given.

    A file named outright is taken whatever its suffix; among several, a missing one is reported
    when it is decoded.
    """
    paths: list[Path] = []
    listings: Listings = {}
    for word in inputs:
        path = Path(word)
        with suppress(ValueError):  # two forms of a name; the error names the path
            path = find_file(path, listings) or path
        if os.path.isdir(path):
            inside = pictures_in(path)
            if not inside:
                kinds = ", ".join(sorted(SUFFIXES))
                raise IiaeError(f"folder {path} holds no pictures", f"it should hold {kinds} files")
            paths += inside
        elif len(inputs) == 1 and not os.path.lexists(path):
            raise missing(path, "check the path")
        else:
            paths.append(path)
    return paths


def expand_inputs(inputs: Iterable[str], *, nul: bool = False) -> list[str]:
    """Replaces `-` by the paths on standard input, one a line, or NUL-separated."""
    paths: list[str] = []
    for word in inputs:
        if word != "-":
            paths.append(word)
            continue
        text = decoded(sys.stdin.buffer.read(), "surrogateescape")
        paths += [_listed(line) for line in text.split("\0" if nul else "\n") if line.strip()]
    if not paths:
        hint = "name pictures or folders, or pipe paths to '-'"
        raise IiaeError("no input paths were given", hint)
    return paths


def decoded(content: bytes, errors: str = "strict") -> str:
    """Returns a text in UTF-16 with a byte order mark, or in UTF-8 with or without one."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig", "replace" if wide else errors)


def _listed(line: str) -> str:
    """Returns a line as it is if such a file exists, else without line end, spaces and quotes."""
    plain = line.rstrip("\r")
    forms = (line, plain, plain.strip(), plain.strip().strip("\"'"))
    return next((form for form in forms if os.path.lexists(form)), plain)


def find_file(path: Path, listings: Listings) -> Path | None:
    """Returns a path if it exists, else the one in another Unicode form; `listings` is a cache.

    Raises ValueError if two files have that name in other forms.
    """
    if os.path.lexists(path):
        return path
    parent = None if str(path).isascii() else find_file(path.parent, listings)
    if parent is None:
        return None
    if parent not in listings:
        same = listings[parent] = {}
        with suppress(OSError):
            for item in sorted(parent.iterdir()):
                same.setdefault(nfc(item.name), []).append(item)
    found = listings[parent].get(nfc(path.name), [])
    if len(found) > 1:
        raise ValueError(f"{found[0]!a} and {found[1].name!a} are one name in two Unicode forms")
    return found[0] if found else None


def distinct(names: Sequence[str]) -> list[str]:
    """Returns the names, with the row appended to every one that recurs."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name}#{row}" for row, name in enumerate(names)]


# ---- splits and domains


@dataclass
class Notes:
    """Remarks on a source, a line each."""

    skipped: list[str] = field(default_factory=list)  # inputs that are left out
    decided: list[str] = field(default_factory=list)  # what was not read as it is written

    def attributes(self) -> dict[str, str]:
        """Prints the decisions, and returns them as an attribute of the data file."""
        for line in self.decided:
            console.say(line)
        return {"notes": "\n".join(self.decided)} if self.decided else {}


def split_of(name: str) -> str | None:
    """Returns the split that a name means in any case: `Validation` is valid, `test_set` test."""
    word = re.sub(r"(?<=[a-z])[-_ ](?=[a-z])", "", nfc(name).casefold())
    return _MEANINGS.get(word.removesuffix("set"))


def domain_of(name: str) -> str | None:
    """Returns the domain that a folder's name means, in any case."""
    return name.lower() if name.lower() in DOMAINS else None


def folders_by(folder: Path, meaning: Callable[[str], str | None] = split_of) -> dict[str, Path]:
    """Returns the folders directly below one by their names' meanings; raises if two agree."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = meaning(path.name)
        if name is None or (path.exists() and not path.is_dir()):
            continue
        if not path.exists():
            raise missing(path, "mend that link, or remove it")
        if found.setdefault(name, path) != path:
            message = f"{found[name]} and {path} both mean {name}"
            raise IiaeError(message, "rename one of them, or join them")
    return {name: found[name] for name in (*SPLITS, *DOMAINS) if name in found}


def read_as(split: str, name: str, notes: Notes) -> None:
    """Notes a split that is called otherwise."""
    if name.rpartition("/")[2] != split:
        notes.decided.append(f"{name} is read as {split}")


def note_rest(source: Path, taken: Collection[Path], notes: Notes) -> None:
    """Notes the pictures of a source that are not below the folders `taken`, which are read."""
    read = [path for folder in taken for path in (folder, *folder.parents)]
    holders, rest = {source, *read}, Counter[tuple[Path, str]]()
    for picture in pictures_in(source, taken):
        folder = next(path for path in picture.parents if path in holders)
        inner = picture.relative_to(folder).parts
        rest[folder, inner[0] if inner[1:] else ""] += 1
    notes.skipped += [
        f"{folder / name}: {count} pictures that lie beside what is read"
        for (folder, name), count in rest.items()
    ]


def refuse_held_out(folder: Path, paths: Iterable[Path], split: str = "") -> None:
    """Raises for pictures of valid or test among those to train on, or to divide anew ("").

    A folder shows it by its name, or names do that differ in the word of a split alone.
    """
    if split not in ("", "train"):
        return
    inner = {path.relative_to(folder) for path in paths}
    folders = {parent for path in inner for parent in path.parents if parent.name}
    meant = [(path, looks_like(path.name)) for path in sorted(folders, key=natural_key)]
    alike = defaultdict[tuple[Path, str], dict[str, Path]](dict)  # a path of each split
    for path in sorted(inner | folders, key=natural_key):
        splits, rest = _words_of(path.name)
        for name in splits:
            alike[path.parent, " ".join(rest)].setdefault(name, path)
    for found in alike.values():
        meant += [(path, name) for name, path in found.items() if len(found) > 1]
    for path, held in meant:
        if held in HELD_OUT:
            raise looks_wrong(folder / path, f"pictures for {held}", split)


def looks_wrong(path: Path, what: str, split: str = "") -> IiaeError:
    """Returns the error for what looks like a split, but lies elsewhere."""
    among = "those to train on" if split else "pictures that would be divided at random"
    hint = "or name them in a table's column split or by --unseen-classes; rename or move what is "
    message = f"{path} looks like {what}, but lies among {among}"
    return IiaeError(message, f"{PUT_SPLITS}, {hint}of no split")


def looks_like(name: str) -> str | None:
    """Returns the split that a name resembles: `test2017`, `valA`, `old-test`, `01_train`."""
    splits, rest = _words_of(name)
    plain = all(len(word) < 3 or word in _FILLERS.split() for word in rest)
    found = (split for split in ("test", "valid", "train") if split in splits)
    return split_of(name) or (next(found, None) if plain else None)


def divides(name: str) -> bool:
    """Returns whether a word of a name means a division: `splits`, `list_eval_partition`."""
    return not _DIVISIONS.isdisjoint(_words_of(name)[1])


def _words_of(name: str) -> tuple[set[str], list[str]]:
    """Returns the splits that words of a name mean, and its other words."""
    apart = re.sub(r"(?i)^(train|val|valid|test)([abxy])$", r"\1 \2", nfc(name))
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", apart)]
    means = {word: _MEANINGS.get(word.removesuffix("set")) for word in words}
    return {split for split in means.values() if split}, [w for w in words if not means[w]]
