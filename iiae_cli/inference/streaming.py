"""Encoding many rows at the pace of the forward pass: the next rows are read and the last latents
written meanwhile.

One thread reads ahead (and has its pictures decoded by others), the calling thread computes, one
thread writes. Every stage holds a few batches, so that memory is the same for a thousand rows and
for a million.

Every batch is filled up to one size. A network's layers may round differently for batches of
different sizes, never, as measured, for one size and other neighbours; so resumed, sharded and
uninterrupted encodings agree to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.block_log import BlockLog
from iiae_cli.inference.inputs import Inputs, Read
from iiae_cli.inference.latents import LatentFormat
from iiae_cli.inference.trained import Encoded, TrainedModel
from iiae_cli.model import Domain

READ_AHEAD = 3  # batches
WRITE_BEHIND = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Encoder:
    """A model and how it is applied.

    Attributes:
        trained: the model.
        domain: of the rows.
        batch_size: rows at once.
        format: which latents are kept, and as what.
    """

    trained: TrainedModel
    domain: Domain
    batch_size: int
    format: LatentFormat

    def __call__(self, rows: NDArray[Any]) -> Encoded:
        """Latents of at most a batch of rows."""
        count = len(rows)
        if count < self.batch_size:
            rows = np.concatenate([rows, np.repeat(rows[-1:], self.batch_size - count, axis=0)])
        encoded = self.trained.encode(
            rows,
            self.domain,
            batch_size=self.batch_size,
            shared="shared" in self.format.kinds,
            exclusive="exclusive" in self.format.kinds,
        )
        return Encoded(
            **{name: values[:count] for name, values in vars(encoded).items() if values is not None}
        )


def batch_size_for(shape: tuple[int, ...]) -> int:
    """Rows at once that a core's caches like, by the shape of a row alone, so that all shards
    choose the same.

    On a CPU the paper's 256×256 networks are fastest with few pictures at once; a GPU is not slowed
    down by 16.
    """
    if len(shape) == 1:
        return 256
    return max(8, min(64, (1 << 20) // (shape[0] * shape[1])))


def encode_stream(
    encoder: Encoder,
    inputs: Inputs,
    bounds: tuple[int, int],
    log: BlockLog,
    *,
    stop: Stop = NEVER,
    advance: Callable[[int], None] = lambda done: None,
) -> None:
    """Encode inputs start…stop−1, one block of the log for every batch; blocks that are there are
    not made again.

    Args:
        encoder: the model.
        inputs: what to read.
        bounds: (start, stop).
        log: of a call with the same encoder, inputs and bounds, or empty.
        stop: asked before every block.
        advance: told how many inputs are done.

    Raises:
        IiaeError: the disk is full, or a number format cannot hold a latent.
        Interrupted: a signal came; what was encoded is in the log.
    """
    first, end = bounds
    size = encoder.batch_size
    starts = range(first + len(log) * size, end, size)

    def read(start: int) -> Read:
        return inputs.read(start, min(start + size, end))

    def write(found: Read, encoded: Encoded | None) -> None:
        arrays = (
            {}
            if encoded is None
            else encoder.format.stored(encoded, lambda row: inputs.ids[found.positions[row]])
        )
        log.append({"positions": found.positions, **arrays}, found.skipped)

    writer = ThreadPoolExecutor(1, "write")
    pending: deque[Future[None]] = deque()
    try:
        for start, found in zip(starts, ahead(read, starts, READ_AHEAD), strict=True):
            if stop.exit_code is not None:
                while pending:
                    pending.popleft().result()
                stop.check(
                    f"{start - first} of {end - first} inputs are saved in {log.path.parent}"
                )
            pending.append(
                writer.submit(write, found, encoder(found.rows) if len(found.positions) else None)
            )
            if len(pending) > WRITE_BEHIND:
                pending.popleft().result()
            advance(min(start + size, end) - first)
        while pending:
            pending.popleft().result()
    finally:
        writer.shutdown(cancel_futures=True)


def ahead(make: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """`make` of each item, in order, made by another thread at most `depth` ahead of what
    is used.
    """
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
            for one in coming:
                one.cancel()
