"""Parts of a job that several processes make (`--shard`), and their joining (`--merge`).

A part is a run of the job's blocks, in an HDF5 file of schema `iiae.part/1`: /blocks/NUMBER/NAME,
and as attributes (JSON) which part it is, the job, and what else its maker says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.data.blocks import Arrays, BlockStore, differences
from iiae_cli.data.hdf5 import (
    check_schema,
    member,
    new_hdf5,
    open_hdf5,
    read_array,
    read_texts,
    text_attribute,
    write_texts,
)

PART_SCHEMA = "iiae.part/1"
_NAMED = 8  # missing parts that an error names
_REMEDY = "name the files that --shard I/N wrote; make a damaged one again with --overwrite"


@dataclass(frozen=True)
class Part:
    """Which part of how many."""

    index: int  # from 0
    count: int

    @property
    def name(self) -> str:
        """`I/N`, as on the command line."""
        return f"{self.index}/{self.count}"

    def of(self, total: int) -> range:
        """Its run of `total` blocks; runs of all parts differ in length by one at most."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


@dataclass(frozen=True)
class PartFile:
    """A part's file, its blocks unread."""

    path: Path
    part: Part
    total: int  # blocks of the whole job
    job: dict[str, Any]  # everything that decides the values
    about: dict[str, Any]  # what else its maker says, such as the words of its command

    def blocks(self) -> Iterator[Arrays]:
        """Its blocks in order; one that is missing or damaged is a user's error."""
        with open_hdf5(self.path, _REMEDY) as file:
            for number in self.part.of(self.total):
                yield _arrays(file["blocks"], str(number))


def write_part(
    path: Path,
    store: BlockStore,
    part: Part,
    total: int,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a part's file, atomically; one block is in memory at a time.

    Args:
        path: an existing file is replaced.
        store: has every block of the part.
        part: which one.
        total: number of blocks of the whole job.
        about: what else to say; parts may differ in it.
    """
    with writing(path, folder=store.folder) as temporary, new_hdf5(temporary) as file:
        head = {"part": [part.index, part.count, total], "job": store.job, "about": about or {}}
        file.attrs["schema"] = PART_SCHEMA
        file.attrs.update({key: json.dumps(value) for key, value in head.items()})
        blocks = file.create_group("blocks")
        for number in part.of(total):
            group = blocks.create_group(str(number))
            for name, values in store.read(number).items():
                if values.dtype.kind == "U":
                    write_texts(group, name, values.tolist())
                else:
                    group.create_dataset(name, data=values)


def part_of(path: Path) -> PartFile:
    """Open a part's file; raises IiaeError where it is missing, damaged, or no part."""
    with open_hdf5(path, _REMEDY) as file:
        check_schema(file, path, PART_SCHEMA, _REMEDY)
        head = {key: json.loads(text_attribute(file, key)) for key in ("part", "job", "about")}
        index, count, total = map(int, head["part"])
        if not 0 <= index < count or total < 0:
            raise ValueError(f"there is no part {index} of {count}")
        return PartFile(path, Part(index, count), total, dict(head["job"]), dict(head["about"]))


def _arrays(blocks: h5py.Group, number: str) -> Arrays:
    group = member(blocks, number)
    if not isinstance(group, h5py.Group):
        raise ValueError(f"block {number} is missing")
    arrays: Arrays = {}
    for name in group:
        texts = h5py.check_string_dtype(group[name].dtype) is not None
        arrays[name] = (
            np.array(read_texts(group, name), np.str_) if texts else read_array(group, name)
        )
    return arrays


def read_parts(paths: Sequence[Path], again: str) -> list[PartFile]:
    """All parts of one job, in order, their blocks unread.

    Args:
        paths: their files in any order.
        again: how a missing part is made, up to the options: `iiae prepare …`.

    Raises:
        IiaeError: no part's file, parts of different jobs or divisions, or one that is doubled or
            missing.
    """
    parts = [part_of(path) for path in paths]
    first = parts[0]
    by_index: dict[int, PartFile] = {}
    for item in parts:
        differing = differences(item.job, first.job)
        if differing or item.total != first.total:
            raise IiaeError(
                f"{item.path} was made with another {', '.join(differing) or 'input'} "
                f"than {first.path}",
                "make all shards by the same command, source and version",
            )
        if item.part.count != first.part.count:
            raise IiaeError(
                f"{item.path} is shard {item.part.name}, {first.path} {first.part.name}",
                "merge shards of one division",
            )
        other = by_index.setdefault(item.part.index, item)
        if other is not item:
            raise IiaeError(
                f"shard {item.part.name} is given twice: {other.path}, {item.path}",
                "name every shard once",
            )
    missing = [index for index in range(first.part.count) if index not in by_index]
    if missing:
        names = [f"{index}/{first.part.count}" for index in missing[:_NAMED]]
        named = f"shard {names[0]} is" if len(missing) == 1 else f"shards {', '.join(names)} are"
        more = f" (and {len(missing) - _NAMED} more)" if len(missing) > _NAMED else ""
        raise IiaeError(
            f"{named} missing{more}", f"make the rest: {again} --shard {names[0]} --resume"
        )
    return [by_index[index] for index in range(first.part.count)]
