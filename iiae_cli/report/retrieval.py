"""Queries and their neighbours, right or wrong: the montage of `retrieve`, and the report's tables.

The montage takes the first rule that applies:

1. The data file pairs by class: entries of the query's class are right.
2. Queries and gallery are the two sides of one split: the pairs that its file lists.
3. The gallery holds the query's id, or exactly one entry of the query's file name without its
   ending (pictures of the two domains lie in two folders): that entry.
4. Both sides have labels: entries of the query's class.

Elsewhere nothing is known and nothing framed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.data.datafile import DataFile, Side, Split
from iiae_cli.data.pictures import PictureError, decode
from iiae_cli.evaluation.figures import Table
from iiae_cli.evaluation.retrieval import DIRECTIONS, EncodedPairs, rank_by_class
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.neighbours import Metric, nearest, partner_ranks
from iiae_cli.model import Domain
from iiae_cli.report.grids import RIGHT, WRONG, Picture, Tile, draw_grid, spread

Ints: TypeAlias = NDArray[np.int64]

# Verdicts on a neighbour, and the colours of their frames.
VERDICTS = {"partner": RIGHT, "other": WRONG, "same class": RIGHT, "other class": WRONG}
NEIGHBOURS = 5  # in the report
EXAMPLES = 5  # successes, and failures, at most


# ---- the montage


def draw_montage(
    queries: LatentCache, gallery: LatentCache, rows: NDArray[Any], distances: NDArray[Any]
) -> Image.Image:
    """Draws queries with their neighbours: names, classes, distances, verdicts and frames.

    `rows` (Q, K) are of the gallery, nearest first, at `distances` (Q, K), for the first Q queries.
    """
    sources = [_source(queries), _source(gallery)]
    splits = [None if item is None else DataFile(item[0]).split(item[1]) for item in sources]
    sides = sources[0] == sources[1] and queries.domain != gallery.domain
    judge = judgement(queries, gallery, splits[0] if sides else None)
    lines = []
    for query, (near, lengths) in enumerate(zip(rows.tolist(), distances.tolist(), strict=True)):
        line = [Tile(_picture(queries, splits[0], query), _names(queries, query))]
        for row, distance in zip(near, lengths, strict=True):
            verdict = judge(query, row)
            caption = [*_names(gallery, row), f"distance {distance:.3g}", *filter(None, [verdict])]
            frame = VERDICTS[verdict] if verdict else None
            line.append(Tile(_picture(gallery, splits[1], row), caption, frame))
        lines.append(line)
    headers = [f"query {queries.domain}", *(f"rank {k}" for k in range(1, rows.shape[1] + 1))]
    return draw_grid(lines, headers, gaps_after=[0])


def judgement(
    queries: LatentCache, gallery: LatentCache, split: Split | None = None
) -> Callable[[int, int], str | None]:
    """Returns a function from query and gallery row to a verdict, None if nothing is known.

    `split` is passed if queries and gallery are its two sides.
    """
    partners = _partners(queries, gallery, split)

    def judge(query: int, row: int) -> str | None:
        if partners[query]:
            return "partner" if gallery.ids[row] in partners[query] else "other"
        if queries.labels is None or gallery.labels is None:
            return None
        return "same class" if queries.labels[query] == gallery.labels[row] else "other class"

    return judge


def _partners(
    queries: LatentCache, gallery: LatentCache, split: Split | None
) -> Sequence[set[str]]:
    """Returns the ids of every query's partners in the gallery; none if they are not known."""
    sources = filter(None, [_source(queries), _source(gallery)])
    if any(DataFile(path).info.by_class for path, _ in sources):
        return [set()] * len(queries.ids)
    present = {*gallery.ids}
    if split is not None:
        listed = defaultdict(set)
        own, others = split.side(queries.domain).ids, split.side(gallery.domain).ids
        rows = np.arange(split.pair_count)
        pairs = np.stack([rows, rows], axis=1) if split.pairs is None else split.pairs
        for row, partner in pairs if queries.domain == "x" else pairs[:, ::-1]:
            listed[own[row]].add(others[partner])
        return [listed[name] & present for name in queries.ids]
    stems = Counter(Path(name).stem for name in gallery.ids)
    unique = {stem: name for name in gallery.ids if stems[stem := Path(name).stem] == 1}
    names = (name if name in present else unique.get(Path(name).stem) for name in queries.ids)
    return [{name} if name else set() for name in names]


def _source(cache: LatentCache) -> tuple[Path, str] | None:
    """Returns the prepared file and split of a cache's rows, if that file still exists."""
    data = cache.source.get("data")
    if data is None or not Path(data).exists():
        return None
    return Path(data).resolve(), str(cache.source.get("split", "test"))


def _names(cache: LatentCache, row: int) -> list[str]:
    """Returns a row's name, and its class if known."""
    label = [] if cache.labels is None else [f"class {cache.labels[row]}"]
    return [Path(cache.ids[row]).stem, *label]


def _picture(cache: LatentCache, split: Split | None, row: int) -> Picture | None:
    """Returns a row's picture; None if its source is gone or has none."""
    name = cache.ids[row]
    if split is None:
        try:
            return decode(Path(name))
        except PictureError:
            return None
    side = split.side(cache.domain)
    if side.rows.ndim != 4 or name not in side.ids:
        return None
    picture: Picture = side.rows[side.ids.index(name)]
    return picture


# ---- the report's tables


@dataclass(frozen=True)
class Item:
    """A row of the data: its id, class and picture, a note, and whether it is a right neighbour."""

    identity: str
    label: str | None
    picture: Picture | None
    note: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Examples:
    """A table of queries: each row is a query, its partner if shown, and its neighbours."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Item]]


@dataclass(frozen=True)
class _Search:
    """Retrieval by shared means in one direction; rows of equal keys belong together."""

    pairs: EncodedPairs
    split: Split
    source: Domain
    target: Domain
    metric: Metric
    keys: tuple[NDArray[Any], NDArray[Any]]  # of queries and gallery; so are the means
    right: str  # what makes a neighbour right

    @property
    def name(self) -> str:
        return f"{self.source} → {self.target}"

    @property
    def means(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.pairs[self.source].mean("shared"), self.pairs[self.target].mean("shared")

    def examples(
        self, title: str, notes: Mapping[int, str], *, partners: bool = False
    ) -> list[Examples]:
        """Returns a table of queries, each with a note; none without queries."""
        if not notes:
            return []
        side, other = self.split.side(self.source), self.split.side(self.target)
        queries, gallery = self.means
        rows, distances = nearest(queries[[*notes]], gallery, NEIGHBOURS, metric=self.metric)
        lines = []
        for query, near, lengths in zip(notes, rows.tolist(), distances, strict=True):
            line = [_item(side, query, notes[query]), *[_item(other, query)] * partners]
            for row, length in zip(near, lengths, strict=True):
                right = bool(self.keys[0][query] == self.keys[1][row])
                note = f"{'✓' if right else '✗ not'} {self.right}, distance {length:.4g}"
                line.append(_item(other, row, note, right))
            lines.append(line)
        ranks = [f"rank {rank}" for rank in range(1, rows.shape[1] + 1)]
        headers = ["query", *["its partner"] * partners, *ranks]
        return [Examples(f"{self.name}: {title}", headers, lines)]


def _item(side: Side, row: int, note: str = "", right: bool | None = None) -> Item:
    label = None if side.labels is None else side.labels[row]
    picture = side.rows[row] if side.rows.ndim == 4 else None
    return Item(side.ids[row], label, picture, note, right)


def paired_examples(
    pairs: EncodedPairs, split: Split, metric: Metric
) -> tuple[list[Examples], dict[str, Ints]]:
    """Shows successes and failures, where row i of x is the partner of row i of y; and all ranks.

    The choice of queries depends on the figures alone: a page made twice is the same page.
    """
    examples: list[Examples] = []
    ranked = {}
    rows = np.arange(split.pair_count)
    for domains in DIRECTIONS:
        search = _Search(pairs, split, *domains, metric, (rows, rows), "its partner")
        ranked[search.name] = ranks = partner_ranks(*search.means, metric=metric)
        notes = [f"partner at rank {rank:,}" for rank in ranks.tolist()]
        hits = np.flatnonzero(ranks == 1)
        hits = hits[spread(len(hits), EXAMPLES)]
        misses = np.argsort(-ranks, kind="stable")[: min(EXAMPLES, (ranks > 1).sum())]
        examples += search.examples("found at once", {row: notes[row] for row in hits.tolist()})
        failures = {row: notes[row] for row in misses.tolist()}
        examples += search.examples("failures, the worst first", failures, partners=True)
    return examples, ranked


def class_examples(pairs: EncodedPairs, split: Split) -> tuple[list[Examples], list[Table]]:
    """Shows queries, where every row of the query's class is right, and the classes' precision.

    The queries have the best and the worst average precision, no two of one class.
    """
    examples: list[Examples] = []
    tables = []
    for source, target in DIRECTIONS:
        keys = np.asarray(split.side(source).labels), np.asarray(split.side(target).labels)
        search = _Search(pairs, split, source, target, "cosine", keys, "its class")
        ranking = rank_by_class(*search.means, *(labels.tolist() for labels in keys))
        precision = ranking.average_precision
        ranked = np.flatnonzero(np.isin(*keys))  # rows that have a precision
        classes = keys[0][ranked]
        order = np.argsort(-precision, kind="stable")
        best = _distinct_classes(order, classes)
        worst = [place for place in _distinct_classes(order[::-1], classes) if place not in best]
        for which, places in (("best", best), ("worst", worst)):
            notes = {ranked[at].item(): f"average precision {precision[at]:.3f}" for at in places}
            examples += search.examples(f"queries of {which} average precision", notes)
        names, codes, counts = np.unique(classes, return_inverse=True, return_counts=True)
        means = np.bincount(codes, precision) / counts
        worst_first = np.argsort(means, kind="stable")
        rows = zip(
            *(column[worst_first].tolist() for column in (names, means, counts)), strict=True
        )
        title = f"{search.name}: average precision by class, worst first"
        headers = ["class", "mean average precision", "queries"]
        tables.append(Table(title, headers, list(rows)))
    return examples, tables


def _distinct_classes(order: Ints, classes: NDArray[np.str_]) -> list[int]:
    """Returns the first positions in `order` of up to `EXAMPLES` classes."""
    _, first = np.unique(classes[order], return_index=True)
    return [int(place) for place in order[np.sort(first)[:EXAMPLES]]]
