"""Safetensors files with a schema and a checksum in their header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import check_kind, reading, regular_file, writing


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256, in hex, over names, shapes, types and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    content = json.dumps(header, sort_keys=True) + digest_of(tensors)
    return hashlib.sha256(content.encode()).hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Writes a file with a checksum over its tensors and its header, atomically."""
    plain = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    content = save(plain, metadata={**header, "checksum": _checksum(plain, header)})
    with writing(path) as temporary:
        temporary.write_bytes(content)


def read_tensors(path: Path, schema: str, hint: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Reads header and tensors of a `save_tensors` file of this schema."""
    header = read_header(path, schema, hint)
    with reading(path, hint):
        tensors = load_file(path)
        if header.pop("checksum", "") != _checksum(tensors, header):
            raise ValueError("its content does not match its checksum")
    return header, tensors


def read_header(path: Path, schema: str, hint: str) -> dict[str, str]:
    """Reads the header alone; its checksum is not verified."""
    with reading(path, hint), safe_open(path, framework="pt") as file:
        header = dict(file.metadata() or {})
        check_kind(path, header.get("schema", "none"), schema)
    return header


def read_state_dict(path: Path, hint: str) -> dict[str, Tensor]:
    """Reads other programs' weights: `.safetensors`, or a `torch.save` file of tensors alone.

    Raises for a pickle that holds code.
    """
    regular_file(path, hint)
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
        state = {str(name): values for name, values in loaded.items()}
        if not all(isinstance(values, Tensor) for values in state.values()):
            raise ValueError("it holds more than tensors")
    except Exception as error:  # torch's message advises to run the file's code
        raise IiaeError(f"{path} cannot be read as weights: no tensors by name", hint) from error
    return state
