"""`iiae retrieve`: latents → rank → neighbours, with or without a montage of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from iiae_cli.builders import choose_device
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing, writing
from iiae_cli.common.paths import index_file, run_folder
from iiae_cli.data.pictures import expand_inputs
from iiae_cli.inference.inputs import open_inputs
from iiae_cli.inference.latents import (
    Gallery,
    LatentCache,
    StoredRows,
    is_latent_cache,
    means_of,
    read_latents,
)
from iiae_cli.inference.neighbours import Backend, Floats, Ints, Metric, choose_backend, nearest
from iiae_cli.inference.trained import LatentKind, TrainedModel
from iiae_cli.model import Domain, other_domain
from iiae_cli.report.montage import draw_montage
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.weights import load_model

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
    backend: Backend = "auto"
    approximate: bool = False
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
        backend: who searched.
        approximate: where the search was one: `index`, `recall` on `sample` queries, `probes` of
            `lists`.
    """

    index: Path
    metric: Metric
    results: list[dict[str, Any]]
    skipped: list[str] = field(default_factory=list)
    montage: Path | None = None
    backend: Backend = "auto"
    approximate: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "schema": "iiae.retrieve/1",
            "index": str(self.index),
            "metric": self.metric,
            "results": self.results,
            "skipped": self.skipped,
            "montage": None if self.montage is None else str(self.montage),
            "backend": self.backend,
            "approximate": self.approximate,
        }

    def show(self) -> None:
        """Print for people and pipes: query, rank, id, distance and, where known, label."""
        labelled = any("label" in one for result in self.results for one in result["neighbours"])
        rows = [
            [
                result["query"],
                one["rank"],
                one["id"],
                one["distance"],
                *([one.get("label", "")] if labelled else []),
            ]
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
    if options.approximate and options.backend not in ("auto", "faiss"):
        raise IiaeError(
            f"--approximate is faiss' own, not --backend {options.backend}", "leave --backend out"
        )
    index_path, chosen = index_file(options.index, options.run, is_latent_cache)
    gallery = Gallery(index_path)
    console.say(
        f"gallery {index_path} ({chosen}): {len(gallery)} pictures of domain {gallery.head.domain}"
    )
    queries = _queries(paths, gallery.head.domain, options)
    if queries.fingerprint != gallery.head.fingerprint:
        raise IiaeError(
            f"queries were encoded by model {queries.fingerprint}, the gallery {index_path} by "
            f"{gallery.head.fingerprint}",
            "encode the gallery again with this run: iiae encode … --run RUN -o z.h5",
        )
    query_means = means_of(queries.cache, options.latents, Path(paths[0]))
    result, rows, distances = _search(query_means, gallery, options)
    result.results = _results(queries.cache.ids, gallery, rows, distances)
    result.skipped, result.montage = queries.skipped, options.montage
    if options.montage is not None:
        _draw(options.montage, queries.cache, index_path, rows, distances)
    for line in queries.skipped:
        console.warn(f"skipped {line}")
    return result


def _search(
    queries: NDArray[Any], gallery: Gallery, options: RetrieveOptions
) -> tuple[RetrieveResult, Ints, Floats]:
    """Gallery rows (Q, K) and distances (Q, K) of every query's neighbours, and how they were
    found.
    """
    metric: Metric = options.metric or (
        "cosine" if gallery.head.metric == "cosine" else "euclidean"
    )
    means = gallery.means(options.latents)
    if queries.shape[1] != means.shape[1]:
        raise IiaeError(
            f"queries have {queries.shape[1]} dimensions, the gallery {means.shape[1]}",
            "compare latents of one kind and one model",
        )
    result = RetrieveResult(gallery.path, metric, [])
    if options.approximate and len(gallery):
        return _search_approximately(queries, means, gallery, options, result)
    result.backend = choose_backend(options.backend, len(queries), *means.shape)
    if options.backend == "auto":
        size = " × ".join(f"{n:,}" for n in (len(queries), *means.shape))
        console.say(f"backend {result.backend} (by size: {size})")
    rows, distances = nearest(queries, means, options.k, metric=metric, backend=result.backend)
    return result, rows, distances


def _search_approximately(
    queries: NDArray[Any],
    means: StoredRows,
    gallery: Gallery,
    options: RetrieveOptions,
    result: RetrieveResult,
) -> tuple[RetrieveResult, Ints, Floats]:
    from iiae_cli.inference import approximate

    suffix = ".faiss" if options.latents == "shared" else f".{options.latents}.faiss"
    path = gallery.path.with_suffix(suffix)
    found = approximate.search(
        queries,
        means,
        options.k,
        metric=result.metric,
        path=path,
        fingerprint=gallery.head.fingerprint,
    )
    recall = f"{found.recall:.3f} on {found.sample} of {len(queries)} queries"
    made = "made" if found.built else "read"
    console.say(
        f"index {path} {made}; {found.probes} of {found.lists} lists; recall@{options.k} {recall}"
    )
    result.backend = "faiss"
    result.approximate = {
        "index": str(path),
        "recall": found.recall,
        "sample": found.sample,
        "probes": found.probes,
        "lists": found.lists,
    }
    return result, found.rows, found.distances


def _results(
    ids: list[str], gallery: Gallery, rows: Ints, distances: Floats
) -> list[dict[str, Any]]:
    names = gallery.texts("ids", rows)
    labels = gallery.texts("labels", rows) if gallery.labelled else {}

    def neighbour(rank: int, row: int, distance: float) -> dict[str, Any]:
        entry = {"rank": rank, "id": names[row], "distance": distance}
        return {**entry, "label": labels[row]} if gallery.labelled else entry

    return [
        {
            "query": one,
            "neighbours": [
                neighbour(rank, *pair) for rank, pair in enumerate(zip(row, line, strict=True), 1)
            ],
        }
        for one, row, line in zip(ids, rows.tolist(), distances.tolist(), strict=True)
    ]


def _draw(path: Path, queries: LatentCache, index: Path, rows: Ints, distances: Floats) -> None:
    shown = min(len(rows), MONTAGE_ROWS)
    if shown < len(rows):
        console.say(f"the montage shows the first {shown} of {len(rows)} queries")
    with writing(path) as temporary:
        draw_montage(queries, read_latents(index), rows[:shown], distances[:shown]).save(
            temporary, format="PNG"
        )


@dataclass
class _Queries:
    cache: LatentCache
    fingerprint: str
    skipped: list[str]


def _queries(paths: list[str], gallery_domain: Domain, options: RetrieveOptions) -> _Queries:
    """The queries' latents: read from a cache as they are, else encoded by the run's model."""
    first = Path(paths[0])
    if len(paths) == 1 and is_latent_cache(first):
        cache = read_latents(first)
        return _Queries(cache, cache.fingerprint, [])
    domain = options.domain or other_domain(gallery_domain)
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(
        f"queries are of domain {domain}; model {loaded.fingerprint} of {folder} ({chosen})"
    )
    shape = loaded.info.shape_x if domain == "x" else loaded.info.shape_y
    inputs = open_inputs(paths, domain, shape, split=options.split, workers=options.workers)
    rows, ids, labels = inputs.all_rows()
    encoded = TrainedModel.of(loaded).encode(rows, domain)
    cache = LatentCache(
        encoded,
        ids,
        labels,
        domain,
        loaded.fingerprint,
        loaded.model.shared_shape,
        source=inputs.source,
    )
    return _Queries(cache, loaded.fingerprint, inputs.skipped)
