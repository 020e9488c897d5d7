"""`iiae prepare`: writes a data set or a shard of it, or merges shards."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import (
    BACKBONES,
    DATA_SETS,
    finish,
    option,
    shard_of,
    shard_output,
)
from iiae_cli.common import console
from iiae_cli.common.environment import data_folder
from iiae_cli.common.errors import IiaeError, stop_on_signals
from iiae_cli.common.files import refuse_existing

if TYPE_CHECKING:
    from iiae_cli.data.blocks import Part, PartFile

of_pairs = partial(option, panel="Your own pairs")
of_features = partial(option, panel="Classes and features")


def command(
    name: str | None = typer.Argument(
        None, metavar="NAME", help="Data set.", autocompletion=lambda incomplete: DATA_SETS
    ),
    sources: list[Path] | None = typer.Argument(
        None, metavar="SOURCE", help="Folder or file to read."
    ),
    source: Path | None = option(None, "The same as SOURCE."),
    output: Path | None = option(None, "File [NAME.h5 in IIAE_DATA or data].", "-o", "--output"),
    image_size: int | None = option(
        None, "Side of stored pictures [the set's own].", min=16, max=8192
    ),
    limit: int | None = option(None, "Most pairs per split.", min=1),
    seed: int = option(0, "Seed of colours and random divisions.", min=0),
    download: bool = option(False, "Download the source, if possible.", "--download"),
    pictures: Path | None = option(None, "Also write every picture to this folder."),
    valid_fraction: float = of_pairs(0.1, "Fraction for valid, if unsplit.", min=0, max=0.9),
    test_fraction: float = of_pairs(0.1, "Fraction for test, if unsplit.", min=0, max=0.9),
    side_by_side: bool = of_pairs(
        False, "Each picture holds x left and y right.", "--side-by-side"
    ),
    same_instance: bool = of_pairs(
        False, "mnist-quadrants: one digit in both views.", "--same-instance"
    ),
    split: Literal["sempcyc-25", "eccv18-21", "sake-25"] | None = of_features(
        None, "sketchy: published test classes [sempcyc-25]."
    ),
    unseen_classes: str | None = of_features(
        None, "Test classes: a number to draw, or a file, one a line.", metavar="N|FILE"
    ),
    backbone: str | None = of_features(
        None,
        "Network that makes features: torchvision's, or timm:NAME, open_clip:NAME@PRETRAINED "
        "[sketchy: vgg16].",
        metavar="NAME",
        autocompletion=lambda incomplete: BACKBONES,
    ),
    backbone_weights: str | None = of_features(
        None, "Its weights [published, from torch's cache].", metavar="FILE|DIR|none"
    ),
    pool: Literal["pooled", "mean", "cls"] | None = of_features(
        None,
        "Its feature: pooled as it classifies, the mean of patch tokens, or the class token "
        "[pooled].",
    ),
    fine_tune_epochs: int | None = of_features(
        None, "Epochs on the training classes [sketchy: 10, classes: 0].", min=0
    ),
    invert_sketches: bool | None = of_features(
        None, "Turn sketches white on black [no].", "--invert-sketches/--no-invert-sketches"
    ),
    normalise: bool | None = of_features(
        None, "Normalise by ImageNet's mean and deviation [yes].", "--normalise/--no-normalise"
    ),
    save_backbone: Path | None = of_features(
        None, "Keep the fine-tuned networks, for --backbone-weights.", metavar="DIR"
    ),
    allow_leak: bool = of_features(
        False, "Accept a backbone that saw test classes; the file says so.", "--allow-leak"
    ),
    batch_size: int = of_features(64, "Pictures per batch of the backbone.", min=1),
    device: str = shared.DEVICE,
    shard: str | None = shared.SHARD,
    merge: bool = shared.MERGE,
    resume: bool = shared.RESUME,
    workers: int = shared.WORKERS,
    overwrite: bool = shared.OVERWRITE,
    as_json: bool = shared.JSON,
) -> None:
    """Write a data set as one self-describing HDF5 file with splits train, valid and test.

    \b
    NAME is one of
      digits-cdcb    embedded digits: coloured background (x), coloured digit (y)
      digits-edge    embedded digits: coloured background (x), its outline (y)
      mnist-cdcb     as digits-cdcb from MNIST's IDX files, or 512x256 originals
      fashion-cdcb   the same from Fashion-MNIST
      fashion-edges  edge map of a garment (x), it on a random-coloured ground (y)
      mnist-quadrants  two digits of a class, in quadrants of textured grounds
      digits-moved   embedded digits, shifted, scaled and turned in each view
      trifeature     generated: one shape, in a texture and a colour of each view
      cars           frontal view (x), the car turned (y): visual-analogy data
      facades        photo (x), label map (y): pix2pix's train/, val/ and test/
      maps           aerial photo (x), map (y): train/ and val/, taken as test
      pairs          your own: SOURCE/[train|valid|test/]{x,y}/NAME.png; with
                     --side-by-side SOURCE/[train|valid|test/]NAME.png; or a
                     table SOURCE.csv with columns x,y[,split][,label] and
                     factors x_…, y_…, shared_… (validation/ is valid, too)
      sketchy        Sketchy Extended as features: sketches (x), photos (y)
      classes        your own: SOURCE/[train|test/]{x,y}/CLASS, or features
                     (.npy, .npz)

    \b
    Examples:
      iiae prepare digits-cdcb
      iiae prepare mnist-cdcb path/to/mnist -o data/mnist-cdcb.h5
      iiae prepare pairs my-pairs/ --image-size 64 -o data/mine.h5
      iiae prepare digits-edge --pictures digits/ --json | jq .splits
      iiae prepare sketchy path/to/Sketchy --split sempcyc-25 \\
          --backbone-weights vgg16-397923af.pth
      iiae prepare classes my-classes/ --unseen-classes 10 \\
          --backbone resnet18 -o data/mine.h5
      iiae prepare classes my-classes/ --backbone resnet18 --shard auto \\
          -o 'mine-{shard}.h5' --resume     in a job array
      iiae prepare mine-*-of-4.h5 --merge -o data/mine.h5
    """
    given = dict(locals())
    if name is None:
        raise IiaeError(
            "no data set was named",
            f"iiae prepare digits-cdcb, or one of {', '.join(DATA_SETS)}",
        )
    from iiae_cli.data.blocks import in_order, part_of
    from iiae_cli.data.names import expand_inputs
    from iiae_cli.data.sources import preparation
    from iiae_cli.data.sources.plan import PrepareOptions

    named = [*(sources or []), *([source] if source else [])]
    if len(named) > 1 and not merge:
        raise IiaeError(
            f"{len(named)} sources are named: {named[0]}, {named[1]}…",
            "name one; --merge takes several shards",
        )
    given["source"] = named[0] if named and not merge else None
    options = PrepareOptions(**{item.name: given[item.name] for item in fields(PrepareOptions)})
    machine = PrepareOptions(download=download, workers=workers, device=device)
    if merge and (shard is not None or options != machine):
        raise IiaeError(
            "--merge takes no --shard and no option of how data are prepared",
            "leave it out: the shards say how they were made",
        )
    part = shard_of(shard)
    parts: list[PartFile] = []
    with stop_on_signals() as stop:
        if merge:
            words = expand_inputs([name, *map(str, named)])
            parts = in_order([part_of(Path(word)) for word in words], "iiae prepare …")
            name, options = preparation.options_of(parts[0], download)
        default = f"{name}.h5" if part is None else f"{name}-{{shard}}.h5"
        path = shard_output(output or data_folder() / default, shard, part)
        features = name in preparation.CLASS_SETS or options.wants_backbone
        if features and not merge:
            from iiae_cli.builders import choose_device

            options = replace(options, device=str(choose_device(device)))
        if pictures is not None:
            _check_pictures(pictures, options.source, features or part is not None)
        networks = save_backbone or (path.with_suffix(".backbone") if features else None)
        for beside in (pictures, networks):
            if beside is not None:
                refuse_existing(beside, overwrite or resume or merge)
        preparation.prepare_file(
            name,
            path,
            options,
            part=part,
            parts=parts,
            resume=resume,
            overwrite=overwrite,
            stop=stop,
        )
        if pictures is not None:
            preparation.save_pictures(path, pictures, stop)
        result = _described(name, path, part) | {"pictures": pictures and str(pictures)}
        finish(result, lambda: _show(result), as_json, result["skipped"], pictures=True)


def _check_pictures(folder: Path, source: Path | None, has_none: bool) -> None:
    """Raises if pictures cannot be written to a folder."""
    if has_none:
        raise IiaeError(
            "--pictures does not apply to features, nor to --shard",
            "leave it out, or write the pictures when the shards are merged",
        )
    if source is not None and folder.resolve() == source.resolve():
        raise IiaeError(f"{folder} holds the source's pictures", "choose another --pictures")


def _described(name: str, path: Path, part: Part | None) -> dict[str, Any]:
    """Returns a data file or a shard, as `--json` prints it."""
    from iiae_cli.data.blocks import part_of
    from iiae_cli.data.datafile import SPLITS, DataFile
    from iiae_cli.data.sources.preparation import CLASS_SETS

    result: dict[str, Any] = {"schema": "iiae.prepare/1", "path": str(path), "name": name}
    if part is not None:
        about = part_of(path).about
        result |= {"splits": {}, "skipped": about["skipped"]}
        result |= {"rows": about["rows"], "shard": part.name}  # row counts by reading
    else:
        file = DataFile(path)
        about = file.info.attributes
        result |= {"splits": dict(file.info.counts), "skipped": file.skipped()}
        if name in CLASS_SETS:
            splits = {split: file.split(split) for split in SPLITS}
            result["rows"] = {
                split: {"x": len(rows.x), "y": len(rows.y), "classes": len(rows.classes)}
                for split, rows in splits.items()
            }
    # Inputs that were not read as they are written.
    return result | {"notes": str(about.get("notes", "")).splitlines()}


def _show(result: dict[str, Any]) -> None:
    headers, title = ["split", "pairs"], result["path"]
    table = [list(row) for row in result["splits"].items()]
    if "shard" in result:
        headers, title = ["part", "rows"], f"{title}: shard {result['shard']}"
        table = [list(row) for row in result["rows"].items()]
    elif "rows" in result:
        headers = ["split", "x", "y", "classes"]
        table = [[split, *counts.values()] for split, counts in result["rows"].items()]
    console.print_table(headers, table, title=title)
