"""What names mean: which split a folder or a cell names, and which two spellings are one name.

Names compare in Unicode's composed form (NFC): macOS writes decomposed ones (NFD). What is written
keeps the spelling of the file system. No folder of test pictures gets into training, and whatever
is not taken is a line in `Notes.skipped`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.class_lists import nfc
from iiae_cli.data.datafile import SPLITS
from iiae_cli.data.pictures import pictures_in
from iiae_cli.model import DOMAINS

_WORDS = {
    "train": "train training trn",
    "valid": "valid validation validate val dev devel development",
    "test": "test testing tst eval evaluation holdout heldout",
}
_MEANINGS = {word: split for split, words in _WORDS.items() for word in words.split()}
_FILLERS = "images image imgs img pics pictures photos data files old new split set part full small"


Listings: TypeAlias = dict[Path, dict[str, list[Path]]]  # folders by names in NFC


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


def _held_out(name: str) -> str | None:
    """valid or test, where a folder's name means it or looks so: `test2017`, `valA`, `old-test`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", nfc(name))]
    found = {split_of(name), *(_MEANINGS.get(word) for word in words)} & {"valid", "test"}
    plain = all(len(word) < 3 or word in _MEANINGS or word in _FILLERS.split() for word in words)
    return next(iter(found), None) if plain or split_of(name) else None


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
    beside = ", ".join(f"{path.name}/" for path in taken)[:80]
    rest = (path.relative_to(folder).parts for path in pictures_in(folder, taken))
    for name, count in Counter(parts[0] if parts[1:] else "" for parts in rest).items():
        where, what = (
            (folder / name, "pictures in a folder") if name else (folder, "loose pictures")
        )
        notes.skipped.append(f"{where}: {count} {what} beside {beside}")


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


def find_file(path: Path, listings: Listings) -> Path | None:
    """A path that exists, or else the one in another Unicode form; `listings` are kept.

    Raises:
        ValueError: two files have that name in other forms.
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
