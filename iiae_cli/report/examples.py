"""The report's retrieval: a histogram of ranks, and queries with their neighbours.

The choice of queries depends on the figures alone: a page made twice is the same page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.protocols import DIRECTIONS, EncodedPairs
from iiae_cli.evaluation.tables import Table
from iiae_cli.evaluation.zero_shot import rank_by_class
from iiae_cli.inference.neighbours import Metric, nearest, partner_ranks
from iiae_cli.model import Domain
from iiae_cli.report.page import Direction, Examples, Item, thumbnail_uri
from iiae_cli.report.plots import Chart, lying_bars
from iiae_cli.report.samples import spread

NEIGHBOURS = 5
EXAMPLES = 5  # successes, and failures, at most
_BIN_ENDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class _Search:
    """One direction of retrieval by shared means.

    `keys` are of the queries' rows and of the gallery's: rows of equal keys belong together, and
    `words` say so of a neighbour, or say that it is another.
    """

    pairs: EncodedPairs
    split: Split
    source: Domain
    target: Domain
    metric: Metric
    keys: tuple[NDArray[Any], NDArray[Any]]
    words: tuple[str, str]

    @property
    def name(self) -> str:
        return f"{self.source} → {self.target}"

    @property
    def queries(self) -> NDArray[Any]:
        return self.pairs.of(self.source).mean("shared")

    @property
    def gallery(self) -> NDArray[Any]:
        return self.pairs.of(self.target).mean("shared")

    def examples(self, title: str, notes: Mapping[int, str], *, partners: bool) -> list[Examples]:
        """Searches for queries, each with a note; returns a table, or none without queries."""
        if not notes:
            return []
        rows = list(notes)
        found, distances = nearest(self.queries[rows], self.gallery, NEIGHBOURS, metric=self.metric)
        lines = []
        for row, neighbours, lengths in zip(rows, found, distances, strict=True):
            line = [self._item(self.source, row, "Query", notes[row])]
            if partners:
                line.append(self._item(self.target, row, "Its partner"))
            for rank, (neighbour, length) in enumerate(zip(neighbours, lengths, strict=True), 1):
                right = bool(self.keys[0][row] == self.keys[1][neighbour])
                note = f"{self.words[0 if right else 1]}, distance {length:.4g}"
                item = self._item(self.target, int(neighbour), f"Rank {rank}", note, right)
                line.append(item)
            lines.append(line)
        ranks = [f"rank {rank}" for rank in range(1, found.shape[1] + 1)]
        headers = ["query", *["its partner"] * partners, *ranks]
        return [Examples(f"{self.name}: {title}", headers, lines)]

    def _item(
        self, domain: Domain, row: int, what: str, note: str = "", right: bool | None = None
    ) -> Item:
        side = self.split.side(domain)
        return Item(
            identity=side.ids[row],
            label=None if side.labels is None else side.labels[row],
            picture=thumbnail_uri(side.rows[row]) if side.rows.ndim == 4 else None,
            alt=f"{what} of domain {domain}",
            note=note,
            tone="" if right is None else "right" if right else "wrong",
        )


def paired_directions(
    pairs: EncodedPairs, split: Split, metric: Metric
) -> tuple[list[Direction], Chart]:
    """Shows both directions, where row i of x is the partner of row i of y, and all ranks."""
    directions, ranked = [], {}
    words, keys = ("✓ partner", "✗ another"), np.arange(split.pair_count)
    for source, target in DIRECTIONS:
        search = _Search(pairs, split, source, target, metric, (keys, keys), words)
        ranks = partner_ranks(search.queries, search.gallery, metric=metric)
        ranked[search.name] = ranks
        hits = np.flatnonzero(ranks == 1)
        misses = np.argsort(-ranks, kind="stable")[: (ranks > 1).sum()]
        notes = {row: f"partner at rank {rank:,}" for row, rank in enumerate(ranks.tolist())}
        hits, misses = hits[spread(len(hits), EXAMPLES)].tolist(), misses.tolist()
        examples = [
            *search.examples("found at once", {row: notes[row] for row in hits}, partners=False),
            *search.examples(
                "failures, the worst first",
                {row: notes[row] for row in misses[:EXAMPLES]},
                partners=True,
            ),
        ]
        summary = f"{len(misses):,} of {len(ranks):,} queries do not find their partner first."
        directions.append(Direction(search.name, summary, examples))
    return directions, rank_chart(ranked)


def class_directions(pairs: EncodedPairs, split: Split) -> list[Direction]:
    """Shows both directions, where every row of the query's class is right: cosine distance.

    The queries have the best and the worst average precision, no two of one class.
    """
    directions, words = [], ("✓ its class", "✗ another class")
    for source, target in DIRECTIONS:
        labels = np.asarray(split.side(source).labels or [])
        gallery_labels = np.asarray(split.side(target).labels or [])
        search = _Search(pairs, split, source, target, "cosine", (labels, gallery_labels), words)
        ranking = rank_by_class(
            search.queries, search.gallery, labels.tolist(), gallery_labels.tolist()
        )
        precision = ranking.average_precision
        ranked = np.flatnonzero(np.isin(labels, gallery_labels))  # rows that have a precision
        order = np.argsort(-precision, kind="stable")
        best = _distinct_classes(order, labels[ranked])
        worst = [row for row in _distinct_classes(order[::-1], labels[ranked]) if row not in best]
        examples = [
            table
            for title, chosen in (
                ("queries of best average precision", best),
                ("queries of worst average precision", worst),
            )
            for table in search.examples(
                title,
                {int(ranked[at]): f"average precision {precision[at]:.3f}" for at in chosen},
                partners=False,
            )
        ]
        names, codes, counts = np.unique(labels[ranked], return_inverse=True, return_counts=True)
        means = np.bincount(codes, precision) / counts
        classes = Table(
            f"{search.name}: average precision by class, worst first",
            ["class", "mean average precision", "queries"],
            [
                (str(names[place]), float(means[place]), int(counts[place]))
                for place in np.argsort(means, kind="stable")
            ],
        )
        directions.append(Direction(search.name, "", examples, classes))
    return directions


def _distinct_classes(order: Ints, labels: NDArray[np.str_]) -> list[int]:
    """Returns the first positions in `order` of up to `EXAMPLES` classes."""
    chosen: dict[str, int] = {}
    for place in order:
        chosen.setdefault(str(labels[place]), int(place))
    return list(chosen.values())[:EXAMPLES]


def rank_bins(largest: int) -> list[tuple[int, int]]:
    """Returns (first, last) rank of every bin up to the one that holds `largest`."""
    ends = [end for end in _BIN_ENDS if end < largest]
    ends.append(next((end for end in _BIN_ENDS if end >= largest), largest))
    return [(first + 1, last) for first, last in zip([0, *ends], ends, strict=False)]


def rank_chart(ranked: Mapping[str, Ints]) -> Chart:
    """Draws the histogram of partners' ranks, a bar for every direction."""
    bins = rank_bins(max(int(ranks.max()) for ranks in ranked.values()))
    names = [str(first) if first == last else f"{first}–{last}" for first, last in bins]
    edges = [first for first, _ in bins] + [bins[-1][1] + 1]
    groups = {name: np.histogram(ranks, edges)[0].tolist() for name, ranks in ranked.items()}
    svg = lying_bars(names, groups, x_label="queries", y_label="rank of the true partner")
    texts = []
    for name, counts in groups.items():
        listed = zip(names, counts, strict=True)
        ranks = [f"{count} at rank {span}" for span, count in listed if count]
        texts.append(f"{name}: {', '.join(ranks)}")
    return Chart("Rank of the true partner", svg, f"Histogram. {'; '.join(texts)}.")
