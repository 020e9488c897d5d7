"""Numbered blocks of a job that may be interrupted, resumed, divided among processes and merged.

A job is a JSON object of everything that decides its values, a block a dictionary of arrays.
`OUTPUT.partial/` holds job.json, the .lock of the process that works there, and each finished block
as NUMBER.npz. A part of the job (`--shard`) is an HDF5 file of a range of its blocks.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console, files
from iiae_cli.common.errors import IiaeError, Stop
from iiae_cli.common.files import LOCK, reading, write_errors, writing
from iiae_cli.data import hdf5

Arrays: TypeAlias = dict[str, NDArray[Any]]
Job: TypeAlias = Mapping[str, Any]

PART_SCHEMA = "iiae.part/1"
_SCHEMA = "iiae.partial/3"
_JOB = "job.json"
_REMEDY = "name the files that --shard I/N wrote; make a damaged one again with --overwrite"


# ---- the store


class BlockStore:
    """The finished blocks of a job, in `OUTPUT.partial/`; `block_store` opens it."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder, self.job = folder, job  # the folder may hold the output's temporary files
        self._done = {int(path.stem) for path in folder.glob("[0-9]*.npz") if _is_whole(path)}

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Returns the numbers whose block is not finished."""
        return [number for number in numbers if number not in self._done]

    def append(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Stores a finished block, which then survives a kill."""
        named, path = dict[str, Any](arrays), self.folder / f"{number}.npz"
        with writing(path, sync=False) as temporary, temporary.open("wb") as file:
            np.savez(file, **named)
        self._done.add(number)

    def read(self, number: int) -> Arrays:
        """Returns the arrays of a finished block."""
        path = self.folder / f"{number}.npz"
        hint = "run the same command with --resume, which makes it again"
        with reading(path, hint), path.open("rb") as file:
            return dict(np.load(file, allow_pickle=False))

    def fill(
        self,
        sizes: Mapping[int, int],
        make: Callable[[list[int]], Iterator[Arrays]],
        label: str,
        stop: Stop,
    ) -> None:
        """Makes the missing blocks of these sizes (items by number); `stop` keeps finished ones."""
        missing, total = self.missing(sizes), sum(sizes.values())
        done, made = total - sum(sizes[number] for number in missing), make(missing)
        with console.progress(label, total, "items") as bar:
            if done:
                console.say(f"{label}: resuming at {done} of {total}")
            bar.start_at(done)
            for number in missing:
                saved = f"{label}: {done} of {total} items are saved in {self.folder}"
                stop.check(f"{saved}; continue with the same command and --resume")
                self.append(number, next(made))
                done += sizes[number]
                bar.update(done)


def _is_whole(path: Path) -> bool:
    """Returns whether a block is intact; a machine that dies may leave less."""
    with suppress(Exception), zipfile.ZipFile(path) as file:  # whatever a damaged archive raises
        return file.testzip() is None
    return False


@contextmanager
def block_store(
    output: Path, job: Job, *, resume: bool = False, overwrite: bool = False
) -> Iterator[BlockStore]:
    """Opens the store of an output's blocks, and removes it when the `with` block succeeds.

    It stays after an interruption, a bug, or an error of a disk or a file; after other user errors,
    which would only recur, it goes. `resume` keeps finished blocks of the same job only.
    """
    folder, job = partial_of(output), json.loads(json.dumps(job))
    content = {**job, "schema": _SCHEMA}
    _begun(folder)  # refuses a foreign folder
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, "wait for it, end it, or choose another output"):
        begun = _begun(folder)
        if begun and not resume and not overwrite:
            hint = "continue it with --resume, or start over with --overwrite"
            raise IiaeError(f"{folder} holds interrupted work", hint)
        differing = differences(begun, content) if begun else []
        if resume and differing:
            console.say(f"{folder} was begun with another {', '.join(differing)}: starting afresh")
        if differing or not (begun and resume):
            _empty(folder)
            files.write_text(folder / _JOB, json.dumps(content, indent=2) + "\n")
        files.remove_temporaries(folder)
        finished = False
        try:
            yield BlockStore(folder, job)
            finished = True
        except IiaeError as error:
            finished = error.__cause__ is None
            raise
        finally:
            if finished or _contents(folder) <= {_JOB}:
                _remove(folder)


def partial_of(output: Path) -> Path:
    """Returns the folder of an output's unfinished work."""
    if output.is_dir():
        raise IiaeError(f"{output} is a folder", "name a file, such as -o z.h5")
    return output.with_name(f"{output.name}.partial")


def discard(output: Path) -> None:
    """Removes the store of a process that was killed after it completed its output."""
    if partial_of(output).is_dir():
        with block_store(output, {}, overwrite=True):
            pass


def differences(left: Job, right: Job) -> list[str]:
    """Returns the names of the keys in which two jobs differ."""
    return sorted(key for key in {*left, *right} if left.get(key) != right.get(key))


def _begun(folder: Path) -> Job:
    if not os.path.lexists(folder) or (folder.is_dir() and not _contents(folder)):
        return {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        content: Job = json.loads((folder / _JOB).read_text(encoding="utf-8"))
        if content["schema"].startswith("iiae.partial/"):
            return content
    message = f"{folder} is in the way: it is not the work of an interrupted command"
    raise IiaeError(message, "move it elsewhere")


def _contents(folder: Path) -> set[str]:
    """Returns the names in a folder, without its lock and half-written files."""
    names = {path.name for path in folder.glob("*")}
    return {name for name in names if name != LOCK and not name.endswith(files.TEMPORARY)}


def _empty(folder: Path) -> None:
    """Removes all work, the job last, so that a kill leaves a folder that is recognised again."""
    paths = [path for path in folder.glob("*") if path.name != LOCK]
    for path in sorted(paths, key=lambda path: path.name == _JOB):
        path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    _empty(folder)
    with suppress(OSError):  # another process removed or replaced it
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


# ---- parts


@dataclass(frozen=True)
class Part:
    """A part's number, and the count of parts."""

    index: int  # from 0
    count: int

    @property
    def name(self) -> str:
        """`I/N`, as on the command line."""
        return f"{self.index}/{self.count}"

    def of(self, total: int) -> range:
        """Returns its range of `total` blocks; the lengths of all parts differ by at most one."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


@dataclass(frozen=True)
class PartFile:
    """A part's file, schema `iiae.part/1`: /blocks/NUMBER/NAME, and as attributes all but these."""

    path: Path
    part: Part
    total: int  # blocks of the whole job
    job: dict[str, Any]  # everything that decides the values
    about: dict[str, Any]  # its maker's notes, such as the command

    def blocks(self) -> Iterator[Arrays]:
        """Yields its blocks in order; a missing or damaged one is a user's error."""
        with hdf5.open_hdf5(self.path, _REMEDY) as file:
            for number in self.part.of(self.total):
                block = file["blocks"][str(number)]
                yield {name: hdf5.read_column(values) for name, values in block.items()}


def write_part(
    path: Path, store: BlockStore, part: Part, total: int, about: Mapping[str, Any]
) -> None:
    """Writes a part from the store's blocks; parts of a job may differ in `about`."""
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
    """Opens a part's file."""
    with hdf5.open_hdf5(path, _REMEDY, PART_SCHEMA) as file:
        texts = hdf5.text_attributes(file)
        head = {key: json.loads(texts[key]) for key in ("part", "job", "about")}
        index, count, total = map(int, head["part"])
        if not 0 <= index < count or total < 0:
            raise ValueError(f"part {index} of {count} does not exist")
        return PartFile(path, Part(index, count), total, dict(head["job"]), dict(head["about"]))


def in_order(parts: Sequence[PartFile], again: str) -> list[PartFile]:
    """Sorts the parts of a job; raises if one is missing, duplicated, or of another job.

    `again` is the command that makes a missing one, up to the options: `iiae prepare …`.
    """
    first, count = parts[0], parts[0].part.count
    by_index = {item.part.index: item for item in parts}
    for item in parts:
        if differing := differences(_shared(item), _shared(first)):
            message = f"{item.path} was made with another {', '.join(differing)} than {first.path}"
            raise IiaeError(message, "make all shards by the same command, source and version")
        if by_index[item.part.index] is not item:
            raise IiaeError(f"shard {item.part.name} is given twice", "name every shard once")
    missing = [f"{index}/{count}" for index in range(count) if index not in by_index]
    if missing:
        hint = f"make the rest: {again} --shard {missing[0]} --resume"
        raise IiaeError(f"missing shards: {', '.join(missing)}"[:200], hint)
    return [by_index[index] for index in sorted(by_index)]


def _shared(item: PartFile) -> Job:
    return {**item.job, "number of shards": item.part.count, "number of inputs": item.total}
