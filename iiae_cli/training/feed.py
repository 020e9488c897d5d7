"""Batches for the training loop, so that no step waits for its rows.

* Rows in memory, networks on the CPU: rows are read when asked for, a copy of some kilobytes.
* Rows mapped from a file, or networks on a GPU: one thread reads the next step's rows (into pinned
  memory for a GPU) while the current step computes.
* Everything fits on the GPU: rows go there once, as uint8, and a step sends row numbers.

Scaling and resizing happen on the networks' device, so all three give the same batches.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from iiae_cli.data.batches import from_stored, stored_tensor
from iiae_cli.training.data import Indices, TrainingData

Pair: TypeAlias = tuple[Tensor, Tensor]

RESIDENT_SHARE = 0.25  # of a GPU's free memory that rows may take


class Feed:
    """x (B, …) and y (B, …) of any step, on the networks' device; a context manager.

    Args:
        data: where rows come from.
        indices_at: what step 0, 1, … reads; a pure function of the step.
        size: (H, W) that pictures are resized to; None for features.
        device: the networks'.
        ahead: read the next step in a thread; None: where it helps.
        resident: keep all rows on the device; None: where they fit on a GPU.
    """

    def __init__(
        self,
        data: TrainingData,
        indices_at: Callable[[int], Indices],
        size: tuple[int, int] | None,
        device: torch.device,
        *,
        ahead: bool | None = None,
        resident: bool | None = None,
    ) -> None:
        self._data, self._indices_at = data, indices_at
        self._size, self._device = size, device
        sides = data.train.x.rows, data.train.y.rows
        self._resident: Pair | None = None
        if _fits(data, device) if resident is None else resident:
            self._resident = stored_tensor(sides[0]).to(device), stored_tensor(sides[1]).to(device)
        slow = device.type != "cpu" or any(isinstance(rows, np.memmap) for rows in sides)
        self._pool: ThreadPoolExecutor | None = None
        if slow if ahead is None else ahead:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._coming: tuple[int, Future[Pair]] | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> Pair:
        """The batch of a step; steps asked for in order are read ahead."""
        if self._pool is None:
            read = self._read(step)
        else:
            started = self._coming is not None and self._coming[0] == step
            coming = self._coming[1] if started else self._pool.submit(self._read, step)  # type: ignore[index]
            read = coming.result()
            self._coming = step + 1, self._pool.submit(self._read, step + 1)
        x, y = (part.to(self._device, non_blocking=True) for part in read)
        if self._resident is not None:
            x, y = self._resident[0].index_select(0, x), self._resident[1].index_select(0, y)
        return from_stored(x, self._size), from_stored(y, self._size)

    def _read(self, step: int) -> Pair:
        """What travels to the device: the rows as stored, or their numbers if rows lie there."""
        indices = self._indices_at(step)
        lookup = self._data.rows if self._resident is None else self._data.row_numbers
        x, y = (stored_tensor(part) for part in lookup(indices))
        return (x.pin_memory(), y.pin_memory()) if self._device.type == "cuda" else (x, y)


def _fits(data: TrainingData, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    size = data.train.x.rows.nbytes + data.train.y.rows.nbytes
    return bool(size <= RESIDENT_SHARE * free)
