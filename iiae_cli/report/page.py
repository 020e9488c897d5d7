"""`evaluate --report DIR`: one self-contained page, rendered by Jinja, which escapes by default.

Names of files, ids and classes are hostile input: they reach the templates as text, nothing is ever
marked safe, and the page's own policy forbids scripts and every request.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from iiae_cli import __version__
from iiae_cli.common.files import writing
from iiae_cli.data.datafile import DataFile
from iiae_cli.evaluation.figures import Table, figure_tables
from iiae_cli.evaluation.protocol import paper_rows, paper_table
from iiae_cli.evaluation.retrieval import DIRECTIONS
from iiae_cli.evaluation.translation import Subject
from iiae_cli.inference.api import Model
from iiae_cli.inference.neighbours import Metric
from iiae_cli.report import sections
from iiae_cli.report.grids import Panel, Picture, spread, to_rgb
from iiae_cli.report.retrieval import Retrieval, Shown
from iiae_cli.runs import RunDir

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
THUMBNAIL = 192  # pixels of the longer side: sharp at 96 CSS pixels on a dense screen


def write_report(
    folder: Path, figures: Mapping[str, Any], model: Model, subject: Subject, file: DataFile
) -> Path:
    """Writes FOLDER/index.html, replacing an older one; returns its path.

    `figures` are what `evaluate --json` prints. The subject's rows are aligned unless `file` pairs
    by class.
    """
    protocol, split, run = figures["protocol"], subject.split, RunDir(model.folder)
    info, loaded = run.read_info(), model.loaded
    by_class = file.info.by_class
    metric: Metric = "cosine" if by_class else protocol["metric"]
    ways = []
    for way in DIRECTIONS.values():
        queries, gallery = (Shown.of(split.side(domain), file) for domain in way)
        means = subject.pairs[way[0]].mean("shared"), subject.pairs[way[1]].mean("shared")
        ways.append(Retrieval(" → ".join(way), queries, gallery, means, by_class, metric))
    tables = figure_tables(figures)
    facts = {key: info[key] for key in info if key not in ("command", "warnings")}
    grids = sections.translation_panels(subject, not by_class, protocol.get("samples", 3))
    text = render(
        title=f"{run.path.resolve().name} on {protocol['data_set']}",
        about=protocol,
        split=split,
        by_class=by_class,
        metric=metric,
        warnings=_warnings(info, protocol),
        verdict=sections.verdict(figures),
        strips=_strips(ways, grids[0] if grids and not by_class else None),
        tables=tables,
        measured={table.place: table for table in tables},
        paper=paper_table(paper_rows(figures, protocol, loaded.size)),
        training=sections.training_charts(sections.read_records(run.metrics_file)),
        recall_charts=sections.recall_charts(
            {} if by_class else {way.name: way.ranks for way in ways}
        ),
        examples=[*filter(None, [way.failures() for way in ways])],
        classes=[way.classes() for way in ways] if by_class else (),
        grids=grids,
        notes=figures.get("disentanglement", {}).get("warnings", ()),
        command=shlex.join(["iiae", *sys.argv[1:]]),
        trained_by=shlex.join(map(str, info.get("command", ()))),
        protocol=Table("Protocol", ["what", "value"], [*protocol.items()], 2),
        facts=Table("Training", ["what", "value"], [*facts.items()], 2),
        config=loaded.config.to_yaml(),
        version=__version__,
    )
    path = folder / "index.html"
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _strips(ways: Sequence[Retrieval], translated: Panel | None) -> list[Panel]:
    """Shows every other row of the grids: neighbours, and translations from x to y, if any."""
    strips = []
    for way in ways if translated is None else ways[:1]:
        rows = spread(len(way.queries.ids), sections.GRID_PAIRS)
        strips.append(way.panel("the nearest neighbours", rows[::2]))
    if translated is not None:
        end = translated.gaps_after[0] + 2  # of its half from x to y
        lines, headers = [row[:end] for row in translated.rows[::2]], translated.headers[:end]
        title = "x → y: translations, sampled and then guided by the true y"
        strips.append(Panel(lines, headers, title=title))
    return strips


def _warnings(info: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    warnings = [str(line) for line in info.get("warnings", ())]
    if info.get("state") not in (None, "finished"):
        warnings.append(f"training is {info['state']}, not finished")
    for key in ("classes_seen_in_training", "classes_seen_by_backbone"):
        if seen := protocol.get(key):
            warnings.append(f"not zero-shot: {len(seen)} {key.replace('_', ' ')}")
    return warnings


def render(**values: object) -> str:
    """Renders the page as HTML; raises if the template lacks a value.

    File names may hold control characters and lone surrogates, which HTML lacks: they are replaced.
    """
    environment = Environment(
        loader=PackageLoader("iiae_cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": sections.cell, "leak": sections.leak}
    environment.filters |= {"thumbnail": thumbnail, "base64": _base64}
    text = environment.get_template("report.html").render(values)
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def thumbnail(picture: Picture) -> str:
    """Returns a stored picture (H, W, C) as a data URI, shrunk if it is large."""
    image, stream = Image.fromarray(to_rgb(picture)), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)  # never enlarges
    image.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{_base64(stream.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
