"""Kept weights: model.safetensors, whose header holds the configuration and the data's shapes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iiae_cli.builders import build_model, picture_size
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import missing, reading, writing
from iiae_cli.common.tensors import digest_of, read_tensors, save_tensors
from iiae_cli.config.schema import Config
from iiae_cli.data.datafile import DataInfo
from iiae_cli.model.iiae import IIAE
from iiae_cli.runs.directory import RunDir, run_versions

MODEL_SCHEMA = "iiae.model/2"
HINT = "use the version of iiae that wrote it, or train with this one into another --run"


@dataclass
class LoadedModel:
    """Kept weights, ready for inference."""

    model: IIAE  # in evaluation mode, on the device asked for
    config: Config  # that it was trained with
    info: DataInfo  # shapes of the data that it was trained on
    size: tuple[int, int] | None  # (H, W) its pictures are resized to; None for features
    fingerprint: str  # of the weights
    details: dict[str, Any]  # step, epoch, validation figures, preset, data path

    @property
    def metric(self) -> Literal["euclidean", "cosine"]:
        """Distance between shared means: as configured, or what won on validation."""
        chosen = self.config.evaluation.metric
        validation: dict[str, Any] = self.details.get("validation") or {}
        won: Literal["euclidean", "cosine"] = validation.get("metric", "euclidean")
        return won if chosen == "auto" else chosen


def fingerprint_of(state: dict[str, Tensor]) -> str:
    """16 hex digits over a model's tensors; ties latent caches to the weights that made them."""
    return digest_of(state)[:16]


def save_weights(
    path: Path, model: IIAE, config: Config, info: DataInfo, details: dict[str, Any]
) -> str:
    """Write weights, in float32, and a run's `details` atomically; returns their fingerprint."""
    state = {}
    for name, values in model.state_dict().items():
        kept = values.float() if values.dtype == torch.float64 else values
        state[name] = kept.detach().cpu().contiguous()
    header = {
        "schema": MODEL_SCHEMA,
        "config": json.dumps(config.to_dict()),
        "data": json.dumps({"name": info.name, "shape_x": info.shape_x, "shape_y": info.shape_y}),
        "details": json.dumps(details),
        "versions": json.dumps(run_versions()),
    }
    with writing(path) as temporary:
        save_tensors(state, temporary, header)
    return fingerprint_of(state)


def read_weights(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Weights that `save_weights` wrote, as a model in evaluation mode."""
    header, state = read_tensors(path, MODEL_SCHEMA, HINT)
    with reading(path, HINT):
        config = Config.model_validate_json(header["config"])
        data, details = json.loads(header["data"]), dict(json.loads(header["details"]))
        shapes = tuple(data["shape_x"]), tuple(data["shape_y"])
        info = DataInfo(str(data["name"]), *shapes, {}, {})
        with torch.device("meta"):  # memory is taken by the file's own tensors alone
            model = build_model(config, info)
        model.load_state_dict(state, assign=True)
        size = picture_size(config, info)
    if not all(bool(torch.isfinite(values).all()) for values in state.values()):
        raise IiaeError(
            f"{path} holds weights that are not finite", "train again, with a lower optimizer.lr"
        )
    model = place(model, device).eval()
    return LoadedModel(model, config, info, size, fingerprint_of(state), details)


def load_model(run: RunDir, device: torch.device | str = "cpu") -> LoadedModel:
    """The kept weights of a run."""
    hint = "train it: iiae train --preset NAME --resume"
    if not run.path.exists():
        raise missing(run.path, hint)
    if not run.path.is_dir():
        raise IiaeError(f"{run.path} is a file, not a run's folder", hint)
    if not run.model_file.exists():
        raise IiaeError(f"run {run.path} holds no model.safetensors yet", hint)
    return read_weights(run.model_file, device)


def place(model: IIAE, device: torch.device | str) -> IIAE:
    """The model on a device, its convolutions channels-last, as pictures arrive."""
    model.to(device)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
    return model
