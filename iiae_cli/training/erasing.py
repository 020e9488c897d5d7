"""Fits what `model/erasure.py` takes out of posterior means, on training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiae_cli.config.schema import ErasureSection
from iiae_cli.extensions.erasure import (
    LinearErasure,
    SharedPart,
    channel_basis,
    shared_regression,
    without,
)
from iiae_cli.inference.trained import Encoded, TrainedModel
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.training.data import TrainingData


def fit_erasure(trained: TrainedModel, data: TrainingData, erasure: ErasureSection) -> None:
    """Set a model's erasure from its posteriors on the training rows; a function of weights and rows alone.

    Rows that are paired by class have no partner: their own shared means are the instrument, and LEACE is plain.
    """
    if not erasure.any:
        return
    model = trained.network
    _reset(model)
    encoded = {domain: trained.encode(rows, domain) for domain, rows in _rows(data, erasure)}
    for domain in DOMAINS:
        partner = None if data.by_class else encoded[other_domain(domain)]
        _fit_domain(model, domain, encoded[domain], partner, erasure)


def _reset(model: IIAE) -> None:
    for module in model.modules():
        if isinstance(module, LinearErasure | SharedPart):
            module.reset()


def _rows(data: TrainingData, erasure: ErasureSection) -> list[tuple[Domain, Any]]:
    """At most `erasure.rows` training rows per domain, spread evenly; row by row pairs, unless paired by class."""
    if data.by_class:
        return [(domain, _spread(data.train.side(domain).rows, erasure.rows)) for domain in DOMAINS]
    x, y = data.rows(_spread(np.arange(data.count), erasure.rows))
    return [("x", x), ("y", y)]


def _spread(rows: Any, most: int) -> Any:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _fit_domain(
    model: IIAE, domain: Domain, own: Encoded, partner: Encoded | None, erasure: ErasureSection
) -> None:
    mean, noise = (
        _tensor(own.shared_mean),
        torch.exp(_tensor(own.shared_logvar).double()).mean(dim=0),
    )
    other = None if partner is None else _tensor(partner.shared_mean)
    basis = channel_basis(
        mean, noise, erasure.least_snr if erasure.shared.startswith("channel") else 0.0
    )
    exclusive = None if own.exclusive_mean is None else _tensor(own.exclusive_mean).double()
    if domain in model.shared_part and exclusive is not None:
        shared_part = model.shared_part[domain]
        assert isinstance(shared_part, SharedPart)
        weight = shared_regression(
            exclusive, basis, mean, mean if other is None else other, erasure.ridge
        )
        shared_part.set(basis.centre, weight)
        exclusive = exclusive - (mean.double() - basis.centre) @ weight.T
    if domain in model.erase_shared:
        erase = model.erase_shared[domain]
        assert isinstance(erase, LinearErasure)
        if erasure.shared.endswith("leace") and exclusive is not None:
            basis = without(
                basis, mean, exclusive, partner=other, least_correlation=erasure.least_correlation
            )
        erase.set(basis.centre, basis.left, basis.right)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values))
