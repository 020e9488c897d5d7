"""What one part of a preparation has made (HDF5, schema `iiae.data-part/1`), until all parts are merged.

It is no data set: which rows a data set holds, and in which order, may depend on what other parts could read. Per
reading of the preparation, such as `train/x` (its group is `train-x`):

    /READING/places             (M,) which of the reading's items could be read
    /READING/rows0, rows1, …    (M, …) what came of them, one array for each kind of row
    /READING/failed, reasons    (K,) the other items, and why

and /skipped, a line for every item of this part that could not be read.

Attributes: schema, name (of the data set), shard, settings (everything that the rows depend on), options (of the
command), command (its words), readings (count and identity of each reading's items, and which blocks of them are
here), versions; all but name and versions are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.data.blocks import BlockLog
from iiae_cli.data.datafile import PART_SCHEMA, versions_json
from iiae_cli.data.hdf5 import (
    check_schema,
    damage,
    dataset,
    member,
    new_hdf5,
    open_hdf5,
    read_array,
    read_texts,
    text_attribute,
    write_texts,
)
from iiae_cli.data.parts import Part
from iiae_cli.data.sources.work import Reading, log_of

REMEDY = "name the files that 'iiae prepare … --shard I/N' wrote; make a damaged one again with --overwrite"


@dataclass(frozen=True)
class Job:
    """What all parts of one preparation agree in.

    Attributes:
        name: of the data set.
        settings: everything that the rows depend on, as JSON values.
        options: of the command, as JSON values.
        command: its words, `{output}` in the place of the output.
    """

    name: str
    settings: dict[str, Any]
    options: dict[str, Any]
    command: list[str]


@dataclass(frozen=True)
class Items:
    """What a reading is of, as parts say it; see `Reading`."""

    count: int
    size: int
    maker: str
    identity: str

    @classmethod
    def of(cls, reading: Reading) -> Items:
        """Those of a reading."""
        return cls(reading.count, reading.size, reading.maker, reading.identity())


@dataclass(frozen=True)
class Share:
    """A part's share of one reading, its rows unread.

    Attributes:
        items: of the whole reading.
        blocks: which of its blocks.
        places: (M,) of the items that could be read, ascending.
        failed: (K,) of the others.
        reasons: (K,) why.
        kinds: (shape of a row, dtype) for each kind of row; none where M is 0.
        machine: that computed them.
    """

    items: Items
    blocks: range
    places: NDArray[np.int64]
    failed: NDArray[np.int64]
    reasons: list[str]
    kinds: list[tuple[tuple[int, ...], np.dtype[Any]]]
    machine: str


@dataclass(frozen=True)
class PartFile:
    """A part's file, its rows unread.

    Attributes:
        path: the file.
        part: which part it is.
        job: of which preparation.
        shares: by the names of readings.
        skipped: a line for every item that could not be read.
    """

    path: Path
    part: Part
    job: Job
    shares: dict[str, Share]
    skipped: list[str]


def write_part(
    path: Path, part: Part, job: Job, shares: Sequence[tuple[Reading, range]], folder: Path
) -> None:
    """Write a part's file, atomically, from the logs of its blocks; one block is in memory at a time.

    Args:
        path: an existing file is replaced.
        part: which one.
        job: of which preparation.
        shares: every reading, and which of its blocks are this part's.
        folder: of the logs, and for the temporary file.

    Raises:
        IiaeError: the disk is full, or a log is damaged.
    """
    readings = [
        {
            "name": one.name,
            **asdict(Items.of(one)),
            "first": blocks.start,
            "stop": blocks.stop,
            "machine": one.machine,
        }
        for one, blocks in shares
    ]
    with writing(path, folder=folder) as temporary, new_hdf5(temporary) as file:
        told = {**{key: json.dumps(value) for key, value in asdict(job).items()}, "name": job.name}
        file.attrs.update({"schema": PART_SCHEMA, "shard": json.dumps(asdict(part)), **told})
        file.attrs.update({"readings": json.dumps(readings), "versions": versions_json()})
        skipped: list[str] = []
        for reading, blocks in shares:
            group = file.create_group(reading.log_name)
            if blocks:
                with BlockLog(log_of(folder, reading)) as log:
                    skipped += _write_share(group, log, reading)
        write_texts(file, "skipped", skipped)


def _write_share(group: h5py.Group, log: BlockLog, reading: Reading) -> list[str]:
    """Write what a log holds; returns a line for every item that could not be read."""
    places: list[NDArray[np.int64]] = []
    failed: list[NDArray[np.int64]] = []
    reasons: list[str] = []
    kinds: dict[str, NDArray[Any]] = {}
    for block in log:
        places.append(block.arrays["places"])
        failed.append(block.arrays["failed"])
        reasons += block.lines
        if len(places[-1]):
            kinds = kinds or {
                name: rows[:0].copy()
                for name, rows in block.arrays.items()
                if name.startswith("rows")
            }
    group["places"], group["failed"] = np.concatenate(places), np.concatenate(failed)
    write_texts(group, "reasons", reasons)
    count = len(group["places"])
    targets = {
        name: group.create_dataset(name, (count, *one.shape[1:]), one.dtype)
        for name, one in kinds.items()
    }
    done = 0
    for block in log if targets else ():
        more = len(block.arrays["places"])
        for name, target in targets.items() if more else ():
            target[done : done + more] = block.arrays[name]
        done += more
    lost = zip(np.concatenate(failed).tolist(), reasons, strict=True)
    return [f"{reading.files[place]}: {reason}" for place, reason in lost]


def read_part(path: Path) -> PartFile:
    """A part's file without its rows.

    Raises:
        IiaeError: missing, damaged, or of another schema.
    """
    with open_hdf5(path, REMEDY) as file:
        check_schema(file, path, PART_SCHEMA, REMEDY)
        with damage(path, REMEDY):
            part = Part(**{key: int(value) for key, value in _json(file, "shard", dict).items()})
            job = Job(
                text_attribute(file, "name"),
                _json(file, "settings", dict),
                _json(file, "options", dict),
                [str(word) for word in _json(file, "command", list)],
            )
            shares: dict[str, Share] = {}
            for told in _json(file, "readings", list):
                one = dict(told)
                name, blocks = (
                    str(one.pop("name")),
                    range(int(one.pop("first")), int(one.pop("stop"))),
                )
                items = Items(
                    int(one["count"]), int(one["size"]), str(one["maker"]), str(one["identity"])
                )
                shares[name] = _share(
                    file, name.replace("/", "-"), items, blocks, str(one["machine"])
                )
            skipped = read_texts(file, "skipped") or []
    return PartFile(path, part, job, shares, skipped)


def _json(file: h5py.File, name: str, kind: type[Any]) -> Any:
    value = json.loads(text_attribute(file, name))
    if not isinstance(value, kind):
        raise ValueError(f"attribute {name} is no JSON {kind.__name__}")
    return value


def _share(file: h5py.File, group: str, items: Items, blocks: range, machine: str) -> Share:
    """The share in a group.

    Raises:
        ValueError: it does not hold every item of its blocks once, or a row that no reading gives.
    """
    if not blocks:
        nothing = np.empty(0, np.int64)
        return Share(items, blocks, nothing, nothing, [], [], machine)
    found = member(file, group)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"/{group} is missing")
    places, failed = (read_array(found, name).astype(np.int64) for name in ("places", "failed"))
    reasons = read_texts(found, "reasons") or []
    first, stop = (min(items.count, items.size * one) for one in (blocks.start, blocks.stop))
    if len(places) + len(failed) != stop - first or len(reasons) != len(failed) or places.ndim != 1:
        raise ValueError(f"/{group} holds {len(places)} and {len(failed)} of {stop - first} items")
    if (np.sort(np.concatenate([places, failed])) != np.arange(first, stop)).any() or (
        np.diff(places) <= 0
    ).any():
        raise ValueError(f"/{group} does not hold its items")
    kinds: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
    while (rows := dataset(found, f"rows{len(kinds)}")) is not None:
        if len(rows) != len(places) or 0 in rows.shape or (rows.dtype, rows.ndim > 2) not in _KINDS:
            raise ValueError(f"{rows.name} holds {rows.dtype} {rows.shape}")
        kinds.append((tuple(int(n) for n in rows.shape[1:]), rows.dtype))
    if bool(kinds) != bool(len(places)):
        raise ValueError(f"/{group} holds no rows")
    return Share(items, blocks, places, failed, reasons, kinds, machine)


_KINDS = ((np.dtype(np.uint8), True), (np.dtype(np.float32), False))  # pictures, features


def strangers(part: PartFile, first: PartFile) -> IiaeError | None:
    """What to say where two parts are not of one preparation; None where they are."""
    if part.job.name != first.job.name:
        return IiaeError(
            f"{part.path} is a part of {part.job.name}, {first.path} of {first.job.name}",
            "merge one set",
        )
    again = "make all shards by the same command, source and version"
    differing = differences(part.job.settings, first.job.settings)
    if differing:
        return IiaeError(
            f"{part.path} was made with another {', '.join(differing)} than {first.path}", again
        )
    for name in {**first.shares, **part.shares}:
        one, other = (
            found.shares[name].items if name in found.shares else None for found in (part, first)
        )
        if one != other:
            same = one is not None and other is not None and one.identity == other.identity
            what = "by another network" if same else "from other inputs"
            return IiaeError(f"{part.path} was made {what} than {first.path} ({name})", again)
    return None


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the settings that differ."""
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
