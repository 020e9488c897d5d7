"""The report's charts as SVG; the only user of matplotlib, which takes long to import.

Lines differ by dash as well as by colour; how else they look stands in templates/charts.mplstyle.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Literal

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STYLE = files("iiae_cli.report") / "templates" / "charts.mplstyle"


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
    with as_file(STYLE) as style, matplotlib.style.context(style):
        figure = Figure()
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        for line in lines:
            shown = [
                (x, y) for x, y in line.points if math.isfinite(y) and (y > 0 or scale != "log")
            ]
            marker = "o" if line.marked or len(shown) == 1 else None
            axes.plot([x for x, _ in shown], [y for _, y in shown], label=line.name, marker=marker)
        for number, (name, value) in enumerate((levels or {}).items()):
            axes.axhline(value, label=name, color="grey", linestyle=(0, (1, 1 + 2 * number)))
        if scale == "symlog":
            axes.set_yscale("symlog", linthresh=1.0)
            axes.set_ylim(bottom=0)
        elif scale == "log":
            axes.set_yscale("log")
        else:
            axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        figure.legend(loc="outside upper left", ncols=2)  # no line runs through it
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    ends = [
        f"{line.name} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines
    ]
    ends += [f"{name} {value:.3g}" for name, value in (levels or {}).items()]
    text = f"{title}, by {x_label}: {'; '.join(ends)}."
    return [Chart(title, stream.getvalue(), text)]
