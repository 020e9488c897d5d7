"""The sections of the report's page: verdict, curves, panels and tables from measured figures.

Lines of a chart differ by dash as well as by colour; templates/charts.mplstyle defines its style.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from iiae_cli.common import console
from iiae_cli.evaluation.figures import Table
from iiae_cli.evaluation.retrieval import DIRECTIONS, DYING_NATS, direction_name
from iiae_cli.evaluation.translation import Subject
from iiae_cli.model import DOMAINS
from iiae_cli.report.grids import Panel, Tone, analogy_panel, sample_panel, spread

GRID_PAIRS = 8
ANALOGY_SIDE = 5
STYLE = files("iiae_cli.report") / "templates" / "charts.mplstyle"
MOST_NEAREST = 100  # largest K on the axis
MOST_MARKED = 24  # longer lines have no dots
ARROWS = {direction_name(*domains): " → ".join(domains) for domains in DIRECTIONS}

OURS, BASELINE = "shared latents", "training-free baseline"
KINDS = {"shared": OURS, "baseline_raw": BASELINE, "baseline": BASELINE}
KINDS |= {"baseline_centred": BASELINE, "exclusive": "exclusive latents, right at chance"}
TITLES = {
    "recall@1": "Recall@1: the partner comes first",
    "map@all": "mAP@all: the class comes first",
}
SOLVED = 0.99
LEAK, SOME_LEAK = 0.5, 0.2  # grades of a reading from 0 (none) to 1 (perfect)

Figures: TypeAlias = Mapping[str, Any]
Points: TypeAlias = Sequence[tuple[float, float]]


def cell(value: object) -> str:
    """Formats a value for people: short numbers, a dash for a missing one, JSON for collections."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return console.number(value, digits=4)
    return json.dumps(value, ensure_ascii=False, default=str)


# ---- verdict


@dataclass(frozen=True)
class Verdict:
    """The report's first sentence, in a few words, and its figures."""

    tone: Tone
    headline: str
    text: str


def _compared(figures: Figures) -> tuple[str, dict[str, list[float]]]:
    """Returns the measure, and its values x → y and y → x by what retrieves."""
    zero_shot = figures.get("zero_shot", {})
    measured = figures.get("retrieval") or {"shared": zero_shot, **zero_shot}
    measure, compared = "recall@1" if "retrieval" in figures else "map@all", {}
    for name, kind in KINDS.items():
        if ways := measured.get(name):
            compared[kind] = [float(ways[way][measure]) for way in ARROWS]
    return measure, compared


def comparison(figures: Figures) -> Table:
    """Compares latents with the training-free baseline, a row per direction and kind."""
    measure, compared = _compared(figures)
    rows = [
        (arrow, kind, values[place])
        for place, arrow in enumerate(ARROWS.values())
        for kind, values in compared.items()
    ]
    return Table(TITLES[measure], ["direction", "by", measure], rows, 2)


def verdict(figures: Figures) -> Verdict:
    """Judges by the baseline, the worst leak, the exclusive latents' KL, and failed gates."""
    measure, compared = _compared(figures)
    ours, baseline = compared.get(OURS, []), compared.get(BASELINE, [])
    tone, headline = _against(ours, baseline)
    lines = []
    if ours:
        text = f"{TITLES[measure].partition(':')[0]} is {_figures(ours)} (x → y / y → x)"
        lines.append(f"{text}, the baseline's {_figures(baseline)}" if baseline else text)
    translated = [row["l1"] for row in figures.get("translation", {}).values() if row.get("l1")]
    if translated:
        lines.append(f"L1 of guided translations is {_figures(translated)}")
    measured = figures.get("disentanglement", {"probes": {}, "latents": {}})
    leaks = [
        (factor["mean"]["above_control"] or 0.0, f"{name} read from {latent.replace('_', ' ')}")
        for latent, factors in measured["probes"].items()
        for name, factor in factors.items()
        if factor["belongs"] is False
    ]
    worst, which = max(leaks, default=(0.0, ""))
    if leaks:
        size = "the worst leak is" if worst >= SOME_LEAK else "no leak is above"
        lines.append(f"{size} {worst:.2f} of 1 ({which})")
    kls = {name: latent.get("kl", DYING_NATS) for name, latent in measured["latents"].items()}
    dying = [name.replace("_", " ") for name, kl in kls.items() if kl < DYING_NATS]
    lines += [f"{name} says next to nothing" for name in dying]
    if tone == "right" and (dying or worst >= LEAK):
        tone = "near"
    if failures := figures.get("failures"):
        tone, headline = "wrong", f"{len(failures)} of the gates failed: {'; '.join(failures)}"
    return Verdict(tone, headline, "; ".join(lines))


def _against(ours: Sequence[float], baseline: Sequence[float]) -> tuple[Tone, str]:
    if not ours or not baseline:
        words = "Nothing training-free compares the two domains"
        return "near", words if ours else "Retrieval was not measured"
    if min(baseline) >= SOLVED:
        return "near", "This data needs no training to retrieve: the baseline solves it"
    ahead = [own > other for own, other in zip(ours, baseline, strict=True)]
    if any(ahead):
        words = "Ahead of the training-free baseline"
        return ("right", words) if all(ahead) else ("near", f"{words} in one direction only")
    if ours == baseline:
        return "near", "Level with the training-free baseline"
    return "wrong", "Behind the training-free baseline"


def _figures(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def leak(value: object, *floors: object) -> str:
    """Grades a reading of what should not be read: `high`, `some` or empty.

    It counts from the highest of the `floors`, such as the reading of shuffled values, to 1.
    """
    if not isinstance(value, int | float):
        return ""
    floor = max([0.0, *(floor for floor in floors if isinstance(floor, int | float))])
    share = (value - floor) / max(1 - floor, 1e-9)
    return "high" if share >= LEAK else "some" if share >= SOME_LEAK else ""


# ---- curves


@dataclass(frozen=True)
class Chart:
    """A plot, and a `text` for readers who cannot see it."""

    title: str
    svg: bytes
    text: str


def line_charts(
    title: str,
    lines: Mapping[str, Points],
    *,
    y_label: str,
    fraction: bool = False,
    x_label: str = "step",
    levels: Mapping[str, float] | None = None,
) -> list[Chart]:
    """Draws named lines over whole numbers; returns no chart if no line has a point.

    `levels` are named values to compare with. The axis of a `fraction` is [0, 1]; any other starts
    at 0, and is logarithmic from 1 on if it reaches 10.
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
        for number, (name, value) in enumerate((levels or {}).items()):
            axes.axhline(value, label=name, color="grey", linestyle=(0, (1, 1 + 2 * number)))
        if fraction:
            axes.set_ylim(-0.02, 1.02)
        else:
            if axes.get_ylim()[1] > 10:
                axes.set_yscale("symlog", linthresh=1.0)
            axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        figure.legend(loc="outside upper left", ncols=2)  # no line runs through it
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    ends = [f"{name} from {row[0][1]:.4g} to {row[-1][1]:.4g}" for name, row in lines.items()]
    ends += [f"{name} {value:.3g}" for name, value in (levels or {}).items()]
    text = f"{title}, by {x_label}: {'; '.join(ends)}."
    return [Chart(title, stream.getvalue(), text)]


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
    charts = line_charts("Loss and its terms", losses, y_label="nats")

    baseline = (validations[-1].get("baseline") if validations else None) or ()
    ways = ARROWS.values()
    levels = {f"baseline {way}": raw for way, raw in zip(ways, baseline, strict=False)}
    for key, name in (("shared_recall", "Recall@1"), ("shared_map", "mAP@all")):
        lines = {way: _points(validations, key, at) for at, way in enumerate(ways)}
        title = f"Validation: {name} by shared latents"
        charts += line_charts(title, lines, y_label=name, fraction=True, levels=levels)

    kls = {f"{d}, training": _points(training, f"kl_exclusive_{d}") for d in DOMAINS}
    for place, domain in enumerate(DOMAINS):
        kls[f"{domain}, validation"] = _points(validations, "exclusive_kl", place)
    title, levels = "KL of the exclusive latents to the prior", {"dying below": DYING_NATS}
    return charts + line_charts(title, kls, y_label="nats", levels=levels)


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
    title, label = "Recall@K: the partner is among the K nearest", "nearest neighbours K"
    return line_charts(title, lines, x_label=label, y_label="Recall@K", fraction=True)


# ---- translation


def translation_panels(subject: Subject, aligned: bool, samples: int) -> list[Panel]:
    """Shows rows spread over the split; nothing for features or without decoders.

    If rows are `aligned` (row i of x belongs to row i of y), partners guide translations.
    """
    model, split = subject.trained, subject.split
    if model.size is None or not model.network.generative:
        return []
    panels, exclusive = [], model.network.exclusive_dim > 0
    if aligned:
        pairs = split.take_pairs(spread(split.pair_count, GRID_PAIRS))
        panel = sample_panel(model, pairs, samples=samples, seed=subject.seed)
        panel.title = "Translation, sampled and guided by the partner"
        panel.note = "Each row is a pair. From the left: x, its translations to y; then y to x."
        panels.append(panel)
    for domain in DOMAINS if exclusive else ():
        rows = split.side(domain).rows
        chosen = spread(len(rows), 2 * ANALOGY_SIDE)
        if len(chosen) > 1:
            panel = analogy_panel(model, domain, rows[chosen[::2]], rows[chosen[1::2]])
            panel.title = f"Analogies within {domain}"
            panel.note = "Shared latent of the picture at the left, exclusive one of that above."
            panels.append(panel)
    return panels
