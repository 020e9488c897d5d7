"""Data sets by name, and the writing of their files: whole, a part, or parts merged."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from iiae_cli.common import console
from iiae_cli.common.environment import data_folder
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.common.files import missing, reading, refuse_existing, writing
from iiae_cli.data import blocks
from iiae_cli.data.blocks import Arrays, Part, PartFile
from iiae_cli.data.datafile import SPLITS, DataFile, Side, versions, write_data_file
from iiae_cli.data.hdf5 import SIGNATURE
from iiae_cli.data.names import is_hidden, split_of
from iiae_cli.data.sources.cdcb import colour_pair, outline_pair, plan_digits, plan_idx, sketch_pair
from iiae_cli.data.sources.classes import plan_classes, plan_sketchy
from iiae_cli.data.sources.moved import plan_moved_digits, plan_quadrants, plan_trifeature
from iiae_cli.data.sources.pairs import plan_pairs, plan_published
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Work
from iiae_cli.data.sources.published import ARCHIVES, KINDS, fetch, plan_cars, unpack
from iiae_cli.data.sources.table import is_table, pictures_of
from iiae_cli.model import DOMAINS, Domain

Builder: TypeAlias = Callable[[PrepareOptions], Plan]

BUILDERS: dict[str, Builder] = {
    "digits-cdcb": partial(plan_digits, colour_pair),
    "digits-edge": partial(plan_digits, outline_pair),
    "mnist-cdcb": partial(plan_idx, "MNIST", colour_pair),
    "fashion-cdcb": partial(plan_idx, "Fashion-MNIST", colour_pair),
    "fashion-edges": partial(plan_idx, "Fashion-MNIST", sketch_pair),
    "mnist-quadrants": plan_quadrants,
    "digits-moved": plan_moved_digits,
    "trifeature": plan_trifeature,
    "cars": plan_cars,
    "facades": plan_published,
    "maps": plan_published,
    "pairs": plan_pairs,
    "sketchy": plan_sketchy,
    "classes": plan_classes,
}
EMBEDDED = ("digits-cdcb", "digits-edge", "digits-moved", "trifeature")
DOWNLOADED = (*ARCHIVES, "mnist-cdcb", "mnist-quadrants", "fashion-cdcb", "fashion-edges")
CLASS_SETS = ("sketchy", "classes")  # stored as features
_FROM_SOURCE = (*ARCHIVES, *CLASS_SETS, "pairs")  # from a folder, a file or an archive
# Sets whose archives have no address that a program can fetch, and how people get them.
BY_HAND: dict[str, str] = {
    "sketchy": (
        "fetch the Sketchy Database (rendered_256x256.7z) as https://sketchy.eye.gatech.edu says, "
        "the extended photos by the links in github.com/AnjanDutta/sem-pcyc "
        "(download_datasets.sh), unpack both, then run: iiae prepare sketchy SOURCE"
    ),
}
_PLAIN = {".csv": "pairs", ".tsv": "pairs", ".npz": "classes"}  # files that are no archives
# Options that decide where and how fast data are made, not their values.
_MACHINE = ("download", "device", "workers", "save_backbone")
_DECIDING = [item.name for item in fields(PrepareOptions) if item.name not in _MACHINE]


# ---- data sets by name


def build(name: str, options: PrepareOptions) -> Plan:
    """Plans a data set; raises for an option that does not apply."""
    if name not in BUILDERS:
        own = f"; yours: iiae prepare pairs {shlex.quote(name)}" if Path(name).exists() else ""
        raise IiaeError(f"unknown data set '{name}'", f"data sets: {', '.join(BUILDERS)}{own}")
    pictures = [known for known in BUILDERS if known not in CLASS_SETS]
    for option, is_given, sets in (
        ("--split", options.split is not None, CLASS_SETS),
        ("--unseen-classes", options.unseen_classes is not None, CLASS_SETS),
        ("--backbone…", options.wants_backbone, [*CLASS_SETS, "pairs"]),
        ("--image-size", options.image_size is not None, pictures),
        ("--side-by-side", options.side_by_side, ["pairs"]),
        ("--same-instance", options.same_instance, ["mnist-quadrants"]),
    ):
        if is_given and name not in sets:
            hint = f"leave it out; it is for {', '.join(sets)}"
            raise IiaeError(f"{option} does not apply to {name}", hint)
    if name not in _FROM_SOURCE:
        return BUILDERS[name](options)
    source, attributes = source_of(name, options)
    plan = BUILDERS[name](replace(options, source=source))
    return replace(plan, attributes={**plan.attributes, **attributes})


def how_to_prepare(name: str, path: Path) -> str:
    """Returns the command that makes a set's data file at `path`, and where to get its source."""
    if name in BY_HAND:
        return f"{BY_HAND[name]} -o {path}"
    if name not in BUILDERS:
        return f"iiae prepare pairs SOURCE -o {path}, or iiae prepare classes SOURCE -o {path}"
    source = "" if name in EMBEDDED else " --download" if name in DOWNLOADED else " SOURCE"
    return f"iiae prepare {name}{source} -o {path}   (see iiae prepare --help)"


def source_of(name: str, options: PrepareOptions) -> tuple[Path, dict[str, str]]:
    """Returns a set's source (folder, table, `.npz`), downloaded or unpacked, and attributes."""
    source, archive = options.source, ARCHIVES.get(name)
    downloads = data_folder() / "downloads"
    origin = str(source and source.absolute())
    if source is None and archive is not None and options.download:
        source = downloads / archive.file
        origin = fetch(archive, source)
    if source is None:
        hint = BY_HAND.get(name, f"iiae prepare {name} SOURCE")
        if archive is not None:
            hint = f"iiae prepare {name} --download, or with what you have: {hint}"
        raise IiaeError(f"the source of {name} was not named", hint)
    if not source.exists():
        raise missing(source, KINDS)
    if source.is_dir():
        inside = [path for path in source.iterdir() if path.is_dir() or path.suffix == ".npz"]
        is_one = name == "classes" and len(inside) == 1 and inside[0].is_file()
        return inside[0] if is_one else source, {"source": origin}
    suffix = source.suffix.lower()
    if _PLAIN.get(suffix) == name:
        return source, {"source": origin}
    if suffix in (*_PLAIN, ".xlsx", ".xls", ".ods"):
        own = shlex.join(["iiae", "prepare", _PLAIN.get(suffix, "pairs"), str(source)])
        hint = f"run: {own}" if suffix in _PLAIN else "save it as CSV in UTF-8, columns x,y"
        raise IiaeError(f"{source} is not a source that {name} reads", hint)
    target = downloads / source.name.partition(".")[0]
    sha256 = unpack(source, target, wanted=archive.wanted if archive else "")
    inside = [target]
    while len(inside) == 1 and inside[0].is_dir() and split_of(inside[0].name) is None:
        target = inside[0]  # an archive's one folder
        inside = [path for path in target.iterdir() if not is_hidden(path)]
    return target, {"source": origin, "source_sha256": sha256}


# ---- their files


def prepare_file(
    name: str,
    path: Path,
    options: PrepareOptions,
    *,
    part: Part | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stop: Stop = NEVER,
) -> None:
    """Writes the data file of a set, or of a `part` of its blocks.

    `resume` continues interrupted work, and keeps a finished file of the same options; `overwrite`
    replaces either. `stop`, checked before every block, keeps what is finished.
    """
    settings = settings_of(name, options)
    if _is_finished(path, part, _digest_of(settings), resume, overwrite):
        return
    plan = build(name, options)
    if part is not None and plan.whole is not None:
        raise plan.whole
    if part is None and not plan.readings:  # nothing to keep; several runs may make it at once
        _write(path, plan, [], settings, Work(path.parent, path))
        return
    job, total = _job(settings, plan), len(plan.blocks)
    with blocks.block_store(path, job, resume=resume, overwrite=overwrite) as store:
        numbers = (part or Part(0, 1)).of(total)
        plan.make(store, numbers, stop)
        made = map(store.read, numbers)
        if part is None:
            _write(path, plan, made, settings, Work(store.folder, path, stop))
        else:
            rows, skipped = plan.summary(made, numbers)
            about = {"command": _command(), "rows": rows, "skipped": skipped}
            about["notes"] = plan.attributes.get("notes", "")
            about["settings_sha256"] = _digest_of(settings)
            blocks.write_part(path, store, part, total, about)


def merge(
    parts: Sequence[PartFile],
    path: Path,
    *,
    download: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes the data file from all parts of a preparation, in order.

    The source is planned once more, so it must not have changed; no picture is read again.
    `download` permits fetching the backbone's weights.
    """
    first = parts[0]
    if _is_finished(path, None, str(first.about.get("settings_sha256")), resume, overwrite):
        return
    with reading(first.path, "make this shard again"):
        name, command = str(first.job["data set"]), f"{first.about['command']}; {_command()}"
        decided = {option: first.job[option] for option in _DECIDING}
        source = None if decided["source"] is None else Path(decided["source"])
        options = PrepareOptions(**{**decided, "source": source}, download=download)
    plan, settings = build(name, options), settings_of(name, options)
    differing = blocks.differences(json.loads(json.dumps(_job(settings, plan))), first.job)
    if differing:
        raise IiaeError(
            f"{first.path} was made with another {', '.join(differing)} than there is now",
            "merge in the folder where the shards were made, by the same version, "
            "the source being as it was; or make all shards again",
        )
    with blocks.block_store(path, {"merge": True}, resume=True) as store:
        made = chain.from_iterable(part.blocks() for part in parts)
        _write(path, plan, made, settings, Work(store.folder, path), command)


def _is_finished(path: Path, part: Part | None, digest: str, resume: bool, overwrite: bool) -> bool:
    """Returns whether the output is complete, made by these settings; raises for others."""
    if overwrite or not resume or not path.exists():
        refuse_existing(path, overwrite, SIGNATURE)
        return False
    if part is None:
        made_by = DataFile(path).info.attributes.get("settings_sha256")
    else:
        file = blocks.part_of(path)
        made_by = file.about.get("settings_sha256") if file.part == part else None
    if made_by != digest:
        raise IiaeError(
            f"{path} already exists, made by other options or from another source",
            "choose another output, or replace it with --overwrite",
        )
    console.say(f"{path} is already complete")
    blocks.discard(path)
    return True


def _write(
    path: Path,
    plan: Plan,
    made: Iterable[Arrays],
    settings: dict[str, Any],
    work: Work,
    command: str | None = None,
) -> None:
    prepared = plan.prepared(made, work)
    attributes = {
        **prepared.attributes,
        "command": command or _command(),
        "settings_sha256": _digest_of(settings),
        "seed": str(settings["seed"]),
        "versions": json.dumps(versions(), sort_keys=True),
        "skipped": str(len(prepared.skipped)),
    }
    name, lost = str(settings["data set"]), prepared.skipped
    write_data_file(path, name, prepared.splits, attributes, skipped=lost, folder=work.folder)


def _command() -> str:
    """Returns the command line, as it is without interruptions."""
    return shlex.join(word for word in sys.argv if word not in ("--resume", "--overwrite"))


# ---- what decides the values


def settings_of(name: str, options: PrepareOptions) -> dict[str, Any]:
    """Returns everything that decides a data file's arrays, as JSON."""
    source = options.source and options.source.absolute()
    named = (source, options.unseen_classes, options.backbone_weights)
    return {
        "data set": name,
        **{option: getattr(options, option) for option in _DECIDING},
        "source": source and str(source),
        "content of the source": [path and _state_of(Path(path)) for path in named],
        "version": versions(),
    }


def _digest_of(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _job(settings: dict[str, Any], plan: Plan) -> dict[str, Any]:
    return {**settings, "readings": [item.identity() for item in plan.readings]}


def _state_of(source: Path) -> str:
    """Returns a digest over names, sizes and times of change of the files that a path names."""
    files: Iterable[Path] = [source]
    if source.is_dir():
        files = sorted(_files_below(source))
    elif is_table(source):
        files = [source, *pictures_of(source)]
    digest = hashlib.sha256()
    for path in files:
        try:
            status = path.stat()
            line = f"{path}\0{status.st_size} {status.st_mtime_ns}\0"
        except (OSError, ValueError):  # the latter of a NUL in a table's path
            line = f"{path}\0missing\0"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _files_below(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder, through links to folders, each walked once."""
    known = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        if place in known:  # a loop of links
            folders.clear()
            continue
        known.add(place)
        yield from (Path(root, name) for name in names)


# ---- pictures


def save_pictures(path: Path, folder: Path, stop: Stop = NEVER) -> None:
    """Writes a data file's pictures as `FOLDER/SPLIT/x|y/NAME.png`, for `iiae prepare pairs`.

    If pictures recur in many pairs, `FOLDER/pairs.csv` names the pairs.
    """
    file = DataFile(path)
    rows: list[list[str]] = []
    for name in SPLITS:
        split = file.split(name)
        x, y = (_save_side(split.side(domain), domain, folder, stop) for domain in DOMAINS)
        for row_x, row_y in [] if split.pairs is None else split.pairs.tolist():
            label = [] if split.x.labels is None else [split.x.labels[row_x]]
            rows.append([x[row_x], y[row_y], name, *label])
    if rows:
        with writing(folder / "pairs.csv") as path, path.open("w", encoding="utf-8") as table:
            csv.writer(table).writerows([["x", "y", "split", "label"][: len(rows[0])], *rows])


def _save_side(side: Side, domain: Domain, folder: Path, stop: Stop) -> list[str]:
    parts = [identity.partition("/") for identity in side.ids]
    paths = [f"{head}/{domain}/{rest}.png" for head, _, rest in parts]
    for path, picture in zip(paths, side.rows, strict=True):
        stop.check(f"some pictures are in {folder}; continue with the same command and --resume")
        with writing(folder / path, sync=False) as temporary:
            Image.fromarray(picture.squeeze()).save(temporary, format="PNG")
    return paths
