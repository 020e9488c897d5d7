"""`evaluate`'s nested figures: by dotted key, as gates for scripts, and as tables for people.

`--fail-under` is a floor, or a ceiling if the key's last part names an error. KL terms are none: an
exclusive latent whose KL falls towards zero holds nothing. `--fail-over` is a ceiling whatever the
key names: the R² of a colour is good in one latent and a leak in another. A figure that was not
measured (null, NaN) fails every gate.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from iiae_cli.common.errors import IiaeError


def dotted_figures(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Every number (or None) of nested mappings by its dotted key; anything else is left out."""
    dotted: dict[str, float | None] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            dotted |= dotted_figures(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            dotted[f"{prefix}{name}"] = value
    return dotted


# ---- gates

_ERRORS = ("l1", "lpips", "error", "leakage", "median_rank")
_EXAMPLES = {
    "--fail-under": "retrieval.shared.x_to_y.recall@1=0.9",
    "--fail-over": "disentanglement.latents.shared_x.leakage_mean=0.1",
}


class Gate(NamedTuple):
    """A dotted key, as `retrieval.shared.x_to_y.recall@1`, and the bound that its figure keeps."""

    key: str
    bound: float
    is_ceiling: bool


def parse_gates(under: Sequence[str], over: Sequence[str] = ()) -> list[Gate]:
    """Gates from `KEY=VALUE` texts: those of `--fail-under`, then those of `--fail-over`.

    Raises:
        IiaeError: some are malformed; all of the first option that has any are named.
    """
    gates = []
    for option, texts in (("--fail-under", under), ("--fail-over", over)):
        wrong = []
        for text in texts:
            key, _, value = text.partition("=")
            try:
                bound = float(value)
            except ValueError:
                bound = math.nan
            if not key or not math.isfinite(bound):
                wrong.append(text)
            gates.append(Gate(key, bound, option == "--fail-over" or is_error(key)))
        if wrong:
            message = f"{option} {', '.join(wrong)} is not KEY=VALUE"
            raise IiaeError(message, f"write {option} {_EXAMPLES[option]}")
    return gates


def is_error(key: str) -> bool:
    """Whether a dotted key's last part names an error, of which less is better."""
    name = key.rsplit(".", 1)[-1]
    return any(name == error or name.startswith(f"{error}_") for error in _ERRORS)


def failed_gates(gates: Sequence[Gate], figures: Mapping[str, Any]) -> list[str]:
    """A line for every gate that its figure, among nested mappings of numbers, does not pass.

    Raises:
        IiaeError: keys that name no figure; all are named, near matches in the hint.
    """
    known = dotted_figures(figures)
    unknown = list(dict.fromkeys(gate.key for gate in gates if gate.key not in known))
    if unknown:
        near = dict.fromkeys(match for key in unknown for match in _near(key, list(known)))
        hint = f"figures: {', '.join(known) or 'none was measured'}"
        hint = f"near matches: {', '.join(near)}" if near else hint
        raise IiaeError(f"there is no figure {', '.join(map(repr, unknown))}", hint)
    lines = []
    for key, bound, is_ceiling in gates:
        value = known[key]
        if value is None or math.isnan(value):
            lines.append(f"{key} could not be measured")
        elif value > bound if is_ceiling else value < bound:
            side = "above" if is_ceiling else "below"
            lines.append(f"{key} is {value:.6g}, {side} {bound:.6g}")
    return lines


def _near(key: str, known: list[str]) -> list[str]:
    """Keys that contain the text as it is, else those spelt much like it."""
    holding = [name for name in known if key in name][:5]
    return holding or difflib.get_close_matches(key, known, n=5, cutoff=0.7)


# ---- tables


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers; floats are shown to six digits."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    names: int = 1  # columns, from the left, that name a row rather than measure it


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


def figure_tables(figures: Mapping[str, Any]) -> list[Table]:
    """A table for every kind of figure but those of disentanglement."""
    tables = []
    for task, title, names, columns in _TABLES:
        nested = figures.get(task, {})
        if task == "zero_shot" and nested:  # the model's own figures come first, without a name
            own = {way: nested[way] for way in ("x_to_y", "y_to_x")}
            rest = {name: row for name, row in nested.items() if name not in own}
            nested = {"shared": own, **rest}
        rows = [
            (path, row)
            for path, row in _innermost(nested)
            if len(path) == len(names) and columns[0] in row
        ]
        measured = [column for column in columns if any(column in row for _, row in rows)]
        cells = [(*path, *(_cell(row.get(column)) for column in measured)) for path, row in rows]
        if cells:
            tables.append(Table(title, [*names, *measured], cells, len(names)))
    return tables


def disentanglement_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Tables of latents, probes, swaps and bounds, as far as they were measured."""
    probes = (probe_table(figures, way) for way in ("mean", "sample"))
    tables = (latent_table(figures), *probes, swap_table(figures), bound_table(figures))
    return [table for table in tables if table.rows]


def latent_table(figures: Mapping[str, Any]) -> Table:
    """A row per latent: the two verdicts from means and samples, and how much of it is in use."""
    headers = ["latent", "leakage", "sampled", "informative", "sampled", "active", "nats"]
    keys = ("leakage_mean", "leakage_sample", "informativeness_mean", "informativeness_sample")
    rows = []
    for name, latent in figures.get("latents", {}).items():
        active = f"{latent['active']}/{latent['dimensions']}"
        verdicts = (_cell(latent[key], 3) for key in keys)
        rows.append((name.replace("_", " "), *verdicts, active, _cell(latent["kl"], 1)))
    return Table("Latents: from 0, nothing, to 1, all; of means and of samples", headers, rows)


def probe_table(figures: Mapping[str, Any], way: str) -> Table:
    """A row per latent and factor, read from `mean` or `sample`: R², or balanced accuracy."""
    headers = ["latent", "factor", "belongs", way, "non-linear", "shuffled", "chance"]
    rows = []
    for latent, factors in figures.get("probes", {}).items():
        for name, factor in factors.items():
            belongs = {True: "yes", False: "no", None: ""}[factor["belongs"]]
            scores = [factor[way][score] for score in ("linear", "nonlinear", "control")]
            cells = (_cell(score, 3) for score in (*scores, factor["chance"]))
            rows.append((latent.replace("_", " "), name, belongs, *cells))
    return Table(f"Factors read from {way}s: R², or accuracy of classes", headers, rows, 3)


def swap_table(figures: Mapping[str, Any]) -> Table:
    """A row per direction."""
    swaps = figures.get("swaps", {})
    shown = [(title, key) for title, key in _SWAPS if any(key in swap for swap in swaps.values())]
    rows = [
        (way, *(_cell(swap.get(key), 3) for _, key in shown), swap["n"])
        for way, swap in swaps.items()
    ]
    title = "Swaps encoded again: recall@1 (@1), moved, R², L1 back home"
    return Table(title, ["swap", *(title for title, _ in shown), "n"], rows)


def bound_table(figures: Mapping[str, Any]) -> Table:
    """A row per quantity; what both domains share stands in both columns."""
    bounds = figures.get("bounds", {})
    rows = [
        (title, *(_cell(bounds[domain][key], 2) for domain in ("x", "y")))
        for title, key in _BOUNDS
        if key in bounds.get("x", ())
    ]
    if bounds:
        rows.insert(1, ("I(X, Y; Zs) at most", *[_cell(bounds["shared"], 2)] * 2))
    title = "Information in nats, upper bounds (for y read Y for X)"
    return Table(title, ["quantity", "x", "y"], rows)


def _innermost(
    figures: Mapping[str, Any], names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """(names, figures) of every mapping that holds no other."""
    for name, value in figures.items():
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            yield from _innermost(value, (*names, name))
        elif isinstance(value, Mapping) and value:
            yield (*names, name), value


def _cell(value: float | None, digits: int | None = None) -> object:
    """Blank for None; rounded to so many digits, where −0.0 becomes 0.0."""
    if value is None or digits is None:
        return "" if value is None else value
    return round(value, digits) + 0.0
