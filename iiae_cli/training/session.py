"""A training run from options to a finished run directory: start or resume, fit, finish."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from iiae_cli.builders import choose_device, picture_size
from iiae_cli.common import console
from iiae_cli.common.environment import cores, data_file
from iiae_cli.common.errors import NEVER, IiaeError, Interrupted, Stop
from iiae_cli.common.files import missing, write_errors
from iiae_cli.config import Config
from iiae_cli.config.presets import flatten
from iiae_cli.data.blocks import differences
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import EMBEDDED, how_to_prepare, prepare_file
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.runs import RunDir, load_model, run_origin
from iiae_cli.training.data import TrainingData
from iiae_cli.training.distributed import find_world
from iiae_cli.training.loggers import Loggers
from iiae_cli.training.step import choose_speed, set_gpu_arithmetic
from iiae_cli.training.trainer import Trainer

FINISHED = "finished"  # the state in run.json when everything is written

# Values that change how fast a run goes but not where it ends; a resumed run may change them.
_MAY_CHANGE = {"description"} | {
    f"training.{key}" for key in ("device", "threads", "log", "log_every")
}


@dataclass(frozen=True)
class TrainOptions:
    """The options of `iiae train`."""

    preset: str | None  # name, without folder and suffix; None to use the run's configuration
    config: Config  # the merged configuration
    data: Path | None = None  # data file, or its folder; None: where the configuration's set lies
    run: Path | None = None  # run directory; None: runs/PRESET-seedN
    resume: bool = False  # continue the run, or start it
    overwrite: bool = False  # replace an existing run
    deadline: float | None = None  # `time.monotonic()` at which to stop, after at least one step


def train(options: TrainOptions, stop: Stop) -> dict[str, Any] | None:
    """Trains one run, or continues it; returns its outcome on the first rank, None on the others.

    Raises `Interrupted`, with everything saved, after a signal or the time limit.
    """
    world, training = find_world(os.environ), options.config.training
    if not world.first:
        console.set_verbosity(-1)
    device = world.device(choose_device(training.device))
    _set_threads(training.threads)
    if training.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    run = RunDir(options.run or Path("runs") / f"{options.preset}-seed{training.seed}")
    with world.joined(device, stop), run.locked() if world.first else nullcontext():
        preset, path = options.preset, options.data
        if preset is None:
            preset, path = _recorded(run, options.data)
        path = world.share(_data_path(path, options.config) if world.first else Path())
        before = world.share(_claim(run, options) if world.first else None)
        checkpoint = run.checkpoints.latest() if world.first and before is not None else None
        checkpoint = world.share(checkpoint)
        data = TrainingData(DataFile(path), options.config)
        console.say(data.summary())
        # Ranks may only stop together.
        fingerprint = data.fingerprint(stop if world.size == 1 else NEVER)
        _refuse_other_data(path, fingerprint, world.share(fingerprint), "rank 0 reads")
        if checkpoint is not None:
            _refuse_other_data(path, fingerprint, checkpoint.data, f"{run.path} was begun with")
        size = picture_size(options.config, data.info)
        config = world.share(choose_speed(options.config, size, device, before))
        if device.type == "cuda":
            set_gpu_arithmetic(config.training.precision)
        details = {"preset": preset, "data": str(path.absolute()), "data_fingerprint": fingerprint}
        trainer = Trainer(config, data, run, device, details, world, stop)
        trainer.deadline = options.deadline
        if checkpoint is not None:
            trainer.resume(checkpoint)
        elif world.first:
            run.create(config)
        if options.run is None and world.first:
            run.link_latest()
        return _finish(trainer, options.resume)


def _set_threads(count: int) -> None:
    if count:
        torch.set_num_threads(count)
    elif torch.get_num_threads() > 1 and os.getloadavg()[0] > cores() / 2:
        console.say("other work keeps the cores busy: IIAE_THREADS=1 may be twice as fast")


def _recorded(run: RunDir, data: Path | None) -> tuple[str, Path | None]:
    """Returns the preset's name and the data of a run that is resumed without a preset."""
    info = run.read_info()
    preset, recorded = str(info.get("preset", "")), Path(str(info.get("data", "")))
    if data is None and recorded.is_file():
        data = recorded
    of = f"preset {preset}, data {data or 'by its name'}"
    console.say(f"{run.path} continues with its own {run.config_file.name} ({of})")
    return preset, data


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


def _data_path(option: Path | None, config: Config) -> Path:
    """Returns the data file; prepares an embedded set that is missing."""
    name, path = config.data.set, data_file(option, config.data.set)
    if path.exists():
        return path
    if name not in EMBEDDED or option is not None:
        raise missing(path, f"make it: {how_to_prepare(name, path)}")
    console.say(f"preparing the embedded data set {name} in {path}")
    prepare_file(name, path, PrepareOptions(), overwrite=True)  # another run may be preparing it
    return path


def _claim(run: RunDir, options: TrainOptions) -> Config | None:
    """Returns the configuration of the run to resume; None for a new run."""
    if not run.exists():
        if not run.is_free() and not options.overwrite:
            raise IiaeError(f"{run.path} exists but is not a run", "choose another --run")
        return None
    if not options.resume:
        if options.overwrite:
            return None
        raise IiaeError(
            f"run {run.path} already exists",
            "continue it with --resume, replace it with --overwrite, or choose another --run",
        )
    if run.read_info().get("state") == FINISHED and not run.checkpoints.files():
        raise IiaeError(
            f"{run.path} was trained to its end, but its checkpoints are gone",
            "evaluate it as it is, or choose another --run",
        )
    config = run.read_config()
    before = flatten(config.to_dict())
    for key, value in flatten(options.config.to_dict()).items():
        if key not in _MAY_CHANGE and value != "auto" and before.get(key) != value:
            raise IiaeError(
                f"{run.path} was started with {key}={before.get(key)}, not {value}",
                "resume with the same options, or choose another --run",
            )
    return config


def _finish(trainer: Trainer, resuming: bool) -> dict[str, Any] | None:
    """Trains to the end and writes the remaining files; leaves a finished run as it is."""
    run, world, stop = trainer.run, trainer.world, trainer.stop
    before = run.read_info() if world.first else {}
    whole = before.get("state") == FINISHED and run.gallery_file.exists()
    if world.share(trainer.finished and whole):
        console.say(f"{run.path} is already finished, at step {trainer.steps_done}: nothing to do")
        return _result(trainer, before["seconds"]) if world.first else None
    if trainer.steps_done:
        console.say(f"resuming {run.path} at step {trainer.steps_done}")
    console.say(_summary(trainer))
    started = time.monotonic()
    record = {
        **run_origin(sys.argv),
        **trainer.details,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "ranks": world.size,
    }
    with ExitStack() as stack:
        loggers = None
        if world.first:
            stack.enter_context(write_errors(run.path))
            known: dict[str, str] = before.get("log", {})
            loggers = Loggers(run, trainer.config, known, trainer.steps_done)
            record["log"] = known | stack.enter_context(loggers).ids
            run.write_info({**record, "state": "running"})
        ended = trainer.finished or trainer.train(loggers)
        if loggers is not None:
            loggers.ended = ended
    record["seconds"] = round(time.monotonic() - started, 3)
    memory = trainer.keeper.memory
    if world.first:
        ended = ended and _write_gallery(trainer)
        record |= {"steps": trainer.steps_done, "kept_step": memory.kept_step}
        record |= {"warnings": memory.warnings, "state": FINISHED if ended else "interrupted"}
        run.write_info(record)
    if not world.share(ended):
        command = shlex.join(["iiae", *sys.argv[1:]]) + ("" if resuming else " --resume")
        saved = f"saved at step {trainer.steps_done} in {run.path}; continue: {command}"
        raise Interrupted(world.agree(stop.exit_code or 0), saved if world.first else "")
    if not world.first:
        return None
    for warning in memory.warnings:
        if warning not in trainer.keeper.said.values():
            console.warn(warning)
    return _result(trainer, record["seconds"])


def _summary(trainer: Trainer) -> str:
    model, training, world = trainer.model, trainer.config.training, trainer.world
    parameters = sum(values.numel() for values in model.parameters())
    return (
        f"{parameters:,} parameters, shared latent {' x '.join(map(str, model.shared_shape))}, "
        f"exclusive {model.exclusive_dim}; {trainer.total_steps} steps of "
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


def _result(trainer: Trainer, seconds: float) -> dict[str, Any]:
    memory = trainer.keeper.memory
    return {
        "run": str(trainer.run.path),
        "steps": trainer.steps_done,  # in all
        "kept_step": memory.kept_step,
        "validation": memory.kept,
        "warnings": memory.warnings,
        "seconds": seconds,  # training time of this call
        "fingerprint": load_model(trainer.run, trainer.device).fingerprint,
    }
