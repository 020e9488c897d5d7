"""Which arithmetic a run uses and whether it is compiled, where both are `auto`.

The choice follows from device, processor, picture size and length of the run, never from a
measurement: a run and its repetition end in the same weights. A resumed run keeps it.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch

from iiae_cli.common.errors import IiaeError
from iiae_cli.config.schema import Config, Precision

BF16_PIXELS = 32 * 32  # the smallest pictures on which it was measured: it pays, recall stays
COMPILE_STEPS = 10_000  # compiling takes a minute or two and saves milliseconds a step on a GPU
_AMPERE = (8, 0)


def choose_speed(
    config: Config, size: tuple[int, int] | None, device: torch.device, before: Config | None
) -> tuple[Config, str]:
    """The configuration with `precision` and `compile` chosen, and a line that says why.

    What the configuration says counts first, then the choice of `before`, the run that is resumed.
    `size`: (H, W) of pictures; None for features.
    """
    asked, begun = config.training, None if before is None else before.training
    precision, why = asked.precision, "as asked"
    if precision == "auto":
        precision, why = _choose_precision(size, device)
        if begun is not None:
            precision, why = begun.precision, "as the run began"
    compiled, why_compiled = asked.compile, "as asked"
    if compiled == "auto":
        compiled, why_compiled = _choose_compile(asked.steps, device)
        if begun is not None:
            compiled, why_compiled = begun.compile, "as the run began"
    if compiled and not has_compiler(device):
        hint = "install g++, or pass --no-compile"
        raise IiaeError("torch.compile finds no C++ compiler here", hint)
    training = asked.model_copy(update={"precision": precision, "compile": compiled})
    how = "compiled" if compiled else "not compiled"
    reasons = f"precision {precision} ({why}), {how} ({why_compiled})"
    return config.model_copy(update={"training": training}), reasons


def _choose_precision(size: tuple[int, int] | None, device: torch.device) -> tuple[Precision, str]:
    if size is None:
        return "fp32", "a model of features has no products worth rounding"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= _AMPERE:
            return "tf32", "the GPU has it; bf16 made the shared KL jump"
        return "fp32", "the GPU has no TF32"
    if device.type != "cpu" or not multiplies_bf16():
        return "fp32", f"the {device.type.upper()} has no bf16 matrix unit"
    if size[0] * size[1] < BF16_PIXELS:
        return "fp32", "pictures too small for bf16 to pay on a CPU"
    return "bf16", "the CPU has a bf16 matrix unit"


def _choose_compile(steps: int | None, device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"it does not pay on {device.type}"
    if steps is not None and steps < COMPILE_STEPS:
        return False, f"it does not pay in fewer than {COMPILE_STEPS} steps"
    return (True, "with CUDA graphs") if has_compiler(device) else (False, "no compiler")


def multiplies_bf16() -> bool:
    """Whether this CPU has a matrix unit for bfloat16 (AMX); on vectors, casting eats the gain."""
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
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
