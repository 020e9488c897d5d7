"""What a model takes from the training rows in closed form, beside what training learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiae_cli.builders import picture_size
from iiae_cli.common import console
from iiae_cli.config.schema import Config, ErasureSection
from iiae_cli.data.batches import to_inputs
from iiae_cli.extensions.closed_forms import canonical_maps, fit_maps, two_covariance_map
from iiae_cli.extensions.extended import (
    ExtendedIIAE,
    LinearErasure,
    SharedPart,
    Standardise,
)
from iiae_cli.extensions.linear_paths import described_rows, start_linear_paths
from iiae_cli.inference.trained import Encoded, TrainedModel
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.gaussian import DiagonalGaussian
from iiae_cli.model.iiae import IIAE
from iiae_cli.training.data import TrainingData

CANONICAL_PAIRS = 10_000  # more change little
MAP_ROWS = 40_000  # cells of a map have one map in common, and a pair has many


def take_statistics(model: IIAE, data: TrainingData, config: Config) -> None:
    """Fits a new model's standardisation and starts its linear paths, if it has them."""
    if isinstance(model, ExtendedIIAE):
        for domain, standardise in model.standardise.items():
            assert isinstance(standardise, Standardise)
            rows = data.train.side(domain).rows  # type: ignore[arg-type]
            standardise.fit(rows, each=config.data.standardise == "each")
    if config.model.linear_path == "canonical":
        _start_canonical(model, data, config)
    elif config.model.linear_path == "two-covariance":
        _start_two_covariance(model, data, config.model.linear_shrinkage)


def _start_two_covariance(model: IIAE, data: TrainingData, shrinkage: float) -> None:
    if data.info.shape_x != data.info.shape_y:
        console.say("the domains differ in width: linear paths begin at random")
        return
    x, y, labels_x, labels_y = data.pair_labels()
    with torch.no_grad():
        read_x, read_y = model.read("x", _tensor(x)).numpy(), model.read("y", _tensor(y)).numpy()
    dim = model.shared_shape[0]
    weight = _float(two_covariance_map(read_x, read_y, labels_x, labels_y, dim, shrinkage))
    bias = torch.zeros(dim)
    start_linear_paths(model, {"x": weight, "y": weight}, {"x": bias, "y": bias})


def _start_canonical(model: IIAE, data: TrainingData, config: Config) -> None:
    size = picture_size(config, data.info)
    cells = math.prod(model.shared_shape[1:])
    count = min(data.count, CANONICAL_PAIRS, max(1, MAP_ROWS // cells))
    blocks: dict[Domain, list[Tensor]] = {"x": [], "y": []}
    for start in range(0, count, 256):
        pairs = data.rows(np.arange(start, min(start + 256, count)))
        for domain, rows in zip(DOMAINS, pairs, strict=True):
            blocks[domain].append(described_rows(model, domain, to_inputs(rows, size)))
    x, y = (torch.cat(blocks[domain]).numpy() for domain in DOMAINS)
    maps = canonical_maps(x, y, model.shared_shape[0], config.model.linear_shrinkage)
    start_linear_paths(
        model,
        {domain: _float(weight) for domain, (weight, _) in zip(DOMAINS, maps, strict=True)},
        {domain: _float(bias) for domain, (_, bias) in zip(DOMAINS, maps, strict=True)},
    )


def fit_erasure(trained: TrainedModel, data: TrainingData, erasure: ErasureSection) -> None:
    """Fits a model's erasure to its posteriors on the training rows, a function of both alone."""
    model = trained.network
    if erasure.shared == erasure.exclusive == "none" or not isinstance(model, ExtendedIIAE):
        return
    for module in model.modules():
        if isinstance(module, LinearErasure):
            module.make_room(0)
        elif isinstance(module, SharedPart):
            module.weight.zero_()
    encoded = {domain: trained.encode(rows, domain) for domain, rows in _rows(data, erasure)}
    for domain in DOMAINS:
        own, partner = encoded[domain], encoded[other_domain(domain)]
        _fit_domain(model, domain, own, None if data.by_class else partner, erasure)


def _rows(data: TrainingData, erasure: ErasureSection) -> list[tuple[Domain, Any]]:
    """At most `erasure.rows` training rows per domain, spread evenly; pairs row by row."""
    if data.by_class:
        return [(domain, _spread(data.train.side(domain).rows, erasure.rows)) for domain in DOMAINS]
    x, y = data.rows(_spread(np.arange(data.count), erasure.rows))
    return [("x", x), ("y", y)]


def _spread(rows: Any, most: int) -> Any:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _fit_domain(
    model: ExtendedIIAE,
    domain: Domain,
    own: Encoded,
    partner: Encoded | None,
    erasure: ErasureSection,
) -> None:
    erase = dict(model.erase_shared).get(domain)
    shared_part = dict(model.shared_part).get(domain)
    assert isinstance(erase, LinearErasure | None) and isinstance(shared_part, SharedPart | None)
    fit_maps(
        erase,
        shared_part,
        DiagonalGaussian(_tensor(own.shared_mean), _tensor(own.shared_logvar)),
        None if own.exclusive_mean is None else _tensor(own.exclusive_mean),
        None if partner is None else _tensor(partner.shared_mean),
        least_snr=erasure.least_snr if erasure.shared.startswith("channel") else 0.0,
        least_correlation=erasure.least_correlation if erasure.shared.endswith("leace") else None,
        ridge=erasure.ridge,
    )


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values))


def _float(values: Any) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
