"""A second opinion on translations: a small network that learned from real pictures reads class and factors off them.

Pixel errors punish a correct picture that stands one pixel aside and forgive a blurred one. A classifier that has never
seen a translation says what a person would look for: is it still the same digit, and has it the reference's colour?
Its reading of real test pictures stands beside, as the best that any translation could get from this judge.

The judge is trained anew for every evaluation, from the training split of the data file, by a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.batches import PairOrder, to_inputs
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.protocols import DIRECTIONS, EncodedPairs, direction_name
from iiae_cli.inference.trained import TrainedModel, inference, prior_samples
from iiae_cli.model import Domain

JUDGE_SIDE = 64  # pixels; larger pictures are shrunk to it
JUDGE_STEPS = 1500
JUDGE_BATCH = 64
_LEARNING_RATE = 2e-3


class _Network(nn.Module):
    """Three convolutions, then class scores and factors, which also see a picture's mean and extreme colours."""

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
    """What reads one domain's pictures.

    Attributes:
        network: trained.
        names: the classes it tells apart, in the order of its scores.
        factors: columns of the factors it reads, by name.
        low: smallest value of each column in training (F,).
        span: largest minus smallest (F,); read factors are fractions of it.
        side: pictures whose longer side exceeds it are shrunk to it.
    """

    network: nn.Module
    names: list[str]
    factors: dict[str, slice]
    low: NDArray[np.float32]
    span: NDArray[np.float32]
    side: int

    def read(self, pictures: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Class numbers (B,) and factors (B, F) of pictures (B, C, H, W) in [−1, 1]."""
        with torch.inference_mode():
            scores, factors = self.network(_shrunk(pictures.float(), self.side))
        return scores.argmax(1).cpu().numpy(), factors.float().cpu().numpy()

    def scaled(self, split: Split) -> NDArray[np.float32]:
        """The true factors of a split's pairs as fractions of the training range (M, F)."""
        columns = [split.factors[name].reshape(split.pair_count, -1) for name in self.factors]
        values = (
            np.concatenate(columns, 1).astype(np.float32)
            if columns
            else np.zeros((split.pair_count, 0), "f4")
        )
        return (values - self.low) / self.span


def train_judge(
    train: Split,
    domain: Domain,
    *,
    size: tuple[int, int],
    seed: int = 0,
    steps: int = JUDGE_STEPS,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda step: None,
) -> Judge:
    """Train a judge of one domain's pictures on a training split of aligned pairs.

    Args:
        train: with labels; numeric factors named `DOMAIN_…` that are known of every pair are learned as well.
        domain: whose pictures it reads.
        size: (H, W) that rows are resized to first, the model's.
        seed: of its weights and batches.
        steps: of Adam, 64 pictures each, the learning rate falling to 0.
        device: where it lies.
        progress: told every step done.

    Raises:
        IiaeError: the split has no labels.
    """
    labels = train.side(domain).labels
    if labels is None or not len(labels):
        raise IiaeError("the data file has no labels to train a judge by", "leave --judge out")
    names = sorted(set(labels))
    numbers = torch.tensor([names.index(one) for one in labels], device=device)
    columns, values, at = {}, [np.zeros((train.pair_count, 0), np.float32)], 0
    for name, factor in train.factors.items():
        known = np.issubdtype(factor.dtype, np.number) and bool(np.isfinite(factor).all())
        if name.startswith(f"{domain}_") and known:
            values.append(factor.reshape(len(factor), -1).astype(np.float32))
            columns[name] = slice(at, at + values[-1].shape[1])
            at = columns[name].stop
    table = np.concatenate(values, 1)
    low = table.min(0) if at else np.zeros(0, np.float32)
    span = (
        np.where(table.max(0) > low, table.max(0) - low, 1).astype(np.float32)
        if at
        else np.ones(0, np.float32)
    )
    wanted = torch.from_numpy((table - low) / span).to(device)
    rows = train.side(domain).rows
    side = min(JUDGE_SIDE, max(size))
    row_of = (
        np.arange(len(rows)) if train.pairs is None else train.pairs[:, 0 if domain == "x" else 1]
    )
    order = PairOrder(len(row_of), min(JUDGE_BATCH, len(row_of)), seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = _Network(rows.shape[-1], len(names), at).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 - step / steps)
            chosen = order.indices(step)
            pictures = _shrunk(to_inputs(rows[row_of[chosen]], size, device), side)
            scores, factors = network(pictures)
            loss = functional.cross_entropy(scores, numbers[row_of[chosen]])
            if at:
                loss = loss + functional.l1_loss(factors, wanted[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress(step + 1)
    return Judge(network.eval(), names, columns, low, span, side)


def judged_translations(
    trained: TrainedModel,
    judges: dict[Domain, Judge],
    pairs: EncodedPairs,
    split: Split,
    *,
    samples: int = 3,
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """What the judges read off translations of a split, per direction.

    Guided translations take the exclusive mean of another row, drawn by `seed`, not of the partner, so that its colour
    says nothing about the input. `class` tells which fraction of real pictures and of guided and sampled translations
    is read as its (input's) class. Of each factor, as fractions of its range: `error_real` and `error_guided`, the mean
    absolute error of what is read against the picture's own and against the reference's; `spread_real`, the standard
    deviation over real pictures, and `spread_sampled`, over the samples of one input.

    Args:
        trained: the model.
        judges: of each target domain.
        pairs: latents of `split`.
        split: aligned pairs with labels.
        samples: drawn from the prior per input; below 2 there is no spread, 0 draws none.
        seed: of the samples and of who is whose reference.
        batch_size: rows at once.
    """
    figures: dict[str, dict[str, dict[str, float | int | None]]] = {}
    model = trained.network
    samples = samples if model.exclusive_dim else 0
    count = len(split.x)
    reference = np.random.default_rng(seed).permutation(count)
    for source, target in DIRECTIONS:
        judge = judges[target]
        place = {name: number for number, name in enumerate(judge.names)}
        wanted = np.array([place.get(one, -1) for one in split.side(source).labels or []])
        truth = judge.scaled(split)
        real, guided, sampled = _Reading(), _Reading(), _Reading()
        drawn = prior_samples(samples, count, model.exclusive_dim, seed) if samples else None
        with inference(model):
            for start in range(0, count, batch_size):
                part = slice(start, start + batch_size)
                pictures = trained.inputs(split.side(target).rows[part])
                real.add(judge.read(pictures))
                shared = pictures.new_tensor(pairs.of(source).mean("shared")[part])
                exclusive = None
                if model.exclusive_dim:
                    exclusive = pictures.new_tensor(
                        pairs.of(target).mean("exclusive")[reference[part]]
                    )
                guided.add(judge.read(model.decode(target, shared, exclusive)))
                if drawn is not None:
                    latents = drawn[part].to(shared.device).flatten(0, 1)
                    repeated = shared.repeat_interleave(samples, dim=0)
                    for at in range(0, len(repeated), batch_size):
                        block = slice(at, at + batch_size)
                        sampled.add(
                            judge.read(model.decode(target, repeated[block], latents[block]))
                        )
        own = np.array([place.get(one, -1) for one in split.side(target).labels or []])
        found: dict[str, dict[str, float | int | None]] = {
            "class": {
                "real": real.accuracy(own),
                "guided": guided.accuracy(wanted),
                "sampled": sampled.accuracy(wanted.repeat(samples)) if samples else None,
                "n": count,
            }
        }
        for name, columns in judge.factors.items():
            read = real.factors[:, columns]
            each = sampled.factors[:, columns].reshape(count, samples, -1) if samples > 1 else None
            found[name] = {
                "error_real": float(np.abs(read - truth[:, columns]).mean()),
                "error_guided": float(np.abs(guided.factors - truth[reference])[:, columns].mean()),
                "spread_real": float(read.std(0).mean()),
                "spread_sampled": None
                if each is None
                else float(np.sqrt(each.var(1, ddof=1).mean(0)).mean()),
                "n": count,
            }
        figures[direction_name(source, target)] = found
    return figures


class _Reading:
    """What a judge read, batch by batch."""

    def __init__(self) -> None:
        self._classes: list[NDArray[np.int64]] = []
        self._factors: list[NDArray[np.float32]] = []

    def add(self, read: tuple[NDArray[np.int64], NDArray[np.float32]]) -> None:
        self._classes.append(read[0])
        self._factors.append(read[1])

    def accuracy(self, wanted: NDArray[np.int64]) -> float:
        return float((np.concatenate(self._classes) == wanted).mean())

    @property
    def factors(self) -> NDArray[np.float32]:
        return np.concatenate(self._factors)


def _shrunk(pictures: Tensor, side: int) -> Tensor:
    longest = max(pictures.shape[-2:])
    if longest <= side:
        return pictures
    height, width = (max(1, round(one * side / longest)) for one in pictures.shape[-2:])
    return functional.interpolate(pictures, size=(height, width), mode="area")
