"""`iiae evaluate`: the paper's measurements on a run's kept weights, the training-free baseline beside them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iiae_cli.builders import build_objective, choose_device
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing
from iiae_cli.common.paths import data_file, run_folder
from iiae_cli.data.datafile import DataFile, Split
from iiae_cli.data.leaks import Seen, class_list_hash, refuse_leak
from iiae_cli.evaluation.disentanglement import (
    PROBE_ROWS,
    ProbeOptions,
    measure_disentanglement,
)
from iiae_cli.evaluation.gates import failed_gates, parse_gates
from iiae_cli.evaluation.judge import JUDGE_STEPS, judged_translations, train_judge
from iiae_cli.evaluation.lpips import LpipsNet, lpips_measures
from iiae_cli.evaluation.paper import PaperRow, paper_rows
from iiae_cli.evaluation.protocols import (
    EncodedPairs,
    encode_pairs,
    paired_retrieval,
    zero_shot,
)
from iiae_cli.evaluation.tables import disentanglement_tables, figure_tables, paper_table
from iiae_cli.evaluation.translation import (
    FEATURE_MEASURES,
    PICTURE_MEASURES,
    translation_figures,
)
from iiae_cli.inference.retrieval import Metric
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import DOMAINS
from iiae_cli.report.report import Measured, write_report
from iiae_cli.runs.directory import RunDir, load_model
from iiae_cli.runs.weights import LoadedModel

_LPIPS_NETS: dict[str, tuple[LpipsNet, ...]] = {
    "alex": ("alex",),
    "vgg": ("vgg",),
    "both": ("alex", "vgg"),
    "none": (),
}
Task = Literal["retrieval", "zero-shot", "translation", "disentanglement", "all"]


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line says; see `iiae evaluate --help`."""

    run: Path | None = None
    data: Path | None = None
    split: str = "test"
    task: Task | None = None
    metric: Metric | None = None
    allow_leak: bool = False
    samples: int = 3
    seed: int = 0
    lpips: Literal["alex", "vgg", "both", "none"] = "both"
    lpips_weights: tuple[Path, ...] = ()
    judge: bool = False
    paper: bool = False
    report: Path | None = None
    overwrite: bool = False
    fail_under: tuple[str, ...] = ()
    fail_over: tuple[str, ...] = ()
    probe_rows: int = PROBE_ROWS
    shared_factors: tuple[str, ...] = ()
    batch_size: int = 256
    device: str = "auto"


@dataclass
class EvaluateResult:
    """The figures.

    Attributes:
        figures: by task, as `--json` prints them, fractions in [0, 1]; translation errors on the [−1, 1] scale.
        protocol: what was measured on what.
        failures: a line for every `--fail-under` and `--fail-over` that was not kept.
        paper: the paper's rows beside this run's figures, where asked for.
        report: the page written, if any.
    """

    figures: dict[str, Any]
    protocol: dict[str, Any]
    failures: list[str] = field(default_factory=list)
    paper: list[PaperRow] | None = None
    report: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        paper = {} if self.paper is None else {"paper": [row.to_json() for row in self.paper]}
        return {
            "schema": "iiae.evaluate/1",
            **self.figures,
            **paper,
            **({} if self.report is None else {"report": str(self.report)}),
            "protocol": self.protocol,
            "failures": self.failures,
        }

    def show(self) -> None:
        """Print for people and pipes."""
        tables = figure_tables(self.figures) + disentanglement_tables(
            self.figures.get("disentanglement", {})
        )
        tables += [paper_table(self.paper)] if self.paper else []
        for table in tables:
            console.print_table(table.headers, table.rows, title=table.title)
        if self.report is not None:
            console.say(f"report {self.report}")


def run(options: EvaluateOptions) -> EvaluateResult:
    """Measure a run.

    Raises:
        IiaeError: no run, no data, data of another shape, an empty split, an unknown `--fail-under` key.
    """
    gates = parse_gates(options.fail_under, options.fail_over)
    if options.report is not None:
        refuse_existing(options.report, options.overwrite)
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(
        f"model {loaded.fingerprint} of {folder} ({chosen}), kept at step {loaded.details.get('step')}"
    )
    path = _data_path(options.data, loaded)
    file = DataFile(path)
    if (file.info.shape_x[-1:], file.info.shape_y[-1:]) != (
        loaded.info.shape_x[-1:],
        loaded.info.shape_y[-1:],
    ):
        raise IiaeError(
            f"{path} holds {file.info.shape_x} and {file.info.shape_y}, the model was trained on "
            f"{loaded.info.shape_x} and {loaded.info.shape_y}",
            "evaluate on data of the shape that the run was trained on",
        )
    tasks = _tasks(options.task or ("all" if options.report is not None else None), file, loaded)
    split = _rows_of(file, options.split, tasks)
    if options.judge:
        _check_judge(loaded, file, split, tasks)
    if "zero-shot" in tasks and options.metric == "euclidean":
        raise IiaeError(
            "zero-shot retrieval compares by cosine, not --metric euclidean", "leave --metric out"
        )
    metric: Metric = "cosine" if "zero-shot" in tasks else options.metric or loaded.metric
    protocol = {
        "run": str(folder),
        "fingerprint": loaded.fingerprint,
        "step": loaded.details.get("step"),
        "objective": loaded.config.objective.kind,
        "data": str(path),
        "data_set": file.info.name,
        "split": options.split,
        "metric": metric,
    }
    protocol |= (
        _class_protocol(file, split, loaded, options)
        if "zero-shot" in tasks
        else _pair_protocol(split, loaded)
    )
    trained = TrainedModel.of(loaded)
    pairs = encode_pairs(trained, split, batch_size=options.batch_size)
    figures: dict[str, Any] = {}
    for task in tasks:
        if task == "retrieval":
            figures["retrieval"] = paired_retrieval(pairs, split, metric)
        elif task == "zero-shot":
            figures["zero_shot"] = zero_shot(pairs, file.split("train"), split)
        elif task == "translation":
            figures["translation"] = _translation(trained, pairs, split, options)
            protocol |= {"samples": options.samples, "samples_seed": options.seed}
            if options.judge:
                figures["judged"] = _judged(trained, file, pairs, split, options)
                protocol |= {"judge_steps": JUDGE_STEPS, "judge_seed": options.seed}
        else:
            found, how = _disentanglement(loaded, pairs, file, split, options, metric)
            figures["disentanglement"] = found
            protocol |= how
    rows = _paper_rows(options, loaded, file, protocol, figures, metric)
    result = EvaluateResult(
        figures, protocol, failed_gates(gates, figures), rows if options.paper else None
    )
    if options.report is not None:
        measured = Measured(
            run=RunDir(folder),
            loaded=loaded,
            split=split,
            by_class=file.info.by_class,
            pairs=pairs,
            metric=metric,
            figures=figures,
            protocol=protocol,
            paper=rows,
            command=["iiae", *sys.argv[1:]],
            samples=options.samples,
            seed=options.seed,
        )
        result.report = write_report(measured, options.report)
    return result


def _paper_rows(
    options: EvaluateOptions,
    loaded: LoadedModel,
    file: DataFile,
    protocol: dict[str, Any],
    figures: dict[str, Any],
    metric: Metric,
) -> list[PaperRow]:
    """The paper's rows of this data set; says so where they were asked for and there are none."""
    rows = paper_rows(
        file.info.name,
        protocol.get("class_split"),
        figures,
        split=options.split,
        picture_size=loaded.size,
        metric=metric,
        objective=loaded.config.objective.kind,
    )
    if options.paper and not rows:
        console.warn(f"the paper has no row for data set '{file.info.name}'")
    return rows


def _tasks(asked: Task | None, file: DataFile, loaded: LoadedModel) -> list[Task]:
    """What to measure, one by one; a dual encoder's retrieval is all that it has.

    Raises:
        IiaeError: a task for partners on rows that have none, or for latents or decoders on a dual encoder.
    """
    if not loaded.model.generative and asked is not None:
        if asked in ("translation", "disentanglement"):
            raise IiaeError(
                f"a model of objective {loaded.config.objective.kind} has neither decoders nor exclusive latents",
                f"train one of objective.kind=elbo+ii-mi to measure {asked}",
            )
        asked = None if asked == "all" else asked
    if asked is None:
        return ["zero-shot" if file.info.by_class else "retrieval"]
    if asked == "all":
        return (
            ["zero-shot", "disentanglement"]
            if file.info.by_class
            else ["retrieval", "translation", "disentanglement"]
        )
    if asked in ("retrieval", "translation") and file.info.by_class:
        raise IiaeError(
            f"{file.path} is paired by class: no row has a partner of its own",
            "measure retrieval by class: iiae evaluate --task zero-shot",
        )
    return [asked]


def _translation(
    trained: TrainedModel, pairs: EncodedPairs, split: Split, options: EvaluateOptions
) -> dict[str, Any]:
    """L1, and of pictures SSIM and LPIPS as far as its weights are at hand."""
    measures = dict(FEATURE_MEASURES)
    if trained.size is not None:
        nets = _LPIPS_NETS[options.lpips]
        perceptual, missing = lpips_measures(options.lpips_weights, trained.device, nets)
        for reason in missing:
            console.warn(f"{reason.message}; {reason.hint}")
        measures = {**PICTURE_MEASURES, **perceptual}
    return translation_figures(
        trained,
        pairs,
        split,
        measures=measures,
        samples=options.samples,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _disentanglement(
    loaded: LoadedModel,
    pairs: EncodedPairs,
    file: DataFile,
    split: Split,
    options: EvaluateOptions,
    metric: Metric,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Probes, swaps and bounds; warns of what makes them less than they look."""
    by_class = file.info.by_class
    train = None if options.split == "train" else partial(file.split, "train")
    figures, protocol = measure_disentanglement(
        TrainedModel.of(loaded),
        build_objective(loaded.config),
        pairs,
        split,
        train,
        ProbeOptions(
            options.probe_rows,
            options.shared_factors,
            options.seed,
            by_class,
            options.batch_size,
        ),
        metric,
    )
    for line in figures["warnings"]:
        console.warn(line)
    if not figures["factors"] and not any(figures["probes"].values()):
        console.warn(
            f"{file.path} holds no factors to probe: see 'Bring your own factors' in docs/disentanglement.md"
        )
    return figures, protocol


def _check_judge(loaded: LoadedModel, file: DataFile, split: Split, tasks: list[Task]) -> None:
    """Refuse --judge where there is nothing for it to read."""
    if "translation" not in tasks:
        raise IiaeError("--judge reads translations, and none are made", "add --task translation")
    if loaded.size is None:
        raise IiaeError(
            "--judge reads pictures, and this model translates features", "leave --judge out"
        )
    if split.x.labels is None or split.y.labels is None:
        raise IiaeError(f"{file.path} has no labels to train a judge by", "leave --judge out")


def _judged(
    trained: TrainedModel,
    file: DataFile,
    pairs: EncodedPairs,
    split: Split,
    options: EvaluateOptions,
) -> dict[str, Any]:
    """Class and factors of translations as read by networks that learned them from real pictures."""
    if trained.size is None:
        raise AssertionError("checked before")
    train = file.split("train")
    judges = {}
    for domain in DOMAINS:
        with console.progress(f"judge of {domain}", JUDGE_STEPS) as bar:
            judges[domain] = train_judge(
                train,
                domain,
                size=trained.size,
                seed=options.seed,
                device=trained.device,
                progress=bar.update,
            )
    return judged_translations(
        trained,
        judges,
        pairs,
        split,
        samples=options.samples,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _data_path(option: Path | None, loaded: LoadedModel) -> Path:
    """`--data`, else the file that the run was trained on, else DATA/SET.h5."""
    trained_on = loaded.details.get("data")
    if option is None and trained_on and Path(trained_on).exists():
        return Path(trained_on)
    return data_file(option, loaded.config.data.set or loaded.info.name)


def _rows_of(file: DataFile, name: str, tasks: list[Task]) -> Split:
    """What is measured on: rows with labels, or aligned pairs.

    Raises:
        IiaeError: the split is empty, has no labels, or is not paired.
    """
    split = file.split(name)
    if split.pair_count == 0 or not len(split.y):
        have = [f"{one} ({count})" for one, count in file.info.counts.items() if count]
        raise IiaeError(
            f"{file.path} has nothing in split '{name}'",
            f"choose another --split: {', '.join(have)}",
        )
    if "zero-shot" in tasks:
        if split.x.labels is None or split.y.labels is None:
            raise IiaeError(
                f"split '{name}' of {file.path} has no labels",
                "prepare it by class: iiae prepare classes SOURCE",
            )
        return split
    if file.info.by_class:
        return split
    if split.pairs is not None:
        if "retrieval" in tasks:
            console.warn(
                "pictures recur in several pairs: recall counts one of several equal partners as the true one"
            )
        return split.take_pairs(np.arange(split.pair_count))
    if len(split.x) != len(split.y):
        raise IiaeError(
            f"split '{name}' of {file.path} is not paired", "paired retrieval needs partners"
        )
    return split


def _pair_protocol(split: Split, loaded: LoadedModel) -> dict[str, Any]:
    pictures = loaded.size is not None
    return {
        "pairs": len(split.x),
        "relevance": "the true pair only",
        "l1_scale": "pixels in [-1, 1]" if pictures else "features",
        "baseline": "z-scored grey pixels at 32x32, correlation" if pictures else "raw features",
    }


def _class_protocol(
    file: DataFile, split: Split, loaded: LoadedModel, options: EvaluateOptions
) -> dict[str, Any]:
    """What a reader must know before comparing a zero-shot figure; says on stderr what makes it none.

    Raises:
        IiaeError: the features' backbone has seen a class of this split, and that was not allowed.
    """
    classes = sorted({*(split.x.labels or [])} | {*(split.y.labels or [])})
    attributes = file.info.attributes
    backbone = Seen.of_data_file(attributes)
    refuse_leak(backbone, classes, f"the backbone of {file.path}", options.allow_leak)
    leak = backbone.leak(classes)
    if leak:
        console.warn(
            f"not zero-shot: the backbone has seen {len(leak)} of {len(classes)} classes: {', '.join(leak)}"
        )
    trained = loaded.details.get("train_classes")
    seen = None if trained is None else sorted({*trained} & {*classes})
    if seen:
        console.warn(
            f"not zero-shot: the model was trained on {len(seen)} of these {len(classes)} classes"
        )
    return {
        "x": len(split.x),
        "y": len(split.y),
        "relevance": "the same class",
        "class_split": attributes.get("split_name", "given"),
        "classes": len(classes),
        "classes_sha256": class_list_hash(classes),
        "classes_seen_in_training": seen,
        "classes_seen_by_backbone": leak,
        "baselines": {
            "raw": "rows as they are",
            "centred": "each domain minus its mean over the training split",
        },
    }
