"""A data set's plan: its splits, whose rows are files at first, and how the files are read.

Reading takes long, so it is done in numbered blocks (`data/blocks.py`): a block is kept before the
next one begins, and several processes may share the work. A block's content depends on its files
alone. What follows is cheap, and repeated by whoever writes the data file.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.common.environment import free_memory
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.data.blocks import Arrays, BlockStore
from iiae_cli.data.datafile import Rows, Split, versions, write_data_file
from iiae_cli.data.pictures import PictureError, read_all
from iiae_cli.model import DOMAINS, Domain

BLOCK_FILES = 64
Read: TypeAlias = Rows | PictureError  # what a file holds of a domain, or why it holds nothing


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
    def source_path(self) -> Path:
        """The source of a set that has one."""
        assert self.source is not None
        return self.source

    @property
    def wants_backbone(self) -> bool:
        """Whether an option is set that only matters for features of pictures."""
        names = ("backbone", "backbone_weights", "pool", "fine_tune_epochs", "save_backbone")
        return any(getattr(self, name) is not None for name in names)


# Options that decide where and how fast data are made, not their values.
_MACHINE = ("download", "device", "workers", "save_backbone")
DECIDING = [item.name for item in fields(PrepareOptions) if item.name not in _MACHINE]


@dataclass(frozen=True)
class Work:
    """The folder in which a preparation works, and what stops it."""

    folder: Path  # holds files that a resumed call continues; removed at the end
    output: Path  # the file to write
    stop: Stop = NEVER


@dataclass(frozen=True)
class Reader:
    """Turns a domain's files into rows, `size` of them at a time."""

    read: Callable[[Domain, Sequence[Sequence[Path]], Work], Iterator[Sequence[Read]]]
    size: int
    verb: str = "reading"


def file_reader(read: Callable[[Path, Domain], Rows], size: int, workers: int = 1) -> Reader:
    """Returns a reader by a function, which raises PictureError for an unreadable file."""
    return Reader(
        lambda domain, blocks, work: (
            read_all(files, lambda path: read(path, domain), workers) for files in blocks
        ),
        size,
    )


class Block(NamedTuple):
    """Files that are read at once; one that holds both domains is read for each of them."""

    side: str  # SPLIT/DOMAIN
    domain: Domain
    start: int  # the first one's place in its side
    files: list[Path]


@dataclass
class Plan:
    """A data set's splits, which are complete after `read`."""

    splits: dict[str, Split]  # until then, rows are files (N,) where there is a reader
    attributes: dict[str, str] = field(default_factory=dict)  # of the data file
    reader: Reader | None = None
    by_class: bool = False  # x and y share classes, not pairs
    finish: Callable[[Plan, Work], None] | None = None  # decides what depends on rows
    whole: IiaeError | None = None  # why processes cannot divide the work, if so
    skipped: list[str] = field(default_factory=list)  # a line for every input left out

    @property
    def blocks(self) -> list[Block]:
        """Every block in order."""
        if self.reader is None:
            return []
        blocks, size = list[Block](), self.reader.size
        for domain, (name, split) in product(DOMAINS, self.splits.items()):
            files = split.side(domain).rows.tolist()
            for start in range(0, len(files), size):
                part = files[start : start + size]
                blocks.append(Block(f"{name}/{domain}", domain, start, part))
        return blocks

    def state(self) -> str:
        """Returns a digest over what decides the rows: files (by name, size, time), attributes."""
        known = {k: text for k, text in self.attributes.items() if k not in ("notes", "backbone")}
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
        for block in self.blocks:
            for path in block.files:
                with suppress(OSError):
                    status = path.stat()
                    digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
                name = f"{block.side}\0{path.absolute()}\0"
                digest.update(name.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def make(self, store: BlockStore, numbers: range, work: Work) -> None:
        """Makes the blocks that the store lacks, side by side; a stop keeps finished ones."""
        reader, blocks = self.reader, self.blocks

        def made(missing: list[int]) -> Iterator[Arrays]:
            assert reader is not None
            wanted = [blocks[number].files for number in missing]
            domain = blocks[missing[0]].domain
            return map(_packed, reader.read(domain, wanted, work))

        for side, group in groupby(numbers, lambda number: blocks[number].side):
            sizes = {number: len(blocks[number].files) for number in group}
            if reader is not None and store.missing(sizes):
                store.fill(sizes, made, f"{reader.verb} {side}", work.stop)

    def summary(self, made: Iterable[Arrays], numbers: range) -> tuple[dict[str, int], list[str]]:
        """Returns the number of items by side in these blocks, and a line per unreadable one."""
        blocks, skipped = self.blocks, dict[str, None]()
        rows = dict.fromkeys((block.side for block in blocks), 0)
        for number, arrays in zip(numbers, made, strict=True):
            rows[blocks[number].side] += len(arrays["places"])
            skipped |= dict.fromkeys(arrays["skipped"].tolist())
        return rows, [*skipped]

    def read(self, made: Iterable[Arrays], work: Work) -> None:
        """Replaces files by their rows, from all blocks in order, and leaves unreadable ones out.

        Memory holds the rows and one block; arrays that take more than half of the free memory are
        files in the folder of `work`. Raises IiaeError if nothing is left.
        """
        if self.reader is not None:
            found: dict[str, _Found] = {}
            for name, domain in product(self.splits, DOMAINS):
                unread = np.zeros(len(self.splits[name].side(domain)), np.bool_)
                found[f"{name}/{domain}"] = _Found(unread, work.folder / f"{name}-{domain}")
            for block, arrays in zip(self.blocks, made, strict=True):
                self.skipped += arrays["skipped"].tolist()
                found[block.side].add(block.start, arrays)
            self.skipped = [*dict.fromkeys(self.skipped)]
            for name, split in self.splits.items():
                sides = [found[f"{name}/{domain}"] for domain in DOMAINS]
                self.splits[name] = _readable(split, sides, self.by_class)
        with naming(self.skipped):
            if not self.by_class:
                self.splits = {name: item for name, item in self.splits.items() if item.pair_count}
            if not self.splits:
                source, hint = self.attributes.get("source"), "iiae prepare --help has the layouts"
                hint = f"the warnings above say why; {hint}" if self.skipped else hint
                raise IiaeError(f"{source} holds nothing that can be read", hint)
            if self.finish is not None:
                self.finish(self, work)

    def job(self, name: str, options: PrepareOptions) -> dict[str, Any]:
        """Returns everything that decides a data file's arrays, as JSON."""
        return {
            "data set": name,
            **{option: getattr(options, option) for option in DECIDING},
            "source": options.source and str(options.source.absolute()),
            "content of the source": self.state(),
            "weights": self.attributes.get("backbone", ""),
            "version": versions(),
        }

    def write(
        self,
        path: Path,
        job: Mapping[str, Any],
        *,
        commands: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        """Writes the data file; `commands` made its shards, `folder` holds the temporary file."""
        attributes = {
            **self.attributes,
            "command": "; ".join([*commands, command_line()]),
            "settings_sha256": digest_of(job),
            "seed": str(job["seed"]),
            "versions": json.dumps(versions(), sort_keys=True),
            "skipped": str(len(self.skipped)),
        }
        name = job["data set"]
        write_data_file(path, name, self.splits, attributes, skipped=self.skipped, folder=folder)


def command_line() -> str:
    """Returns the command line, as it is without interruptions."""
    return shlex.join(word for word in sys.argv if word not in ("--resume", "--overwrite"))


def digest_of(job: Mapping[str, Any]) -> str:
    """Returns the SHA-256, in hex, of a job."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()


@contextmanager
def naming(skipped: Collection[str]) -> Iterator[None]:
    """Warns of every input that was left out before an error that ends the command."""
    try:
        yield
    except IiaeError:
        for line in skipped:
            console.warn(f"skipped {line}")
        raise


@dataclass
class _Found:
    """The rows of a side, added block by block."""

    readable: NDArray[np.bool_]  # of every file
    file: Path  # for rows that do not fit into the memory
    rows: Rows = field(default_factory=lambda: np.empty(0))

    def add(self, start: int, made: Arrays) -> None:
        places, rows = start + made["places"], made.get("rows")
        if rows is None:
            return
        if not self.readable.any():
            shape = (len(self.readable), *rows.shape[1:])
            large = math.prod(shape) * rows.itemsize > free_memory() // 2
            kept = partial(np.memmap, self.file, mode="w+") if large else np.empty
            self.rows = kept(shape=shape, dtype=rows.dtype)
        self.readable[places] = True
        self.rows[places] = rows

    def take(self, kept: NDArray[np.int64]) -> Rows:
        """Returns rows, ascending, moved up in their array: a copy may not fit into the memory."""
        for start in range(0, len(kept), BLOCK_FILES) if len(kept) < len(self.rows) else ():
            block = kept[start : start + BLOCK_FILES]
            self.rows[start : start + len(block)] = self.rows[block]
        return self.rows[: len(kept)]


def _packed(made: Sequence[Read]) -> Arrays:
    """Packs a block: places of readable files, a line for each other one, and the rows."""
    rows = {place: item for place, item in enumerate(made) if not isinstance(item, PictureError)}
    lost = [str(item) for item in made if isinstance(item, PictureError)]
    arrays = {"places": np.array([*rows], np.int64), "skipped": np.array(lost, np.str_)}
    return {**arrays, "rows": np.stack([*rows.values()])} if rows else arrays


def _readable(split: Split, found: Sequence[_Found], by_class: bool) -> Split:
    """Returns a split with the rows found of x and y, without pairs of which one is missing."""
    kept = [np.flatnonzero(item.readable) for item in found]
    factors, pairs = split.factors, split.pairs
    if not by_class:
        columns = [np.arange(len(split.x))] * 2 if pairs is None else pairs.T
        whole = found[0].readable[columns[0]] & found[1].readable[columns[1]]
        factors = {name: values[whole] for name, values in factors.items()}
        used = [np.unique(column[whole], return_inverse=True) for column in columns]
        kept = [rows for rows, _ in used]
        pairs = None if pairs is None else np.stack([inverse for _, inverse in used], 1)
    x, y = (
        replace(split.side(domain).take(rows), rows=item.take(rows))
        for domain, rows, item in zip(DOMAINS, kept, found, strict=True)
    )
    return Split(x, y, factors, pairs)
