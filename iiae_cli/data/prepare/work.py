"""Where a builder keeps what is finished, so that a preparation that was killed is taken up.

Builders that read many files do so through `Work.blocks`: a block of finished rows is kept before the next one is
begun, and one that is kept is not read again. Builders that only compute for seconds start over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli import console
from iiae_cli.blocks import Block, BlockLog
from iiae_cli.data.pictures import PictureError, read_all
from iiae_cli.errors import IiaeError, Interrupted

BLOCK_FILES = 64
Rows: TypeAlias = NDArray[np.uint8]


def never() -> int | None:
    """No signal has come."""
    return None


@dataclass(frozen=True)
class ReadBlock:
    """What came of some files.

    Attributes:
        places: (M,) of those that could be read, among all.
        rows: what was read of them, one array (M, …) for each that `read` gives.
        errors: of the others.
    """

    places: NDArray[np.int64]
    rows: tuple[Rows, ...]
    errors: list[PictureError]


@dataclass(frozen=True)
class Work:
    """One preparation's folder and its ear for signals.

    Attributes:
        folder: whose content belongs to this preparation; None: nothing is kept.
        interrupted: the exit code of a signal that has come, or None.
    """

    folder: Path | None = None
    interrupted: Callable[[], int | None] = never

    def check(self) -> None:
        """Stop where a signal has come and nothing needs to be kept.

        Raises:
            Interrupted: one has.
        """
        code = self.interrupted()
        if code is not None:
            raise Interrupted(code, "nothing was written")

    def blocks(
        self,
        name: str,
        files: Sequence[Path],
        read: Callable[[Path], tuple[Rows, ...]],
        *,
        workers: int = 1,
        size: int = BLOCK_FILES,
    ) -> Iterator[ReadBlock]:
        """Read files in order, `size` at a time, all results of `read` of equal shapes.

        Args:
            name: of this reading, unique in the preparation.
            files: what to read.
            read: gives the arrays of one file, or raises PictureError.
            workers: threads.
            size: files in a block.

        Raises:
            IiaeError: the disk is full.
            Interrupted: a signal came; finished blocks are kept.
        """
        with ExitStack() as stack:
            log = None
            if self.folder is not None and files:
                log = stack.enter_context(BlockLog(self.folder / f"{name.replace('/', '-')}.blocks"))
            progress = stack.enter_context(console.progress(f"reading {name}", len(files), "files"))
            kept = 0 if log is None else min(len(log), -(-len(files) // size))
            if kept:
                console.say(f"resuming {name} at file {min(len(files), kept * size)} of {len(files)}")
            progress.start_at(min(len(files), kept * size))
            for number, start in enumerate(range(0, len(files), size)):
                some = files[start : start + size]
                if log is not None and number < kept:
                    yield _unpacked(log.read(number), files)
                    continue
                code = self.interrupted()
                if code is not None:
                    raise Interrupted(code, f"{start} of {len(files)} files of {name} are saved")
                found = _read(some, start, read, workers)
                if log is not None:
                    log.append(*_packed(found, files))
                progress.update(start + len(some))
                yield found


NOTHING_KEPT = Work()


def _read(files: Sequence[Path], start: int, read: Callable[[Path], tuple[Rows, ...]], workers: int) -> ReadBlock:
    places: list[int] = []
    rows: list[tuple[Rows, ...]] = []
    errors: list[PictureError] = []
    for place, found in enumerate(read_all(files, read, workers), start):
        if isinstance(found, PictureError):
            errors.append(found)
        else:
            places.append(place)
            rows.append(found)
    return ReadBlock(np.array(places, np.int64), tuple(np.stack(column) for column in zip(*rows, strict=True)), errors)


def _packed(found: ReadBlock, files: Sequence[Path]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    place_of = {path: place for place, path in enumerate(files)} if found.errors else {}
    failed = np.array([place_of[one.path] for one in found.errors], np.int64)
    arrays: dict[str, NDArray[Any]] = {f"rows{number}": one for number, one in enumerate(found.rows)}
    return {"places": found.places, "failed": failed, **arrays}, [one.reason for one in found.errors]


def _unpacked(block: Block, files: Sequence[Path]) -> ReadBlock:
    try:
        places, failed = block.arrays["places"], block.arrays["failed"]
        rows = tuple(block.arrays[f"rows{number}"] for number in range(len(block.arrays) - 2))
        errors = [PictureError(files[place], reason) for place, reason in zip(failed, block.lines, strict=True)]
    except (KeyError, IndexError, ValueError) as error:
        raise IiaeError("the kept work is damaged", "start over with --overwrite and without --resume") from error
    return ReadBlock(places, rows, errors)


def joined(
    blocks: Iterable[ReadBlock], most: int, shapes: Sequence[tuple[int, ...]]
) -> tuple[NDArray[np.int64], tuple[Rows, ...], list[PictureError]]:
    """All places (N,); all rows, one array (N, *SHAPE) for each of `shapes`; all errors.

    Args:
        blocks: one of them is in memory beside the result.
        most: files at most.
        shapes: of one row.
    """
    arrays = tuple(np.empty((most, *shape), np.uint8) for shape in shapes)
    places: list[int] = []
    errors: list[PictureError] = []
    for block in blocks:
        for array, rows in zip(arrays, block.rows, strict=False):  # none where nothing could be read
            array[len(places) : len(places) + len(rows)] = rows
        places += block.places.tolist()
        errors += block.errors
    return np.array(places, np.int64), tuple(array[: len(places)] for array in arrays), errors
