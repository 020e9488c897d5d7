"""`iiae translate`: shared latent of one picture, exclusive latent sampled or of a reference,
decoded to a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from iiae_cli.builders import choose_device
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing, writing
from iiae_cli.common.paths import run_folder
from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.data.datafile import DataFile, is_hdf5
from iiae_cli.data.pictures import expand_inputs
from iiae_cli.inference.inputs import Inputs, open_inputs
from iiae_cli.inference.outputs import plan_files, write_pictures
from iiae_cli.inference.trained import TrainedModel, interpolated, prior_samples
from iiae_cli.model import Domain, other_domain
from iiae_cli.report.grids import Picture, TranslationGrid
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.weights import LoadedModel, load_model

DEFAULT_SAMPLES = 3
GRID_ROWS = 32
GRID_COLUMNS = 32
BLOCK_PICTURES = 256  # outputs held in memory at once, unless one input has more


@dataclass(frozen=True)
class TranslateOptions:
    """What the command line says; see `iiae translate --help`."""

    source: Domain
    target: Domain | None = None
    run: Path | None = None
    samples: int | None = None
    guided: bool = False
    references: tuple[str, ...] = ()
    interpolate: int | None = None
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
    """Translate every input: block by block, so that any number of them fits into memory.

    Raises:
        IiaeError: no model, nothing to write to, an analogy without a reference, a model without
            exclusive latents, an interpolation without its two ends, an output that exists.
    """
    target = options.target or other_domain(options.source)
    _check(options, target)
    paths = expand_inputs(inputs, nul=options.nul)
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen})")
    if not loaded.model.generative:
        raise IiaeError(
            f"a model of objective {loaded.config.objective.kind} translates nothing: "
            "it has no decoders",
            "use a run of objective.kind=elbo+ii-mi",
        )
    if loaded.size is None:
        raise IiaeError(
            "this model translates features, not pictures", "use a run that was trained on pictures"
        )
    if (options.references or options.guided) and not loaded.model.exclusive_dim:
        raise IiaeError(
            "this model was trained without exclusive latents", "leave --reference and --guided out"
        )
    shapes = {"x": loaded.info.shape_x, "y": loaded.info.shape_y}
    given = open_inputs(
        paths, options.source, shapes[options.source], split=options.split, workers=options.workers
    )
    if options.limit is not None:
        given = given.first(options.limit)
    if options.grid is not None and given.total > GRID_ROWS:
        console.say(f"the grid shows the first {GRID_ROWS} of {given.total} inputs")
    references: Inputs | None = None
    if options.references:
        references = open_inputs(
            list(options.references), target, shapes[target], workers=options.workers
        )
    partners = _partners(paths, given, target, shapes[target], options) if options.guided else None
    styles = _styles(loaded, target, references, partners, options, device)
    plan = None
    if options.output is not None:
        kept = [*given.ids, *(references.ids if references is not None else [])]
        plan = plan_files(
            options.output,
            given.ids,
            styles.names,
            target,
            overwrite=options.overwrite,
            inputs=kept,
        )
    columns = _columns(len(styles.names), options)
    grid = TranslationGrid(
        source=options.source,
        target=target,
        names=[styles.names[column] for column in columns],
        references=[styles.pictures[column] for column in columns] if styles.pictures else (),
        interpolated=bool(options.interpolate),
    )
    results = _translate(loaded, given, target, styles, plan, grid, columns, options, device)
    if options.grid is not None:
        with writing(options.grid) as temporary:
            grid.draw().save(temporary, format="PNG")
    skipped = given.skipped + (references.skipped if references is not None else [])
    for line in skipped:
        console.warn(f"skipped {line}")
    return TranslateResult(options.source, target, results, options.grid, skipped)


def _check(options: TranslateOptions, target: Domain) -> None:
    """Refuse what cannot work before anything is loaded."""
    if options.output is None and options.grid is None:
        raise IiaeError(
            "nowhere to write to",
            "pass -o DIR for single pictures, --grid grid.png for a grid, or both",
        )
    if target == options.source and not options.references:
        raise IiaeError(
            "a visual analogy within one domain needs a reference",
            "pass --reference PICTURE, or --to the other domain",
        )
    if options.interpolate and not options.references:
        raise IiaeError(
            "an interpolation needs two references", "pass --reference FIRST --reference LAST"
        )
    if options.interpolate and (options.samples or options.guided):
        raise IiaeError(
            "an interpolation has no samples and no partners", "leave --samples and --guided out"
        )
    if options.guided and target == options.source:
        raise IiaeError(
            "--guided takes the partner's exclusive latent, which is the other domain's",
            "leave --to out",
        )
    if options.grid is not None:
        refuse_existing(options.grid, options.overwrite)


def _columns(count: int, options: TranslateOptions) -> list[int]:
    """Which outputs of an input the grid shows: the first ones, of an interpolation ones at equal
    distances.
    """
    if count <= GRID_COLUMNS:
        return list(range(count))
    if options.grid is not None:
        console.say(f"the grid shows {GRID_COLUMNS} of {count} outputs of each input")
    if options.interpolate:
        return [round(column * (count - 1) / (GRID_COLUMNS - 1)) for column in range(GRID_COLUMNS)]
    return list(range(GRID_COLUMNS))


def _partners(
    paths: Sequence[str],
    given: Inputs,
    target: Domain,
    shape: tuple[int, ...],
    options: TranslateOptions,
) -> Inputs:
    """The inputs' partners, row by row.

    Raises:
        IiaeError: the inputs are no prepared file, or one whose rows are not aligned.
    """
    if not is_hdf5(Path(paths[0])):
        raise IiaeError(
            "--guided needs partners, and pictures have none",
            "give a prepared .h5, or --reference PICTURE",
        )
    file = DataFile(Path(paths[0]))
    if file.info.by_class or file.split(options.split).pairs is not None:
        raise IiaeError(
            f"rows of {paths[0]} have no partner of their own", "pass --reference PICTURE instead"
        )
    return open_inputs(paths, target, shape, split=options.split).first(given.total)


@dataclass
class _Styles:
    """Where an input's K outputs take their exclusive latents from: samples, then references, then
    its partner.

    Attributes:
        names: (K,) of the outputs.
        samples: how many are sampled.
        means: (R, E) of references, or between two of them.
        partners: of all inputs, where they guide too.
        pictures: (K,) the references at the model's size and their ids, None beside other outputs;
            empty: none.
    """

    names: list[str]
    samples: int = 0
    means: torch.Tensor | None = None
    partners: Inputs | None = None
    pictures: list[tuple[Picture, str] | None] = field(default_factory=list)


def _styles(
    loaded: LoadedModel,
    target: Domain,
    references: Inputs | None,
    partners: Inputs | None,
    options: TranslateOptions,
    device: torch.device,
) -> _Styles:
    """Exclusive latents of the references, or between them, and the names of all outputs."""
    if not loaded.model.exclusive_dim:
        return _Styles(["translation"])
    default = 0 if references is not None or partners is not None else DEFAULT_SAMPLES
    styles = _Styles([], default if options.samples is None else options.samples, partners=partners)
    styles.names = [f"sample {number}" for number in range(1, styles.samples + 1)]
    shown: list[tuple[Picture, str] | None] = []
    if references is not None:
        rows, ids, _ = references.all_rows()
        styles.means = _exclusive_means(loaded, target, rows, device)
        shown += zip(_shown(loaded, rows), ids, strict=True)
        if options.interpolate:
            if len(ids) != 2:
                raise IiaeError(
                    f"an interpolation needs two references, {len(ids)} could be read",
                    "pass --reference FIRST --reference LAST",
                )
            styles.means = interpolated(styles.means[0], styles.means[1], options.interpolate)
            shown[1:1] = [None] * (options.interpolate - 2)
            ids = [f"step {number}" for number in range(1, options.interpolate + 1)]
        styles.names += [Path(one).name for one in ids]
        styles.pictures += [*[None] * styles.samples, *shown]
    if partners is not None:
        styles.names.append("guided")
        styles.pictures += [None] * bool(styles.pictures)
    return styles


def _exclusive_means(
    loaded: LoadedModel, target: Domain, rows: NDArray[Any], device: torch.device
) -> torch.Tensor:
    encoded = TrainedModel.of(loaded).encode(rows, target, shared=False)
    return torch.from_numpy(encoded.mean("exclusive"))


def _translate(
    loaded: LoadedModel,
    given: Inputs,
    target: Domain,
    styles: _Styles,
    plan: list[list[Path]] | None,
    grid: TranslationGrid,
    columns: list[int],
    options: TranslateOptions,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Read, translate and write, one block after the other; the grid keeps the first rows."""
    results: list[dict[str, Any]] = []
    block = max(1, BLOCK_PICTURES // len(styles.names))
    position = 0
    with console.progress("translating", given.total, "inputs") as bar:
        for rows, ids, _ in given.blocks(block):
            positions = []
            for one in ids:
                position = given.ids.index(one, position) + 1  # past those that could not be read
                positions.append(position - 1)
            exclusive = _exclusive(loaded, styles, positions, target, options.seed, device)
            outputs = TrainedModel.of(loaded).translate(rows, options.source, target, exclusive)
            for place, one, pictures in zip(positions, ids, outputs, strict=True):
                files: Sequence[Path | None] = [None] * len(styles.names)
                if plan is not None:
                    files = plan[place]
                    write_pictures(plan[place], pictures)
                made = zip(styles.names, files, strict=True)
                lines = [
                    {"exclusive": name, "file": None if path is None else str(path)}
                    for name, path in made
                ]
                results.append({"input": one, "outputs": lines})
            room = max(0, GRID_ROWS - len(grid.rows)) if options.grid is not None else 0
            for picture, one, pictures in zip(
                _shown(loaded, rows[:room]), ids, outputs, strict=False
            ):
                grid.add(picture, one, list(pictures[columns]))
            bar.update(position)
    if not results:
        for line in given.skipped:
            console.warn(f"skipped {line}")
        raise IiaeError("none of the inputs could be read", "the lines above name each of them")
    return results


def _exclusive(
    loaded: LoadedModel,
    styles: _Styles,
    positions: list[int],
    target: Domain,
    seed: int,
    device: torch.device,
) -> torch.Tensor | None:
    """(N, K, E) for the inputs at these positions; samples are decided by position and seed."""
    if not loaded.model.exclusive_dim:
        return None
    parts = []
    first, count = positions[0], positions[-1] - positions[0] + 1
    if styles.samples:
        drawn = prior_samples(styles.samples, count, loaded.model.exclusive_dim, seed, first=first)
        parts.append(drawn[[one - first for one in positions]])
    if styles.means is not None:
        parts.append(styles.means[None].expand(len(positions), -1, -1))
    if styles.partners is not None:
        rows = styles.partners.read(first, first + count).rows
        parts.append(_exclusive_means(loaded, target, rows, device)[:, None])
    return torch.cat(parts, dim=1)


def _shown(loaded: LoadedModel, rows: NDArray[Any]) -> list[Picture]:
    """Stored rows as the model sees them."""
    return list(to_pictures(to_inputs(rows, loaded.size))) if len(rows) else []
