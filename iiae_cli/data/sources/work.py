"""Where a builder gets its rows from: made here and kept, so that a preparation that was killed is taken up.

A builder lists what it needs as `Reading`s and asks `Work.read` once for all of them; what is costly happens there and
nowhere else. A reading is made in blocks: a block of finished rows is kept before the next one is begun, and one that
is kept is not made again. What blocks hold depends on the reading alone, so that a part of them can be made by another
process: `PartWork` makes one share of all blocks, and `MergeWork` gives the rows that others have made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.blocks import Block, BlockLog
from iiae_cli.data.pictures import PictureError, read_all

BLOCK_ITEMS = 64
Rows: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class ReadBlock:
    """What came of some items.

    Attributes:
        places: (M,) of those that could be read, among all of the reading, ascending.
        rows: what was read of them, one array (M, …) for each kind of row.
        errors: of the others.
    """

    places: NDArray[np.int64]
    rows: tuple[Rows, ...]
    errors: list[PictureError]


@dataclass(frozen=True)
class Reading:
    """Rows that a builder needs, and how they are made.

    Attributes:
        name: unique in the preparation: SPLIT or SPLIT/DOMAIN.
        count: of items.
        make: gives the block of each of these ranges of items, in order.
        shapes: of one row, for each kind of row; only their number counts where it is known from the rows alone.
        size: items in a block.
        files: of the items, where they are files.
        verb: for progress, before `name`.
        maker: what makes the rows beyond the program itself, such as a network: parts agree in it.
        machine: that computes, where rows may differ by it in their last digits.
        content: digest of what the rows are made of where that is no files; called for parts alone.
        enough: so many readable items are wanted, and none after the last of them; goes with `size` 1.
        given: the rows, where there is nothing to make of them.
        kept: False: made in seconds or too large to keep; only a part keeps them.
    """

    name: str
    count: int
    make: Callable[[Sequence[range]], Iterator[ReadBlock]]
    shapes: tuple[tuple[int, ...], ...]
    size: int
    files: Sequence[Path] = ()
    verb: str = "reading"
    maker: str = ""
    machine: str = ""
    content: Callable[[], str] = str
    enough: int | None = None
    given: Rows | None = None
    kept: bool = True

    @property
    def blocks(self) -> range:
        """The numbers of all its blocks."""
        return range(-(-self.count // self.size))

    @property
    def log_name(self) -> str:
        """A file name of its own."""
        return self.name.replace("/", "-")

    def items(self, blocks: range) -> range:
        """The items of a run of blocks."""
        return range(
            min(self.count, blocks.start * self.size), min(self.count, blocks.stop * self.size)
        )

    def identity(self) -> str:
        """16 hex digits over what its items are: the names of files, not their folders, or the content."""
        digest = hashlib.sha256(f"{self.content()}\0".encode())
        for path in self.files:
            digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()[:16]

    def nothing(self) -> tuple[Rows, ...]:
        """Its rows where there are none."""
        return tuple(
            np.empty((0, *shape), np.uint8 if len(shape) > 1 else np.float32)
            for shape in self.shapes
        )


def file_reading(
    name: str,
    files: Sequence[Path],
    read: Callable[[Path], tuple[Rows, ...]],
    shapes: tuple[tuple[int, ...], ...],
    *,
    workers: int = 1,
    size: int | None = None,
    enough: int | None = None,
) -> Reading:
    """Files that are read one by one.

    Args:
        name: of the reading.
        files: what to read.
        read: gives the arrays of one file, of `shapes`, or raises PictureError.
        shapes: of the arrays.
        workers: threads.
        size: files in a block; None: `BLOCK_ITEMS`.
        enough: as in `Reading`.
    """

    def make(ranges: Sequence[range]) -> Iterator[ReadBlock]:
        for one in ranges:
            yield _read(files[one.start : one.stop], one.start, read, workers)

    return Reading(name, len(files), make, shapes, size or BLOCK_ITEMS, files=files, enough=enough)


def row_reading(name: str, rows: Rows, change: Callable[[Rows], Rows] | None = None) -> Reading:
    """Rows that are there already.

    Args:
        name: of the reading.
        rows: (N, …).
        change: what to make of some of them, the same for each whatever the others are; None: nothing.
    """

    def make(ranges: Sequence[range]) -> Iterator[ReadBlock]:
        for one in ranges:
            some = rows[one.start : one.stop]
            yield ReadBlock(
                np.arange(one.start, one.stop), (some if change is None else change(some),), []
            )

    def content() -> str:
        flat = np.ascontiguousarray(rows).reshape(-1)
        return hashlib.sha256(flat.view(np.uint8).data if flat.size else b"").hexdigest()

    shape = (rows[:0] if change is None else change(rows[:0])).shape[1:]
    given = rows if change is None else None
    return Reading(
        name,
        len(rows),
        make,
        (shape,),
        BLOCK_ITEMS,
        verb="making",
        content=content,
        given=given,
        kept=False,
    )


@dataclass(frozen=True)
class Work:
    """One preparation's folder and its ear for signals.

    Attributes:
        folder: whose content belongs to this preparation; None: nothing is kept.
        stop: asked before every block.
    """

    __pydantic_config__: ClassVar[Any] = {"arbitrary_types_allowed": True}

    folder: Path | None = None
    stop: Stop = NEVER

    @property
    def whole(self) -> bool:
        """Whether this process makes all rows."""
        return True

    def read(self, readings: Sequence[Reading]) -> dict[str, ReadBlock]:
        """All rows of readings, by their names; a builder calls this once.

        Raises:
            IiaeError: the disk is full.
            Interrupted: a signal came; finished blocks are kept.
        """
        return {reading.name: self._whole(reading) for reading in readings}

    def _whole(self, reading: Reading) -> ReadBlock:
        if reading.given is not None:
            return ReadBlock(np.arange(reading.count), (reading.given,), [])
        with ExitStack() as stack:
            log = None
            if self.folder is not None and reading.count and reading.kept:
                log = stack.enter_context(BlockLog(log_of(self.folder, reading)))
            return joined(reading, self.made(reading, reading.blocks, log))

    def made(self, reading: Reading, blocks: range, log: BlockLog | None) -> Iterator[ReadBlock]:
        """A run of blocks in order: those that the log has, then the others, each kept before it is given.

        Raises:
            IiaeError: the disk is full.
            Interrupted: a signal came; the log has what was given.
        """
        items = reading.items(blocks)
        kept = 0 if log is None else min(len(log), len(blocks))
        done = len(reading.items(blocks[:kept]))
        with console.progress(f"{reading.verb} {reading.name}", len(items), "items") as progress:
            if kept:
                console.say(f"resuming {reading.name} at {done} of {len(items)}")
            progress.start_at(done)
            for number in range(kept):
                assert log is not None
                yield unpacked(log.read(number), reading)
            coming = reading.make(
                [reading.items(blocks[number : number + 1]) for number in range(kept, len(blocks))]
            )
            for number in range(kept, len(blocks)):
                self.stop.check(
                    "nothing was written"
                    if log is None
                    else f"{done} of {len(items)} items of {reading.name} are saved"
                )
                found = next(coming)
                if log is not None:
                    log.append(*packed(found, reading))
                done += len(reading.items(blocks[number : number + 1]))
                progress.update(done)
                yield found


NOTHING_KEPT = Work()


def log_of(folder: Path, reading: Reading) -> Path:
    """The file that keeps a reading's blocks."""
    return folder / f"{reading.log_name}.blocks"


def _read(
    files: Sequence[Path], start: int, read: Callable[[Path], tuple[Rows, ...]], workers: int
) -> ReadBlock:
    places: list[int] = []
    rows: list[tuple[Rows, ...]] = []
    errors: list[PictureError] = []
    for place, found in enumerate(read_all(files, read, workers), start):
        if isinstance(found, PictureError):
            errors.append(found)
        else:
            places.append(place)
            rows.append(found)
    return ReadBlock(
        np.array(places, np.int64),
        tuple(np.stack(column) for column in zip(*rows, strict=True)),
        errors,
    )


def packed(found: ReadBlock, reading: Reading) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """A block as arrays and lines, for a log."""
    place_of = {path: place for place, path in enumerate(reading.files)} if found.errors else {}
    failed = np.array([place_of[one.path] for one in found.errors], np.int64)
    arrays: dict[str, NDArray[Any]] = {
        f"rows{number}": one for number, one in enumerate(found.rows)
    }
    return {"places": found.places, "failed": failed, **arrays}, [
        one.reason for one in found.errors
    ]


def unpacked(block: Block, reading: Reading) -> ReadBlock:
    """The block of `packed`.

    Raises:
        IiaeError: it is not one of this reading.
    """
    try:
        places, failed = block.arrays["places"], block.arrays["failed"]
        rows = tuple(block.arrays[f"rows{number}"] for number in range(len(block.arrays) - 2))
        errors = [
            PictureError(reading.files[place], reason)
            for place, reason in zip(failed, block.lines, strict=True)
        ]
    except (KeyError, IndexError, ValueError) as error:
        raise IiaeError(
            "the kept work is damaged", "start over with --overwrite and without --resume"
        ) from error
    return ReadBlock(places, rows, errors)


def joined(reading: Reading, blocks: Iterable[ReadBlock]) -> ReadBlock:
    """Blocks as one, up to where the reading has enough; one of them is in memory beside the result."""
    most = reading.count if reading.enough is None else min(reading.enough, reading.count)
    arrays: tuple[Rows, ...] | None = None
    places: list[int] = []
    errors: list[PictureError] = []
    for block in blocks if most else ():
        if len(block.places):
            arrays = arrays or tuple(
                np.empty((most, *rows.shape[1:]), rows.dtype) for rows in block.rows
            )
            for array, rows in zip(arrays, block.rows, strict=True):
                array[len(places) : len(places) + len(rows)] = rows
        places += block.places.tolist()
        errors += block.errors
        if len(places) == reading.enough:
            break
    found = reading.nothing() if arrays is None else tuple(array[: len(places)] for array in arrays)
    return ReadBlock(np.array(places, np.int64), found, errors)
