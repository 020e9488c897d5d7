"""A run's training and validation rows, and what a model takes from them in closed form."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.builders import picture_size
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.config import Config, ErasureSection
from iiae_cli.data.batches import ClassOrder, PairOrder, to_inputs
from iiae_cli.data.datafile import DataFile, Rows, Split
from iiae_cli.extensions.closed_forms import (
    canonical_maps,
    common_map,
    fit_erasure,
    two_covariance_map,
)
from iiae_cli.extensions.encoders import Maps, described_rows, description, start_linear_paths
from iiae_cli.extensions.extended import ExtendedIIAE
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.iiae import IIAE, DiagonalGaussian

Indices: TypeAlias = NDArray[np.int64]

PAIRED_BATCH = 8  # the paper's; the default for rows paired one by one
FEWEST_CLASSES, FEWEST_PAIRS = 8, 4  # with fewer, none are held out
CANONICAL_PAIRS = 10_000  # more change the maps little
DESCRIBED_PAIRS = 500  # that descriptions are fitted to
HASHED = 1 << 30  # bytes of a domain's rows, evenly spread, that a fingerprint reads
MAP_ROWS = 40_000  # a pair has many cells, which all share one map


class TrainingData:
    """The training and validation rows of a data file, as the configuration divides them.

    Sets that are paired one by one hold out pairs; sets that are paired by class hold out whole
    classes, as zero-shot evaluation does.
    """

    def __init__(self, file: DataFile, config: Config) -> None:
        self.file, self.info, self.by_class = file, file.info, file.info.by_class
        self._stored = whole = file.split("train")
        rows_x, rows_y = len(whole.x), len(whole.y)
        paired = self.by_class or whole.pairs is not None or rows_x == rows_y
        if not paired or 0 in (rows_x, rows_y):
            raise IiaeError(
                f"{file.path} has no pairs: {rows_x} rows of x, {rows_y} of y in train",
                "pair one by one (iiae prepare pairs SOURCE) or by class (iiae prepare classes …)",
            )
        if self.by_class:
            whole = replace(whole, pairs=None)
        elif whole.pairs is None:
            whole = replace(whole, pairs=np.stack([np.arange(rows_x)] * 2, axis=1))
        self.train = self._whole = whole
        held, valid = None, file.split("valid")
        if config.selection.validate_on == "train":
            held = whole
        elif valid.pair_count and len(valid.y):
            held = valid
        elif config.data.holdout:
            self.train, held = self._divided(config.data.holdout)
        most = config.selection.validation_pairs
        # Aligned pairs, or rows of held-out classes.
        self.validation = None if held is None else held.drawn(most, by_class=self.by_class)

    def _divided(self, fraction: float) -> tuple[Split, Split | None]:
        """Returns rows to train on and to validate on; None if there are too few."""
        train = self.train
        count = len(train.classes) if train.pairs is None else len(train.pairs)
        if count < (FEWEST_CLASSES if train.pairs is None else FEWEST_PAIRS):
            return train, None
        order = np.random.default_rng((0, count)).permutation(count)
        fewest = max(2, round(count * fraction))
        kept, held = np.sort(order[fewest:]), np.sort(order[:fewest])
        if train.pairs is not None:
            return Split(train.x, train.y, pairs=train.pairs[kept]), train.take_pairs(held)
        away = np.array(train.classes)[held]
        in_x, in_y = (np.isin(labels, away) for labels in _labels(train))
        rest = train.take(np.flatnonzero(~in_x), np.flatnonzero(~in_y))
        return rest, train.take(np.flatnonzero(in_x), np.flatnonzero(in_y))

    def fingerprint(self) -> dict[str, Any]:
        """Returns what identifies the data: name, pairs, and digests of all that is read.

        The file's path, age and compression do not matter.
        """
        parts: dict[str, Any] = {"name": self.info.name}
        for name, split in (("train", self._stored), ("valid", self.file.split("valid"))):
            parts[f"{name} pairs"] = split.pair_count
            for domain in DOMAINS:
                side = split.side(domain)
                columns = {"ids": np.array(side.ids), "labels": np.array(side.labels or [])}
                parts[f"{name} {domain}"] = _digest({"rows": side.rows, **columns})
            pairs = {} if split.pairs is None else {"pairs": split.pairs}
            parts[f"{name} factors"] = _digest({**pairs, **split.factors})
        return parts

    @property
    def holds_out(self) -> bool:
        """Whether rows of the training split are kept for validation."""
        return self.train is not self._whole

    def use_all(self) -> None:
        """Adds the held-out rows to training, so that none are left to validate on."""
        self.train, self.validation = self._whole, None

    def order(self, batch_size: int | None, seed: int) -> PairOrder | ClassOrder:
        """Returns the rows of every step; raises if they do not fill a batch, or two classes."""
        try:
            if self.by_class:
                return ClassOrder(*_labels(self.train), batch_size, seed)
            return PairOrder(self.train.pair_count, batch_size or PAIRED_BATCH, seed)
        except ValueError as error:
            hint = "give both domains the same classes" if self.by_class else "lower --batch-size"
            raise IiaeError(str(error), hint) from error

    def rows(self, indices: Indices) -> tuple[Rows, Rows]:
        """Returns x and y rows by indices of `order`: pairs (B,), or rows of x and y (B, 2)."""
        rows_x, rows_y = self.row_numbers(indices)
        return self.train.x.rows[rows_x], self.train.y.rows[rows_y]

    def row_numbers(self, indices: Indices) -> tuple[Indices, Indices]:
        """Returns the numbers of those rows, of x and of y (B,)."""
        if self.train.pairs is not None:
            indices = self.train.pairs[indices]
        return indices[:, 0], indices[:, 1]

    def summary(self) -> str:
        """Returns a line that describes the training data."""
        x, y = (" x ".join(map(str, shape)) for shape in (self.info.shape_x, self.info.shape_y))
        noun = "classes" if self.by_class else "pairs"
        count, kept = (
            0 if split is None else len(split.classes) if self.by_class else split.pair_count
            for split in (self.train, self.validation)
        )
        return f"{self.info.name}: {count} training {noun}, {kept} for validation; x {x}, y {y}"


def _digest(arrays: dict[str, Rows]) -> str:
    """Returns 16 hex digits over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.shape} {values.dtype} ".encode())
        size = max(1, values.itemsize * math.prod(values.shape[1:]))
        numbers = _spread(np.arange(len(values)), max(1, HASHED // size))
        step = max(1, (1 << 24) // size)
        for start in range(0, len(numbers), step):
            digest.update(values[numbers[start : start + step]].tobytes())
    return digest.hexdigest()[:16]


def _labels(split: Split) -> tuple[list[str], list[str]]:
    return split.x.labels or [], split.y.labels or []


# ---- what a model takes from training rows in closed form, beside what it learns


def take_statistics(model: IIAE, data: TrainingData, config: Config) -> None:
    """Fits a new model's standardisation and starts its linear paths, if it has them."""
    if isinstance(model, ExtendedIIAE):
        for domain, standardise in model.standardise.items():
            standardise.fit(data.train.side(domain).rows)
    if config.model.linear_path == "canonical":
        start_linear_paths(model, _canonical(model, data, config))
    elif config.model.linear_path == "two-covariance":
        if data.info.shape_x == data.info.shape_y:
            start_linear_paths(model, _two_covariance(model, data, config.model.linear_shrinkage))
        else:
            console.say("the domains differ in width: linear paths begin at random")


def _two_covariance(model: IIAE, data: TrainingData, shrinkage: float) -> Maps:
    rows, labels = (data.train.x.rows, data.train.y.rows), _labels(data.train)
    if not data.by_class:  # each pair is a class of its own
        names = [str(number) for number in range(data.train.pair_count)]
        rows, labels = data.rows(np.arange(data.train.pair_count)), (names, names)
    with torch.no_grad():
        x, y = (model.read(d, _tensor(r)).numpy() for d, r in zip(DOMAINS, rows, strict=True))
    dim = model.shared_shape[0]
    weight = _tensor(two_covariance_map(x, y, labels, dim, shrinkage)).float()
    return dict.fromkeys(DOMAINS, (weight, torch.zeros(dim)))


def _canonical(model: IIAE, data: TrainingData, config: Config) -> Maps:
    size = picture_size(config, data.info)
    cells = math.prod(model.shared_shape[1:])
    count = min(data.train.pair_count, CANONICAL_PAIRS, max(1, MAP_ROWS // cells))
    common = config.model.kind == "flat" and data.info.shape_x[2] == data.info.shape_y[2]
    if config.model.kind == "flat":
        pairs = data.rows(np.arange(min(count, DESCRIBED_PAIRS)))
        pictures = [to_inputs(rows, size) for rows in pairs]
        for domain, own in zip(DOMAINS, pictures, strict=True):
            description(model, domain).start(torch.cat(pictures) if common else own)
    blocks: dict[Domain, list[Tensor]] = {"x": [], "y": []}
    for start in range(0, count, 256):
        pairs = data.rows(np.arange(start, min(start + 256, count)))
        for domain, rows in zip(DOMAINS, pairs, strict=True):
            blocks[domain].append(described_rows(model, domain, to_inputs(rows, size)))
    x, y = (torch.cat(blocks[domain]).numpy() for domain in DOMAINS)
    fit = common_map if common else canonical_maps
    maps = fit(x, y, model.shared_shape[0], config.model.linear_shrinkage)
    return {
        domain: (_tensor(weight).float(), _tensor(bias).float())
        for domain, (weight, bias) in zip(DOMAINS, maps, strict=True)
    }


def erase_means(trained: TrainedModel, data: TrainingData, erasure: ErasureSection) -> None:
    """Fits a model's erasure to its posteriors on the training rows, a function of both alone."""
    if not isinstance(trained.network, ExtendedIIAE) or erasure.shared == "none":
        return
    erases = trained.network.erase_shared
    for erase in erases.values():
        erase.make_room(0)
    if data.by_class:
        rows = [_spread(data.train.side(domain).rows, erasure.rows) for domain in DOMAINS]
    else:
        rows = [*data.rows(_spread(np.arange(data.train.pair_count), erasure.rows))]
    encoded = {d: trained.encode(part, d) for d, part in zip(DOMAINS, rows, strict=True)}
    for domain, erase in erases.items():
        own, partner = encoded[domain], _tensor(encoded[other_domain(domain)].shared_mean)
        mean = _tensor(own.shared_mean)
        fit_erasure(
            erase,
            DiagonalGaussian(mean, _tensor(own.shared_logvar)),
            _tensor(own.exclusive_mean),
            torch.zeros_like(mean) if data.by_class else partner,  # no row has a partner there
            least_snr=erasure.least_snr,
            least_correlation=erasure.least_correlation,
        )


def _spread(rows: Rows, most: int) -> Rows:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
