"""Which arithmetic a run uses and whether it is compiled, where both are `auto`.

The choice follows from facts that stay the same from call to call (device, processor, picture size,
length of the run), never from a measurement: a run and its repetition end in the same weights. It
is recorded in the run's configuration, and a resumed run keeps it.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Any

import torch

from iiae_cli.common.errors import IiaeError
from iiae_cli.config.schema import Config, Precision

# The smallest pictures on which bfloat16 was measured: it pays there, and recall stays as it is.
BF16_PIXELS = 32 * 32
# Compiling takes a minute or two and saves milliseconds a step on a GPU.
COMPILE_STEPS = 10_000
_AMPERE = (8, 0)


def choose_speed(
    config: Config, size: tuple[int, int] | None, device: torch.device, before: Config | None
) -> tuple[dict[str, Any], str]:
    """What `precision` and `compile` of the training section become, and a line that says why.

    Args:
        config: may say `auto` in either.
        size: (H, W) of pictures; None for features.
        device: that trains.
        before: configuration of the run that is resumed, whose choices hold; None for a new run.

    Raises:
        IiaeError: compilation is asked for, and there is no compiler.
    """
    chosen: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for key in ("precision", "compile"):
        chosen[key], reasons[key] = getattr(config.training, key), "as asked"
        earlier = "auto" if before is None else getattr(before.training, key)
        if chosen[key] == "auto" and earlier != "auto":
            chosen[key], reasons[key] = earlier, "as the run began"
    if chosen["precision"] == "auto":
        chosen["precision"], reasons["precision"] = _choose_precision(size, device)
    if chosen["compile"] == "auto":
        chosen["compile"], reasons["compile"] = _choose_compile(config.training.steps, device)
    if chosen["compile"] and not has_compiler(device):
        hint = "install g++, or pass --no-compile"
        raise IiaeError("torch.compile finds no C++ compiler here", hint)
    how = "compiled" if chosen["compile"] else "not compiled"
    line = f"precision {chosen['precision']} ({reasons['precision']}), {how} ({reasons['compile']})"
    return chosen, line


def _choose_precision(size: tuple[int, int] | None, device: torch.device) -> tuple[Precision, str]:
    if size is None:
        return "fp32", "a model of features has no products worth rounding"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= _AMPERE:
            return "tf32", "the GPU has it; bf16 made the shared KL jump"
        return "fp32", "the GPU has no TF32"
    if device.type != "cpu":
        return "fp32", f"on {device.type}"
    if not multiplies_bf16():
        return "fp32", "the CPU has no bf16 matrix unit"
    if size[0] * size[1] < BF16_PIXELS:
        return "fp32", "pictures too small for bf16 to pay on a CPU"
    return "bf16", "the CPU has a bf16 matrix unit"


def _choose_compile(steps: int | None, device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, "it does not pay on a CPU" if device.type == "cpu" else f"on {device.type}"
    if steps is not None and steps < COMPILE_STEPS:
        return False, f"it does not pay in fewer than {COMPILE_STEPS} steps"
    if not has_compiler(device):
        return False, "no compiler"
    return True, "with CUDA graphs"


def multiplies_bf16() -> bool:
    """Whether this CPU has a matrix unit for bfloat16 (AMX) that programs may use.

    Instructions for single vectors (AVX512-BF16) do not count: casting eats what they save.
    """
    try:
        return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())
    except AttributeError:  # an older torch
        return False


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can work: it needs a C++ compiler, and Triton for a GPU."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    compiler = any(shutil.which(name) for name in names if name)
    return compiler and (device.type != "cuda" or find_spec("triton") is not None)


def set_gpu_arithmetic(precision: str) -> None:
    """Let GPUs round factors to TF32, unless the precision is fp32."""
    rounded = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = rounded
    torch.backends.cudnn.allow_tf32 = rounded
