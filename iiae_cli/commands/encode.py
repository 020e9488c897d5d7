"""`iiae encode`: read → encode → write a latent cache; and merge the caches of shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iiae_cli import console
from iiae_cli.builders import choose_device
from iiae_cli.data.pictures import expand_inputs
from iiae_cli.errors import IiaeError
from iiae_cli.files import refuse_existing
from iiae_cli.inference.encoding import Encoded, encode_rows
from iiae_cli.inference.inputs import open_inputs
from iiae_cli.inference.latents import LatentCache, merge_caches, read_latents, write_latents
from iiae_cli.model.iiae import Domain
from iiae_cli.places import run_folder
from iiae_cli.runs import RunDir, load_model


@dataclass(frozen=True)
class EncodeOptions:
    """What the command line says; see `iiae encode --help`."""

    output: Path
    domain: Domain | None = None
    run: Path | None = None
    latents: Literal["shared", "exclusive", "both"] = "both"
    logvar: bool = False
    split: str = "test"
    batch_size: int = 256
    workers: int = 2
    dtype: Literal["float32", "float16"] = "float32"
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
        console.print_table(["file", "rows", "domain"], [(self.path, self.rows, self.domain)], header=False)


def run(inputs: Sequence[str], options: EncodeOptions) -> EncodeResult:
    """Encode inputs, or merge caches.

    Raises:
        IiaeError: no model, no input, an existing output, inputs of another shape.
    """
    paths = expand_inputs(inputs, nul=options.nul)
    if options.merge:
        refuse_existing(options.output, options.overwrite)
        merged = merge_caches([read_latents(Path(path)) for path in paths], paths)
        write_latents(options.output, merged, logvar=True, dtype=options.dtype)
        return EncodeResult(options.output, len(merged), merged.domain, merged.fingerprint)
    if options.domain is None:
        raise IiaeError("the inputs' domain was not named", "pass --domain x or --domain y")
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen})")
    if options.resume and options.output.exists():
        done = read_latents(options.output)
        if done.fingerprint == loaded.fingerprint and done.domain == options.domain:
            console.say(f"{options.output} is complete already")
            return EncodeResult(options.output, len(done), done.domain, done.fingerprint)
    refuse_existing(options.output, options.overwrite)
    wants_exclusive = options.latents in ("exclusive", "both")
    if options.latents == "exclusive" and not loaded.model.exclusive_dim:
        raise IiaeError("this model was trained without exclusive latents", "pass --latents shared")
    shape = loaded.info.shape_x if options.domain == "x" else loaded.info.shape_y
    rows = open_inputs(paths, options.domain, shape, split=options.split, workers=options.workers)
    if options.shard is not None:
        rows = rows.shard(*options.shard)
    parts: list[Encoded] = []
    ids: list[str] = []
    labels: list[str] = []
    with console.progress("encoding", rows.total, "rows") as bar:
        for block, block_ids, block_labels in rows.blocks(options.batch_size):
            parts.append(
                encode_rows(
                    loaded.model,
                    options.domain,
                    block,
                    size=loaded.size,
                    device=device,
                    batch_size=options.batch_size,
                    shared=options.latents in ("shared", "both"),
                    exclusive=wants_exclusive,
                )
            )
            ids += block_ids
            labels += block_labels or []
            bar.update(len(ids))
    for line in rows.skipped:
        console.warn(f"skipped {line}")
    if not parts:
        raise IiaeError("none of the inputs could be read", "the lines above name each of them")
    names = [name for name, values in vars(parts[0]).items() if values is not None]
    cache = LatentCache(
        encoded=Encoded(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}),
        ids=ids,
        labels=labels or None,
        domain=options.domain,
        fingerprint=loaded.fingerprint,
        shared_shape=loaded.model.shared_shape,
        preset=loaded.details.get("preset", ""),
        metric=loaded.metric,
        source=rows.source,
    )
    write_latents(options.output, cache, logvar=options.logvar, dtype=options.dtype)
    return EncodeResult(options.output, len(cache), cache.domain, cache.fingerprint, rows.skipped)
