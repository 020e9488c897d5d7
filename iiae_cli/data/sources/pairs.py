"""Pairs of pictures: in folders, side by side in one picture, or named by a table.

Layouts: docs/data.md. Splits have the names that people use (`names.py`), in any capitals. Of two
files of one stem the first in natural order is taken, and the other noted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import sha256_of
from iiae_cli.data import names
from iiae_cli.data.datafile import SPLITS, Side, Split, nfc
from iiae_cli.data.names import Notes, natural_key
from iiae_cli.data.pictures import PictureError, decode, picture_size_of
from iiae_cli.data.sources import plan as plans
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Work, file_reader
from iiae_cli.data.sources.table import read_table
from iiae_cli.model import DOMAINS, Domain

DEFAULT_SIZE = 256  # if pictures differ in size; also for Maps, whose halves are 600 a side


def plan_pairs(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans the user's own pairs, `options.source`."""
    source = options.source_path
    if source.is_dir():
        return plan_folders(names.folders_by(source), options, notes)
    pairs, named = read_table(source, notes)
    if any(named):
        column = np.array(named)
        divided = {name: pairs.take_pairs(np.flatnonzero(column == name)) for name in SPLITS}
    else:
        paths = [path.absolute() for side in (pairs.x, pairs.y) for path in side.rows]
        above = Path(os.path.commonpath([path.parent for path in paths])) if paths else source
        names.refuse_held_out(above, paths)
        divided = _divided(pairs, options, notes)
    plan = _plan_files(divided, options, notes)
    plan.attributes["source_sha256"] = sha256_of(source)
    return plan


def plan_published(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans Facades or Maps in their archive's layout; Maps call their test split `val`."""
    holders = [path.parent for path in options.source_path.rglob("train") if path.is_dir()]
    source = min(holders, key=lambda path: (len(path.parts), path), default=options.source_path)
    folders = {"train": source / "train", **names.folders_by(source)}
    if "test" not in folders and "valid" in folders:
        folders["test"] = folders.pop("valid")
    size = options.image_size or DEFAULT_SIZE
    return plan_folders(folders, replace(options, image_size=size, side_by_side=True), notes)


def plan_folders(folders: Mapping[str, Path], options: PrepareOptions, notes: Notes) -> Plan:
    """Plans the pairs in the folders of splits; without any, divides `options.source`."""
    domains = domain_folders(folders, options, notes)
    pairs = {split: _match(sides, split, notes) for split, sides in domains.items()}
    divided = _divided(pairs[""], options, notes) if "" in pairs else pairs
    return _plan_files(divided, options, notes)


def _divided(pairs: Split, options: PrepareOptions, notes: Notes) -> dict[str, Split]:
    """Divides pairs at random by the fractions for valid and test; each split stays in order."""
    split, count = names.looks_like(options.source_path.stem), pairs.pair_count
    if split in names.HELD_OUT:
        notes.decided.append(f"{options.source} looks like {split}, and is divided at random")
    order = np.random.default_rng(options.seed).permutation(count)
    test = round(options.test_fraction * count)
    rest = test + round(options.valid_fraction * count)
    if rest >= count > 0:
        raise IiaeError(
            f"--valid-fraction and --test-fraction leave none of {count} pairs to train on",
            "lower them; they should sum to less than 1",
        )
    parts = {"train": order[rest:], "valid": order[test:rest], "test": order[:test]}
    return {name: pairs.take_pairs(np.sort(parts[name])) for name in SPLITS}


def domain_folders(
    folders: Mapping[str, Path], options: PrepareOptions, notes: Notes
) -> dict[str, dict[str, Path]]:
    """Finds the folders x and y of every split, "" where a source is to be divided.

    `folders` of splits, where it has any; splits may lie in x/ and y/, too, if both have train and
    what is held out. Of pictures side by side both folders are the same.
    """
    source = options.source_path
    splits = folders or {"": source}
    found = {split: names.folders_by(path, names.domain_of) for split, path in splits.items()}
    if options.side_by_side:
        for split, known in found.items():
            if len(known) == 2:
                message = f"{splits[split]} holds x and y in folders of their own"
                raise IiaeError(message, "leave out --side-by-side")
            found[split] = dict.fromkeys(DOMAINS, splits[split])
    elif len(found.get("", ())) == 2:
        x, y = (names.folders_by(path) for path in found[""].values())
        shared = [split for split in x if split in y]
        if "train" in shared and len(shared) > 1:
            notes.decided.append("the splits inside of x/ and y/ are read")
            found = {split: {"x": x[split], "y": y[split]} for split in shared}
    for split, known in found.items():
        if len(known) < 2:
            raise _no_domain(splits[split], known)
    if "" in found and (options.unseen_classes or "0").isdecimal():  # no list is named
        _refuse_lists(source)
    taken = {path: split for split, known in found.items() for path in known.values()}
    called = {
        path if names.split_of(path.name) else path.parent: split
        for path, split in taken.items()
        if split
    }
    for path, split in called.items():
        names.read_as(split, str(path.relative_to(source)), notes)
    names.note_rest(source, taken, notes)
    return found


def _no_domain(folder: Path, known: Collection[str]) -> IiaeError:
    lacking = next(domain for domain in DOMAINS if domain not in known)
    held = sorted((path for path in folder.iterdir() if path.is_dir()), key=natural_key)
    called = ", ".join(f"{path.name}/" for path in held)[:200] or "no folder"
    return IiaeError(
        f"{folder} has no folder {lacking}/; it holds {called}",
        "call the folders of the two domains x/ and y/, or name the folder that holds these, or "
        f"add --side-by-side if pictures hold x beside y; {names.PUT_SPLITS}",
    )


def _refuse_lists(source: Path) -> None:
    """Raises if a source to divide at random has a list that looks like one of splits."""
    for path in sorted(source.iterdir(), key=natural_key):
        split, is_list = names.looks_like(path.stem), path.suffix.lower() in names.LISTS
        if is_list and path.is_file() and (split in names.HELD_OUT or names.divides(path.stem)):
            raise names.looks_wrong(path, f"a list of {split or 'splits'}")


def _match(domains: Mapping[str, Path], split: str, notes: Notes) -> Split:
    """Returns a pair for every stem in both domains, which may be one folder; notes lone files."""
    stems = {folder: _by_stem(folder, split, notes) for folder in dict.fromkeys(domains.values())}
    x, y = (stems[domains[domain]] for domain in DOMAINS)
    lone = [(x | y)[stem] for stem in {*x} ^ {*y}]
    notes.skipped += [
        f"{path}: has no partner of the same name" for path in sorted(lone, key=natural_key)
    ]
    both = sorted({*x} & {*y}, key=lambda text: natural_key(Path(text)))
    ids = [str(x[stem].relative_to(domains["x"]).with_suffix("")) for stem in both]
    rows_x, rows_y = (np.array([side[stem] for stem in both], object) for side in (x, y))
    return Split(Side(rows_x, ids), Side(rows_y, ids))


def _by_stem(folder: Path, split: str, notes: Notes) -> dict[str, Path]:
    """Returns the pictures below a folder by stem in NFC; notes a second one of the same stem."""
    stems: dict[str, Path] = {}
    paths = names.pictures_in(folder)
    names.refuse_held_out(folder, paths, split)
    for path in paths:
        first = stems.setdefault(nfc(str(path.relative_to(folder).with_suffix(""))), path)
        if first != path:
            alike = first.with_suffix("") == path.with_suffix("")
            form = "" if alike else ", in another Unicode form"
            notes.skipped.append(f"{path}: {first} has the same stem{form}")
    return stems


# ---- from pairs of files to a plan


def _plan_files(pairs: Mapping[str, Split], options: PrepareOptions, notes: Notes) -> Plan:
    """Plans pairs of files per split. If one recurs, each is stored once and pairs are indices."""
    limited = {
        name: split.take_pairs(np.arange(split.pair_count)[: options.limit])
        for name, split in pairs.items()
        if split.pair_count
    }
    files = {
        (name, domain): dict.fromkeys(split.side(domain).rows)
        for name, split in limited.items()
        for domain in DOMAINS
    }
    _note_shared(files, notes)
    recur = any(len(paths) < limited[name].pair_count for (name, _), paths in files.items())
    plan = Plan({name: _stored(name, split, recur) for name, split in limited.items()})
    if options.wants_backbone:
        _plan_features(plan, options)
        return plan
    size = _stored_size(options, {path for paths in files.values() for path in paths})

    def read(path: Path, domain: Domain) -> NDArray[np.uint8]:
        half = (DOMAINS.index(domain), 2) if options.side_by_side else (0, 1)
        return decode(path, 3, size, half)

    plan.reader = file_reader(read, plans.BLOCK_FILES, options.workers)
    return plan


def _plan_features(plan: Plan, options: PrepareOptions) -> None:
    """Makes features of one network, as it is, of the plan's rows."""
    tuned = options.fine_tune_epochs or options.save_backbone is not None
    if tuned or options.side_by_side or options.image_size is not None:
        raise IiaeError(
            "features of pairs come from whole pictures without fine-tuning",
            "leave --fine-tune-epochs, --save-backbone, --side-by-side and --image-size out",
        )
    from iiae_cli.data.sources.extraction import choose_networks  # imports torch

    networks = choose_networks(options, None, 0)

    def finish(plan: Plan, work: Work) -> None:
        record = {**networks.record(plan, work), **networks.seen.to_json()}
        plan.attributes["backbone"] = json.dumps(record)

    networks.join(plan)
    plan.finish = finish


def _note_shared(files: Mapping[tuple[str, Domain], Iterable[Path]], notes: Notes) -> None:
    """Notes pictures of train that are in valid or test, too, also through links."""
    train, others = set[Path](), set[Path]()
    for (name, _), paths in files.items():
        (train if name == "train" else others).update(path.resolve() for path in paths)
    if shared := train & others:
        notes.decided.append(f"pictures in train that are in valid or test, too: {len(shared)}")


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


def _stored(name: str, split: Split, recur: bool) -> Split:
    """Returns aligned pairs with ids `SPLIT/NAME`, and every file once if files `recur`."""
    sides, columns = [], []
    for domain in DOMAINS:
        side = split.side(domain)
        order = {path: place for place, path in enumerate(dict.fromkeys(side.rows))}
        columns.append(np.array([order[path] for path in side.rows]))
        taken = side.take(np.unique(columns[-1], return_index=True)[1])
        ids = [f"{name}/{item}" for item in (taken if recur else split.x).ids]  # partners share it
        sides.append(replace(taken, ids=names.distinct(ids)))
    return Split(sides[0], sides[1], split.factors, np.stack(columns, 1) if recur else None)
