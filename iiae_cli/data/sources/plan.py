"""A data set's plan: the files to read, and how their rows become splits.

Reading takes long, so it is done in numbered blocks (`data/blocks.py`): a block is kept before the
next one begins, and several processes may share the work. A block's content depends on its reading
alone. Assembling is cheap, and repeated by whoever writes the data file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.environment import free_memory
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.data.blocks import Arrays, BlockStore
from iiae_cli.data.datafile import Rows, Split
from iiae_cli.data.names import Notes
from iiae_cli.data.pictures import PictureError, read_all

BLOCK_FILES = 64


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `iiae prepare` that a builder may use; its help explains each."""

    source: Path | None = None
    image_size: int | None = None
    limit: int | None = None
    seed: int = 0
    download: bool = False
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    side_by_side: bool = False
    same_instance: bool = False
    split: str | None = None
    unseen_classes: str | None = None
    backbone: str | None = None
    backbone_weights: str | None = None
    pool: Literal["pooled", "mean", "cls"] | None = None
    fine_tune_epochs: int | None = None
    invert_sketches: bool | None = None
    normalise: bool | None = None
    allow_leak: bool = False
    save_backbone: Path | None = None
    device: str = "cpu"
    batch_size: int = 64
    workers: int = 1

    @property
    def wants_backbone(self) -> bool:
        """Whether an option is set that only matters for features of pictures."""
        networks = (self.backbone, self.backbone_weights, self.pool)
        tuning = (self.fine_tune_epochs, self.save_backbone)
        return any(value is not None for value in (*networks, *tuning))


@dataclass(frozen=True)
class Work:
    """The folder in which a preparation works, and what stops it."""

    folder: Path  # holds files that a resumed call continues; removed at the end
    output: Path = Path("data.h5")  # the file to write
    stop: Stop = NEVER


Made: TypeAlias = tuple[Rows, ...] | PictureError  # the arrays of one file, or why there are none


@dataclass(frozen=True)
class Reading:
    """Files that a builder needs as rows, `size` of them to a block."""

    name: str  # SPLIT or SPLIT/DOMAIN, unique in the plan
    files: Sequence[Path]
    make: Callable[[Sequence[Sequence[Path]], Work], Iterator[Sequence[Made]]]  # block by block
    size: int
    verb: str = "reading"  # shown in the progress
    maker: str = ""  # identifies the maker of the rows beyond the program, such as a network

    def identity(self) -> list[Any]:
        """Returns what its blocks depend on, as JSON: names of files, not their folders."""
        names = "\n".join(path.name for path in self.files)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return [self.name, len(self.files), self.size, self.maker, digest]


def file_reading(
    name: str,
    files: Sequence[Path],
    read: Callable[[Path], tuple[Rows, ...]],
    *,
    workers: int = 1,
    size: int | None = None,
) -> Reading:
    """Returns a reading of files that `read` turns into arrays, or else raises PictureError."""

    def make(blocks: Sequence[Sequence[Path]], work: Work) -> Iterator[Sequence[Made]]:
        return (list(read_all(block, read, workers)) for block in blocks)

    return Reading(name, files, make, size or BLOCK_FILES)


@dataclass(frozen=True)
class ReadRows:
    """The result of a reading."""

    places: NDArray[np.int64]  # (M,) of the readable files, ascending
    rows: tuple[Rows, ...]  # (M, …) for each array of a file; none where no file is readable
    skipped: list[str]  # a line for each of the other files


@dataclass
class Prepared:
    """Splits, the attributes that only they decide, and a line per lost input."""

    splits: dict[str, Split]
    attributes: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def warn_of(skipped: Iterable[str]) -> None:
    """Warns of every input that was left out, before an error that ends the command."""
    for line in skipped:
        console.warn(f"skipped {line}")


@dataclass(frozen=True)
class Plan:
    """The readings of a data set, and the function that makes splits of their rows, by name."""

    assemble: Callable[[Mapping[str, ReadRows], Work], Prepared]
    readings: Sequence[Reading] = ()  # none if nothing takes long
    attributes: Mapping[str, str] = field(default_factory=dict)  # of the data file: its source
    skipped: Sequence[str] = ()  # a line for every input left out before reading
    whole: IiaeError | None = None  # why processes cannot divide the work, if so

    @property
    def blocks(self) -> list[tuple[Reading, Sequence[Path]]]:
        """Every block in order: its reading and its files."""
        return [
            (reading, reading.files[start : start + reading.size])
            for reading in self.readings
            for start in range(0, len(reading.files), reading.size)
        ]

    def make(self, store: BlockStore, numbers: range, stop: Stop = NEVER) -> None:
        """Makes the blocks that the store lacks; `stop` keeps finished ones."""
        blocks = self.blocks
        for reading in self.readings:
            files = {n: blocks[n][1] for n in numbers if blocks[n][0] is reading}
            if store.missing(files):
                _make(reading, files, store, Work(store.folder, stop=stop))

    def summary(self, blocks: Iterable[Arrays], numbers: range) -> tuple[dict[str, int], list[str]]:
        """Returns the number of items by reading in these blocks, and a line per unreadable one."""
        rows = {reading.name: 0 for reading in self.readings}
        skipped: list[str] = []
        own = self.blocks[numbers.start : numbers.stop]
        for (reading, _), block in zip(own, blocks, strict=True):
            rows[reading.name] += len(block["places"])
            skipped += block["skipped"].tolist()
        return rows, skipped

    def prepared(self, blocks: Iterable[Arrays], work: Work) -> Prepared:
        """Returns the splits from all blocks in order; memory holds their rows and one block.

        Arrays that take more than half of the free memory are files in the folder of `work`.
        """
        coming = iter(blocks)
        rows = {reading.name: _joined(reading, coming, work.folder) for reading in self.readings}
        lost = [*self.skipped, *(line for part in rows.values() for line in part.skipped)]
        try:
            made = self.assemble(rows, work)
            if not made.splits:
                source = self.attributes.get("source")
                hint = "the warnings above say why; " if lost else ""
                hint += "iiae prepare --help has the layouts"
                raise IiaeError(f"{source} holds nothing that can be read", hint)
        except IiaeError:
            warn_of(lost)
            raise
        empty = [
            name
            for name in ("train", "test")
            if name not in made.splits or not len(made.splits[name].x)
        ]
        attributes = {**self.attributes, **made.attributes}
        said = Notes(decided=[f"the split {name} is empty" for name in empty]).attributes()
        notes = [texts["notes"] for texts in (attributes, said) if "notes" in texts]
        attributes |= {"notes": "\n".join(notes)} if notes else {}
        return Prepared(made.splits, attributes, [*lost, *made.skipped])


def _make(
    reading: Reading, files: Mapping[int, Sequence[Path]], store: BlockStore, work: Work
) -> None:
    def made(missing: list[int]) -> Iterator[Arrays]:
        wanted = [files[number] for number in missing]
        return map(_packed, wanted, reading.make(wanted, work))

    sizes = {number: len(paths) for number, paths in files.items()}
    store.fill(sizes, made, f"{reading.verb} {reading.name}", work.stop)


def _packed(files: Sequence[Path], made: Sequence[Made]) -> Arrays:
    """Packs a block: places of readable files, a line for each other one, and the rows."""
    rows = {place: item for place, item in enumerate(made) if not isinstance(item, PictureError)}
    columns = zip(*rows.values(), strict=True)
    lost = [
        f"{file}: {item.reason}"
        for file, item in zip(files, made, strict=True)
        if isinstance(item, PictureError)
    ]
    return {
        "places": np.array([*rows], np.int64),
        "skipped": np.array(lost, np.str_),
        **{f"rows{number}": np.stack(column) for number, column in enumerate(columns)},
    }


def _joined(reading: Reading, blocks: Iterator[Arrays], folder: Path) -> ReadRows:
    arrays: list[Rows] = []
    places: list[int] = []
    skipped: list[str] = []
    for first in range(0, len(reading.files), reading.size):
        block, start = next(blocks), len(places)
        places += (first + block["places"]).tolist()
        skipped += block["skipped"].tolist()
        rows = [block[f"rows{column}"] for column in range(len(block) - 2)]
        if rows and not arrays:
            stem = folder / reading.name.replace("/", "-")
            arrays = [
                _empty(len(reading.files), values, Path(f"{stem}-{column}.rows"))
                for column, values in enumerate(rows)
            ]
        for array, values in zip(arrays, rows, strict=bool(rows)):
            array[start : len(places)] = values
    kept = tuple(array[: len(places)] for array in arrays)
    return ReadRows(np.array(places, np.int64), kept, skipped)


def _empty(count: int, like: Rows, path: Path) -> Rows:
    """Returns an empty array, in a file if it takes more than half of the free memory."""
    shape = (count, *like.shape[1:])
    if math.prod(shape) * like.itemsize > free_memory() // 2:
        return np.memmap(path, like.dtype, "w+", shape=shape)
    return np.empty(shape, like.dtype)
