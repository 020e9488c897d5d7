"""Sample grids of a model: which pictures go where in the paper's layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.data.datafile import Split
from iiae_cli.inference.encoding import inference
from iiae_cli.inference.translation import prior_samples, translate_rows
from iiae_cli.model import Domain, other_domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.report.grids import TranslationRow, table1_grid


def translation_rows(
    model: IIAE,
    split: Split,
    source: Domain,
    *,
    samples: int,
    seed: int,
    size: tuple[int, int],
    device: torch.device | str,
) -> list[TranslationRow]:
    """Each pair of a split as one row of Table 1: its input, sampled translations, the one its partner guides."""
    target = other_domain(source)
    inputs = split.rows(source)
    exclusive = None
    if model.exclusive_dim:
        with inference(model):
            partners = to_inputs(split.rows(target), size, device)
            guide = model.encode_exclusive(target, partners).mean[:, None].cpu()
        exclusive = torch.cat(
            [prior_samples(samples, len(inputs), model.exclusive_dim, seed), guide], dim=1
        )
    outputs = translate_rows(model, source, target, inputs, exclusive, size=size, device=device)
    shown = to_pictures(to_inputs(inputs, size))
    return [
        TranslationRow(source=picture, samples=list(outs[:-1]), guided=outs[-1])
        for picture, outs in zip(shown, outputs, strict=True)
    ]


def sample_grid(
    model: IIAE,
    split: Split,
    *,
    size: tuple[int, int],
    device: Any,
    samples: int = 3,
    seed: int = 0,
) -> Image.Image:
    """The paper's Table 1 for the pairs of a (small) split."""
    left, right = (
        translation_rows(model, split, domain, samples=samples, seed=seed, size=size, device=device)
        for domain in ("x", "y")
    )
    return table1_grid(left, right, samples if model.exclusive_dim else 0)


def first_pairs(split: Split, count: int) -> Split:
    """The first `count` pairs of a split, aligned."""
    return split.take_pairs(np.arange(min(count, split.pair_count)))
