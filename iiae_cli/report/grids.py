"""Labelled panels of pictures in the paper's layouts, filled by a model.

A panel is drawn as a picture here, and as a table by the report. Small pictures are first enlarged
by whole factors without smoothing, so that a 32-pixel digit stays crisp.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from iiae_cli.data.datafile import Rows, Split
from iiae_cli.inference.trained import Styles, TrainedModel, styles_of
from iiae_cli.model import DOMAINS, Domain, other_domain

Picture: TypeAlias = NDArray[np.uint8]  # (H, W, C)
Translated: TypeAlias = tuple[Picture, str, Sequence[Picture]]  # an input, its id, its outputs
Colour: TypeAlias = tuple[int, int, int]
Tone: TypeAlias = Literal["right", "near", "wrong"]  # near: of the query's class, not its partner

TILE = 128  # pixels: the longer side of every picture
GAP = 8
FONT = 16
TEXT_HEIGHT = 22
PAPER: Colour = (255, 255, 255)
INK: Colour = (30, 30, 30)
HAIRLINE: Colour = (190, 190, 190)  # around every picture, so that white ones have an edge
FRAMES: dict[Tone, Colour] = {"right": (0, 140, 60), "near": (230, 150, 0), "wrong": (200, 30, 30)}
MISSING: Colour = (225, 225, 225)


@dataclass
class Tile:
    """A cell: a picture or a blank (None), lines of caption below it, a frame's tone."""

    picture: Picture | None
    caption: Sequence[str] = ()
    tone: Tone | None = None


@dataclass
class Panel:
    """Rows of tiles, which may differ in length, under a header per column.

    A wider gap follows the columns `gaps_after`.
    """

    rows: Sequence[Sequence[Tile]]
    headers: Sequence[str] = ()
    gaps_after: Sequence[int] = ()
    title: str = ""

    def draw(self) -> Image.Image:
        """Draws the tiles with captions and headers."""
        columns = range(max(map(len, self.rows)))
        steps = [TILE + GAP * (4 if column in self.gaps_after else 2) for column in columns]
        lefts = [*accumulate(steps, initial=GAP)]
        lines = [max(len(tile.caption) for tile in row) for row in self.rows]
        steps = [TILE + 2 * GAP + TEXT_HEIGHT * count for count in lines]
        tops = [*accumulate(steps, initial=TEXT_HEIGHT + GAP if self.headers else GAP)]
        canvas = Image.new("RGB", (lefts[-1], tops[-1]), PAPER)
        draw = ImageDraw.Draw(canvas)
        draw.font = ImageFont.load_default(size=FONT)
        for left, header in zip(lefts, self.headers, strict=False):
            _write(draw, header, left, GAP // 2)
        for top, row in zip(tops, self.rows, strict=False):
            for left, tile in zip(lefts, row, strict=False):
                _draw_tile(canvas, draw, tile, left, top)
        return canvas


def to_rgb(picture: Picture) -> Picture:
    """Returns (H, W, 3): grey for one or two channels, and only the first three of more."""
    return np.repeat(picture[..., :1], 3, 2) if picture.shape[2] < 3 else picture[..., :3]


def scaled(picture: Picture) -> Image.Image:
    """Scales a picture's longer side to `TILE`: up by a whole factor, then down to fit."""
    image = Image.fromarray(to_rgb(picture))
    factor = -(-TILE // max(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return image


def _draw_tile(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int
) -> None:
    """Draws a tile; a grey box replaces a captioned picture that is missing."""
    if tile.tone is not None:
        outer = (left - 4, top - 4, left + TILE + 3, top + TILE + 3)
        draw.rectangle(outer, outline=FRAMES[tile.tone], width=4)
    if tile.picture is not None:
        image = ImageOps.expand(scaled(tile.picture), 1, HAIRLINE)
        canvas.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
    elif tile.caption:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), MISSING)
        _write(draw, "no picture", left, top + 3)
    for number, line in enumerate(tile.caption):
        _write(draw, line, left, top + TILE + 4 + TEXT_HEIGHT * number)


def _write(draw: ImageDraw.ImageDraw, text: str, left: int, top: int) -> None:
    """Writes a centred line below a tile; an ellipsis replaces the start of a long one."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    # A letter takes a pixel at least, and measuring takes time.
    text = text if len(text) <= TILE else f"…{text[-TILE:]}"
    while len(text) > 1 and draw.textlength(text) > TILE:
        text = "…" + text[2:]
    draw.text((left + (TILE - draw.textlength(text)) / 2, top), text, INK)


def translation_panel(
    source: Domain, target: Domain, styles: Styles, rows: Iterable[Translated]
) -> Panel:
    """Shows translations as `translate --grid` does.

    sampled, guided  input | output 1 | output 2 | …, references above their outputs     (Table 1)
    analogy          query | reference | output, once more per reference          (Tables 8 and 11)
    """
    above = [_named(*item) if item else Tile(None) for item in styles.pictures]
    lines = [[_named(picture, name), *map(Tile, outputs)] for picture, name, outputs in rows]
    if source == target and all(styles.pictures):
        headers = [f"query {source}", *(f"reference {target}", f"output {target}") * len(above)]
        lines = [[query, *chain(*zip(above, out, strict=True))] for query, *out in lines]
        return Panel(lines, headers, gaps_after=range(2, 2 * len(above), 2))
    headers = [f"input {source}", *(f"{target}: {name}" for name in styles.names)]
    if any(styles.pictures):
        lines.insert(0, [Tile(None), *above])
    return Panel(lines, headers, gaps_after=[0])


def _named(picture: Picture, name: str) -> Tile:
    return Tile(picture, (Path(name).stem,))


# ---- what a model makes of a split


def spread(length: int, count: int) -> NDArray[np.int64]:
    """Returns at most `count` of `length` positions, evenly spread, ascending."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def sample_panel(model: TrainedModel, pairs: Split, *, samples: int = 3, seed: int = 0) -> Panel:
    """Shows aligned pairs as the paper's Table 1 does, one per row.

    x | sampled y | guided by the partner y ‖ y | sampled x | guided by the partner x
    """
    headers, halves = list[str](), []
    for source in DOMAINS:
        target, rows = other_domain(source), pairs.side(source).rows
        partners = pairs.side(target).rows
        styles = styles_of(model, target, None, partners.__getitem__, samples=samples, seed=seed)
        exclusive = styles.exclusive([*range(len(rows))])
        halves.append(_translations(model, rows, source, target, exclusive))
        headers += [source, *styles.names]
    lines = [[*of_x, *of_y] for of_x, of_y in zip(*halves, strict=True)]
    title = "Translation, sampled and guided by the partner: x to y, y to x"
    return Panel(lines, headers, [len(headers) // 2 - 1], title)


def analogy_panel(model: TrainedModel, domain: Domain, queries: Rows, references: Rows) -> Panel:
    """Shows visual analogies within a domain (Table 8): queries down the left, references on top.

    Each crossing has the query's shared and the reference's exclusive latent, which the model must
    have. Pictures are (N, H, W, C) uint8.
    """
    guides = model.encode(references, domain, ["exclusive"]).mean("exclusive")
    exclusive = torch.from_numpy(guides).expand(len(queries), -1, -1)
    above = [Tile(None), *map(Tile, model.shown(references))]
    lines = _translations(model, queries, domain, domain, exclusive)
    headers = ["input", *["reference"] * len(references)]
    title = f"Analogies within {domain}: shared latents from the left, exclusive ones from above"
    return Panel([above, *lines], headers, [0], title)


def _translations(
    model: TrainedModel, rows: Rows, source: Domain, target: Domain, exclusive: Tensor | None
) -> list[list[Tile]]:
    """Returns a line per row: its picture, then its translations."""
    outputs = model.translate(rows, source, target, exclusive)
    pictures = zip(model.shown(rows), outputs, strict=True)
    return [[Tile(picture), *map(Tile, made)] for picture, made in pictures]
