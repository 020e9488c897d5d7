"""`iiae evaluate`: the paper's measurements on a run, the training-free baseline beside them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iiae_cli.cli.options import (
    OUTPUT,
    RUNNING,
    DeviceOption,
    JsonFlag,
    MetricName,
    OverwriteFlag,
    RunOption,
    SplitName,
    finish,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import data_file, refuse_existing, run_folder
from iiae_cli.evaluation.figures import (
    disentanglement_tables,
    failed_gates,
    figure_tables,
    parse_gates,
)
from iiae_cli.evaluation.paper import PaperRow, paper_rows, paper_table
from iiae_cli.model import DOMAINS

if TYPE_CHECKING:  # what is heavy is imported where it is used, so that `--help` stays fast
    from iiae_cli.data.datafile import DataFile
    from iiae_cli.evaluation.translation import Subject
    from iiae_cli.runs.weights import LoadedModel

Task = Literal["retrieval", "zero-shot", "translation", "disentanglement", "all"]
Figures = dict[str, Any]
TRANSLATION, DISENTANGLEMENT = "Translation", "Disentanglement"


def command(
    run: RunOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Data file [the one that the run was trained on].")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Split to measure on.")] = "test",
    task: Annotated[
        Task | None,
        typer.Option(
            help="What to measure [retrieval, or zero-shot if paired by class; all with --report]."
        ),
    ] = None,
    metric: Annotated[
        MetricName | None, typer.Option(help="Distance between latents [the preset's].")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Show the paper's rows of this data set beside.")
    ] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Exit 2 if a figure is worse (an error: above); repeatable."
        ),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Exit 2 if any figure is above; repeatable."),
    ] = None,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Measure test classes that the backbone has seen.")
    ] = False,
    samples: Annotated[
        int, typer.Option(min=0, help="Sampled outputs per input.", rich_help_panel=TRANSLATION)
    ] = 3,
    lpips: Annotated[
        Literal["alex", "vgg", "both", "none"],
        typer.Option(help="LPIPS by these networks.", rich_help_panel=TRANSLATION),
    ] = "both",
    lpips_weights: Annotated[
        list[Path] | None,
        typer.Option(
            help="AlexNet's or VGG16's ImageNet weights [torch's cache]; repeatable.",
            rich_help_panel=TRANSLATION,
        ),
    ] = None,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge",
            help="Let networks trained on real pictures read class and factors.",
            rich_help_panel=TRANSLATION,
        ),
    ] = False,
    probe_rows: Annotated[
        int,
        typer.Option(min=20, help="Rows that probes see at most.", rich_help_panel=DISENTANGLEMENT),
    ] = 3000,
    shared_factor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A factor that both domains hold; repeatable.",
            rich_help_panel=DISENTANGLEMENT,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write DIR/index.html: figures, plots, pictures.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Of samples and probes.", rich_help_panel=RUNNING)
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows at once.", rich_help_panel=RUNNING)
    ] = 256,
    device: DeviceOption = "auto",
) -> None:
    """Measure a run: retrieval by shared and exclusive latents, beside a baseline.

    Rows paired by class are measured zero-shot (mAP, precision at K). Translation
    has L1, SSIM, LPIPS. Disentanglement: which factors each latent holds, whether
    swapped latents keep what they should, the bounds that training works on.

    \b
    Examples:
      iiae evaluate
      iiae evaluate --task disentanglement \\
          --fail-over disentanglement.latents.shared_x.leakage_mean=0.1
      iiae evaluate --run runs/sketchy-seed0 --paper
      iiae evaluate --report report && xdg-open report/index.html
      iiae evaluate --task translation --samples 10 \\
          --lpips-weights alexnet-owt-7be5be79.pth
      iiae evaluate --task translation --judge
      iiae evaluate --task all --json | jq .retrieval.shared
      iiae evaluate --fail-under retrieval.shared.x_to_y.recall@1=0.99
    """
    given = locals()
    result = _run(Options(**{field.name: given[field.name] for field in fields(Options)}))
    finish(result, as_json)
    if result.failures:
        raise IiaeError("; ".join(result.failures), "train longer, or lower the gate")


@dataclass(frozen=True)
class Options:
    """The command line, see `command`."""

    run: Path | None
    data: Path | None
    split: str
    task: Task | None
    metric: MetricName | None
    paper: bool
    fail_under: list[str] | None
    fail_over: list[str] | None
    allow_leak: bool
    samples: int
    lpips: Literal["alex", "vgg", "both", "none"]
    lpips_weights: list[Path] | None
    judge: bool
    probe_rows: int
    shared_factor: list[str] | None
    report: Path | None
    overwrite: bool
    seed: int
    batch_size: int
    device: str


@dataclass
class Result:
    """The figures by task, what was measured on what, and a line for every gate not kept."""

    figures: Figures
    protocol: Figures
    failures: list[str]
    paper: list[PaperRow] | None = None
    report: Path | None = None

    def to_json(self) -> Figures:
        """Return the object that `--json` prints."""
        found: Figures = {"schema": "iiae.evaluate/1", **self.figures}
        if self.paper is not None:
            found["paper"] = [row.to_json() for row in self.paper]
        if self.report is not None:
            found["report"] = str(self.report)
        return {**found, "protocol": self.protocol, "failures": self.failures}

    def show(self) -> None:
        """Print for people and pipes."""
        tables = figure_tables(self.figures)
        tables += disentanglement_tables(self.figures.get("disentanglement", {}))
        tables += [paper_table(self.paper)] if self.paper else []
        for table in tables:
            console.print_table(table.headers, table.rows, title=table.title)
        if self.report is not None:
            console.say(f"report {self.report}")


def _run(options: Options) -> Result:
    from iiae_cli.builders import choose_device
    from iiae_cli.evaluation import tasks
    from iiae_cli.evaluation.retrieval import encode_pairs
    from iiae_cli.evaluation.translation import Subject
    from iiae_cli.inference.trained import TrainedModel
    from iiae_cli.runs.directory import RunDir
    from iiae_cli.runs.weights import load_model

    gates = parse_gates(options.fail_under or (), options.fail_over or ())
    if options.report is not None:
        refuse_existing(options.report, options.overwrite)
    folder, chosen = run_folder(options.run)
    loaded = load_model(RunDir(folder), choose_device(options.device))
    step = loaded.details.get("step")
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen}), kept at step {step}")
    file = _data_of(options, loaded)
    chosen_tasks = tasks.choose_tasks(options.task, options.report is not None, file, loaded)
    split = tasks.rows_of(file, options.split, chosen_tasks)
    if options.judge:
        tasks.check_judge(loaded, file, split, chosen_tasks)
    metric: MetricName = tasks.choose_metric(options.metric, chosen_tasks, loaded)
    protocol = {
        "run": str(folder),
        "fingerprint": loaded.fingerprint,
        "step": step,
        "objective": loaded.config.objective.kind,
        "data": str(file.path),
        "data_set": file.info.name,
        "split": options.split,
        "metric": metric,
    }
    protocol |= tasks.protocol_of(file, split, loaded, chosen_tasks, options.allow_leak)
    trained = TrainedModel.of(loaded)
    pairs = encode_pairs(trained, split, batch_size=options.batch_size)
    subject = Subject(trained, pairs, split, options.seed, options.batch_size)
    figures: Figures = {}
    for task in chosen_tasks:
        found, how = _measure(task, options, loaded, file, subject, metric)
        figures |= found
        protocol |= how
    rows = paper_rows(figures, protocol, loaded.size)
    if options.paper and not rows:
        console.warn(f"the paper has no row for data set '{file.info.name}'")
    result = Result(figures, protocol, failed_gates(gates, figures))
    result.paper = rows if options.paper else None
    if options.report is not None:
        from iiae_cli.report.page import Measured, write_report

        measured = Measured(
            run=RunDir(folder),
            loaded=loaded,
            subject=subject,
            by_class=file.info.by_class,
            figures=figures,
            protocol=protocol,
            paper=rows,
            command=["iiae", *sys.argv[1:]],
            samples=options.samples,
        )
        result.report = write_report(measured, options.report)
    return result


def _measure(
    task: Task,
    options: Options,
    loaded: LoadedModel,
    file: DataFile,
    subject: Subject,
    metric: MetricName,
) -> tuple[Figures, Figures]:
    """The figures of one task, and what a reader must know of them."""
    from iiae_cli.builders import build_objective
    from iiae_cli.evaluation.disentanglement import ProbeOptions, measure_disentanglement
    from iiae_cli.evaluation.retrieval import paired_retrieval, zero_shot

    if task == "retrieval":
        return {"retrieval": paired_retrieval(subject.pairs, subject.split, metric)}, {}
    if task == "zero-shot":
        return {"zero_shot": zero_shot(subject.pairs, file.split("train"), subject.split)}, {}
    if task == "translation":
        return _translation(options, file, subject)
    train = None if options.split == "train" else partial(file.split, "train")
    probes = ProbeOptions(options.probe_rows, options.shared_factor or (), file.info.by_class)
    objective = build_objective(loaded.config)
    figures, protocol = measure_disentanglement(subject, objective, train, probes, metric)
    for line in figures["warnings"]:
        console.warn(line)
    if not figures["factors"] and not any(figures["probes"].values()):
        console.warn(
            f"{file.path} holds no factors to probe: "
            "see 'Bring your own factors' in docs/disentanglement.md"
        )
    return {"disentanglement": figures}, protocol


def _translation(options: Options, file: DataFile, subject: Subject) -> tuple[Figures, Figures]:
    """L1, and of pictures SSIM and LPIPS as far as its weights are there; the judge's reading."""
    from iiae_cli.evaluation import judge, lpips, translation

    measures = dict(translation.FEATURE_MEASURES)
    if subject.trained.size is not None:
        nets = [net for net in lpips.BACKBONES if options.lpips in (net, "both")]
        weights = options.lpips_weights or ()
        perceptual, missing = lpips.lpips_measures(weights, subject.trained.device, nets)
        for reason in missing:
            console.warn(f"{reason.message}; {reason.hint}")
        measures = {**translation.PICTURE_MEASURES, **perceptual}
    figures: Figures = {}
    figures["translation"] = translation.translation_figures(subject, measures, options.samples)
    protocol = {"samples": options.samples, "samples_seed": options.seed}
    if options.judge:
        train, seed = file.split("train"), options.seed
        judges = {d: judge.train_judge(train, d, subject.trained, seed) for d in DOMAINS}
        figures["judged"] = judge.judged_translations(subject, judges, options.samples)
        protocol |= {"judge_steps": judge.JUDGE_STEPS, "judge_seed": options.seed}
    return figures, protocol


def _data_of(options: Options, loaded: LoadedModel) -> DataFile:
    """`--data`, else the file that the run was trained on, else DATA/SET.h5."""
    from iiae_cli.data.datafile import DataFile

    trained_on = loaded.details.get("data")
    path = options.data
    if path is None and trained_on and Path(trained_on).exists():
        path = Path(trained_on)
    file = DataFile(data_file(path, loaded.config.data.set or loaded.info.name))
    own, trained = ((info.shape_x, info.shape_y) for info in (file.info, loaded.info))
    if [shape[-1:] for shape in own] != [shape[-1:] for shape in trained]:
        raise IiaeError(
            f"{file.path} holds {own[0]} and {own[1]}, "
            f"the model was trained on {trained[0]} and {trained[1]}",
            "evaluate on data of the shape that the run was trained on",
        )
    return file
