"""Which files and folders there are, and what their names mean: splits and domains.

Names compare in Unicode's composed form (NFC), as macOS writes decomposed ones (NFD); what is
written keeps the spelling of the file system. No folder of test pictures gets into training, and
whatever is not taken is counted in `SEEN`, or is a line in `Notes.skipped`.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import missing
from iiae_cli.data.class_lists import nfc
from iiae_cli.data.datafile import SPLITS
from iiae_cli.data.pictures import SUFFIXES
from iiae_cli.data.seen import SEEN
from iiae_cli.model import DOMAINS

_WORDS = {
    "train": "train training trn",
    "valid": "valid validation validate val dev devel development",
    "test": "test testing tst eval evaluation holdout heldout",
}
_MEANINGS = {word: split for split, words in _WORDS.items() for word in words.split()}
_FILLERS = "images image imgs img pics pictures photos data files old new split set part full small"
_JUNK = {"thumbs.db", "desktop.ini", "__macosx", "lost+found", "$recycle.bin"}
_JUNK |= {"@eadir", "#recycle", "#snapshot", "system volume information"}


# ---- pictures


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which `2.png` stands before `10.png`."""
    parts = re.split(r"(\d+)", str(path))
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def is_hidden(path: Path) -> bool:
    """Whether a name is one that systems, not people, write into folders."""
    return path.name[0] == "." or path.name.lower() in _JUNK


def pictures_in(folder: Path, without: Collection[Path] = ()) -> list[Path]:
    """Every picture file below a folder, through links, hidden ones left out, in natural order."""
    above = frozenset(
        _identity(path) for path in folder.resolve().parents if os.access(path, os.F_OK)
    )
    return sorted(_walk(folder, above, without), key=natural_key)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _walk(
    folder: Path, above: frozenset[tuple[int, int]], without: Collection[Path]
) -> Iterator[Path]:
    """Picture files below a folder, which lies in those `above` (device, inode); notes others."""
    try:
        paths, here = list(folder.iterdir()), _identity(folder)
    except OSError:
        SEEN.leave_out(folder, "unreadable folder")
        return
    if here in above:
        SEEN.leave_out(folder, "link to a folder that it lies in")
        return
    for path in paths:
        if is_hidden(path) or path in without:
            continue
        if os.path.isdir(path):  # noqa: PTH112 - Path's own raise in a folder that cannot be entered
            yield from _walk(path, above | {here}, without)
        elif not os.path.isfile(path):  # noqa: PTH113
            SEEN.leave_out(path, "broken link" if path.is_symlink() else "special file")
        elif path.suffix.lower() in SUFFIXES:
            yield path
        else:
            SEEN.leave_out(path, path.suffix.lower() or "no suffix")


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """Picture files from files and folders (recursive), in the order given.

    A file named outright is taken whatever its suffix; among several, it may turn out missing when
    it is decoded.
    """
    paths: list[Path] = []
    for word in inputs:
        path = Path(word)
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises on names that are too long
            inside = pictures_in(path)
            if not inside:
                raise IiaeError(
                    f"folder {path} holds no pictures",
                    f"it should hold {', '.join(sorted(SUFFIXES))} files",
                )
            paths += inside
        elif len(inputs) == 1 and not os.path.lexists(path):
            raise missing(path, "check the path")
        else:
            paths.append(path)
    return paths


def expand_inputs(inputs: Iterable[str], *, nul: bool = False) -> list[str]:
    """Replace `-` by the paths on standard input, one a line, or NUL-separated."""
    paths: list[str] = []
    for word in inputs:
        paths += _listed(sys.stdin.buffer.read(), nul) if word == "-" else [word]
    if not paths:
        raise IiaeError(
            "no input paths were given", "name pictures or folders, or pipe paths to '-'"
        )
    return paths


def _listed(content: bytes, nul: bool) -> list[str]:
    """The paths of a list, in which Windows may have written line ends and a byte order mark."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", "replace")
    else:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    if nul:
        return [part for part in text.split("\0") if part]
    lines = (line if os.path.lexists(line) else line.rstrip("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip()]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with its row behind every one that recurs."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name}#{row}" for row, name in enumerate(names)]


# ---- splits and domains


@dataclass
class Notes:
    """What was noticed of a source, a line each."""

    skipped: list[str] = field(default_factory=list)  # inputs that are left out
    decided: list[str] = field(default_factory=list)  # what was read in another way than written

    def attributes(self) -> dict[str, str]:
        """Say what was decided, and return it as an attribute of the data file."""
        for line in self.decided:
            console.say(line)
        return {"notes": "\n".join(self.decided)} if self.decided else {}


def split_of(name: str) -> str | None:
    """The split that a name means, in any capitals: `Validation` is valid, `test_set` is test."""
    word = re.sub(r"(?<=[a-z])[-_ ](?=[a-z])", "", nfc(name).casefold())
    return _MEANINGS.get(word.removesuffix("set"))


def domain_of(name: str) -> str | None:
    """The domain that a folder's name means, in any capitals."""
    return name.lower() if name.lower() in DOMAINS else None


def folders_by(folder: Path, meaning: Callable[[str], str | None]) -> dict[str, Path]:
    """The folders right below one by what their names mean; two of one meaning are an error."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = meaning(path.name) if path.is_dir() else None
        if name in found:
            raise IiaeError(
                f"{found[name]} and {path} both mean {name}", "rename one of them, or join them"
            )
        if name is not None:
            found[name] = path
    return {name: found[name] for name in (*SPLITS, *DOMAINS) if name in found}


def split_folders(source: Path) -> dict[str, Path]:
    """The folders of splits in a source, under whichever name."""
    return folders_by(source, split_of)


def read_as(names: Mapping[str, str], notes: Notes) -> None:
    """Note the names of splits that are read as another."""
    notes.decided += [
        f"{name} is read as {split}" for split, name in names.items() if name != split
    ]


def note_rest(folder: Path, taken: Collection[Path], notes: Notes) -> None:
    """Note the pictures below a folder that are not below those `taken`, which are read."""
    beside = ", ".join(f"{path.name}/" for path in taken)[:80] or "no folder that is read"
    rest = (path.relative_to(folder).parts for path in pictures_in(folder, taken))
    for name, count in Counter(parts[0] if parts[1:] else "" for parts in rest).items():
        what = "pictures in a folder" if name else "loose pictures"
        notes.skipped.append(f"{folder / name}: {count} {what} beside {beside}")


def refuse_held_out(folder: Path, paths: Iterable[Path], split: str = "") -> None:
    """Refuse a folder of valid or test pictures among those to train on, or to divide anew ("")."""
    for place in dict.fromkeys(path.parent for path in paths) if split in ("", "train") else ():
        for part in place.relative_to(folder).parts:
            if name := _held_out(part):
                raise IiaeError(
                    f"{place} looks like pictures for {name}, but lies among those "
                    + ("to train on" if split else "that would be divided at random"),
                    "name splits in folders right below SOURCE or in a table's column split; "
                    "rename this folder if it is no split",
                )


def _held_out(name: str) -> str | None:
    """valid or test, where a folder's name means it or looks so: `test2017`, `valA`, `old-test`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", nfc(name))]
    found = {split_of(name), *(_MEANINGS.get(word) for word in words)} & {"valid", "test"}
    plain = all(len(word) < 3 or word in _MEANINGS or word in _FILLERS.split() for word in words)
    return next(iter(found), None) if plain or split_of(name) else None
