"""Batches for the training loop, so that no step waits for its pictures.

Three ways, chosen by where things lie:

* rows in memory, networks on the CPU: read when asked for, which is a copy of some kilobytes;
* rows mapped from a file, or networks on a GPU: one thread reads the next step's rows (into pinned
memory for a GPU)
  while the current step computes;
* everything fits on the GPU: rows go there once, as uint8, and a step sends row numbers.

Scaling and resizing happen on the networks' device in every case, so all three give the same
batches.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from iiae_cli.data.batches import from_stored, stored_tensor
from iiae_cli.model import DOMAINS
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
        self._data = data
        self._indices_at = indices_at
        self._size = size
        self._device = device
        self._resident: Pair | None = None
        if _fits(data, device) if resident is None else resident:
            self._resident = (
                stored_tensor(data.train.x.rows).to(device),
                stored_tensor(data.train.y.rows).to(device),
            )
        mapped = any(isinstance(data.train.side(one).rows, np.memmap) for one in DOMAINS)
        self._pool: ThreadPoolExecutor | None = None
        if mapped or device.type != "cpu" if ahead is None else ahead:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._coming: tuple[int, Future[Pair]] | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> Pair:
        """The batch of a step; steps asked for in order are read ahead."""
        if self._pool is None:
            first, second = self._read(step)
        else:
            coming = self._coming if self._coming is not None and self._coming[0] == step else None
            first, second = (
                self._pool.submit(self._read, step) if coming is None else coming[1]
            ).result()
            self._coming = step + 1, self._pool.submit(self._read, step + 1)
        first, second = (one.to(self._device, non_blocking=True) for one in (first, second))
        if self._resident is not None:
            first, second = (
                rows.index_select(0, numbers)
                for rows, numbers in zip(self._resident, (first, second), strict=True)
            )
        return from_stored(first, self._size), from_stored(second, self._size)

    def _read(self, step: int) -> Pair:
        """What travels to the device: the rows as stored, or their numbers where the rows lie
        there.
        """
        indices = self._indices_at(step)
        found = (
            self._data.row_numbers(indices)
            if self._resident is not None
            else self._data.rows(indices)
        )
        first, second = (stored_tensor(one) for one in found)
        if self._device.type == "cuda":
            return first.pin_memory(), second.pin_memory()
        return first, second


def _fits(data: TrainingData, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return bool(data.train.x.rows.nbytes + data.train.y.rows.nbytes <= RESIDENT_SHARE * free)
