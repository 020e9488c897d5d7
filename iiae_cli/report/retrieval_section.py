"""The report's retrieval: ranks as a histogram, examples with their pictures and names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.tables import Table
from iiae_cli.inference.retrieval import Ints
from iiae_cli.model import Domain
from iiae_cli.report.curves import Chart
from iiae_cli.report.examples import DirectionExamples, Example
from iiae_cli.report.page import Direction, ExampleGroup, Found, Item, ShownExample, thumbnail_uri
from iiae_cli.report.plots import count_chart

_BIN_ENDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


def rank_bins(largest: int) -> list[tuple[int, int]]:
    """(first, last) rank of every bin up to the one that holds `largest`."""
    bins, first = [], 1
    for last in _BIN_ENDS:
        bins.append((first, last))
        if last >= largest:
            return bins
        first = last + 1
    return [*bins, (first, largest)]


def rank_chart(ranked: Sequence[tuple[str, Ints]]) -> Chart:
    """The histogram of partners' ranks, a bar for every direction."""
    bins = rank_bins(max(int(ranks.max()) for _, ranks in ranked))
    names = [str(first) if first == last else f"{first}–{last}" for first, last in bins]
    edges = [first for first, _ in bins] + [bins[-1][1] + 1]
    groups = [(name, [int(one) for one in np.histogram(ranks, edges)[0]]) for name, ranks in ranked]
    svg = count_chart(names, groups, x_label="queries", y_label="rank of the true partner")
    parts = [
        f"{name}: "
        + ", ".join(
            f"{count} at rank {span}" for span, count in zip(names, counts, strict=True) if count
        )
        for name, counts in groups
    ]
    return Chart("Rank of the true partner", svg, f"Histogram. {'; '.join(parts)}.")


def shown_direction(found: DirectionExamples, split: Split) -> Direction:
    """One direction's examples with their pictures (where rows are pictures), names and classes."""
    name = f"{found.source} → {found.target}"
    paired = found.ranks is not None
    summary, classes = "", None
    if found.ranks is not None:
        missed = int((found.ranks > 1).sum())
        summary = f"{missed:,} of {len(found.ranks):,} queries do not find their partner first."
        titles = ("found at once", "failures, the worst first")
    else:
        titles = ("queries of best average precision", "queries of worst average precision")
        headers = ["class", "mean average precision", "queries"]
        classes = Table(
            f"{name}: average precision by class, worst first", headers, list(found.classes)
        )
    groups = [
        ExampleGroup(
            f"{name}: {title}",
            [_shown(one, found, split) for one in examples],
            partners=paired and failures,
        )
        for title, examples, failures in zip(
            titles, (found.right, found.wrong), (False, True), strict=True
        )
        if examples
    ]
    return Direction(name, summary, groups, classes)


def _shown(example: Example, found: DirectionExamples, split: Split) -> ShownExample:
    paired = example.rank is not None
    right, wrong = ("✓ partner", "✗ another") if paired else ("✓ its class", "✗ another class")
    note = (
        f"partner at rank {example.rank:,}"
        if paired
        else f"average precision {example.average_precision or 0.0:.3f}"
    )
    return ShownExample(
        query=_item(split, found.source, example.row, f"Query of domain {found.source}"),
        note=note,
        partner=_item(split, found.target, example.row, f"Its partner of domain {found.target}")
        if paired
        else None,
        neighbours=[
            Found(
                _item(split, found.target, one.row, f"Rank {rank} of domain {found.target}"),
                one.distance,
                one.right,
                right if one.right else wrong,
            )
            for rank, one in enumerate(example.neighbours, 1)
        ],
    )


def _item(split: Split, domain: Domain, row: int, alt: str) -> Item:
    labels, rows = split.side(domain).labels, split.side(domain).rows
    return Item(
        identity=split.side(domain).ids[row],
        label=None if labels is None else labels[row],
        picture=thumbnail_uri(rows[row]) if rows.ndim == 4 else None,
        alt=alt,
    )
