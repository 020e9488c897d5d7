"""`evaluate --report DIR`: one self-contained page that shows what a model is worth."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iiae_cli import __version__
from iiae_cli.common.files import writing
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.disentanglement import ACTIVE_VARIANCE
from iiae_cli.evaluation.paper import PaperRow
from iiae_cli.evaluation.protocols import EncodedPairs
from iiae_cli.evaluation.tables import Table, figure_tables, paper_table
from iiae_cli.inference.neighbours import Metric
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.report import sections
from iiae_cli.report.examples import class_directions, paired_directions
from iiae_cli.report.page import cell, render
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.provenance import run_versions
from iiae_cli.runs.weights import LoadedModel


@dataclass(frozen=True)
class Measured:
    """A measurement, and what it was made on: `split` is aligned unless `by_class`.

    `figures` and `protocol` are as `evaluate --json` prints them; `command` is what measured them.
    """

    run: RunDir
    loaded: LoadedModel
    split: Split
    by_class: bool
    pairs: EncodedPairs
    metric: Metric
    figures: dict[str, Any]
    protocol: dict[str, Any]
    paper: Sequence[PaperRow]
    command: Sequence[str]
    samples: int = 3
    seed: int = 0


def write_report(measured: Measured, folder: Path) -> Path:
    """Writes FOLDER/index.html, replacing an older one; returns its path."""
    path = folder / "index.html"
    text = render(**_values(measured))
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def _values(measured: Measured) -> dict[str, object]:
    """Gathers everything that the template shows."""
    loaded, split, pairs = measured.loaded, measured.split, measured.pairs
    figures, protocol = measured.figures, measured.protocol
    info = measured.run.read_info()
    rows = f"{len(split.x):,} pairs"
    if measured.by_class:
        rows = f"{len(split.x):,} × {len(split.y):,} rows"
        directions, rank_charts = class_directions(pairs, split), []
        rule = "cosine distance; rows of the query's class are right."
    else:
        directions, chart = paired_directions(pairs, split, measured.metric)
        rank_charts = [chart]
        rule = (
            f"{measured.metric} distance; only its partner is right, and the whole split is the "
            "gallery."
        )
    return {
        "title": f"{measured.run.path.resolve().name} on {protocol['data_set']}",
        "subtitle": f"Split {protocol['split']}, {rows}; model {loaded.fingerprint}, "
        f"kept at step {loaded.details.get('step')}, objective {loaded.config.objective.kind}",
        "warnings": _warnings(info, protocol),
        "cards": sections.headline_cards(figures, measured.paper, pairs),
        "tables": figure_tables(figures),
        "paper": paper_table(measured.paper) if measured.paper else None,
        "training": sections.training_charts(sections.read_records(measured.run.metrics_file)),
        "retrieval_note": "Every row of one domain looks for its own in the other by shared "
        f"latents, {rule}",
        "rank_charts": rank_charts,
        "directions": directions,
        "grids": sections.translation_grids(
            TrainedModel.of(loaded),
            split,
            aligned=not measured.by_class,
            samples=measured.samples,
            seed=measured.seed,
        ),
        "disentanglement": sections.disentanglement_section(
            figures.get("disentanglement", {}), protocol
        ),
        "usage": sections.usage_table(pairs),
        "usage_charts": sections.usage_charts(pairs),
        "dimensions": sections.dimension_table(pairs),
        "active_variance": ACTIVE_VARIANCE,
        "command": shlex.join(measured.command),
        "trained_by": shlex.join(map(str, info.get("command", ()))),
        "protocol": _mapping("Protocol", protocol),
        "versions": _versions(info.get("versions", {})),
        "facts": _mapping("Training", {key: info[key] for key in info if key not in _ELSEWHERE}),
        "config": loaded.config.to_yaml(),
        "version": __version__,
    }


_ELSEWHERE = ("versions", "command", "warnings")


def _warnings(info: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    """Lists what training warned of, and what makes a figure less than it looks."""
    warnings = [str(line) for line in info.get("warnings", ())]
    if info.get("state") not in (None, "finished"):
        warnings.append(f"training is {info['state']}, not finished")
    for key, who in (
        ("classes_seen_in_training", "the model"),
        ("classes_seen_by_backbone", "the backbone"),
    ):
        if protocol.get(key):
            warnings.append(f"not zero-shot: {who} has seen {len(protocol[key])} of these classes")
    return warnings


def _mapping(title: str, values: Mapping[str, Any]) -> Table:
    rows = [(key.replace("_", " "), cell(value)) for key, value in values.items()]
    return Table(title, ["what", "value"], rows)


def _versions(trained: Mapping[str, str]) -> Table:
    now = run_versions() | {name: version(name) for name in ("numpy", "matplotlib", "jinja2")}
    now["system"] = f"{platform.system()} {platform.machine()}"
    rows = [(name, trained.get(name), now.get(name)) for name in {**now, **trained}]
    return Table("Versions", ["what", "of training", "of this page"], rows)
