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
from collections.abc import Callable, Sequence
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
    """A table of queries: each row is a query, its partner, and its neighbours."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Item]]


def paired_examples(
    pairs: EncodedPairs, split: Split, metric: Metric
) -> tuple[list[Examples], dict[str, Ints]]:
    """Shows successes and failures, where row i of x is the partner of row i of y; and all ranks.

    The choice of queries depends on the figures alone: a page made twice is the same page.
    """
    examples, ranked = [], {}
    for source, target in DIRECTIONS:
        queries, gallery = pairs[source].mean("shared"), pairs[target].mean("shared")
        ranked[f"{source} → {target}"] = ranks = partner_ranks(queries, gallery, metric=metric)
        hits = np.flatnonzero(ranks == 1)
        misses = np.argsort(-ranks, kind="stable")[: min(EXAMPLES, (ranks > 1).sum())]
        for title, rows in (
            ("found at once", hits[spread(len(hits), EXAMPLES)]),
            ("failures, the worst first", misses),
        ):
            if not len(rows):
                continue
            near, distances = nearest(queries[rows], gallery, NEIGHBOURS, metric=metric)
            lines = []
            for row, *neighbours in zip(rows.tolist(), near.tolist(), distances, strict=True):
                query = _item(split.side(source), row, f"partner at rank {ranks[row]:,}")
                lines.append([query, *_neighbours(split.side(target), row, *neighbours)])
            headers = ["query", "its partner", *(f"rank {k}" for k in range(1, near.shape[1] + 1))]
            examples.append(Examples(f"{source} → {target}: {title}", headers, lines))
    return examples, ranked


def _neighbours(
    side: Side, partner: int, rows: list[int], distances: Sequence[float]
) -> list[Item]:
    items = [_item(side, partner)]
    for row, distance in zip(rows, distances, strict=True):
        right = row == partner
        note = f"{'✓' if right else '✗ not'} its partner, distance {distance:.4g}"
        items.append(_item(side, row, note, right))
    return items


def _item(side: Side, row: int, note: str = "", right: bool | None = None) -> Item:
    label = None if side.labels is None else side.labels[row]
    picture = side.rows[row] if side.rows.ndim == 4 else None
    return Item(side.ids[row], label, picture, note, right)


def class_tables(pairs: EncodedPairs, split: Split) -> list[Table]:
    """Lists the mean average precision of each class, the worst first, in both directions."""
    tables = []
    for source, target in DIRECTIONS:
        labels, others = (np.asarray(split.side(domain).labels) for domain in (source, target))
        queries, gallery = pairs[source].mean("shared"), pairs[target].mean("shared")
        ranking = rank_by_class(queries, gallery, labels.tolist(), others.tolist())
        precision = ranking.by_query["map@all"]
        known = labels[np.isin(labels, others)]  # of the rows that have a precision
        names, codes, counts = np.unique(known, return_inverse=True, return_counts=True)
        means = np.bincount(codes, precision) / counts
        worst_first = np.argsort(means, kind="stable")
        rows = zip(
            *(column[worst_first].tolist() for column in (names, means, counts)), strict=True
        )
        title = f"{source} → {target}: average precision by class, worst first"
        tables.append(Table(title, ["class", "mean average precision", "queries"], list(rows)))
    return tables
