"""Weights of other programs' networks: state dicts as `.safetensors` or as `torch.save` wrote them, tensors alone.

A file of `torch.save` is a pickle, which can hold code; it is read with `weights_only`, by an unpickler of torch's own
that knows tensors, containers and numbers and refuses everything else.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

# What torch was seen to raise on bytes that it did not write; it depends on the bytes.
UNREADABLE = (
    *(
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ),
    *(
        AssertionError,
        MemoryError,
        ImportError,
        struct.error,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ),
    SafetensorError,
)


def read_weights_file(path: Path) -> Mapping[str, Any]:
    """What a weights file holds, by name; nothing is checked but that it is a mapping of texts.

    Raises:
        FileNotFoundError: there is none.
        TypeError: it holds something else.
        OSError: and others of `UNREADABLE`, no such file, a damaged one, or one with code in it.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise OSError("it is no file")
    if path.suffix == ".safetensors":
        loaded: Any = load_file(path)
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise TypeError("it holds no state dict")
    return loaded
