"""`iiae encode`: read → encode → write a latent cache, taking up what was begun; and merge the
caches of shards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from iiae_cli.builders import choose_device
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.common.files import refuse_existing
from iiae_cli.common.paths import run_folder
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.block_log import BlockLog
from iiae_cli.data.pictures import expand_inputs
from iiae_cli.data.workspace import discard, workspace
from iiae_cli.inference.inputs import Inputs, open_inputs
from iiae_cli.inference.latents import LatentCache, LatentFormat, write_stream
from iiae_cli.inference.shards import (
    CacheFile,
    Shard,
    describe,
    plan_merge,
    shard_json,
    shard_of_list,
)
from iiae_cli.inference.streaming import Encoder, batch_size_for, encode_stream
from iiae_cli.inference.trained import Encoded, LatentKind, TrainedModel
from iiae_cli.model import Domain
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.weights import LoadedModel, load_model

_KINDS: dict[str, tuple[LatentKind, ...]] = {
    "shared": ("shared",),
    "exclusive": ("exclusive",),
    "both": ("shared", "exclusive"),
}
# What a finished cache must agree in with the one asked for, and what to call it.
_TOLD = {
    "fingerprint": "model",
    "domain": "domain",
    "options": "options",
    "inputs": "list of inputs",
    "inputs_content": "content of the inputs",
    "shard": "shard",
}


@dataclass(frozen=True)
class EncodeOptions:
    """What the command line says; see `iiae encode --help`."""

    output: Path
    domain: Domain | None = None
    run: Path | None = None
    latents: Literal["shared", "exclusive", "both"] = "both"
    logvar: bool = False
    split: str = "test"
    batch_size: int | None = None
    workers: int = 2
    dtype: Literal["float32", "float16"] | None = None
    shard: tuple[int, int] | None = None
    device: str = "auto"
    merge: bool = False
    nul: bool = False
    overwrite: bool = False
    resume: bool = False


@dataclass
class EncodeResult:
    """What was written.

    Attributes:
        path: the cache.
        rows: how many.
        domain: of every row.
        fingerprint: of the model.
        skipped: a line for every input left out.
    """

    path: Path
    rows: int
    domain: Domain
    fingerprint: str
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"schema": "iiae.encode/1", **vars(self), "path": str(self.path)}

    def show(self) -> None:
        """Print for people and pipes."""
        console.print_table(
            ["file", "rows", "domain"], [(self.path, self.rows, self.domain)], header=False
        )


def run(inputs: Sequence[str], options: EncodeOptions, stop: Stop = NEVER) -> EncodeResult:
    """Encode inputs, or merge caches.

    Args:
        inputs: paths.
        options: what the command line says.
        stop: asked before every block.

    Raises:
        IiaeError: no model, no input, an existing output, inputs of another shape, shards that do
            not fit.
        Interrupted: a signal came; what is encoded is saved.
    """
    paths = expand_inputs(inputs, nul=options.nul)
    if options.merge:
        return _merge([Path(path) for path in paths], options, stop)
    if options.domain is None:
        raise IiaeError("the inputs' domain was not named", "pass --domain x or --domain y")
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen})")
    if options.latents == "exclusive" and not loaded.model.exclusive_dim:
        raise IiaeError("this model was trained without exclusive latents", "pass --latents shared")
    shape = loaded.info.shape_x if options.domain == "x" else loaded.info.shape_y
    rows = open_inputs(paths, options.domain, shape, split=options.split, workers=options.workers)
    job = _plan(rows, loaded, options, device, shape)
    done = _finished(options, job.head)
    if done is not None:
        return done
    refuse_existing(options.output, options.overwrite)
    return job.carry_out(options, stop)


@dataclass(frozen=True)
class _Job:
    """Everything decided before the first row is read."""

    rows: Inputs
    encoder: Encoder
    bounds: tuple[int, int]
    head: dict[str, Any]
    settings: dict[str, Any]

    def carry_out(self, options: EncodeOptions, stop: Stop) -> EncodeResult:
        """Encode what is not encoded yet, then write the cache."""
        start, end = self.bounds
        with (
            workspace(
                options.output, self.settings, resume=options.resume, overwrite=options.overwrite
            ) as folder,
            BlockLog(folder / "latents.blocks") as log,
        ):
            done = min(end - start, len(log) * self.encoder.batch_size)
            if done:
                console.say(f"resuming {options.output} at input {done} of {end - start}")
            try:
                with console.progress("encoding", end - start, "inputs") as bar:
                    bar.start_at(done)
                    encode_stream(
                        self.encoder,
                        self.rows,
                        self.bounds,
                        log,
                        stop=stop,
                        advance=bar.update,
                    )
            except Interrupted as stopped:
                raise Interrupted(
                    stopped.exit_code,
                    f"{stopped.where}; continue with the same command and --resume",
                ) from stopped
            log.sync()
            return self._write(options.output, log, folder)

    def _write(self, output: Path, log: BlockLog, folder: Path) -> EncodeResult:
        """From the log to the cache, one block at a time."""
        positions, skipped = [], []
        for block in log:
            positions += block.arrays["positions"].tolist()
            skipped += block.lines
        for line in skipped:
            console.warn(f"skipped {line}")
        if not positions and "shard" not in self.head:
            raise IiaeError("none of the inputs could be read", "the lines above name each of them")
        labels = self.rows.labels
        write_stream(
            output,
            self.head,
            self._arrays(),
            (block.arrays for block in log if len(block.arrays["positions"])),
            ids=[self.rows.ids[one] for one in positions],
            labels=None if labels is None else [labels[one] for one in positions],
            skipped=skipped,
            folder=folder,
        )
        return EncodeResult(
            output, len(positions), self.encoder.domain, self.head["fingerprint"], skipped
        )

    def _arrays(self) -> dict[str, tuple[int, np.dtype[Any]]]:
        """Width and number format of every array, known before any row is read."""
        model, form = self.encoder.trained.network, self.encoder.format
        widths = {"shared": int(np.prod(model.shared_shape)), "exclusive": model.exclusive_dim}
        return {
            f"{kind}_{part}": (widths[kind], np.dtype(form.dtype))
            for kind in form.kinds
            for part in (("mean", "logvar") if form.logvar else ("mean",))
        }


def _plan(
    rows: Inputs,
    loaded: LoadedModel,
    options: EncodeOptions,
    device: torch.device,
    shape: tuple[int, ...],
) -> _Job:
    assert options.domain is not None
    kinds = tuple(
        kind for kind in _KINDS[options.latents] if kind == "shared" or loaded.model.exclusive_dim
    )
    form = LatentFormat(kinds, options.logvar, options.dtype or "float32")
    batch_size = options.batch_size or batch_size_for(loaded.size or shape)
    shard: Shard | None = None
    bounds = (0, rows.total)
    if options.shard is not None:
        shard = shard_of_list(*options.shard, rows.total, batch_size)
        bounds = (shard.start, shard.stop)
        console.say(
            f"shard {shard.name}: inputs {shard.start} to {shard.stop - 1} of {shard.total}"
        )
    cache = LatentCache(
        encoded=Encoded(),
        ids=[],
        labels=None,
        domain=options.domain,
        fingerprint=loaded.fingerprint,
        shared_shape=loaded.model.shared_shape,
        preset=loaded.details.get("preset", ""),
        metric=loaded.metric,
        source=rows.source,
    )
    head = {
        **cache.head(),
        "options": json.dumps({"latents": list(kinds), "logvar": form.logvar, "dtype": form.dtype}),
        "inputs": rows.listing(),
        "inputs_content": rows.content(*bounds),
    }
    if shard is not None:
        head["shard"] = shard_json(shard)
    settings = {told: head.get(key) for key, told in _TOLD.items()}
    settings |= {"batch size": batch_size, "version": head["versions"]}
    return _Job(
        rows,
        Encoder(TrainedModel.of(loaded), options.domain, batch_size, form),
        bounds,
        head,
        settings,
    )


def _difference(found: CacheFile, wanted: dict[str, Any]) -> str | None:
    """What a finished cache has another of than the one asked for; None: nothing."""
    for key, told in _TOLD.items():
        if str(found.head.get(key)) != str(wanted.get(key)):
            return told
    return None


def _finished(
    options: EncodeOptions, head: dict[str, Any], ids: Sequence[str] | None = None
) -> EncodeResult | None:
    """With --resume, the output that is there already; what it left out is named again. None: it is
    to be made.

    Raises:
        IiaeError: something else stands in its place and must not be overwritten.
    """
    if not (options.resume and options.output.exists()):
        return None
    try:
        found = describe(options.output)
    except IiaeError:
        if options.overwrite:
            return None
        raise
    other = _difference(found, head) or (
        None if ids is None or found.ids == ids else "list of inputs"
    )
    if other is not None:
        if options.overwrite:
            return None
        raise IiaeError(
            f"{found.path} exists already, with another {other}",
            "pass --overwrite to replace it, or choose another output",
        )
    console.say(f"{found.path} is complete already")
    discard(found.path)
    for line in found.skipped:
        console.warn(f"skipped {line}")
    return _result(found)


def _result(found: CacheFile) -> EncodeResult:
    domain: Domain = "x" if found.head["domain"] == "x" else "y"
    return EncodeResult(
        found.path, len(found.ids), domain, found.head["fingerprint"], found.skipped
    )


def _merge(paths: list[Path], options: EncodeOptions, stop: Stop) -> EncodeResult:
    if options.shard is not None:
        raise IiaeError("--shard does not apply to --merge", "leave --shard out")
    plan = plan_merge(paths, options.dtype)
    done = _finished(options, plan.head, plan.ids)
    if done is not None:
        return done
    refuse_existing(options.output, options.overwrite)

    def tick() -> None:
        stop.check(f"{options.output} was not written; run the same command again")

    with workspace(options.output, {"merge": True}, resume=True) as folder:
        plan.write(options.output, folder=folder, tick=tick)
    found = describe(options.output)
    for line in found.skipped:
        console.warn(f"skipped {line}")
    return _result(found)
