"""`evaluate --report DIR`: one self-contained page, rendered by Jinja, which escapes by default.

Names of files, ids and classes are hostile input: they reach the templates as text, nothing is ever
marked safe, and the page's own policy forbids scripts and every request.
"""

from __future__ import annotations

import base64
import io
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from iiae_cli import __version__
from iiae_cli.common.files import writing
from iiae_cli.evaluation.disentanglement import ACTIVE_VARIANCE
from iiae_cli.evaluation.figures import Table, figure_tables
from iiae_cli.evaluation.protocol import PaperRow, paper_table
from iiae_cli.evaluation.translation import Subject
from iiae_cli.report import sections
from iiae_cli.report.grids import Picture, to_rgb
from iiae_cli.report.retrieval import Examples, Ints, class_tables, paired_examples
from iiae_cli.runs import LoadedModel, RunDir

THUMBNAIL = 192  # pixels of the longer side: sharp at 96 CSS pixels on a dense screen


@dataclass(frozen=True)
class Measured:
    """A measurement and its subject, whose rows are aligned unless `by_class`."""

    run: RunDir
    loaded: LoadedModel
    subject: Subject
    by_class: bool
    figures: dict[str, Any]  # as `evaluate --json` prints them
    protocol: dict[str, Any]
    paper: Sequence[PaperRow]
    command: Sequence[str]
    samples: int = 3


def write_report(measured: Measured, folder: Path) -> Path:
    """Writes FOLDER/index.html, replacing an older one; returns its path."""
    path = folder / "index.html"
    text = render(**_values(measured))
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def _values(measured: Measured) -> dict[str, object]:
    """Gathers everything that the template shows."""
    figures, protocol = measured.figures, measured.protocol
    split, pairs = measured.subject.split, measured.subject.pairs
    info = measured.run.read_info()
    examples: list[Examples] = []
    ranked: dict[str, Ints] = {}
    if not measured.by_class:
        examples, ranked = paired_examples(pairs, split, protocol["metric"])
    return {
        "title": f"{measured.run.path.resolve().name} on {protocol['data_set']}",
        "about": protocol,
        "rows": {"x": len(split.x), "y": len(split.y)},
        "by_class": measured.by_class,
        "warnings": _warnings(info, protocol),
        "tables": figure_tables(figures),
        "paper": paper_table(measured.paper) if measured.paper else None,
        "training": sections.training_charts(sections.read_records(measured.run.metrics_file)),
        "recall_charts": sections.recall_charts(ranked),
        "examples": examples,
        "classes": class_tables(pairs, split) if measured.by_class else (),
        "grids": sections.translation_grids(
            measured.subject, aligned=not measured.by_class, samples=measured.samples
        ),
        "disentanglement": sections.disentanglement_section(figures, protocol),
        "active_variance": ACTIVE_VARIANCE,
        "command": shlex.join(measured.command),
        "trained_by": shlex.join(map(str, info.get("command", ()))),
        "protocol": _mapping("Protocol", protocol),
        "versions": _mapping("Versions it was trained with", info.get("versions", {})),
        "facts": _mapping("Training", {key: info[key] for key in info if key not in _ELSEWHERE}),
        "config": measured.loaded.config.to_yaml(),
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
    rows = [(key.replace("_", " "), sections.cell(value)) for key, value in values.items()]
    return Table(title, ["what", "value"], rows)


def render(**values: object) -> str:
    """Renders the page as HTML; a value that the template needs and lacks raises."""
    environment = Environment(
        loader=PackageLoader("iiae_cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {"cell": sections.cell, "svg_uri": svg_uri, "png_uri": png_uri}
    environment.filters["thumbnail"] = thumbnail
    return environment.get_template("report.html").render(values)


def _printable(value: object) -> object:
    """Replaces control characters and lone surrogates, which odd file names have and HTML lacks."""
    # A macro's output is Markup and has passed here in parts; plain strings come from outside.
    if type(value) is not str:
        return value
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"
        else letter
        for letter in value
    )


def svg_uri(svg: bytes) -> str:
    """Returns a data URI of an SVG document."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def png_uri(image: Image.Image) -> str:
    """Returns a data URI of a picture."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def thumbnail(picture: Picture) -> Image.Image:
    """Returns a stored picture (H, W, C), shrunk if it is large."""
    image = Image.fromarray(to_rgb(picture))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)  # never enlarges
    return image
