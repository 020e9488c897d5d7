"""What a run directory tells of its training, for the report: curves from metrics.jsonl, facts from run.json.

Both files may be missing, torn by an interruption or edited by hand; what cannot be read is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iiae_cli.evaluation.disentanglement import DYING_NATS
from iiae_cli.report.plots import Level, Line, line_chart

_ARROWS = ("x → y", "y → x")


@dataclass(frozen=True)
class Chart:
    """A plot and what it says.

    Attributes:
        title: its heading.
        svg: the picture.
        text: what it shows, for whoever does not see it.
    """

    title: str
    svg: bytes
    text: str


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of metrics.jsonl that have a step."""
    records = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none to be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def training_charts(records: list[dict[str, Any]]) -> list[Chart]:
    """Loss terms, exclusive KLs and validation, as far as they were logged."""
    training = [one for one in records if one.get("kind") == "train"]
    validations = [one for one in records if one.get("kind") == "validation"]
    charts = []
    names = ["loss", *(name for name in (training[-1] if training else {}) if _is_term(name))]
    losses = _drawn([Line(_short(name), _points(training, name)) for name in names])
    if losses:
        svg = line_chart(losses, x_label="step", y_label="loss terms, log scale", scale="log")
        charts.append(
            Chart(
                "Loss and its terms",
                svg,
                "Loss terms by step; rec. is the weighted reconstruction error. " + _ends(losses),
            )
        )
    charts += _validation_charts(validations)
    kl = [
        Line(f"{domain}, training", _points(training, f"kl_exclusive_{domain}"))
        for domain in ("x", "y")
    ]
    kl += [
        Line(f"{domain}, validation", _points(validations, "exclusive_kl", place), marked=True)
        for place, domain in enumerate(("x", "y"))
    ]
    kl = _drawn(kl)
    if kl:
        svg = line_chart(
            kl,
            x_label="step",
            y_label="nats, log scale",
            scale="symlog",
            levels=[Level("dying below", DYING_NATS)],
        )
        charts.append(
            Chart(
                "KL of the exclusive latents to the prior",
                svg,
                "Exclusive KL by step. " + _ends(kl),
            )
        )
    return charts


def _validation_charts(validations: list[dict[str, Any]]) -> list[Chart]:
    charts = []
    for key, name in (("shared_recall", "Recall@1"), ("shared_map", "mAP@all")):
        lines = _drawn(
            [
                Line(arrow, _points(validations, key, place), marked=True)
                for place, arrow in enumerate(_ARROWS)
            ]
        )
        if not lines:
            continue
        baseline = validations[-1].get("baseline")
        levels = [
            Level(f"baseline {arrow}", float(value))
            for arrow, value in zip(
                _ARROWS, baseline if isinstance(baseline, list) else [], strict=False
            )
            if isinstance(value, int | float)
        ]
        svg = line_chart(lines, x_label="step", y_label=name, levels=levels, fraction=True)
        text = f"{name} on validation by step. {_ends(lines)}"
        text += "".join(f" Training-free {level.name}: {level.value:.3f}." for level in levels)
        charts.append(Chart(f"Validation: {name} by shared latents", svg, text))
    return charts


def _is_term(name: str) -> bool:
    return name.startswith(("reconstruction_", "kl_shared_", "shared_only_"))


def _short(name: str) -> str:
    return name.replace("reconstruction", "rec.").replace("kl_", "KL ").replace("_", " ")


def _points(
    records: list[dict[str, Any]], name: str, place: int | None = None
) -> list[tuple[float, float]]:
    points = []
    for record in records:
        value = record.get(name)
        if place is not None:
            value = value[place] if isinstance(value, list) and len(value) > place else None
        if isinstance(value, int | float):
            points.append((float(record["step"]), float(value)))
    return points


def _drawn(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.points]


def _ends(lines: list[Line]) -> str:
    return " ".join(
        f"{line.name}: from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}." for line in lines
    )
