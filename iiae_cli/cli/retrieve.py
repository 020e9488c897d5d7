"""`iiae retrieve`: finds the nearest entries of a gallery, and can draw them as a montage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import (
    DomainName,
    MetricName,
    SplitName,
    finish,
    of_output,
    of_running,
    option,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing, save_picture
from iiae_cli.model import other_domain

if TYPE_CHECKING:
    from iiae_cli.inference.api import Neighbours
    from iiae_cli.inference.latents import LatentCache

MONTAGE_ROWS = 32


def command(
    queries: list[str] = typer.Argument(
        ..., metavar="QUERY", help="Pictures, folders, -, .h5 or .npy."
    ),
    index: Path | None = option(
        None, "Gallery: a latent cache [IIAE_INDEX, the only fitting one, RUN/gallery.h5]."
    ),
    run: Path | None = shared.RUN,
    k: int = option(5, "Neighbours per query.", "--k", "-k", min=1),
    domain: DomainName | None = option(None, "Domain of the queries [not the gallery's]."),
    metric: MetricName | None = option(None, "Distance [the preset's]."),
    latents: Literal["shared", "exclusive"] = option("shared", "Latents to compare."),
    backend: Literal["auto", "sklearn", "torch", "faiss"] = of_running(
        "auto", "Search library; the results are the same [auto: by size]."
    ),
    montage: Path | None = of_output(None, "Write a picture of queries and neighbours."),
    split: SplitName = shared.SPLIT,
    workers: int = shared.WORKERS,
    device: str = shared.DEVICE,
    backbone_weights: str | None = shared.BACKBONE_WEIGHTS,
    nul: bool = shared.NUL,
    overwrite: bool = shared.OVERWRITE,
    as_json: bool = shared.JSON,
) -> None:
    """Find the gallery's nearest pictures. In a pipe: query, rank, id, distance[, label],
    tab-separated.

    \b
    Examples:
      iiae retrieve query.png --k 5
      iiae retrieve query.png --index z.h5 --montage hits.png
      find queries -name '*.png' | iiae retrieve - --index z.h5 --k 10 \\
          | cut -f1,3 > hits.tsv
      iiae retrieve x.h5 --index z.h5 --json | jq -r '.results[].neighbours[0].id'
    """
    from iiae_cli.common.environment import index_file
    from iiae_cli.data.names import expand_inputs
    from iiae_cli.inference.api import open_run, search
    from iiae_cli.inference.latents import LatentCache, made_by

    paths = expand_inputs(queries, nul=nul)
    if montage is not None:
        refuse_existing(montage, overwrite)
    first = Path(paths[0])
    encoded = None
    if len(paths) == 1 and made_by(first):  # what was skipped in encoding is no query
        encoded = replace(LatentCache.read(first), skipped=[])
    how = "--domain" if domain else "the other one than the gallery's"
    if encoded is None:
        model = open_run(run, device, backbone_weights)
        fingerprint = model.fingerprint
    elif domain in (None, encoded.domain):
        domain, how, fingerprint = encoded.domain, "as stored", encoded.fingerprint
    else:
        raise IiaeError(f"{first} holds latents of {encoded.domain}", "leave --domain out")
    # A gallery chosen by default never makes queries ones of y.
    fitting = fingerprint, other_domain(domain or "x")
    path, chosen = index_file(index, run, lambda path: made_by(path) == fitting)
    gallery = LatentCache.read(path)
    domain, size = domain or other_domain(gallery.domain), len(gallery.ids)
    console.say(f"gallery {path} ({chosen}): {size} pictures of {gallery.domain}")
    console.say(f"queries are of domain {domain} ({how})")
    if encoded is None:
        encoded = model.encode(paths, domain, split, workers)
    if k > size:
        console.say(f"the gallery holds {size} entries, fewer than --k {k}: all are ranked")
    found = search(encoded, gallery, k, metric=metric, latents=latents, backend=backend)
    if backend == "auto":
        products = f"{len(found.queries):,} queries × {size:,} entries"
        console.say(f"backend {found.backend} (by size: {products})")
    results = _results(found)
    if montage is not None:
        _draw(montage, encoded, gallery, found)
    result = {
        "schema": "iiae.retrieve/1",
        "index": str(path),
        "metric": found.metric,
        "backend": found.backend,
        "results": results,
        "montage": montage and str(montage),
        "skipped": found.skipped,
    }
    finish(result, lambda: _show(results), as_json, encoded.skipped)


def _show(results: list[dict[str, Any]]) -> None:
    entries = [(result["query"], entry) for result in results for entry in result["neighbours"]]
    headers = ["query", *(entries[0][1] if entries else ())]
    rows = [[query, *entry.values()] for query, entry in entries]
    console.print_table(headers, rows, header=False, digits=6)


def _results(found: Neighbours) -> list[dict[str, Any]]:
    columns = {"id": found.ids.tolist(), "distance": found.distances.tolist()}
    if found.labels is not None:
        columns["label"] = found.labels.tolist()
    results = []
    for query, *rows in zip(found.queries, *columns.values(), strict=True):
        entries = [dict(zip(columns, entry, strict=True)) for entry in zip(*rows, strict=True)]
        ranked = [{"rank": rank, **entry} for rank, entry in enumerate(entries, 1)]
        results.append({"query": query, "neighbours": ranked})
    return results


def _draw(path: Path, queries: LatentCache, gallery: LatentCache, found: Neighbours) -> None:
    from iiae_cli.report.retrieval import montage

    rows, distances = found.rows[:MONTAGE_ROWS], found.distances[:MONTAGE_ROWS]
    if len(rows) < len(found.rows):
        console.say(f"the montage shows the first {len(rows)} of {len(found.rows)} queries")
    known = {*(gallery.labels or ())}
    folders = [Path(name).parent.name for name in queries.ids]
    if queries.labels is None and known.issuperset(folders):  # pictures in a folder for each class
        queries = replace(queries, labels=folders)
    save_picture(montage(queries, gallery, rows, distances).draw(), path)
