"""`iiae translate`: decodes each input's shared latent in the other domain.

The exclusive latent is sampled, or taken from a reference or the input's partner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import DomainName, SplitName, finish, of_input, of_output, option
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing, save_picture, write_errors, writing
from iiae_cli.model import Domain, other_domain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from iiae_cli.inference.inputs import Inputs
    from iiae_cli.inference.trained import Styles, TrainedModel
    from iiae_cli.report.grids import Translated
    from iiae_cli.runs import LoadedModel

Files = list[list[Path | None]]  # by input and output; None for one that is not written
GRID_ROWS = 32
BLOCK_PICTURES = 256  # outputs held in memory at once, unless one input has more


def command(
    inputs: list[str] = typer.Argument(
        ..., metavar="INPUT", help="Pictures, folders, -, or a prepared .h5."
    ),
    source: DomainName = option(..., "Domain of the inputs.", "--from"),
    target: DomainName | None = option(None, "Domain of the outputs [the other one].", "--to"),
    run: Path | None = shared.RUN,
    samples: int | None = option(
        None, "Sampled outputs per input [3; none beside guided ones].", min=1
    ),
    reference: list[str] | None = option(
        None, "Take this picture's exclusive latent; repeatable.", metavar="PICTURE"
    ),
    guided: bool = option(
        False, "Take each partner's exclusive latent; for a prepared file.", "--guided"
    ),
    seed: int = option(0, "Seed of the samples.", min=0),
    output: Path | None = of_output(None, "Folder for single pictures.", "-o", "--output"),
    grid: Path | None = of_output(None, "Write one labelled picture of all outputs."),
    split: SplitName = shared.SPLIT,
    limit: int | None = of_input(None, "Most inputs to translate.", min=1),
    workers: int = shared.WORKERS,
    device: str = shared.DEVICE,
    backbone_weights: str | None = shared.BACKBONE_WEIGHTS,
    nul: bool = shared.NUL,
    overwrite: bool = shared.OVERWRITE,
    as_json: bool = shared.JSON,
) -> None:
    """Translate pictures to the other domain, or make visual analogies within one.

    The shared latent comes from the input; the exclusive one is sampled, or taken from --reference
    pictures of the output's domain, or from each input's partner. Several of these stand side by
    side.

    \b
    Examples:
      iiae translate query.png --from x --grid grid.png
      iiae translate imgs/ --from x --reference red.png -o out/
      iiae translate query.png --from y --to y --reference red.png \\
          --grid analogy.png
      iiae translate data/digits-cdcb.h5 --from x --limit 8 --samples 3 --guided \\
          --grid table1.png
    """
    from iiae_cli.data.names import expand_inputs
    from iiae_cli.inference.api import open_run
    from iiae_cli.inference.trained import styles_of
    from iiae_cli.report.grids import translation_panel

    target = target or other_domain(source)
    if output is None and grid is None:
        raise IiaeError("no output was named", "pass -o DIR for pictures, --grid grid.png, or both")
    if target == source and (guided or not reference):
        raise IiaeError(
            "a visual analogy within one domain needs a reference, and --guided is for two",
            "pass --reference PICTURE alone, or leave --to out",
        )
    if grid is not None:
        refuse_existing(grid, overwrite)
    paths = expand_inputs(inputs, nul=nul)
    model = open_run(run, device, backbone_weights)
    _check_model(model.loaded, bool(reference or guided), grid is not None)
    rows = model.inputs(paths, source, split=split, workers=workers).first(limit)
    if grid is not None and rows.total > GRID_ROWS:
        others = "" if output else "; no others are translated, as -o was not named"
        console.say(f"the grid shows the first {GRID_ROWS} of {rows.total} inputs{others}")
    rows = rows if output else rows.first(GRID_ROWS)
    references = model.inputs(reference, target).read_all() if reference else None
    partners = _partners(paths[0], rows.source, target) if guided else None
    styles = styles_of(model.trained, target, references, partners, samples=samples, seed=seed)
    files: Files = [[None] * len(styles.names)] * rows.total
    if output is not None:
        suffix = ".png" if model.loaded.size else ".npy"
        files = plan_files(output, rows.ids, styles.names, target, overwrite, suffix)
    results, drawn, skipped = _translated(model.trained, rows, (source, target), styles, files)
    if grid is not None:
        save_picture(translation_panel(source, target, styles, drawn).draw(), grid)
    result: dict[str, Any] = {
        "schema": "iiae.translate/1",
        "from": source,
        "to": target,
        "results": results,
        "grid": grid and str(grid),
        "skipped": [*(references.skipped if references else []), *skipped],
    }
    finish(result, lambda: _show(result), as_json, result["skipped"])


def _show(translated: dict[str, Any]) -> None:
    rows = [
        (result["input"], output["exclusive"], output["file"])
        for result in translated["results"]
        for output in result["outputs"]
        if output["file"]
    ]
    if rows:
        console.print_table(["input", "exclusive", "file"], rows, header=False)
    if translated["grid"]:
        console.print_line(translated["grid"])


def _check_model(loaded: LoadedModel, styled: bool, drawn: bool) -> None:
    """Raises if a model lacks decoders, the exclusive latents asked for, or pictures to draw."""
    if not loaded.model.generative:
        raise IiaeError(
            "this model cannot translate: it has no decoders",
            "use a run of objective.kind=elbo+ii-mi",
        )
    if loaded.size is None and drawn:
        raise IiaeError(
            "this model translates to features, which no grid shows",
            "leave --grid out, and pass -o DIR for files of numbers (.npy)",
        )
    if styled and not loaded.model.exclusive_dim:
        raise IiaeError(
            "this model was trained without exclusive latents", "leave --reference and --guided out"
        )


def _partners(
    path: str, source: dict[str, Any], target: Domain
) -> Callable[[list[int]], NDArray[Any]]:
    """Returns a function from positions in a prepared file to the partners' rows."""
    from iiae_cli.data.datafile import DataFile

    file = DataFile(Path(source["data"])) if "data" in source else None
    split = None if file is None or file.info.by_class else file.split(source["split"], most=0)
    if split is None or split.pairs is not None:
        raise IiaeError(
            f"--guided takes partners, and rows of {path} have none of their own",
            "give a prepared .h5 of pairs, or --reference PICTURE",
        )
    own = split.side(target).rows
    return lambda positions: own[positions]


def plan_files(
    folder: Path,
    ids: Sequence[str],
    names: Sequence[str],
    target: str,
    overwrite: bool,
    suffix: str = ".png",
) -> Files:
    """Returns a file `FOLDER/STEM-to-TARGET-NAME` by input (N) and output (K).

    Names that recur, whatever their case, end in -2, -3, …. Makes the folder. Raises IiaeError if
    that fails, or a file exists or is an input.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    inputs = {str(Path(name).resolve()).casefold() for name in ids}
    counts: Counter[str] = Counter()
    taken: set[str] = set()

    def free(name: str) -> Path:
        numbered = name
        while numbered.casefold() in taken:
            counts[name.casefold()] += 1
            numbered = f"{name}-{counts[name.casefold()] + 1}"
        taken.add(numbered.casefold())
        path = folder / f"{numbered}{suffix}"
        refuse_existing(path, overwrite)
        if str(path.resolve()).casefold() in inputs:
            raise IiaeError(f"output {path} is an input, too", "choose another folder with -o")
        return path

    endings = [Path(name).stem.replace(" ", "") for name in names]
    return [[free(f"{Path(name).stem}-to-{target}-{end}") for end in endings] for name in ids]


def _translated(
    trained: TrainedModel, inputs: Inputs, way: tuple[Domain, Domain], styles: Styles, files: Files
) -> tuple[list[dict[str, Any]], list[Translated], list[str]]:
    """Translates every input, block by block, so that any number of them fits into memory.

    Returns a JSON object per input, rows of a grid, and a line per skipped input.
    """
    drawn: list[Translated] = []
    results, skipped = list[dict[str, Any]](), list[str]()
    for block in inputs.blocks(max(1, BLOCK_PICTURES // len(styles.names)), "translating"):
        skipped += block.skipped
        if not block.ids:
            continue
        outputs = trained.translate(block.rows, *way, styles.exclusive(block.positions))
        for name, position, made in zip(block.ids, block.positions, outputs, strict=True):
            named = [*zip(styles.names, files[position], strict=True)]
            for (_, path), output in zip(named, made, strict=True):
                if path is not None:
                    _write(path, output)
            said = [{"exclusive": style, "file": path and str(path)} for style, path in named]
            results.append({"input": name, "outputs": said})
        shown = trained.shown(block.rows[: GRID_ROWS - len(drawn)])
        drawn += zip(shown, block.ids, outputs, strict=False)
    return results, drawn, skipped


def _write(path: Path, output: NDArray[Any]) -> None:
    """Writes a picture (H, W, C) or features (F,)."""
    import numpy as np
    from PIL import Image

    with writing(path, sync=False) as temporary, temporary.open("wb") as file:
        if output.ndim == 1:
            np.save(file, output)
        else:
            Image.fromarray(output.squeeze()).save(file, format="PNG")
