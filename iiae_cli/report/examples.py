"""Which queries a report shows: some that retrieval gets right, the ones that it gets most wrong, and their neighbours.

The choice is a function of the figures alone, so that a page made twice is the same page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.protocols import DIRECTIONS, EncodedPairs
from iiae_cli.evaluation.zero_shot import rank_by_class
from iiae_cli.inference.retrieval import Ints, Metric, nearest, partner_ranks
from iiae_cli.model import Domain

NEIGHBOURS = 5


@dataclass(frozen=True)
class Neighbour:
    """A gallery row that was found.

    Attributes:
        row: in the gallery.
        distance: to the query.
        right: whether it is the query's partner, or of its class.
    """

    row: int
    distance: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A query and what was found.

    Attributes:
        row: of the query.
        neighbours: nearest first.
        rank: of its partner, from 1; None where rows are paired by class.
        average_precision: None where every row has a partner of its own.
    """

    row: int
    neighbours: Sequence[Neighbour]
    rank: int | None = None
    average_precision: float | None = None


@dataclass(frozen=True)
class DirectionExamples:
    """One direction of retrieval by shared means.

    Attributes:
        source: domain of the queries.
        target: domain of the gallery.
        ranks: (Q,) of every query's partner; None where rows are paired by class.
        classes: (name, mean average precision, queries) of every class, worst first; empty for pairs.
        right: examples of success.
        wrong: the worst failures, worst first; empty where there is none.
    """

    source: Domain
    target: Domain
    ranks: Ints | None
    classes: Sequence[tuple[str, float, int]] = ()
    right: Sequence[Example] = field(default_factory=list)
    wrong: Sequence[Example] = field(default_factory=list)


def paired_examples(pairs: EncodedPairs, metric: Metric, count: int) -> list[DirectionExamples]:
    """Both directions where row i of x is the partner of row i of y.

    Args:
        pairs: latents of the split.
        metric: distance.
        count: how many successes, and how many failures, at most.
    """
    found = []
    for source, target in DIRECTIONS:
        queries, gallery = pairs.of(source).mean("shared"), pairs.of(target).mean("shared")
        ranks = partner_ranks(queries, gallery, metric=metric)
        hits = np.flatnonzero(ranks == 1)
        chosen = [int(row) for row in hits[spread(len(hits), count)]]
        missed = [int(row) for row in np.argsort(-ranks, kind="stable")[:count] if ranks[row] > 1]
        rows = np.array([*chosen, *missed], np.int64)
        examples = [
            Example(int(row), neighbours, rank=int(ranks[row]))
            for row, neighbours in zip(
                rows, _neighbours(queries, gallery, rows, rows[:, None], metric), strict=True
            )
        ]
        right, wrong = examples[: len(chosen)], examples[len(chosen) :]
        found.append(DirectionExamples(source, target, ranks, right=right, wrong=wrong))
    return found


def class_examples(pairs: EncodedPairs, split: Split, count: int) -> list[DirectionExamples]:
    """Both directions where a row belongs to every row of its class: cosine, the queries of best and worst average
    precision, no two of one class.

    Args:
        pairs: latents of the split.
        split: with labels in both domains.
        count: how many of the best, and how many of the worst, at most.
    """
    found = []
    for source, target in DIRECTIONS:
        queries, gallery = pairs.of(source).mean("shared"), pairs.of(target).mean("shared")
        labels, shelf = (
            np.asarray(split.side(source).labels or []),
            np.asarray(split.side(target).labels or []),
        )
        precision = rank_by_class(
            queries, gallery, labels.tolist(), shelf.tolist()
        ).average_precision
        kept = np.flatnonzero(
            np.isin(labels, shelf)
        )  # the queries that the ranking has a figure of
        order = np.argsort(-precision, kind="stable")
        best = _one_a_class(order, labels[kept], count)
        worst = [
            place for place in _one_a_class(order[::-1], labels[kept], count) if place not in best
        ]
        rows = kept[[*best, *worst]]
        same = labels[rows][:, None] == shelf[None, :]
        relevant = [np.flatnonzero(line) for line in same]
        examples = [
            Example(int(row), neighbours, average_precision=float(precision[place]))
            for row, place, neighbours in zip(
                rows,
                [*best, *worst],
                _neighbours(queries, gallery, rows, relevant, "cosine"),
                strict=True,
            )
        ]
        names, codes = np.unique(labels[kept], return_inverse=True)
        counts = np.bincount(codes)
        means = np.bincount(codes, precision) / counts
        classes = [
            (str(names[i]), float(means[i]), int(counts[i]))
            for i in np.argsort(means, kind="stable")
        ]
        right, wrong = examples[: len(best)], examples[len(best) :]
        found.append(DirectionExamples(source, target, None, classes, right, wrong))
    return found


def spread(length: int, count: int) -> NDArray[np.int64]:
    """At most `count` places of a list, evenly spread over it, ascending."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def _one_a_class(order: NDArray[np.int64], labels: NDArray[np.str_], count: int) -> list[int]:
    chosen: dict[str, int] = {}
    for place in order:
        if len(chosen) == count:
            break
        chosen.setdefault(str(labels[place]), int(place))
    return list(chosen.values())


def _neighbours(
    queries: NDArray[Any],
    gallery: NDArray[Any],
    rows: NDArray[np.int64],
    relevant: Sequence[NDArray[np.int64]] | NDArray[np.int64],
    metric: Metric,
) -> list[list[Neighbour]]:
    if not len(rows):
        return []
    found, distances = nearest(queries[rows], gallery, NEIGHBOURS, metric=metric)
    return [
        [
            Neighbour(int(one), float(distance), bool(np.isin(one, wanted)))
            for one, distance in zip(line, far, strict=True)
        ]
        for line, far, wanted in zip(found, distances, relevant, strict=True)
    ]
