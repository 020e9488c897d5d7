"""A run directory: what training leaves behind, and how it is read again.

    config.yaml           the whole configuration
    model.safetensors     the kept weights; config, data shapes and fingerprint in its header (schema iiae.model/1)
    checkpoints/*.safetensors   weights, optimiser, running sums and step, the two newest (schema iiae.checkpoint/1)
    metrics.jsonl         one JSON object per log line and validation
    gallery.h5            latents of the test split's domain y
    samples/*.png         sample grids
    tensorboard/          events
    run.json              versions, git, host, command, timings, outcome

Only tensors are ever loaded, never code: safetensors files and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from iiae_cli import __version__
from iiae_cli.builders import build_model, picture_size
from iiae_cli.config import Config, read_yaml
from iiae_cli.data.dataset import DataInfo
from iiae_cli.errors import IiaeError
from iiae_cli.files import write_errors, writing
from iiae_cli.model.iiae import IIAE
from iiae_cli.tensors import read_tensors, save_tensors

MODEL_SCHEMA = "iiae.model/1"
CHECKPOINT_SCHEMA = "iiae.checkpoint/1"
KEPT_CHECKPOINTS = 2


@dataclass
class LoadedModel:
    """Kept weights, ready for inference.

    Attributes:
        model: in evaluation mode, on the device asked for.
        config: that it was trained with.
        info: shapes of the data that it was trained on.
        size: (H, W) its pictures are resized to; None for features.
        fingerprint: of the weights; latent caches carry it.
        details: step, epoch, validation figures, preset, data path.
    """

    model: IIAE
    config: Config
    info: DataInfo
    size: tuple[int, int] | None
    fingerprint: str
    details: dict[str, Any]

    @property
    def metric(self) -> Literal["euclidean", "cosine"]:
        """Distance between its shared means: the configured one, or the one that won on validation."""
        chosen = self.config.evaluation.metric
        if chosen != "auto":
            return chosen
        return "cosine" if (self.details.get("validation") or {}).get("metric") == "cosine" else "euclidean"


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


def fingerprint_of(state: dict[str, Tensor]) -> str:
    """16 hex digits over names, shapes and bytes of a model's tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


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

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.exists()

    def create(self, config: Config) -> None:
        """Make the folder and write its configuration."""
        with write_errors(self.path):
            self.samples_folder.mkdir(parents=True, exist_ok=True)
            self.checkpoint_folder.mkdir(exist_ok=True)
        write_text(self.config_file, config.to_yaml())

    def read_config(self) -> Config:
        """The run's configuration.

        Raises:
            IiaeError: missing or damaged.
        """
        try:
            return Config.model_validate(read_yaml(self.config_file))
        except ValidationError as error:
            raise IiaeError(
                f"{self.config_file} is of another version: {error.errors()[0]['msg']}", "train again with this version"
            ) from error

    def save_model(self, model: IIAE, config: Config, info: DataInfo, details: dict[str, Any]) -> str:
        """Write the kept weights; returns their fingerprint."""
        state = {name: values.detach().cpu().contiguous() for name, values in model.state_dict().items()}
        fingerprint = fingerprint_of(state)
        header = {
            "schema": MODEL_SCHEMA,
            "fingerprint": fingerprint,
            "config": json.dumps(config.to_dict()),
            "data": json.dumps({"name": info.name, "shape_x": info.shape_x, "shape_y": info.shape_y}),
            "details": json.dumps(details),
            "versions": json.dumps(run_versions()),
        }
        with writing(self.model_file) as temporary:
            save_tensors(state, temporary, header)
        return fingerprint

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
        with writing(self.checkpoint_folder / f"step-{checkpoint.step:08d}.safetensors") as temporary:
            save_tensors(tensors, temporary, header)
        for old in self._checkpoint_files()[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, or None where there is none.

        Raises:
            IiaeError: damaged or of another schema.
        """
        files = self._checkpoint_files()
        if not files:
            return None
        header, tensors = read_tensors(files[-1], CHECKPOINT_SCHEMA, f"delete {files[-1]} and run again with --resume")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "running": {}}
        for full_name, values in tensors.items():
            part, name = full_name.split("/", 1)
            parts[part][name] = values
        return Checkpoint(step=int(header["step"]), progress=json.loads(header["progress"]), **parts)

    def _checkpoint_files(self) -> list[Path]:
        return sorted(self.checkpoint_folder.glob("step-*.safetensors"))

    def truncate_metrics(self, step: int) -> None:
        """Drop the lines that an interrupted run wrote after the checkpoint at `step`."""
        if self.metrics_file.exists():
            lines = self.metrics_file.read_text().splitlines(keepends=True)
            write_text(self.metrics_file, "".join(line for line in lines if _line_step(line) <= step))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with write_errors(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def write_info(self, record: dict[str, Any]) -> None:
        """Write run.json."""
        write_text(self.info_file, json.dumps(record, indent=2) + "\n")

    def link_latest(self) -> None:
        """Point `latest` beside this run at it, unless something that is no link stands there."""
        link = self.path.parent / "latest"
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(f".latest.{os.getpid()}")
        with write_errors(link):
            temporary.symlink_to(self.path.name)
            temporary.replace(link)


def _line_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return sys.maxsize  # a torn last line


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
        raise IiaeError(f"run {run.path} does not exist", "train one: iiae train --preset digits-cdcb")
    if not run.model_file.exists():
        raise IiaeError(f"run {run.path} holds no model.safetensors yet", "continue it: iiae train … --resume")
    remedy = "train again with this version, or use the version that wrote it"
    header, state = read_tensors(run.model_file, MODEL_SCHEMA, remedy)
    try:
        config = Config.model_validate(json.loads(header["config"]))
        data = json.loads(header["data"])
        info = DataInfo(data["name"], tuple(data["shape_x"]), tuple(data["shape_y"]), {}, {})
        model = build_model(config, info)
        model.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise IiaeError(f"{run.model_file} does not fit its own header: {reason}", remedy) from error
    fingerprint = fingerprint_of(state)
    if fingerprint != header.get("fingerprint"):
        raise IiaeError(f"{run.model_file} is damaged: its weights do not match their fingerprint", remedy)
    model = place(model, device).eval()
    return LoadedModel(model, config, info, picture_size(config, info), fingerprint, json.loads(header["details"]))


def place(model: IIAE, device: torch.device | str) -> IIAE:
    """The model on a device, its convolutions channels-last (pictures arrive that way, and it is faster)."""
    model.to(device)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
    return model


def run_versions() -> dict[str, str]:
    """Versions that decide a run's numbers."""
    return {"iiae": __version__, "torch": torch.__version__, "python": platform.python_version()}


def run_origin(command: list[str]) -> dict[str, Any]:
    """Where a run comes from: versions, git commit of the working folder, host, processor, command."""
    git = (
        subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if _has_git()
        else None
    )
    return {
        "versions": run_versions(),
        "git": git.stdout.strip() if git is not None and git.returncode == 0 else None,
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "command": command,
    }


def _has_git() -> bool:
    from shutil import which

    return which("git") is not None
