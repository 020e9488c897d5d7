"""Encoding many rows at the pace of the forward pass: read ahead, encode, write behind.

The rows of a job are numbered blocks of a few batches each, whoever makes them: one call, a resumed
one, or shards. All of them therefore run the same batches, and a merge has the values of one call.
Memory holds a few blocks, for a thousand rows as for a million.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from iiae_cli import __version__
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.blocks import Arrays, BlockStore
from iiae_cli.inference.inputs import Inputs, Read
from iiae_cli.inference.latents import LatentFormat, write_stream
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import Domain

READ_AHEAD = 2  # blocks
Item = TypeVar("Item")
Result = TypeVar("Result")
_HEAD = ("domain", "shared_shape", "preset", "metric", "source")


def batch_size_for(shape: tuple[int, ...]) -> int:
    """Returns a number of rows that a core's caches hold, by the shape of a row alone.

    On a CPU the paper's 256×256 networks are fastest with few pictures at once; a GPU is not slowed
    down by 16.
    """
    if len(shape) == 1:
        return 256
    return max(8, min(64, (1 << 20) // (shape[0] * shape[1])))


@dataclass(frozen=True)
class EncodeJob:
    """Rows and what encodes them.

    Attributes:
        trained: the model.
        domain: of the rows.
        inputs: the rows.
        form: what is kept.
        batch_size: rows at once.
        head: attributes of the cache.
    """

    trained: TrainedModel
    domain: Domain
    inputs: Inputs
    form: LatentFormat
    batch_size: int
    head: dict[str, Any]

    @property
    def block_rows(self) -> int:
        """Rows in a block: about a second's work, so that signals are answered soon."""
        return self.batch_size * (4 if self.batch_size >= 64 else 1)

    @property
    def total(self) -> int:
        """Number of blocks."""
        return -(-self.inputs.total // self.block_rows)

    def settings(self) -> dict[str, Any]:
        """Returns everything that decides the values, as JSON; errors name the keys."""
        return {
            **{name.replace("_", " "): self.head[name] for name in _HEAD},
            "model": self.head["fingerprint"],
            "options": {**asdict(self.form), "kinds": list(self.form.kinds)},
            "list of inputs": self.inputs.listing(),
            "content of the inputs": self.inputs.content(),
            "batch size": self.batch_size,
            "version": __version__,
        }

    def rows_of(self, numbers: range) -> range:
        """Returns the positions of the inputs in a run of blocks."""
        stop = min(self.inputs.total, numbers.stop * self.block_rows)
        return range(min(stop, numbers.start * self.block_rows), stop)

    def make(
        self,
        store: BlockStore,
        numbers: range,
        *,
        stop: Stop = NEVER,
        advance: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Encode those of these blocks that the store does not have.

        Args:
            store: of this job.
            numbers: a run of blocks.
            stop: asked before every block.
            advance: told how many inputs of the run are done.

        Raises:
            IiaeError: the disk is full, or a number format cannot hold a latent.
            Interrupted: a signal came; what was encoded is in the store.
        """
        missing, total = store.missing(numbers), len(self.rows_of(numbers))
        blocks = [self.rows_of(range(number, number + 1)) for number in missing]
        done = total - sum(map(len, blocks))
        with ThreadPoolExecutor(1, "write") as writer:
            written: Future[None] | None = None
            for number, read in zip(missing, ahead(self._read, blocks, READ_AHEAD), strict=True):
                saved = f"{done} of {total} inputs are saved in {store.folder}"
                stop.check(f"{saved}; continue with the same command and --resume")
                arrays = self._encoded(read)
                if written is not None:
                    written.result()
                written = writer.submit(store.append, number, arrays)
                done += len(read.positions) + len(read.skipped)
                advance(done)
            if written is not None:
                written.result()

    def _read(self, rows: range) -> Read:
        return self.inputs.read(rows.start, rows.stop)

    def _encoded(self, read: Read) -> Arrays:
        """Returns a block: ids, labels where known, lines of what was left out, and latents."""
        ids = [self.inputs.ids[place] for place in read.positions]
        block: Arrays = {"ids": _texts(ids), "skipped": _texts(read.skipped)}
        if self.inputs.labels is not None:
            block["labels"] = _texts([self.inputs.labels[place] for place in read.positions])
        if ids:
            encoded = self.trained.encode(
                read.rows,
                self.domain,
                shared="shared" in self.form.kinds,
                exclusive="exclusive" in self.form.kinds,
                batch_size=self.batch_size,
            )
            block |= self.form.stored(encoded, lambda row: ids[row])
        return block


def texts_of(blocks: Iterable[Arrays]) -> dict[str, list[str]]:
    """Returns the ids, labels and skipped lines of all blocks."""
    texts: dict[str, list[str]] = {"ids": [], "labels": [], "skipped": []}
    for block in blocks:
        for name, column in texts.items():
            if name in block:
                column += block[name].tolist()
    return texts


def write_blocks(
    path: Path,
    settings: dict[str, Any],
    blocks: Callable[[], Iterable[Arrays]],
    folder: Path,
) -> dict[str, list[str]]:
    """Write a cache from all blocks of a job, read twice; returns its texts.

    Raises:
        IiaeError: not one input could be read, or the file cannot be written.
    """
    texts = texts_of(blocks())
    if not texts["ids"]:
        raise IiaeError("none of the inputs could be read", "the lines above name each of them")
    arrays = (
        {name: values for name, values in block.items() if name not in texts}
        for block in blocks()
        if len(block["ids"])
    )
    head = {name: settings[name.replace("_", " ")] for name in _HEAD}
    head |= {"fingerprint": settings["model"], "job": json.dumps(settings, sort_keys=True)}
    write_stream(path, head, texts, arrays, folder=folder)
    return texts


def ahead(make: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """Yields `make` of each item, in order, made by a thread at most `depth` items ahead."""
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming: deque[Future[Result]] = deque()
        try:
            for item in items:
                coming.append(pool.submit(make, item))
                if len(coming) > depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def _texts(texts: Sequence[str]) -> np.ndarray[Any, np.dtype[Any]]:
    return np.array(texts, np.str_) if texts else np.empty(0, "<U1")
