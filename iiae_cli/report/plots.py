"""The report's plots, as SVG; the only user of matplotlib, which takes long to import and so is imported where used.

Figures are made by matplotlib's objects, not by pyplot: no global state, no window. Backgrounds are transparent, axes
mid-grey and lines of middling lightness, so that one picture serves a light and a dark page. Letters are drawn as
paths: the page needs no font. Lines differ by dash as well as by colour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = (
    4.4,
    2.9,
)  # inches; 10-point letters stay legible where a phone shows it 360 pixels wide
GREY = "#7a7a7a"  # about 4.3 : 1 against white and against the page's dark ground
COLOURS = ("#2f80d0", "#d2700a", "#1f9a55", "#d64550", "#9a63d8", "#b0851a", "#0e97a7", "#c2559b")
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend.
        points: (x, y); a y that is no finite number is left out.
        marked: whether every point gets a dot.
    """

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line: something to compare with."""

    name: str
    value: float


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    scale: Literal["linear", "log", "symlog"] = "linear",
    fraction: bool = False,
) -> bytes:
    """Lines over a common x, whole numbers from 0.

    Args:
        lines: what to draw.
        x_label: of the horizontal axis.
        y_label: of the vertical axis, with its unit.
        levels: to compare with, dotted and grey.
        scale: of y; `log` leaves out points at or below 0, `symlog` is linear below 1 and logarithmic above.
        fraction: whether y lies in [0, 1], and the axis shows all of it.

    Returns:
        An SVG document.
    """
    figure, axes = _figure()
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
    for number, level in enumerate(levels):
        axes.axhline(
            level.value,
            label=level.name,
            color=GREY,
            linestyle=(0, (1, 1 + 2 * number)),
            linewidth=1.8,
        )
    if scale == "log":
        axes.set_yscale("log")
    elif scale == "symlog":
        axes.set_yscale("symlog", linthresh=1.0)
    if fraction:
        axes.set_ylim(-0.02, 1.02)
    elif scale != "log":
        found = [y for line in lines for _, y in line.points if math.isfinite(y)]
        heights = [0.0, *found, *(level.value for level in levels)]
        axes.set_ylim(min(heights), max(heights) * (1.05 if scale == "linear" else 1.5) or 1.0)
    axes.set_xlim(left=0)
    _whole_steps(axes)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(figure, axes)
    return _svg(figure)


def bar_chart(
    groups: Sequence[tuple[str, Sequence[float]]], *, x_label: str, y_label: str
) -> bytes:
    """Groups of upright bars side by side.

    Args:
        groups: a name and one height per place; places are numbered from 1.
        x_label: of the horizontal axis.
        y_label: of the vertical axis, with its unit.

    Returns:
        An SVG document.
    """
    figure, axes = _figure()
    width = 0.8 / len(groups)
    for number, (name, heights) in enumerate(groups):
        places = [place + 0.6 + width * (number + 0.5) for place in range(len(heights))]
        axes.bar(places, heights, width * 0.92, label=name, **_bar_style(number))
    _whole_steps(axes)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(figure, axes)
    return _svg(figure)


def count_chart(
    names: Sequence[str], groups: Sequence[tuple[str, Sequence[int]]], *, x_label: str, y_label: str
) -> bytes:
    """Groups of lying bars, each with its count at its end; they need room downwards only, however many there are.

    Args:
        names: of the places, from the top.
        groups: a name and one count per place.
        x_label: of the horizontal axis, the counts'.
        y_label: of the vertical axis, the names'.

    Returns:
        An SVG document.
    """
    figure, axes = _figure(height=1.0 + 0.18 * (len(groups) + 0.4) * len(names), grid="x")
    width = 0.84 / len(groups)
    for number, (name, counts) in enumerate(groups):
        places = [place - 0.42 + width * (number + 0.5) for place in range(len(names))]
        bars = axes.barh(places, counts, width * 0.92, label=name, **_bar_style(number))
        axes.bar_label(bars, [f"{count:,}" for count in counts], color=GREY, fontsize=9, padding=3)
    axes.margins(x=0.14)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _whole_steps(axes)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(figure, axes)
    return _svg(figure)


def score_chart(
    names: Sequence[str],
    groups: Sequence[tuple[str, Sequence[float]]],
    chances: Sequence[float],
    *,
    x_label: str,
) -> bytes:
    """Groups of lying bars of scores, each with its value at its end, and a mark where chance lies.

    Args:
        names: of the places, from the top.
        groups: a name and one score per place; 1 is the best there is, below 0 nothing is drawn but the value.
        chances: one per place; a mark is drawn where it is above 0.
        x_label: of the horizontal axis, the scores'.

    Returns:
        An SVG document.
    """
    figure, axes = _figure(height=1.0 + 0.18 * (len(groups) + 0.4) * len(names), grid="x")
    width = 0.84 / len(groups)
    for number, (name, scores) in enumerate(groups):
        places = [place - 0.42 + width * (number + 0.5) for place in range(len(names))]
        bars = axes.barh(
            places,
            [max(0.0, one) for one in scores],
            width * 0.92,
            label=name,
            **_bar_style(number),
        )
        axes.bar_label(
            bars,
            [f"{round(one, 2) + 0.0:.2f}" for one in scores],
            color=GREY,
            fontsize=9,
            padding=3,
        )
    marked = [(place, chance) for place, chance in enumerate(chances) if chance > 0]
    if marked:
        axes.vlines(
            [chance for _, chance in marked],
            [place - 0.46 for place, _ in marked],
            [place + 0.46 for place, _ in marked],
            colors=COLOURS[3],
            linewidth=2,
            label="chance",
        )
    axes.set_xlim(0, 1.16)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    _legend(figure, axes, columns=3)
    return _svg(figure)


def _bar_style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number], "hatch": ("", "///")[number % 2], "linewidth": 0}


def _whole_steps(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))


def _figure(height: float = HEIGHT, grid: Literal["x", "y"] = "y") -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(axis=grid, color=GREY, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, which="both", labelsize=10)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=GREY, fontsize=10)
    for side, spine in axes.spines.items():
        spine.set(color=GREY, visible=side in ("left", "bottom"))
    return figure, axes


def _legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """Above the axes, where no line runs through it."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=min(columns, len(names)),
        frameon=False,
        labelcolor=GREY,
        fontsize=10,
        handlelength=2.6,
        columnspacing=1.4,
    )


def _svg(figure: Figure) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    # A fixed salt and no date: the same figures give the same page.
    with matplotlib.rc_context(
        {"svg.hashsalt": "iiae", "svg.fonttype": "path", "hatch.linewidth": 0.6}
    ):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
