"""What an evaluation comes to: the report's first sentence, and how bad a leak is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iiae_cli.evaluation.figures import Table
from iiae_cli.evaluation.retrieval import DYING_NATS
from iiae_cli.report.grids import Tone
from iiae_cli.report.sections import ARROWS, Figures

OURS, BASELINE = "shared latents", "training-free baseline"
SOLVED = 0.99
LEAK, SOME_LEAK = 0.5, 0.2  # of what a latent should not hold: 0 cannot be read, 1 can


@dataclass(frozen=True)
class Verdict:
    """What the figures come to: in a few words, and the figures themselves."""

    tone: Tone
    headline: str
    text: str


def comparison(figures: Figures) -> Table:
    """Compares latents with the training-free baseline: a row per direction and kind."""
    paired, zero = figures.get("retrieval"), figures.get("zero_shot", {})
    measured, measure = (paired, "recall@1") if paired else (zero, "map@all")
    names = ("baseline_centred", "baseline", "baseline_raw")
    baseline = next((measured[name] for name in names if name in measured), None)
    ours, exclusive = paired["shared"] if paired else zero, measured.get("exclusive")
    kinds = {OURS: ours, BASELINE: baseline, "exclusive latents": exclusive}
    rows = [
        (arrow, kind, float(values[way][measure]))
        for way, arrow in ARROWS.items()
        for kind, values in kinds.items()
        if values
    ]
    title = "Recall@1: the partner comes first" if paired else "mAP@all: the class comes first"
    return Table(title, ["direction", "by", measure], rows, 2)


def verdict(figures: Figures, failures: Sequence[str]) -> Verdict:
    """Judges by the baseline, the worst leak, the exclusive latents' KL, and failed gates."""
    table = comparison(figures)
    ours, baseline = (
        [float(str(value)) for _, kind, value in table.rows if kind == wanted]
        for wanted in (OURS, BASELINE)
    )
    tone, headline = _against(ours, baseline)
    lines = []
    if ours:
        measure = table.title.partition(":")[0]
        text = f"{measure} is {_figures(ours)} (x → y / y → x)"
        lines.append(f"{text}, the baseline's {_figures(baseline)}" if baseline else text)
    translated = [row["l1"] for row in figures.get("translation", {}).values() if row.get("l1")]
    if translated:
        lines.append(f"L1 of guided translations is {_figures(translated)}")
    measured = figures.get("disentanglement", {})
    latents = measured.get("latents", {})
    leaks = [
        (factor["mean"]["above_control"] or 0.0, f"{name} read from {latent.replace('_', ' ')}")
        for latent, factors in measured.get("probes", {}).items()
        for name, factor in factors.items()
        if factor["belongs"] is False
    ]
    worst, which = max(leaks, default=(0.0, ""))
    if leaks:
        size = "the worst leak is" if worst >= SOME_LEAK else "no leak is above"
        lines.append(f"{size} {worst:.2f} of 1 ({which})")
    dying = [name for name, latent in latents.items() if latent.get("kl", DYING_NATS) < DYING_NATS]
    lines += [f"{name.replace('_', ' ')} says next to nothing" for name in dying]
    if tone == "right" and (dying or worst >= LEAK):
        tone = "near"
    if failures:
        tone, headline = "wrong", f"{len(failures)} of the gates failed: {'; '.join(failures)}"
    return Verdict(tone, headline, "; ".join(lines))


def _against(ours: Sequence[float], baseline: Sequence[float]) -> tuple[Tone, str]:
    if not ours:
        return "near", "Retrieval was not measured"
    if not baseline:
        return "near", "Nothing training-free compares the two domains"
    ahead = [own > other for own, other in zip(ours, baseline, strict=True)]
    if min(baseline) >= SOLVED:
        return "near", "This data needs no training to retrieve: the baseline solves it"
    if all(ahead):
        return "right", "Ahead of the training-free baseline"
    if any(ahead):
        return "near", "Ahead of the training-free baseline in one direction only"
    if ours == baseline:
        return "near", "Level with the training-free baseline"
    return "wrong", "Behind the training-free baseline"


def _figures(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def leak(value: object, *floors: object) -> str:
    """Returns how bad a reading is of what should not be read: `high`, `some` or nothing.

    It counts from the highest of the `floors`, such as the reading of shuffled values, to 1.
    """
    if not isinstance(value, int | float):
        return ""
    floor = max([0.0, *(floor for floor in floors if isinstance(floor, int | float))])
    share = (value - floor) / max(1 - floor, 1e-9)
    return "high" if share >= LEAK else "some" if share >= SOME_LEAK else ""
