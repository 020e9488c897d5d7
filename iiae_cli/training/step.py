"""One optimiser step, its arithmetic, and the batches that it reads.

A step depends on nothing but weights, optimiser state, seed and step number: the order of pairs,
noise and dropout follow from (seed, step). So a run that was stopped and resumed ends in the same
weights as one that was not, on CPU bit for bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iiae_cli.builders import build_objective, build_optimizer
from iiae_cli.common.errors import IiaeError
from iiae_cli.config import Config, Precision
from iiae_cli.data.batches import from_stored, stored_tensor
from iiae_cli.model.iiae import IIAE, Posteriors, Reconstructions
from iiae_cli.training.data import Indices, TrainingData
from iiae_cli.training.distributed import Share

Pair: TypeAlias = tuple[Tensor, Tensor]  # x (B, …) and y (B, …), or row numbers of both
Terms: TypeAlias = dict[str, Tensor]  # loss terms by name
Networks: TypeAlias = Callable[[Tensor, Tensor], tuple[Posteriors, Reconstructions]]

RESIDENT_SHARE = 0.25  # the most of a GPU's free memory that rows may take
BF16_PIXELS = 32 * 32  # the smallest pictures measured: bf16 pays, recall stays
COMPILE_STEPS = 10_000  # compiling takes a minute or two and saves milliseconds a step on a GPU


class Step:
    """One optimiser step of a model, as the configuration wants it.

    CUDA graphs take the launches of many small kernels, which are most of a small batch's time, off
    the CPU. The objective is not compiled: each new step number would compile it again.
    """

    def __init__(self, config: Config, model: IIAE, device: torch.device, share: Share) -> None:
        training, alone, on_gpu = config.training, share.world.size == 1, device.type == "cuda"
        # Unless the precision is fp32, GPUs may round factors to TF32.
        torch.backends.cuda.matmul.allow_tf32 = training.precision != "fp32"
        torch.backends.cudnn.allow_tf32 = training.precision != "fp32"
        self.optimizer = build_optimizer(config, model)
        self._objective = build_objective(config, share.gather)
        self._model, self._scale = model, share.scale
        self._bf16 = training.precision == "bf16"  # of the networks; losses stay in float32
        networks: nn.Module = model
        if not alone:
            if on_gpu and training.batch_norm == "synchronised":
                convert = nn.SyncBatchNorm.convert_sync_batchnorm
                networks = convert(model)  # type: ignore[no-untyped-call]
            networks = DistributedDataParallel(networks)
        self._networks: Networks = networks
        self._graphs = training.compile is True and on_gpu and alone
        if training.compile is True:
            mode = "reduce-overhead" if self._graphs else None
            self._networks = torch.compile(networks, mode=mode)

    def __call__(self, x: Tensor, y: Tensor, step: int, rate: float, seed: int) -> Terms:
        """Updates the weights on this process's rows of step 0, 1, …, of a model in training mode.

        Returns the loss terms, without waiting for the device. `seed` and `step` decide noise and
        dropout.
        """
        seed_step(seed, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            posteriors, reconstructions = self._networks(x, y)
        terms = self._objective(posteriors, reconstructions, step)
        self.optimizer.zero_grad(set_to_none=True)
        (terms["loss"] * self._scale).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    def state(self) -> dict[str, Tensor]:
        """Returns Adam's state as tensors named `PARAMETER.FIELD`."""
        return {
            f"{name}.{key}": value
            for name, parameter in self._model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state`, in each parameter's device and memory format."""
        for name, parameter in self._model.named_parameters() if tensors else ():
            if parameter.requires_grad:
                state = {"step": tensors[f"{name}.step"].clone().to(parameter.device)}
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = torch.empty_like(parameter).copy_(tensors[f"{name}.{key}"])
                self.optimizer.state[parameter] = state


def seed_step(seed: int, step: int) -> None:
    """Seeds torch's random state for one step from (seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]))


class Feed(AbstractContextManager["Feed"]):
    """Batches on the networks' device, read ahead so that no step waits for its rows.

    One thread reads the next step's rows (into pinned memory for a GPU) while the current step
    computes. `resident` sends all rows to the device once, as uint8, and then only row numbers; by
    default if they fit on the GPU. Scaling and resizing to `size` (H, W) happen on the device, so
    both ways make the same batches. `indices_at` returns the rows of step 0, 1, ….
    """

    def __init__(
        self,
        data: TrainingData,
        indices_at: Callable[[int], Indices],
        size: tuple[int, int] | None,
        device: torch.device,
        resident: bool | None = None,
    ) -> None:
        self._data, self._indices_at, self._size, self._device = data, indices_at, size, device
        sides = data.train.x.rows, data.train.y.rows
        if resident is None:
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            resident = sides[0].nbytes + sides[1].nbytes <= RESIDENT_SHARE * free
        self._resident: Pair | None = None
        if resident:
            self._resident = stored_tensor(sides[0]).to(device), stored_tensor(sides[1]).to(device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._coming: dict[int, Future[Pair]] = {}  # the next step's batch

    def __exit__(self, *_: object) -> None:
        """Ends the thread."""
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> Pair:
        """Returns the batch of a step; steps in ascending order are read ahead."""
        read = (self._coming.get(step) or self._pool.submit(self._read, step)).result()
        self._coming = {step + 1: self._pool.submit(self._read, step + 1)}
        x, y = (part.to(self._device, non_blocking=True) for part in read)
        if self._resident is not None:
            x, y = self._resident[0].index_select(0, x), self._resident[1].index_select(0, y)
        return from_stored(x, self._size), from_stored(y, self._size)

    def _read(self, step: int) -> Pair:
        """Returns what travels to the device: stored rows, or the numbers of resident ones."""
        indices = self._indices_at(step)
        lookup = self._data.rows if self._resident is None else self._data.row_numbers
        x, y = (stored_tensor(part) for part in lookup(indices))
        return (x.pin_memory(), y.pin_memory()) if self._device.type == "cuda" else (x, y)


def choose_speed(config: Config, size: tuple[int, int] | None, device: torch.device) -> Config:
    """Returns the configuration with `precision` and `compile` chosen where they are `auto`.

    The choice follows from device, processor, picture `size` (H, W; None for features) and length
    of the run, never from a measurement, so that a repeated run ends in the same weights. A resumed
    run has its choices in its configuration.
    """
    asked = config.training
    precision, compiled = asked.precision, asked.compile
    if precision == "auto":
        precision = choose_precision(size, device)
    if compiled == "auto":
        long = asked.steps is None or asked.steps >= COMPILE_STEPS
        compiled = device.type == "cuda" and long and has_compiler(device)
    if compiled and not has_compiler(device):
        hint = "install g++, or pass --no-compile"
        raise IiaeError("torch.compile finds no C++ compiler here", hint)
    training = asked.model_copy(update={"precision": precision, "compile": compiled})
    return config.model_copy(update={"training": training})


def choose_precision(size: tuple[int, int] | None, device: torch.device) -> Precision:
    """Returns the fastest number format that suits pictures of this size, or features (None)."""
    if size is None:  # products of feature models are too small to gain
        return "fp32"
    if device.type == "cuda":  # bf16 made the shared KL jump there
        return "tf32" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    pays = device.type == "cpu" and size[0] * size[1] >= BF16_PIXELS and multiplies_bf16()
    return "bf16" if pays else "fp32"


def multiplies_bf16() -> bool:
    """Returns whether this CPU has a matrix unit for bfloat16 (AMX); others lose by casting."""
    try:
        return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())
    except AttributeError:  # an older torch
        return False


def has_compiler(device: torch.device) -> bool:
    """Returns whether torch.compile works: it needs a C++ compiler, and Triton for a GPU."""
    compiler = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    return compiler and (device.type != "cuda" or find_spec("triton") is not None)
