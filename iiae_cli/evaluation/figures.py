"""Turns the nested figures of `evaluate` into gates for scripts and tables for people.

`--fail-under` is a floor, or a ceiling if the key's last part names an error. KL terms are no
errors: an exclusive latent whose KL falls towards zero holds nothing. `--fail-over` is always a
ceiling. A figure that was not measured (null, NaN) fails every gate.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from iiae_cli.common.errors import IiaeError

Task: TypeAlias = Literal["retrieval", "zero-shot", "translation", "disentanglement", "all"]


def dotted_figures(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Returns every number (or None) of nested mappings by its dotted key."""
    dotted: dict[str, float | None] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            dotted |= dotted_figures(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            dotted[f"{prefix}{name}"] = value
    return dotted


# ---- gates

_ERROR = re.compile(r"(l1|lpips|error|leakage|median_rank)(_\w+)?")


class Gate(NamedTuple):
    """A dotted key, such as `retrieval.shared.x_to_y.recall@1`, and the bound of its figure."""

    key: str
    bound: float
    is_ceiling: bool


def parse_gates(under: Sequence[str], over: Sequence[str] = ()) -> list[Gate]:
    """Parses the `KEY=VALUE` texts of `--fail-under`, then of `--fail-over`."""
    gates = []
    for option, texts in (("--fail-under", under), ("--fail-over", over)):
        for text in texts:
            key, _, value = text.partition("=")
            try:
                bound = float(value)
            except ValueError:
                bound = math.nan
            if not key or not math.isfinite(bound):
                example = f"{option} retrieval.shared.x_to_y.recall@1=0.9"
                raise IiaeError(f"{option} {text} is not KEY=VALUE", f"write {example}")
            is_error = _ERROR.fullmatch(key.rsplit(".", 1)[-1]) is not None
            gates.append(Gate(key, bound, is_error or option == "--fail-over"))
    return gates


def failed_gates(gates: Sequence[Gate], figures: Mapping[str, Any]) -> list[str]:
    """Returns a line for every gate that fails; raises for a key that names no figure."""
    known = dotted_figures(figures)
    lines = []
    for key, bound, is_ceiling in gates:
        if key not in known:
            near = [name for name in known if key in name][:5]
            near = near or difflib.get_close_matches(key, known, n=5, cutoff=0.7) or list(known)
            hint = f"figures: {', '.join(near) or 'none was measured'}"
            raise IiaeError(f"unknown figure '{key}'", hint)
        value = known[key]
        if value is None or math.isnan(value):
            lines.append(f"{key} could not be measured")
        elif value > bound if is_ceiling else value < bound:
            side = "above" if is_ceiling else "below"
            lines.append(f"{key} is {value:.6g}, {side} {bound:.6g}")
    return lines


# ---- tables


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers; whoever shows it shortens numbers, and leaves None blank."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    names: int = 1  # columns, from the left, that name a row rather than measure it

    def is_measured(self, column: int) -> bool:
        """Returns whether a column, counted from 0, has numbers that do not name their row."""
        values = [row[column] for row in self.rows]
        return column >= self.names and any(isinstance(value, int | float) for value in values)


_RETRIEVED = ("latent", "direction")
_RECALLS = ("recall@1", "recall@5", "recall@10", "median_rank", "n")
_PRECISIONS = ("map@all", "map@200", "precision@100", "precision@200", "n")
_MEASURES = ("l1", "ssim", "lpips", "lpips_vgg")
_SAMPLED = tuple(f"{name}_{which}" for name in _MEASURES for which in ("mean", "best"))
_ERRORS_READ = ("error_real", "error_guided", "spread_real", "spread_sampled", "n")
_BY_CLASS = "Zero-shot retrieval: items of the query's class are hits"
_BY_SAMPLES = "Translation with sampled exclusive latents: mean, and best of N"
_CLASS_KEPT = "Is the class kept? As read by a judge of real pictures"
_FACTOR_TAKEN = "Is the reference's factor taken? Fractions of its range, read by a judge"
# Task, title, what names a row, its figures.
_TABLES: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("retrieval", "Retrieval: only the true pair is a hit", _RETRIEVED, _RECALLS),
    ("zero_shot", _BY_CLASS, _RETRIEVED, _PRECISIONS),
    ("translation", "Translation guided by the true partner", ("direction",), (*_MEASURES, "n")),
    ("translation", _BY_SAMPLES, ("direction",), ("samples", *_SAMPLED)),
    ("judged", _CLASS_KEPT, ("direction", "what"), ("real", "guided", "sampled", "n")),
    ("judged", _FACTOR_TAKEN, ("direction", "factor"), _ERRORS_READ),
)
_BOUNDS = {
    "shared_given_other": "I(X; Zs | Y) at most",
    "shared": "I(X, Y; Zs) at most",
    "exclusive": "I(X; Zx), I(Zx; Zs) at most",
    "exclusive_shared_plus_entropy": "I(Zx; Zs) + H(X) + const at most",
}
_LEAKAGE = ("leakage_mean", "leakage_sample")
_HELD = ("informativeness_mean", "informativeness_sample", "active", "dimensions", "kl")
_SWAPPED = ("shared_recall@1", "shared_distance", "exclusive_recall@1", "exclusive_r2")
_RETURNED = ("return_recall@1", "return_distance", "round_trip_l1", "n")
_LATENTS = "Latents: from 0, nothing, to 1, all; of means and of samples"
_SWAPS = "Swaps encoded again: what they keep, and how they come home"


def figure_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Returns a table for every kind of figure except disentanglement."""
    tables = [
        _table(figures.get(task, {}), title, names, columns)
        for task, title, names, columns in _TABLES
    ]
    return [table for table in tables if table.rows]


def _table(
    figures: Mapping[str, Any],
    title: str,
    names: Sequence[str],
    columns: Sequence[str],
) -> Table:
    """Makes a row of every innermost mapping that has the first column's figure, baselines first.

    A row that names no latent, as in zero-shot figures, is of the shared one.
    """
    groups: dict[str, dict[str, float | None]] = {}
    for key, value in dotted_figures(figures).items():
        path, _, name = key.rpartition(".")
        groups.setdefault(path, {})[name] = value
    rows = {path: row for path, row in groups.items() if columns[0] in row}
    measured = [column for column in columns if any(column in row for row in rows.values())]
    cells = []
    for path, row in sorted(rows.items(), key=lambda row: not row[0].startswith("baseline")):
        named = ["shared", *path.split(".", len(names) - 1)][-len(names) :]
        cells.append((*named, *(row.get(column) for column in measured)))
    return Table(title, [*names, *measured], cells, len(names))


def disentanglement_tables(figures: Mapping[str, Any]) -> dict[str, Table]:
    """Returns tables of latents, of probes by `mean` and by `sample`, of swaps and of bounds."""
    latents, swaps = figures.get("latents", {}), figures.get("swaps", {})
    tables = {
        "latents": _table(latents, _LATENTS, ("latent",), (*_LEAKAGE, *_HELD)),
        **{way: _probe_table(figures.get("probes", {}), way) for way in ("mean", "sample")},
        "swaps": _table(swaps, _SWAPS, ("swap",), (*_SWAPPED, *_RETURNED)),
        "bounds": _bound_table(figures.get("bounds", {})),
    }
    return {name: _rounded(table) for name, table in tables.items()}


def _rounded(table: Table) -> Table:
    """Rounds to three decimals, as more digits of a score near 0 are noise."""

    def cell(value: object) -> object:
        return round(value, 3) + 0.0 if isinstance(value, float) else value

    return replace(table, rows=[(*map(cell, row),) for row in table.rows])


def _probe_table(probes: Mapping[str, Any], way: str) -> Table:
    """Makes a row per latent and factor: R², or balanced accuracy."""
    headers = ["latent", "factor", "belongs", way, "non-linear", "shuffled", "chance"]
    rows = []
    for latent, factors in probes.items():
        for name, factor in factors.items():
            belongs = {True: "yes", False: "no", None: ""}[factor["belongs"]]
            scores = [factor[way][score] for score in ("linear", "nonlinear", "control")]
            rows.append((latent, name, belongs, *scores, factor["chance"]))
    return Table(f"Factors read from {way}s: R², or accuracy of classes", headers, rows, 3)


def _bound_table(bounds: Mapping[str, Any]) -> Table:
    """Makes a row per quantity; a figure of both domains is in both columns."""
    domains = [{**bounds, **bounds.get(domain, {})} for domain in ("x", "y")]
    rows = [
        (title, *(domain[key] for domain in domains))
        for key, title in _BOUNDS.items()
        if key in domains[0]
    ]
    title = "Information in nats, upper bounds (for y read Y for X)"
    return Table(title, ["quantity", "x", "y"], rows)
