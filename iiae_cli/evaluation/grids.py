"""Pictures of pictures: labelled grids in the paper's layout and retrieval montages.

Small pictures are enlarged by whole factors without smoothing, so that a 32-pixel digit stays crisp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]

TILE = 96  # pixels that a tile's side is enlarged to, at least
GAP = 6
TEXT_HEIGHT = 16
PAPER: Colour = (255, 255, 255)
INK: Colour = (30, 30, 30)
RIGHT: Colour = (0, 140, 60)
WRONG: Colour = (200, 30, 30)


@dataclass
class Tile:
    """One cell: a picture (H, W, C) or None for a blank, a caption below it, a frame around it."""

    picture: Picture | None
    caption: str = ""
    frame: Colour | None = None


def to_rgb(picture: Picture) -> Picture:
    """(H, W, C) with 1, 2, 3 or more channels as (H, W, 3): grey is repeated, channels past the third are left out."""
    if picture.shape[2] < 3:
        return np.repeat(picture[..., :1], 3, axis=2)
    return picture[..., :3]


def enlarge(picture: Picture, tile: int = TILE) -> Image.Image:
    """RGB picture whose longer side is enlarged by a whole factor to at least `tile`, or shrunk to it smoothly."""
    image = Image.fromarray(to_rgb(picture))
    longest = max(image.size)
    if longest > 2 * tile:
        image.thumbnail((2 * tile, 2 * tile), Image.Resampling.LANCZOS)
        return image
    factor = -(-tile // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def draw_grid(
    rows: Sequence[Sequence[Tile]], headers: Sequence[str] = (), gaps_after: Sequence[int] = ()
) -> Image.Image:
    """A grid of tiles with column headers.

    Args:
        rows: tiles, row by row; rows may differ in length.
        headers: one text per column.
        gaps_after: columns after which a wider gap separates groups.
    """
    images = [[None if tile.picture is None else enlarge(tile.picture) for tile in row] for row in rows]
    sizes = [image.size for row in images for image in row if image is not None]
    width = max((size[0] for size in sizes), default=TILE)
    height = max((size[1] for size in sizes), default=TILE)
    columns = max(len(row) for row in rows)
    captioned = any(tile.caption for row in rows for tile in row)
    row_height = height + GAP + (TEXT_HEIGHT if captioned else 0)
    top = TEXT_HEIGHT + GAP if headers else GAP
    lefts, left = [], GAP
    for column in range(columns):
        lefts.append(left)
        left += width + GAP * (4 if column in gaps_after else 1)
    canvas = Image.new("RGB", (left, top + row_height * len(rows)), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=12)
    for column, header in enumerate(headers):
        _text(draw, font, header, lefts[column], GAP // 2, width)
    for row_index, row in enumerate(rows):
        upper = top + row_index * row_height
        for column, tile in enumerate(row):
            image = images[row_index][column]
            if tile.frame is not None:
                draw.rectangle(
                    (lefts[column] - 3, upper - 3, lefts[column] + width + 2, upper + height + 2), tile.frame
                )
            if image is not None:
                canvas.paste(image, (lefts[column], upper))
            elif tile.frame is not None or tile.caption:
                draw.rectangle((lefts[column], upper, lefts[column] + width - 1, upper + height - 1), (225, 225, 225))
            if tile.caption:
                _text(draw, font, tile.caption, lefts[column], upper + height + 3, width)
    return canvas


def _text(draw: ImageDraw.ImageDraw, font: Any, text: str, left: int, top: int, width: int) -> None:
    """Write a text into `width` pixels, centred, its start replaced by an ellipsis where it is too long."""
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = "…" + text[2:]
    draw.text((left + (width - draw.textlength(text, font=font)) / 2, top), text, INK, font=font)


@dataclass
class TranslationRow:
    """One pair of the paper's Table 1 layout: an input, K outputs with sampled latents, one guided output."""

    source: Picture
    samples: Sequence[Picture]
    guided: Picture | None


def table1_grid(left: Sequence[TranslationRow], right: Sequence[TranslationRow], samples: int) -> Image.Image:
    """The paper's Table 1: x | K samples of y | guided y ‖ y | K samples of x | guided x, one pair a row."""
    rows = [
        [
            *[Tile(picture) for picture in (row.source, *row.samples)],
            Tile(row.guided),
            *[Tile(picture) for picture in (back.source, *back.samples)],
            Tile(back.guided),
        ]
        for row, back in zip(left, right, strict=True)
    ]
    numbered = [f"sample {i + 1}" for i in range(samples)]
    headers = ["x", *numbered, "guided y", "y", *numbered, "guided x"]
    return draw_grid(rows, headers, gaps_after=[samples + 1])
