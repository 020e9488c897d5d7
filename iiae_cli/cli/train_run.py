"""`iiae train`: config → data → model → fit → run directory."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from iiae_cli.builders import choose_device
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.common.paths import data_file
from iiae_cli.common.signals import Stop
from iiae_cli.config.presets import (
    Layer,
    Resolved,
    environment_layer,
    flatten,
    key_help,
    preset_layers,
    read_yaml,
    resolve,
    set_layer,
)
from iiae_cli.config.schema import Config
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import prepare_file
from iiae_cli.data.sources.registry import EMBEDDED, how_to_prepare
from iiae_cli.data.staging import Staging
from iiae_cli.inference.latents import LatentCache, write_latents
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.runs.directory import RunDir, load_model
from iiae_cli.runs.provenance import run_origin
from iiae_cli.training.data import TrainingData
from iiae_cli.training.distributed import World, find_world
from iiae_cli.training.precision import choose_speed, set_gpu_arithmetic
from iiae_cli.training.session import Session

FINISHED = "finished"  # the state in run.json when everything is written

# Values that change how fast a run goes but not where it ends; a resumed run may change them.
_MAY_CHANGE = ("training.device", "training.threads", "training.log_every", "description")


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says.

    Attributes:
        preset: name or YAML file.
        data: data file, or the folder it lies in.
        run: run directory; None: runs/PRESET-seedN.
        config_files: YAML files on top of the preset.
        options: dotted keys that options set.
        assignments: `--set` texts.
        resume: continue where the run stands, or start it.
        overwrite: replace an existing run.
        staging: of the data file.
    """

    preset: str
    data: Path | None = None
    run: Path | None = None
    config_files: list[Path] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    assignments: list[str] = field(default_factory=list)
    resume: bool = False
    overwrite: bool = False
    staging: Staging = field(default_factory=lambda: Staging(False))


@dataclass
class TrainResult:
    """How a run ended.

    Attributes:
        run: its directory.
        steps: done in all.
        kept_step: of the kept weights.
        validation: their figures, where there was a validation.
        warnings: what a person should know of the model.
        seconds: of this call's training.
        fingerprint: of the kept weights.
    """

    run: Path
    steps: int
    kept_step: int | None
    validation: dict[str, Any] | None
    warnings: list[str]
    seconds: float
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"schema": "iiae.train/1", **vars(self), "run": str(self.run)}

    def show(self) -> None:
        """Print for people and pipes."""
        rows: list[tuple[str, object]] = [
            ("run", self.run),
            ("steps", self.steps),
            ("kept step", self.kept_step),
        ]
        if self.validation:
            by_class = "shared_map" in self.validation
            name, key = ("mAP@all", "shared_map") if by_class else ("Recall@1", "shared_recall")
            forward, back = self.validation[key]
            rows += [(f"validation {name} x→y", forward), (f"validation {name} y→x", back)]
        rows += [("seconds", round(self.seconds, 1)), ("fingerprint", self.fingerprint)]
        console.print_table(["", str(self.run)], rows, header=False)


def resolve_config(options: TrainOptions) -> Resolved:
    """Merge preset < --config < environment < options < --set.

    Raises:
        IiaeError: unknown preset or keys, bad values.
    """
    layers = preset_layers(options.preset)
    layers += [Layer(str(path), flatten(read_yaml(path))) for path in options.config_files]
    layers += [
        environment_layer(),
        Layer("option", options.options),
        set_layer(options.assignments),
    ]
    return resolve(layers)


def show_config(resolved: Resolved, *, as_json: bool) -> None:
    """Print every value and where it came from."""
    if as_json:
        values = {key: {"value": value, "source": source} for key, value, source in resolved.rows()}
        console.print_json({"schema": "iiae.config/1", "values": values})
        return
    help_texts = key_help()
    rows = [
        (
            key,
            value if isinstance(value, str) else json.dumps(value),
            source,
            help_texts.get(key, ""),
        )
        for key, value, source in resolved.rows()
    ]
    console.print_table(["key", "value", "source", "meaning"], rows)


def run(options: TrainOptions, stop: Stop, deadline: float | None = None) -> TrainResult | None:
    """Train, or continue training, one run.

    Args:
        options: what the command line says.
        stop: asked after every step.
        deadline: `time.monotonic()` at which to stop. It counts from the first step on, so that every call gets on.

    Returns:
        How the run ended; None on all ranks but the first.

    Raises:
        IiaeError: configuration, data or run directory do not allow it.
        Interrupted: a signal or the time limit came; everything is saved.
    """
    world = find_world(os.environ)
    if not world.first:
        console.set_verbosity(-1)
    resolved = resolve_config(options)
    config = resolved.config
    for key, value, source in resolved.rows():
        if source != "default":
            console.detail(f"{key} = {json.dumps(value)} ({source})")
    device = world.device(choose_device(config.training.device))
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    if config.training.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    stop.check()
    directory = RunDir(
        options.run or Path("runs") / f"{Path(options.preset).stem}-seed{config.training.seed}"
    )
    try:
        with world.joined(device):
            session = _start(options, config, directory, device, world)
            if world.size == 1:
                stop.check()
            stop.deadline = deadline
            return _train(session, stop, resuming=options.resume)
    finally:
        directory.unlock()


def _start(
    options: TrainOptions, config: Config, directory: RunDir, device: torch.device, world: World
) -> Session:
    """The session of a new run, or of one taken up where it stands; the first rank makes or claims the directory.

    Raises:
        IiaeError: as `run`.
    """
    if world.first:
        path, resuming = _data_path(options.data, config), False
        directory.refuse_links()
        directory.lock()
        resuming = _claim(directory, config, options)
    resuming = world.share(resuming if world.first else None)
    if not world.first:
        path = _data_path(options.data, config)
    data = TrainingData(DataFile(path, copy=options.staging.copy_of(path)), config)
    console.say(data.summary())
    before = directory.read_config() if resuming and world.first else None
    chosen, reasons = world.share(
        choose_speed(config, data.info, device, before) if world.first else None
    )
    config = config.model_copy(update={"training": config.training.model_copy(update=chosen)})
    console.say(reasons)
    if device.type == "cuda":
        set_gpu_arithmetic(config.training.precision)
    preset = Path(options.preset).stem
    origin = {**run_origin(sys.argv), "data": str(path.absolute()), "preset": preset}
    if world.size > 1:
        origin["ranks"] = world.size
    session = Session(config, data, directory, device, origin, preset, world)
    if resuming and session.resume():
        if not session.finished:
            console.say(f"resuming {directory.path} at step {session.steps_done}")
    elif world.first:
        if resuming:
            if directory.read_info().get("state") == FINISHED:
                raise IiaeError(
                    f"{directory.path} was trained to its end, but its checkpoints are gone",
                    "evaluate it as it is, or replace it with --overwrite",
                )
            console.say(f"{directory.path} holds no checkpoint yet: starting from step 0")
        directory.clear()
        directory.create(config)
    if options.run is None and world.first:
        directory.link_latest()
    return session


def _train(session: Session, stop: Stop, *, resuming: bool) -> TrainResult | None:
    """Train to the end and write what belongs to a trained run; nothing is left to do where that was done before."""
    directory, world = session.run, session.world
    before = directory.read_info() if world.first else {}
    whole = before.get("state") == FINISHED and directory.gallery_file.exists()
    if world.share(session.finished and whole):
        console.say(
            f"{directory.path} is finished already, at step {session.steps_done}: nothing to do"
        )
        return _result(session, before["seconds"]) if world.first else None
    _announce(session)
    started = time.monotonic()
    record = {
        **session.origin,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": str(session.device),
        "threads": torch.get_num_threads(),
        "state": "running",
    }
    if world.first:
        directory.write_info(record)
    ended = session.finished or session.train(stop)
    seconds = time.monotonic() - started
    if ended and world.first:
        if stop.exit_code is None:
            _write_gallery(session)
        ended = stop.exit_code is None
    if not world.share(ended if world.first else None):
        stop.request(world.agree(stop.exit_code or 0))
        _interrupted(session, record, time.monotonic() - started, stop, resuming=resuming)
    if not world.first:
        return None
    record |= {"state": FINISHED, **_outcome(session, seconds)}
    directory.write_info(record)
    for warning in session.memory.warnings:
        console.warn(warning)
    return _result(session, record["seconds"])


def _outcome(session: Session, seconds: float) -> dict[str, Any]:
    memory = session.memory
    outcome = {
        "seconds": round(seconds, 3),
        "steps": session.steps_done,
        "kept_step": memory.kept_step,
    }
    return {**outcome, "warnings": memory.warnings}


def _interrupted(
    session: Session, record: dict[str, Any], seconds: float, stop: Stop, *, resuming: bool
) -> NoReturn:
    """Note where the run stands, and end.

    Raises:
        Interrupted: always.
    """
    assert stop.exit_code is not None
    if not session.world.first:
        raise Interrupted(stop.exit_code, "")
    directory = session.run
    directory.write_info({**record, "state": "interrupted", **_outcome(session, seconds)})
    command = shlex.join(["iiae", *sys.argv[1:]])
    again = command if resuming else f"{command} --resume"
    raise Interrupted(
        stop.exit_code, f"saved at step {session.saved_step} in {directory.path}; continue: {again}"
    )


def _result(session: Session, seconds: float) -> TrainResult:
    return TrainResult(
        run=session.run.path,
        steps=session.steps_done,
        kept_step=session.memory.kept_step,
        validation=session.memory.kept,
        warnings=session.memory.warnings,
        seconds=seconds,
        fingerprint=load_model(session.run, session.device).fingerprint,
    )


def _data_path(option: Path | None, config: Config) -> Path:
    """The data file; an embedded set that is missing is prepared on the fly."""
    path = data_file(option, config.data.set)
    if path.exists():
        return path
    name = config.data.set
    if name in EMBEDDED and option is None:
        console.say(f"preparing the embedded data set {name} in {path}")
        prepare_file(name, path, PrepareOptions(), command=shlex.join(sys.argv))
        return path
    raise IiaeError(f"data file {path} does not exist", f"make it: {how_to_prepare(name, path)}")


def _claim(directory: RunDir, config: Config, options: TrainOptions) -> bool:
    """Whether the run directory holds a run to resume.

    Raises:
        IiaeError: it holds one and neither --resume nor --overwrite was given, or one of another configuration.
    """
    if not directory.exists():
        if not directory.is_free() and not options.overwrite:
            raise IiaeError(
                f"{directory.path} exists and is no run",
                "choose another --run, or pass --overwrite",
            )
        return False
    if options.resume:
        before, now = flatten(directory.read_config().to_dict()), flatten(config.to_dict())
        changed = [
            key
            for key in now
            if key not in _MAY_CHANGE and now[key] != "auto" and before.get(key) != now[key]
        ]
        if changed:
            key = changed[0]
            raise IiaeError(
                f"{directory.path} was started with {key}={before.get(key)}, not {now[key]}",
                "resume with the same options, or choose another --run",
            )
        return True
    if options.overwrite:
        return False
    raise IiaeError(
        f"run {directory.path} exists already",
        "continue it with --resume, replace it with --overwrite, or choose another --run",
    )


def _announce(session: Session) -> None:
    device, directory = session.device, session.run
    ranks = f"{session.world.size} ranks, this one on " if session.world.size > 1 else ""
    parameters = sum(p.numel() for p in session.model.parameters())
    latent = " x ".join(map(str, session.model.shared_shape))
    console.say(
        f"{parameters:,} parameters, shared latent {latent}, exclusive {session.model.exclusive_dim}; "
        f"{session.total_steps} steps of {session.order.batch_size} pairs on {ranks}{device}"
        f"{f' ({torch.get_num_threads()} threads)' if device.type == 'cpu' else ''} into {directory.path}"
    )
    if session.baseline is not None:
        forward, back = session.baseline
        name = "mAP@all" if session.data.by_class else "Recall@1"
        console.say(f"training-free baseline on validation: {name} {forward:.3f} / {back:.3f}")


def _write_gallery(session: Session) -> None:
    """Latents of the test split's domain y (the training split's where there is no test) by the kept weights."""
    directory, device, file = session.run, session.device, session.data.file
    loaded = load_model(directory, device)
    split_name = "test" if file.info.counts["test"] else "train"
    split = file.split(split_name)
    cache = LatentCache(
        encoded=TrainedModel.of(loaded).encode(split.y.rows, "y"),
        ids=split.y.ids,
        labels=split.y.labels,
        domain="y",
        fingerprint=loaded.fingerprint,
        shared_shape=loaded.model.shared_shape,
        preset=loaded.details.get("preset", ""),
        metric=loaded.metric,
        source={"data": str(file.path.absolute()), "split": split_name},
    )
    write_latents(directory.gallery_file, cache)
    console.say(f"gallery of {len(cache)} {split_name} pictures of y: {directory.gallery_file}")
