"""A run directory: what training leaves behind, and how it is read again.

    config.yaml           the whole configuration
    model.safetensors     the kept weights; config, data shapes and fingerprint in its header (schema iiae.model/2)
    checkpoints/*.safetensors   weights, optimiser, running sums and step, the two newest (schema iiae.checkpoint/2)
    metrics.jsonl         one JSON object per log line and validation
    gallery.h5            latents of the test split's domain y
    samples/*.png         sample grids
    tensorboard/          events
    run.json              versions, git, host, command, timings, outcome

Only tensors are ever loaded, never code: safetensors files and JSON. Every file is whole or not there; weights and
checkpoints carry a checksum of all of their bytes, and a damaged checkpoint is set aside and the one before it taken.
One process at a time writes into a run directory: the folder itself is locked, and the lock ends with its process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import append_line, remove_temporaries, sync_file, write_errors, writing
from iiae_cli.common.tensors import DamagedFile, read_tensors, save_tensors
from iiae_cli.config.presets import read_yaml
from iiae_cli.config.schema import Config
from iiae_cli.data.datafile import DataInfo
from iiae_cli.model.iiae import IIAE
from iiae_cli.runs.weights import LoadedModel, read_weights, save_weights

CHECKPOINT_SCHEMA = "iiae.checkpoint/2"
KEPT_CHECKPOINTS = 2


@dataclass
class Checkpoint:
    """Everything that continuing needs; batches, noise and schedule are functions of seed and step.

    Attributes:
        step: optimiser steps done.
        model: weights and batch-norm statistics by name.
        optimizer: Adam's state by `PARAMETER.FIELD`.
        running: sums of loss terms since the last log line.
        progress: best validation so far and the warnings given.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    running: dict[str, Tensor]
    progress: dict[str, Any] = field(default_factory=dict)


class RunDir:
    """The paths of one run and the atomic writes into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.model_file = path / "model.safetensors"
        self.metrics_file = path / "metrics.jsonl"
        self.gallery_file = path / "gallery.h5"
        self.info_file = path / "run.json"
        self.checkpoint_folder = path / "checkpoints"
        self.samples_folder = path / "samples"
        self.tensorboard_folder = path / "tensorboard"
        self._lock: int | None = None

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.exists()

    def refuse_links(self) -> None:
        """Refuse a run directory whose content would be written, or removed, elsewhere.

        Raises:
            IiaeError: a part of it is a link, or of another kind.
        """
        if self.path.is_symlink() and not self.path.exists():
            raise IiaeError(
                f"{self.path} is a link to nothing", "remove it, or choose another --run"
            )
        folders = (self.checkpoint_folder, self.samples_folder, self.tensorboard_folder)
        files = (
            self.config_file,
            self.model_file,
            self.metrics_file,
            self.gallery_file,
            self.info_file,
        )
        for path in (*folders, *files):
            is_right = path.is_dir() if path in folders else path.is_file()
            if path.is_symlink() or (path.exists() and not is_right):
                raise IiaeError(
                    f"{path} is {'a link' if path.is_symlink() else 'something else than training writes there'}",
                    f"put it back or remove it, or choose another --run than {self.path}",
                )

    def is_free(self) -> bool:
        """Whether nothing is here, or no more than a process leaves that was killed while it made the folder."""
        own = {self.samples_folder, self.checkpoint_folder}
        if not self.path.exists():
            return True
        with write_errors(self.path):
            return all(
                not any(one.iterdir())
                if one in own
                else one.match(f".{self.config_file.name}.*.tmp")
                for one in self.path.iterdir()
            )

    def create(self, config: Config) -> None:
        """Make the folder, lock it, and write its configuration."""
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        with write_errors(self.path):
            self.samples_folder.mkdir(exist_ok=True)
            self.checkpoint_folder.mkdir(exist_ok=True)
        write_text(self.config_file, config.to_yaml())

    def lock(self) -> None:
        """Keep other processes from writing here until `unlock` or the end of this one; does nothing the second time.

        What killed processes left half-written is removed.

        Raises:
            IiaeError: another process writes here.
        """
        if self._lock is not None or not self.path.is_dir():
            return
        with write_errors(self.path):
            handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise IiaeError(
                    f"another process is training in {self.path}",
                    "wait until it has ended, or choose another --run",
                ) from error
            return  # a file system without locks
        self._lock = handle
        with write_errors(self.path):
            for folder in (self.path, self.checkpoint_folder, self.samples_folder):
                remove_temporaries(folder)

    def unlock(self) -> None:
        """Let other processes write here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Remove what a run left, so that nothing of it is taken for a new one's.

        Checkpoints go first, newest first: whoever resumes after this was broken off finds a run of the old
        configuration, at an earlier step or at its beginning.
        """
        with write_errors(self.path):
            for path in reversed(self._checkpoint_files()):
                path.unlink()
            for folder in (self.checkpoint_folder, self.samples_folder, self.tensorboard_folder):
                for path in folder.glob("*"):
                    if not path.is_dir():  # which is somebody else's
                        path.unlink()
            for path in (self.model_file, self.metrics_file, self.gallery_file, self.info_file):
                path.unlink(missing_ok=True)

    def read_config(self) -> Config:
        """The run's configuration.

        Raises:
            IiaeError: missing or damaged.
        """
        try:
            return Config.model_validate(read_yaml(self.config_file))
        except ValidationError as error:
            raise IiaeError(
                f"{self.config_file} is of another version: {error.errors()[0]['msg']}",
                "train again with this version",
            ) from error

    def save_model(
        self, model: IIAE, config: Config, info: DataInfo, details: dict[str, Any]
    ) -> str:
        """Write the kept weights; returns their fingerprint."""
        return save_weights(self.model_file, model, config, info, details)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and drop all but the two newest."""
        tensors = {
            f"{part}/{name}": values.detach().cpu().contiguous()
            for part in ("model", "optimizer", "running")
            for name, values in getattr(checkpoint, part).items()
        }
        header = {
            "schema": CHECKPOINT_SCHEMA,
            "step": str(checkpoint.step),
            "progress": json.dumps(checkpoint.progress),
        }
        if self.metrics_file.exists():
            sync_file(
                self.metrics_file
            )  # a checkpoint that outlives a power failure has its metrics
        with writing(self.checkpoint_file(checkpoint.step)) as temporary:
            save_tensors(tensors, temporary, header)
        self.prune_checkpoints()

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none; damaged ones are set aside, said aloud.

        Raises:
            IiaeError: all are damaged, or one is of another schema.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self._checkpoint_files()):
            try:
                checkpoint = self.load_checkpoint(path)
            except DamagedFile as error:
                damaged[path] = error.message
                continue
            for one, reason in damaged.items():
                aside = one.with_name(f"{one.name}.damaged")
                console.warn(f"{reason}; it is set aside as {aside.name}, going back to {path}")
                with write_errors(one):
                    one.replace(aside)
            return checkpoint
        if damaged:
            names = " and ".join(map(str, damaged))
            raise IiaeError(
                f"no checkpoint of {self.path} is whole: {names}",
                "start afresh with --overwrite; the kept weights, model.safetensors, may still serve",
            )
        return None

    def prune_checkpoints(self) -> None:
        """Drop all but the newest."""
        for old in self._checkpoint_files()[:-KEPT_CHECKPOINTS]:
            with write_errors(old):
                old.unlink(missing_ok=True)

    def load_checkpoint(self, path: Path) -> Checkpoint:
        """One checkpoint.

        Raises:
            DamagedFile: its bytes are not those that were written.
            IiaeError: missing, unreadable, or of another schema.
        """
        remedy = "start afresh with --overwrite, or use the version that wrote it"
        header, tensors = read_tensors(path, CHECKPOINT_SCHEMA, remedy, checked=True)
        return _checkpoint_of(header, tensors, path)

    def checkpoint_file(self, step: int) -> Path:
        """Where the checkpoint at a step lies."""
        return self.checkpoint_folder / f"step-{step:08d}.safetensors"

    def _checkpoint_files(self) -> list[Path]:
        return sorted(self.checkpoint_folder.glob("step-*.safetensors"))

    def truncate_metrics(self, step: int, *, validated: bool = True) -> None:
        """Drop the lines that an interrupted run wrote after the checkpoint at `step`.

        Args:
            step: of the checkpoint.
            validated: whether the checkpoint was written after the validation at that step; else that one's line goes.
        """
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_text(errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _belongs(line, step, validated)]
        if kept != lines:
            write_text(self.metrics_file, "".join(kept))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        append_line(self.metrics_file, json.dumps(record))

    def write_info(self, record: dict[str, Any]) -> None:
        """Write run.json."""
        write_text(self.info_file, json.dumps(record, indent=2) + "\n")

    def read_info(self) -> dict[str, Any]:
        """run.json; empty where there is none, or none that can be read."""
        try:
            record = json.loads(self.info_file.read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def link_latest(self) -> None:
        """Point `latest` beside this run at it, unless something that is no link stands there."""
        link = self.path.parent / "latest"
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(f".latest.{os.getpid()}")
        with write_errors(link):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.path.name)
            temporary.replace(link)


def _checkpoint_of(header: dict[str, str], tensors: dict[str, Tensor], path: Path) -> Checkpoint:
    """A checkpoint from its file's content.

    Raises:
        IiaeError: it is not as `save_checkpoint` writes it.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "running": {}}
    try:
        for full_name, values in tensors.items():
            part, name = full_name.split("/", 1)
            parts[part][name] = values
            if not torch.isfinite(values).all():
                raise ValueError(f"{name} is not finite")
        step, progress = int(header["step"]), json.loads(header["progress"])
        if not 0 <= step < 2**31 or not isinstance(progress, dict):
            raise ValueError(f"step {step}")
    except (KeyError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise IiaeError(
            f"{path} is no checkpoint of this program: {reason}",
            f"delete {path}, or start afresh with --overwrite",
        ) from error
    return Checkpoint(step=step, progress=progress, **parts)


def _belongs(line: str, step: int, validated: bool) -> bool:
    try:
        record = json.loads(line)
        of_step = int(record["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False  # a torn last line
    return of_step < step or (of_step == step and (validated or record.get("kind") != "validation"))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_model(run: RunDir, device: torch.device | str = "cpu") -> LoadedModel:
    """The kept weights of a run.

    Raises:
        IiaeError: no such run, nothing kept yet, damaged, or of another schema.
    """
    if not run.path.exists():
        raise IiaeError(
            f"run {run.path} does not exist", "train one: iiae train --preset digits-cdcb"
        )
    if not run.model_file.exists():
        raise IiaeError(
            f"run {run.path} holds no model.safetensors yet", "continue it: iiae train … --resume"
        )
    return read_weights(run.model_file, device)
