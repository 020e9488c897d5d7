"""A training run from configuration to finished run directory: start or resume, fit, finish."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from iiae_cli.builders import choose_device, picture_size
from iiae_cli.common import console
from iiae_cli.common.environment import data_file
from iiae_cli.common.errors import IiaeError, Interrupted, Stop
from iiae_cli.common.files import missing, write_errors
from iiae_cli.config import Config
from iiae_cli.config.presets import flatten
from iiae_cli.data.blocks import differences
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.sources.preparation import EMBEDDED, how_to_prepare, prepare_embedded
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.runs import Checkpoint, RunDir, load_model, run_origin
from iiae_cli.training.data import TrainingData
from iiae_cli.training.distributed import find_world
from iiae_cli.training.loggers import Loggers
from iiae_cli.training.step import choose_speed
from iiae_cli.training.trainer import Trainer

FINISHED = "finished"  # the state in run.json when everything is written

# Values of `training` that change how fast a run goes but not where it ends; a resumed run may
# change them.
_MAY_CHANGE = ("device", "threads", "log", "log_every")


def train(
    config: Config,
    stop: Stop,
    *,
    preset: str | None,
    data: Path | None = None,
    run: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Trains one run, or continues it; returns its outcome on the first rank, None on the others.

    `preset` is the configuration's name, None for a run's own. `data` is a data file or its folder,
    by default that of the configuration's set; `run` is by default runs/PRESET-seedN. Raises
    `Interrupted`, with everything saved, after a signal or the time limit.
    """
    world = find_world(os.environ)
    folder = RunDir(run or Path("runs") / f"{preset}-seed{config.training.seed}")
    if not world.first:
        console.set_verbosity(-1)
    device = world.device(choose_device(config.training.device))
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    if config.training.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    with world.joined(device, stop), folder.locked() if world.first else nullcontext():
        start = world.share(lambda: _start(folder, config, preset, data, device, resume, overwrite))
        config, checkpoint = start.config, start.checkpoint
        rows = TrainingData(DataFile(start.data), config)
        console.say(rows.summary())
        fingerprint = rows.fingerprint()
        for known, whose in (
            (world.share(lambda: fingerprint), "rank 0 reads"),
            (checkpoint.data if checkpoint else fingerprint, f"{folder.path} was begun with"),
        ):
            _refuse_other_data(start.data, fingerprint, known, whose)
        details: dict[str, Any] = {"preset": start.preset, "data": str(start.data.absolute())}
        details["data_fingerprint"] = fingerprint
        trainer = Trainer(config, rows, folder, device, details, world, stop)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        elif world.first:
            folder.create(config)
        if run is None and world.first:
            folder.link_latest()
        return _finish(trainer, start.info, resume)


@dataclass(frozen=True)
class _Start:
    """What the first rank reads and decides before training, for all ranks."""

    config: Config
    preset: str | None
    data: Path
    info: dict[str, Any]  # run.json of a run to resume, else empty
    checkpoint: Checkpoint | None


def _start(
    run: RunDir,
    config: Config,
    preset: str | None,
    data: Path | None,
    device: torch.device,
    resume: bool,
    overwrite: bool,
) -> _Start:
    info = run.read_info()
    if preset is None:
        preset, data = _recorded(run, info, data)
    path = _data_path(data, config.data.set)
    begun = _claim(run, config, info, resume, overwrite)
    config = begun or config
    config = choose_speed(config, picture_size(config, DataFile(path).info), device)
    checkpoint = run.latest_checkpoint() if begun else None
    return _Start(config, preset, path, info if begun else {}, checkpoint)


def _recorded(run: RunDir, info: dict[str, Any], data: Path | None) -> tuple[str, Path | None]:
    """Returns the preset's name and the data of a run that is resumed without a preset."""
    preset, recorded = str(info.get("preset", "")), Path(str(info.get("data", "")))
    if data is None and recorded.is_file():
        data = recorded
    of = f"preset {preset}, data {data or 'by its name'}"
    console.say(f"{run.path} continues with its own {run.config_file.name} ({of})")
    return preset, data


def _data_path(option: Path | None, name: str) -> Path:
    """Returns the data file; prepares an embedded set that is missing."""
    path = data_file(option, name)
    if path.exists():
        return path
    if name not in EMBEDDED or option is not None:
        raise missing(path, f"make it: {how_to_prepare(name, path)}")
    console.say(f"preparing the embedded data set {name} in {path}")
    prepare_embedded(name, path)
    return path


def _refuse_other_data(
    path: Path, found: dict[str, Any], known: dict[str, Any], whose: str
) -> None:
    """Raises if data differs from the `known` by more than its name; `whose` says what had that."""
    differing = [key for key in differences(known, found) if key != "name"]
    if differing:
        raise IiaeError(
            f"{path} holds other data than {whose}, in {', '.join(differing)}",
            "name the original data with --data, or train again: choose another --run, or pass "
            "--overwrite in place of --resume",
        )


def _claim(
    run: RunDir, config: Config, info: dict[str, Any], resume: bool, overwrite: bool
) -> Config | None:
    """Returns the configuration to resume a run with: its own, but for speed; None for a new run.

    `auto` stands for what the run began with.
    """
    if not run.exists():
        if not run.is_free() and not overwrite:
            raise IiaeError(f"{run.path} exists but is not a run", "choose another --run")
        return None
    if not resume:
        if overwrite:
            return None
        raise IiaeError(
            f"run {run.path} already exists",
            "continue it with --resume, replace it with --overwrite, or choose another --run",
        )
    if info.get("state") == FINISHED and not run.checkpoint_files():
        raise IiaeError(
            f"{run.path} was trained to its end, but its checkpoints are gone",
            "evaluate it as it is, or choose another --run",
        )
    begun = run.read_config()
    changed = {key: getattr(config.training, key) for key in _MAY_CHANGE}
    training = begun.training.model_copy(update=changed)
    begun = begun.model_copy(update={"training": training, "description": config.description})
    before = flatten(begun.to_dict())
    for key, value in flatten(config.to_dict()).items():
        if value not in ("auto", before[key]):
            raise IiaeError(
                f"{run.path} was started with {key}={before[key]}, not {value}",
                "resume with the same options, or choose another --run",
            )
    return begun


def _finish(trainer: Trainer, info: dict[str, Any], resuming: bool) -> dict[str, Any] | None:
    """Trains to the end and writes the remaining files; leaves a finished run as it is."""
    run, world = trainer.run, trainer.world
    whole = info.get("state") == FINISHED and world.share(run.gallery_file.exists)
    if trainer.finished and whole:
        console.say(f"{run.path} is already finished, at step {trainer.steps_done}: nothing to do")
        return _outcome(trainer, info["seconds"]) if world.first else None
    if trainer.steps_done:
        console.say(f"resuming {run.path} at step {trainer.steps_done}")
    console.say(_summary(trainer))
    known, started = info.get("log", {}), time.monotonic()
    record = {
        **run_origin(sys.argv),
        **trainer.details,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "ranks": world.size,
    }
    loggers = Loggers(trainer.config, run if world.first else None, known, trainer.steps_done)
    with write_errors(run.path), loggers:
        record["log"] = known | loggers.ids
        if world.first:
            run.write_info({**record, "state": "running"})
        ended = loggers.ended = trainer.finished or trainer.train(loggers)
    seconds, progress = round(time.monotonic() - started, 3), trainer.progress
    if world.first:
        ended = ended and _write_gallery(trainer)
        record |= {"seconds": seconds, "steps": trainer.steps_done, "kept_step": progress.kept_step}
        record |= {"warnings": progress.warnings, "state": FINISHED if ended else "interrupted"}
        run.write_info(record)
    if not world.share(lambda: ended):
        command = shlex.join(["iiae", *sys.argv[1:]]) + ("" if resuming else " --resume")
        saved = f"saved at step {trainer.steps_done} in {run.path}; continue: {command}"
        code = world.agree(trainer.stop.exit_code or 0)
        raise Interrupted(code, saved if world.first else "")
    if not world.first:
        return None
    for warning in progress.warnings:
        console.warn(warning)
    return _outcome(trainer, seconds)


def _summary(trainer: Trainer) -> str:
    model, training, world = trainer.model, trainer.config.training, trainer.world
    parameters = sum(values.numel() for values in model.parameters())
    return (
        f"{parameters:,} parameters, shared latent {' x '.join(map(str, model.shared_shape))}, "
        f"exclusive {model.exclusive_dim}; {trainer.steps} steps of "
        f"{trainer.order.batch_size} pairs in {training.precision}, "
        f"{'compiled' if training.compile else 'not compiled'}, on {trainer.device}"
        f"{f' of {world.size} ranks' if world.size > 1 else ''} into {trainer.run.path}"
    )


def _write_gallery(trainer: Trainer) -> bool:
    """Encodes domain y of the test split, else the training split; False if interrupted."""
    file, run = trainer.data.file, trainer.run
    loaded = load_model(run, trainer.device)
    name = "test" if file.info.counts["test"] else "train"
    side = file.split(name).y
    kept = TrainedModel(loaded.model, loaded.size, trainer.device, trainer.stop)
    try:
        encoded = kept.encode(side.rows, "y")
    except Interrupted:
        return False
    source = {"data": str(file.path.absolute()), "split": name}
    head = LatentCache.head_of(loaded, "y", source)
    cache = replace(head, encoded=encoded, ids=side.ids, labels=side.labels)
    cache.save(run.gallery_file)
    console.say(f"gallery of {len(side.ids)} {name} pictures of y: {run.gallery_file}")
    return True


def _outcome(trainer: Trainer, seconds: float) -> dict[str, Any]:
    progress = trainer.progress
    return {
        "run": str(trainer.run.path),
        "steps": trainer.steps_done,  # in all
        "kept_step": progress.kept_step,
        "validation": progress.kept,
        "warnings": progress.warnings,
        "seconds": seconds,  # training time of this call
        "fingerprint": load_model(trainer.run, trainer.device).fingerprint,
    }
