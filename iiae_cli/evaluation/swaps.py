"""Swap consistency: content of one picture, manner of another, decoded and encoded again. Does each stay what it was?

For every row i of domain A a row j ≠ i of domain B is drawn. B's decoder gets the shared mean of i and the exclusive
mean of j; B's encoders read the result again. In a disentangled model the shared mean found is still that of i, and the
exclusive mean that of j. A ≠ B is translation with a reference that is not the partner, A = B the visual analogy. A
translation then goes home: its shared mean and the exclusive mean that i came with are decoded in A and encoded again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.metrics import recall_at_k
from iiae_cli.evaluation.protocols import EncodedPairs, direction_name
from iiae_cli.inference.retrieval import Metric, partner_ranks
from iiae_cli.inference.trained import TrainedModel, inference
from iiae_cli.model import DOMAINS, Domain

SWAP_ROWS = 1000  # at most; recall's gallery is as large
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Swapped:
    """Re-encoded means of N results, and the mean |error| of the way home (None within one domain)."""

    shared: Floats
    exclusive: Floats | None
    returned: Floats | None
    round_trip: float | None


def swap_figures(
    trained: TrainedModel,
    pairs: EncodedPairs,
    split: Split,
    *,
    metric: Metric = "euclidean",
    batch_size: int = 256,
    rows: int = SWAP_ROWS,
    seed: int = 0,
) -> dict[str, dict[str, float | int | None]]:
    """Per direction `x_to_y`, `y_to_x`, `x_to_x`, `y_to_y`:

    * `shared_recall@1`: is the re-encoded shared mean's nearest among the N contents' means its own?
    * `shared_distance`: how far it moved, in units of the distance between two contents (root mean squares).
    * `exclusive_recall@1`, `exclusive_r2`: the same of the re-encoded exclusive mean among the N references', and the
      part of their variance that it follows (1: all of it).
    * of translations also `return_recall@1`, `return_distance` and `round_trip_l1` of the way home.

    Args:
        trained: the model.
        pairs: latents of `split`; the two domains may differ in length.
        split: the rows.
        metric: distance between latents.
        batch_size: rows at once.
        rows: at most so many contents.
        seed: of contents and references.
    """
    figures: dict[str, dict[str, float | int | None]] = {}
    for source in DOMAINS:
        for target in DOMAINS:
            contents, references = _draw(
                len(split.side(source).rows), len(split.side(target).rows), rows, seed
            )
            if len(contents) < 2:
                continue
            content = pairs.of(source).mean("shared")[contents]
            manner = pairs.of(target).exclusive_mean
            manner = None if manner is None else manner[references]
            own = pairs.of(source).exclusive_mean
            home = None
            if source != target:
                home = split.side(source).rows[contents], None if own is None else own[contents]
            found = _swap(trained, source, target, content, manner, home, batch_size)
            figures[direction_name(source, target)] = _figures(found, content, manner, metric)
    return figures


def _draw(
    sources: int, targets: int, rows: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contents and references, in each other's order; of equal lengths none is its own reference, nor its partner."""
    rng = np.random.default_rng(seed)
    if sources == targets:
        order = rng.permutation(sources)
        chosen = np.sort(order[:rows])
        return chosen, np.roll(chosen, 1 + int(rng.integers(max(1, len(chosen) - 1))))
    count = min(sources, targets, rows)
    return np.sort(rng.permutation(sources)[:count]), rng.permutation(targets)[:count]


def _swap(
    trained: TrainedModel,
    source: Domain,
    target: Domain,
    content: Floats,
    manner: Floats | None,
    home: tuple[NDArray[Any], Floats | None] | None,
    batch_size: int,
) -> _Swapped:
    shared, exclusive, returned, errors = [], [], [], []

    def on(latents: Floats | None, part: slice) -> Tensor | None:
        return None if latents is None else torch.from_numpy(latents[part]).to(trained.device)

    model = trained.network
    with inference(model):
        for start in range(0, len(content), batch_size):
            part = slice(start, start + batch_size)
            given = torch.from_numpy(content[part]).to(trained.device)
            made = model.decode(target, given, on(manner, part))
            read = model.encode_shared(target, made).mean
            shared.append(read.flatten(1).cpu().numpy())
            if manner is not None:
                exclusive.append(model.encode_exclusive(target, made).mean.cpu().numpy())
            if home is not None:
                back = model.decode(source, read, on(home[1], part))
                returned.append(model.encode_shared(source, back).mean.flatten(1).cpu().numpy())
                wanted = trained.inputs(home[0][part])
                errors.append((back - wanted).abs().flatten(1).mean(dim=1).cpu().numpy())
    return _Swapped(
        np.concatenate(shared),
        np.concatenate(exclusive) if exclusive else None,
        np.concatenate(returned) if returned else None,
        float(np.concatenate(errors).mean()) if errors else None,
    )


def _figures(
    found: _Swapped, content: Floats, manner: Floats | None, metric: Metric
) -> dict[str, float | int | None]:
    figures: dict[str, float | int | None] = {
        "shared_recall@1": recall_at_k(partner_ranks(found.shared, content, metric=metric), 1),
        "shared_distance": moved(found.shared, content),
    }
    if found.exclusive is not None and manner is not None:
        apart = moved(found.exclusive, manner)
        figures["exclusive_recall@1"] = recall_at_k(
            partner_ranks(found.exclusive, manner, metric=metric), 1
        )
        # Two rows lie √2 standard deviations apart.
        figures["exclusive_r2"] = None if apart is None else 1.0 - 2.0 * apart**2
    if found.returned is not None:
        figures["return_recall@1"] = recall_at_k(
            partner_ranks(found.returned, content, metric=metric), 1
        )
        figures["return_distance"] = moved(found.returned, content)
        figures["round_trip_l1"] = found.round_trip
    return {**figures, "n": len(content)}


def moved(found: Floats, given: Floats) -> float | None:
    """Root mean squared distance of N latents from where they began, over that between two of the latter.

    0: none moved; 1: as far as another row. None where all began in one place.
    """
    between = 2.0 * given.astype(np.float64).var(axis=0).sum()
    if between <= 0:
        return None
    return float(np.sqrt(((found.astype(np.float64) - given) ** 2).sum(axis=1).mean() / between))
