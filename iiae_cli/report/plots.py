"""The report's charts as SVG; the only user of matplotlib, which takes long to import.

Backgrounds are transparent and axes mid-grey: one picture serves a light and a dark page. Letters
are paths, so the page needs no font. Lines differ by dash as well as by colour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 4.4, 2.9  # inches: 10-point letters stay legible where a phone shows 360 pixels
GREY = "#7a7a7a"  # about 4.3 : 1 against white and against the page's dark ground
COLOURS = ("#2f80d0", "#d2700a", "#1f9a55", "#d64550", "#9a63d8", "#b0851a", "#0e97a7", "#c2559b")
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Chart:
    """A plot; `text` says what it shows to whoever does not see it."""

    title: str
    svg: bytes
    text: str


@dataclass(frozen=True)
class Line:
    """A named line of (x, y) points; `marked` puts a dot on each of them."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False


def line_charts(
    title: str,
    lines: Iterable[Line],
    *,
    y_label: str,
    scale: Literal["fraction", "log", "symlog"],
    x_label: str = "step",
    levels: Mapping[str, float] | None = None,
) -> list[Chart]:
    """Draws lines over whole numbers; returns no chart if no line has a point.

    `levels` are named values to compare with. The scale `fraction` shows all of [0, 1], `log`
    leaves out points at or below 0, `symlog` starts at 0 and is linear below 1. Points whose y is
    not finite are left out.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return []
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    for number, line in enumerate(lines):
        points = [(x, y) for x, y in line.points if math.isfinite(y) and (y > 0 or scale != "log")]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=line.name,
            color=COLOURS[number % len(COLOURS)],
            linestyle=_DASHES[number % len(_DASHES)],
            linewidth=1.8,
            marker="o" if line.marked or len(points) == 1 else None,
            markersize=4,
        )
    for number, (name, value) in enumerate((levels or {}).items()):
        dots = (0, (1, 1 + 2 * number))
        axes.axhline(value, label=name, color=GREY, linestyle=dots, linewidth=1.8)
    if scale == "symlog":
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(bottom=0)
    elif scale == "log":
        axes.set_yscale("log")
    else:
        axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel(x_label, color=GREY, fontsize=10)
    axes.set_ylabel(y_label, color=GREY, fontsize=10)
    ends = [
        f"{line.name} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines
    ]
    compared = [f"{name} {value:.3g}" for name, value in (levels or {}).items()]
    return [Chart(title, _svg(figure), f"{title}, by {x_label}: {'; '.join(ends + compared)}.")]


def _svg(figure: Figure) -> bytes:
    """Styles axes, adds a legend above them, where no line runs through it; returns the SVG."""
    (axes,) = figure.axes
    for patch in (figure.patch, axes.patch):
        patch.set_alpha(0)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.8)
    axes.tick_params(colors=GREY, which="both", labelsize=10)
    for side, spine in axes.spines.items():
        spine.set(color=GREY, visible=side in ("left", "bottom"))
    handles, names = axes.get_legend_handles_labels()
    style = {"frameon": False, "labelcolor": GREY, "fontsize": 10, "handlelength": 2.6}
    figure.legend(handles, names, loc="outside upper left", ncols=min(2, len(names)), **style)
    stream = io.BytesIO()
    # A fixed salt and no date: the same figures result in the same page.
    with matplotlib.rc_context({"svg.hashsalt": "iiae", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
