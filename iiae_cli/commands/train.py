"""`iiae train`: config → data → model → fit → run directory."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from iiae_cli import console
from iiae_cli.builders import choose_device
from iiae_cli.config import (
    Config,
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
from iiae_cli.data.dataset import DataFile
from iiae_cli.data.prepare import EMBEDDED, PrepareOptions, how_to_prepare, prepare_file
from iiae_cli.errors import IiaeError, Interrupted
from iiae_cli.inference.encoding import encode_rows
from iiae_cli.inference.latents import LatentCache, write_latents
from iiae_cli.places import data_file
from iiae_cli.runs import RunDir, load_model, run_origin
from iiae_cli.training.data import TrainingData
from iiae_cli.training.session import Session
from iiae_cli.training.signals import stop_on_signals

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
        time_limit: seconds after which to save and stop.
        resume: continue where the run stands, or start it.
        overwrite: replace an existing run.
    """

    preset: str
    data: Path | None = None
    run: Path | None = None
    config_files: list[Path] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    assignments: list[str] = field(default_factory=list)
    time_limit: float | None = None
    resume: bool = False
    overwrite: bool = False


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
        rows: list[tuple[str, object]] = [("run", self.run), ("steps", self.steps), ("kept step", self.kept_step)]
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
    layers += [environment_layer(), Layer("option", options.options), set_layer(options.assignments)]
    return resolve(layers)


def show_config(resolved: Resolved, *, as_json: bool) -> None:
    """Print every value and where it came from."""
    if as_json:
        values = {key: {"value": value, "source": source} for key, value, source in resolved.rows()}
        console.print_json({"schema": "iiae.config/1", "values": values})
        return
    help_texts = key_help()
    rows = [
        (key, value if isinstance(value, str) else json.dumps(value), source, help_texts.get(key, ""))
        for key, value, source in resolved.rows()
    ]
    console.print_table(["key", "value", "source", "meaning"], rows)


def run(options: TrainOptions) -> TrainResult:
    """Train, or continue training, one run.

    Raises:
        IiaeError: configuration, data or run directory do not allow it.
        Interrupted: a signal or the time limit came; everything is saved.
    """
    resolved = resolve_config(options)
    config = resolved.config
    for key, value, source in resolved.rows():
        if source != "default":
            console.detail(f"{key} = {json.dumps(value)} ({source})")
    preset = Path(options.preset).stem
    device = choose_device(config.training.device)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    if config.training.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    path = _data_path(options.data, config)
    directory = RunDir(options.run or Path("runs") / f"{preset}-seed{config.training.seed}")
    resuming = _claim(directory, config, options)
    file = DataFile(path)
    data = TrainingData(file, config)
    console.say(data.summary())
    origin = {**run_origin(sys.argv), "data": str(path.absolute()), "preset": preset}
    session = Session(config, data, directory, device, origin, preset)
    if resuming:
        if session.resume():
            console.say(f"resuming {directory.path} at step {session.steps_done}")
        else:
            console.say(f"{directory.path} holds no checkpoint yet: starting from step 0")
            directory.truncate_metrics(-1)
    else:
        _clear(directory)
        directory.create(config)
        if options.run is None:
            directory.link_latest()
    _announce(session, device, directory)
    started = time.monotonic()
    began = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "device": str(device), "threads": torch.get_num_threads()}
    directory.write_info({**origin, **began, "state": "running"})
    with stop_on_signals(options.time_limit) as stop:
        ended = session.finished or session.train(stop)
    seconds = time.monotonic() - started
    outcome = {
        **origin,
        **began,
        "state": "finished" if ended else "interrupted",
        "seconds": round(seconds, 3),
        "steps": session.steps_done,
        "kept_step": session.memory.kept_step,
        "warnings": session.memory.warnings,
    }
    directory.write_info(outcome)
    if not ended:
        assert stop.exit_code is not None
        command = shlex.join(["iiae", *sys.argv[1:]])
        again = command if options.resume else f"{command} --resume"
        raise Interrupted(stop.exit_code, f"saved at step {session.steps_done} in {directory.path}; continue: {again}")
    for warning in session.memory.warnings:
        console.warn(warning)
    fingerprint = _write_gallery(directory, file, device)
    return TrainResult(
        run=directory.path,
        steps=session.steps_done,
        kept_step=session.memory.kept_step,
        validation=session.memory.kept,
        warnings=session.memory.warnings,
        seconds=seconds,
        fingerprint=fingerprint,
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
        if directory.path.exists() and any(directory.path.iterdir()) and not options.overwrite:
            raise IiaeError(f"{directory.path} exists and is no run", "choose another --run, or pass --overwrite")
        return False
    if options.resume:
        before, now = flatten(directory.read_config().to_dict()), flatten(config.to_dict())
        changed = [key for key in now if key not in _MAY_CHANGE and before.get(key) != now[key]]
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


def _clear(directory: RunDir) -> None:
    """Remove what an overwritten run left, so that nothing of it is taken for the new one's."""
    for path in (directory.model_file, directory.metrics_file, directory.gallery_file, directory.info_file):
        path.unlink(missing_ok=True)
    for folder in (directory.checkpoint_folder, directory.samples_folder, directory.tensorboard_folder):
        for path in folder.glob("*"):
            path.unlink()


def _announce(session: Session, device: torch.device, directory: RunDir) -> None:
    parameters = sum(p.numel() for p in session.model.parameters())
    latent = " x ".join(map(str, session.model.shared_shape))
    console.say(
        f"{parameters:,} parameters, shared latent {latent}, exclusive {session.model.exclusive_dim}; "
        f"{session.total_steps} steps of {session.order.batch_size} pairs on {device}"
        f"{f' ({torch.get_num_threads()} threads)' if device.type == 'cpu' else ''} into {directory.path}"
    )
    if session.baseline is not None:
        forward, back = session.baseline
        name = "mAP@all" if session.data.by_class else "Recall@1"
        console.say(f"training-free baseline on validation: {name} {forward:.3f} / {back:.3f}")


def _write_gallery(directory: RunDir, file: DataFile, device: torch.device) -> str:
    """Latents of the test split's domain y (the training split's where there is no test) by the kept weights."""
    loaded = load_model(directory, device)
    split_name = "test" if file.info.counts["test"] else "train"
    split = file.split(split_name)
    cache = LatentCache(
        encoded=encode_rows(loaded.model, "y", split.y, size=loaded.size, device=device),
        ids=split.y_ids,
        labels=split.y_labels,
        domain="y",
        fingerprint=loaded.fingerprint,
        shared_shape=loaded.model.shared_shape,
        preset=loaded.details.get("preset", ""),
        metric=loaded.metric,
        source={"data": str(file.path.absolute()), "split": split_name},
    )
    write_latents(directory.gallery_file, cache)
    console.say(f"gallery of {len(cache)} {split_name} pictures of y: {directory.gallery_file}")
    return loaded.fingerprint
