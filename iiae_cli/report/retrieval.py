"""Shows queries and their neighbours, right or wrong, in `retrieve`'s montage and the report.

In the montage the first rule that applies decides what is right: the query's class, if the data
file pairs by class; the pairs of the split whose two sides are shown; the entry of the query's id,
or the only one of its file name without ending; the query's class. If none applies, nothing is
framed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.data.datafile import DataFile, Side
from iiae_cli.data.pictures import PictureError, decode
from iiae_cli.evaluation.figures import Table
from iiae_cli.evaluation.retrieval import rank_by_class
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.neighbours import Metric, nearest, partner_ranks
from iiae_cli.report.grids import Panel, Picture, Tile, Tone

Ints: TypeAlias = NDArray[np.int64]

NEIGHBOURS = 5  # in the report
FAILURES = 5


@dataclass(frozen=True)
class Shown:
    """Queries or entries of a gallery, shown as pictures with captions."""

    ids: list[str]
    labels: list[str] | None
    stored: Mapping[str, Picture]  # pictures by id; the others are read from files
    folder: Path  # that ids, the names of these files, are relative to

    @classmethod
    def of(cls, side: Side, file: DataFile) -> Shown:
        """Shows rows of a data file; for features, the pictures below its source."""
        rows = np.asarray(side.rows)  # iterated faster than a memory map
        stored = dict(zip(side.ids, rows, strict=True)) if rows.ndim == 4 else {}
        return cls(side.ids, side.labels, stored, Path(file.info.attributes.get("source", "")))

    def tile(self, row: int, *notes: str, tone: Tone | None = None) -> Tile:
        """Returns a row's picture, None if it is gone, over its id, class and notes."""
        name = self.ids[row]
        picture = self.stored.get(name)
        if picture is None:
            with suppress(PictureError):
                picture = decode(self.folder / name)
        label = [] if self.labels is None else [f"class {self.labels[row]}"]
        return Tile(picture, [name, *label, *notes], tone)

    def neighbours(
        self,
        gallery: Shown,
        rows: Iterable[int],
        partners: Iterable[set[str]],
        near: Ints,
        distances: NDArray[Any],
    ) -> list[list[Tile]]:
        """Shows each of Q `rows`, then its neighbours `near` (Q, K), judged and framed.

        `partners` are each row's ids in the gallery, empty if they are unknown.
        """
        lines = []
        for query, own, entries, lengths in zip(rows, partners, near, distances, strict=True):
            line = [self.tile(query)]
            for row, distance in zip(entries, lengths, strict=True):
                tone, *words = self.verdict(query, gallery, row, own) or (None,)
                line.append(gallery.tile(row, f"distance {distance:.3g}", *words, tone=tone))
            lines.append(line)
        return lines

    def verdict(
        self, query: int, gallery: Shown, row: int, partners: set[str]
    ) -> tuple[Tone, str] | None:
        """Judges a neighbour; None if nothing is known. Without partners classes decide."""
        if gallery.ids[row] in partners:
            return "right", "partner"
        if self.labels is None or gallery.labels is None:
            return None
        same = self.labels[query] == gallery.labels[row]
        if partners:
            return ("near", "only its class") if same else ("wrong", "other")
        return ("right", "same class") if same else ("wrong", "other class")


# ---- the montage


def montage(
    queries: LatentCache, gallery: LatentCache, rows: Ints, distances: NDArray[Any]
) -> Panel:
    """Shows queries with their neighbours: names, classes, distances, verdicts and frames.

    `rows` (Q, K) are of the gallery, nearest first, at `distances` (Q, K), for the first Q queries.
    """
    asked, partners = range(len(rows)), partners_of(queries, gallery)[: len(rows)]
    lines = _shown(queries).neighbours(_shown(gallery), asked, partners, rows, distances)
    for tile in chain.from_iterable(lines):
        tile.caption = [Path(tile.caption[0]).stem, *tile.caption[1:]]
    headers = [f"query {queries.domain}", *(f"rank {k}" for k in range(1, rows.shape[1] + 1))]
    return Panel(lines, headers, gaps_after=[0])


def partners_of(queries: LatentCache, gallery: LatentCache) -> list[set[str]]:
    """Returns the ids of every query's partners in the gallery; empty if unknown."""
    sources, present = [_source(queries), _source(gallery)], {*gallery.ids}
    if any(DataFile(source[0]).info.by_class for source in sources if source):
        return [set()] * len(queries.ids)
    if sources[0] and sources[0] == sources[1] and queries.domain != gallery.domain:
        path, name = sources[0]
        split, listed = DataFile(path).split(name), defaultdict(set)
        rows = np.arange(split.pair_count)
        pairs = np.stack([rows, rows], axis=1) if split.pairs is None else split.pairs
        own, others = (split.side(cache.domain).ids for cache in (queries, gallery))
        for row, other in pairs if queries.domain == "x" else pairs[:, ::-1]:
            listed[own[row]].add(others[other])
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


def _shown(cache: LatentCache) -> Shown:
    """Shows a cache's rows from their data file, if that exists, else from files named by ids."""
    source = _source(cache)
    if source is None:
        return Shown(cache.ids, cache.labels, {}, Path())
    file = DataFile(source[0])
    shown = Shown.of(file.split(source[1], most=0).side(cache.domain), file)
    return replace(shown, ids=cache.ids, labels=cache.labels)


# ---- the report


@dataclass(frozen=True)
class Retrieval:
    """Retrieval by shared means in one direction; rows are aligned unless `by_class`."""

    name: str  # as `x → y`
    queries: Shown
    gallery: Shown
    means: tuple[NDArray[Any], NDArray[Any]]  # their latents (Q, S) and (G, S)
    by_class: bool
    metric: Metric

    @cached_property
    def ranks(self) -> Ints:
        """The rank of every query's partner."""
        return partner_ranks(*self.means, metric=self.metric)

    @cached_property
    def precisions(self) -> tuple[Ints, NDArray[np.float64]]:
        """The queries whose class the gallery holds, and their average precision."""
        labels, others = self.queries.labels or [], self.gallery.labels or []
        ranking = rank_by_class(*self.means, labels, others)
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
        return self.panel("failures, worst first", rows[: len(notes)], notes) if notes else None

    def panel(self, title: str, rows: Ints, notes: Sequence[str] = ()) -> Panel:
        """Shows queries and their neighbours; with `notes` on the queries, also their partners."""
        queries, gallery = self.means
        near, distances = nearest(queries[rows], gallery, NEIGHBOURS, metric=self.metric)
        partners = [set() if self.by_class else {self.gallery.ids[row]} for row in rows]
        lines = self.queries.neighbours(self.gallery, rows, partners, near, distances)
        headers = ["query", *(f"rank {k}" for k in range(1, near.shape[1] + 1))]
        for line, note in zip(lines, notes, strict=False):
            line[0].caption = [*line[0].caption, note]
        if notes and not self.by_class:
            headers.insert(1, "its partner")
            for line, row in zip(lines, rows, strict=True):
                line.insert(1, self.gallery.tile(row))
        return Panel(lines, headers, title=f"{self.name}: {title}")

    def classes(self) -> Table:
        """Lists the mean average precision of each class, the worst first."""
        by_class = defaultdict(list)
        for row, precision in zip(*self.precisions, strict=True):
            by_class[(self.queries.labels or [])[row]].append(precision)
        rows = [(name, float(np.mean(by_class[name])), len(by_class[name])) for name in by_class]
        title = f"{self.name}: average precision by class, worst first"
        headers = ["class", "mean average precision", "queries"]
        return Table(title, headers, sorted(rows, key=lambda row: (row[1], row[0])))
