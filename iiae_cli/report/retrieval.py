"""Shows queries and their neighbours, right or wrong, in `retrieve`'s montage and the report.

In the montage the first rule that applies decides what is right: the query's class, if the data
file pairs by class; the pairs of the split whose two sides are shown; the entry of the query's id,
or the only one of its file name without ending; the query's class. If none applies, nothing is
framed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.data.datafile import DataFile, Side, Split
from iiae_cli.data.pictures import PictureError, decode
from iiae_cli.evaluation.figures import Table
from iiae_cli.evaluation.retrieval import rank_by_class
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.neighbours import Metric, nearest, partner_ranks
from iiae_cli.report.grids import Panel, Picture, Tile, Tone

Ints: TypeAlias = NDArray[np.int64]

# Verdicts on a neighbour, and the tones of their frames.
VERDICTS: dict[str, Tone] = {
    "partner": "right",
    "only its class": "near",
    "other": "wrong",
    "same class": "right",
    "other class": "wrong",
}
NEIGHBOURS = 5  # in the report
FAILURES = 5


def verdict_on(partner: bool | None, same_class: bool | None) -> str | None:
    """Returns a verdict on a neighbour; classes decide if the partner is unknown."""
    if partner or same_class is None:
        return "partner" if partner else None
    if partner is None:
        return "same class" if same_class else "other class"
    return "only its class" if same_class else "other"


def picture_of(side: Side | None, row: int | None, path: Path) -> Picture | None:
    """Returns a row's picture as stored, else read from its file, else None."""
    if side is not None and row is not None and side.rows.ndim == 4:
        picture: Picture = side.rows[row]
        return picture
    try:
        return decode(path)
    except PictureError:
        return None


# ---- the montage


def draw_montage(
    queries: LatentCache, gallery: LatentCache, rows: NDArray[Any], distances: NDArray[Any]
) -> Image.Image:
    """Draws queries with their neighbours: names, classes, distances, verdicts and frames.

    `rows` (Q, K) are of the gallery, nearest first, at `distances` (Q, K), for the first Q queries.
    """
    sides = _source(queries) == _source(gallery) and queries.domain != gallery.domain
    source = _source(queries) if sides else None
    judge = judgement(queries, gallery, DataFile(source[0]).split(source[1]) if source else None)
    asked, entries = _pictures(queries), _pictures(gallery)
    lines = []
    for query, (near, lengths) in enumerate(zip(rows.tolist(), distances.tolist(), strict=True)):
        line = [Tile(asked(query), _names(queries, query))]
        for row, distance in zip(near, lengths, strict=True):
            verdict = judge(query, row)
            caption = [*_names(gallery, row), f"distance {distance:.3g}", *filter(None, [verdict])]
            line.append(Tile(entries(row), caption, VERDICTS[verdict] if verdict else None))
        lines.append(line)
    headers = [f"query {queries.domain}", *(f"rank {k}" for k in range(1, rows.shape[1] + 1))]
    return Panel(lines, headers, gaps_after=[0]).draw()


def judgement(
    queries: LatentCache, gallery: LatentCache, split: Split | None = None
) -> Callable[[int, int], str | None]:
    """Returns a function from query and gallery row to a verdict, None if unknown.

    `split` is passed if queries and gallery are its two sides.
    """
    partners = _partners(queries, gallery, split)

    def judge(query: int, row: int) -> str | None:
        own, same = partners[query], None
        partner = gallery.ids[row] in own if own else None
        if queries.labels is not None and gallery.labels is not None:
            same = queries.labels[query] == gallery.labels[row]
        return verdict_on(partner, same)

    return judge


def _partners(
    queries: LatentCache, gallery: LatentCache, split: Split | None
) -> Sequence[set[str]]:
    """Returns the ids of every query's partners in the gallery; empty if unknown."""
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
    """Returns the prepared file and split of a cache's rows, if that file exists."""
    data = cache.source.get("data")
    if data is None or not Path(data).exists():
        return None
    return Path(data).resolve(), str(cache.source.get("split", "test"))


def _names(cache: LatentCache, row: int) -> list[str]:
    label = [] if cache.labels is None else [f"class {cache.labels[row]}"]
    return [Path(cache.ids[row]).stem, *label]


def _pictures(cache: LatentCache) -> Callable[[int], Picture | None]:
    """Returns a function from a row to its picture, None if that is gone.

    Ids are paths; for features, paths below the source of their data file.
    """
    source, side, folder = _source(cache), None, Path()
    if source is not None:
        file = DataFile(source[0])
        side, folder = file.split(source[1]).side(cache.domain), source_folder(file)
    places = {name: row for row, name in enumerate(side.ids if side else ())}
    return lambda row: picture_of(side, places.get(cache.ids[row]), folder / cache.ids[row])


def source_folder(file: DataFile) -> Path:
    """Returns the folder that ids of a data file are relative to."""
    return Path(file.info.attributes.get("source", ""))


# ---- the report


@dataclass(frozen=True)
class Retrieval:
    """Retrieval by shared means in one direction; rows are aligned unless `by_class`."""

    name: str  # as `x → y`
    sides: tuple[Side, Side]  # queries and gallery
    means: tuple[NDArray[Any], NDArray[Any]]  # their latents (Q, S) and (G, S)
    by_class: bool
    metric: Metric
    folder: Path  # holds the pictures that features were made of

    @cached_property
    def ranks(self) -> Ints:
        """The rank of every query's partner."""
        return partner_ranks(*self.means, metric=self.metric)

    @cached_property
    def precisions(self) -> tuple[Ints, NDArray[np.float64]]:
        """The queries whose class the gallery holds, and their average precision."""
        labels, others = (np.asarray(side.labels) for side in self.sides)
        ranking = rank_by_class(*self.means, labels.tolist(), others.tolist())
        return np.flatnonzero(np.isin(labels, others)), ranking["map@all"]

    def failures(self) -> Panel | None:
        """Shows the queries whose right rows come last, the worst first; None if all come first."""
        if self.by_class:
            rows, precisions = self.precisions
            worst = np.argsort(precisions, kind="stable")[:FAILURES]
            rows, scores = rows[worst], precisions[worst]
            notes = [f"average precision {score:.3g}" for score in scores if score < 1]
        else:
            rows = np.argsort(-self.ranks, kind="stable")[:FAILURES]
            notes = [f"partner at rank {rank:,}" for rank in self.ranks[rows] if rank > 1]
        return self.panel("failures, the worst first", rows[: len(notes)], notes) if notes else None

    def panel(self, title: str, rows: Ints, notes: Sequence[str] | None = None) -> Panel:
        """Shows queries and neighbours; with `notes` on the queries, also ids and partners."""
        means, gallery = self.means
        near, distances = nearest(means[rows], gallery, NEIGHBOURS, metric=self.metric)
        lines, headers = [], ["query", *(f"rank {k}" for k in range(1, near.shape[1] + 1))]
        partner = notes is not None and not self.by_class
        for at, (query, entries) in enumerate(zip(rows.tolist(), near.tolist(), strict=True)):
            line = [self._tile(0, query, None if notes is None else notes[at])]
            if partner:
                line.append(self._tile(1, query, ""))
            for row, distance in zip(entries, distances[at], strict=True):
                verdict = self._judge(query, row)
                note = ", ".join(filter(None, [verdict, f"distance {distance:.3g}"]))
                tone = VERDICTS[verdict] if verdict else None
                line.append(self._tile(1, row, None if notes is None else note, tone))
            lines.append(line)
        headers[1:1] = ["its partner"] if partner else []
        return Panel(lines, headers, title=f"{self.name}: {title}")

    def _judge(self, query: int, row: int) -> str | None:
        queries, gallery = (side.labels for side in self.sides)
        same = queries[query] == gallery[row] if queries and gallery else None
        return verdict_on(None if self.by_class else query == row, same)

    def _tile(self, place: int, row: int, note: str | None, tone: Tone | None = None) -> Tile:
        """Makes the tile of a query (place 0) or gallery row; without a note it has no caption."""
        side = self.sides[place]
        picture = picture_of(side, row, self.folder / side.ids[row])
        label = [] if side.labels is None else [f"class {side.labels[row]}"]
        if note is None:
            return Tile(picture, () if picture is not None else [side.ids[row], *label], tone)
        return Tile(picture, [side.ids[row], *label, *([note] if note else [])], tone)

    def classes(self) -> Table:
        """Lists the mean average precision of each class, the worst first."""
        rows, precisions = self.precisions
        labels = np.asarray(self.sides[0].labels)[rows]
        names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        means = np.bincount(codes, precisions) / counts
        order = np.argsort(means, kind="stable")
        columns = (column[order].tolist() for column in (names, means, counts))
        title = f"{self.name}: average precision by class, worst first"
        headers = ["class", "mean average precision", "queries"]
        return Table(title, headers, [*zip(*columns, strict=True)])
