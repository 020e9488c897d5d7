"""The report's charts, as SVG.

Matplotlib takes long to import, so the functions here import it, and nothing else does. Backgrounds
are transparent and axes mid-grey: one picture serves a light and a dark page. Letters are paths, so
the page needs no font. Lines differ by dash as well as by colour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def line_chart(
    lines: Sequence[Line],
    *,
    y_label: str,
    scale: Literal["fraction", "log", "symlog"],
    x_label: str = "step",
    levels: Mapping[str, float] | None = None,
) -> bytes:
    """Draws lines over whole numbers; points whose y is not finite are left out.

    `levels` are named values to compare with. The scale `fraction` shows all of [0, 1], `log`
    leaves out points at or below 0, `symlog` starts at 0 and is linear below 1.
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
    for number, (name, value) in enumerate((levels or {}).items()):
        dots = (0, (1, 1 + 2 * number))
        axes.axhline(value, label=name, color=GREY, linestyle=dots, linewidth=1.8)
    if scale == "fraction":
        axes.set_ylim(-0.02, 1.02)
    elif scale == "log":
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _whole_numbers(axes)
    return _finish(figure, axes, x_label, y_label)


def lying_bars(
    names: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str = "",
    chances: Sequence[float] | None = None,
) -> bytes:
    """Draws groups of horizontal bars by name, with a value for each place from the top.

    Values are counts; with `chances`, one per place, they are scores up to 1 and a mark shows a
    chance above 0.
    """
    figure, axes = _figure(height=1.0 + 0.18 * (len(groups) + 0.4) * len(names), grid="x")
    show: Callable[[float], str] = "{:,}".format if chances is None else _two_digits
    width = 0.84 / len(groups)
    for number, (name, values) in enumerate(groups.items()):
        places = [place - 0.42 + width * (number + 0.5) for place in range(len(names))]
        lengths = [max(0.0, value) for value in values]
        style: dict[str, Any] = {"color": COLOURS[number], "hatch": ("", "///")[number % 2]}
        bars = axes.barh(places, lengths, width * 0.92, label=name, linewidth=0, **style)
        axes.bar_label(bars, [show(value) for value in values], color=GREY, fontsize=9, padding=3)
    if chances is None:
        axes.margins(x=0.14)
        _whole_numbers(axes)
    else:
        marks = [(chance, place) for place, chance in enumerate(chances) if chance > 0]
        if marks:
            at, places = np.transpose(marks)
            style = {"colors": COLOURS[3], "linewidth": 2, "label": "chance"}
            axes.vlines(at, places - 0.46, places + 0.46, **style)
        axes.set_xlim(0, 1.16)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    return _finish(figure, axes, x_label, y_label, columns=3)


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # + 0.0 turns -0.0 into 0.0


def _whole_numbers(axes: Axes) -> None:
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
    for side, spine in axes.spines.items():
        spine.set(color=GREY, visible=side in ("left", "bottom"))
    return figure, axes


def _finish(figure: Figure, axes: Axes, x_label: str, y_label: str, columns: int = 2) -> bytes:
    """Adds labels and a legend above the axes, where no line runs through it; returns the SVG."""
    import matplotlib

    axes.set_xlabel(x_label, color=GREY, fontsize=10)
    axes.set_ylabel(y_label, color=GREY, fontsize=10)
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
    stream = io.BytesIO()
    # A fixed salt and no date: the same figures result in the same page.
    with matplotlib.rc_context(
        {"svg.hashsalt": "iiae", "svg.fonttype": "path", "hatch.linewidth": 0.6}
    ):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
