"""Pictures that a trained model makes of a split, in the paper's layouts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.data.datafile import Rows, Split
from iiae_cli.inference.trained import TrainedModel, prior_samples
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.report.grids import Picture, Tile, draw_grid, table1_grid


def spread(length: int, count: int) -> NDArray[np.int64]:
    """Returns at most `count` positions of `length`, evenly spread, ascending."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def first_pairs(split: Split, count: int) -> Split:
    """Returns the first `count` pairs of a split, aligned."""
    return split.take_pairs(np.arange(min(count, split.pair_count)))


def shown(rows: Rows, size: tuple[int, int] | None) -> list[Picture]:
    """Returns stored rows as the model sees them."""
    return list(to_pictures(to_inputs(rows, size)))


def sample_grid(
    model: TrainedModel, pairs: Split, *, samples: int = 3, seed: int = 0
) -> Image.Image:
    """Draws the paper's Table 1: aligned pairs, their translations sampled and partner-guided."""
    x, y = (shown(pairs.side(domain).rows, model.size) for domain in DOMAINS)
    to_y, to_x = (_translations(model, pairs, domain, samples, seed) for domain in DOMAINS)
    return table1_grid(x, to_y, y, to_x)


def _translations(
    model: TrainedModel, pairs: Split, source: Domain, samples: int, seed: int
) -> NDArray[np.uint8]:
    """Returns (N, samples + 1, H, W, C): sampled translations, then the partner-guided one."""
    target, rows = other_domain(source), pairs.side(source).rows
    if not model.network.exclusive_dim:
        return model.translate(rows, source, target, None)
    drawn = prior_samples(samples, len(rows), model.network.exclusive_dim, seed)
    partners = model.encode(pairs.side(target).rows, target, shared=False)
    guides = torch.from_numpy(partners.mean("exclusive"))
    return model.translate(rows, source, target, torch.cat([drawn, guides[:, None]], dim=1))


def analogy_grid(
    model: TrainedModel, domain: Domain, queries: Rows, references: Rows
) -> Image.Image:
    """Draws visual analogies within a domain (Table 8): queries down the left, references on top.

    Each crossing has the query's shared and the reference's exclusive latent, which the model must
    have. Pictures are (N, H, W, C) uint8.
    """
    guides = model.encode(references, domain, shared=False).mean("exclusive")
    exclusive = torch.from_numpy(guides).expand(len(queries), -1, -1)
    outputs = model.translate(queries, domain, domain, exclusive)
    tops = shown(references, model.size)
    lines = [
        [Tile(picture), *map(Tile, row)]
        for picture, row in zip(shown(queries, model.size), outputs, strict=True)
    ]
    headers = ["input", *["reference"] * len(tops)]
    return draw_grid([[Tile(None), *map(Tile, tops)], *lines], headers, gaps_after=[0])
