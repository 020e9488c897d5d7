"""Draw pictures/leakage.png from leakage.csv and leakage-runs.csv: `python docs/leakage.py`."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
GREY, BLUE, RED = "#777777", "#1f6fb4", "#c0392b"


def rows(data: str, start: str, end: str) -> list[dict[str, str]]:
    """Measured rows of one set whose erasure begins and ends so, neither a single factor's nor plain LEACE's."""
    found = [
        row
        for row in csv.DictReader((HERE / "leakage.csv").open())
        if row["set"] == data and row["seed"] == "0"
    ]
    found = [row for row in found if not row["factor"] and row["erasure"].startswith(start)]
    return [row for row in found if row["erasure"].endswith(end) and "plain" not in row["erasure"]]


def seeds_of_plus(data: str) -> list[tuple[float, float]]:
    """Of every seed of a -plus preset: L1 of y→x above the paper's of that seed, in percent, and class from y."""
    runs = [row for row in csv.DictReader((HERE / "leakage-runs.csv").open()) if not row["changed"]]
    paper = {row["seed"]: float(row["l1_yx"]) for row in runs if row["preset"] == data}
    return [
        (100 * (float(row["l1_yx"]) / paper[row["seed"]] - 1), float(row["exclusive_class_y"]))
        for row in runs
        if row["preset"] == f"{data}-plus"
    ]


def main() -> None:
    """Two panels: what the shared mean still tells against translation, and what the exclusive mean still tells."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    for row in rows("mnist-cdcb-32", "snr", "residual 3"):
        colour = RED if "leace" in row["erasure"] else BLUE
        point = (float(row["l1_xy"]), float(row["shared_colour_x"]))
        left.plot(*point, "o", color=colour)
        label = row["erasure"].removesuffix(" + residual 3").replace("snr 0.1 + ", "")
        left.annotate(
            label, point, xytext=(5, 5), textcoords="offset points", fontsize=7, color=GREY
        )
    left.xaxis.set_major_locator(plt.MaxNLocator(5))
    left.axhline(0.05, color=GREY, lw=0.8, ls=":")
    left.set(
        xlabel="guided L1, x to y",
        ylabel="R² of x's colour from x's shared mean",
        title="mnist-cdcb-32, channel",
    )
    for data, colour, best in (("digits-cdcb", BLUE, 0.0404), ("mnist-cdcb-32", RED, 0.0534)):
        points = []
        for row in rows(data, "snr 0.1 + residual", ""):
            change = 100 * (float(row["l1_yx"]) / best - 1)
            points.append(
                (change, float(row["exclusive_class_y_train"]), row["erasure"].rsplit(" ", 1)[1])
            )
        points.sort()
        right.plot(
            [p[0] for p in points], [p[1] for p in points], "o-", color=colour, lw=0.8, label=data
        )
        for x, y, ridge in points:
            right.annotate(
                f"ridge {ridge}",
                (x, y),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=7,
                color=GREY,
            )
        right.plot(
            *zip(*seeds_of_plus(data), strict=True),
            "*",
            color=colour,
            ms=11,
            label=f"{data}-plus, by seed",
        )
    right.axhline(0.15, color=GREY, lw=0.8, ls=":")
    right.set(
        xlabel="guided L1, y to x, above the paper's, %",
        ylabel="class accuracy from y's exclusive mean",
    )
    right.set_ylim(top=0.235)
    right.set_title("residual afterwards (dots), the -plus presets (stars)")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "pictures" / "leakage.png", dpi=110)


if __name__ == "__main__":
    main()
