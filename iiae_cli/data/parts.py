"""Parts of one piece of work, done apart and joined again: which part is whose, and whether all are
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from iiae_cli.common.errors import IiaeError

Item = TypeVar("Item")
_NAMED = 8  # missing parts that an error names


@dataclass(frozen=True)
class Part:
    """Which part of how many.

    Attributes:
        index: from 0.
        count: of parts.

    Raises:
        ValueError: there is no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"there is no part {self.index} of {self.count}")

    @property
    def name(self) -> str:
        """`I/N`, as on the command line."""
        return f"{self.index}/{self.count}"

    def of(self, total: int) -> range:
        """Its run of `total` units; the parts' runs follow one another, and differ in length by one
        at most.
        """
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


def all_in_order(parts: Sequence[tuple[Path, Part, Item]], again: str) -> list[Item]:
    """What belongs to the parts, in the order of the parts.

    Args:
        parts: (file, which part it holds, what belongs to it), in any order.
        again: the beginning of a hint, up to the options: how a missing part is made.

    Raises:
        IiaeError: they are of different divisions, or one is doubled or missing.
    """
    by_index: dict[int, tuple[Path, Item]] = {}
    first, whole, _ = parts[0]
    for path, part, item in parts:
        if part.count != whole.count:
            raise IiaeError(
                f"{path} is shard {part.name}, {first} {whole.name}",
                "merge shards of one division",
            )
        if part.index in by_index:
            raise IiaeError(
                f"shard {part.name} is given twice: {by_index[part.index][0]}, {path}",
                "name every shard once",
            )
        by_index[part.index] = path, item
    missing = whole.count - len(by_index)
    if missing:
        indices = islice((index for index in range(whole.count) if index not in by_index), _NAMED)
        names = [f"{index}/{whole.count}" for index in indices]
        named = f"shard {names[0]} is" if missing == 1 else f"shards {', '.join(names)} are"
        more = f" (and {missing - _NAMED} more)" if missing > _NAMED else ""
        raise IiaeError(f"{named} missing{more}", f"{again} --shard {names[0]} --resume")
    return [by_index[index][1] for index in range(whole.count)]
