"""`iiae export`: a run as a folder for other programs and people, here or on the hub."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Literal

import typer

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import finish, of_output, option
from iiae_cli.common import console
from iiae_cli.common.environment import push_to_hub
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, refuse_existing


def command(
    source: Path | None = typer.Argument(None, metavar="RUN", help="Run directory, as --run."),
    output: Path = option(Path("export"), "Folder to write.", "-o", "--output"),
    run: Path | None = shared.RUN,
    form: Literal["safetensors", "onnx", "torch"] = option(
        "safetensors", "Graphs beside the weights: ONNX, torch.export's .pt2, or none.", "--format"
    ),
    figures: Path | None = of_output(None, "Output of iiae evaluate --json, for the model card."),
    license_id: str = of_output("unknown", "The model card's license.", "--license", metavar="ID"),
    push: str | None = option(
        None, "Upload to the Hugging Face Hub; a new model is private.", metavar="OWNER/NAME"
    ),
    overwrite: bool = shared.OVERWRITE,
    as_json: bool = shared.JSON,
) -> None:
    """Write a run's weights, model card and graphs into a folder that --run and Python read.

    \b
    Examples:
      iiae export -o model
      iiae export runs/mine -o model --format onnx
      iiae evaluate --run runs/mine --json > figures.json
      iiae export runs/mine -o model --figures figures.json --license mit
      iiae export runs/mine -o model --push me/mine
      iiae retrieve query.png --run hf://me/mine --index z.h5
    """
    from iiae_cli.inference.api import open_run
    from iiae_cli.inference.export import model_card, write_export
    from iiae_cli.runs import RunDir

    if push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise IiaeError(f"--push {push} is not OWNER/NAME", "write --push me/mine")
    refuse_existing(output, overwrite)
    model = open_run(source or run, "cpu")
    measured = None
    if figures is not None:
        with reading(figures, "write it by: iiae evaluate --json > figures.json"):
            measured = dict(json.loads(figures.read_text(encoding="utf-8")))
    card = model_card(model.loaded, license_id, measured)
    differences = write_export(model.loaded, RunDir(model.folder), output, form, card)
    result = {
        "schema": "iiae.export/1",
        "path": str(output),
        "run": str(model.folder),
        "format": form,
        "fingerprint": model.fingerprint,
        "difference": differences,
        "pushed": push and push_to_hub(output, push),
    }
    rows = [(output / name, f"{value:.2g}") for name, value in differences.items()]
    rows = [(output / "model.safetensors", "0"), *rows]
    show = partial(console.print_table, ["file", "difference"], rows, header=False)
    finish(result, show, as_json)
