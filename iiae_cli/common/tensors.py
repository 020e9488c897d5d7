"""Safetensors files with a schema and a checksum in their header: tensors are loaded, never code.

The checksum is the SHA-256 of the whole file (length field, header, tensors) as it is with 64 zeros in the checksum's
own place, so that one figure inside the file tells a truncated file and a flipped bit anywhere, and copying the file
keeps it. SHA-256 reads faster than most disks; files written before it was there are accepted, unless `checked`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import regular_file

_ZEROS = "0" * 64
# Quotes within a header's values are escaped, so this occurs once at most: where the checksum stands.
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')


class DamagedFile(IiaeError):
    """A file whose bytes are not those that were written."""


def save_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write a safetensors file and its checksum; its library's I/O errors become the operating system's.

    Raises:
        OSError: the disk is full, and the like.
    """
    try:
        save_file(tensors, path, metadata={**header, "checksum": _ZEROS})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = _CHECKSUM.search(content, 0, _header_end(content))
        assert place is not None
        start = place.start(1)
        digest = hashlib.sha256(content).hexdigest()
        file.seek(start)
        file.write(digest.encode())


def read_tensors(
    path: Path, schema: str, remedy: str, *, checked: bool = False
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file of a schema; `checked` refuses a file without a checksum.

    Raises:
        DamagedFile: its bytes are not those that were written.
        IiaeError: missing, unreadable, or of another schema.
    """
    return _read(path, schema, remedy, tensors=True, checked=checked)


def read_header(path: Path, schema: str, remedy: str) -> dict[str, str]:
    """Header alone of a safetensors file of a schema; its tensors are not read, nor its checksum compared.

    Raises:
        DamagedFile: no safetensors file.
        IiaeError: missing, unreadable, or of another schema.
    """
    return _read(path, schema, remedy, tensors=False, checked=False)[0]


def _read(
    path: Path, schema: str, remedy: str, *, tensors: bool, checked: bool
) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        if tensors:
            _verify(path, remedy, needed=checked)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("schema") != schema:
                raise IiaeError(
                    f"{path} has schema {header.get('schema', 'none')}, expected {schema}", remedy
                )
            return header, {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise IiaeError(f"{path} does not exist", remedy) from error
    except SafetensorError as error:
        raise DamagedFile(f"{path} cannot be read: {error}", remedy) from error
    except OSError as error:
        raise IiaeError(f"{path} cannot be read: {error}", remedy) from error


def _verify(path: Path, remedy: str, *, needed: bool) -> None:
    if path.stat().st_size == 0:
        raise DamagedFile(f"{path} is damaged: it is empty", remedy)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = _header_end(content)
        place = _CHECKSUM.search(content, 0, end)
        if place is None:
            if needed or end >= len(content):
                raise DamagedFile(
                    f"{path} is damaged: its header is torn or holds no checksum", remedy
                )
            return
        start, stop = place.span(1)
        written = place[1].decode()
        del place  # it holds on to the map
        digest = hashlib.sha256(content[:start] + _ZEROS.encode())
        with memoryview(content) as view, view[stop:] as rest:
            digest.update(rest)
    if digest.hexdigest() != written:
        raise DamagedFile(f"{path} is damaged: its bytes do not match its checksum", remedy)


def _header_end(content: mmap.mmap) -> int:
    return min(len(content), 8 + int.from_bytes(content[:8], "little"))


def read_state_dict(path: Path, hint: str) -> dict[str, Tensor]:
    """Read another program's weights: `.safetensors`, or what `torch.save` wrote, tensors alone.

    Raises:
        IiaeError: missing, damaged, no state dict, or a pickle that holds code.
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
    except Exception as error:  # torch's own words advise to run what the file holds
        raise IiaeError(f"{path} cannot be read as weights: no tensors by name", hint) from error
    return state
