"""The picture of a retrieval: queries and their neighbours, framed by whether they are right where that is known.

What is right is decided by the first of these that applies:

1. The data file pairs by class: entries of the query's class are right.
2. Queries and gallery are the two sides of one split: the pairs that its file lists.
3. The gallery holds the query's id, or exactly one entry of the query's file name without its ending (pictures of the
   two domains lie in two folders): that entry.
4. Both sides have labels: entries of the query's class.

Elsewhere nothing is known and nothing framed. Beside its colour, every frame is told by a word in the caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from iiae_cli.data.datafile import DataFile, Split
from iiae_cli.data.pictures import PictureError, decode
from iiae_cli.inference.latents import LatentCache
from iiae_cli.report.grids import RIGHT, WRONG, Picture, Tile, draw_grid

Rule = Literal["pair", "class"]
_WORDS: dict[tuple[Rule, bool], str] = {
    ("pair", True): "partner",
    ("pair", False): "other",
    ("class", True): "same class",
    ("class", False): "other class",
}


@dataclass(frozen=True)
class Verdict:
    """Whether a neighbour is right, and by which rule: the query's partner, or of its class."""

    rule: Rule
    right: bool


def draw_montage(
    queries: LatentCache,
    gallery: LatentCache,
    rows: np.ndarray[Any, Any],
    distances: np.ndarray[Any, Any],
) -> Image.Image:
    """Query and neighbours in rows, with rank, name, class, distance and frame, and a legend of the frames.

    Args:
        queries: the first Q of them are shown.
        gallery: what was searched.
        rows: (Q, K) of the gallery, nearest first.
        distances: (Q, K).
    """
    query_split = _split_of(queries)
    shared = _place(queries) == _place(gallery)
    gallery_split = query_split if shared else _split_of(gallery)
    find_query, find_gallery = (
        _picture_finder(queries, query_split),
        _picture_finder(gallery, gallery_split),
    )
    judge = judgement(
        queries, gallery, query_split if shared and queries.domain != gallery.domain else None
    )
    lines = []
    rules: dict[Rule, None] = {}
    for number, (line, lengths) in enumerate(zip(rows.tolist(), distances.tolist(), strict=True)):
        tiles = [Tile(find_query(number), "\n".join(_names(queries, number)))]
        for row, distance in zip(line, lengths, strict=True):
            caption, frame = [*_names(gallery, row), f"distance {distance:.3g}"], None
            if (verdict := judge(number, row)) is not None:
                rules[verdict.rule] = None
                caption.append(_WORDS[verdict.rule, verdict.right])
                frame = RIGHT if verdict.right else WRONG
            tiles.append(Tile(find_gallery(row), "\n".join(caption), frame))
        lines.append(tiles)
    headers = [f"query {queries.domain}", *[f"rank {rank}" for rank in range(1, rows.shape[1] + 1)]]
    rights, wrongs = (" or ".join(_WORDS[rule, right] for rule in rules) for right in (True, False))
    legend = [(RIGHT, f"green frame: {rights}"), (WRONG, f"red frame: {wrongs}")] if rules else []
    return draw_grid(lines, headers, gaps_after=[0], legend=legend)


def _names(cache: LatentCache, row: int) -> list[str]:
    """A row's name, and its class where known."""
    return [
        _stem(cache.ids[row]),
        *([] if cache.labels is None else [f"class {cache.labels[row]}"]),
    ]


def _stem(identity: str) -> str:
    return Path(identity).stem


def judgement(
    queries: LatentCache, gallery: LatentCache, split: Split | None = None
) -> Callable[[int, int], Verdict | None]:
    """A function from query and gallery row to whether that neighbour is right, None where that is not known.

    Args:
        queries: of which rows are judged.
        gallery: their neighbours.
        split: where queries and gallery are its two sides.
    """
    partners = _partners(queries, gallery, split)

    def judge(query: int, row: int) -> Verdict | None:
        if partners[query]:
            return Verdict("pair", gallery.ids[row] in partners[query])
        if queries.labels is None or gallery.labels is None:
            return None
        return Verdict("class", queries.labels[query] == gallery.labels[row])

    return judge


def _partners(
    queries: LatentCache, gallery: LatentCache, split: Split | None
) -> Sequence[set[str]]:
    """For every query the ids of its partners in the gallery; none where partners are not known."""
    places = {place for place in map(_place, (queries, gallery)) if place is not None}
    if any(DataFile(path).info.by_class for path, _ in places):
        return [set() for _ in queries.ids]
    present = set(gallery.ids)
    if split is not None:
        listed = _listed_pairs(split, queries)
        return [listed.get(one, set()) & present for one in queries.ids]
    counts = Counter(map(_stem, gallery.ids))
    by_stem = {_stem(one): one for one in gallery.ids if counts[_stem(one)] == 1}
    found = [one if one in present else by_stem.get(_stem(one)) for one in queries.ids]
    return [set() if one is None else {one} for one in found]


def _listed_pairs(split: Split, queries: LatentCache) -> dict[str, set[str]]:
    """From an id of the queries' domain to its partners' ids, as the split pairs them."""
    pairs = (
        split.pairs
        if split.pairs is not None
        else np.arange(split.pair_count)[:, None].repeat(2, axis=1)
    )
    listed: dict[str, set[str]] = {}
    for row_x, row_y in pairs.tolist():
        ids = (split.x.ids[row_x], split.y.ids[row_y])
        query, partner = ids if queries.domain == "x" else ids[::-1]
        listed.setdefault(query, set()).add(partner)
    return listed


def _place(cache: LatentCache) -> tuple[Path, str] | None:
    """The prepared file and split that a cache's rows came from, where that file is still there."""
    data = cache.source.get("data")
    if data is None or not Path(data).exists():
        return None
    return Path(data).resolve(), str(cache.source.get("split", "test"))


def _split_of(cache: LatentCache) -> Split | None:
    place = _place(cache)
    return None if place is None else DataFile(place[0]).split(place[1])


def _picture_finder(cache: LatentCache, split: Split | None) -> Callable[[int], Picture | None]:
    """A function from a cache's row to its picture, or to None where its source is gone or is no picture."""
    if split is not None:
        position = {one: number for number, one in enumerate(split.side(cache.domain).ids)}
        pictures = split.side(cache.domain).rows

        def from_file(row: int) -> Picture | None:
            place = position.get(cache.ids[row])
            return None if place is None or pictures.ndim != 4 else pictures[place]

        return from_file

    def from_disk(row: int) -> Picture | None:
        try:
            return decode(Path(cache.ids[row]))
        except PictureError:
            return None

    return from_disk
