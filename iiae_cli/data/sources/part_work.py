"""The two halves of a preparation that is divided: making a part of the blocks, and reading what others have made.

A part is a run of the blocks of all readings, one reading after the other, so that its blocks are those of an undivided
preparation, batch by batch. Merging runs the builder once more: what is cheap is done again, and `MergeWork` gives the
rows, unread, instead of making them; so a merged file is what the builder would have written by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.blocks import BlockLog
from iiae_cli.data.late_rows import LateRows, Piece, as_array
from iiae_cli.data.parts import Part
from iiae_cli.data.pictures import PictureError
from iiae_cli.data.sources.part_files import REMEDY, Items, PartFile, Share
from iiae_cli.data.sources.work import ReadBlock, Reading, Rows, Work, log_of


class PartDone(Exception):
    """Raised where a builder asks for rows, in their place: the part is made, and no more is wanted of the builder.

    Args:
        shares: every reading, and which of its blocks were made.
    """

    def __init__(self, shares: list[tuple[Reading, range]]) -> None:
        super().__init__("the part is made")
        self.shares = shares


def shares_of(readings: Sequence[Reading], part: Part) -> list[tuple[Reading, range]]:
    """A part's run of all blocks, as a run of each reading's; some or all may be empty."""
    mine = part.of(sum(len(reading.blocks) for reading in readings))
    shares: list[tuple[Reading, range]] = []
    before = 0
    for reading in readings:
        count = len(reading.blocks)
        first, stop = (min(max(end - before, 0), count) for end in (mine.start, mine.stop))
        shares.append((reading, range(first, stop)))
        before += count
    return shares


@dataclass(frozen=True)
class PartWork(Work):
    """Makes and keeps one part of the blocks, in `folder`.

    Attributes:
        part: which one.
    """

    part: Part = field(default_factory=lambda: Part(0, 1))

    @property
    def whole(self) -> bool:
        """It is not."""
        return False

    def read(self, readings: Sequence[Reading]) -> dict[str, ReadBlock]:
        """Make this part's blocks; gives no rows.

        A reading that would have enough before its end is made to its end, as no part knows what the others can read.

        Raises:
            PartDone: always, in the end.
            IiaeError: the disk is full.
            Interrupted: a signal came; finished blocks are kept.
        """
        assert self.folder is not None
        shares = shares_of(readings, self.part)
        mine, total = (
            sum(len(one.items(blocks)) for one, blocks in shares),
            sum(one.count for one in readings),
        )
        console.say(f"shard {self.part.name}: {mine} of {total} items")
        for reading, blocks in shares:
            if blocks:
                with BlockLog(log_of(self.folder, reading)) as log:
                    for _ in self.made(reading, blocks, log):
                        pass
                    log.sync()
        raise PartDone(shares)


@dataclass(frozen=True)
class MergeWork(Work):
    """Gives the rows that lie in the files of parts.

    Attributes:
        parts: all of one preparation, in order.
    """

    parts: Sequence[PartFile] = ()

    @property
    def whole(self) -> bool:
        """It is not."""
        return False

    def read(self, readings: Sequence[Reading]) -> dict[str, ReadBlock]:
        """All rows, to be read from the files when they are written.

        Raises:
            IiaeError: the source is not what the parts were made of, or a part is damaged.
        """
        first = self.parts[0]
        found = {reading.name: Items.of(reading) for reading in readings}
        for name in {**found, **first.shares}:
            here, there = (
                found.get(name),
                first.shares[name].items if name in first.shares else None,
            )
            if here != there:
                other = (
                    "network or its library"
                    if here and there and here.identity == there.identity
                    else "source"
                )
                raise IiaeError(
                    f"the {other} of {name} is not what it was when {first.path} was made",
                    "merge with what the shards were made with, or make all shards again",
                )
        for part in self.parts:
            for reading, blocks in shares_of(readings, part.part):
                if part.shares[reading.name].blocks != blocks:
                    raise IiaeError(
                        f"{part.path} is damaged: it holds other blocks of {reading.name}", REMEDY
                    )
        return {reading.name: self._joined(reading) for reading in readings}

    def _tick(self) -> None:
        self.stop.check("nothing was written")

    def _joined(self, reading: Reading) -> ReadBlock:
        shares = [part.shares[reading.name] for part in self.parts]
        places = np.concatenate([share.places for share in shares])
        failed = [
            (place, PictureError(reading.files[place], reason))
            for share in shares
            for place, reason in zip(share.failed.tolist(), share.reasons, strict=True)
        ]
        if reading.enough is not None and len(places) >= reading.enough:
            places = places[: reading.enough]
            last = places[-1] if len(places) else -1
            failed = [(place, error) for place, error in failed if place < last]
        rows = self._rows(reading, shares, len(places)) if len(places) else reading.nothing()
        return ReadBlock(places, rows, [error for _, error in failed])

    def _rows(self, reading: Reading, shares: Sequence[Share], count: int) -> tuple[Rows, ...]:
        kinds = next(share.kinds for share in shares if share.kinds)
        for part, share in zip(self.parts, shares, strict=True):
            if share.kinds and (share.kinds != kinds or len(kinds) != len(reading.shapes)):
                raise IiaeError(f"{part.path} holds rows of other shapes in {reading.name}", REMEDY)
        return tuple(
            as_array(
                LateRows(
                    [
                        Piece(part.path, f"{reading.log_name}/rows{number}", len(share.places))
                        for part, share in zip(self.parts, shares, strict=True)
                        if len(share.places)
                    ],
                    shape,
                    dtype,
                    remedy=REMEDY,
                    tick=self._tick,
                )[:count]
            )
            for number, (shape, dtype) in enumerate(kinds)
        )
