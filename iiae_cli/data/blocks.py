"""Numbered blocks of a job that may be interrupted, resumed, divided among processes and merged.

A job is a JSON object of everything that decides its values, and its result blocks 0 … N-1, each a
dictionary of arrays (numbers or text). Finished blocks lie in the folder `OUTPUT.partial/`:

    job.json    the job
    .lock       held by the process that works here
    blocks      one append-only file: per block a head (magic, number, length, CRC-32) and a .npz

A kill at any moment leaves at most a cut block at the end, which the next call drops. A part of the
job that one process makes (`--shard`) is a run of its blocks, in an HDF5 file of schema
`iiae.part/1`: /blocks/NUMBER/NAME, and as attributes (JSON) which part it is, the job, and what
else its maker says.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console, files
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import LOCK, reading, write_errors, writing
from iiae_cli.data import hdf5

Arrays: TypeAlias = dict[str, NDArray[Any]]
Job: TypeAlias = Mapping[str, Any]

PART_SCHEMA = "iiae.part/1"
_SCHEMA = "iiae.partial/2"
_MAGIC = b"iiaeblk2"
_HEAD = struct.Struct("<8sQQI")
_REMEDY = "name the files that --shard I/N wrote; make a damaged one again with --overwrite"


# ---- the store


class BlockStore:
    """The finished blocks of a job, in `OUTPUT.partial/`; `block_store` opens it."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder = folder  # temporary files of the output may lie here
        self.job = job
        self._path = folder / "blocks"
        self._spans: dict[int, tuple[int, int]] = {}  # where a block begins, and its length
        with write_errors(self._path):
            self._file = self._path.open("a+b")
            self._file.truncate(self._scan())

    def __len__(self) -> int:
        return len(self._spans)

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers whose block is not finished."""
        return [number for number in numbers if number not in self._spans]

    def append(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a finished block; a kill does not lose it once this returns."""
        buffer, named = io.BytesIO(), dict[str, Any](arrays)
        np.savez(buffer, **named)
        payload = buffer.getbuffer()
        with write_errors(self._path):
            end = self._file.seek(0, os.SEEK_END)
            self._file.write(_HEAD.pack(_MAGIC, number, len(payload), zlib.crc32(payload)))
            self._file.write(payload)
            self._file.flush()
        self._spans[number] = (end + _HEAD.size, len(payload))

    def read(self, number: int) -> Arrays:
        """The arrays of a finished block."""
        start, length = self._spans[number]
        self._file.seek(start)
        payload = io.BytesIO(self._file.read(length))
        with reading(self._path, f"remove {self.folder} and run again"):
            return dict(np.load(payload, allow_pickle=False))

    def close(self) -> None:
        """Close the file."""
        with write_errors(self._path):  # closing writes what a full disk refused before
            self._file.close()

    def _scan(self) -> int:
        """Find the whole blocks; returns where the last one ends."""
        end, size = 0, self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        while len(head := self._file.read(_HEAD.size)) == _HEAD.size:
            magic, number, length, check = _HEAD.unpack(head)
            whole = magic == _MAGIC and length <= size - end
            if not whole or zlib.crc32(self._file.read(length)) != check:
                break
            self._spans[number] = (end + _HEAD.size, length)
            end += _HEAD.size + length
        return end


@contextmanager
def block_store(
    output: Path, job: Job, *, resume: bool = False, overwrite: bool = False
) -> Iterator[BlockStore]:
    """Open the store of an output's blocks; it is removed when the `with` block ends well.

    It stays after an interruption, a bug or a full disk, and goes after any other user's error,
    which would only come again. `resume` keeps finished blocks of the same job, and drops those of
    another with a word.
    """
    folder = partial_of(output)
    job = json.loads(json.dumps(job))
    with _held(folder):
        begun = _begun(folder)
        if begun is not None and not resume and not overwrite:
            raise IiaeError(
                f"{folder} holds interrupted work",
                "continue it with --resume, or start over with --overwrite",
            )
        differing = differences(begun or job, job)
        if resume and differing:
            console.say(f"{folder} was begun with another {', '.join(differing)}: starting afresh")
        if begun is None or not resume or differing:
            _empty(folder)
            with writing(folder / "job.json") as temporary:
                content = json.dumps({"schema": _SCHEMA, "job": job}, indent=2)
                temporary.write_text(content + "\n", encoding="utf-8")
        files.remove_temporaries(folder)
        store = BlockStore(folder, job)
        finished = False
        try:
            yield store
            finished = True
        except IiaeError as error:
            finished = not isinstance(error.__cause__, OSError | RuntimeError)
            raise
        finally:
            store.close()
            if finished or not (len(store) or _contents(folder) - {"job.json", "blocks"}):
                _remove(folder)


def partial_of(output: Path) -> Path:
    """Where the unfinished work of an output file lies."""
    if output.is_dir():
        raise IiaeError(f"{output} is a folder", "name a file, such as -o z.h5")
    return output.with_name(f"{output.name}.partial")


def discard(output: Path) -> None:
    """Remove what a process left that was killed after its output was complete."""
    folder = partial_of(output)
    if folder.is_dir():
        with _held(folder):
            _remove(folder)


def differences(left: Job, right: Job) -> list[str]:
    """The names of what differs between two jobs."""
    return sorted(key for key in {*left, *right} if left.get(key) != right.get(key))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock."""
    _begun(folder)  # refuses one that is not the store's
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, "wait for it, end it, or choose another output"):
        yield


def _begun(folder: Path) -> dict[str, Any] | None:
    """The job that was begun in a folder, if any; anything else in its place is refused."""
    if not os.path.lexists(folder):
        return None
    try:
        if not _contents(folder):
            return None
        content = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        if content["schema"] == _SCHEMA:
            return dict(content["job"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise IiaeError(
        f"{folder} is in the way: it is not the work of an interrupted command", "move it elsewhere"
    )


def _contents(folder: Path) -> set[str]:
    """The names in a folder, without its lock and half-written files."""
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if name != LOCK and not name.endswith(files.TEMPORARY)}


def _empty(folder: Path) -> None:
    """Remove all work; the job goes last, so that a kill leaves a folder that is known again."""
    paths = [path for path in folder.iterdir() if path.name != LOCK]
    for path in sorted(paths, key=lambda path: path.name == "job.json"):
        path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    _empty(folder)
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()


# ---- parts


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
        with hdf5.open_hdf5(self.path, _REMEDY) as file:
            for number in self.part.of(self.total):
                group = hdf5.subgroup(hdf5.subgroup(file, "blocks"), str(number))
                yield {name: hdf5.read_column(group, name) for name in group}


def write_part(
    path: Path, store: BlockStore, part: Part, total: int, about: Mapping[str, Any]
) -> None:
    """Write a part, whose blocks the store has; parts of a job may differ in what `about` says."""
    with writing(path, folder=store.folder) as temporary, hdf5.new_hdf5(temporary) as file:
        head = {"part": [part.index, part.count, total], "job": store.job, "about": about}
        file.attrs["schema"] = PART_SCHEMA
        file.attrs.update({key: json.dumps(value) for key, value in head.items()})
        blocks = file.create_group("blocks")
        for number in part.of(total):
            group = blocks.create_group(str(number))
            for name, values in store.read(number).items():
                hdf5.write_column(group, name, values)


def part_of(path: Path) -> PartFile:
    """Open a part's file."""
    with hdf5.open_hdf5(path, _REMEDY) as file:
        hdf5.check_schema(file, path, PART_SCHEMA, _REMEDY)
        head = {key: json.loads(hdf5.text_attribute(file, key)) for key in ("part", "job", "about")}
        index, count, total = map(int, head["part"])
        if not 0 <= index < count or total < 0:
            raise ValueError(f"there is no part {index} of {count}")
        return PartFile(path, Part(index, count), total, dict(head["job"]), dict(head["about"]))


def in_order(parts: Sequence[PartFile], again: str) -> list[PartFile]:
    """Sort the parts of one job; those of another, doubled or missing ones are refused.

    `again` says how a missing one is made, up to the options: `iiae prepare …`.
    """
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
        if item.part.index in by_index:
            raise IiaeError(
                f"shard {item.part.name} is given twice, the second time as {item.path}",
                "name every shard once",
            )
        by_index[item.part.index] = item
    count = first.part.count
    missing = [f"{index}/{count}" for index in range(count) if index not in by_index]
    if missing:
        named = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
        raise IiaeError(
            f"shard {named} is missing" if len(missing) == 1 else f"shards {named} are missing",
            f"make the rest: {again} --shard {missing[0]} --resume",
        )
    return [by_index[index] for index in sorted(by_index)]
