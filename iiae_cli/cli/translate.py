"""`iiae translate`: the shared latent of each input, decoded with an exclusive latent that is
sampled, or taken from a reference or from the input's partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iiae_cli.cli.options import (
    INPUT,
    OUTPUT,
    DeviceOption,
    DomainName,
    JsonFlag,
    NulFlag,
    OverwriteFlag,
    RunOption,
    SplitOption,
    WorkersOption,
    finish,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing, writing
from iiae_cli.model import other_domain

if TYPE_CHECKING:
    from iiae_cli.inference.inputs import Inputs
    from iiae_cli.inference.styles import Styles
    from iiae_cli.report.grids import TranslationGrid
    from iiae_cli.runs.weights import LoadedModel

GRID_ROWS = 32
GRID_COLUMNS = 32
BLOCK_PICTURES = 256  # outputs held in memory at once, unless one input has more


@dataclass(frozen=True)
class Options:
    """What the command line says; the fields are the options of `command`."""

    inputs: list[str]
    source: DomainName
    target: DomainName
    run: Path | None = None
    samples: int | None = None
    reference: list[str] | None = None
    guided: bool = False
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
class Translated:
    """What was written: per input its id and the files of its outputs, and the grid's file."""

    source: DomainName
    target: DomainName
    results: list[dict[str, Any]]
    grid: Path | None
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `--json` prints."""
        return {
            "schema": "iiae.translate/1",
            "from": self.source,
            "to": self.target,
            "results": self.results,
            "grid": None if self.grid is None else str(self.grid),
            "skipped": self.skipped,
        }

    def show(self) -> None:
        """Print for people and pipes: input, where its exclusive latent comes from, file."""
        rows = [
            (result["input"], output["exclusive"], output["file"])
            for result in self.results
            for output in result["outputs"]
            if output["file"]
        ]
        if rows:
            console.print_table(["input", "exclusive", "file"], rows, header=False)
        if self.grid is not None:
            console.print_line(str(self.grid))


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Pictures, folders, -, or a prepared .h5."),
    ],
    source: Annotated[DomainName, typer.Option("--from", help="Domain of the inputs.")],
    target: Annotated[
        DomainName | None, typer.Option("--to", help="Domain of the outputs [the other one].")
    ] = None,
    run: RunOption = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Outputs per input, exclusive latents sampled [3; none beside guided ones]."
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Take the exclusive latent of this picture; repeatable."),
    ] = None,
    guided: Annotated[
        bool,
        typer.Option("--guided", help="Take each input's partner's; inputs of a prepared file."),
    ] = False,
    interpolate: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="N outputs from the first to the second of two references."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for single pictures.", rich_help_panel=OUTPUT),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(help="Write one labelled picture of all.", rich_help_panel=OUTPUT),
    ] = None,
    split: SplitOption = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many inputs.", rich_help_panel=INPUT)
    ] = None,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    nul: NulFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Translate pictures to the other domain, or make visual analogies within one.

    The shared latent comes from the input; the exclusive one is sampled, or taken from --reference
    pictures of the output's domain, or from each input's partner. Asked for together, they stand
    side by side.

    \b
    Examples:
      iiae translate query.png --from x --grid grid.png
      iiae translate imgs/ --from x --reference red.png -o out/
      iiae translate query.png --from y --to y --reference red.png --grid analogy.png
      iiae translate query.png --from x --reference red.png --reference blue.png \\
          --interpolate 7 --grid line.png
      iiae translate data/digits-cdcb.h5 --from x --limit 8 --samples 3 --guided \\
          --grid table1.png
    """
    given = dict(locals())
    del given["as_json"]
    translated = translate(Options(**{**given, "target": target or other_domain(source)}))
    for line in translated.skipped:
        console.warn(f"skipped {line}")
    finish(translated, as_json, translated.skipped)


def translate(options: Options) -> Translated:
    """Translate every input, block by block, so that any number of them fits into memory."""
    from iiae_cli.builders import choose_device
    from iiae_cli.common.files import run_folder
    from iiae_cli.data.pictures import expand_inputs
    from iiae_cli.inference.inputs import open_inputs
    from iiae_cli.inference.outputs import plan_files
    from iiae_cli.inference.styles import Styles, partners_of
    from iiae_cli.inference.trained import TrainedModel
    from iiae_cli.report.grids import TranslationGrid
    from iiae_cli.runs.directory import RunDir
    from iiae_cli.runs.weights import load_model

    _check(options)
    source, target = options.source, options.target
    paths = expand_inputs(options.inputs, nul=options.nul)
    folder, chosen = run_folder(options.run)
    loaded = load_model(RunDir(folder), choose_device(options.device))
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen})")
    _check_model(loaded, options)
    shapes = {"x": loaded.info.shape_x, "y": loaded.info.shape_y}
    given = open_inputs(paths, source, shapes[source], split=options.split, workers=options.workers)
    if options.limit is not None:
        given = given.first(options.limit)
    references = None
    if options.reference:
        shape = shapes[target]
        references = open_inputs(options.reference, target, shape, workers=options.workers)
    partners = None
    if options.guided:
        partners = partners_of(paths, given.total, target, shapes[target], split=options.split)
    styles = Styles.of(
        TrainedModel.of(loaded),
        target,
        references,
        partners,
        samples=options.samples,
        interpolate=options.interpolate,
        seed=options.seed,
    )
    plan = None
    if options.output is not None:
        plan = plan_files(
            options.output,
            given.ids,
            styles.names,
            target,
            overwrite=options.overwrite,
            inputs=[*given.ids, *(references.ids if references is not None else [])],
        )
    columns = _columns(len(styles.names), options)
    grid = TranslationGrid(
        source=source,
        target=target,
        names=[styles.names[column] for column in columns],
        references=[styles.pictures[column] for column in columns] if styles.pictures else (),
        interpolated=bool(options.interpolate),
    )
    results = _translate(given, styles, plan, grid, columns, options)
    if options.grid is not None:
        with writing(options.grid) as temporary:
            grid.draw().save(temporary, format="PNG")
    skipped = given.skipped + (references.skipped if references is not None else [])
    return Translated(source, target, results, options.grid, skipped)


def _check(options: Options) -> None:
    """Refuse what cannot work before anything is loaded."""
    analogy = options.target == options.source
    _refuse(
        options.output is None and options.grid is None,
        "nowhere to write to",
        "pass -o DIR for single pictures, --grid grid.png for a grid, or both",
    )
    _refuse(
        analogy and not options.reference,
        "a visual analogy within one domain needs a reference",
        "pass --reference PICTURE, or --to the other domain",
    )
    _refuse(
        bool(options.interpolate) and not options.reference,
        "an interpolation needs two references",
        "pass --reference FIRST --reference LAST",
    )
    _refuse(
        bool(options.interpolate) and bool(options.samples or options.guided),
        "an interpolation has no samples and no partners",
        "leave --samples and --guided out",
    )
    _refuse(
        options.guided and analogy,
        "--guided takes the partner's exclusive latent, which is the other domain's",
        "leave --to out",
    )
    if options.grid is not None:
        refuse_existing(options.grid, options.overwrite)


def _check_model(loaded: LoadedModel, options: Options) -> None:
    """Refuse a model that does not translate pictures."""
    kind = loaded.config.objective.kind
    _refuse(
        not loaded.model.generative,
        f"a model of objective {kind} translates nothing: it has no decoders",
        "use a run of objective.kind=elbo+ii-mi",
    )
    _refuse(
        loaded.size is None,
        "this model translates features, not pictures",
        "use a run that was trained on pictures",
    )
    _refuse(
        bool(options.reference or options.guided) and not loaded.model.exclusive_dim,
        "this model was trained without exclusive latents",
        "leave --reference and --guided out",
    )


def _refuse(refused: bool, message: str, hint: str) -> None:
    if refused:
        raise IiaeError(message, hint)


def _columns(count: int, options: Options) -> list[int]:
    """Returns which outputs the grid shows: the first; of an interpolation, at equal distances."""
    if count <= GRID_COLUMNS:
        return list(range(count))
    if options.grid is not None:
        console.say(f"the grid shows {GRID_COLUMNS} of {count} outputs of each input")
    if options.interpolate:
        return [round(column * (count - 1) / (GRID_COLUMNS - 1)) for column in range(GRID_COLUMNS)]
    return list(range(GRID_COLUMNS))


def _translate(
    given: Inputs,
    styles: Styles,
    plan: list[list[Path]] | None,
    grid: TranslationGrid,
    columns: list[int],
    options: Options,
) -> list[dict[str, Any]]:
    """Read, translate and write, one block after the other; the grid keeps the first rows."""
    from iiae_cli.inference.outputs import write_pictures

    if options.grid is not None and given.total > GRID_ROWS:
        console.say(f"the grid shows the first {GRID_ROWS} of {given.total} inputs")
    results: list[dict[str, Any]] = []
    position = 0
    with console.progress("translating", given.total, "inputs") as bar:
        for rows, ids, _ in given.blocks(max(1, BLOCK_PICTURES // len(styles.names))):
            positions = []
            for name in ids:
                position = given.ids.index(name, position) + 1  # past those that are unreadable
                positions.append(position - 1)
            latents = styles.exclusive(positions)
            outputs = styles.trained.translate(rows, options.source, options.target, latents)
            for place, name, pictures in zip(positions, ids, outputs, strict=True):
                files: Sequence[Path | None] = [None] * len(styles.names)
                if plan is not None:
                    files = plan[place]
                    write_pictures(plan[place], pictures)
                lines = [
                    {"exclusive": style, "file": None if path is None else str(path)}
                    for style, path in zip(styles.names, files, strict=True)
                ]
                results.append({"input": name, "outputs": lines})
            room = max(0, GRID_ROWS - len(grid.rows)) if options.grid is not None else 0
            shown = styles.shown(rows[:room])
            for picture, name, pictures in zip(shown, ids, outputs, strict=False):
                grid.add(picture, name, list(pictures[columns]))
            bar.update(position)
    if not results:
        for line in given.skipped:
            console.warn(f"skipped {line}")
        raise IiaeError("none of the inputs could be read", "the lines above name each of them")
    return results
