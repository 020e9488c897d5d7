"""Which arithmetic a run uses and whether it is compiled, where the user leaves both to the
program.

The choice follows from facts that stay the same from one call to the next (device, processor, size
of the pictures, length of the run), never from a measurement: a run and its repetition must end in
the same weights. What was chosen is written into the run's configuration, and a resumed run keeps
it.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Any

import torch

from iiae_cli.builders import picture_size
from iiae_cli.common.errors import IiaeError
from iiae_cli.config.schema import Config, Precision
from iiae_cli.data.datafile import DataInfo

# The smallest pictures on which bfloat16 was measured: it pays there, and recall stays as it is.
BF16_PIXELS = 32 * 32
# Compiling takes a minute or two and saves milliseconds a step on a GPU.
COMPILE_STEPS = 10_000
_AMPERE = (8, 0)


def choose_speed(
    config: Config, info: DataInfo, device: torch.device, before: Config | None
) -> tuple[dict[str, Any], str]:
    """What `precision` and `compile` of the configuration's training section become, and a line
    that says why.

    Args:
        config: may say `auto` in either.
        info: of what is learned from.
        device: that trains.
        before: configuration of the run that is resumed, whose choices hold; None for a new run.

    Raises:
        IiaeError: compilation is asked for where there is no compiler.
    """
    training = config.training
    precision, compiled = training.precision, training.compile
    why_precision = why_compile = "as asked"
    if precision == "auto" and before is not None and before.training.precision != "auto":
        precision, why_precision = before.training.precision, "as the run began"
    elif precision == "auto":
        precision, why_precision = _choose_precision(config, info, device)
    if compiled == "auto" and before is not None and before.training.compile != "auto":
        compiled, why_compile = before.training.compile, "as the run began"
    elif compiled == "auto":
        compiled, why_compile = _choose_compile(config, device)
    if compiled and not has_compiler(device):
        raise IiaeError(
            "torch.compile finds no C++ compiler here", "install g++, or pass --no-compile"
        )
    how = "compiled" if compiled else "not compiled"
    return (
        {"precision": precision, "compile": compiled},
        f"precision {precision} ({why_precision}), {how} ({why_compile})",
    )


def _choose_precision(
    config: Config, info: DataInfo, device: torch.device
) -> tuple[Precision, str]:
    size = picture_size(config, info)
    if size is None:
        return "fp32", "a model of features has no products worth rounding"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= _AMPERE:
            return "bf16", "the GPU has it"
        return "fp32", "the GPU has no bf16"
    if device.type != "cpu":
        return "fp32", f"on {device.type}"
    if not multiplies_bf16():
        return "fp32", "the CPU has no bf16 matrix unit"
    if size[0] * size[1] < BF16_PIXELS:
        return "fp32", "pictures too small for bf16 to pay on a CPU"
    return "bf16", "the CPU has a bf16 matrix unit"


def _choose_compile(config: Config, device: torch.device) -> tuple[bool, str]:
    steps = config.training.steps
    if device.type != "cuda":
        return False, "it does not pay on a CPU" if device.type == "cpu" else f"on {device.type}"
    if steps is not None and steps < COMPILE_STEPS:
        return False, f"it does not pay in fewer than {COMPILE_STEPS} steps"
    if not has_compiler(device):
        return False, "no compiler"
    return True, "with CUDA graphs"


def multiplies_bf16() -> bool:
    """Whether this CPU has a matrix unit for bfloat16 (AMX) that the system lets programs use.

    Instructions for single vectors (AVX512-BF16) are not counted: without the matrix unit, casting
    eats what they save.
    """
    try:
        return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())
    except AttributeError:  # an older torch
        return False


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can work: it needs a C++ compiler, and Triton for a GPU."""
    compiler = any(
        shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name
    )
    return compiler and (device.type != "cuda" or find_spec("triton") is not None)


def set_gpu_arithmetic(precision: str) -> None:
    """Let GPUs round factors to TF32, or keep float32 whole: torch's own default is TF32 in
    convolutions.
    """
    rounded = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = rounded
    torch.backends.cudnn.allow_tf32 = rounded
