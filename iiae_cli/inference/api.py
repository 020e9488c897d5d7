"""The Python interface: `iiae_cli.load(run)` returns a `Model`; the commands use it, too.

Shapes: N inputs, Q queries, k neighbours, K outputs per input; S shared and E exclusive dimensions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.builders import choose_device
from iiae_cli.common import console
from iiae_cli.common.environment import run_folder
from iiae_cli.common.errors import IiaeError
from iiae_cli.inference.inputs import Inputs, Pictures, open_inputs
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.neighbours import Backend, Floats, Ints, Metric, choose_backend, nearest
from iiae_cli.inference.trained import Encoded, LatentKind, TrainedModel, styles_of
from iiae_cli.model import Domain, other_domain
from iiae_cli.runs import LoadedModel, RunDir, load_model

BACKBONE_VARIABLE = "IIAE_BACKBONE_WEIGHTS"  # the default for all runs of a session
BLOCK_ROWS = 256  # rows that `Model.encode` reads at once


@dataclass(frozen=True)
class Neighbours:
    """The nearest entries of a gallery to each query, nearest first; ties in gallery order."""

    queries: list[str]  # (Q,)
    rows: Ints  # (Q, k) positions in the gallery
    distances: Floats  # (Q, k)
    ids: NDArray[np.object_]  # (Q, k)
    labels: NDArray[np.object_] | None  # (Q, k), where classes are known
    metric: Metric
    backend: Backend
    skipped: list[str] = field(default_factory=list)  # a line for every query left out


@dataclass(frozen=True)
class Translations:
    """K outputs of each input, and the sources of their exclusive latents."""

    ids: list[str]  # (N,)
    styles: list[str]  # (K,) such as "sample 1", or a reference's file name
    outputs: NDArray[Any]  # (N, K, H, W, C) uint8 pictures, or (N, K, F) float32 features
    skipped: list[str]  # a line for every input left out


@dataclass(frozen=True)
class Model:
    """A trained run that takes pictures: paths, folders, a .h5, PIL images, arrays or tensors.

    Arrays are (H, W[, C]) or (N, H, W, C) uint8, tensors (C, H, W) or (N, C, H, W), uint8 or floats
    in [0, 1]; a model of features also takes (F,) or (N, F) numbers. Unreadable inputs are left out
    and named in `skipped`. Raises IiaeError if none can be read, or one does not fit the model.
    """

    loaded: LoadedModel
    folder: Path
    backbone_weights: str | None = None  # for a run of features, if they moved

    @classmethod
    def load(
        cls, run: Path | str | None = None, device: str = "auto", weights: str | None = None
    ) -> Model:
        """Reads a run's kept weights [IIAE_RUN, else runs/latest]."""
        folder, _ = run_folder(None if run is None else Path(run))
        loaded = load_model(RunDir(folder), choose_device(device))
        if loaded.size is not None and weights not in (None, os.environ.get(BACKBONE_VARIABLE)):
            raise IiaeError(
                f"{folder} was trained on pictures, and no backbone reads them",
                "leave --backbone-weights out, or name a run of features by --run",
            )
        return cls(loaded, folder, weights)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the weights; latents of other weights are refused."""
        return self.loaded.fingerprint

    @property
    def trained(self) -> TrainedModel:
        """The network, for rows and latents as tensors."""
        return TrainedModel.of(self.loaded)

    def inputs(
        self, pictures: Pictures, domain: Domain, split: str = "test", workers: int = 2
    ) -> Inputs:
        """Returns pictures as unread rows of a domain; `split` is for a prepared file."""
        return open_inputs(
            pictures,
            domain,
            self.loaded.info,
            split=split,
            workers=workers,
            weights=self.backbone_weights,
            device=self.loaded.device,
        )

    def encode(
        self, pictures: Pictures, domain: Domain, split: str = "test", workers: int = 2
    ) -> LatentCache:
        """Returns the latents of pictures, with ids: r(z^s|·), and q(z^x|x) if it exists."""
        inputs, trained, parts = self.inputs(pictures, domain, split, workers), self.trained, []
        cache, labels = LatentCache.head_of(self.loaded, domain, inputs.source), list[str]()
        for block in inputs.blocks(BLOCK_ROWS, "encoding"):
            cache.ids += block.ids
            cache.skipped += block.skipped
            labels += block.labels
            if block.ids:
                parts.append(trained.encode(block.rows, domain))
        return replace(cache, labels=labels or None, encoded=Encoded.joined(parts))

    def retrieve(
        self,
        queries: Pictures | LatentCache,
        gallery: LatentCache | Path | str | None = None,
        k: int = 5,
        *,
        domain: Domain | None = None,
        metric: Metric | None = None,
        latents: LatentKind = "shared",
        backend: Backend = "auto",
    ) -> Neighbours:
        """Returns the k nearest entries of a gallery [the run's gallery.h5] to every query.

        Queries that are not yet encoded are of `domain` [the other one than the gallery's]. Raises
        IiaeError if a gallery is of other weights.
        """
        if not isinstance(gallery, LatentCache):
            gallery = LatentCache.read(Path(gallery or RunDir(self.folder).gallery_file))
        if not isinstance(queries, LatentCache):
            queries = self.encode(queries, domain or other_domain(gallery.domain))
        return search(queries, gallery, k, metric=metric, latents=latents, backend=backend)

    def translate(
        self,
        pictures: Pictures,
        source: Domain,
        target: Domain | None = None,
        *,
        reference: Pictures | None = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> Translations:
        """Decodes each picture's shared latent in `target` [the other domain].

        Exclusive latents are `samples` draws from the prior [3; none beside references], then those
        of the references, which are pictures of `target`.
        """
        target = target or other_domain(source)
        references = None if reference is None else self.inputs(reference, target).read_all()
        trained, block = self.trained, self.inputs(pictures, source).read_all()
        styles = styles_of(trained, target, references, samples=samples, seed=seed)
        latents = styles.exclusive(block.positions)
        outputs = trained.translate(block.rows, source, target, latents)
        return Translations(block.ids, styles.names, outputs, block.skipped)


def open_run(run: Path | None, device: str, backbone_weights: str | None = None) -> Model:
    """Reads the weights of `--run`, or of the default run, and says which it is."""
    _, chosen = run_folder(run)
    model = Model.load(run, device, backbone_weights)
    step = model.loaded.details.get("step")
    console.say(f"model {model.fingerprint} of {model.folder} ({chosen}), kept at step {step}")
    return model


def search(
    queries: LatentCache,
    gallery: LatentCache,
    k: int,
    *,
    metric: Metric | None = None,
    latents: LatentKind = "shared",
    backend: Backend = "auto",
) -> Neighbours:
    """Returns the k nearest entries of a gallery, in memory or on disk, to every query.

    The metric defaults to the model's own. Raises IiaeError for latents of another model, or of a
    kind that one side lacks.
    """
    means, entries = queries.encoded.mean(latents), gallery.encoded.mean(latents)
    if (queries.fingerprint, means.shape[1]) != (gallery.fingerprint, entries.shape[1]):
        raise IiaeError(
            f"queries were encoded by model {queries.fingerprint}, the gallery by "
            f"{gallery.fingerprint}",
            "encode the gallery again with this run: iiae encode … --run RUN -o z.h5",
        )
    metric = metric or ("cosine" if gallery.metric == "cosine" else "euclidean")
    backend = choose_backend(backend, len(means), *entries.shape)
    rows, distances = nearest(means, entries, k, metric=metric, backend=backend)
    ids = np.array(gallery.ids, object)[rows]
    labels = None if gallery.labels is None else np.array(gallery.labels, object)[rows]
    return Neighbours(queries.ids, rows, distances, ids, labels, metric, backend, queries.skipped)
