"""The two newest checkpoints: weights, optimiser, sums and step, with a checksum.

Only tensors and JSON are read, never code. A damaged checkpoint is set aside and the one before it
is taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, write_errors, writing
from iiae_cli.common.tensors import read_tensors, save_tensors

SCHEMA = "iiae.checkpoint/3"
KEPT = 2
HINT = "start afresh with --overwrite; the kept weights, model.safetensors, may still serve"


@dataclass
class Checkpoint:
    """Everything that continuing needs; batches, noise and schedule are functions of seed and step.

    Attributes:
        step: optimiser steps done.
        model: weights and batch-norm statistics by name.
        optimizer: Adam's state by `PARAMETER.FIELD`.
        running: sums of loss terms since the last log line.
        progress: best validation so far, warnings, and the like, as JSON values.
    """

    step: int
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    running: dict[str, Tensor] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """Whole checkpoints' files, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def path(self, step: int) -> Path:
        """The file of the checkpoint at a step."""
        return self.folder / f"step-{step:08d}.safetensors"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and drop all but the two newest."""
        tensors = {
            f"{part}/{name}": values.detach().cpu().contiguous()
            for part in ("model", "optimizer", "running")
            for name, values in getattr(checkpoint, part).items()
        }
        header = {
            "schema": SCHEMA,
            "step": str(checkpoint.step),
            "progress": json.dumps(checkpoint.progress),
        }
        with writing(self.path(checkpoint.step)) as temporary:
            save_tensors(tensors, temporary, header)
        self.prune()

    def prune(self) -> None:
        """Drop all but the two newest."""
        for old in self.files()[:-KEPT]:
            with write_errors(old):
                old.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all, newest first."""
        for path in reversed(self.files()):
            path.unlink()

    def load(self, step: int) -> Checkpoint:
        """The checkpoint at a step.

        Raises:
            IiaeError: missing, damaged, or of another schema.
        """
        path = self.path(step)
        header, tensors = read_tensors(path, SCHEMA, HINT)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "running": {}}
        with reading(path, HINT):
            for full_name, values in tensors.items():
                part, name = full_name.split("/", 1)
                parts[part][name] = values
            return Checkpoint(step, **parts, progress=json.loads(header["progress"]))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None; damaged ones are set aside.

        Raises:
            IiaeError: none can be read.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self.files()):
            try:
                checkpoint = self.load(int(path.stem.removeprefix("step-")))
            except IiaeError as error:
                damaged[path] = error.message
                continue
            for newer, reason in damaged.items():
                aside = newer.with_name(f"{newer.name}.damaged")
                console.warn(f"{reason}; it is set aside as {aside.name}, going back to {path}")
                with write_errors(newer):
                    newer.replace(aside)
            return checkpoint
        if damaged:
            raise IiaeError(f"no checkpoint can be read: {'; '.join(damaged.values())}", HINT)
        return None
