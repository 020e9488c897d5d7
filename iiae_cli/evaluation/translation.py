"""Measures translations against partners (paper, Table 4), and what survives a swap of latents.

Shapes: N rows, B of them in a batch, S shared and E exclusive dimensions; pictures (B, C, H, W) in
[−1, 1] or features (B, F).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.common import console
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.retrieval import DIRECTIONS, EncodedPairs
from iiae_cli.inference.neighbours import Metric, partner_ranks, slices
from iiae_cli.inference.trained import Encoded, TrainedModel, inference, prior_samples
from iiae_cli.model import DOMAINS, Domain

Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # two batches → a figure per picture
Figures: TypeAlias = dict[str, float | int | None]
Latents: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]

SWAP_ROWS = 1000  # at most; recall's gallery is as large


@dataclass(frozen=True)
class Subject:
    """The subject of a measurement: a model on the rows of a split."""

    trained: TrainedModel
    pairs: EncodedPairs  # latents of the rows
    split: Split  # aligned rows, unless they are paired by class
    seed: int = 0  # seed of every draw
    batch_size: int = 256  # rows at once

    def samples(self, count: int) -> list[Latents]:
        """Draws exclusive latents (N, E) from the prior, `count` times; none if there are none."""
        exclusive_dim, rows = self.trained.network.exclusive_dim, range(len(self.split.x))
        if not exclusive_dim:
            return []
        return [*prior_samples(count, rows, exclusive_dim, self.seed).numpy().swapaxes(0, 1)]

    def decoded(
        self, domain: Domain, shared: Latents, exclusive: Latents | None, unit: str
    ) -> Iterator[Tensor]:
        """Yields batches of decoded latents (N, S) and (N, E); progress counts by `unit`."""
        own = None if exclusive is None else torch.from_numpy(exclusive)
        latents = domain, torch.from_numpy(shared), own
        with console.progress(f"{unit} to {domain}", len(shared), unit) as bar:
            for outputs in self.trained.decoded(*latents, batch_size=self.batch_size):
                yield outputs
                bar.update(bar.done + len(outputs))

    def translated(self, way: tuple[Domain, Domain], exclusive: Latents | None) -> Iterator[Tensor]:
        """Yields batches of rows decoded in the other domain with its exclusive latents (N, E)."""
        return self.decoded(way[1], self.pairs[way[0]].mean("shared"), exclusive, "translations")


# ---- translation


def l1(translated: Tensor, wanted: Tensor) -> Tensor:
    """Returns the mean absolute difference per row (B,)."""
    return (translated.float() - wanted.float()).abs().flatten(1).mean(dim=1)


def ssim(translated: Tensor, wanted: Tensor) -> Tensor:
    """Returns structural similarity (Wang et al., 2004) per picture (B,), NaN below 11 pixels.

    It is the mean over channels and windows inside the picture, as torchmetrics' releases differ
    outside.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(wanted.shape[-2:]) < 11:
        return wanted.new_full((len(wanted),), math.nan)
    first, second = ((pictures.float() + 1) / 2 for pictures in (translated, wanted))
    _, windows = structural_similarity_index_measure(
        first, second, data_range=1.0, reduction="none", return_full_image=True
    )
    return windows[..., 5:-5, 5:-5].flatten(1).mean(dim=1)  # windows of 11×11


def translation_figures(
    subject: Subject, measures: Mapping[str, Measure], samples: int = 0
) -> dict[str, Figures]:
    """Measures each row's translation against its partner, per direction; None if not finite.

    Guided: with the partner's exclusive mean. Sampled: with draws from the prior, `_mean` over all,
    and `_best` over inputs of each one's best.
    """
    figures: dict[str, Figures] = {}
    drawn = subject.samples(samples)
    for name, way in DIRECTIONS.items():
        guided = _measured(subject, way, subject.pairs[way[1]].exclusive_mean, measures)
        entry: Figures = {measure: _mean(values) for measure, values in guided.items()}
        sampled = [_measured(subject, way, exclusive, measures) for exclusive in drawn]
        for measure in measures if sampled else ():
            values = np.stack([by_measure[measure] for by_measure in sampled])  # (samples, N)
            best = values.max(axis=0) if measure == "ssim" else values.min(axis=0)
            entry |= {f"{measure}_mean": _mean(values), f"{measure}_best": _mean(best)}
        counts = {"samples": len(sampled)} if sampled else {}
        figures[name] = {**entry, **counts, "n": len(subject.split.x)}
    return figures


def _measured(
    subject: Subject,
    way: tuple[Domain, Domain],
    exclusive: Latents | None,
    measures: Mapping[str, Measure],
) -> dict[str, NDArray[np.float64]]:
    rows = subject.split.side(way[1]).rows
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in measures}
    translated = subject.translated(way, exclusive)
    for part, outputs in zip(slices(len(rows), subject.batch_size), translated, strict=True):
        wanted = subject.trained.inputs(rows[part])
        for name, measure in measures.items():
            values[name].append(measure(outputs, wanted).double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in values.items()}


def _mean(values: NDArray[np.float64]) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None


# ---- swaps


def swap_figures(
    subject: Subject, metric: Metric = "euclidean", rows: int = SWAP_ROWS
) -> dict[str, Figures]:
    """Decodes shared means with the exclusive means of other rows, and encodes the results again.

    Translations then return with the exclusive mean that they came with.
    """

    def recall(queries: Latents, gallery: Latents) -> float:
        return float(np.mean(partner_ranks(queries, gallery, metric=metric) == 1))

    figures: dict[str, Figures] = {}
    for source, target in product(DOMAINS, DOMAINS):
        home, abroad = subject.split.side(source), subject.split.side(target)
        contents, references = _draw_swaps(len(home), len(abroad), rows, subject.seed)
        if len(contents) < 2:
            continue
        sent, manner = subject.pairs[source].take(contents), subject.pairs[target].take(references)
        content = sent.mean("shared")
        again, _ = _encoded_again(subject, target, content, manner.exclusive_mean)
        shared = again.mean("shared")
        entry: Figures = {
            "shared_recall@1": recall(shared, content),
            "shared_distance": moved(shared, content),
        }
        if manner.exclusive_mean is not None:
            own = again.mean("exclusive")
            apart = moved(own, manner.exclusive_mean)
            entry["exclusive_recall@1"] = recall(own, manner.exclusive_mean)
            # Two rows lie √2 standard deviations apart.
            entry["exclusive_r2"] = None if apart is None else 1.0 - 2.0 * apart**2
        if source != target:
            returned = subject, source, shared, sent.exclusive_mean, home.rows[contents]
            back, entry["round_trip_l1"] = _encoded_again(*returned)
            entry["return_recall@1"] = recall(back.mean("shared"), content)
            entry["return_distance"] = moved(back.mean("shared"), content)
        figures[f"{source}_to_{target}"] = {**entry, "n": len(content)}
    return figures


def _draw_swaps(sources: int, targets: int, rows: int, seed: int) -> tuple[Ints, Ints]:
    """Draws contents and references; of equal lengths, none is its own reference or its partner."""
    rng = np.random.default_rng(seed)
    if sources == targets:
        chosen = np.sort(rng.permutation(sources)[:rows])
        return chosen, np.roll(chosen, 1 + int(rng.integers(max(1, len(chosen) - 1))))
    count = min(sources, targets, rows)
    return np.sort(rng.permutation(sources)[:count]), rng.permutation(targets)[:count]


def _encoded_again(
    subject: Subject,
    domain: Domain,
    shared: Latents,
    exclusive: Latents | None,
    wanted: NDArray[Any] | None = None,
) -> tuple[Encoded, float | None]:
    """Decodes latents and encodes them again; returns means, and the L1 to `wanted` rows."""
    network = subject.trained.network
    read: dict[str, list[Tensor]] = {}
    decoded = subject.decoded(domain, shared, exclusive, "swaps")
    for part, outputs in zip(slices(len(shared), subject.batch_size), decoded, strict=True):
        with inference(network):
            values = {"shared_mean": network.encode_shared(domain, outputs).mean.flatten(1)}
            if exclusive is not None:
                values["exclusive_mean"] = network.encode_exclusive(domain, outputs).mean
            if wanted is not None:
                values["error"] = l1(outputs, subject.trained.inputs(wanted[part]))
        for name, batch in values.items():
            read.setdefault(name, []).append(batch.cpu())
    joined = {name: torch.cat(batches).numpy() for name, batches in read.items()}
    error = joined.pop("error", None)
    return Encoded(**joined), None if error is None else float(error.mean())


def moved(latents: Latents, given: Latents) -> float | None:
    """Returns how far latents moved, 1 as far as another row; None if all are equal."""
    between = 2.0 * given.astype(np.float64).var(axis=0).sum()
    if between <= 0:
        return None
    return float(np.sqrt(((latents.astype(np.float64) - given) ** 2).sum(axis=1).mean() / between))
