"""`evaluate --task disentanglement`: every figure of it as one mapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.bounds import bound_figures
from iiae_cli.evaluation.disentanglement import (
    PROBE_ROWS,
    choose_rows,
    latent_figures,
    own_factors,
    probe_figures,
    warnings_of,
)
from iiae_cli.evaluation.probes import FOLDS
from iiae_cli.evaluation.protocols import EncodedPairs, exclusive_kl
from iiae_cli.evaluation.swaps import swap_figures
from iiae_cli.inference.retrieval import Metric
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.runs.weights import LoadedModel


@dataclass(frozen=True)
class ProbeOptions:
    """What the caller may choose.

    Attributes:
        rows: that probes see at most.
        shared: factors that both domains hold, beside those whose names say so.
        seed: of every draw.
    """

    rows: int = PROBE_ROWS
    shared: Sequence[str] = ()
    seed: int = 0


def measure_disentanglement(
    loaded: LoadedModel,
    pairs: EncodedPairs,
    split: Split,
    train: Callable[[], Split] | None,
    options: ProbeOptions,
    *,
    by_class: bool,
    metric: Metric,
    batch_size: int = 256,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures, and what a reader must know of how they were made.

    Args:
        loaded: the model.
        pairs: latents of `split`.
        split: the measured rows, aligned unless `by_class`.
        train: gives the training split, for probes that the measured rows are too few for.
        options: of the probes.
        by_class: whether rows belong together by their labels alone: there are then no bounds, which need partners.
        metric: distance between latents.
        batch_size: rows at once.

    Raises:
        IiaeError: a factor that there is not, or latents that are not finite.
    """
    trained = TrainedModel.of(loaded)
    rows = choose_rows(
        trained,
        pairs,
        split,
        train,
        by_class=by_class,
        shared=options.shared,
        rows=options.rows,
        seed=options.seed,
        batch_size=batch_size,
    )
    probes = probe_figures(rows, options.seed)
    latents = latent_figures(pairs, probes)
    figures: dict[str, Any] = {
        "exclusive_kl": dict(exclusive_kl(pairs)),
        "factors": own_factors(probes),
        "latents": latents,
        "probes": probes,
        "swaps": swap_figures(
            trained,
            pairs,
            split,
            metric=metric,
            batch_size=batch_size,
            seed=options.seed,
        ),
    }
    if not by_class:
        some = np.sort(
            np.random.default_rng(options.seed).permutation(len(split.x))[: options.rows]
        )
        objective = loaded.config.objective
        figures["bounds"] = bound_figures(
            trained,
            split.take_pairs(some),
            loss=objective.reconstruction,
            weight=objective.reconstruction_weight,
            batch_size=batch_size,
            seed=options.seed,
        )
    measured = len(rows.folds["x"]) - rows.learning
    learnt = measured * (FOLDS - 1) // FOLDS + rows.learning
    figures["warnings"] = warnings_of(latents, probes, learnt)
    protocol = {
        "probe_rows": measured,
        "probe_rows_learnt_from_train": rows.learning,
        "probe_folds": FOLDS,
        "probe_seed": options.seed,
    }
    return figures, protocol
