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
MISSING: Colour = (225, 225, 225)
SWATCH = 10


@dataclass
class Tile:
    """One cell: a picture (H, W, C) or None for a blank, a caption of one or more lines below it, a frame around it."""

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
    rows: Sequence[Sequence[Tile]],
    headers: Sequence[str] = (),
    gaps_after: Sequence[int] = (),
    legend: Sequence[tuple[Colour, str]] = (),
) -> Image.Image:
    """A grid of tiles with column headers; no cell is narrower than `TILE`, so that texts have room.

    Args:
        rows: tiles, row by row; rows may differ in length.
        headers: one text per column.
        gaps_after: columns after which a wider gap separates groups.
        legend: what each colour of frame means, written below the grid.
    """
    images = [
        [None if tile.picture is None else enlarge(tile.picture) for tile in row] for row in rows
    ]
    sizes = [image.size for row in images for image in row if image is not None]
    width = max([TILE, *(size[0] for size in sizes)])
    height = max((size[1] for size in sizes), default=TILE)
    lines = [max((len(_lines(tile.caption)) for tile in row), default=0) for row in rows]
    framed = any(tile.frame is not None for row in rows for tile in row)
    lefts, tops = [], []
    left, top = GAP, TEXT_HEIGHT + GAP if headers else GAP
    for column in range(max(len(row) for row in rows)):
        lefts.append(left)
        left += width + GAP * (
            4 if column in gaps_after else 2 if framed else 1
        )  # frames must not touch
    for number, count in enumerate(lines):
        tops.append(top)
        top += height + GAP + TEXT_HEIGHT * count
        if count and number < len(lines) - 1:
            top += GAP  # so that a caption is seen to belong to the tile above it
    font = ImageFont.load_default(size=12)
    places, size = _legend_places(legend, font, left, top)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, header in enumerate(headers):
        _text(draw, font, header, lefts[column], GAP // 2, width)
    for upper, row, drawn in zip(tops, rows, images, strict=True):
        for left, tile, image in zip(lefts, row, drawn, strict=False):
            _draw_tile(draw, font, tile, image, (left, upper), (width, height))
            if image is not None:
                canvas.paste(
                    image, (left + (width - image.width) // 2, upper + (height - image.height) // 2)
                )
    for (colour, text), (left, upper) in zip(legend, places, strict=True):
        draw.rectangle((left, upper + 2, left + SWATCH - 1, upper + SWATCH + 1), colour)
        draw.text((left + SWATCH + GAP, upper), text, INK, font=font)
    return canvas


def _draw_tile(
    draw: ImageDraw.ImageDraw,
    font: Any,
    tile: Tile,
    image: Image.Image | None,
    place: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Everything of a tile but its picture: frame, caption, and a grey box where a picture should be."""
    (left, upper), (width, height) = place, size
    if tile.frame is not None:
        draw.rectangle(
            (left - 3, upper - 3, left + width + 2, upper + height + 2), outline=tile.frame, width=3
        )
    if image is None and (tile.frame is not None or tile.caption):
        draw.rectangle((left, upper, left + width - 1, upper + height - 1), MISSING)
        _text(draw, font, "no picture", left, upper + 3, width)
    for number, line in enumerate(_lines(tile.caption)):
        _text(draw, font, line, left, upper + height + 3 + TEXT_HEIGHT * number, width)


def _legend_places(
    legend: Sequence[tuple[Colour, str]], font: Any, width: int, top: int
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Where each entry starts, wrapped at `width`, and the size of a canvas that holds them all."""
    places = []
    left, upper, widest = GAP, top, width
    for _, text in legend:
        length = SWATCH + GAP + int(font.getlength(text)) + 1
        if left > GAP and left + length + GAP > width:
            left, upper = GAP, upper + TEXT_HEIGHT
        places.append((left, upper))
        left += length + 4 * GAP
        widest = max(widest, places[-1][0] + length + GAP)
    return places, (widest, upper + TEXT_HEIGHT + GAP if legend else top)


def _lines(caption: str) -> list[str]:
    return caption.split("\n") if caption else []


def _text(draw: ImageDraw.ImageDraw, font: Any, text: str, left: int, top: int, width: int) -> None:
    """Write a text into `width` pixels, centred, its start replaced by an ellipsis where it is too long."""
    text = "".join(
        one if one.isprintable() else " " for one in text
    )  # names of files may hold anything
    text = (
        text if len(text) <= width else f"…{text[-width:]}"
    )  # a pixel a letter at least; measuring takes time
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = "…" + text[2:]
    draw.text((left + (width - draw.textlength(text, font=font)) / 2, top), text, INK, font=font)


@dataclass
class TranslationRow:
    """One pair of the paper's Table 1 layout: an input, K outputs with sampled latents, one guided output."""

    source: Picture
    samples: Sequence[Picture]
    guided: Picture | None


def table1_grid(
    left: Sequence[TranslationRow], right: Sequence[TranslationRow], samples: int
) -> Image.Image:
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
