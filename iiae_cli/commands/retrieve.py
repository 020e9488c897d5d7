"""`iiae retrieve`: latents → rank → neighbours, with or without a montage of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iiae_cli import console
from iiae_cli.builders import choose_device
from iiae_cli.data.pictures import expand_inputs
from iiae_cli.errors import IiaeError
from iiae_cli.evaluation.montage import draw_montage
from iiae_cli.files import refuse_existing, writing
from iiae_cli.inference.encoding import LatentKind, encode_rows
from iiae_cli.inference.inputs import open_inputs
from iiae_cli.inference.latents import LatentCache, is_latent_cache, means_of, read_latents
from iiae_cli.inference.retrieval import Backend, Metric, nearest
from iiae_cli.model.iiae import Domain, other_domain
from iiae_cli.places import index_file, run_folder
from iiae_cli.runs import RunDir, load_model

MONTAGE_ROWS = 32


@dataclass(frozen=True)
class RetrieveOptions:
    """What the command line says; see `iiae retrieve --help`."""

    index: Path | None = None
    run: Path | None = None
    k: int = 5
    domain: Domain | None = None
    metric: Metric | None = None
    latents: LatentKind = "shared"
    backend: Backend = "sklearn"
    montage: Path | None = None
    split: str = "test"
    workers: int = 2
    device: str = "auto"
    nul: bool = False
    overwrite: bool = False


@dataclass
class RetrieveResult:
    """Neighbours of every query.

    Attributes:
        index: the gallery's cache.
        metric: distance that ranked it.
        results: one object per query, as `--json` prints it.
        skipped: a line for every query left out.
        montage: the picture written, if any.
    """

    index: Path
    metric: Metric
    results: list[dict[str, Any]]
    skipped: list[str] = field(default_factory=list)
    montage: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "schema": "iiae.retrieve/1",
            "index": str(self.index),
            "metric": self.metric,
            "results": self.results,
            "skipped": self.skipped,
            "montage": None if self.montage is None else str(self.montage),
        }

    def show(self) -> None:
        """Print for people and pipes: query, rank, id, distance and, where known, label."""
        labelled = any("label" in one for result in self.results for one in result["neighbours"])
        rows = [
            [result["query"], one["rank"], one["id"], one["distance"], *([one.get("label", "")] if labelled else [])]
            for result in self.results
            for one in result["neighbours"]
        ]
        headers = ["query", "rank", "id", "distance", *(["label"] if labelled else [])]
        console.print_table(headers, rows, header=False)


def run(inputs: Sequence[str], options: RetrieveOptions) -> RetrieveResult:
    """Find the nearest gallery entries of every query.

    Raises:
        IiaeError: no gallery, no query, a gallery of another model, k below 1.
    """
    paths = expand_inputs(inputs, nul=options.nul)
    if options.montage is not None:
        refuse_existing(options.montage, options.overwrite)
    index_path, chosen = index_file(options.index, options.run, is_latent_cache)
    gallery = read_latents(index_path)
    console.say(f"gallery {index_path} ({chosen}): {len(gallery)} pictures of domain {gallery.domain}")
    metric: Metric = options.metric or ("cosine" if gallery.metric == "cosine" else "euclidean")
    queries = _queries(paths, gallery, options)
    if queries.fingerprint != gallery.fingerprint:
        raise IiaeError(
            f"queries were encoded by model {queries.fingerprint}, the gallery {index_path} by {gallery.fingerprint}",
            "encode the gallery again with this run: iiae encode … --run RUN -o z.h5",
        )
    gallery_means = means_of(gallery, options.latents, index_path)
    query_means = means_of(queries.cache, options.latents, Path(paths[0]))
    if query_means.shape[1] != gallery_means.shape[1]:
        raise IiaeError(
            f"queries have {query_means.shape[1]} dimensions, the gallery {gallery_means.shape[1]}",
            "compare latents of one kind and one model",
        )
    rows, distances = nearest(query_means, gallery_means, options.k, metric=metric, backend=options.backend)
    results = [
        {"query": one, "neighbours": [_neighbour(gallery, *pair) for pair in enumerate(zip(row, line, strict=True), 1)]}
        for one, row, line in zip(queries.cache.ids, rows, distances, strict=True)
    ]
    result = RetrieveResult(index_path, metric, results, queries.skipped, options.montage)
    if options.montage is not None:
        shown = min(len(rows), MONTAGE_ROWS)
        if shown < len(rows):
            console.say(f"the montage shows the first {shown} of {len(rows)} queries")
        with writing(options.montage) as temporary:
            picture = draw_montage(queries.cache, gallery, rows[:shown], distances[:shown])
            picture.save(temporary, format="PNG")
    for line in queries.skipped:
        console.warn(f"skipped {line}")
    return result


def _neighbour(gallery: LatentCache, rank: int, found: tuple[np.int64, np.float64]) -> dict[str, Any]:
    row, distance = int(found[0]), float(found[1])
    entry: dict[str, Any] = {"rank": rank, "id": gallery.ids[row], "distance": distance}
    if gallery.labels is not None:
        entry["label"] = gallery.labels[row]
    return entry


@dataclass
class _Queries:
    cache: LatentCache
    fingerprint: str
    skipped: list[str]


def _queries(paths: list[str], gallery: LatentCache, options: RetrieveOptions) -> _Queries:
    """The queries' latents: read from a cache as they are, else encoded by the run's model."""
    first = Path(paths[0])
    if len(paths) == 1 and is_latent_cache(first):
        cache = read_latents(first)
        return _Queries(cache, cache.fingerprint, [])
    domain = options.domain or other_domain(gallery.domain)
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(f"queries are of domain {domain}; model {loaded.fingerprint} of {folder} ({chosen})")
    shape = loaded.info.shape_x if domain == "x" else loaded.info.shape_y
    inputs = open_inputs(paths, domain, shape, split=options.split, workers=options.workers)
    rows, ids, labels = inputs.all_rows()
    encoded = encode_rows(loaded.model, domain, rows, size=loaded.size, device=device)
    cache = LatentCache(
        encoded, ids, labels, domain, loaded.fingerprint, loaded.model.shared_shape, source=inputs.source
    )
    return _Queries(cache, loaded.fingerprint, inputs.skipped)
