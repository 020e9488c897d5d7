"""The report's page as plain values, and their rendering by Jinja with escaping as the default.

Names of files, ids and classes are hostile input: they reach the templates as text, nothing is ever marked safe, and
the page's own policy forbids scripts and every request.
"""

from __future__ import annotations

import base64
import io
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from iiae_cli.evaluation.tables import Table
from iiae_cli.report.curves import Chart
from iiae_cli.report.disentanglement_section import DisentanglementSection
from iiae_cli.report.grids import Picture, to_rgb

THUMBNAIL = (
    192  # pixels of a shown picture's longer side at most: sharp at 96 CSS pixels on a dense screen
)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class CardLine:
    """What a headline figure is compared with."""

    text: str
    kind: Literal["good", "bad", "quiet"] = "quiet"


@dataclass(frozen=True)
class Card:
    """A headline figure."""

    name: str
    value: object
    lines: Sequence[CardLine] = ()


@dataclass(frozen=True)
class Item:
    """A row of the data: its picture (a data URI) where it is one, its name, its class where known."""

    identity: str
    label: str | None = None
    picture: str | None = None
    alt: str = ""


@dataclass(frozen=True)
class Found:
    """A neighbour of a query."""

    item: Item
    distance: float
    right: bool
    verdict: str


@dataclass(frozen=True)
class ShownExample:
    """A query, its partner (None where partners are not shown), its neighbours."""

    query: Item
    note: str
    neighbours: Sequence[Found]
    partner: Item | None = None


@dataclass(frozen=True)
class ExampleGroup:
    """Examples under one caption; `partners` says whether each shows its partner."""

    title: str
    examples: Sequence[ShownExample]
    partners: bool = False

    @property
    def width(self) -> int:
        """Neighbours of the example that has most."""
        return max(len(one.neighbours) for one in self.examples)


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval."""

    name: str
    summary: str
    groups: Sequence[ExampleGroup]
    classes: Table | None = None


@dataclass(frozen=True)
class Grid:
    """A labelled grid of pictures."""

    title: str
    note: str
    text: str
    uri: str
    width: int
    height: int


@dataclass
class Page:
    """Everything the page shows, in its order."""

    title: str
    subtitle: str
    warnings: list[str]
    cards: list[Card]
    tables: list[Table]
    paper: Table | None
    charts: list[Chart]
    retrieval_note: str
    rank_charts: list[Chart]
    directions: list[Direction]
    grids: list[Grid]
    disentanglement: DisentanglementSection | None
    usage: Table
    usage_charts: list[Chart]
    dimensions: Table | None
    active_variance: float
    command: str
    trained_by: str
    protocol: Table
    versions: Table
    facts: Table
    config: str
    version: str


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("iiae_cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {"cell": cell, "svg_uri": svg_uri}
    return environment.get_template("report.html").render(page=page)


def cell(value: object) -> str:
    """A value for people: numbers short, nothing as a dash, lists and mappings as JSON."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if value and abs(value) < 1e-3:
            return f"{value:.2g}"
        return f"{value:,.1f}".removesuffix(".0") if abs(value) >= 100 else f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _printable(value: object) -> object:
    """Text without what HTML cannot carry: control characters and halves of surrogate pairs, as odd file names have."""
    # Markup, a macro's output, has passed here already in parts; a plain string is what came from outside.
    if type(value) is not str:
        return value
    return "".join(
        _REPLACEMENT if unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t" else one
        for one in value
    )


def svg_uri(svg: bytes) -> str:
    """A data URI of an SVG document."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def png_uri(image: Image.Image) -> str:
    """A data URI of a picture."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def thumbnail_uri(picture: Picture) -> str:
    """A data URI of a stored picture (H, W, C), shrunk smoothly where it is large, else as it is."""
    image = Image.fromarray(to_rgb(picture))
    if max(image.size) > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return png_uri(image)
