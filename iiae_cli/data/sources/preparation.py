"""Data sets by name, and the writing of their files: whole, a part, or parts merged."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from iiae_cli.common import console
from iiae_cli.common.environment import data_folder
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.common.files import missing, reading, refuse_existing, writing
from iiae_cli.data import blocks
from iiae_cli.data.blocks import Arrays, Part, PartFile
from iiae_cli.data.datafile import SPLITS, DataFile
from iiae_cli.data.hdf5 import SIGNATURE
from iiae_cli.data.names import Notes, is_hidden, split_of
from iiae_cli.data.sources import cdcb
from iiae_cli.data.sources.classes import plan_classes, plan_sketchy
from iiae_cli.data.sources.moved import plan_moved_digits, plan_quadrants, plan_trifeature
from iiae_cli.data.sources.pairs import plan_pairs, plan_published
from iiae_cli.data.sources.plan import (
    DECIDING,
    Plan,
    PrepareOptions,
    Work,
    command_line,
    digest_of,
    naming,
)
from iiae_cli.data.sources.published import ARCHIVES, KINDS, fetch, plan_cars, unpack
from iiae_cli.model import DOMAINS

Builder: TypeAlias = Callable[[PrepareOptions, Notes], Plan]

BUILDERS: dict[str, Builder] = {
    "digits-cdcb": partial(cdcb.plan_digits, cdcb.colour_pair),
    "digits-edge": partial(cdcb.plan_digits, cdcb.outline_pair),
    "mnist-cdcb": partial(cdcb.plan_idx, cdcb.colour_pair),
    "fashion-cdcb": partial(cdcb.plan_idx, cdcb.colour_pair),
    "fashion-edges": partial(cdcb.plan_idx, cdcb.sketch_pair),
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
IDX = {
    **dict.fromkeys(("mnist-cdcb", "mnist-quadrants"), "MNIST"),
    **dict.fromkeys(("fashion-cdcb", "fashion-edges"), "FashionMNIST"),
}
DOWNLOADED = (*ARCHIVES, *IDX)
CLASS_SETS = ("sketchy", "classes")  # stored as features
# Its archives have no address that a program can fetch.
SKETCHY = (
    "fetch the Sketchy Database (rendered_256x256.7z) as https://sketchy.eye.gatech.edu says, "
    "the extended photos by the links in github.com/AnjanDutta/sem-pcyc "
    "(download_datasets.sh), unpack both, then run: "
)
_FILES = {"pairs": (".csv", ".tsv"), "classes": (".npz",)}  # read as they are
_NO_ARCHIVES = (".npz", ".xlsx", ".ods")  # though they are in zip's format


# ---- data sets by name


def build(name: str, options: PrepareOptions) -> Plan:
    """Plans a data set; raises for an option that does not apply."""
    if name not in BUILDERS:
        own = f"; yours: iiae prepare pairs {shlex.quote(name)}" if Path(name).exists() else ""
        raise IiaeError(f"unknown data set '{name}'", f"data sets: {', '.join(BUILDERS)}{own}")
    pictures = [known for known in BUILDERS if known not in CLASS_SETS]
    for option, is_given, sets in (
        ("--split", options.split is not None, ["sketchy"]),
        ("--unseen-classes", options.unseen_classes is not None, CLASS_SETS),
        ("--backbone…", options.wants_backbone, [*CLASS_SETS, "pairs"]),
        ("--image-size", options.image_size is not None, pictures),
        ("--side-by-side", options.side_by_side, ["pairs"]),
        ("--same-instance", options.same_instance, ["mnist-quadrants"]),
    ):
        if is_given and name not in sets:
            hint = f"leave it out; it is for {', '.join(sets)}"
            raise IiaeError(f"{option} does not apply to {name}", hint)
    attributes, notes = dict[str, str](), Notes()
    if name not in EMBEDDED:
        source, attributes = source_of(name, options)
        options = replace(options, source=source)
    with naming(notes.skipped):
        plan = BUILDERS[name](options, notes)
    notes.decided += [
        f"the split {split} is empty"
        for split in ("train", "test")
        if split not in plan.splits or not plan.splits[split].pair_count
    ]
    plan.attributes = {**plan.attributes, **attributes, **notes.attributes()}
    plan.skipped[:0] = notes.skipped
    return plan


def how_to_prepare(name: str, path: Path | None = None) -> str:
    """Returns the commands that make a set's data file, and where to get its source."""
    output = f" -o {path}" if path else ""
    if name not in BUILDERS:
        return f"iiae prepare pairs SOURCE{output}, or iiae prepare classes SOURCE{output}"
    command = f"iiae prepare {name}"
    if name in EMBEDDED:
        return f"{command}{output}"
    if name in DOWNLOADED:
        return f"{command} --download{output}, or with what you have: {command} SOURCE{output}"
    return f"{SKETCHY if name == 'sketchy' else ''}{command} SOURCE{output}"


def source_of(name: str, options: PrepareOptions) -> tuple[Path, dict[str, str]]:
    """Returns a set's source (folder, table, `.npz`), downloaded or unpacked, and attributes."""
    source, origin = options.source, IDX.get(name)
    archive, downloads = ARCHIVES.get(name), data_folder() / "downloads"
    if source is None and archive is not None and options.download:
        source = downloads / archive.file
        origin = fetch(archive, source)
    if source is None and name in IDX:
        source = cdcb.idx_folder(IDX[name], options.download)
    if source is None:
        raise IiaeError(f"the source of {name} was not named", how_to_prepare(name))
    attributes = {"source": origin or str(source.absolute())}
    if not source.exists():
        raise missing(source, KINDS)
    if name == "classes" and source.is_dir():  # a folder may hold features in one file
        inside = [path for path in source.iterdir() if path.is_dir() or path.suffix == ".npz"]
        source = inside[0] if len(inside) == 1 and inside[0].is_file() else source
    suffix = source.suffix.lower()
    if source.is_file() and suffix not in _FILES.get(name, ()):
        if suffix in _NO_ARCHIVES:
            raise IiaeError(f"{source} is not a source that {name} reads", KINDS)
        wanted = archive.wanted if archive else ""
        source, attributes["source_sha256"] = unpack(source, downloads, wanted=wanted)
        inside = [source]
        while len(inside) == 1 and inside[0].is_dir() and split_of(inside[0].name) is None:
            source = inside[0]  # an archive's one folder
            inside = [path for path in source.iterdir() if not is_hidden(path)]
    return source, attributes


# ---- their files


def prepare_embedded(name: str, path: Path) -> None:
    """Writes an embedded set, as `iiae prepare NAME` does, at once: others may be writing it."""
    options = PrepareOptions()
    plan = BUILDERS[name](options, Notes())
    plan.write(path, plan.job(name, options))


def prepare_file(
    name: str,
    path: Path,
    options: PrepareOptions,
    *,
    part: Part | None = None,
    parts: Sequence[PartFile] = (),
    resume: bool = False,
    overwrite: bool = False,
    stop: Stop = NEVER,
) -> None:
    """Writes the data file of a set, or of a `part` of its blocks, or from all `parts` in order.

    For `parts` the source is planned once more, so it must not have changed; nothing is read again.
    `resume` continues interrupted work, and keeps a finished file of the same options; `overwrite`
    replaces either. `stop`, checked before every block, keeps what is finished.
    """
    if overwrite or not resume:
        refuse_existing(path, overwrite, SIGNATURE)
    plan = build(name, options)
    job = plan.job(name, options)
    if resume and not overwrite and path.exists():
        _refuse_other(path, part, job)
        return
    if parts and (differing := blocks.differences(job, parts[0].job)):
        raise IiaeError(
            f"{parts[0].path} was made with another {', '.join(differing)} than there is now",
            "merge in the folder where the shards were made, by the same version, "
            "the source being as it was; or make all shards again",
        )
    if part is not None and plan.whole is not None:
        raise plan.whole
    with blocks.block_store(path, job, resume=resume or bool(parts), overwrite=overwrite) as store:
        work, total = Work(store.folder, path, stop), len(plan.blocks)
        numbers = (part or Part(0, 1)).of(total)
        made: Iterator[Arrays] = chain.from_iterable(file.blocks() for file in parts)
        if not parts:
            plan.make(store, numbers, work)
            made = map(store.read, numbers)
        if part is None:
            plan.read(made, work)
            commands = [str(file.about["command"]) for file in parts[:1]]
            plan.write(path, job, commands=commands, folder=store.folder)
        else:
            rows, skipped = plan.summary(made, numbers)
            about = {"command": command_line(), "rows": rows, "skipped": skipped}
            about["notes"] = plan.attributes.get("notes", "")
            blocks.write_part(path, store, part, total, about)


def options_of(shard: PartFile, download: bool) -> tuple[str, PrepareOptions]:
    """Returns the set's name and the options by which a shard was made.

    `download` permits fetching the backbone's weights.
    """
    with reading(shard.path, "make this shard again"):
        decided = {option: shard.job[option] for option in DECIDING}
        source = None if decided["source"] is None else Path(decided["source"])
        options = PrepareOptions(**{**decided, "source": source}, download=download)
        return str(shard.job["data set"]), options


def _refuse_other(path: Path, part: Part | None, job: dict[str, Any]) -> None:
    """Raises unless the existing output is that of this job."""
    if part is None:
        same = DataFile(path).info.attributes.get("settings_sha256") == digest_of(job)
    else:
        file = blocks.part_of(path)
        same = file.part == part and file.job == job
    if not same:
        raise IiaeError(
            f"{path} already exists, made by other options or from another source",
            "choose another output, or replace it with --overwrite",
        )
    console.say(f"{path} is already complete")
    blocks.discard(path)


# ---- pictures


def save_pictures(path: Path, folder: Path, stop: Stop = NEVER) -> None:
    """Writes a data file's pictures as `FOLDER/SPLIT/x|y/NAME.png`, for `iiae prepare pairs`.

    Names are ids, which partners share unless pictures recur in many pairs.
    """
    file = DataFile(path)
    for name, domain in product(SPLITS, DOMAINS):
        side = file.split(name).side(domain)
        for identity, picture in zip(side.ids, side.rows, strict=True):
            stop.check(
                f"some pictures are in {folder}; continue with the same command and --resume"
            )
            head, _, rest = identity.partition("/")
            with writing(folder / head / domain / f"{rest}.png", sync=False) as temporary:
                Image.fromarray(picture.squeeze()).save(temporary, format="PNG")
