"""A run directory: the files that training leaves, and how they are read again.

    config.yaml           the whole configuration
    model.safetensors     the kept weights; its header holds the configuration and the data's shapes
    checkpoints/          the two newest states that `--resume` continues from
    metrics.jsonl         one JSON object per log line and validation
    gallery.h5            latents of the test split's domain y
    samples/*.png         sample grids
    tensorboard/          events
    run.json              versions, git, host, command, timings, outcome

Every file is whole or missing. One process at a time writes into a run directory.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from iiae_cli import __version__
from iiae_cli.builders import build_model, picture_size, place
from iiae_cli.common import console, files
from iiae_cli.common.errors import DamagedFile, IiaeError, plain_words
from iiae_cli.common.tensors import digest_of, read_tensors, save_tensors
from iiae_cli.config import Config
from iiae_cli.config.presets import read_yaml
from iiae_cli.data.datafile import DataInfo
from iiae_cli.model.iiae import IIAE

CHECKPOINT_SCHEMA = "iiae.checkpoint/4"
MODEL_SCHEMA = "iiae.model/3"
HINT = "train into another --run, or start afresh with --overwrite, which drops its weights, too"
OTHER_VERSION = "use the version of iiae that wrote it, or train with this one into another --run"


# What training leaves beside config.yaml. A new run removes it in this order, newest checkpoints
# first: if that is interrupted, `--resume` finds the old run at an earlier step.
_LEFT = ["checkpoints/step-*", "model.safetensors", "metrics.jsonl", "gallery.h5", "run.json"]
_LEFT += ["samples/step-*.png", "tensorboard/events.*"]


class RunDir:
    """The paths of one run and the atomic writes into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.model_file = path / "model.safetensors"
        self.metrics_file = path / "metrics.jsonl"
        self.gallery_file = path / "gallery.h5"
        self.info_file = path / "run.json"
        self.samples_folder = path / "samples"
        self.tensorboard_folder = path / "tensorboard"
        self.checkpoint_folder = path / "checkpoints"

    def exists(self) -> bool:
        """Returns whether a run was started here."""
        return self.config_file.exists()

    def is_free(self) -> bool:
        """Returns whether nothing is here but the leftovers of a killed start."""
        return all(path.name.startswith(".") for path in self.path.glob("*"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder, locks it, and removes what killed processes left."""
        with files.write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with files.locked(self.path, "wait until it has ended, or choose another --run"):
                with files.write_errors(self.path):
                    for folder in (self.path, self.checkpoint_folder, self.samples_folder):
                        files.remove_temporaries(folder)
                yield
        finally:
            if not self.exists():  # the run was refused
                with suppress(OSError):
                    (self.path / files.LOCK).unlink(missing_ok=True)
                    self.path.rmdir()

    def create(self, config: Config) -> None:
        """Removes what an earlier run left, and writes the configuration of a new one."""
        with files.write_errors(self.path):
            for pattern in _LEFT:
                for path in sorted(self.path.glob(pattern), reverse=True):
                    path.unlink()
        files.write_text(self.config_file, config.to_yaml())

    def read_config(self) -> Config:
        """Returns the run's configuration."""
        return _config_of(read_yaml(self.config_file), self.config_file)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl; checkpoints count lines, so resuming drops a torn one."""
        with files.write_errors(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def truncate_metrics(self, lines: int) -> None:
        """Drops the lines that an interrupted run wrote after a checkpoint with so many lines."""
        if self.metrics_file.exists():
            kept = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
            files.write_text(self.metrics_file, "".join(kept))

    def write_info(self, record: dict[str, Any]) -> None:
        """Writes run.json."""
        files.write_text(self.info_file, json.dumps(record, indent=2) + "\n")

    def read_info(self) -> dict[str, Any]:
        """Returns the content of run.json; empty if it is missing or damaged."""
        try:
            return dict(json.loads(self.info_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def link_latest(self) -> None:
        """Points the link `latest` next to this run at it, unless something else has that name."""
        link = self.path.parent / "latest"
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(f".latest.{os.getpid()}")
        with files.write_errors(link):
            temporary.symlink_to(self.path.name)
            temporary.replace(link)

    def checkpoint_file(self, step: int) -> Path:
        """Returns the file of the checkpoint at a step."""
        return self.checkpoint_folder / f"step-{step:08d}.safetensors"

    def checkpoint_files(self) -> list[Path]:
        """Returns the checkpoints' files, oldest first."""
        return sorted(self.checkpoint_folder.glob("step-*.safetensors"))

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint and drops all but the two newest."""
        tensors = {
            f"{part}/{name}": values
            for part in ("model", "optimizer", "running")
            for name, values in getattr(checkpoint, part).items()
        }
        lines = 0
        if self.metrics_file.exists():
            files.sync_file(self.metrics_file)  # after a power failure the lines are there, too
            lines = self.metrics_file.read_bytes().count(b"\n")
        header = {"schema": CHECKPOINT_SCHEMA, "step": str(checkpoint.step), "lines": str(lines)}
        header |= {key: json.dumps(getattr(checkpoint, key)) for key in ("progress", "data")}
        save_tensors(tensors, self.checkpoint_file(checkpoint.step), header)
        self.prune()

    def prune(self) -> None:
        """Drops all checkpoints but the two newest; a process killed before that leaves three."""
        for old in self.checkpoint_files()[:-2]:
            with files.write_errors(old):
                old.unlink(missing_ok=True)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Returns the newest readable checkpoint, or None; renames damaged ones that are newer."""
        paths = self.checkpoint_files()
        for path in reversed(paths):
            try:
                return _read_checkpoint(path)
            except DamagedFile as error:
                if path == paths[0]:
                    raise
                aside = path.with_name(f"{path.name}.damaged")
                console.warn(f"{error.message}; it is set aside as {aside.name}")
                with files.write_errors(path):
                    path.replace(aside)
        return None


@dataclass
class Checkpoint:
    """The state that training continues from; batches, noise and rate follow from seed and step."""

    step: int  # optimiser steps done
    model: dict[str, Tensor] = field(default_factory=dict)  # weights, batch-norm statistics
    optimizer: dict[str, Tensor] = field(default_factory=dict)  # Adam's state by PARAMETER.FIELD
    running: dict[str, Tensor] = field(default_factory=dict)  # loss terms since the last log line
    progress: dict[str, Any] = field(default_factory=dict)  # `validation.Progress` as JSON
    data: dict[str, Any] = field(default_factory=dict)  # the training data's fingerprint
    lines: int = 0  # of metrics.jsonl when it was saved


def _read_checkpoint(path: Path) -> Checkpoint:
    header, tensors = read_tensors(path, CHECKPOINT_SCHEMA, HINT)
    with files.reading(path, HINT):
        notes = {key: dict(json.loads(header[key])) for key in ("progress", "data")}
        checkpoint = Checkpoint(int(header["step"]), **notes, lines=int(header["lines"]))
        for full_name, values in tensors.items():
            part, name = full_name.split("/", 1)
            getattr(checkpoint, part)[name] = values
    return checkpoint


@dataclass
class LoadedModel:
    """A run's kept weights, ready for inference."""

    model: IIAE  # in evaluation mode, on the requested device
    config: Config  # of its training
    info: DataInfo  # the shapes of its training data
    size: tuple[int, int] | None  # (H, W) that pictures are resized to; None for features
    fingerprint: str  # 16 hex digits over the weights, which latent caches of them repeat
    details: dict[str, Any]  # step, epoch, validation figures, preset, data path

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def metric(self) -> Literal["euclidean", "cosine"]:
        """The distance between shared means: as configured, or the better one on validation."""
        chosen, validation = self.config.evaluation.metric, self.details.get("validation") or {}
        if chosen != "auto":
            return chosen
        return "cosine" if validation.get("metric") == "cosine" else "euclidean"


def save_weights(
    path: Path, model: IIAE, config: Config, info: DataInfo, details: dict[str, Any]
) -> None:
    """Writes weights, in float32, and a run's `details` atomically."""
    state = {
        name: values.float() if values.is_floating_point() else values
        for name, values in model.state_dict().items()
    }
    shapes = {"name": info.name, "shape_x": info.shape_x, "shape_y": info.shape_y}
    records = {
        "config": config.to_dict(),
        "data": {**shapes, "backbone": info.attributes.get("backbone", "{}")},
        "details": details,
        "versions": run_versions(),
    }
    header = {name: json.dumps(record) for name, record in records.items()}
    save_tensors(state, path, {"schema": MODEL_SCHEMA, **header})


def _config_of(values: dict[str, Any], path: Path) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {plain_words(first['msg'])}".lstrip(": ")
        message = f"{path} was written by another version: {reason}"
        raise IiaeError(message, OTHER_VERSION) from error


def load_model(run: RunDir, device: torch.device | str = "cpu") -> LoadedModel:
    """Reads a run's kept weights as a model in evaluation mode."""
    path, hint = run.model_file, "name another with --run RUN, or train one: iiae train digits-cdcb"
    if not run.path.exists():
        raise files.missing(run.path, hint)
    if not path.exists():
        raise IiaeError(f"{run.path} holds no {path.name}", hint)
    header, state = read_tensors(path, MODEL_SCHEMA, OTHER_VERSION)
    with files.reading(path, OTHER_VERSION):
        config = _config_of(json.loads(header["config"]), path)
        data, details = json.loads(header["data"]), dict(json.loads(header["details"]))
        shapes = tuple(data["shape_x"]), tuple(data["shape_y"])
        info = DataInfo(data["name"], *shapes, {}, {"backbone": data["backbone"]})
        with torch.device("meta"):  # so that only the file's tensors take memory
            model = build_model(config, info)
        load_state(model, state, path, assign=True)
        size = picture_size(config, info)
    model = place(model, device).eval()
    return LoadedModel(model, config, info, size, digest_of(state)[:16], details)


def load_state(model: IIAE, state: dict[str, Tensor], path: Path, *, assign: bool = False) -> None:
    """Loads the weights that `path` holds; `assign` replaces the model's own tensors."""
    try:
        model.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        message = f"{path} was written by another version: its weights do not fit the model"
        raise IiaeError(message, OTHER_VERSION) from error


def run_versions() -> dict[str, str]:
    """Returns the versions that decide a run's numbers."""
    return {"iiae": __version__, "torch": torch.__version__, "python": platform.python_version()}


def run_origin(command: list[str]) -> dict[str, Any]:
    """Returns versions, git commit of the working folder, host, processor and command of a run."""
    commit = None
    with suppress(OSError):  # no git
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = asked.stdout.strip() if asked.returncode == 0 else None
    return {
        "versions": run_versions(),
        "git": commit,
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "command": command,
    }
