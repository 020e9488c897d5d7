"""What a builder of a data set returns: a plan of what to read, and how rows become splits.

Reading is what takes long, so it is done in numbered blocks (`data/blocks.py`): a block of finished
rows is kept before the next one begins, one that is kept is not made again, and several processes
may make some each. What a block holds depends on its reading alone. Assembling is cheap and done
anew by whoever writes the data file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.blocks import Arrays, BlockStore
from iiae_cli.data.datafile import Rows, Split
from iiae_cli.data.hdf5 import free_memory
from iiae_cli.data.pictures import PictureError, read_all

BLOCK_FILES = 64


@dataclass(frozen=True)
class PrepareOptions:
    """What a builder may be told; the help of `iiae prepare` explains each.

    Attributes:
        fractions: of pairs for valid and test, where the source has no splits.
        class_split: a published list of test classes, by name (`--split`).
    """

    source: Path | None = None
    image_size: int | None = None
    limit: int | None = None
    seed: int = 0
    download: bool = False
    fractions: tuple[float, float] = (0.1, 0.1)
    side_by_side: bool = False
    class_split: str | None = None
    unseen_classes: str | None = None
    backbone: str | None = None
    backbone_weights: str | None = None
    fine_tune_epochs: int | None = None
    invert_sketches: bool | None = None
    normalise: bool | None = None
    allow_leak: bool = False
    save_backbone: Path | None = None
    device: str = "cpu"
    batch_size: int = 64
    workers: int = 1

    @property
    def wants_classes(self) -> bool:
        """Whether an option is given that only matters for sets of classes."""
        return (
            self.wants_backbone or self.class_split is not None or self.unseen_classes is not None
        )

    @property
    def wants_backbone(self) -> bool:
        """Whether an option is given that only matters for features of pictures."""
        options = (
            self.backbone,
            self.backbone_weights,
            self.fine_tune_epochs,
            self.save_backbone,
        )
        return any(value is not None for value in options)


@dataclass(frozen=True)
class Work:
    """Where a preparation works.

    Attributes:
        folder: for files that a resumed call continues; it is removed when the data file is
            written.
        stop: asked before every block.
    """

    folder: Path
    stop: Stop = NEVER


Made: TypeAlias = tuple[Rows, ...] | PictureError  # what came of one file


@dataclass(frozen=True)
class Reading:
    """Files that a builder needs as rows.

    Attributes:
        name: unique in the plan: SPLIT or SPLIT/DOMAIN.
        files: one item each.
        make: yields what came of each of these blocks of files, in order.
        shapes: of one item's arrays, where none of them can be read.
        size: files in a block.
        verb: for progress, before `name`.
        maker: identifies what makes the rows beyond the program itself, such as a network.
    """

    name: str
    files: Sequence[Path]
    make: Callable[[Sequence[Sequence[Path]], Work], Iterator[Sequence[Made]]]
    shapes: tuple[tuple[int, ...], ...]
    size: int
    verb: str = "reading"
    maker: str = ""

    @property
    def total(self) -> int:
        """Number of blocks."""
        return -(-len(self.files) // self.size)

    def block(self, number: int) -> Sequence[Path]:
        """The files of a block."""
        return self.files[number * self.size : (number + 1) * self.size]

    def identity(self) -> list[Any]:
        """What its blocks depend on, as JSON: names of files, not their folders."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
        return [self.name, len(self.files), self.size, self.maker, digest.hexdigest()[:16]]


@dataclass(frozen=True)
class ReadRows:
    """What came of a reading.

    Attributes:
        places: (M,) of the files that could be read, ascending.
        rows: one array (M, …) for each array of an item.
        errors: of the other files.
    """

    places: NDArray[np.int64]
    rows: tuple[Rows, ...]
    errors: list[PictureError]


@dataclass
class Prepared:
    """Splits, attributes of the source, and a line for every input left out."""

    splits: dict[str, Split]
    attributes: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What to read, and how the rows become splits.

    Attributes:
        assemble: from the rows of every reading, by name, to the splits.
        readings: empty where nothing takes long.
        whole: why the work cannot be divided among processes; None where it can.
    """

    assemble: Callable[[Mapping[str, ReadRows], Work], Prepared]
    readings: Sequence[Reading] = ()
    whole: IiaeError | None = None

    @property
    def total(self) -> int:
        """Number of blocks."""
        return sum(reading.total for reading in self.readings)

    def make(self, store: BlockStore, numbers: range, stop: Stop = NEVER) -> None:
        """Make those of these blocks that the store does not have.

        Raises:
            IiaeError: the disk is full.
            Interrupted: a signal came; finished blocks are kept.
        """
        first = 0
        for reading in self.readings:
            here = range(first, first + reading.total)
            mine = range(max(here.start, numbers.start), min(here.stop, numbers.stop))
            _make(reading, first, mine, store, Work(store.folder, stop))
            first = here.stop

    def summary(self, blocks: Iterable[Arrays], numbers: range) -> tuple[dict[str, int], list[str]]:
        """How many items of each reading these blocks hold, and a line for every unreadable one."""
        owners = [reading for reading in self.readings for _ in range(reading.total)]
        rows = {reading.name: 0 for reading in self.readings}
        skipped: list[str] = []
        for number, block in zip(numbers, blocks, strict=True):
            reading = owners[number]
            rows[reading.name] += len(block["places"])
            for place, reason in zip(block["failed"], block["reasons"], strict=True):
                skipped.append(f"{reading.files[place]}: {reason}")
        return rows, skipped

    def read(self, blocks: Iterable[Arrays], folder: Path) -> dict[str, ReadRows]:
        """The rows of every reading from all blocks in order; one block is in memory beside them.

        Args:
            blocks: of all readings.
            folder: holds arrays that take more than half of the free memory.
        """
        coming = iter(blocks)
        return {reading.name: _joined(reading, coming, folder) for reading in self.readings}


def file_reading(
    name: str,
    files: Sequence[Path],
    read: Callable[[Path], tuple[Rows, ...]],
    shapes: tuple[tuple[int, ...], ...],
    *,
    workers: int = 1,
    size: int | None = None,
) -> Reading:
    """Files that are read one by one.

    Args:
        name: of the reading.
        files: what to read.
        read: returns the arrays of one file, of `shapes`, or raises PictureError.
        shapes: of the arrays.
        workers: threads.
        size: files in a block; None: `BLOCK_FILES`.
    """

    def make(blocks: Sequence[Sequence[Path]], work: Work) -> Iterator[Sequence[Made]]:
        for block in blocks:
            yield list(read_all(block, read, workers))

    return Reading(name, files, make, shapes, size or BLOCK_FILES)


def _make(reading: Reading, first: int, mine: range, store: BlockStore, work: Work) -> None:
    """Make the missing blocks among `mine` of a reading whose first block is `first`."""
    missing = store.missing(mine)
    if not missing:
        return
    files = {number: reading.block(number - first) for number in mine}
    total = sum(map(len, files.values()))
    done = total - sum(len(files[number]) for number in missing)
    coming = reading.make([files[number] for number in missing], work)
    with console.progress(f"{reading.verb} {reading.name}", total, "items") as progress:
        if done:
            console.say(f"resuming {reading.name} at {done} of {total}")
        progress.start_at(done)
        for number in missing:
            work.stop.check(f"{done} of {total} items of {reading.name} are saved")
            store.append(number, _packed((number - first) * reading.size, next(coming)))
            done += len(files[number])
            progress.update(done)


def _packed(start: int, made: Sequence[Made]) -> Arrays:
    """A block of items as arrays; `start` is the place of its first."""
    there = [row for row, item in enumerate(made) if not isinstance(item, PictureError)]
    failed = [row for row, item in enumerate(made) if isinstance(item, PictureError)]
    columns = zip(*(made[row] for row in there), strict=True)
    reasons = [item.reason for item in made if isinstance(item, PictureError)]
    return {
        "places": np.array(there, np.int64) + start,
        "failed": np.array(failed, np.int64) + start,
        "reasons": np.array(reasons, np.str_),
        **{f"rows{number}": np.stack(column) for number, column in enumerate(columns)},
    }


def _joined(reading: Reading, blocks: Iterator[Arrays], folder: Path) -> ReadRows:
    arrays: list[Rows] = []
    places: list[int] = []
    errors: list[PictureError] = []
    for block in islice(blocks, reading.total):
        rows = [block[f"rows{number}"] for number in range(len(block) - 3)]
        if rows and not arrays:
            arrays = [
                _empty(folder / f"{reading.name.replace('/', '-')}-{number}.rows", reading, values)
                for number, values in enumerate(rows)
            ]
        stop = len(places) + len(block["places"])
        for array, values in zip(arrays, rows, strict=bool(rows)):
            array[len(places) : stop] = values
        places += block["places"].tolist()
        for place, reason in zip(block["failed"], block["reasons"], strict=True):
            errors.append(PictureError(reading.files[place], str(reason)))
    nothing = tuple(
        np.empty((0, *shape), np.uint8 if len(shape) > 1 else np.float32)
        for shape in reading.shapes
    )
    there = tuple(array[: len(places)] for array in arrays) or nothing
    return ReadRows(np.array(places, np.int64), there, errors)


def _empty(path: Path, reading: Reading, values: Rows) -> Rows:
    """An array for all items of a reading, in memory or in a file where it is too large."""
    shape = (len(reading.files), *values.shape[1:])
    if math.prod(shape) * values.itemsize > free_memory() // 2:
        return np.memmap(path, values.dtype, "w+", shape=shape)
    return np.empty(shape, values.dtype)
