"""Kept weights: model.safetensors, whose header holds the configuration and the data's shapes.

A fingerprint over all tensors ties latent caches to the weights that made them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iiae_cli.builders import build_model, picture_size
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, writing
from iiae_cli.common.tensors import digest_of, read_tensors, save_tensors
from iiae_cli.config.schema import Config
from iiae_cli.data.datafile import DataInfo
from iiae_cli.extensions.erasure import LinearErasure
from iiae_cli.model.iiae import IIAE
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.provenance import run_versions

MODEL_SCHEMA = "iiae.model/2"
HINT = "train again with this version, or use the version that wrote it"


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
        """Distance between shared means: as configured, or what won on validation."""
        chosen = self.config.evaluation.metric
        if chosen != "auto":
            return chosen
        return (
            "cosine"
            if (self.details.get("validation") or {}).get("metric") == "cosine"
            else "euclidean"
        )


def fingerprint_of(state: dict[str, Tensor]) -> str:
    """16 hex digits over names, shapes and bytes of a model's tensors."""
    return digest_of(state)[:16]


def save_weights(
    path: Path, model: IIAE, config: Config, info: DataInfo, details: dict[str, Any]
) -> str:
    """Write weights and a run's `details` atomically; returns their fingerprint."""
    state = {name: _stored(values) for name, values in model.state_dict().items()}
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
    """Weights that `save_weights` wrote, as a model in evaluation mode.

    Raises:
        IiaeError: missing, damaged, or of another schema.
    """
    header, state = read_tensors(path, MODEL_SCHEMA, HINT)
    with reading(path, HINT):
        config = Config.model_validate_json(header["config"])
        data, details = json.loads(header["data"]), dict(json.loads(header["details"]))
        shapes = tuple(data["shape_x"]), tuple(data["shape_y"])
        info = DataInfo(str(data["name"]), *shapes, {}, {})
        model = _filled(config, info, state)
        size = picture_size(config, info)
    if not all(bool(torch.isfinite(values).all()) for values in state.values()):
        raise IiaeError(
            f"{path} holds weights that are not finite", "train again, with a lower optimizer.lr"
        )
    model = place(model, device).eval()
    return LoadedModel(model, config, info, size, fingerprint_of(state), details)


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


def _filled(config: Config, info: DataInfo, state: dict[str, Tensor]) -> IIAE:
    """The model with these weights. Memory is taken only after their shapes have been compared.

    Raises:
        ValueError: a tensor is missing, superfluous, or of another shape or type.
    """
    with torch.device("meta"):
        model = build_model(config, info)
    for name, module in model.named_modules():
        saved = state.get(f"{name}.left")
        if isinstance(module, LinearErasure) and saved is not None and saved.ndim == 2:
            module.make_room(saved.shape[1])
    wanted, found = (
        {name: f"{values.dtype} {tuple(values.shape)}" for name, values in tensors.items()}
        for tensors in (model.state_dict(), state)
    )
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name[:80]} is {found.get(name, 'missing')}")
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    return model


def _stored(values: Tensor) -> Tensor:
    """On the CPU, in order, and in float32 where it was trained in float64."""
    values = values.detach().cpu().contiguous()
    return values.float() if values.dtype == torch.float64 else values


def place(model: IIAE, device: torch.device | str) -> IIAE:
    """The model on a device, its convolutions channels-last, as pictures arrive."""
    model.to(device)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
    return model
