"""Builds models, objectives and optimisers, and alone reads those sections of the configuration.

Settings that contradict each other raise IiaeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.config import Config, ModelSection
from iiae_cli.data.datafile import DataInfo
from iiae_cli.extensions import encoders
from iiae_cli.extensions.extended import (
    DualEncoder,
    ExtendedIIAE,
    contrastive_term,
    dependence_term,
)
from iiae_cli.model import Domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.model.networks import FeatureNetworks, FlatNetworks, ImageNetworks, Networks
from iiae_cli.model.objective import Objective, bound

SMALLEST_GRID = 4
SMALLEST_PICTURE = 16


def picture_size(config: Config, info: DataInfo) -> tuple[int, int] | None:
    """Returns the (H, W) that pictures are resized to; None for features."""
    if info.is_features:
        return None
    if config.data.image_size is not None:
        return (config.data.image_size, config.data.image_size)
    (height, width, _), other = info.shape_x, info.shape_y
    if other[:2] != (height, width) or min(height, width) < SMALLEST_PICTURE:
        raise IiaeError(
            f"pictures are {height}x{width} in x and {other[0]}x{other[1]} in y: they must be of "
            f"one size, with sides of at least {SMALLEST_PICTURE} pixels",
            "resize them per batch: --set data.image_size=64",
        )
    return (height, width)


def choose_stages(model: ModelSection, size: tuple[int, int]) -> int:
    """Returns the halvings from picture to latent grid, by default as many as a 4×4 grid allows."""
    stages = len(model.widths) + 1
    if model.stages is None:
        while stages > 2 and math.ceil(min(size) / 2**stages) < SMALLEST_GRID:
            stages -= 1
        return stages
    if model.stages > stages or 2**model.stages > min(size):
        pictures = f"{stages - 1} widths and pictures of {size[0]}x{size[1]}"
        raise IiaeError(
            f"model.stages={model.stages} is too deep for {pictures}",
            "leave model.stages unset: --set model.stages=null",
        )
    return model.stages


def build_model(config: Config, info: DataInfo) -> IIAE:
    """Builds the model for data of these shapes, initialised from torch's random state."""
    networks, kind = _networks(config, info), config.objective.kind
    widths: dict[Domain, int] = {"x": info.shape_x[-1], "y": info.shape_y[-1]}
    extensions: dict[str, Any] = {
        "standardise": config.data.standardise != "none" and info.is_features,
        "erase_shared": config.erasure.shared != "none",
        "attention": config.model.attention,
    }
    if kind == "infonce":
        return DualEncoder(networks, widths, **extensions)
    options: dict[str, Any] = {
        "exclusive_dim": 0 if kind == "ii" else config.model.exclusive,
        "shared_decoders": kind == "elbo+ii",
    }
    if any(extensions.values()):
        return ExtendedIIAE(networks, widths, **options, **extensions)
    return IIAE(networks, widths, **options)


def _networks(config: Config, info: DataInfo) -> Networks:
    model, path = config.model, config.model.linear_path
    if info.is_features != (model.kind == "features"):
        holds = "features" if info.is_features else "pictures"
        raise IiaeError(
            f"data set {info.name} holds {holds}, but model.kind is {model.kind}",
            "choose a preset: pairs for pictures, pair-features or, by class, features",
        )
    size = picture_size(config, info)
    if size is None:
        features = FeatureNetworks if path == "none" else encoders.LinearPathFeatures
        return features(
            feature_width=model.feature_width,
            exclusive_hidden=model.exclusive_hidden,
            shared_hidden=model.shared_hidden,
            joint_hidden=model.joint_hidden,
            decoder_hidden=model.decoder_hidden,
            shared_dim=model.shared,
        )
    kept = choose_stages(model, size) - 1
    widths = model.widths[:kept], model.decoder_widths[-kept:]
    if model.kind == "image":
        maps = ImageNetworks if path == "none" else encoders.DescribedMaps
        return maps(size, *widths, model.shared, model.dropout)
    flat: type[FlatNetworks] | partial[encoders.DescribedFlat] = FlatNetworks
    if path != "none":
        flat = partial(encoders.DescribedFlat, patches=model.patches)
    elif model.pooled:
        flat = encoders.PooledNetworks
    hidden, width = model.flat_hidden, model.flat_width
    return flat(size, *widths, model.shared, model.dropout, hidden=hidden, flat_width=width)


def build_objective(
    config: Config, gather: Callable[[Tensor], Tensor] = lambda rows: rows
) -> Objective:
    """Builds the loss.

    If several processes share a batch, `gather` collects the rows of all of them, for terms that
    compare rows with each other.
    """
    section = config.objective
    if section.kind == "infonce":
        return Objective([contrastive_term(1.0, section.temperature, gather)])
    objective = bound(
        section.kind,
        section.lam,
        reconstruction=section.reconstruction,
        reconstruction_weight=section.reconstruction_weight,
        annealing_steps=section.annealing_steps,
    )
    if section.contrastive:
        term = contrastive_term(section.contrastive, section.temperature, gather)
        objective.terms.append(term)
    if section.independence:
        objective.terms.append(dependence_term(section.independence, gather))
    return objective


def build_optimizer(config: Config, model: IIAE) -> torch.optim.Adam:
    """Builds Adam over all parameters; `build_schedule` sets its rate before each step."""
    section = config.optimizer
    betas = (section.beta1, section.beta2)
    return torch.optim.Adam(model.parameters(), lr=section.lr, betas=betas, fused=True)


def build_schedule(config: Config, total_steps: int) -> Callable[[int], float]:
    """Returns the learning rate by step, from 0: linear warm-up, then constant or a cosine."""
    section = config.optimizer

    def learning_rate(step: int) -> float:
        rate = section.lr
        if section.warmup_steps:
            rate *= min(1.0, (step + 1) / section.warmup_steps)
        if section.schedule == "cosine":
            cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / total_steps)))
            rate *= section.final_lr_fraction + (1.0 - section.final_lr_fraction) * cosine
        return rate

    return learning_rate


def place(model: IIAE, device: torch.device | str) -> IIAE:
    """Moves the model to a device, its convolutions channels-last, as pictures arrive."""
    model.to(device)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
    return model


def choose_device(name: str) -> torch.device:
    """Returns the device of this name; `auto` prefers a GPU."""
    mps = int(torch.backends.mps.is_available())
    present = {"cuda": torch.cuda.device_count(), "mps": mps, "cpu": 1}
    name = next(kind for kind in present if present[kind]) if name == "auto" else name
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= present.get(device.type, 0):
        message = f"device '{name}' is unknown or missing"
        raise IiaeError(message, "choose --device auto or --device cpu")
    return device
