"""The sections of the report's page: verdict, curves, panels and tables from measured figures.

Lines of a chart differ by dash as well as by colour; templates/charts.mplstyle defines its style.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.evaluation.retrieval import DIRECTIONS, DYING_NATS
from iiae_cli.evaluation.translation import Subject
from iiae_cli.model import DOMAINS
from iiae_cli.report.grids import Panel, Tone, analogy_panel, sample_panel, spread

GRID_PAIRS = 8
ANALOGY_SIDE = 5
STYLE = files("iiae_cli.report") / "templates" / "charts.mplstyle"
MOST_NEAREST = 100  # largest K on the axis
MOST_MARKED = 24  # longer lines have no dots
ARROWS = {name: " → ".join(domains) for name, domains in DIRECTIONS.items()}
BASELINES = ("baseline_centred", "baseline_raw", "baseline")  # the first one measured counts
SOLVED = 0.99
LEAK, SOME_LEAK = 0.5, 0.2  # grades of a reading from 0 (none) to 1 (perfect)
# By the number of directions that are ahead.
AHEAD: tuple[tuple[Tone, str], ...] = (
    ("wrong", "Not ahead of the training-free baseline"),
    ("near", "Ahead of the training-free baseline in one direction only"),
    ("right", "Ahead of the training-free baseline"),
)

Figures: TypeAlias = Mapping[str, Any]
Chart: TypeAlias = dict[str, Any]
Points: TypeAlias = Sequence[tuple[float, float]]


def cell(value: object) -> str:
    """Formats a value for people: short numbers, a dash for a missing one, JSON for collections."""
    if value is None or value == "":
        return "—"
    if isinstance(value, float):
        return console.number(value, digits=4)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ---- verdict


def verdict(figures: Figures) -> dict[str, str]:
    """Judges by the baseline, the worst leak, the exclusive latents' KL, and failed gates.

    Returns `tone`, `headline` and a `text` of figures.
    """
    zero_shot = figures.get("zero_shot", {})
    measured = figures.get("retrieval") or {"shared": zero_shot, **zero_shot}
    measure = "Recall@1" if "retrieval" in figures else "mAP@all"
    baselines = [measured[name] for name in BASELINES if name in measured]
    ours, baseline = (
        [ways[way][measure.lower()] for way in ARROWS] if ways else []
        for ways in (measured["shared"], baselines[0] if baselines else None)
    )
    tone, headline = _against(ours, baseline)
    lines = []
    if ours:
        text = f"{measure} is {_figures(ours)} (x → y / y → x)"
        lines.append(f"{text}, the baseline's {_figures(baseline)}" if baseline else text)
    translated = [row["l1"] for row in figures.get("translation", {}).values() if row.get("l1")]
    if translated:
        lines.append(f"L1 of guided translations is {_figures(translated)}")
    latents = figures.get("disentanglement", {}).get("latents", {})
    means = {name: latent["leakage_mean"] for name, latent in latents.items()}
    leaks = [(value, name) for name, value in means.items() if value is not None]
    worst, which = max(leaks, default=(0.0, ""))
    if leaks:
        size = "the worst leak is" if worst >= SOME_LEAK else "no leak is above"
        lines.append(f"{size} {worst:.2f} of 1, read from {which.replace('_', ' ')}")
    dying = [name for name, latent in latents.items() if latent["kl"] < DYING_NATS]
    lines += [f"{name.replace('_', ' ')} says next to nothing" for name in dying]
    if tone == "right" and (dying or worst >= LEAK):
        tone = "near"
    if failures := figures.get("failures"):
        tone, headline = "wrong", f"{len(failures)} of the gates failed: {'; '.join(failures)}"
    return {"tone": tone, "headline": headline, "text": "; ".join(lines)}


def _against(ours: Sequence[float], baseline: Sequence[float]) -> tuple[Tone, str]:
    if not ours:
        return "near", "Retrieval was not measured"
    if not baseline:
        return "near", "Nothing training-free compares the two domains"
    if min(baseline) >= SOLVED:
        return "near", "This data needs no training to retrieve: the baseline solves it"
    return AHEAD[sum(own > other for own, other in zip(ours, baseline, strict=True))]


def _figures(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def leak(value: float | None) -> str:
    """Grades a reading of what should not be read, from 0 to 1: `high`, `some` or empty."""
    share = value or 0.0
    return "high" if share >= LEAK else "some" if share >= SOME_LEAK else ""


# ---- curves


def line_charts(
    title: str, lines: Mapping[str, Points], y_label: str, x_label: str = "step"
) -> list[Chart]:
    """Draws named lines over whole numbers; returns no chart if no line has a point.

    A chart has a `title`, an `svg`, and a `text` for readers who cannot see it. The axis of
    fractions is [0, 1]; any other starts at 0, and is logarithmic from 1 on if it reaches 10.
    """
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return []
    with as_file(STYLE) as style, matplotlib.style.context(style):
        figure = Figure()
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        for name, points in lines.items():
            marker = "o" if len(points) <= MOST_MARKED else None
            axes.plot(*zip(*points, strict=True), label=name, marker=marker)
        if axes.get_ylim()[1] > 10:
            axes.set_yscale("symlog", linthresh=1.0)
        most = max(value for points in lines.values() for _, value in points)
        axes.set_ylim(*((-0.02, 1.02) if most <= 1 else (0, None)))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        figure.legend(loc="outside upper left", ncols=2)  # no line runs through it
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    ends = [f"{name} from {row[0][1]:.4g} to {row[-1][1]:.4g}" for name, row in lines.items()]
    text = f"{title}, by {x_label}: {'; '.join(ends)}."
    return [{"title": title, "svg": stream.getvalue(), "text": text}]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl without lines that an interruption tore."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def training_charts(records: Sequence[Figures]) -> list[Chart]:
    """Draws the loss terms, validation and exclusive KLs, as far as they were logged."""
    training = [record for record in records if record["kind"] == "train"]
    validations = [record for record in records if record["kind"] == "validation"]
    terms = ("loss", "reconstruction_", "kl_shared_", "shared_only_")
    losses = {
        name.replace("kl_", "KL ").replace("_", " "): _points(training, name)
        for name in (training[-1] if training else {})
        if name.startswith(terms)
    }
    charts = line_charts("Loss and its terms", losses, "nats")
    by_class = any("shared_map" in record for record in validations)
    key, name = ("shared_map", "mAP@all") if by_class else ("shared_recall", "Recall@1")
    lines = {
        f"{what}{way}": _points(validations, figure, place)
        for what, figure in (("", key), ("baseline ", "baseline"))
        for place, way in enumerate(ARROWS.values())
    }
    charts += line_charts(f"Validation: {name} by shared latents", lines, name)
    kls = {f"{d}, training": _points(training, f"kl_exclusive_{d}") for d in DOMAINS}
    for place, domain in enumerate(DOMAINS):
        kls[f"{domain}, validation"] = _points(validations, "exclusive_kl", place)
    return charts + line_charts("KL of the exclusive latents, dying below 3 nats", kls, "nats")


def _points(records: Sequence[Figures], name: str, place: int | None = None) -> Points:
    """Returns (step, value) of every record that has the value, or the value's item at `place`."""
    known = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [(step, value if place is None else value[place]) for step, value in known]


def recall_charts(ranked: Mapping[str, NDArray[np.int64]]) -> list[Chart]:
    """Draws the fraction of queries whose partner is among their K nearest, by K."""
    lines = {}
    for name, ranks in ranked.items():
        most = min(MOST_NEAREST, len(ranks))
        hits = np.bincount(ranks, minlength=most + 1).cumsum()[1 : most + 1] / len(ranks)
        lines[name] = list(enumerate(hits.tolist(), 1))
    title = "Recall@K: the partner is among the K nearest"
    return line_charts(title, lines, "Recall@K", "nearest neighbours K")


# ---- translation


def translation_panels(subject: Subject, aligned: bool, samples: int) -> list[Panel]:
    """Shows rows spread over the split; nothing for features or without decoders.

    If rows are `aligned` (row i of x belongs to row i of y), partners guide translations.
    """
    model, split, panels = subject.trained, subject.split, list[Panel]()
    if model.size is None or not model.network.generative:
        return []
    if aligned:
        pairs = split.take_pairs(spread(split.pair_count, GRID_PAIRS))
        panels.append(sample_panel(model, pairs, samples=samples, seed=subject.seed))
    for domain in DOMAINS if model.network.exclusive_dim else ():
        rows = split.side(domain).rows
        chosen = spread(len(rows), 2 * ANALOGY_SIDE)
        if len(chosen) > 1:
            panels.append(analogy_panel(model, domain, rows[chosen[::2]], rows[chosen[1::2]]))
    return panels
