"""`iiae retrieve`: the nearest entries of a gallery, with or without a montage of pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iiae_cli.cli.options import (
    OUTPUT,
    RUNNING,
    DeviceOption,
    DomainName,
    JsonFlag,
    MetricName,
    NulFlag,
    OverwriteFlag,
    RunOption,
    SplitOption,
    WorkersOption,
    finish,
)
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import refuse_existing, writing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from iiae_cli.inference.latents import Gallery, LatentCache
    from iiae_cli.inference.neighbours import Floats, Ints

MONTAGE_ROWS = 32


@dataclass(frozen=True)
class Options:
    """What the command line says; the fields are the options of `command`."""

    queries: list[str]
    index: Path | None = None
    run: Path | None = None
    k: int = 5
    domain: DomainName | None = None
    metric: MetricName | None = None
    latents: Literal["shared", "exclusive"] = "shared"
    backend: Literal["auto", "sklearn", "torch", "faiss"] = "auto"
    approximate: bool = False
    montage: Path | None = None
    split: str = "test"
    workers: int = 2
    device: str = "auto"
    nul: bool = False
    overwrite: bool = False


@dataclass
class Neighbours:
    """The nearest gallery entries of every query, as `--json` prints them.

    Attributes:
        index: latent cache of the gallery.
        metric: distance that ranked it.
        results: one object per query.
        skipped: a line for every query left out.
        montage: the picture written, if any.
        backend: who searched.
        approximate: of an approximate search `index`, `recall` on `sample` queries, `probes` of
            `lists`.
    """

    index: Path
    metric: MetricName
    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    montage: Path | None = None
    backend: str = "auto"
    approximate: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `--json` prints."""
        montage = None if self.montage is None else str(self.montage)
        paths = {"index": str(self.index), "montage": montage}
        return {"schema": "iiae.retrieve/1", **vars(self), **paths}

    def show(self) -> None:
        """Print for people and pipes: query, rank, id, distance and, where known, label."""
        entries = [
            (result["query"], entry) for result in self.results for entry in result["neighbours"]
        ]
        labelled = any("label" in entry for _, entry in entries)
        names = ["rank", "id", "distance", *(["label"] if labelled else [])]
        rows = [[query, *(entry.get(name, "") for name in names)] for query, entry in entries]
        console.print_table(["query", *names], rows, header=False)


def command(
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY...", help="Pictures, folders, -, .h5 or .npy.")
    ],
    index: Annotated[
        Path | None,
        typer.Option(
            help="Gallery: a latent cache [IIAE_INDEX, the only one here, else RUN/gallery.h5]."
        ),
    ] = None,
    run: RunOption = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbours per query.")] = 5,
    domain: Annotated[
        DomainName | None, typer.Option(help="The queries' [the other than the gallery's].")
    ] = None,
    metric: Annotated[MetricName | None, typer.Option(help="Distance [the preset's].")] = None,
    latents: Annotated[
        Literal["shared", "exclusive"], typer.Option(help="Which latents are compared.")
    ] = "shared",
    backend: Annotated[
        Literal["auto", "sklearn", "torch", "faiss"],
        typer.Option(
            help="Who searches; neighbours are the same [auto: by size].", rich_help_panel=RUNNING
        ),
    ] = "auto",
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Many queries, large gallery: a faiss index beside it, recall measured.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    montage: Annotated[
        Path | None,
        typer.Option(help="Write a picture of queries and neighbours.", rich_help_panel=OUTPUT),
    ] = None,
    split: SplitOption = "test",
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    nul: NulFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Find the gallery's nearest pictures. In a pipe: query, rank, id, distance[, label],
    tab-separated.

    \b
    Examples:
      iiae retrieve query.png --k 5
      iiae retrieve query.png --index z.h5 --montage hits.png
      find queries -name '*.png' | iiae retrieve - --index z.h5 --k 10 | cut -f1,3 > hits.tsv
      iiae retrieve x.h5 --index z.h5 --json | jq -r '.results[].neighbours[0].id'
      iiae retrieve x.h5 --index million.h5 --approximate > hits.tsv
    """
    given = dict(locals())
    del given["as_json"]
    neighbours = retrieve(Options(**given))
    for line in neighbours.skipped:
        console.warn(f"skipped {line}")
    finish(neighbours, as_json, neighbours.skipped)


def retrieve(options: Options) -> Neighbours:
    """Find the nearest gallery entries of every query.

    Raises:
        IiaeError: no gallery, no query, or a gallery of another model.
    """
    from iiae_cli.common.files import index_file
    from iiae_cli.data.pictures import expand_inputs
    from iiae_cli.inference.latents import Gallery, is_latent_cache, means_of

    paths = expand_inputs(options.queries, nul=options.nul)
    if options.montage is not None:
        refuse_existing(options.montage, options.overwrite)
    if options.approximate and options.backend not in ("auto", "faiss"):
        raise IiaeError(
            f"--approximate is faiss' own, not --backend {options.backend}", "leave --backend out"
        )
    index, chosen = index_file(options.index, options.run, is_latent_cache)
    gallery = Gallery(index)
    console.say(
        f"gallery {index} ({chosen}): {len(gallery)} pictures of domain {gallery.head.domain}"
    )
    queries, skipped = _queries(paths, gallery, options)
    if queries.fingerprint != gallery.head.fingerprint:
        raise IiaeError(
            f"queries were encoded by model {queries.fingerprint}, the gallery {index} by "
            f"{gallery.head.fingerprint}",
            "encode the gallery again with this run: iiae encode … --run RUN -o z.h5",
        )
    metric = options.metric or ("cosine" if gallery.head.metric == "cosine" else "euclidean")
    found = Neighbours(index, metric, skipped=skipped, montage=options.montage)
    means = means_of(queries, options.latents, Path(paths[0]))
    rows, distances = _search(means, gallery, options, found)
    found.results = _results(queries.ids, gallery, rows, distances)
    if options.montage is not None:
        _draw(options.montage, queries, index, rows, distances)
    return found


def _queries(paths: list[str], gallery: Gallery, options: Options) -> tuple[LatentCache, list[str]]:
    """Returns the queries' latents, read or encoded, and a line for each query left out."""
    from iiae_cli.builders import choose_device
    from iiae_cli.common.files import run_folder
    from iiae_cli.inference.inputs import open_inputs
    from iiae_cli.inference.latents import LatentCache, is_latent_cache, read_latents
    from iiae_cli.inference.trained import TrainedModel
    from iiae_cli.model import other_domain
    from iiae_cli.runs.directory import RunDir
    from iiae_cli.runs.weights import load_model

    first = Path(paths[0])
    if len(paths) == 1 and is_latent_cache(first):
        return read_latents(first), []
    domain = options.domain or other_domain(gallery.head.domain)
    folder, chosen = run_folder(options.run)
    loaded = load_model(RunDir(folder), choose_device(options.device))
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
    return cache, inputs.skipped


def _search(
    queries: NDArray[Any], gallery: Gallery, options: Options, found: Neighbours
) -> tuple[Ints, Floats]:
    """Returns gallery rows (Q, K) and distances (Q, K); notes in `found` how they were found."""
    from iiae_cli.inference import approximate
    from iiae_cli.inference.neighbours import choose_backend, nearest

    means = gallery.means(options.latents)
    if queries.shape[1] != means.shape[1]:
        raise IiaeError(
            f"queries have {queries.shape[1]} dimensions, the gallery {means.shape[1]}",
            "compare latents of one kind and one model",
        )
    if not options.approximate or not len(gallery):
        backend = choose_backend(options.backend, len(queries), *means.shape)
        if options.backend == "auto":
            size = " × ".join(f"{count:,}" for count in (len(queries), *means.shape))
            console.say(f"backend {backend} (by size: {size})")
        found.backend = backend
        return nearest(queries, means, options.k, metric=found.metric, backend=backend)
    suffix = ".faiss" if options.latents == "shared" else f".{options.latents}.faiss"
    path = gallery.path.with_suffix(suffix)
    made = approximate.search(
        queries,
        means,
        options.k,
        metric=found.metric,
        path=path,
        fingerprint=gallery.head.fingerprint,
    )
    recall = f"{made.recall:.3f} on {made.sample} of {len(queries)} queries"
    console.say(
        f"index {path} {'made' if made.built else 'read'}; {made.probes} of {made.lists} lists; "
        f"recall@{options.k} {recall}"
    )
    figures = {name: getattr(made, name) for name in ("recall", "sample", "probes", "lists")}
    found.backend, found.approximate = "faiss", {"index": str(path), **figures}
    return made.rows, made.distances


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
            "query": query,
            "neighbours": [
                neighbour(rank, *pair)
                for rank, pair in enumerate(zip(near, values, strict=True), 1)
            ],
        }
        for query, near, values in zip(ids, rows.tolist(), distances.tolist(), strict=True)
    ]


def _draw(path: Path, queries: LatentCache, index: Path, rows: Ints, distances: Floats) -> None:
    from iiae_cli.inference.latents import read_latents
    from iiae_cli.report.retrieval import draw_montage

    shown = min(len(rows), MONTAGE_ROWS)
    if shown < len(rows):
        console.say(f"the montage shows the first {shown} of {len(rows)} queries")
    picture = draw_montage(queries, read_latents(index), rows[:shown], distances[:shown])
    with writing(path) as temporary:
        picture.save(temporary, format="PNG")
