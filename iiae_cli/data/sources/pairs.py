"""Pairs of pictures: in folders, side by side in one picture, or named by a table.

    SOURCE/{train,valid,test}/{x,y}/NAME.ext    partners have equal stems; subfolders are part of it
    SOURCE/{x,y}/{train,valid,test}/NAME.ext    the same
    SOURCE/{x,y}/NAME.ext                       the same, divided by seeded fractions
    SOURCE/{train,valid,test}/NAME.ext          a pair in each picture, cut at width // 2, x left
    SOURCE/NAME.ext                             the same, divided by seeded fractions
    SOURCE.csv, SOURCE.tsv                      columns x,y[,split][,label] (`table.py`)

Splits have the names that people use (`names.py`), in any capitals. Of two files of one stem the
first in natural order is taken, and the other noted.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import sha256_of
from iiae_cli.data import names
from iiae_cli.data.datafile import SPLITS, Side, Split, nfc
from iiae_cli.data.names import Notes, natural_key, split_folders
from iiae_cli.data.pictures import SUFFIXES, PictureError, decode_parts, picture_size_of
from iiae_cli.data.sources import plan as plans
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions, ReadRows, Work
from iiae_cli.data.sources.table import HINT, Pair, is_table, pairs_of
from iiae_cli.model import DOMAINS, Domain

if TYPE_CHECKING:
    from iiae_cli.data.sources.extraction import Networks

DEFAULT_SIZE = 256  # if pictures differ in size; also for Maps, whose halves are 600 a side


def plan_pairs(options: PrepareOptions) -> Plan:
    """Plans the user's own pairs, `options.source`."""
    assert options.source is not None
    if is_table(options.source):
        return _plan_table(options.source, options)
    return plan_folders(split_folders(options.source), options)


def plan_published(options: PrepareOptions) -> Plan:
    """Plans Facades or Maps in their archive's layout; Maps call their test split `val`."""
    assert options.source is not None
    found = [path for path in options.source.rglob("*") if names.split_of(path.name) == "train"]
    train = min(
        (path for path in found if path.is_dir()),
        key=lambda path: (len(path.parts), path),
        default=options.source / "train",
    )
    folders = {"train": train, **split_folders(train.parent)}
    if "test" not in folders and "valid" in folders:
        folders["test"] = folders.pop("valid")
    size = options.image_size or DEFAULT_SIZE
    return plan_folders(folders, replace(options, image_size=size, side_by_side=True))


def plan_folders(folders: Mapping[str, Path], options: PrepareOptions) -> Plan:
    """Plans the pairs in the folders of splits; without any, divides `options.source`."""
    notes, source = Notes(), options.source
    assert source is not None
    if options.side_by_side:
        _note_folders(source, folders, notes)
        places = folders or {"": source}
        pairs = {split: _side_by_side(folder, split, notes) for split, folder in places.items()}
    else:
        domains = domain_folders(source, folders, notes)
        pairs = {split: _match(sides, split, notes) for split, sides in domains.items()}
    if not any(pairs.values()) and notes.skipped and not options.side_by_side:
        plans.warn_of(notes.skipped)
        raise IiaeError(
            f"{source} has no two pictures of the same name",
            "give partners equal names, suffixes aside, or pair them in a table x,y",
        )
    divided = _divided(pairs[""], options, notes) if "" in pairs else pairs
    return _plan_files(divided, options, notes)


def _divided(pairs: Sequence[Pair], options: PrepareOptions, notes: Notes) -> dict[str, list[Pair]]:
    """Divides pairs at random by the fractions for valid and test; each split stays in order."""
    assert options.source is not None
    split = names.looks_like(options.source.stem)
    if split in names.HELD_OUT:
        notes.decided.append(f"{options.source} looks like {split}, and is divided at random")
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    test = round(options.test_fraction * len(pairs))
    rest = test + round(options.valid_fraction * len(pairs))
    parts = {"train": order[rest:], "valid": order[test:rest], "test": order[:test]}
    return {name: [pairs[i] for i in sorted(parts[name])] for name in SPLITS}


def domain_folders(
    source: Path, folders: Mapping[str, Path], notes: Notes, *, lists: bool = True
) -> dict[str, dict[str, Path]]:
    """Finds the folders x and y of every split, "" where a source is to be divided.

    `folders` of splits, where it has any; `lists`: whether lists of a split are refused.
    """
    inside = {} if folders else names.splits_inside(source, notes)
    if inside:
        return inside
    _note_folders(source, folders, notes, lists)
    places = folders or {"": source}
    domains = {split: names.folders_by(path, names.domain_of) for split, path in places.items()}
    unlike = {places[split]: known for split, known in domains.items() if len(known) < 2}
    for folder, known in unlike.items():
        lacking = next(domain for domain in DOMAINS if domain not in known)
        held = sorted(folder.iterdir(), key=natural_key)
        called = ", ".join(f"{path.name}/" for path in held if path.is_dir()) or "no folder"
        raise IiaeError(
            f"{folder} has no folder {lacking}/; it holds {called[:200]}", _way_out(held, unlike)
        )
    for split, folder in places.items():
        names.note_rest(folder, [*domains[split].values()], notes)
    return domains


def _note_folders(
    source: Path, folders: Mapping[str, Path], notes: Notes, lists: bool = True
) -> None:
    """Notes what the folders of splits are called, and what lies beside them."""
    if folders:
        names.read_as({split: folder.name for split, folder in folders.items()}, notes)
        names.note_rest(source, [*folders.values()], notes)
    else:
        names.refuse_lookalikes(source, lists=lists)


def _way_out(held: Sequence[Path], unlike: Iterable[Path]) -> str:
    """Says how folders of another layout get read; the first one holds the paths `held`."""
    parts = {path: [path, *split_folders(path).values()] for path in held}
    inner = next((path for path in held if any(map(_has_domains, parts[path]))), None)
    if inner is not None:
        return f"name {inner} as SOURCE"
    if all(moves := [_moves(folder) for folder in unlike]):
        return f"run: {' && '.join(shlex.join(move) for item in moves for move in item)}"
    hint = "put the pictures of both domains in x/ and y/, or in train/x/ and so on"
    if any(path.suffix.lower() in SUFFIXES for path in held):
        hint = f"add --side-by-side where each picture holds x beside y, or {hint}"
    return hint


def _moves(folder: Path) -> list[list[str]]:
    """Returns commands that call a folder's folders of pictures x and y, if it is clear which."""
    known = names.folders_by(folder, names.domain_of)
    wanted = [domain for domain in DOMAINS if domain not in known]
    others = [
        path
        for path in sorted(folder.iterdir(), key=natural_key)
        if path.is_dir() and path not in known.values() and not names.is_hidden(path)
    ]
    letters = [path for path in others if path.name.lower() in ("a", "b")]
    others = letters if len(letters) == len(wanted) else list(filter(names.pictures_in, others))
    moves = zip(others, wanted, strict=True) if len(others) == len(wanted) else ()
    return [["mv", str(path), str(folder / name)] for path, name in moves]


def _match(domains: Mapping[str, Path], split: str, notes: Notes) -> list[Pair]:
    """Returns a pair for every stem in both domains; notes files without a partner."""
    x, y = (_by_stem(domains[domain], split, notes) for domain in DOMAINS)
    lone = [
        path for side, other in ((x, y), (y, x)) for stem, path in side.items() if stem not in other
    ]
    notes.skipped += [f"{path}: has no partner" for path in sorted(lone, key=natural_key)]
    pairs = []
    for stem in sorted({*x} & {*y}, key=lambda text: natural_key(Path(text))):
        name = str(x[stem].relative_to(domains["x"]).with_suffix(""))
        pairs.append(Pair({"x": x[stem], "y": y[stem]}, dict.fromkeys(DOMAINS, name)))
    return pairs


def _has_domains(folder: Path) -> bool:
    return len(names.folders_by(folder, names.domain_of)) == 2


def _side_by_side(folder: Path, split: str, notes: Notes) -> list[Pair]:
    if _has_domains(folder):
        raise IiaeError(
            f"{folder} holds x and y in folders of their own", "leave out --side-by-side"
        )
    pairs = []
    for path in _by_stem(folder, split, notes).values():
        name = str(path.relative_to(folder).with_suffix(""))
        pairs.append(Pair(dict.fromkeys(DOMAINS, path), dict.fromkeys(DOMAINS, name)))
    return pairs


def _by_stem(folder: Path, split: str, notes: Notes) -> dict[str, Path]:
    """Returns the pictures below a folder by stem in NFC; notes a second one of the same stem."""
    stems: dict[str, Path] = {}
    paths = names.pictures_in(folder)
    names.refuse_held_out(folder, paths, split)
    for path in paths:
        first = stems.setdefault(nfc(str(path.relative_to(folder).with_suffix(""))), path)
        if first != path:
            same = first.with_suffix("") == path.with_suffix("")
            form = "" if same else ", in another Unicode form"
            notes.skipped.append(f"{path}: {first} has the same stem{form}")
    return stems


# ---- from files to splits


def _plan_files(pairs: Mapping[str, Sequence[Pair]], options: PrepareOptions, notes: Notes) -> Plan:
    """Plans pairs per split. If a picture recurs, each is stored once and pairs are indices."""
    limited = {name: items[: options.limit] for name, items in pairs.items() if items}
    files = {
        (name, domain): list(dict.fromkeys(pair.files[domain] for pair in items))
        for name, items in limited.items()
        for domain in DOMAINS
    }
    _note_shared(files, notes)
    recurring = any(len(paths) < len(limited[name]) for (name, _), paths in files.items())
    networks = _networks(options)
    size = _stored_size(options, {path for paths in files.values() for path in paths})

    def read(path: Path) -> tuple[NDArray[np.uint8], ...]:
        return tuple(decode_parts(path, 2 if options.side_by_side else 1, 3, size))

    def reading_of(name: str, domain: Domain) -> str:  # one for both domains if side by side
        return name if options.side_by_side else f"{name}/{domain}"

    readings = {}
    for (split, domain), paths in files.items():
        name = reading_of(split, domain)
        if networks is not None:
            readings[name] = networks.reading(name, paths, domain)
        else:
            readings[name] = plans.file_reading(name, paths, read, workers=options.workers)

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits = {}
        for name, items in limited.items():
            row_of: dict[Domain, dict[Path, int]] = {}
            stored: dict[Domain, NDArray[np.uint8]] = {}
            for domain in DOMAINS:
                part, paths = rows[reading_of(name, domain)], files[name, domain]
                row_of[domain] = {paths[place]: row for row, place in enumerate(part.places)}
                if part.rows:
                    stored[domain] = part.rows[0 if domain == "x" else -1]
            whole = [
                pair for pair in items if all(pair.files[side] in row_of[side] for side in DOMAINS)
            ]
            if whole:
                splits[name] = _split_of(name, whole, row_of, stored, recurring)
        return Prepared(splits, {} if networks is None else networks.attributes(splits, work))

    return Plan(assemble, list(readings.values()), notes.attributes(), notes.skipped)


def _note_shared(files: Mapping[tuple[str, Domain], Sequence[Path]], notes: Notes) -> None:
    """Notes pictures of train that are in valid or test, too, also through links."""
    train, others = set[tuple[int, int]](), set[tuple[int, int]]()
    for (name, _), paths in files.items():
        for path in paths:
            with suppress(OSError):  # named when it is decoded
                status = path.stat()
                (train if name == "train" else others).add((status.st_dev, status.st_ino))
    if shared := train & others:
        notes.decided.append(f"pictures in train that are in valid or test, too: {len(shared)}")


def _networks(options: PrepareOptions) -> Networks | None:
    if not options.wants_backbone:
        return None
    from iiae_cli.data.sources.extraction import networks_for_pairs  # imports torch

    return networks_for_pairs(options)


def _stored_size(options: PrepareOptions, paths: Iterable[Path]) -> tuple[int, int]:
    """Returns (H, W) of stored pictures: --image-size, else their own if all agree, else 256."""
    if options.image_size is not None:
        return options.image_size, options.image_size
    sizes = set()
    for path in paths:
        with suppress(PictureError):  # named when it is decoded
            sizes.add(picture_size_of(path))
    if len(sizes) != 1:
        return DEFAULT_SIZE, DEFAULT_SIZE
    height, width = sizes.pop()
    return height, width // 2 if options.side_by_side else width


def _split_of(
    name: str,
    pairs: Sequence[Pair],
    row_of: Mapping[Domain, Mapping[Path, int]],
    stored: Mapping[Domain, NDArray[np.uint8]],
    recurring: bool,
) -> Split:
    """Returns the split of pairs whose pictures are rows of `stored`, (N, H, W, 3) each."""
    labelled = any(pair.label is not None for pair in pairs)
    sides, indices = {}, []
    for domain in DOMAINS:
        wanted = [row_of[domain][pair.files[domain]] for pair in pairs]
        rows, first, inverse = np.unique(wanted, return_index=True, return_inverse=True)
        indices.append(inverse)
        named: Domain = domain if recurring else "x"  # partners share their id
        sides[domain] = Side(
            stored[domain] if len(rows) == len(stored[domain]) else stored[domain][rows],
            names.distinct([f"{name}/{pairs[i].names[named]}" for i in first]),
            [pairs[i].label or "" for i in first] if labelled else None,
        )
    factors = {
        factor: np.array([pair.factors[factor] for pair in pairs]) for factor in pairs[0].factors
    }
    return Split(sides["x"], sides["y"], factors, np.stack(indices, 1) if recurring else None)


# ---- tables


def _plan_table(table: Path, options: PrepareOptions) -> Plan:
    notes = Notes()
    rows = list(pairs_of(table, notes))
    if not rows:
        plans.warn_of(notes.skipped)
        said = "the warnings above say why; " if notes.skipped else ""
        raise IiaeError(f"{table} names no pair that can be read", said + HINT)
    if any(split for split, _ in rows):
        pairs = {name: [pair for split, pair in rows if split == name] for name in SPLITS}
    else:
        paths = [path.absolute() for _, pair in rows for path in pair.files.values()]
        above = Path(os.path.commonpath([path.parent for path in paths]))
        names.refuse_held_out(above, paths)
        pairs = _divided([pair for _, pair in rows], options, notes)
    plan = _plan_files(pairs, options, notes)
    return replace(plan, attributes={**plan.attributes, "source_sha256": sha256_of(table)})
