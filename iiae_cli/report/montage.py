"""The picture of a retrieval: queries and their neighbours, framed by whether they are right.

The first rule that applies decides what is right:

1. The data file pairs by class: entries of the query's class.
2. Queries and gallery are the two sides of one split: the pairs that its file lists.
3. The gallery holds the query's id, or exactly one entry of the query's file name without its
   ending (pictures of the two domains lie in two folders): that entry.
4. Both sides have labels: entries of the query's class.

Elsewhere nothing is known and nothing framed. A word in the caption repeats what a frame says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.data.datafile import DataFile, Split
from iiae_cli.data.pictures import PictureError, decode
from iiae_cli.inference.latents import LatentCache
from iiae_cli.report.grids import RIGHT, WRONG, Picture, Tile, draw_grid

# Verdicts on a neighbour, and the colours of their frames.
VERDICTS = {"partner": RIGHT, "other": WRONG, "same class": RIGHT, "other class": WRONG}


def draw_montage(
    queries: LatentCache, gallery: LatentCache, rows: NDArray[Any], distances: NDArray[Any]
) -> Image.Image:
    """Draws the first Q queries with their neighbours: names, classes, distances and frames.

    `rows` (Q, K) are of the gallery, nearest first, at `distances` (Q, K).
    """
    places = [_place(queries), _place(gallery)]
    splits = [None if place is None else DataFile(place[0]).split(place[1]) for place in places]
    sides = places[0] == places[1] and queries.domain != gallery.domain
    judge = judgement(queries, gallery, splits[0] if sides else None)
    lines: list[list[Tile]] = []
    for query, (neighbours, lengths) in enumerate(
        zip(rows.tolist(), distances.tolist(), strict=True)
    ):
        line = [Tile(_picture(queries, splits[0], query), "\n".join(_names(queries, query)))]
        for row, distance in zip(neighbours, lengths, strict=True):
            verdict = judge(query, row)
            caption = [*_names(gallery, row), f"distance {distance:.3g}", *filter(None, [verdict])]
            frame = VERDICTS[verdict] if verdict else None
            line.append(Tile(_picture(gallery, splits[1], row), "\n".join(caption), frame))
        lines.append(line)
    headers = [f"query {queries.domain}", *(f"rank {k}" for k in range(1, rows.shape[1] + 1))]
    shown = {tile.caption.rpartition("\n")[2] for line in lines for tile in line if tile.frame}
    legend = [
        (colour, f"{'green' if colour == RIGHT else 'red'} frame: {verdict}")
        for verdict, colour in VERDICTS.items()
        if verdict in shown
    ]
    return draw_grid(lines, headers, gaps_after=[0], legend=legend)


def _names(cache: LatentCache, row: int) -> list[str]:
    """Returns a row's name, and its class where known."""
    label = [] if cache.labels is None else [f"class {cache.labels[row]}"]
    return [Path(cache.ids[row]).stem, *label]


def judgement(
    queries: LatentCache, gallery: LatentCache, split: Split | None = None
) -> Callable[[int, int], str | None]:
    """Returns a function from query and gallery row to a verdict, None where nothing is known.

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


def _partners(queries: LatentCache, gallery: LatentCache, split: Split | None) -> list[set[str]]:
    """Returns the ids of every query's partners in the gallery; none where they are not known."""
    places = filter(None, {_place(queries), _place(gallery)})
    if any(DataFile(path).info.by_class for path, _ in places):
        return [set() for _ in queries.ids]
    present = set(gallery.ids)
    if split is not None:
        listed = _listed_pairs(split, queries)
        return [listed[name] & present for name in queries.ids]
    counts = Counter(Path(name).stem for name in gallery.ids)
    by_stem = {stem: name for name in gallery.ids if counts[stem := Path(name).stem] == 1}
    partners = [
        name if name in present else by_stem.get(Path(name).stem, "") for name in queries.ids
    ]
    return [{name} if name else set() for name in partners]


def _listed_pairs(split: Split, queries: LatentCache) -> defaultdict[str, set[str]]:
    """Maps ids of the queries' domain to their partners' ids, as the split pairs them."""
    listed: defaultdict[str, set[str]] = defaultdict(set)
    aligned = np.arange(split.pair_count)[:, None].repeat(2, axis=1)
    for row_x, row_y in aligned if split.pairs is None else split.pairs:
        ids = split.x.ids[row_x], split.y.ids[row_y]
        query, partner = ids if queries.domain == "x" else ids[::-1]
        listed[query].add(partner)
    return listed


def _place(cache: LatentCache) -> tuple[Path, str] | None:
    """Returns the prepared file and split of a cache's rows, where that file still exists."""
    data = cache.source.get("data")
    if data is None or not Path(data).exists():
        return None
    return Path(data).resolve(), str(cache.source.get("split", "test"))


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
