"""Safetensors files with a schema in their header: tensors are loaded, never code."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from iiae_cli.errors import IiaeError


def save_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write a safetensors file; its library's I/O errors become the operating system's.

    Raises:
        OSError: the disk is full, and the like.
    """
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def read_tensors(path: Path, schema: str, remedy: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file of a schema.

    Raises:
        IiaeError: missing, damaged, or of another schema.
    """
    return _read(path, schema, remedy, tensors=True)


def read_header(path: Path, schema: str, remedy: str) -> dict[str, str]:
    """Header alone of a safetensors file of a schema.

    Raises:
        IiaeError: missing, damaged, or of another schema.
    """
    return _read(path, schema, remedy, tensors=False)[0]


def _read(path: Path, schema: str, remedy: str, *, tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("schema") != schema:
                raise IiaeError(f"{path} has schema {header.get('schema', 'none')}, expected {schema}", remedy)
            return header, {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise IiaeError(f"{path} does not exist", remedy) from error
    except (SafetensorError, OSError) as error:
        raise IiaeError(f"{path} cannot be read: {error}", remedy) from error
