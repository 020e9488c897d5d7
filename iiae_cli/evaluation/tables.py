"""`evaluate`'s figures as tables: on a terminal of 80 columns, in a pipe and in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iiae_cli.evaluation.paper import PaperRow


@dataclass(frozen=True)
class Table:
    """Rows under headers.

    Attributes:
        title: what it shows.
        headers: one per column.
        rows: cells; floats are shown to six digits.
        names: how many columns, from the left, name a row rather than measure it.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    names: int = 1


_MEASURES = ("l1", "ssim", "lpips", "lpips_vgg")
# task, title, what names a row, its figures
_TABLES: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "retrieval",
        "Retrieval: only the true pair is a hit",
        ("latent", "direction"),
        ("recall@1", "recall@5", "recall@10", "median_rank", "n"),
    ),
    (
        "zero_shot",
        "Zero-shot retrieval: items of the query's class are hits",
        ("latent", "direction"),
        ("map@all", "map@200", "precision@100", "precision@200", "n"),
    ),
    (
        "translation",
        "Translation guided by the true partner",
        ("direction",),
        (*_MEASURES, "n"),
    ),
    (
        "translation",
        "Translation with sampled exclusive latents: mean, and best of N",
        ("direction",),
        ("samples", *(f"{name}_{which}" for name in _MEASURES for which in ("mean", "best"))),
    ),
    (
        "judged",
        "Is the class kept? As read by a judge of real pictures",
        ("direction", "what"),
        ("real", "guided", "sampled", "n"),
    ),
    (
        "judged",
        "Is the reference's factor taken? Fractions of its range, read by a judge",
        ("direction", "factor"),
        ("error_real", "error_guided", "spread_real", "spread_sampled", "n"),
    ),
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
        found = figures.get(task, {})
        if task == "zero_shot" and found:  # the model's own figures come first, without a name
            own = {way: found[way] for way in ("x_to_y", "y_to_x")}
            found = {"shared": own, **{name: row for name, row in found.items() if name not in own}}
        rows = [
            (path, row)
            for path, row in _leaves(found)
            if len(path) == len(names) and columns[0] in row
        ]
        measured = [column for column in columns if any(column in row for _, row in rows)]
        lines = [
            (*path, *(_blank_if_none(row.get(column)) for column in measured)) for path, row in rows
        ]
        tables.append(Table(title, [*names, *measured], lines, len(names)))
    return [table for table in tables if table.rows]


def paper_table(rows: Sequence[PaperRow]) -> Table:
    """The paper's rows beside a run's."""
    headers = ("table", "method", "direction", "figure", "paper", "ours", "note")
    lines = []
    for row in rows:
        names = (row.published.table, row.published.method, row.published.direction)
        ours = _blank_if_none(row.ours)
        lines.append((*names, row.published.figure, row.published.value, ours, row.note))
    return Table("Beside the paper", headers, lines, 4)


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
        verdicts = (_short(latent[key]) for key in keys)
        rows.append((_title(name), *verdicts, active, _short(latent["kl"], 1)))
    return Table("Latents: from 0, nothing, to 1, all; of means and of samples", headers, rows)


def probe_table(figures: Mapping[str, Any], way: str) -> Table:
    """A row per latent and factor, read from `mean` or `sample`: R², or balanced accuracy."""
    headers = ["latent", "factor", "belongs", way, "non-linear", "shuffled", "chance"]
    rows = []
    for latent, factors in figures.get("probes", {}).items():
        for name, factor in factors.items():
            belongs = {True: "yes", False: "no", None: ""}[factor["belongs"]]
            scores = [factor[way][score] for score in ("linear", "nonlinear", "control")]
            cells = (_short(score) for score in (*scores, factor["chance"]))
            rows.append((_title(latent), name, belongs, *cells))
    return Table(f"Factors read from {way}s: R², or accuracy of classes", headers, rows, 3)


def swap_table(figures: Mapping[str, Any]) -> Table:
    """A row per direction."""
    swaps = figures.get("swaps", {})
    shown = [(title, key) for title, key in _SWAPS if any(key in swap for swap in swaps.values())]
    rows = [
        (way, *(_short(swap.get(key)) for _, key in shown), swap["n"])
        for way, swap in swaps.items()
    ]
    title = "Swaps encoded again: recall@1 (@1), moved, R², L1 back home"
    return Table(title, ["swap", *(title for title, _ in shown), "n"], rows)


def bound_table(figures: Mapping[str, Any]) -> Table:
    """A row per quantity; what both domains share stands in both columns."""
    bounds = figures.get("bounds", {})
    rows: list[tuple[object, ...]] = []
    if bounds:
        rows = [
            (title, *(_short(bounds[domain][key], 2) for domain in ("x", "y")))
            for title, key in _BOUNDS
            if key in bounds["x"]
        ]
        rows.insert(1, ("I(X, Y; Zs) at most", *[_short(bounds["shared"], 2)] * 2))
    title = "Information in nats, upper bounds (for y read Y for X)"
    return Table(title, ["quantity", "x", "y"], rows)


def _leaves(
    figures: Mapping[str, Any], names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """(names, figures) of every innermost mapping that holds numbers only."""
    for name, value in figures.items():
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            yield from _leaves(value, (*names, name))
        elif isinstance(value, Mapping) and value:
            yield (*names, name), value


def _title(name: str) -> str:
    return name.replace("_", " ")


def _blank_if_none(value: object) -> object:
    return "" if value is None else value


def _short(value: float | None, digits: int = 3) -> object:
    return "" if value is None else round(value, digits) + 0.0  # −0.0 becomes 0.0
