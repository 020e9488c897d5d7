"""Swap consistency: content of one picture, manner of another, decoded and encoded again.

For every row i of domain A a row j ≠ i of domain B is drawn. B's decoder gets the shared mean of i
and the exclusive mean of j; B's encoders read the result again. In a disentangled model the shared
mean is still that of i, and the exclusive mean that of j. A ≠ B is translation with a reference
that is not the partner, A = B the visual analogy. A translation then goes home: its shared mean and
the exclusive mean that i came with are decoded in A and encoded again.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.evaluation.retrieval import direction_name, recall_at_k
from iiae_cli.evaluation.translation import Figures, Subject
from iiae_cli.inference.neighbours import Metric, partner_ranks
from iiae_cli.inference.trained import inference
from iiae_cli.model import DOMAINS, Domain

SWAP_ROWS = 1000  # at most; recall's gallery is as large
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def swap_figures(
    subject: Subject, metric: Metric = "euclidean", rows: int = SWAP_ROWS
) -> dict[str, Figures]:
    """Figures of each direction `x_to_x`, `x_to_y`, `y_to_x`, `y_to_y`.

    * `shared_recall@1`: whether the re-encoded shared mean's nearest among N contents is its own.
    * `shared_distance`: how far it moved, see `moved`.
    * `exclusive_recall@1`, `exclusive_r2`: the same of the re-encoded exclusive mean among the N
      references', and the part of their variance that it follows.
    * of translations also `return_recall@1`, `return_distance`, `round_trip_l1` of the way home.
    """
    split, pairs = subject.split, subject.pairs
    figures: dict[str, Figures] = {}
    for source, target in product(DOMAINS, DOMAINS):
        counts = len(split.side(source)), len(split.side(target))
        contents, references = _draw(*counts, rows, subject.seed)
        if len(contents) < 2:
            continue
        content = pairs.of(source).mean("shared")[contents]
        own, manner = pairs.of(source).exclusive_mean, pairs.of(target).exclusive_mean
        if own is not None and manner is not None:
            own, manner = own[contents], manner[references]
        found = _decode_and_encode(subject, target, content, manner)
        entry: Figures = {
            "shared_recall@1": _recall(found.shared, content, metric),
            "shared_distance": moved(found.shared, content),
        }
        if found.exclusive is not None and manner is not None:
            apart = moved(found.exclusive, manner)
            entry["exclusive_recall@1"] = _recall(found.exclusive, manner, metric)
            # Two rows lie √2 standard deviations apart.
            entry["exclusive_r2"] = None if apart is None else 1.0 - 2.0 * apart**2
        if source != target:
            home = split.side(source).rows[contents]
            back = _decode_and_encode(subject, source, found.shared, own, home)
            entry["return_recall@1"] = _recall(back.shared, content, metric)
            entry["return_distance"] = moved(back.shared, content)
            entry["round_trip_l1"] = back.error
        figures[direction_name(source, target)] = {**entry, "n": len(content)}
    return figures


def moved(found: Floats, given: Floats) -> float | None:
    """Root mean squared distance of N latents from where they began, over that between two of them.

    0: none moved; 1: as far as another row. None if all began in one place.
    """
    between = 2.0 * given.astype(np.float64).var(axis=0).sum()
    if between <= 0:
        return None
    return float(np.sqrt(((found.astype(np.float64) - given) ** 2).sum(axis=1).mean() / between))


def _recall(queries: Floats, gallery: Floats, metric: Metric) -> float:
    return recall_at_k(partner_ranks(queries, gallery, metric=metric), 1)


def _draw(sources: int, targets: int, rows: int, seed: int) -> tuple[Indices, Indices]:
    """Contents and their references; of equal lengths none is its own reference or its partner."""
    rng = np.random.default_rng(seed)
    if sources == targets:
        chosen = np.sort(rng.permutation(sources)[:rows])
        return chosen, np.roll(chosen, 1 + int(rng.integers(max(1, len(chosen) - 1))))
    count = min(sources, targets, rows)
    return np.sort(rng.permutation(sources)[:count]), rng.permutation(targets)[:count]


class _Read(NamedTuple):
    shared: Floats  # (N, S)
    exclusive: Floats | None  # (N, E)
    error: float | None  # mean |decoded − wanted|


def _decode_and_encode(
    subject: Subject,
    domain: Domain,
    shared: Floats,
    exclusive: Floats | None,
    wanted: NDArray[Any] | None = None,
) -> _Read:
    """Decode latents in a domain, compare with `wanted` rows, and encode the result again."""
    network, device = subject.trained.network, subject.trained.device
    read: dict[str, list[Floats]] = {"shared": [], "exclusive": [], "error": []}
    with inference(network):
        for start in range(0, len(shared), subject.batch_size):
            part = slice(start, start + subject.batch_size)
            own = None if exclusive is None else torch.from_numpy(exclusive[part]).to(device)
            made = network.decode(domain, torch.from_numpy(shared[part]).to(device), own)
            read["shared"].append(network.encode_shared(domain, made).mean.flatten(1).cpu().numpy())
            if wanted is not None:
                error = (made - subject.trained.inputs(wanted[part])).abs().flatten(1)
                read["error"].append(error.mean(dim=1).cpu().numpy())
            elif own is not None:
                read["exclusive"].append(network.encode_exclusive(domain, made).mean.cpu().numpy())
    return _Read(
        np.concatenate(read["shared"]),
        np.concatenate(read["exclusive"]) if read["exclusive"] else None,
        float(np.concatenate(read["error"]).mean()) if read["error"] else None,
    )
