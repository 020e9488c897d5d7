"""Turns the nested figures of `evaluate` into gates for scripts and tables for people.

`--fail-under` is a floor, or a ceiling if the key's last part names an error. KL terms are no
errors: an exclusive latent whose KL falls towards zero holds nothing. `--fail-over` is always a
ceiling. A figure that was not measured (null, NaN) fails every gate.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NamedTuple, TypeAlias

from iiae_cli.common.errors import IiaeError

Task: TypeAlias = Literal["retrieval", "zero-shot", "translation", "disentanglement", "all"]


def dotted_figures(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns every number (or None) of nested mappings by its dotted key."""
    return {
        ".".join((*path, name)): value
        for path, own, _ in _mappings(figures)
        for name, value in own.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def _mappings(
    figures: Mapping[str, Any], path: tuple[str, ...] = (), around: Mapping[str, Any] | None = None
) -> Iterator[tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]]:
    """Yields path and values of every nested mapping, then these with those around it."""
    own = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
    values = {**(around or {}), **own}
    yield path, own, values
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _mappings(value, (*path, name), values)


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
    place: str = ""  # dotted key of the figures that it shows

    def is_measured(self, column: int) -> bool:
        """Returns whether a column, counted from 0, has numbers that do not name their row."""
        values = [row[column] for row in self.rows]
        return column >= self.names and any(isinstance(value, int | float) for value in values)


_RETRIEVED = "latent direction"
_RECALLS = "recall@1 recall@5 recall@10 median_rank n"
_PRECISIONS = "map@all map@200 precision@100 precision@200 n"
_GUIDED = "l1 ssim lpips lpips_vgg n"
_SAMPLED = "samples l1_mean l1_best ssim_mean ssim_best "
_BEST = "lpips_mean lpips_best lpips_vgg_mean lpips_vgg_best"
_FACTORS = "error_real error_guided spread_real spread_sampled n"
_HELD = "leakage_mean leakage_sample informativeness_mean informativeness_sample "
_USED = "active dimensions kl"
_PROBED = "linear nonlinear control chance above_control belongs"
_SWAPPED = "shared_recall@1 shared_distance exclusive_recall@1 exclusive_r2 "
_RETURNED = "return_recall@1 return_distance round_trip_l1 n"
_NATS = "shared_given_other shared exclusive exclusive_shared_plus_entropy"
# Place of the figures, title, what names a row, its figures: a row has at least the first one.
_TABLES = (
    ("retrieval", "Retrieval: only the true pair is a hit", _RETRIEVED, _RECALLS),
    ("zero_shot", "Zero-shot retrieval: the query's class is right", _RETRIEVED, _PRECISIONS),
    ("translation", "Translation guided by the true partner", "direction", _GUIDED),
    ("translation", "Translation sampled: mean, and best of N", "direction", _SAMPLED + _BEST),
    ("judged", "Is the class kept? As a judge reads it", "direction what", "real guided sampled n"),
    ("judged", "Is the reference's factor taken? Parts of its range", "direction factor", _FACTORS),
    ("disentanglement.latents", "Latents: from 0, nothing, to 1, all", "latent", _HELD + _USED),
    ("disentanglement.probes", "Factors: R², or accuracy of classes", "latent factor of", _PROBED),
    ("disentanglement.swaps", "Swaps encoded again", "swap", _SWAPPED + _RETURNED),
    ("disentanglement.bounds", "Information in nats, upper bounds", "domain", _NATS),
)


def figure_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Returns a table for every kind of figure that was measured."""
    tables = [_table(figures, *kind) for kind in _TABLES]
    return [table for table in tables if table.rows]


def _table(figures: Mapping[str, Any], place: str, title: str, naming: str, measures: str) -> Table:
    """Makes a row of every mapping that has the first column's figure, baselines first.

    A row that names no latent, as in zero-shot figures, is of the shared one. Scores of
    disentanglement have three decimals, as more digits of a score near 0 are noise.
    """

    def cell(value: object) -> object:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float) and place.startswith("disentanglement"):
            return round(value, 3) + 0.0
        return value

    measured = reduce(lambda inner, key: inner.get(key, {}), place.split("."), figures)
    names, columns = naming.split(), measures.split()
    rows = [(path, row) for path, own, row in _mappings(measured) if columns[0] in own]
    rows.sort(key=lambda row: not row[0][0].startswith("baseline"))
    columns = [column for column in columns if any(column in row for _, row in rows)]
    cells = [
        [*("shared", *path)[-len(names) :], *(cell(row.get(column)) for column in columns)]
        for path, row in rows
    ]
    return Table(title, [*names, *columns], cells, len(names), place)
