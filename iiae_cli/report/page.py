"""The report's page: what its template shows, and the rendering by Jinja, which escapes by default.

Names of files, ids and classes are hostile input: they reach the templates as text, nothing is ever
marked safe, and the page's own policy forbids scripts and every request.
"""

from __future__ import annotations

import base64
import io
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from iiae_cli.evaluation.tables import Table
from iiae_cli.report.grids import Picture, to_rgb

CardLine: TypeAlias = tuple[Literal["good", "bad", "quiet"], str]  # tone and text
THUMBNAIL = 192  # pixels of the longer side: sharp at 96 CSS pixels on a dense screen


@dataclass(frozen=True)
class Card:
    """A headline figure, and lines of comparison."""

    name: str
    value: object
    lines: Sequence[CardLine] = ()


@dataclass(frozen=True)
class Item:
    """A row of the data: its id, its class and picture (a data URI) where known, and a note."""

    identity: str
    label: str | None
    picture: str | None
    alt: str
    note: str = ""
    tone: Literal["right", "wrong", ""] = ""


@dataclass(frozen=True)
class Examples:
    """A table of queries: each row is a query, its partner where shown, and its neighbours."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Item]]


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval."""

    name: str
    summary: str
    examples: Sequence[Examples]
    classes: Table | None = None


@dataclass(frozen=True)
class Grid:
    """A labelled grid of pictures, and what it shows."""

    title: str
    note: str
    image: Image.Image


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
    environment.filters |= {"cell": cell, "svg_uri": svg_uri, "png_uri": png_uri}
    return environment.get_template("report.html").render(values)


def cell(value: object) -> str:
    """Formats a value for people: short numbers, a dash for nothing, JSON for collections."""
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


def thumbnail_uri(picture: Picture) -> str:
    """Returns a data URI of a stored picture (H, W, C), shrunk where it is large."""
    image = Image.fromarray(to_rgb(picture))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)  # never enlarges
    return png_uri(image)
