"""A second opinion on translations: a small network reads class and factors off them.

Pixel errors punish a correct picture that stands one pixel aside and forgive a blurred one. A
classifier that learned from real pictures alone says what a person would look for: is it still the
same digit, and has it the reference's colour? Its reading of real test pictures stands beside, as
the best that any translation could get from this judge.

The judge is trained anew for every evaluation, from the training split of the data file, by a seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.batches import PairOrder
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.retrieval import DIRECTIONS, direction_name
from iiae_cli.evaluation.translation import Figures, Subject
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import Domain

JUDGE_SIDE = 64  # pixels; larger pictures are shrunk to it
JUDGE_STEPS = 1500
JUDGE_BATCH = 64
_LEARNING_RATE = 2e-3

Array: TypeAlias = NDArray[Any]


class _Network(nn.Module):
    """Three convolutions, then class scores, and factors that also see mean and extreme colours."""

    def __init__(self, channels: int, classes: int, factors: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128)
        self.stages = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(first, second, 3, 2, 1), nn.BatchNorm2d(second), nn.ReLU())
                for first, second in pairwise(widths)
            ],
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.classes = nn.Linear(widths[-1] * 16, classes)
        self.factors = nn.Sequential(
            nn.Linear(widths[-1] * 16 + 3 * channels, 64), nn.ReLU(), nn.Linear(64, factors)
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        found = self.stages(pictures)
        colours = [pictures.mean((2, 3)), pictures.amax((2, 3)), pictures.amin((2, 3))]
        return self.classes(found), self.factors(torch.cat([found, *colours], 1))


@dataclass
class Judge:
    """What reads one domain's pictures."""

    network: nn.Module
    classes: list[str]  # in the order of its scores
    factors: dict[str, slice]  # columns of the factors it reads
    low: Array  # smallest value of each column in training (F,)
    span: Array  # largest minus smallest (F,); read factors are fractions of it
    side: int  # longer pictures are shrunk to it

    def read(self, batches: Iterable[Tensor]) -> tuple[Array, Array]:
        """Classes by name (N,) and factors (N, F) of pictures (B, C, H, W) in [−1, 1]."""
        codes, factors = [], []
        with torch.inference_mode():
            for pictures in batches:
                scores, values = self.network(_shrunk(pictures.float(), self.side))
                codes.append(scores.argmax(1).cpu().numpy())
                factors.append(values.float().cpu().numpy())
        return np.array(self.classes)[np.concatenate(codes)], np.concatenate(factors)

    def scaled(self, split: Split) -> Array:
        """The true factors of a split's pairs as fractions of the training range (M, F)."""
        return (_factor_table(split, self.factors) - self.low) / self.span


def train_judge(
    train: Split, domain: Domain, trained: TrainedModel, seed: int = 0, steps: int = JUDGE_STEPS
) -> Judge:
    """Train a judge of one domain's pictures on a training split with labels.

    Numeric factors `DOMAIN_…` that every pair knows are learned as well. Size and device are those
    of the `trained` model, whose translations it will read.

    Raises:
        IiaeError: the split has no labels.
    """
    if train.pairs is not None:
        train = train.take_pairs(np.arange(train.pair_count))
    rows, labels = train.side(domain).rows, train.side(domain).labels
    if not labels:
        raise IiaeError("the data file has no labels to train a judge by", "leave --judge out")
    classes, device = sorted(set(labels)), trained.device
    codes = torch.tensor([classes.index(label) for label in labels], device=device)
    factors, end = {}, 0
    for name, values in train.factors.items():
        known = np.issubdtype(values.dtype, np.number) and bool(np.isfinite(values).all())
        if name.startswith(f"{domain}_") and known:
            factors[name] = slice(end, end + values[0].size)
            end = factors[name].stop
    table = _factor_table(train, factors)
    low = table.min(axis=0)
    span = np.where(np.ptp(table, axis=0) > 0, np.ptp(table, axis=0), np.float32(1))
    wanted = torch.from_numpy((table - low) / span).to(device)
    side = min(JUDGE_SIDE, max(trained.inputs(rows[:1]).shape[-2:]))
    order = PairOrder(len(rows), min(JUDGE_BATCH, len(rows)), seed)
    with torch.random.fork_rng([]), console.progress(f"judge of {domain}", steps) as bar:
        torch.manual_seed(seed)
        network = _Network(rows.shape[-1], len(classes), end).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 - step / steps)
            chosen = order.indices(step)
            pictures = _shrunk(trained.inputs(rows[chosen]), side)
            scores, read = network(pictures)
            loss = functional.cross_entropy(scores, codes[chosen])
            if factors:
                loss = loss + functional.l1_loss(read, wanted[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            bar.update(step + 1)
    return Judge(network.eval(), classes, factors, low, span, side)


def judged_translations(
    subject: Subject, judges: dict[Domain, Judge], samples: int = 3
) -> dict[str, dict[str, Figures]]:
    """What the judges, by target domain, read off translations of pairs with labels, per direction.

    Guided translations take the exclusive mean of another row, not of the partner, so that its
    colour says nothing about the input. `class` has the fraction of real pictures and of guided and
    sampled translations that are read as their (input's) class. Every factor has, as fractions of
    its range, `error_real` and `error_guided`, the mean absolute error of what is read against the
    picture's own and against the reference's; `spread_real`, the standard deviation over real
    pictures, and `spread_sampled`, over the samples of one input, of which it takes two.
    """
    split, count = subject.split, len(subject.split.x)
    drawn = subject.samples(samples)
    reference = np.random.default_rng(subject.seed).permutation(count)
    figures: dict[str, dict[str, Figures]] = {}
    for way in DIRECTIONS:
        judge, rows = judges[way[1]], split.side(way[1]).rows
        wanted, own = (np.array(split.side(domain).labels) for domain in way)
        manner = subject.pairs.of(way[1]).exclusive_mean
        manner = None if manner is None else manner[reference]
        real = judge.read(subject.trained.inputs(rows[part]) for part in subject.parts())
        guided = judge.read(subject.translated(way, manner))
        sampled = [judge.read(subject.translated(way, exclusive)) for exclusive in drawn]
        kept = [(classes == wanted).mean() for classes, _ in sampled]
        entry: dict[str, Figures] = {
            "class": {
                "real": float((real[0] == own).mean()),
                "guided": float((guided[0] == wanted).mean()),
                "sampled": float(np.mean(kept)) if kept else None,
                "n": count,
            }
        }
        truth = judge.scaled(split)
        for name, columns in judge.factors.items():
            read = real[1][:, columns]
            spread = None
            if len(sampled) > 1:
                variances = np.var([factors[:, columns] for _, factors in sampled], axis=0, ddof=1)
                spread = float(np.sqrt(variances.mean(axis=0)).mean())
            entry[name] = {
                "error_real": float(np.abs(read - truth[:, columns]).mean()),
                "error_guided": float(np.abs(guided[1] - truth[reference])[:, columns].mean()),
                "spread_real": float(read.std(axis=0).mean()),
                "spread_sampled": spread,
                "n": count,
            }
        figures[direction_name(*way)] = entry
    return figures


def _factor_table(split: Split, names: Iterable[str]) -> Array:
    """The factors of a split's pairs side by side (M, F)."""
    columns = [split.factors[name].reshape(split.pair_count, -1) for name in names]
    nothing = np.zeros((split.pair_count, 0), np.float32)
    return np.concatenate([nothing, *(values.astype(np.float32) for values in columns)], axis=1)


def _shrunk(pictures: Tensor, side: int) -> Tensor:
    longest = max(pictures.shape[-2:])
    if longest <= side:
        return pictures
    height, width = (max(1, round(length * side / longest)) for length in pictures.shape[-2:])
    return functional.interpolate(pictures, size=(height, width), mode="area")
