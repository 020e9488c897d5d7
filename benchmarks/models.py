"""The presets' models, and two ways to train them: a plain PyTorch loop, and this package."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.builders import build_model, build_objective, picture_size, place
from iiae_cli.config import Config
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.data.datafile import DataInfo
from iiae_cli.model.iiae import IIAE
from iiae_cli.training.distributed import Share, World
from iiae_cli.training.step import Step

NATIVE = {
    "digits-cdcb": 32,
    "digits-edge": 32,
    "mnist-cdcb": 32,
    "facades": 256,
    "maps": 256,
    "cars": 128,
}
FEATURES = 512
CLASSES = 100


@dataclass
class Workload:
    """One preset's model and data shapes.

    Attributes:
        config: of the preset.
        info: of data with the shapes of the preset's.
        size: (H, W) of the networks' pictures; None for features.
        batch_size: of the preset, unless chosen.
    """

    config: Config
    info: DataInfo
    size: tuple[int, int] | None
    batch_size: int

    def rows(self, count: int, seed: int = 0) -> NDArray[Any]:
        """Random rows as a data file stores them."""
        rng = np.random.default_rng(seed)
        if self.size is None:
            return rng.standard_normal((count, FEATURES)).astype(np.float32)
        return rng.integers(0, 256, (count, *self.info.shape_x), dtype=np.uint8)


def workload(preset: str, batch_size: int | None, assignments: list[str]) -> Workload:
    """What a preset trains; random data of its shapes stand for the set itself."""
    layers = [*preset_layers(preset), set_layer(assignments)]
    config = resolve(layers).config
    side = NATIVE.get(config.data.set, 32)
    shape = (FEATURES,) if config.model.kind == "features" else (side, side, 3)
    info = DataInfo(config.data.set, shape, shape, {"train": 0, "valid": 0, "test": 0}, {})
    usual = CLASSES if config.model.kind == "features" else 8
    return Workload(
        config, info, picture_size(config, info), batch_size or config.training.batch_size or usual
    )


def plain_step(work: Workload, x: Tensor, y: Tensor, device: torch.device) -> Callable[[], None]:
    """A plain loop's step: NCHW, every parameter learns, default Adam, the loss read every step."""
    torch.manual_seed(0)
    model = build_model(work.config, work.info).to(device).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for layer in model.modules():
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            layer.inplace = False
    x, y = (one.contiguous() if one.ndim == 4 else one for one in (x, y))
    section = work.config.optimizer
    optimizer = torch.optim.Adam(
        model.parameters(), lr=section.lr, betas=(section.beta1, section.beta2)
    )
    objective = build_objective(work.config)
    done = 0

    def step() -> None:
        nonlocal done
        loss = objective(*model(x, y), done)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        done += 1

    return step


def own_steps(
    work: Workload,
    batch_at: Callable[[int], tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    precision: str = "fp32",
    compiled: bool = False,
) -> Callable[[int], None]:
    """`training.step.Step` so many more times, as `iiae train` calls it."""
    torch.manual_seed(0)
    speed = {"precision": precision, "compile": compiled}
    training = work.config.training.model_copy(update=speed)
    config = work.config.model_copy(update={"training": training})
    model = place(build_model(config, work.info), device)
    step = Step(config, model, device, Share(World(), len(batch_at(0)[0])))
    rate = config.optimizer.lr
    numbers, sums = itertools.count(), {}

    def more(count: int) -> None:
        nonlocal sums
        for number in itertools.islice(numbers, count):
            terms = step(*batch_at(number), number, rate, seed=0)
            sums = {name: sums.get(name, 0.0) + terms[name] for name in terms}

    return more


def products_of_a_step(work: Workload, model: IIAE, x: Tensor, y: Tensor) -> float:
    """Floating-point operations of a training step's products and convolutions, both ways."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        build_objective(work.config)(*model(x, y), 0)["loss"].backward()
    return float(counter.get_total_flops())


def convolution_peak(device: torch.device, seconds: float = 1.0) -> float:
    """float32 channels-last convolutions in GFLOP per CPU second (wall on a GPU), best of many."""
    x = torch.rand(8, 64, 64, 64, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(128, 64, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    operations = 2 * 8 * 128 * 32 * 32 * 64 * 16
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = clock()
        F.conv2d(x, weight, stride=2, padding=1)
        if on_gpu:
            torch.cuda.synchronize()
        best = max(best, operations / (clock() - start) / 1e9)
    return best
