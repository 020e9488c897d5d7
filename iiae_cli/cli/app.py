"""The command line: signatures, help, examples, and the one place where an error becomes two lines and an exit code.

Nothing here imports torch: each command's module is imported when it runs, so that `--help` stays fast.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from iiae_cli import __version__
from iiae_cli.cli.options import (
    BackendName,
    DeviceOption,
    DomainName,
    DtypeName,
    JsonFlag,
    LatentName,
    LatentsName,
    LpipsName,
    MetricName,
    NulFlag,
    OverwriteFlag,
    PrecisionName,
    RunOption,
    SplitName,
    SplitOption,
    TaskName,
    WorkersOption,
    seconds_of,
    shard_of,
    shard_output,
)
from iiae_cli.common import console
from iiae_cli.common.errors import (
    EXIT_CTRL_C,
    EXIT_SOME_SKIPPED,
    EXIT_USER_ERROR,
    IiaeError,
    Interrupted,
)

# typer may vendor click, so its exception classes are reached through typer's own.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# torch's CPU allocator, and what it says of sizes that no allocator takes.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")

app = typer.Typer(
    name="iiae",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class Result(Protocol):
    """What every command returns."""

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""

    def show(self) -> None:
        """Print for people and pipes."""


def _version(value: bool) -> None:
    if value:
        console.print_line(f"iiae {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Say more on stderr: train's values and sources."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Say only warnings and errors on stderr.")
    ] = False,
) -> None:
    """Cross-domain disentanglement with the Interaction Information Auto-Encoder (IIAE).

    Two domains, x and y, hold pairs. A shared latent learns what both hold, an exclusive latent of each what only it
    holds. Results go to stdout, everything else to stderr.

    \b
    Start here:
      iiae train --preset digits-cdcb          a minute on a CPU, nothing to download
      iiae evaluate                            Recall@1 beside a training-free baseline
      iiae encode imgs/ --domain y -o z.h5
      iiae retrieve query.png --k 5
      iiae translate query.png --from x --grid grid.png
    """
    console.set_verbosity(1 if verbose else -1 if quiet else 0)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set.")],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SOURCE", help="Folder or file that it comes from."),
    ] = None,
    source_option: Annotated[
        Path | None, typer.Option("--source", help="The same as SOURCE.")
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
    valid_fraction: Annotated[
        float, typer.Option(min=0, max=0.9, help="pairs without splits: part for valid.")
    ] = 0.1,
    test_fraction: Annotated[
        float, typer.Option(min=0, max=0.9, help="pairs without splits: part for test.")
    ] = 0.1,
    side_by_side: Annotated[
        bool,
        typer.Option(
            "--side-by-side", help="pairs: each picture holds x on its left, y on its right."
        ),
    ] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Also write every picture to this folder.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="sketchy: test classes, sempcyc-25, eccv18-21 or sake-25 [sempcyc-25]."),
    ] = None,
    unseen_classes: Annotated[
        str | None,
        typer.Option(metavar="N|FILE", help="Test classes: how many by seed, or one a line."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="torchvision network for features [sketchy: vgg16]."),
    ] = None,
    backbone_weights: Annotated[
        str | None,
        typer.Option(metavar="FILE|DIR|none", help="Its weights [published, from torch's cache]."),
    ] = None,
    fine_tune_epochs: Annotated[
        int | None, typer.Option(min=0, help="On the training classes [sketchy: 10, classes: 0].")
    ] = None,
    invert_sketches: Annotated[
        bool | None,
        typer.Option("--invert-sketches/--no-invert-sketches", help="White on black [no]."),
    ] = None,
    normalise: Annotated[
        bool | None,
        typer.Option("--normalise/--no-normalise", help="By ImageNet's mean and deviation [yes]."),
    ] = None,
    save_backbone: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the fine-tuned networks, for --backbone-weights."),
    ] = None,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak", help="Take a backbone that saw test classes; the file says so."
        ),
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Pictures at once through the backbone.")
    ] = 64,
    device: DeviceOption = "auto",
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto", help="Only part I, from 0, of N; auto: this task of a job array."
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join shards, named in place of NAME and SOURCE.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue where the output stands, or start it; nothing where complete.",
        ),
    ] = False,
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
      cars            frontal view (x), the same car turned (y): car_###_mesh.mat of the visual-analogy data
      facades         photo (x), label map (y): pix2pix's side-by-side pictures in train/, val/ and test/
      maps            aerial photo (x), map (y): the same in train/ and val/, which is taken as test
      pairs           your own: SOURCE/{train,valid,test}/{x,y}/NAME.png, or SOURCE/{x,y}/NAME.png; with
                      --side-by-side SOURCE/{train,valid,test}/NAME.png, or SOURCE/NAME.png; or a table
                      SOURCE.csv with the columns x,y[,split][,label] and factors x_…, y_…, shared_…
      sketchy         Sketchy Extended as features: sketches (x), photos (y), unseen test classes
      classes         your own: SOURCE/{train,test}/{x,y}/CLASS, SOURCE/{x,y}/CLASS, or features (.npy, .npz)

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
      iiae prepare classes my-classes/ --backbone resnet18 --shard auto -o 'mine-{shard}.h5' --resume     in a job array
      iiae prepare mine-*-of-4.h5 --merge -o data/mine.h5
    """
    from iiae_cli.cli import prepare_run as command
    from iiae_cli.common.paths import data_folder
    from iiae_cli.data.feature_options import FeatureOptions
    from iiae_cli.data.parts import Part
    from iiae_cli.data.sources.registry import PrepareOptions
    from iiae_cli.training.signals import stop_on_signals

    if valid_fraction + test_fraction >= 1:
        raise IiaeError(
            "--valid-fraction and --test-fraction leave nothing to train on",
            "let them sum to less than 1",
        )
    part = None if shard is None else shard_of(shard)
    asked = output
    if output is not None or part is not None:
        output = shard_output(output or data_folder() / f"{name}-{{shard}}.h5", shard, part)
    named = sources or []
    if len(named) > 1 and not merge:
        raise IiaeError(
            f"{len(named)} sources are named: {named[0]}, {named[1]}…",
            "name one; --merge takes several shards",
        )
    options = PrepareOptions(
        source=source_option if merge or not named else named[0],
        image_size=image_size,
        limit=limit,
        seed=seed,
        download=download,
        fractions=(valid_fraction, test_fraction),
        workers=workers,
        side_by_side=side_by_side,
        features=FeatureOptions(
            class_split=split,
            unseen_classes=unseen_classes,
            backbone=backbone,
            backbone_weights=backbone_weights,
            fine_tune_epochs=fine_tune_epochs,
            invert_sketches=invert_sketches,
            normalise=normalise,
            allow_leak=allow_leak,
            save_backbone=save_backbone,
            device=device,
            batch_size=batch_size,
        ),
    )
    machine = PrepareOptions(
        download=download, workers=workers, features=FeatureOptions(device=device)
    )
    if merge and (part is not None or options != machine):
        what = "--shard does" if part is not None else "an option of how data are prepared does"
        raise IiaeError(
            f"{what} not apply to --merge", "leave it out: the shards say how they were made"
        )
    with stop_on_signals() as stop:
        call: Any
        if not merge and part is None:
            call = partial(command.run, name, options)
        else:
            from iiae_cli.cli import prepare_shards

            if part is not None:
                call = partial(prepare_shards.run_part, name, options, Part(*part), asked=asked)
            else:
                call = partial(
                    prepare_shards.run_merge, [name, *map(str, named)], download=download
                )
        result = call(
            output=output,
            overwrite=overwrite,
            resume=resume,
            pictures=pictures,
            interrupted=lambda: stop.exit_code,
        )
        _finish(result, as_json, result.skipped)


@app.command()
def train(
    preset: Annotated[str, typer.Option("--preset", help="Name of a preset, or a YAML file.")],
    data: Annotated[
        Path | None, typer.Option(help="Data file [IIAE_DATA or data, /SET.h5].")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", "--run-dir", help="Run directory [runs/PRESET-seedN]; torchrun garbles --run."
        ),
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option(help="YAML file on top of the preset; repeatable.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any value, dotted; repeatable."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training pairs.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Save and stop after e.g. 2h, 90m, 1:30:00 (exit 75).")
    ] = None,
    preempt_signal: Annotated[
        str,
        typer.Option(metavar="NAME", help="Save and stop at this signal, as at TERM (exit 75)."),
    ] = "USR2",
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs per step.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights, order, noise and dropout.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Arithmetic of the networks [auto].")
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile [auto].")
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic", help="Deterministic algorithms on GPUs."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the run stands, or start it.")
    ] = False,
    overwrite: OverwriteFlag = False,
    stage: Annotated[
        bool | None,
        typer.Option("--stage/--no-stage", help="Read a copy of the data in $TMPDIR [IIAE_STAGE]."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show every value and its source; stop.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a model and leave a run directory.

    \b
    Presets:
      digits-cdcb     embedded digits at 32x32, about a minute on a CPU
      digits-edge     the same with outlines as y: raw pixels do not solve it
      mnist-cdcb-32   MNIST-CDCB at 32x32, minutes on a CPU
      mnist-cdcb      the paper's 256x256 networks and hyper-parameters; wants a GPU
      facades         likewise
      maps            likewise
      cars            likewise, with a vector as shared latent
      sketchy         the paper's networks on features, one pair of every class per step
      sketchy-tuned   beyond the paper: standardised features, linear paths, 800 steps
      features        your own features paired by class: standardised, linear paths; beyond the paper
      pairs           your own pairs of pictures at 32x32, the paper's objective
      fashion-edges   edge map and garment, the paper's objective
      pairs-plus, fashion-edges-plus         with a contrastive term; pairs-plus with linear paths too; beyond the paper
      digits-cdcb-plus, mnist-cdcb-32-plus   means freed of what they should not tell; beyond the paper

    Values are merged: preset < --config < IIAE_* environment < options < --set.
    A run that was stopped (exit 75, or 130 after Ctrl-C) is saved; the same command with --resume continues it and ends
    in the same weights as one that was never stopped.

    \b
    Examples:
      iiae train --preset digits-cdcb
      iiae train --preset mnist-cdcb-32 --data data/mnist-cdcb.h5 --seed 1
      iiae train --preset digits-edge --set objective.lambda=50 --set optimizer.lr=1e-3
      iiae train --preset sketchy --set objective.kind=ii-mi
      iiae train --preset digits-cdcb --time-limit 2h --resume
      iiae train --preset digits-cdcb --print-config
    """
    from iiae_cli.training.signals import stop_on_signals

    if epochs is not None and steps is not None:
        raise IiaeError("--epochs and --steps exclude each other", "give one of them")
    limit = None if time_limit is None else seconds_of(time_limit)
    given = {
        "training.epochs": epochs,
        "training.steps": steps,
        "training.batch_size": batch_size,
        "training.seed": seed,
        "training.device": device,
        "training.precision": precision.value if precision is not None else None,
        "training.compile": compile_,
        "training.deterministic": deterministic,
    }
    with stop_on_signals(limit, preempt=preempt_signal) as stop:
        with stop.cuttable(on_time=False):
            from iiae_cli.cli import train_run as command  # imports torch, for seconds
            from iiae_cli.data.staging import Staging

        options = command.TrainOptions(
            preset=preset,
            data=data,
            run=run,
            config_files=config or [],
            options={key: value for key, value in given.items() if value is not None},
            assignments=assignments or [],
            resume=resume,
            overwrite=overwrite,
            staging=Staging.from_option(stage, os.environ.get("IIAE_STAGE", "")),
        )
        if print_config:
            command.show_config(command.resolve_config(options), as_json=as_json)
            return
        with options.staging:
            result = command.run(options, stop)
    if result is not None:
        _finish(result, as_json)


@app.command()
def encode(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Pictures, folders, -, .h5 or .npy.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The latent cache to write.")],
    domain: Annotated[DomainName | None, typer.Option(help="Domain of the inputs.")] = None,
    run: RunOption = None,
    latents: Annotated[LatentsName, typer.Option(help="Which latents to keep.")] = LatentsName.both,
    logvar: Annotated[
        bool, typer.Option("--logvar", help="Keep log-variances beside the means.")
    ] = False,
    split: SplitOption = SplitName.test,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows at once [by their shape].")
    ] = None,
    workers: WorkersOption = 2,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Number format of the cache [float32; --merge: the caches' own]."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto", help="Only part I, from 0, of N; auto: this task of a job array."
        ),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the caches of shards.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue where the output stands, or start it; nothing where complete.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    nul: NulFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Encode pictures into a latent cache (HDF5): shared and exclusive means, ids, labels.

    \b
    Examples:
      iiae encode imgs/ --domain y -o z.h5
      iiae encode data/digits-cdcb.h5 --split test --domain x -o x.h5
      find photos -name '*.jpg' | iiae encode - --domain y -o z.h5
      iiae encode imgs/ --domain y --shard 0/4 -o 'z-{shard}.h5'        writes z-0-of-4.h5
      iiae encode imgs/ --domain y --shard auto -o 'z-{shard}.h5' --resume        in a SLURM job array
      iiae encode z-*-of-4.h5 --merge -o z.h5
    """
    from iiae_cli.training.signals import stop_on_signals

    part = None if shard is None else shard_of(shard)
    output = shard_output(output, shard, part)
    with stop_on_signals() as stop:
        with stop.cuttable():
            from iiae_cli.cli import encode_run as command  # imports torch, for seconds

        options = command.EncodeOptions(
            output=output,
            domain=None if domain is None else domain.value,
            run=run,
            latents=latents.value,
            logvar=logvar,
            split=split.value,
            batch_size=batch_size,
            workers=workers,
            dtype=None if dtype is None else dtype.value,
            shard=part,
            device=device,
            merge=merge,
            nul=nul,
            overwrite=overwrite,
            resume=resume,
        )
        result = command.run(inputs, options, lambda: stop.exit_code)
        _finish(result, as_json, result.skipped)


@app.command()
def retrieve(
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY...", help="Pictures, folders, -, .h5 or .npy.")
    ],
    index: Annotated[
        Path | None,
        typer.Option(
            help="Gallery: a latent cache [IIAE_INDEX, the only one here, else RUN/gallery.h5]."
        ),
    ] = None,
    run: RunOption = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbours per query.")] = 5,
    domain: Annotated[
        DomainName | None, typer.Option(help="The queries' [the other than the gallery's].")
    ] = None,
    metric: Annotated[MetricName | None, typer.Option(help="Distance [the preset's].")] = None,
    latents: Annotated[
        LatentName, typer.Option(help="Which latents are compared.")
    ] = LatentName.shared,
    backend: Annotated[
        BackendName, typer.Option(help="Who searches; neighbours are the same [auto: by size].")
    ] = BackendName.auto,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Many queries, large gallery: a faiss index beside it, recall measured.",
        ),
    ] = False,
    montage: Annotated[
        Path | None, typer.Option(help="Write a picture of queries and neighbours.")
    ] = None,
    split: SplitOption = SplitName.test,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    nul: NulFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Find the gallery's nearest pictures. In a pipe: query, rank, id, distance[, label], tab-separated.

    \b
    Examples:
      iiae retrieve query.png --k 5
      iiae retrieve query.png --index z.h5 --montage hits.png
      find queries -name '*.png' | iiae retrieve - --index z.h5 --k 10 | cut -f1,3 > hits.tsv
      iiae retrieve x.h5 --index z.h5 --json | jq -r '.results[].neighbours[0].id'
      iiae retrieve x.h5 --index million.h5 --approximate > hits.tsv
    """
    from iiae_cli.cli import retrieve_run as command

    options = command.RetrieveOptions(
        index=index,
        run=run,
        k=k,
        domain=None if domain is None else domain.value,
        metric=None if metric is None else metric.value,
        latents=latents.value,
        backend=backend.value,
        approximate=approximate,
        montage=montage,
        split=split.value,
        workers=workers,
        device=device,
        nul=nul,
        overwrite=overwrite,
    )
    result = command.run(queries, options)
    _finish(result, as_json, result.skipped)


@app.command()
def translate(
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
        Path | None, typer.Option("-o", "--output", help="Folder for single pictures.")
    ] = None,
    grid: Annotated[Path | None, typer.Option(help="Write one labelled picture of all.")] = None,
    split: SplitOption = SplitName.test,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many inputs.")] = None,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    nul: NulFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Translate pictures to the other domain, or make visual analogies within one.

    The shared latent comes from the input; the exclusive one is sampled, or taken from --reference pictures of the
    output's domain, or from each input's partner. Asked for together, they stand side by side.

    \b
    Examples:
      iiae translate query.png --from x --grid grid.png
      iiae translate imgs/ --from x --reference red.png -o out/
      iiae translate query.png --from y --to y --reference red.png --grid analogy.png
      iiae translate query.png --from x --reference red.png --reference blue.png --interpolate 7 --grid line.png
      iiae translate data/digits-cdcb.h5 --from x --limit 8 --samples 3 --guided --grid table1.png
    """
    from iiae_cli.cli import translate_run as command

    options = command.TranslateOptions(
        source=source.value,
        target=None if target is None else target.value,
        run=run,
        samples=samples,
        guided=guided,
        references=tuple(reference or ()),
        interpolate=interpolate,
        seed=seed,
        output=output,
        grid=grid,
        split=split.value,
        limit=limit,
        workers=workers,
        device=device,
        nul=nul,
        overwrite=overwrite,
    )
    result = command.run(inputs, options)
    _finish(result, as_json, result.skipped)


@app.command()
def evaluate(
    run: RunOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Data file [the one that the run was trained on].")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Split to measure on.")] = SplitName.test,
    task: Annotated[
        TaskName | None,
        typer.Option(
            help="What to measure [zero-shot where paired by class, else retrieval; all with --report]."
        ),
    ] = None,
    metric: Annotated[
        MetricName | None, typer.Option(help="Distance between latents [the preset's].")
    ] = None,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak", help="Measure although the backbone has seen test classes, and say so."
        ),
    ] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Exit 2 where a figure is worse (an error: above); repeatable.",
        ),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Exit 2 where a figure is above, whatever it is; repeatable."
        ),
    ] = None,
    probe_rows: Annotated[
        int, typer.Option(min=20, help="disentanglement: rows that probes see at most.")
    ] = 3000,
    shared_factor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="disentanglement: both domains hold it; repeatable."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="translation: sampled outputs per input.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of samples and probes.")] = 0,
    lpips: Annotated[
        LpipsName, typer.Option(help="translation: LPIPS by these networks.")
    ] = LpipsName.both,
    lpips_weights: Annotated[
        list[Path] | None,
        typer.Option(help="AlexNet's or VGG16's ImageNet weights [torch's cache]; repeatable."),
    ] = None,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge",
            help="translation: let networks trained on real pictures read class and factors.",
        ),
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Show the paper's rows of this data set beside.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write DIR/index.html: figures, plots, pictures."),
    ] = None,
    overwrite: OverwriteFlag = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 256,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Measure a run: retrieval by shared and exclusive latents beside a training-free baseline.

    Rows that are paired by class are measured zero-shot (mAP, precision at K). Translation has L1, SSIM and, where
    AlexNet's or VGG16's ImageNet weights are at hand, LPIPS. Disentanglement: which known factors can be read from each
    latent's means and samples, whether swapped latents keep what they should, and the bounds that training works on.

    \b
    Examples:
      iiae evaluate
      iiae evaluate --task disentanglement
      iiae evaluate --task disentanglement --fail-over disentanglement.latents.shared_x.leakage_mean=0.1
      iiae evaluate --run runs/sketchy-seed0 --paper
      iiae evaluate --report report && xdg-open report/index.html
      iiae evaluate --task translation --samples 10 --lpips-weights alexnet-owt-7be5be79.pth
      iiae evaluate --task translation --judge
      iiae evaluate --run runs/digits-cdcb-seed0 --task all --json | jq .retrieval.shared
      iiae evaluate --fail-under retrieval.shared.x_to_y.recall@1=0.99
    """
    from iiae_cli.cli import evaluate_run as command

    options = command.EvaluateOptions(
        run=run,
        data=data,
        split=split.value,
        task=None if task is None else task.value,
        metric=None if metric is None else metric.value,
        allow_leak=allow_leak,
        samples=samples,
        seed=seed,
        lpips=lpips.value,
        lpips_weights=tuple(lpips_weights or ()),
        judge=judge,
        paper=paper,
        report=report,
        overwrite=overwrite,
        fail_under=tuple(fail_under or ()),
        fail_over=tuple(fail_over or ()),
        probe_rows=probe_rows,
        shared_factors=tuple(shared_factor or ()),
        batch_size=batch_size,
        device=device,
    )
    result = command.run(options)
    _finish(result, as_json)
    if result.failures:
        raise IiaeError("; ".join(result.failures), "train longer, or lower the gate")


def _finish(result: Result, as_json: bool, skipped: list[str] | None = None) -> None:
    """Print a result; exit 3 where inputs were skipped."""
    try:
        if as_json:
            console.print_json(result.to_json())
        else:
            result.show()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if skipped:
        console.warn(f"{len(skipped)} inputs were skipped")
        raise typer.Exit(EXIT_SOME_SKIPPED)


def _guarded(call: Callable[[], int]) -> int:
    """The error boundary: an exit code for everything a user can cause; a bug passes with its traceback (exit 1)."""
    try:
        return call()
    except IiaeError as error:
        console.fail(error.message, error.hint)
        return error.exit_code
    except Interrupted as stopped:
        if stopped.where:
            console.warn(f"interrupted: {stopped.where}")
        return stopped.exit_code
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "iiae"
        console.fail(error.format_message(), f"{path} --help shows options and examples")  # type: ignore[attr-defined]
        return EXIT_USER_ERROR
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        console.fail(
            f"there is not enough memory: {error or 'Python could get no more'}",
            "take a smaller --batch-size, smaller pictures or a smaller model, or another --device",
        )
        return EXIT_USER_ERROR
    except (KeyboardInterrupt, typer.Abort):
        console.warn("interrupted")
        return EXIT_CTRL_C


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether an error says so: torch's are of several types, and torch may not be imported here."""
    text = str(error)
    names = {one.__name__ for one in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(
        one in text for one in _NO_MEMORY
    )


def _calm_threads() -> None:
    """Keep waiting OpenMP threads from spinning long; must run before torch is imported.

    By default they spin for milliseconds at every barrier. Where another process wants a core (a shared node, a laptop)
    the spinning takes the very time that the last thread needs: a training step of the 32×32 models took 2.3 s instead
    of 0.05 s on two cores. A short spin costs about a tenth on an idle machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def main() -> None:
    """Entry point of the console script."""
    _calm_threads()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names go out as they came in
    arguments = sys.argv[1:] or ["--help"]

    def call() -> int:
        code = app(arguments, prog_name="iiae", standalone_mode=False)
        return code if isinstance(code, int) else 0

    sys.exit(_guarded(call))
