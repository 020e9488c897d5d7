"""The figures of disentanglement as tables: on a terminal (80 columns will do), in a pipe and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iiae_cli.evaluation.tables import Table

_BOUNDS = (
    ("I(X; Zs | Y) at most", "shared_given_other"),
    ("I(X; Zx), I(Zx; Zs) at most", "exclusive"),
    ("I(Zx; Zs) + H(X) + const at most", "exclusive_shared_plus_entropy"),
)
_SWAPS = (
    ("shared@1", "shared_recall@1"),
    ("moved", "shared_distance"),
    ("exclusive@1", "exclusive_recall@1"),
    ("R²", "exclusive_r2"),
    ("return@1", "return_recall@1"),
    ("L1", "round_trip_l1"),
)


def disentanglement_tables(figures: Mapping[str, Any]) -> list[Table]:
    """A table of latents, of probes, of swaps and of bounds, as far as they were measured."""
    tables = [
        latent_table(figures),
        probe_table(figures, "mean"),
        probe_table(figures, "sample"),
        swap_table(figures),
        bound_table(figures),
    ]
    return [table for table in tables if table is not None and table.rows]


def latent_table(figures: Mapping[str, Any]) -> Table | None:
    """One line per latent: the two verdicts from means and samples, and how much of it is in use."""
    headers = ["latent", "leakage", "sampled", "informative", "sampled", "active", "nats"]
    rows = []
    for name, one in figures.get("latents", {}).items():
        verdicts = [
            one[f"{what}_{way}"]
            for what in ("leakage", "informativeness")
            for way in ("mean", "sample")
        ]
        active = f"{one['active']}/{one['dimensions']}"
        rows.append((_title(name), *map(_short, verdicts), active, _short(one["kl"], 1)))
    return Table("Latents: from 0, nothing, to 1, all; of means and of samples", headers, rows)


def probe_table(figures: Mapping[str, Any], way: str) -> Table | None:
    """One line per latent and factor, read from `mean` or `sample`: R² of a quantity, balanced accuracy of classes."""
    headers = ["latent", "factor", "belongs", way, "non-linear", "shuffled", "chance"]
    rows = []
    for latent, factors in figures.get("probes", {}).items():
        for factor, one in factors.items():
            ought = {True: "yes", False: "no", None: ""}[one["belongs"]]
            scores = [
                *[one[way][probe] for probe in ("linear", "nonlinear", "control")],
                one["chance"],
            ]
            rows.append((_title(latent), factor, ought, *map(_short, scores)))
    return Table(f"Factors read from {way}s: R², or accuracy of classes", headers, rows, 3)


def swap_table(figures: Mapping[str, Any]) -> Table | None:
    """One line per direction."""
    found = figures.get("swaps", {})
    shown = [(title, key) for title, key in _SWAPS if any(key in one for one in found.values())]
    rows = [
        (way, *[_short(one.get(key)) for _, key in shown], one["n"]) for way, one in found.items()
    ]
    return Table(
        "Swaps encoded again: recall@1 (@1), moved, R², L1 back home",
        ["swap", *[title for title, _ in shown], "n"],
        rows,
    )


def bound_table(figures: Mapping[str, Any]) -> Table | None:
    """One line per quantity; what both domains share stands in both columns."""
    found = figures.get("bounds", {})
    if not found:
        return None
    rows: list[tuple[object, ...]] = [
        (title, *[_short(found[domain].get(key), 2) for domain in ("x", "y")])
        for title, key in _BOUNDS
        if key in found["x"]
    ]
    rows.insert(1, ("I(X, Y; Zs) at most", *[_short(found["shared"], 2)] * 2))
    return Table(
        "Information in nats, upper bounds (for y read Y for X)", ["quantity", "x", "y"], rows
    )


def _title(name: str) -> str:
    return name.replace("_", " ")


def _short(value: float | None, digits: int = 3) -> object:
    return "" if value is None else round(value, digits) + 0.0
