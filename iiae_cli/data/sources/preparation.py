"""Preparing a data set: the whole of it, a part in a process of its own, or the parts merged."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.blocks import Arrays, Part, PartFile, block_store, differences, write_part
from iiae_cli.data.datafile import DataFile, versions, write_data_file
from iiae_cli.data.sources.manifest import is_manifest, pictures_of
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Work
from iiae_cli.data.sources.registry import EMBEDDED, build

OUTPUT = "{output}"  # stands for the output in the words of a part's command
_MACHINE = ("download", "device", "workers", "save_backbone")  # decide no value


def prepare_file(
    name: str,
    path: Path,
    options: PrepareOptions,
    *,
    command: str,
    resume: bool = False,
    overwrite: bool = False,
    stop: Stop = NEVER,
) -> list[str]:
    """Write a set's data file; returns a line for every input that was left out.

    Args:
        name: of the set.
        path: the file; an existing one is replaced.
        options: of the builder.
        command: for the file's attributes.
        resume: continue what an interrupted call left.
        overwrite: drop what an interrupted call left.
        stop: asked before every block.

    Raises:
        IiaeError: as `build`; interrupted work is in the way; or the file cannot be written.
        Interrupted: a signal came; what is finished is kept.
    """
    plan, settings = build(name, options), settings_of(name, options)
    about = {"command": command, "settings_sha256": digest_of(settings)}
    if name in EMBEDDED:  # made in a second, and by several runs at once where they train on it
        return _write(name, path, plan, [], options, about, None)
    with block_store(path, _job(settings, plan), resume=resume, overwrite=overwrite) as store:
        plan.make(store, range(plan.total), stop)
        blocks = map(store.read, range(plan.total))
        return _write(name, path, plan, blocks, options, about, Work(store.folder, stop))


def prepare_part(
    name: str,
    path: Path,
    options: PrepareOptions,
    part: Part,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
    stop: Stop = NEVER,
) -> None:
    """Make one part of a set's blocks, and write it to a file of its own.

    Args, as of `prepare_file`, and:
        part: which one.
        command: its words, `OUTPUT` in the place of the output: the data file will tell them.

    Raises:
        IiaeError: as `prepare_file`; or work that looks at all rows, such as fine-tuning.
        Interrupted: a signal came; what is finished is kept.
    """
    plan, settings = build(name, options), settings_of(name, options)
    if plan.whole is not None:
        raise plan.whole
    with block_store(path, _job(settings, plan), resume=resume, overwrite=overwrite) as store:
        numbers = part.of(plan.total)
        plan.make(store, numbers, stop)
        rows, skipped = plan.summary(map(store.read, numbers), numbers)
        about = {"options": _told(options), "command": command, "rows": rows, "skipped": skipped}
        write_part(path, store, part, plan.total, about)


def merge(
    parts: Sequence[PartFile], output: Path, *, download: bool = False, stop: Stop = NEVER
) -> None:
    """Write the data file of all parts of a preparation.

    The source is planned once more, so it has to be as it was; no picture is read again.

    Args:
        parts: in order.
        output: an existing file is replaced.
        download: whether the backbone's weights may be fetched.
        stop: asked where work takes long.

    Raises:
        IiaeError: the source is not what it was, a part is damaged, or the file cannot be written.
    """
    first = parts[0]
    try:
        told = dict(first.about["options"])
        source = None if told["source"] is None else Path(told["source"])
        kept = {**told, "source": source, "fractions": tuple(told["fractions"])}
        options = PrepareOptions(**kept, download=download)
        words = [str(word).replace(OUTPUT, str(output)) for word in first.about["command"]]
        name = str(first.job["data set"])
    except (KeyError, TypeError, ValueError) as error:
        raise IiaeError(f"{first.path} is damaged", "make this shard again") from error
    plan = build(name, options)
    now = json.loads(json.dumps(_job(settings_of(name, options), plan)))
    differing = differences(now, first.job)
    if differing:
        raise IiaeError(
            f"{first.path} was made with another {', '.join(differing)} than there is now",
            "merge in the folder where the shards were made, by the same version, "
            "the source being as it was; or make all shards again",
        )
    about = {"command": shlex.join(words), "settings_sha256": settings_sha256(first)}
    with block_store(output, {"merge": True}, resume=True) as store:
        blocks = chain.from_iterable(part.blocks() for part in parts)
        _write(name, output, plan, blocks, options, about, Work(store.folder, stop))


def settings_sha256(part: PartFile) -> str:
    """What the attribute of this name will be in the data file of a part."""
    return digest_of({key: value for key, value in part.job.items() if key != "readings"})


def is_prepared(name: str, path: Path, options: PrepareOptions) -> bool:
    """Whether a data file was made from the same source by the same options.

    Raises:
        IiaeError: the file is damaged or no data file.
    """
    digest = digest_of(settings_of(name, options))
    return DataFile(path).info.attributes.get("settings_sha256") == digest


def is_part_of(file: PartFile, name: str, options: PrepareOptions, part: Part) -> bool:
    """Whether a part's file is this part of a data set by these options."""
    settings = settings_of(name, options)
    return file.part == part and all(file.job.get(k) == v for k, v in settings.items())


def _write(
    name: str,
    path: Path,
    plan: Plan,
    blocks: Iterable[Arrays],
    options: PrepareOptions,
    about: dict[str, str],
    work: Work | None,
) -> list[str]:
    folder = None if work is None else work.folder
    rows = plan.read(blocks, path.parent if folder is None else folder)
    prepared = plan.assemble(rows, work or Work(path.parent))
    attributes = {
        **prepared.attributes,
        **about,
        "seed": str(options.seed),
        "versions": json.dumps(versions(), sort_keys=True),
        "skipped": str(len(prepared.skipped)),
    }
    write_data_file(
        path, name, prepared.splits, attributes, skipped=prepared.skipped, folder=folder
    )
    return prepared.skipped


def settings_of(name: str, options: PrepareOptions) -> dict[str, Any]:
    """Everything that decides a data file's arrays, as JSON."""
    source = options.source
    named = replace(
        options,
        source=None if source is None else source.absolute(),
        unseen_classes=_with_state(options.unseen_classes),
        backbone_weights=_with_state(options.backbone_weights),
    )
    return {
        "data set": name,
        "content of the source": None if source is None else state_of(source),
        **{key.replace("_", " "): value for key, value in _told(named).items()},
        "version": versions(),
    }


def digest_of(settings: dict[str, Any]) -> str:
    """SHA-256 in hex over settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _told(options: PrepareOptions) -> dict[str, Any]:
    """Options that decide values, as JSON."""
    told = {key: value for key, value in asdict(options).items() if key not in _MACHINE}
    source = None if options.source is None else str(options.source)
    return {**told, "source": source, "fractions": list(options.fractions)}


def _job(settings: dict[str, Any], plan: Plan) -> dict[str, Any]:
    return {**settings, "readings": [reading.identity() for reading in plan.readings]}


def state_of(source: Path) -> str:
    """A digest over names, sizes and times of change of a source's files."""
    files: Iterable[Path] = [source]
    if source.is_dir():
        files = (
            Path(root, file) for root, _, names in sorted(os.walk(source)) for file in sorted(names)
        )
    elif is_manifest(source):
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


def _with_state(given: str | None) -> str | None:
    """A number or a name as it is; of a path also what it holds."""
    if given is None or not Path(given).exists():
        return given
    return f"{given} {state_of(Path(given))}"
