"""Config to objects: the sole reader of model, objective and optimiser configuration.

It stands above `data/` (it reads a data file's shapes) and below everything that runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from iiae_cli.common.errors import IiaeError
from iiae_cli.config.schema import Config, ModelSection
from iiae_cli.data.datafile import DataInfo
from iiae_cli.extensions.augmentation import Augmentation
from iiae_cli.model.iiae import IIAE, feature_iiae, image_iiae
from iiae_cli.model.networks import grid_after
from iiae_cli.model.objective import (
    Objective,
    has_decoders,
    has_exclusive_latents,
    has_shared_decoders,
)

SMALLEST_GRID = 4
SMALLEST_PICTURE = 16


def picture_size(config: Config, info: DataInfo) -> tuple[int, int] | None:
    """(H, W) that pictures are resized to: `data.image_size`, else the data file's own; None for features.

    Raises:
        IiaeError: the domains differ in size and none was chosen, or pictures are too small.
    """
    if info.is_features:
        return None
    if config.data.image_size is not None:
        return (config.data.image_size, config.data.image_size)
    size, other = info.shape_x[:2], info.shape_y[:2]
    if size != other:
        raise IiaeError(
            f"pictures of x are {size[0]}x{size[1]} and those of y {other[0]}x{other[1]}",
            "choose one size for both: --set data.image_size=64",
        )
    if min(size) < SMALLEST_PICTURE:
        raise IiaeError(
            f"pictures of {size[0]}x{size[1]} are smaller than {SMALLEST_PICTURE} pixels",
            "enlarge them per batch: --set data.image_size=32",
        )
    return (size[0], size[1])


def choose_stages(model: ModelSection, size: tuple[int, int]) -> int:
    """Halvings from picture to latent grid: `model.stages`, else as many as widths and a 4×4 grid allow.

    Raises:
        IiaeError: more stages asked for than widths or pixels.
    """
    most = len(model.widths) + 1
    if model.stages is not None:
        if model.stages > most:
            raise IiaeError(
                f"model.stages={model.stages} needs {model.stages - 1} widths, but model.widths has {most - 1}",
                "add entries to model.widths and model.decoder_widths",
            )
        if 2**model.stages > min(size):
            raise IiaeError(
                f"model.stages={model.stages} is too deep for pictures of {size[0]}x{size[1]}",
                "leave model.stages unset: --set model.stages=null",
            )
        return model.stages
    stages = most
    while stages > 2 and min(grid_after(side, stages) for side in size) < SMALLEST_GRID:
        stages -= 1
    return stages


def build_model(config: Config, info: DataInfo) -> IIAE:
    """The model of a configuration for data of these shapes, freshly initialised from torch's random state.

    Raises:
        IiaeError: model kind and data do not fit each other.
    """
    model = _build_networks(config, info)
    model.add_erasure(
        shared=config.erasure.shared != "none", exclusive=config.erasure.exclusive != "none"
    )
    return model


def _build_networks(config: Config, info: DataInfo) -> IIAE:
    model, kind = config.model, config.objective.kind
    if info.is_features != (model.kind == "features"):
        holds = "features" if info.is_features else "pictures"
        raise IiaeError(
            f"data set {info.name} holds {holds}, but model.kind is {model.kind}",
            "choose a preset of the data's kind, or --set model.kind="
            + ("features" if info.is_features else "image"),
        )
    if model.linear_path != "none" and (model.linear_path == "canonical") == (
        model.kind == "features"
    ):
        raise IiaeError(
            f"model.linear_path={model.linear_path} does not go with model.kind={model.kind}",
            "canonical is for pictures, random and two-covariance are for features",
        )
    exclusive_latents, shared_decoders = has_exclusive_latents(kind), has_shared_decoders(kind)
    size = picture_size(config, info)
    if size is None:
        return feature_iiae(
            width_x=info.shape_x[0],
            width_y=info.shape_y[0],
            feature_width=model.feature_width,
            exclusive_hidden=model.exclusive_hidden,
            shared_hidden=model.shared_hidden,
            joint_hidden=model.joint_hidden,
            decoder_hidden=model.decoder_hidden,
            shared_dim=model.shared,
            exclusive_dim=model.exclusive,
            exclusive_latents=exclusive_latents,
            shared_decoders=shared_decoders,
            decoders=has_decoders(kind),
            standardise=config.data.standardise != "none",
            linear_path=model.linear_path != "none",
        )
    kept = choose_stages(model, size) - 1
    return image_iiae(
        channels_x=info.shape_x[2],
        channels_y=info.shape_y[2],
        size=size,
        widths=model.widths[:kept],
        decoder_widths=model.decoder_widths[-kept:],
        shared_channels=model.shared,
        exclusive_dim=model.exclusive,
        dropout=model.dropout,
        exclusive_latents=exclusive_latents,
        shared_decoders=shared_decoders,
        decoders=has_decoders(kind),
        linear_path=model.linear_path == "canonical",
        flat_hidden=model.flat_hidden if model.kind == "flat" else None,
        flat_width=model.flat_width,
    )


def build_objective(config: Config) -> Objective:
    """The loss of a configuration."""
    section = config.objective
    return Objective(
        kind=section.kind,
        lam=section.lam,
        reconstruction=section.reconstruction,
        reconstruction_weight=section.reconstruction_weight,
        annealing_steps=section.annealing_steps,
        contrastive=section.contrastive,
        temperature=section.temperature,
        independence=section.independence,
    )


def build_augmentation(config: Config) -> Augmentation:
    """What a configuration does to training pictures."""
    return Augmentation(**config.augment.model_dump())


def build_optimizer(config: Config, model: IIAE) -> torch.optim.Adam:
    """Adam over every parameter; its learning rate is set before each step by `build_schedule`'s function."""
    section = config.optimizer
    return torch.optim.Adam(
        model.parameters(), lr=section.lr, betas=(section.beta1, section.beta2), fused=True
    )


def build_schedule(config: Config, total_steps: int) -> Callable[[int], float]:
    """Learning rate of optimiser step 0, 1, …: linear warm-up, then constant or a cosine to its final fraction."""
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


def choose_device(name: str) -> torch.device:
    """The device a name means; `auto` takes a GPU where there is one.

    Raises:
        IiaeError: unknown or absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise IiaeError(
            f"unknown device '{name}'", "choose auto, cpu, cuda, cuda:N or mps"
        ) from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise IiaeError(f"device '{name}' is not there", "choose --device auto or --device cpu")
    return device
