"""`iiae retrieve`: the nearest entries of a gallery, with or without a montage of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import OUTPUT, RUNNING, DomainName, MetricName, finish, option
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing, save_picture
from iiae_cli.model import other_domain

if TYPE_CHECKING:
    from iiae_cli.inference.latents import Gallery, LatentCache
    from iiae_cli.inference.neighbours import Floats, Ints

MONTAGE_ROWS = 32
LatentName = Literal["shared", "exclusive"]
BackendName = Literal["auto", "sklearn", "torch", "faiss"]


def command(
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY...", help="Pictures, folders, -, .h5 or .npy.")
    ],
    index: Annotated[
        Path | None,
        option("Gallery: a latent cache [IIAE_INDEX, the only fitting one, RUN/gallery.h5]."),
    ] = None,
    run: shared.Run = None,
    k: Annotated[int, option("Neighbours per query.", "--k", "-k", min=1)] = 5,
    domain: Annotated[
        DomainName | None, option("The queries' [the other than the gallery's].")
    ] = None,
    metric: Annotated[MetricName | None, option("Distance [the preset's].")] = None,
    latents: Annotated[LatentName, option("Which latents are compared.")] = "shared",
    backend: Annotated[
        BackendName, option("Who searches; neighbours are the same [auto: by size].", panel=RUNNING)
    ] = "auto",
    approximate: Annotated[
        bool,
        option(
            "Many queries, large gallery: a faiss index beside it, recall measured.",
            "--approximate",
            panel=RUNNING,
        ),
    ] = False,
    montage: Annotated[
        Path | None, option("Write a picture of queries and neighbours.", panel=OUTPUT)
    ] = None,
    split: shared.Split = "test",
    workers: shared.Workers = 2,
    device: shared.Device = "auto",
    backbone_weights: shared.BackboneWeights = None,
    nul: shared.Nul = False,
    overwrite: shared.Overwrite = False,
    as_json: shared.Json = False,
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
      iiae retrieve x.h5 --index million.h5 --approximate > hits.tsv
    """
    from iiae_cli.common.files import index_file
    from iiae_cli.data.names import expand_inputs
    from iiae_cli.inference.inputs import open_inputs
    from iiae_cli.inference.latents import Gallery, LatentCache, is_gallery, is_latent_cache
    from iiae_cli.inference.trained import TrainedModel, open_run

    paths = expand_inputs(queries, nul=nul)
    if montage is not None:
        refuse_existing(montage, overwrite)
    if approximate and backend not in ("auto", "faiss"):
        raise IiaeError(f"--approximate is faiss' own, not --backend {backend}", "leave it out")
    first = Path(paths[0])
    encoded = Gallery(first).read() if len(paths) == 1 and is_latent_cache(first) else None
    how = "--domain" if domain else "the other one than the gallery's"
    if encoded is None:
        loaded = open_run(run, device)
        model = loaded.fingerprint
    elif domain in (None, encoded.domain):
        domain, how, model = encoded.domain, "as stored", encoded.fingerprint
    else:
        raise IiaeError(f"{first} holds latents of {encoded.domain}", "leave --domain out")
    path, chosen = index_file(index, run, lambda path: is_gallery(path, model, domain))
    gallery, skipped = Gallery(path), list[str]()
    domain = domain or other_domain(gallery.head.domain)
    console.say(f"gallery {path} ({chosen}): {len(gallery)} pictures of {gallery.head.domain}")
    console.say(f"queries are of domain {domain} ({how})")
    if encoded is None:
        inputs = open_inputs(
            paths,
            domain,
            loaded.info,
            split=split,
            workers=workers,
            weights=backbone_weights,
            device=loaded.device,
        )
        block, head = inputs.read_all(), LatentCache.head_of(loaded, domain, inputs.source)
        latents_of_rows = TrainedModel.of(loaded).encode(block.rows, domain)
        encoded = replace(head, encoded=latents_of_rows, ids=block.ids, labels=block.labels)
        skipped = block.skipped
    result = _retrieve(encoded, gallery, k, metric, latents, backend, approximate, montage)
    finish(result | {"skipped": skipped}, lambda: _show(result["results"]), as_json, skipped)


def _show(results: list[dict[str, Any]]) -> None:
    """Print for people and pipes: query, rank, id, distance and, where known, label."""
    entries = [(result["query"], entry) for result in results for entry in result["neighbours"]]
    labelled = any("label" in entry for _, entry in entries)
    names = ["rank", "id", "distance", *(["label"] if labelled else [])]
    rows = [[query, *(entry.get(name, "") for name in names)] for query, entry in entries]
    console.print_table(["query", *names], rows, header=False, digits=6)


def _retrieve(
    queries: LatentCache,
    gallery: Gallery,
    k: int,
    metric: MetricName | None,
    kind: LatentName,
    backend: BackendName,
    approximate: bool,
    montage: Path | None,
) -> dict[str, Any]:
    """Find the nearest gallery entries of every query; returns what `--json` prints.

    Raises IiaeError if the latents are another model's, or of a kind that one side lacks.
    """
    from iiae_cli.inference.approximate import search
    from iiae_cli.inference.neighbours import choose_backend, nearest

    metric = metric or ("cosine" if gallery.head.metric == "cosine" else "euclidean")
    means, entries = queries.encoded.mean(kind), gallery.means(kind)
    model = gallery.head.fingerprint
    if (queries.fingerprint, means.shape[1]) != (model, entries.shape[1]):
        raise IiaeError(
            f"queries were encoded by model {queries.fingerprint}, the gallery {gallery.path} by "
            f"{model}",
            "encode the gallery again with this run: iiae encode … --run RUN -o z.h5",
        )
    if k > len(gallery):
        console.say(f"the gallery holds {len(gallery)} entries, fewer than --k {k}: all are ranked")
    figures = None
    if approximate:
        backend = "faiss"
        path = gallery.path.with_suffix(".faiss" if kind == "shared" else f".{kind}.faiss")
        rows, distances, figures = search(
            means, entries, k, metric=metric, path=path, fingerprint=model
        )
    else:
        if backend == "auto":
            backend = choose_backend(backend, len(means), *entries.shape)
            size = " × ".join(f"{count:,}" for count in (len(means), *entries.shape))
            console.say(f"backend {backend} (by size: {size})")
        rows, distances = nearest(means, entries, k, metric=metric, backend=backend)
    results = _results(queries.ids, gallery, rows, distances)
    if montage is not None:
        _draw(montage, queries, gallery, rows, distances)
    return {
        "schema": "iiae.retrieve/1",
        "index": str(gallery.path),
        "metric": metric,
        "backend": backend,
        "approximate": figures,
        "results": results,
        "montage": montage and str(montage),
    }


def _results(
    ids: list[str], gallery: Gallery, rows: Ints, distances: Floats
) -> list[dict[str, Any]]:
    names = gallery.texts("ids", rows)
    labels = gallery.texts("labels", rows) if gallery.labelled else {}
    results = []
    for query, near, lengths in zip(ids, rows.tolist(), distances.tolist(), strict=True):
        entries = []
        for rank, (row, distance) in enumerate(zip(near, lengths, strict=True), 1):
            label = {"label": labels[row]} if labels else {}
            entries.append({"rank": rank, "id": names[row], "distance": distance, **label})
        results.append({"query": query, "neighbours": entries})
    return results


def _draw(
    path: Path, queries: LatentCache, gallery: Gallery, rows: Ints, distances: Floats
) -> None:
    from iiae_cli.report.retrieval import draw_montage

    shown = min(len(rows), MONTAGE_ROWS)
    if shown < len(rows):
        console.say(f"the montage shows the first {shown} of {len(rows)} queries")
    save_picture(draw_montage(queries, gallery.read(), rows[:shown], distances[:shown]), path)
