"""Draws pictures/leakage.png from leakage.csv and leakage-runs.csv: `python docs/leakage.py`."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
GREY, BLUE, RED = "#777777", "#1f6fb4", "#c0392b"
# Data set, colour, and the paper's guided L1 of y→x.
SETS = (("digits-cdcb", BLUE, 0.0404), ("mnist-cdcb-32", RED, 0.0534))


def read(name: str) -> list[dict[str, str]]:
    """Reads a table beside this file."""
    with (HERE / name).open() as file:
        return list(csv.DictReader(file))


def measured(data: str, start: str, end: str = "") -> list[dict[str, str]]:
    """Returns a set's rows by their erasure; single factors and plain LEACE are left out."""
    return [
        row
        for row in read("leakage.csv")
        if row["set"] == data
        and row["seed"] == "0"
        and not row["factor"]
        and row["erasure"].startswith(start)
        and row["erasure"].endswith(end)
        and "plain" not in row["erasure"]
    ]


def seeds_of_plus(data: str) -> list[tuple[float, float]]:
    """Returns (L1 of y→x above the same seed of the paper in percent, class from y) by seed."""
    runs = [row for row in read("leakage-runs.csv") if not row["changed"]]
    paper = {row["seed"]: float(row["l1_yx"]) for row in runs if row["preset"] == data}
    return [
        (100 * (float(row["l1_yx"]) / paper[row["seed"]] - 1), float(row["exclusive_class_y"]))
        for row in runs
        if row["preset"] == f"{data}-plus"
    ]


def annotate(axes: Axes, text: str, point: tuple[float, float]) -> None:
    """Writes a small label beside a point."""
    axes.annotate(text, point, xytext=(5, 4), textcoords="offset points", fontsize=7, color=GREY)


def draw_shared(axes: Axes) -> None:
    """Draws the colour that shared means hold against translation."""
    for row in measured("mnist-cdcb-32", "snr", "residual 3"):
        point = (float(row["l1_xy"]), float(row["shared_colour_x"]))
        axes.plot(*point, "o", color=RED if "leace" in row["erasure"] else BLUE)
        label = row["erasure"].removesuffix(" + residual 3").replace("snr 0.1 + ", "")
        annotate(axes, label, point)
    axes.xaxis.set_major_locator(plt.MaxNLocator(5))
    axes.axhline(0.05, color=GREY, lw=0.8, ls=":")
    axes.set_xlabel("guided L1, x to y")
    axes.set_ylabel("R² of x's colour from x's shared mean")
    axes.set_title("mnist-cdcb-32, channel")


def draw_exclusive(axes: Axes) -> None:
    """Draws the class that exclusive means hold against translation."""
    for data, colour, paper in SETS:
        points = sorted(
            (
                100 * (float(row["l1_yx"]) / paper - 1),
                float(row["exclusive_class_y_train"]),
                row["erasure"].rsplit(" ", 1)[1],
            )
            for row in measured(data, "snr 0.1 + residual")
        )
        x, y, ridges = zip(*points, strict=True)
        axes.plot(x, y, "o-", color=colour, lw=0.8, label=data)
        for change, accuracy, ridge in zip(x, y, ridges, strict=True):
            annotate(axes, f"ridge {ridge}", (change, accuracy))
        stars = zip(*seeds_of_plus(data), strict=True)
        axes.plot(*stars, "*", color=colour, ms=11, label=f"{data}-plus, by seed")
    axes.axhline(0.15, color=GREY, lw=0.8, ls=":")
    axes.set_xlabel("guided L1, y to x, above the paper's, %")
    axes.set_ylabel("class accuracy from y's exclusive mean")
    axes.set_ylim(top=0.235)
    axes.set_title("residual afterwards (dots), the -plus presets (stars)")
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    """Draws both panels."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.8))
    draw_shared(panels[0])
    draw_exclusive(panels[1])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "pictures" / "leakage.png", dpi=110)


if __name__ == "__main__":
    main()
