"""`iiae evaluate`: the paper's measurements on a run and on a training-free baseline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import MetricName, SplitName, finish, of_output, of_running, option
from iiae_cli.common import console
from iiae_cli.common.environment import data_file
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing
from iiae_cli.evaluation.figures import Task, failed_gates, figure_tables, parse_gates
from iiae_cli.model import DOMAINS

if TYPE_CHECKING:  # heavy imports are inside functions, so that `--help` stays fast
    from iiae_cli.data.datafile import Split
    from iiae_cli.evaluation.translation import Subject

Figures = dict[str, Any]
of_translation = partial(option, panel="Translation")
of_probes = partial(option, panel="Disentanglement")


def command(
    run: Path | None = shared.RUN,
    data: Path | None = option(None, "Data file [the run's own]."),
    split: SplitName = option("test", "Split to measure on."),
    task: Task | None = option(
        None, "What to measure [retrieval, or zero-shot if paired by class; all with --report]."
    ),
    metric: MetricName | None = option(None, "Distance between latents [the preset's]."),
    paper: bool = option(False, "Show the paper's rows for this data set, too.", "--paper"),
    fail_under: list[str] | None = option(
        None, "Exit 2 if a figure is below (errors: above); repeatable.", metavar="KEY=VALUE"
    ),
    fail_over: list[str] | None = option(
        None, "Exit 2 if a figure is above; repeatable.", metavar="KEY=VALUE"
    ),
    allow_leak: bool = option(
        False, "Measure test classes that the backbone has seen.", "--allow-leak"
    ),
    samples: int = of_translation(3, "Sampled outputs per input.", min=0),
    lpips: Literal["alex", "vgg", "both", "none"] = of_translation("both", "Networks for LPIPS."),
    lpips_weights: list[Path] | None = of_translation(
        None, "AlexNet's or VGG16's weights [torch's cache]; repeatable."
    ),
    download: bool = of_translation(
        False, "Download LPIPS weights: alex 233 MB, vgg 528 MB.", "--download"
    ),
    judge: bool = of_translation(False, "Train networks that read class and factors.", "--judge"),
    probe_rows: int = of_probes(3000, "Most rows for the probes.", min=20),
    shared_factor: list[str] | None = of_probes(
        None, "A factor of both domains; repeatable.", metavar="NAME"
    ),
    report: Path | None = of_output(
        None, "Also write DIR/index.html: figures, plots, pictures.", metavar="DIR"
    ),
    overwrite: bool = shared.OVERWRITE,
    as_json: bool = shared.JSON,
    seed: int = of_running(0, "Seed of samples and probes.", min=0),
    batch_size: int = of_running(256, "Rows per batch.", min=1),
    device: str = shared.DEVICE,
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
    from iiae_cli.builders import build_objective
    from iiae_cli.evaluation import protocol as rules
    from iiae_cli.evaluation import retrieval
    from iiae_cli.evaluation.disentanglement import measure_disentanglement
    from iiae_cli.evaluation.translation import Subject
    from iiae_cli.inference.api import open_run
    from iiae_cli.inference.inputs import matching_file

    gates = parse_gates(fail_under or (), fail_over or ())
    if report is not None:
        refuse_existing(report, overwrite)
    model = open_run(run, device)
    loaded, trained = model.loaded, model.trained
    own = Path(loaded.details.get("data") or "")  # the file that the run was trained on
    named, data_set = data or (own if own.is_file() else None), loaded.config.data.set
    file = matching_file(data_file(named, data_set or loaded.info.name), loaded.info)
    chosen = rules.choose_tasks(task or ("all" if report else None), file, loaded)
    rows = rules.rows_of(file, split, chosen)
    if judge:
        rules.check_judge(loaded, rows, chosen)
    distance = rules.choose_metric(metric, chosen, loaded)
    protocol: Figures = {
        "run": str(model.folder),
        "fingerprint": loaded.fingerprint,
        "step": loaded.details.get("step"),
        "objective": loaded.config.objective.kind,
        "data": str(file.path),
        "data_set": file.info.name,
        "split": split,
        "metric": distance,
    }
    protocol |= rules.protocol_of(file, rows, loaded, chosen, allow_leak)
    console.say(f"measuring {', '.join(chosen)} of {len(rows.x)} rows in split '{split}'")
    pairs = retrieval.encode_pairs(trained, rows, batch_size=batch_size)
    subject, figures = Subject(trained, pairs, rows, seed, batch_size), Figures()
    if "retrieval" in chosen:
        train = file.split("train") if file.info.is_features else None
        figures["retrieval"] = retrieval.paired_retrieval(pairs, rows, distance, train)
    if "zero-shot" in chosen:
        figures["zero_shot"] = retrieval.zero_shot(pairs, rows, file.split("train"))
    if "translation" in chosen:
        files, judged = lpips_weights or (), file.split("train") if judge else None
        values, how = _translation(subject, lpips, files, download, samples, judged)
        figures, protocol = figures | values, protocol | how
    if "disentanglement" in chosen:
        figures["disentanglement"], how = measure_disentanglement(
            subject,
            build_objective(loaded.config),
            distance,
            None if split == "train" else file.split("train", most=0),
            probe_rows=probe_rows,
            shared=shared_factor or (),
            by_class=file.info.by_class,
        )
        protocol |= how
    failures = failed_gates(gates, figures)
    result: Figures = {"schema": "iiae.evaluate/1", **figures}
    result |= {"protocol": protocol, "failures": failures}
    result |= {"paper": rules.paper_rows(figures, protocol, loaded.size)} if paper else {}
    if paper and not result["paper"]:
        console.warn(f"the paper has no row for data set '{file.info.name}'")
    if report is not None:
        from iiae_cli.report.page import write_report

        result["report"] = str(write_report(report, result, model, subject, file))
    finish(result, lambda: _show(result), as_json)
    if failures:
        raise IiaeError("; ".join(failures), "train longer, or lower the gate")


def _show(result: Figures) -> None:
    from iiae_cli.evaluation.protocol import paper_table

    paper = [paper_table(result["paper"])] if result.get("paper") else []
    for table in [*figure_tables(result), *paper]:
        console.print_table(table.headers, table.rows, title=table.title)
    if "report" in result:
        console.say(f"report {result['report']}")


def _translation(
    subject: Subject,
    nets: str,
    files: Sequence[Path],
    download: bool,
    samples: int,
    train: Split | None,
) -> tuple[Figures, Figures]:
    """Measures L1, for pictures also SSIM and LPIPS (if its weights are there), and by a judge."""
    from iiae_cli.evaluation import perceptual, translation

    measures = {"l1": translation.l1}
    if subject.trained.size is not None:
        chosen = [net for net in perceptual.BACKBONES if nets in (net, "both")]
        device = subject.trained.device
        lpips = perceptual.lpips_measures(files, device, chosen, download=download)
        measures |= {"ssim": translation.ssim, **lpips}
    figures: Figures = {"translation": translation.translation_figures(subject, measures, samples)}
    protocol = {"samples": samples, "samples_seed": subject.seed}
    if train is not None:
        judges = {
            domain: perceptual.train_judge(train, domain, subject.trained, subject.seed)
            for domain in DOMAINS
        }
        figures["judged"] = perceptual.judged_translations(subject, judges, samples)
        protocol |= {"judge_steps": perceptual.JUDGE_STEPS, "judge_seed": subject.seed}
    return figures, protocol
