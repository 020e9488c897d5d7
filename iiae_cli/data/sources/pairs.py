"""Pairs of pictures: in folders, side by side in one picture, or named by a table.

Layouts: docs/data.md. Splits have the names that people use (`names.py`), in any capitals. Of two
files of one stem the first in natural order is taken, and the other noted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import sha256_of
from iiae_cli.data import names
from iiae_cli.data.datafile import SPLITS, Side, Split, nfc
from iiae_cli.data.names import Notes, natural_key, split_folders
from iiae_cli.data.pictures import PictureError, decode, picture_size_of
from iiae_cli.data.sources import plan as plans
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Work, file_reader
from iiae_cli.data.sources.table import is_table, read_table
from iiae_cli.model import DOMAINS, Domain

DEFAULT_SIZE = 256  # if pictures differ in size; also for Maps, whose halves are 600 a side


def plan_pairs(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans the user's own pairs, `options.source`."""
    source = options.source
    assert source is not None
    if not is_table(source):
        return plan_folders(split_folders(source), options, notes)
    pairs, named = read_table(source, notes)
    if any(named):
        rows = {name: np.flatnonzero(np.array(named) == name) for name in SPLITS}
        divided = {name: pairs.take_pairs(rows[name]) for name in SPLITS}
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
    assert options.source is not None
    folders = {"train": options.source / "train", **split_folders(options.source)}
    if "test" not in folders and "valid" in folders:
        folders["test"] = folders.pop("valid")
    size = options.image_size or DEFAULT_SIZE
    return plan_folders(folders, replace(options, image_size=size, side_by_side=True), notes)


def plan_folders(folders: Mapping[str, Path], options: PrepareOptions, notes: Notes) -> Plan:
    """Plans the pairs in the folders of splits; without any, divides `options.source`."""
    source = options.source
    assert source is not None
    if options.side_by_side:
        places = folders or {"": source}
        names.note_layout(source, {split: [folder] for split, folder in places.items()}, notes)
        pairs = {split: _side_by_side(folder, split, notes) for split, folder in places.items()}
    else:
        domains = names.domain_folders(source, folders, notes)
        pairs = {split: _match(sides, split, notes) for split, sides in domains.items()}
    divided = _divided(pairs[""], options, notes) if "" in pairs else pairs
    return _plan_files(divided, options, notes)


def _divided(pairs: Split, options: PrepareOptions, notes: Notes) -> dict[str, Split]:
    """Divides pairs at random by the fractions for valid and test; each split stays in order."""
    assert options.source is not None
    split, count = names.looks_like(options.source.stem), pairs.pair_count
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


def _match(domains: Mapping[str, Path], split: str, notes: Notes) -> Split:
    """Returns a pair for every stem in both domains; notes files without a partner."""
    x, y = (_by_stem(domains[domain], split, notes) for domain in DOMAINS)
    lone = [
        path for side, other in ((x, y), (y, x)) for stem, path in side.items() if stem not in other
    ]
    notes.skipped += [
        f"{path}: has no partner of the same name" for path in sorted(lone, key=natural_key)
    ]
    stems = sorted({*x} & {*y}, key=lambda text: natural_key(Path(text)))
    return _pairs_of(domains["x"], [x[stem] for stem in stems], [y[stem] for stem in stems])


def _side_by_side(folder: Path, split: str, notes: Notes) -> Split:
    if len(names.folders_by(folder, names.domain_of)) == 2:
        raise IiaeError(
            f"{folder} holds x and y in folders of their own", "leave out --side-by-side"
        )
    paths = [*_by_stem(folder, split, notes).values()]
    return _pairs_of(folder, paths, paths)


def _pairs_of(folder: Path, x: Sequence[Path], y: Sequence[Path]) -> Split:
    """Returns pairs of files, named by those of x below a folder."""
    ids = [str(path.relative_to(folder).with_suffix("")) for path in x]
    return Split(Side(np.array(x, object), ids), Side(np.array(y, object), ids))


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

    plan.reader, plan.finish = networks.reader(), finish


def _note_shared(files: Mapping[tuple[str, Domain], Iterable[Path]], notes: Notes) -> None:
    """Notes pictures of train that are in valid or test, too, also through links."""
    train, others = set[tuple[int, int]](), set[tuple[int, int]]()
    for (name, _), paths in files.items():
        for path in paths:
            with suppress(OSError):  # named when it is decoded
                status = path.stat()
                (train if name == "train" else others).add((status.st_dev, status.st_ino))
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
