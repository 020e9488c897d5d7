"""What torchrun and srun add: ranks that train one model, each on its slice of every batch; little else knows of ranks.

The number of ranks changes nothing but speed. Every rank draws the noise and the dropout masks of the whole batch and
takes its own rows of them; batch norm reads the whole batch (`synchronised`) or each rank's own slice (`local`); losses
and gradients are weighted by rows and summed. So a run may go on with more ranks or fewer than it began with.

Gradients are summed in one flat buffer after the backward pass, loss terms and running statistics with them. The models
are small, so overlapping communication with the backward pass (DistributedDataParallel) would gain little, and a plain
sum leaves the model's names, the optimiser and checkpoints as they are.

What ranks say to one another beside gradients (stop, resume at that step) goes over gloo, whatever the device: it must
neither wait for the GPU nor be taken for dead while rank 0 validates, and it notices at once that a rank has gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.model.gaussian import Part
from iiae_cli.training.distributed_layers import peers, replace_layers, total_of, whole_of

MEETING = timedelta(minutes=10)  # for all ranks to appear, and for one sum of gradients
PATIENCE = timedelta(hours=4)  # for rank 0 to validate and write


@dataclass(frozen=True)
class World:
    """Which of how many processes this is; the default is one process alone, for which everything here does nothing.

    Attributes:
        rank: of this process; rank 0 writes files and speaks.
        size: how many train together.
        local_rank: among those on this machine: which GPU to take.
        address: where they meet, as an URL for `init_process_group`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "env://"

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """This rank's device, where `chosen` is the one that the configuration means.

        Raises:
            IiaeError: the ranks of a machine would share a GPU, or the device has no communication.
        """
        if self.size == 1 or chosen.type == "cpu":
            return chosen
        if chosen.type != "cuda":
            raise IiaeError(
                f"{self.size} ranks cannot train on {chosen}",
                "choose --device cuda or --device cpu",
            )
        if chosen.index is not None:
            raise IiaeError(
                f"--device {chosen} names one GPU for {self.size} ranks",
                "pass --device cuda: each rank takes its own",
            )
        count = torch.cuda.device_count()
        index = (
            0 if count == 1 and "SLURM_STEP_ID" in os.environ else self.local_rank
        )  # srun may show each its own
        if index >= count:
            raise IiaeError(
                f"rank {self.rank} is number {self.local_rank} on its machine, which has {count} GPUs",
                "start as many processes per machine as it has GPUs, or pass --device cpu",
            )
        return torch.device("cuda", index)

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Meet the other ranks, and leave them at the end.

        Raises:
            IiaeError: they do not appear.
        """
        if self.size == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with peers(f"the {self.size} ranks did not meet"):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=self.address,
                rank=self.rank,
                world_size=self.size,
                timeout=MEETING,
            )
            _Control.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield
        dist.destroy_process_group()  # not after an error: it would wait for ranks that are gone

    def agree(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        with peers():
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=_Control.group)
        return int(largest)

    def share(self, value: Any) -> Any:
        """Rank 0's value for all: anything that JSON holds. The others wait for it."""
        if self.size == 1:
            return value
        content = json.dumps(value).encode() if self.first else b""
        size = torch.tensor(len(content))
        with peers():
            dist.broadcast(size, 0, group=_Control.group)
            message = torch.zeros(int(size), dtype=torch.uint8)
            if self.first:
                message = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            dist.broadcast(message, 0, group=_Control.group)
        return json.loads(bytes(message.tolist()))

    def same_weights(self, model: nn.Module) -> None:
        """Give every rank rank 0's weights: seeds agree, but closed-form starts differ between processors."""
        if self.size == 1:
            return
        with peers(), torch.no_grad():
            for values in model.state_dict().values():
                dense = values.contiguous()
                dist.broadcast(dense, 0)
                values.copy_(dense)


class _Control:
    group: Any = None


def find_world(environment: Mapping[str, str]) -> World:
    """The world that a launcher's environment describes.

    torchrun's variables count first. Those of an srun step with several tasks count only where MASTER_ADDR is set
    too: a person who runs several independent trainings in one step does not set it.

    Raises:
        IiaeError: the variables are incomplete or no numbers.
    """
    try:
        if int(environment.get("WORLD_SIZE", "1")) > 1:
            missing = [
                name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment
            ]
            if missing:
                raise IiaeError(
                    f"WORLD_SIZE is set, but not {missing[0]}",
                    "start with torchrun, or unset WORLD_SIZE",
                )
            rank = int(environment["RANK"])
            return World(
                rank, int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", str(rank)))
            )
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        if "WORLD_SIZE" not in environment and tasks > 1 and "MASTER_ADDR" in environment:
            port = environment.get("MASTER_PORT") or str(
                20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000
            )
            address = f"tcp://{environment['MASTER_ADDR']}:{int(port)}"
            return World(
                int(environment["SLURM_PROCID"]), tasks, int(environment["SLURM_LOCALID"]), address
            )
    except (KeyError, ValueError) as error:
        raise IiaeError(
            f"the launcher's variables are incomplete: {error}",
            "start with torchrun, or with srun and MASTER_ADDR set",
        ) from error
    return World()


class Ranks:
    """One rank's part of every batch, and how it becomes the whole's gradient.

    Args:
        world: of several ranks.
        model: its batch norms and dropouts are replaced by ones that know of the whole batch; names stay.
        batch_size: rows of the whole batch. Where it cannot be divided evenly, the first ranks take one row more.
        norm: batch norm reads the whole batch (`synchronised`) or the rank's own rows (`local`).

    Attributes:
        part: this rank's rows within the batch.
        rows: the same as a slice.
        weight: the fraction of rows that are this rank's.

    Raises:
        IiaeError: too few rows for so many ranks.
    """

    def __init__(
        self,
        world: World,
        model: nn.Module,
        batch_size: int,
        norm: Literal["synchronised", "local"],
    ) -> None:
        least = 1 if norm == "synchronised" else 2  # a slice of one row has no variance of its own
        if batch_size < least * world.size:
            raise IiaeError(
                f"a batch of {batch_size} pairs is too small for {world.size} ranks, each needs {least}",
                "start fewer processes, or raise --batch-size",
            )
        bounds = [round(batch_size * rank / world.size) for rank in (world.rank, world.rank + 1)]
        self.rows = slice(*bounds)
        self.part = Part(bounds[0], batch_size)
        self.weight = (bounds[1] - bounds[0]) / batch_size
        self._model = model
        replace_layers(model, self.part, synchronised=norm == "synchronised")
        self._statistics: list[Tensor] = []
        if norm == "local":
            norms = [
                one for one in model.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)
            ]
            self._statistics = [
                one
                for norm in norms
                for one in (norm.running_mean, norm.running_var)
                if one is not None
            ]

    def whole(self, rows: Tensor) -> Tensor:
        """The whole batch's rows of this rank's; a loss over them, weighted as others are, has the whole's gradient."""
        whole: Tensor = whole_of(rows, self.part)
        return whole

    def combine(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum every rank's gradients in place, average local running statistics; returns the whole batch's terms.

        Args:
            terms: means over this rank's rows, whose loss was weighted by `weight` before the backward pass.
        """
        gradients = [one.grad for one in self._model.parameters() if one.grad is not None]
        values = torch.stack([value.detach() for value in terms.values()])
        with torch.no_grad():
            for one in self._statistics:
                one.mul_(self.weight)
            pieces = [*gradients, *self._statistics, values * self.weight]
            flat = torch.cat([piece.reshape(-1) for piece in pieces])
            total_of(flat)
            for piece, total in zip(
                pieces, torch.split(flat, [piece.numel() for piece in pieces]), strict=True
            ):
                piece.copy_(total.view(piece.shape))
        return dict(zip(terms, pieces[-1], strict=True))
