"""`evaluate --report DIR`: one self-contained page that tells at a glance whether a model is any good.

What was measured is gathered into plain values (`page.Page`) and rendered into DIR/index.html: pictures and style
inside, no script, no request.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iiae_cli import __version__
from iiae_cli.common.files import writing
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.disentanglement import ACTIVE_VARIANCE
from iiae_cli.evaluation.paper import PaperRow
from iiae_cli.evaluation.protocols import EncodedPairs
from iiae_cli.evaluation.tables import Table, figure_tables, paper_table
from iiae_cli.inference.retrieval import Metric
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.report.cards import headline_cards
from iiae_cli.report.curves import read_object, read_records, training_charts
from iiae_cli.report.disentanglement_section import disentanglement_section
from iiae_cli.report.examples import class_examples, paired_examples
from iiae_cli.report.latent_section import dimension_table, usage_chart, usage_table
from iiae_cli.report.page import Direction, Page, cell, render
from iiae_cli.report.retrieval_section import rank_chart, shown_direction
from iiae_cli.report.translation_section import translation_grids
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.provenance import run_versions
from iiae_cli.runs.weights import LoadedModel

EXAMPLES = 5


@dataclass(frozen=True)
class Measured:
    """A measurement, and what it was made on.

    Attributes:
        run: its directory.
        loaded: the kept weights.
        split: the rows, aligned unless `by_class`.
        by_class: whether rows belong together by their labels alone.
        pairs: their latents.
        metric: distance between them.
        figures: as `evaluate --json` prints them.
        protocol: likewise.
        paper: the paper's rows, empty where it has none of this data set.
        command: that measured.
        samples: sampled outputs per input in the grid.
        seed: of the samples.
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
    """Write FOLDER/index.html, replacing one that is there; returns its path."""
    path = folder / "index.html"
    text = render(gather(measured))
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def gather(measured: Measured) -> Page:
    """Everything the page shows."""
    loaded, split = measured.loaded, measured.split
    info = read_object(measured.run.info_file)
    found = (
        class_examples(measured.pairs, split, EXAMPLES)
        if measured.by_class
        else paired_examples(measured.pairs, measured.metric, EXAMPLES)
    )
    directions: list[Direction] = [shown_direction(one, split) for one in found]
    ranked = [(f"{one.source} → {one.target}", one.ranks) for one in found if one.ranks is not None]
    usage_charts = usage_chart(measured.pairs)
    data_set = str(measured.protocol.get("data_set", loaded.info.name))
    rows = (
        f"{len(split.x):,} pairs"
        if not measured.by_class
        else f"{len(split.x):,} × {len(split.y):,} rows"
    )
    return Page(
        title=f"{measured.run.path.resolve().name} on {data_set}",
        subtitle=f"Split {measured.protocol.get('split', '')}, {rows}; model {loaded.fingerprint}, "
        f"kept at step {loaded.details.get('step')}, objective {loaded.config.objective.kind}",
        warnings=_warnings(info, measured.protocol),
        cards=headline_cards(measured.figures, measured.paper, measured.pairs),
        tables=figure_tables(measured.figures),
        paper=paper_table(measured.paper) if measured.paper else None,
        charts=training_charts(read_records(measured.run.metrics_file)),
        retrieval_note=_retrieval_note(measured),
        rank_charts=[rank_chart(ranked)] if ranked else [],
        directions=directions,
        grids=translation_grids(
            TrainedModel.of(loaded),
            split,
            aligned=not measured.by_class,
            samples=measured.samples,
            seed=measured.seed,
        ),
        disentanglement=disentanglement_section(
            measured.figures.get("disentanglement", {}), measured.protocol
        ),
        usage=usage_table(measured.pairs),
        usage_charts=[usage_charts] if usage_charts else [],
        dimensions=dimension_table(measured.pairs),
        active_variance=ACTIVE_VARIANCE,
        command=shlex.join(measured.command),
        trained_by=_command(info),
        protocol=_mapping("Protocol", measured.protocol),
        versions=_versions(info),
        facts=_mapping(
            "Training", {key: value for key, value in info.items() if key not in _ELSEWHERE}
        ),
        config=loaded.config.to_yaml(),
        version=__version__,
    )


_ELSEWHERE = ("versions", "command", "warnings")


def _command(info: dict[str, Any]) -> str:
    words = info.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else ""


def _warnings(info: dict[str, Any], protocol: dict[str, Any]) -> list[str]:
    """What training warned of, and what makes a figure less than it looks."""
    noted = info.get("warnings")
    warnings = [str(one) for one in noted] if isinstance(noted, list) else []
    if info.get("state") not in (None, "finished"):
        warnings.append(f"training is {info['state']}, not finished")
    for key, who in (
        ("classes_seen_in_training", "the model"),
        ("classes_seen_by_backbone", "the backbone"),
    ):
        if protocol.get(key):
            warnings.append(f"not zero-shot: {who} has seen {len(protocol[key])} of these classes")
    return warnings


def _retrieval_note(measured: Measured) -> str:
    what = "Every row of one domain looks for its own in the other by shared latents"
    if measured.by_class:
        return f"{what}, cosine distance; rows of the query's class are right."
    return f"{what}, {measured.metric} distance; only its partner is right, and the whole split is the gallery."


def _mapping(title: str, values: dict[str, Any]) -> Table:
    return Table(
        title,
        ["what", "value"],
        [(str(key).replace("_", " "), cell(value)) for key, value in values.items()],
    )


def _versions(info: dict[str, Any]) -> Table:
    import jinja2
    import matplotlib

    trained = info.get("versions")
    before = trained if isinstance(trained, dict) else {}
    now = run_versions() | {
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
        "jinja2": jinja2.__version__,
    }
    now["system"] = f"{platform.system()} {platform.machine()}"
    names = [*now, *(name for name in before if name not in now)]
    rows = [(name, before.get(name), now.get(name)) for name in names]
    return Table("Versions", ["what", "of training", "of this page"], rows)
