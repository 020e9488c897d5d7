"""Visual analogies within one domain (paper, Table 8): the content of one picture, the manner of another."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.data.datafile import Rows
from iiae_cli.inference.encoding import inference
from iiae_cli.inference.translation import translate_rows
from iiae_cli.model import Domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.report.grids import Tile, draw_grid


def analogy_grid(
    model: IIAE,
    domain: Domain,
    queries: Rows,
    references: Rows,
    *,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Image.Image:
    """Queries down the left, references along the top, at each crossing the query's shared latent with the reference's
    exclusive one.

    Args:
        model: with exclusive latents, on `device`.
        domain: of all pictures.
        queries: (Q, H, W, C) uint8.
        references: (R, H, W, C) uint8.
        size: (H, W) the model works at.
        device: where the model lies.
    """
    with inference(model):
        guides = model.encode_exclusive(domain, to_inputs(references, size, device)).mean.cpu()
    exclusive = guides[None].expand(len(queries), -1, -1)
    outputs = translate_rows(model, domain, domain, queries, exclusive, size=size, device=device)
    asked, guiding = (to_pictures(to_inputs(rows, size)) for rows in (queries, references))
    top: list[Any] = [Tile(None), *map(Tile, guiding)]
    lines = [[Tile(picture), *map(Tile, row)] for picture, row in zip(asked, outputs, strict=True)]
    return draw_grid([top, *lines], ["input", *["reference"] * len(guiding)], gaps_after=[0])
