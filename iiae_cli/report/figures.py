"""Sample grids of a model: which pictures go where in the paper's layouts."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.data.datafile import Split
from iiae_cli.inference.trained import TrainedModel, prior_samples
from iiae_cli.model import Domain, other_domain
from iiae_cli.report.grids import TranslationRow, table1_grid


def translation_rows(
    trained: TrainedModel,
    split: Split,
    source: Domain,
    *,
    samples: int,
    seed: int,
) -> list[TranslationRow]:
    """Each pair of a split as one row of Table 1: its input, sampled translations, the one its partner guides."""
    target = other_domain(source)
    inputs = split.side(source).rows
    exclusive = None
    width = trained.network.exclusive_dim
    if width:
        partners = trained.encode(split.side(target).rows, target, shared=False)
        guide = torch.from_numpy(partners.mean("exclusive"))[:, None]
        exclusive = torch.cat([prior_samples(samples, len(inputs), width, seed), guide], dim=1)
    outputs = trained.translate(inputs, source, target, exclusive)
    shown = to_pictures(to_inputs(inputs, trained.size))
    return [
        TranslationRow(source=picture, samples=list(outs[:-1]), guided=outs[-1])
        for picture, outs in zip(shown, outputs, strict=True)
    ]


def sample_grid(
    trained: TrainedModel,
    split: Split,
    *,
    samples: int = 3,
    seed: int = 0,
) -> Image.Image:
    """The paper's Table 1 for the pairs of a (small) split."""
    left, right = (
        translation_rows(trained, split, domain, samples=samples, seed=seed)
        for domain in ("x", "y")
    )
    return table1_grid(left, right, samples if trained.network.exclusive_dim else 0)


def first_pairs(split: Split, count: int) -> Split:
    """The first `count` pairs of a split, aligned."""
    return split.take_pairs(np.arange(min(count, split.pair_count)))
