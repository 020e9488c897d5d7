"""Several processes (ranks) that train one model, each on its slice of every batch.

Batch norm reads the whole batch on GPUs (SyncBatchNorm, unless `training.batch_norm=local`) and
each rank's slice on CPUs. Noise, dropout and augmentation are seeded by rank. Messages other than
gradients go over gloo on the CPU, which neither waits for a GPU nor times out while rank 0
validates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, Stop

Value = TypeVar("Value")

MEETING = timedelta(minutes=10)  # limit for all ranks to arrive, and for one sum of gradients
WORD = 10.0  # seconds between messages while a rank waits
POLL = 0.1  # seconds between looks at the meeting and at signals
PATIENCE = timedelta(hours=4)  # limit for rank 0 to validate and write
_SIGNS = ("gloo", "connection", "nccl", "peer", "socket", "timed out")  # that a rank is gone


class _Control:
    group: Any = None  # for all communication but gradients


@dataclass(frozen=True)
class World:
    """This process among those that train together; by default alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the ranks on this machine; selects the GPU
    address: str = ""  # HOST:PORT at which ranks meet

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """Returns this rank's device, given the configured one."""
        if self.size == 1 or chosen.type == "cpu":
            return chosen
        count = torch.cuda.device_count()
        alone = count == 1 and "SLURM_STEP_ID" in os.environ  # srun may hide the others
        index = 0 if alone else self.local_rank
        if chosen.type != "cuda" or chosen.index is not None or index >= count:
            raise IiaeError(
                f"{self.size} ranks cannot train on {chosen}: rank {self.rank} sees {count} GPUs",
                "pass --device cuda and start a process for each GPU, or pass --device cpu",
            )
        return torch.device("cuda", index)

    @contextmanager
    def joined(self, device: torch.device, stop: Stop) -> Iterator[None]:
        """Meets the other ranks, and leaves them at the end; raises if one is lost."""
        if self.size == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _meet(self, "nccl" if device.type == "cuda" else "gloo", stop)
        try:
            yield
            # not after an error: it would wait for ranks that are gone
            dist.destroy_process_group()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            if not any(sign in reason.lower() for sign in _SIGNS):
                raise
            raise IiaeError(
                f"another rank has ended: {reason[:200]}",
                "see what the other ranks said; then run again with --resume",
            ) from error

    def agree(self, number: int) -> int:
        """Returns the largest of all ranks' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=_Control.group)
        return int(largest)

    def share(self, make: Callable[[], Value]) -> Value:
        """Returns on all ranks what rank 0 makes; the others wait for it."""
        if self.size == 1:
            return make()
        values: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(values, 0, group=_Control.group, device=torch.device("cpu"))
        shared: Value = values[0]
        return shared

    def seed(self, seed: int) -> int:
        """Returns the seed of this rank's noise; rank 0 keeps `seed` itself."""
        if self.first:
            return seed
        return int(np.random.SeedSequence((seed, self.rank)).generate_state(1, np.uint32)[0])


def _meet(world: World, backend: str, stop: Stop) -> None:
    """Joins the process group in a thread, so that a signal ends the wait for other ranks."""
    name, errors = f"rank {world.rank} of {world.size}", list[Exception]()

    def join() -> None:
        try:
            dist.init_process_group(
                backend, f"tcp://{world.address}", MEETING, world.size, world.rank
            )
            _Control.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        except Exception as error:  # raised again below, in the main thread
            errors.append(error)

    meeting, started, words = Thread(target=join, daemon=True), time.monotonic(), 1
    meeting.start()
    while meeting.is_alive():
        meeting.join(POLL)
        stop.check()
        waited = time.monotonic() - started
        if waited >= words * WORD:
            words += 1
            console.warn(f"{name} waits for the others at {world.address} ({waited:.0f} s so far)")
    if errors:
        time.sleep(1.0)  # a signal to all ranks may have ended the others first
        stop.check()
        raise IiaeError(
            f"{name} cannot meet the others at {world.address}: "
            f"{' '.join(str(errors[0]).split())[:200]}",
            "start every rank with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE; "
            "see what the others said",
        ) from errors[0]


def find_world(environment: Mapping[str, str]) -> World:
    """Reads the world from a launcher's environment.

    torchrun's variables take precedence. Those of an srun step with several tasks count only with
    MASTER_ADDR, as one step may also run several independent trainings.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    if "WORLD_SIZE" not in environment and "MASTER_ADDR" in environment:
        names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    try:
        if int(environment.get(names[0], "1")) == 1:
            return World()
        host, job = environment["MASTER_ADDR"], int(environment.get("SLURM_JOB_ID", "0"))
        port = int(environment.get("MASTER_PORT", 20000 + job % 20000))
        size, rank, local = (int(environment[name]) for name in names)
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} of {size}, counted from 0")
        if not 0 < port < 2**16:
            raise ValueError(f"no port in {host}:{port}")
        return World(rank, size, local, f"{host}:{port}")
    except (KeyError, ValueError) as error:
        raise IiaeError(
            f"the launcher's variables are incomplete or wrong: {error}",
            "start with torchrun, or with srun and MASTER_ADDR set; or unset WORLD_SIZE",
        ) from error


class Share:
    """One rank's slice of every batch; combines ranks' losses and gradients into the whole batch's.

    If `batch_size` rows do not divide evenly, some ranks take one row more.
    """

    def __init__(self, world: World, batch_size: int) -> None:
        if batch_size < 2 * world.size and world.size > 1:  # batch norm needs two rows
            raise IiaeError(
                f"a batch of {batch_size} pairs is too small for {world.size} ranks",
                "start fewer processes, or raise --batch-size",
            )
        first, last = (
            round(batch_size * rank / world.size) for rank in (world.rank, world.rank + 1)
        )
        self.rows = slice(first, last)  # this rank's, within the batch
        self.weight = (last - first) / batch_size  # the fraction of rows that are this rank's
        self.scale = self.weight * world.size  # of losses, for DDP averages gradients over ranks
        self.world, self._batch_size = world, batch_size

    def gather(self, rows: Tensor) -> Tensor:
        """Returns the whole batch's rows (N, …) from this rank's (B, …), differentiably."""
        if self.world.size == 1:
            return rows
        padded = rows.new_zeros((self._batch_size, *rows.shape[1:]))
        padded[self.rows] = rows
        whole: Tensor = _Sum.apply(padded)
        return whole

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns means over the whole batch from every rank's means over its rows."""
        if self.world.size == 1 or not terms:
            return dict(terms)
        total = torch.stack([value.detach().double().cpu() for value in terms.values()])
        total *= self.weight
        dist.all_reduce(total, group=_Control.group)
        return {name: total[i].to(value) for i, (name, value) in enumerate(terms.items())}


class _Sum(torch.autograd.Function):
    """The sum of all ranks' tensors; backwards, the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        whole = rows.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        whole: Tensor = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole
