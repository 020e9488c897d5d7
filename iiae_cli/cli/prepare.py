"""`iiae prepare`: its signature; `prepare_run` does the work and imports what is heavy."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from iiae_cli.cli.options import (
    INPUT,
    RUNNING,
    DeviceOption,
    JsonFlag,
    OverwriteFlag,
    ResumeFlag,
    ShardOption,
    WorkersOption,
    finish,
    shard_of,
    shard_output,
)
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import data_folder
from iiae_cli.common.signals import stop_on_signals

PAIRS, FEATURES = "Your own pairs", "Classes and features"


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set.")],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SOURCE", help="Folder or file that it comes from."),
    ] = None,
    source_option: Annotated[
        Path | None, typer.Option("--source", help="The same as SOURCE.", rich_help_panel=INPUT)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File [IIAE_DATA or data, /NAME.h5].")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=16, help="Side of the stored pictures [the set's own].")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many pairs per split.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of colours and random divisions.")] = 0,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the source where that is possible.")
    ] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Also write every picture to this folder.")
    ] = None,
    valid_fraction: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Part for valid, if unsplit.", rich_help_panel=PAIRS),
    ] = 0.1,
    test_fraction: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Part for test, if unsplit.", rich_help_panel=PAIRS),
    ] = 0.1,
    side_by_side: Annotated[
        bool,
        typer.Option(
            "--side-by-side",
            help="Each picture holds x on its left, y on its right.",
            rich_help_panel=PAIRS,
        ),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(
            help="sketchy: test classes, sempcyc-25, eccv18-21 or sake-25 [sempcyc-25].",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    unseen_classes: Annotated[
        str | None,
        typer.Option(
            metavar="N|FILE",
            help="Test classes: how many by seed, or one a line.",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="torchvision network for features [sketchy: vgg16].",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    backbone_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR|none",
            help="Its weights [published, from torch's cache].",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    fine_tune_epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="On the training classes [sketchy: 10, classes: 0].",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    invert_sketches: Annotated[
        bool | None,
        typer.Option(
            "--invert-sketches/--no-invert-sketches",
            help="White on black [no].",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    normalise: Annotated[
        bool | None,
        typer.Option(
            "--normalise/--no-normalise",
            help="By ImageNet's mean and deviation [yes].",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    save_backbone: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the fine-tuned networks, for --backbone-weights.",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak",
            help="Take a backbone that saw test classes; the file says so.",
            rich_help_panel=FEATURES,
        ),
    ] = False,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Pictures at once through the backbone.", rich_help_panel=FEATURES
        ),
    ] = 64,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Join shards, named instead of NAME and SOURCE.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    resume: ResumeFlag = False,
    workers: WorkersOption = 2,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a data set as one self-describing HDF5 file with splits train, valid and test.

    \b
    NAME is one of
      digits-cdcb     embedded digits: coloured background (x), coloured digit (y)
      digits-edge     embedded digits: coloured background (x), coloured outline (y)
      mnist-cdcb      the same as digits-cdcb from MNIST's IDX files, or the 512x256 originals
      fashion-cdcb    the same from Fashion-MNIST
      fashion-edges   edge map of a garment (x), the garment on a random-coloured ground (y)
      cars            frontal view (x), the same car turned (y), of the visual-analogy data
      facades         photo (x), label map (y): pix2pix's pictures in train/, val/ and test/
      maps            aerial photo (x), map (y): in train/ and val/, which is taken as test
      pairs           your own: SOURCE/[train|valid|test/]{x,y}/NAME.png; with
                      --side-by-side SOURCE/[train|valid|test/]NAME.png; or a table
                      SOURCE.csv with columns x,y[,split][,label] and factors
                      x_…, y_…, shared_…
      sketchy         Sketchy Extended as features: sketches (x), photos (y), unseen test classes
      classes         your own: SOURCE/[train|test/]{x,y}/CLASS, or features (.npy, .npz)

    \b
    Examples:
      iiae prepare digits-cdcb
      iiae prepare mnist-cdcb path/to/mnist -o data/mnist-cdcb.h5
      iiae prepare maps downloads/maps
      iiae prepare pairs my-pairs/ --image-size 64 -o data/mine.h5
      iiae prepare pairs my-pairs.csv -o data/mine.h5
      iiae prepare digits-edge --pictures digits/ --json | jq .splits
      iiae prepare sketchy path/to/Sketchy --split sempcyc-25 --backbone-weights vgg16-397923af.pth
      iiae prepare classes my-classes/ --unseen-classes 10 --backbone resnet18 -o data/mine.h5
      iiae prepare classes my-classes/ --backbone resnet18 --shard auto \\
          -o 'mine-{shard}.h5' --resume     in a job array
      iiae prepare mine-*-of-4.h5 --merge -o data/mine.h5
    """
    given = dict(locals())

    from iiae_cli.cli.prepare_run import Call
    from iiae_cli.data.blocks import Part
    from iiae_cli.data.sources.plan import PrepareOptions

    if valid_fraction + test_fraction >= 1:
        raise IiaeError(
            "--valid-fraction and --test-fraction leave nothing to train on",
            "let them sum to less than 1",
        )
    part = None if shard is None else Part(*shard_of(shard))
    if part is not None or output is not None:
        pattern = output or data_folder() / f"{name}-{{shard}}.h5"
        index = None if part is None else (part.index, part.count)
        given["output"] = shard_output(pattern, shard, index)
    named = sources or []
    if len(named) > 1 and not merge:
        raise IiaeError(
            f"{len(named)} sources are named: {named[0]}, {named[1]}…",
            "name one; --merge takes several shards",
        )
    given |= {
        "source": source_option if merge or not named else named[0],
        "fractions": (valid_fraction, test_fraction),
        "class_split": split,
    }
    options = PrepareOptions(**{one.name: given[one.name] for one in fields(PrepareOptions)})
    if merge and (
        part is not None
        or options != PrepareOptions(download=download, workers=workers, device=device)
    ):
        what = "--shard does" if part is not None else "an option of how data are prepared does"
        raise IiaeError(
            f"{what} not apply to --merge", "leave it out: the shards say how they were made"
        )
    with stop_on_signals() as stop:
        call = Call(given["output"], pictures, resume, overwrite, stop)
        if merge:
            result = call.merge([name, *map(str, named)], download)
        elif part is not None:
            result = call.part(name, options, part, output)
        else:
            result = call.whole(name, options)
        finish(result, as_json, result.skipped)
