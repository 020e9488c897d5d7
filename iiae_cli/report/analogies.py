"""Visual analogies within one domain (paper, Table 8): the content of one picture, the manner of another."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.data.datafile import Rows
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import Domain
from iiae_cli.report.grids import Tile, draw_grid


def analogy_grid(
    trained: TrainedModel,
    domain: Domain,
    queries: Rows,
    references: Rows,
) -> Image.Image:
    """Queries down the left, references along the top, at each crossing the query's shared latent with the reference's
    exclusive one.

    Args:
        trained: with exclusive latents.
        domain: of all pictures.
        queries: (Q, H, W, C) uint8.
        references: (R, H, W, C) uint8.
    """
    guides = torch.from_numpy(trained.encode(references, domain, shared=False).mean("exclusive"))
    exclusive = guides[None].expand(len(queries), -1, -1)
    outputs = trained.translate(queries, domain, domain, exclusive)
    asked, guiding = (to_pictures(to_inputs(rows, trained.size)) for rows in (queries, references))
    top: list[Any] = [Tile(None), *map(Tile, guiding)]
    lines = [[Tile(picture), *map(Tile, row)] for picture, row in zip(asked, outputs, strict=True)]
    return draw_grid([top, *lines], ["input", *["reference"] * len(guiding)], gaps_after=[0])
