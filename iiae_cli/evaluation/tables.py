"""`evaluate`'s figures as tables for people: on a terminal, in a pipe and in the report."""

from __future__ import annotations

from collections.abc import Sequence
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


# task, title, what names a row, its figures
_TABLES = (
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
        ("l1", "ssim", "lpips", "lpips_vgg", "n"),
    ),
    (
        "translation",
        "Translation with sampled exclusive latents: mean, and best of N",
        ("direction",),
        (
            "samples",
            *(
                f"{name}_{which}"
                for name in ("l1", "ssim", "lpips", "lpips_vgg")
                for which in ("mean", "best")
            ),
        ),
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
_PAPER_COLUMNS = ("table", "method", "direction", "figure", "paper", "ours", "note")


def figure_tables(figures: dict[str, Any]) -> list[Table]:
    """A table for every kind of figure that was measured."""
    tables = []
    for task, title, names, columns in _TABLES:
        found = figures.get(task, {})
        if (
            task == "zero_shot" and found
        ):  # the model's own figures stand above the others, without a name
            own = {way: found[way] for way in ("x_to_y", "y_to_x")}
            found = {"shared": own, **{name: row for name, row in found.items() if name not in own}}
        rows = [
            (path, row)
            for path, row in _leaves(found)
            if len(path) == len(names) and columns[0] in row
        ]
        measured = [column for column in columns if any(column in row for _, row in rows)]
        if rows:
            lines = [
                (*path, *["" if row.get(one) is None else row[one] for one in measured])
                for path, row in rows
            ]
            tables.append(Table(title, [*names, *measured], lines, len(names)))
    return tables


def paper_table(rows: Sequence[PaperRow]) -> Table:
    """The paper's rows beside a run's."""
    return Table("Beside the paper", _PAPER_COLUMNS, [_paper_line(row) for row in rows], 4)


def _paper_line(row: PaperRow) -> tuple[object, ...]:
    one = row.published
    ours = "" if row.ours is None else row.ours
    return (one.table, one.method, one.direction, one.figure, one.value, ours, row.note)


def _leaves(
    figures: dict[str, Any], names: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """(names, figures) of every innermost mapping that holds numbers only."""
    found = []
    for name, value in figures.items():
        if isinstance(value, dict):
            if value and all(not isinstance(one, dict) for one in value.values()):
                found.append(((*names, name), value))
            else:
                found += _leaves(value, (*names, name))
    return found
