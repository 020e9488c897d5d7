"""Labelled grids of pictures, laid out as in the paper.

Small pictures are enlarged by whole factors without smoothing: a 32-pixel digit stays crisp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from iiae_cli.model import Domain

Picture: TypeAlias = NDArray[np.uint8]  # (H, W, C)
Colour: TypeAlias = tuple[int, int, int]

TILE = 96  # pixels: the longer side of a tile, at least
GAP = 6
TEXT_HEIGHT = 16
SWATCH = 10
PAPER: Colour = (255, 255, 255)
INK: Colour = (30, 30, 30)
RIGHT: Colour = (0, 140, 60)
WRONG: Colour = (200, 30, 30)
MISSING: Colour = (225, 225, 225)
TRIPLES = 2  # references repeated beside every output, as the paper does


@dataclass
class Tile:
    """A cell: a picture or None for a blank, lines of caption below it, a frame around it."""

    picture: Picture | None
    caption: str = ""
    frame: Colour | None = None

    @property
    def lines(self) -> list[str]:
        """The caption's lines."""
        return self.caption.split("\n") if self.caption else []


def to_rgb(picture: Picture) -> Picture:
    """Returns (H, W, 3): grey for one or two channels, without channels past the third."""
    if picture.shape[2] < 3:
        return np.repeat(picture[..., :1], 3, axis=2)
    return picture[..., :3]


def enlarge(picture: Picture) -> Image.Image:
    """Enlarges by a whole factor to a longer side of at least `TILE`, or shrinks to twice that."""
    image = Image.fromarray(to_rgb(picture))
    longest = max(image.size)
    if longest > 2 * TILE:
        image.thumbnail((2 * TILE, 2 * TILE), Image.Resampling.LANCZOS)
        return image
    factor = -(-TILE // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def draw_grid(
    rows: Sequence[Sequence[Tile]],
    headers: Sequence[str] = (),
    gaps_after: Sequence[int] = (),
    legend: Sequence[tuple[Colour, str]] = (),
) -> Image.Image:
    """Draws a grid of tiles; every cell is at least `TILE` wide, so that texts have room.

    Args:
        rows: tiles, row by row; rows may differ in length.
        headers: one text per column.
        gaps_after: columns after which a wider gap separates groups.
        legend: what each colour of frame means, a line each below the grid.
    """
    images = [
        [None if tile.picture is None else enlarge(tile.picture) for tile in row] for row in rows
    ]
    sizes = [image.size for row in images for image in row if image is not None]
    width = max([TILE, *(size[0] for size in sizes)])
    height = max((size[1] for size in sizes), default=TILE)
    framed = any(tile.frame for row in rows for tile in row)

    left, lefts = GAP, []
    for column in range(max(len(row) for row in rows)):
        lefts.append(left)
        # Frames of neighbours must not touch.
        left += width + GAP * (4 if column in gaps_after else 2 if framed else 1)
    top, tops = TEXT_HEIGHT + GAP if headers else GAP, []
    for row in rows:
        tops.append(top)
        lines = max(len(tile.lines) for tile in row)
        # The gap below a caption shows that it belongs to the tile above it.
        top += height + GAP + TEXT_HEIGHT * lines + GAP * (lines > 0 and len(tops) < len(rows))

    font = ImageFont.load_default(size=12)
    widest = max((int(font.getlength(text)) for _, text in legend), default=0)
    size = (max(left, widest + SWATCH + 3 * GAP + 1), top + (TEXT_HEIGHT + GAP) * len(legend))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for left, header in zip(lefts, headers, strict=False):
        _write(draw, font, header, left, GAP // 2, width)
    for top_of_row, row, shown in zip(tops, rows, images, strict=True):
        for left, tile, image in zip(lefts, row, shown, strict=False):
            _draw_tile(canvas, font, tile, image, (left, top_of_row, width, height))
    for number, (colour, text) in enumerate(legend):
        upper = top + (TEXT_HEIGHT + GAP) * number
        draw.rectangle((GAP, upper + 2, GAP + SWATCH - 1, upper + SWATCH + 1), colour)
        draw.text((2 * GAP + SWATCH, upper), text, INK, font=font)
    return canvas


def _draw_tile(
    canvas: Image.Image,
    font: Any,
    tile: Tile,
    image: Image.Image | None,
    box: tuple[int, int, int, int],
) -> None:
    """Draws a tile into (left, top, width, height); a grey box stands for a missing picture."""
    left, top, width, height = box
    draw = ImageDraw.Draw(canvas)
    if tile.frame is not None:
        outer = (left - 3, top - 3, left + width + 2, top + height + 2)
        draw.rectangle(outer, outline=tile.frame, width=3)
    if image is not None:
        canvas.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
    elif tile.frame is not None or tile.caption:
        draw.rectangle((left, top, left + width - 1, top + height - 1), MISSING)
        _write(draw, font, "no picture", left, top + 3, width)
    for number, line in enumerate(tile.lines):
        _write(draw, font, line, left, top + height + 3 + TEXT_HEIGHT * number, width)


def _write(
    draw: ImageDraw.ImageDraw, font: Any, text: str, left: int, top: int, width: int
) -> None:
    """Writes a line centred into `width` pixels; an ellipsis replaces the start of a long one."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    # A letter takes a pixel at least, and measuring takes time.
    text = text if len(text) <= width else f"…{text[-width:]}"
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = "…" + text[2:]
    draw.text((left + (width - draw.textlength(text, font=font)) / 2, top), text, INK, font=font)


def table1_grid(
    x: Sequence[Picture],
    to_y: Sequence[Sequence[Picture]] | Picture,
    y: Sequence[Picture],
    to_x: Sequence[Sequence[Picture]] | Picture,
) -> Image.Image:
    """Draws the paper's Table 1: x | sampled y | guided y ‖ y | sampled x | guided x, a pair a row.

    `to_y` and `to_x` hold for each of N pairs K sampled translations, then the guided one.
    """
    rows = [
        [Tile(picture) for picture in (left, *outputs, right, *back)]
        for left, outputs, right, back in zip(x, to_y, y, to_x, strict=True)
    ]
    samples = len(to_y[0]) - 1
    numbered = [f"sample {number}" for number in range(1, samples + 1)]
    headers = ["x", *numbered, "guided y", "y", *numbered, "guided x"]
    return draw_grid(rows, headers, gaps_after=[samples + 1])


@dataclass
class TranslationGrid:
    """The grid of `translate`; it grows as inputs are translated.

    sampled, guided  input | output 1 | output 2 | …, references above their outputs     (Table 1)
    interpolation    input | step 1 | … | step N, the two references above its ends
    analogy          query | reference | output, once more for a second reference (Tables 8 and 11)

    `names` say how each of K outputs is made: `sample 1`, `step 1`, a reference's file name, ….
    `references` has a picture and an id, or None, for each of them; or is empty. A row is an
    input's picture, its id and its K outputs.
    """

    source: Domain
    target: Domain
    names: Sequence[str]
    references: Sequence[tuple[Picture, str] | None] = ()
    interpolated: bool = False
    rows: list[tuple[Picture, str, Sequence[Picture]]] = field(default_factory=list)

    def add(self, picture: Picture, name: str, outputs: Sequence[Picture]) -> None:
        """Adds a row."""
        self.rows.append((picture, name, outputs))

    def draw(self) -> Image.Image:
        """Draws all rows added."""
        references = [_named(*given) for given in self.references if given is not None]
        each = len(references) == len(self.names) <= TRIPLES and not self.interpolated
        if references and each and self.source == self.target:
            return self._draw_triples(references)
        lines = [[_named(picture, name), *map(Tile, out)] for picture, name, out in self.rows]
        headers = [f"input {self.source}", *(f"{self.target}: {name}" for name in self.names)]
        if references:
            above = [Tile(None) if given is None else _named(*given) for given in self.references]
            for number, tile in enumerate(above, 1):
                if tile.picture is not None and self.interpolated:
                    tile.caption = f"reference {self.target}\n{tile.caption}"
                elif tile.picture is not None:
                    headers[number] = f"reference {self.target}"
            lines.insert(0, [Tile(None), *above])
        return draw_grid(lines, headers, gaps_after=[0])

    def _draw_triples(self, references: Sequence[Tile]) -> Image.Image:
        lines = []
        for picture, name, outputs in self.rows:
            line = [_named(picture, name)]
            for reference, output in zip(references, outputs, strict=True):
                line += [reference, Tile(output)]
            lines.append(line)
        each = (f"reference {self.target}", f"output {self.target}")
        headers = [f"query {self.source}", *each * len(references)]
        return draw_grid(lines, headers, gaps_after=list(range(2, 2 * len(references), 2)))


def _named(picture: Picture, name: str) -> Tile:
    return Tile(picture, Path(name).stem)
