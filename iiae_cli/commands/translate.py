"""`iiae translate`: shared latent of one picture, exclusive latent sampled or of a reference, decoded to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from iiae_cli import console
from iiae_cli.builders import choose_device
from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.data.pictures import expand_inputs
from iiae_cli.errors import IiaeError
from iiae_cli.evaluation.grids import Tile, draw_grid
from iiae_cli.files import refuse_existing, write_errors, writing
from iiae_cli.inference.encoding import inference
from iiae_cli.inference.inputs import open_inputs
from iiae_cli.inference.translation import prior_samples, translate_rows
from iiae_cli.model.iiae import Domain, other_domain
from iiae_cli.places import run_folder
from iiae_cli.runs import LoadedModel, RunDir, load_model

GRID_ROWS = 32


@dataclass(frozen=True)
class TranslateOptions:
    """What the command line says; see `iiae translate --help`."""

    source: Domain
    target: Domain | None = None
    run: Path | None = None
    samples: int = 3
    references: tuple[str, ...] = ()
    seed: int = 0
    output: Path | None = None
    grid: Path | None = None
    split: str = "test"
    limit: int | None = None
    workers: int = 2
    device: str = "auto"
    nul: bool = False
    overwrite: bool = False


@dataclass
class TranslateResult:
    """What was written.

    Attributes:
        source: domain of the inputs.
        target: domain of the outputs.
        results: per input its id and the files of its outputs.
        grid: the grid's file, if any.
        skipped: a line for every input or reference left out.
    """

    source: Domain
    target: Domain
    results: list[dict[str, Any]]
    grid: Path | None
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "schema": "iiae.translate/1",
            "from": self.source,
            "to": self.target,
            "results": self.results,
            "grid": None if self.grid is None else str(self.grid),
            "skipped": self.skipped,
        }

    def show(self) -> None:
        """Print for people and pipes: input, how its exclusive latent was had, file."""
        rows = [
            (result["input"], one["exclusive"], one["file"] or "")
            for result in self.results
            for one in result["outputs"]
            if one["file"]
        ]
        if rows:
            console.print_table(["input", "exclusive", "file"], rows, header=False)
        if self.grid is not None:
            console.print_line(str(self.grid))


def run(inputs: Sequence[str], options: TranslateOptions) -> TranslateResult:
    """Translate every input.

    Raises:
        IiaeError: no model, nothing to write to, an analogy without a reference, a model without exclusive latents.
    """
    target = options.target or other_domain(options.source)
    if options.output is None and options.grid is None:
        raise IiaeError("nowhere to write to", "pass -o DIR for single pictures, --grid grid.png for a grid, or both")
    if target == options.source and not options.references:
        raise IiaeError(
            "a visual analogy within one domain needs a reference", "pass --reference PICTURE, or --to the other domain"
        )
    if options.grid is not None:
        refuse_existing(options.grid, options.overwrite)
    paths = expand_inputs(inputs, nul=options.nul)
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen})")
    if loaded.size is None:
        raise IiaeError("this model translates features, not pictures", "use a run that was trained on pictures")
    if options.references and not loaded.model.exclusive_dim:
        raise IiaeError("this model was trained without exclusive latents", "leave --reference out")
    shapes = {"x": loaded.info.shape_x, "y": loaded.info.shape_y}
    source_inputs = open_inputs(
        paths, options.source, shapes[options.source], split=options.split, workers=options.workers
    )
    if options.limit is not None:
        source_inputs = source_inputs.part(slice(0, options.limit))
    rows, ids, _ = source_inputs.all_rows()
    skipped = list(source_inputs.skipped)
    references, names = None, [f"sample {i + 1}" for i in range(options.samples)]
    if options.references:
        opened = open_inputs(list(options.references), target, shapes[target], workers=options.workers)
        references, reference_ids, _ = opened.all_rows()
        names = [Path(one).name for one in reference_ids]
        skipped += opened.skipped
    exclusive = _exclusive(loaded, target, references, len(rows), options, device)
    if exclusive is None:
        names = ["translation"]
    outputs = translate_rows(loaded.model, options.source, target, rows, exclusive, size=loaded.size, device=device)
    files = _write_outputs(options, target, ids, names, outputs)
    if options.grid is not None:
        _write_grid(options.grid, loaded, options.source, target, rows, references, names, outputs)
    results = [
        {
            "input": one,
            "outputs": [
                {"exclusive": name, "file": None if path is None else str(path)}
                for name, path in zip(names, line, strict=True)
            ],
        }
        for one, line in zip(ids, files, strict=True)
    ]
    for line in skipped:
        console.warn(f"skipped {line}")
    return TranslateResult(options.source, target, results, options.grid, skipped)


def _exclusive(
    loaded: LoadedModel,
    target: Domain,
    references: NDArray[Any] | None,
    count: int,
    options: TranslateOptions,
    device: torch.device,
) -> torch.Tensor | None:
    """(N, K, E): every reference's mean for every input, or samples from the prior."""
    if not loaded.model.exclusive_dim:
        return None
    if references is None:
        return prior_samples(options.samples, count, loaded.model.exclusive_dim, options.seed)
    with inference(loaded.model):
        means = loaded.model.encode_exclusive(target, to_inputs(references, loaded.size, device)).mean
    return means.cpu()[None].expand(count, -1, -1)


def _write_outputs(
    options: TranslateOptions, target: Domain, ids: list[str], names: list[str], outputs: NDArray[np.uint8]
) -> list[list[Path | None]]:
    """One PNG per output, `DIR/STEM-to-TARGET-NAME.png`; inputs of equal stems are told apart by a number."""
    if options.output is None:
        return [[None] * len(names) for _ in ids]
    with write_errors(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    stems = _unique([Path(one).stem for one in ids])
    suffixes = _unique([Path(name).stem.replace(" ", "") for name in names])
    files: list[list[Path | None]] = [
        [options.output / f"{stem}-to-{target}-{suffix}.png" for suffix in suffixes] for stem in stems
    ]
    for line in files:
        for path in line:
            if path is not None:
                refuse_existing(path, options.overwrite)
    for line, pictures in zip(files, outputs, strict=True):
        for path, picture in zip(line, pictures, strict=True):
            if path is not None:
                with writing(path, sync=False) as temporary:
                    Image.fromarray(picture.squeeze()).save(temporary, format="PNG")
    return files


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


def _write_grid(
    path: Path,
    loaded: LoadedModel,
    source: Domain,
    target: Domain,
    rows: NDArray[Any],
    references: NDArray[Any] | None,
    names: list[str],
    outputs: NDArray[np.uint8],
) -> None:
    """Sampled: input | outputs (paper, Table 1). Guided: a first row of references above input | outputs (Table 8)."""
    shown = min(len(rows), GRID_ROWS)
    if shown < len(rows):
        console.say(f"the grid shows the first {shown} of {len(rows)} inputs")
    pictures = to_pictures(to_inputs(rows[:shown], loaded.size))
    lines = [[Tile(picture), *map(Tile, outs)] for picture, outs in zip(pictures, outputs, strict=False)]
    headers = [f"input {source}", *names]
    if references is not None:
        given = to_pictures(to_inputs(references, loaded.size))
        lines.insert(0, [Tile(None), *map(Tile, given)])
        headers = ["", *[f"reference {target}" for _ in names]]
    with writing(path) as temporary:
        draw_grid(lines, headers, gaps_after=[0]).save(temporary, format="PNG")
