"""Kept weights, and what is needed to use them: model.safetensors, whose header holds configuration and data shapes.

Shapes are compared before memory is taken, and a fingerprint over all tensors ties latent caches to the weights that
made them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iiae_cli.builders import build_model, picture_size
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.config.schema import Config
from iiae_cli.data.datafile import DataInfo
from iiae_cli.extensions.erasure import LinearErasure
from iiae_cli.model.iiae import IIAE
from iiae_cli.runs.provenance import run_versions

MODEL_SCHEMA = "iiae.model/2"


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
        return (
            "cosine"
            if (self.details.get("validation") or {}).get("metric") == "cosine"
            else "euclidean"
        )


def fingerprint_of(state: dict[str, Tensor]) -> str:
    """16 hex digits over names, shapes and bytes of a model's tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def save_weights(
    path: Path, model: IIAE, config: Config, info: DataInfo, details: dict[str, Any]
) -> str:
    """Write weights atomically, a run's `details` with them; returns their fingerprint."""
    state = {name: _stored(values) for name, values in model.state_dict().items()}
    fingerprint = fingerprint_of(state)
    header = {
        "schema": MODEL_SCHEMA,
        "fingerprint": fingerprint,
        "config": json.dumps(config.to_dict()),
        "data": json.dumps({"name": info.name, "shape_x": info.shape_x, "shape_y": info.shape_y}),
        "details": json.dumps(details),
        "versions": json.dumps(run_versions()),
    }
    with writing(path) as temporary:
        save_tensors(state, temporary, header)
    return fingerprint


def read_weights(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Weights that `save_weights` wrote, as a model in evaluation mode.

    Raises:
        IiaeError: damaged, or of another schema.
    """
    remedy = "train again with this version, or use the version that wrote it"
    if not path.is_file():  # a pipe would be waited for
        raise IiaeError(f"{path} is no file", remedy)
    header, state = read_tensors(path, MODEL_SCHEMA, remedy)
    try:
        config = Config.model_validate(json.loads(header["config"]))
        info, details = (
            _info_of(json.loads(header["data"])),
            _details_of(json.loads(header["details"])),
        )
        model = _filled(config, info, state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise IiaeError(f"{path} does not fit its own header: {reason[:300]}", remedy) from error
    fingerprint = fingerprint_of(state)
    if fingerprint != header.get("fingerprint"):
        raise IiaeError(f"{path} is damaged: its weights do not match their fingerprint", remedy)
    if not all(bool(torch.isfinite(values).all()) for values in state.values()):
        raise IiaeError(
            f"{path} holds weights that are not finite", "train again, with a lower optimizer.lr"
        )
    model = place(model, device).eval()
    return LoadedModel(model, config, info, picture_size(config, info), fingerprint, details)


def _filled(config: Config, info: DataInfo, state: dict[str, Tensor]) -> IIAE:
    """The model with these weights. Memory is taken only after their shapes have been compared.

    Raises:
        ValueError: a tensor is missing, superfluous, or of another shape or type.
        RuntimeError: shapes beyond all bounds.
    """
    with torch.device("meta"):
        model = build_model(config, info)
    for name, module in model.named_modules():
        saved = state.get(f"{name}.left")
        if isinstance(module, LinearErasure) and saved is not None and saved.ndim == 2:
            module.make_room(saved.shape[1])
    wanted = {name: (values.shape, values.dtype) for name, values in model.state_dict().items()}
    found = {name: (values.shape, values.dtype) for name, values in state.items()}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            shape, dtype = found.get(name, ((), "no tensor"))
            raise ValueError(f"{name[:80]} is {dtype} {tuple(shape)}")
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    return model


def _info_of(data: dict[str, Any]) -> DataInfo:
    """What the header says of the data: a name and the shapes of rows.

    Raises:
        KeyError: one is missing; likewise TypeError, ValueError: it is none.
    """
    shapes = [tuple(data[name]) for name in ("shape_x", "shape_y")]
    for shape in shapes:
        if len(shape) not in (1, 3) or not all(type(n) is int and 0 < n < 2**31 for n in shape):
            raise ValueError(f"rows of shape {shape}")
    return DataInfo(str(data["name"]), shapes[0], shapes[1], {}, {})


def _details_of(details: dict[str, Any]) -> dict[str, Any]:
    """What the header says of the training.

    Raises:
        TypeError: of another kind than `Session` writes.
    """
    if not isinstance(details, dict):
        raise TypeError("details of another kind")
    texts = [details.get("preset"), details.get("data"), *(details.get("train_classes") or ())]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise TypeError("details of another kind")
    return details


def _stored(values: Tensor) -> Tensor:
    """On the CPU, in order, and in float32 where it was trained in float64."""
    values = values.detach().cpu().contiguous()
    return values.float() if values.dtype == torch.float64 else values


def place(model: IIAE, device: torch.device | str) -> IIAE:
    """The model on a device, its convolutions channels-last (pictures arrive that way, and it is faster)."""
    model.to(device)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
    return model
