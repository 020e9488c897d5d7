"""Pairs whose content has another place and another look in each of the two views.

Each view is generated, and what it draws for itself is stored as factors (docs/data.md). Digits are
light on a dark ground in x, dark on a light one in y. Shapes: N rows, S side in pixels; pixels lie
in [0, 1] until they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from iiae_cli.data.names import Notes
from iiae_cli.data.sources.cdcb import (
    DIGITS,
    Drawn,
    Recipe,
    UInt8Array,
    drawn_splits,
    embedded_digits,
    read_parts,
)
from iiae_cli.data.sources.plan import Plan, PrepareOptions
from iiae_cli.model import DOMAINS, Domain

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]
Factors: TypeAlias = dict[str, NDArray[Any]]
# Returns the pictures of one view, and the factors that it drew.
Draw: TypeAlias = Callable[[Domain, NDArray[Any], np.random.Generator], tuple[UInt8Array, Factors]]

SIDE, QUADRANT, DIGIT = 64, 32, 28
COUNTS = {"train": 8000, "valid": 1000, "test": 2000}
TEXTURE = 0.15  # amplitude of a ground
TURN, SCALES = 30.0, (0.4, 0.7)  # digits-moved: degrees either way, part of the side
SHAPES = TEXTURES = COLOURS = 10
CHUNK = 500  # rows drawn at once
_TURNS = np.arange(COLOURS)[:, None] / COLOURS + np.array([0, 1 / 3, 2 / 3])
HUES = 0.55 + 0.45 * np.cos(2 * np.pi * _TURNS)  # colours (10, 3), evenly around their circle


def two_views(draw: Draw) -> Recipe:
    """Returns a recipe that draws x and y of contents (N, 2, …), each after its own draws."""

    def recipe(contents: NDArray[Any], rng: np.random.Generator) -> Drawn:
        views: list[UInt8Array] = []
        factors: Factors = {}
        for domain, rows in zip(DOMAINS, contents.swapaxes(0, 1), strict=True):
            starts = range(0, len(rows), CHUNK)
            chunks = [draw(domain, rows[start : start + CHUNK], rng) for start in starts]
            views.append(np.concatenate([pictures for pictures, _ in chunks]))
            for factor in chunks[0][1]:
                values = np.concatenate([drawn[factor] for _, drawn in chunks])
                factors[f"{domain}_{factor}"] = values
        return views[0], views[1], factors

    return recipe


# ---- mnist-quadrants


def plan_quadrants(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans 8,000 train, 1,000 valid and 2,000 test pairs; at most `limit` of each."""
    parts, attributes = read_parts(options)
    rng, contents = np.random.default_rng((options.seed, 1)), {}
    for name, (digits, labels) in parts.items():
        rows = pair_instances(labels, rng, same=options.same_instance)[: COUNTS[name]]
        contents[name] = (digits[rows], labels[rows[:, 0]])
    return Plan(drawn_splits(contents, two_views(draw_quadrant), options), attributes)


def pair_instances(labels: Ints, rng: np.random.Generator, *, same: bool) -> Ints:
    """Returns rows (N, 2) of x and y in random order, partners of one class, each row used once."""
    shuffled = rng.permutation(len(labels))
    if same:
        return np.stack([shuffled, shuffled], 1)
    by_class = [shuffled[labels[shuffled] == label] for label in np.unique(labels)]
    x = np.concatenate([rows[: len(rows) // 2] for rows in by_class])
    y = np.concatenate([rows[len(rows) // 2 :][: len(rows) // 2] for rows in by_class])
    return np.stack([x, y], 1)[rng.permutation(len(x))]


def draw_quadrant(
    domain: Domain, digits: NDArray[Any], rng: np.random.Generator
) -> tuple[UInt8Array, Factors]:
    """Draws digits (N, 28, 28) anywhere in a quadrant of a ground: clouds in x, stripes in y."""
    count = len(digits)
    quadrant = rng.integers(4, size=count)  # row by row
    corner = QUADRANT * np.stack([quadrant // 2, quadrant % 2], axis=1)
    corner += rng.integers(QUADRANT - DIGIT + 1, size=(count, 2))
    mask = np.zeros((count, SIDE, SIDE), np.float32)
    for row, (top, left) in enumerate(corner):
        mask[row, top : top + DIGIT, left : left + DIGIT] = digits[row] / np.float32(255)
    texture = (clouds if domain == "x" else stripes)(count, rng)[..., None]
    colour = rng.uniform(0.15, 0.5, (count, 1, 1, 3))
    ground = colour + rng.uniform(0.5, 1, (count, 1, 1, 3)) * TEXTURE * texture
    ink = rng.uniform(0.85, 1, (count, 1, 1, 3))
    pictures = ground + mask[..., None] * (ink - ground)
    if domain == "y":
        pictures, colour = 1 - pictures, 1 - colour
    return stored(pictures), {"quadrant": quadrant, "ground": stored(colour[:, 0, 0])}


def clouds(count: int, rng: np.random.Generator) -> Floats:
    """Draws noise (N, S, S) in [−1, 1] of one octave, whose frequency each row draws."""
    row, column = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    octaves = np.log2(np.maximum(SIDE * np.hypot(row, column), 0.01))  # of cycles per picture
    wanted = np.exp(-2 * (octaves - rng.uniform(1, 3.5, (count, 1, 1))) ** 2)
    spectrum = np.fft.rfft2(rng.standard_normal((count, SIDE, SIDE))) * wanted
    values = np.fft.irfft2(spectrum, (SIDE, SIDE))
    values /= 2 * values.std(axis=(1, 2), keepdims=True)
    return np.clip(values, -1, 1).astype(np.float32)


def stripes(count: int, rng: np.random.Generator) -> Floats:
    """Draws waves (N, S, S) in [−1, 1] on a gradient; directions, period and phase vary by row."""
    place = np.arange(SIDE) / SIDE - 0.5
    angle, cycles, phase, slope = (
        rng.uniform(0, end, (count, 1, 1)) for end in (np.pi, 1, 2 * np.pi, 2 * np.pi)
    )
    across = np.cos(angle) * place + np.sin(angle) * place[:, None]
    waves = np.sin(2 * np.pi * (2 + 7 * cycles) * across + phase)
    gradient = np.cos(slope) * place + np.sin(slope) * place[:, None]
    return np.clip(0.6 * (waves + gradient), -1, 1).astype(np.float32)


def stored(values: NDArray[Any]) -> UInt8Array:
    """Converts values in [0, 1] to bytes."""
    pixels: UInt8Array = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return pixels


# ---- digits-moved


def plan_moved_digits(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans scikit-learn's digits, one instance in both views: 1,497 train and 300 test pairs."""
    contents = {
        name: (np.stack([digits, digits], 1), labels)
        for name, (digits, labels) in embedded_digits(32, options.seed).items()
    }
    return Plan(drawn_splits(contents, two_views(draw_moved), options), {"source": DIGITS})


def draw_moved(
    domain: Domain, digits: NDArray[Any], rng: np.random.Generator
) -> tuple[UInt8Array, Factors]:
    """Moves digits (N, S, S) of 0 or 255 within their pictures (N, S, S, 1)."""
    count, side = digits.shape[:2]
    scale, turn = rng.uniform(*SCALES, (count,)), rng.uniform(-TURN, TURN, (count,))
    shift = rng.uniform(-0.4, 0.4, (count, 2)) * (1 - scale[:, None])  # down, right; in sides
    pictures = np.empty((count, side, side, 1))
    for row in range(count):
        cosine, sine = np.cos(np.radians(turn[row])), np.sin(np.radians(turn[row]))
        back = np.array([[cosine, sine], [-sine, cosine]]) / scale[row]
        middle = np.full(2, (side - 1) / 2)
        offset = middle - back @ (middle + side * shift[row])
        moved = affine_transform(digits[row] / 255, back, offset, order=1)
        pictures[row, ..., 0] = 0.1 + 0.8 * moved
    pictures = pictures if domain == "x" else 1 - pictures
    return stored(pictures), {"shift": shift, "scale": scale, "rotation": turn}


# ---- trifeature


def plan_trifeature(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans generated pairs, as many as in mnist-quadrants, of ten shapes, textures and colours."""
    rng, contents = np.random.default_rng((options.seed, 1)), {}
    for name, count in COUNTS.items():
        shapes = rng.integers(SHAPES, size=min(count, options.limit or count))
        contents[name] = (np.stack([shapes, shapes], 1), shapes)
    splits = drawn_splits(contents, two_views(draw_trifeature), options)
    return Plan(splits, {"source": "generated"})


def draw_trifeature(
    domain: Domain, shapes: NDArray[Any], rng: np.random.Generator
) -> tuple[UInt8Array, Factors]:
    """Draws shapes (N,) by number, turned, anywhere on a plain ground, light in x and dark in y."""
    count = len(shapes)
    texture, colour = rng.integers(TEXTURES, size=count), rng.integers(COLOURS, size=count)
    radius = rng.uniform(14, 22, (count, 1, 1))
    middle = rng.uniform(radius[:, 0], SIDE - 1 - radius[:, 0], (count, 2))
    down, across = (
        np.arange(SIDE).reshape(axes) - middle[:, item, None, None]
        for item, axes in enumerate([(1, SIDE, 1), (1, 1, SIDE)])
    )
    angle = np.arctan2(down, across) + rng.uniform(0, 2 * np.pi, (count, 1, 1))
    distance = np.hypot(down, across) / radius
    inside = np.empty((count, SIDE, SIDE, 1), bool)
    for row in range(count):
        inside[row, ..., 0] = OUTLINES[shapes[row]](angle[row], distance[row])
    patterns = np.stack([pattern(*np.mgrid[:SIDE, :SIDE]) for pattern in PATTERNS])
    paint = HUES[colour][:, None, None] * (0.35 + 0.65 * patterns[texture][..., None])
    pictures = np.where(inside, paint, 0.95 if domain == "x" else 0.1)
    return stored(pictures), {"texture": texture, "color": colour}


def polygon(corners: int) -> Callable[[Floats, Floats], NDArray[np.bool_]]:
    """Returns whether points, by angle and distance, lie in a regular polygon of circumradius 1."""
    step = 2 * np.pi / corners

    def inside(angle: Floats, distance: Floats) -> NDArray[np.bool_]:
        return np.asarray(distance * np.cos(angle % step - step / 2) <= np.cos(step / 2))

    return inside


def star(points: int, depth: float) -> Callable[[Floats, Floats], NDArray[np.bool_]]:
    """Returns whether points lie in a rounded star of circumradius 1 with hollows of this depth."""
    return lambda angle, distance: distance <= 1 - depth * (0.5 - 0.5 * np.cos(points * angle))


OUTLINES = (
    *(polygon(3), polygon(4), polygon(5), star(0, 0)),  # the last is a disc
    *(star(2, 0.6), star(3, 0.6), star(4, 0.6), star(5, 0.6)),
    lambda angle, distance: (distance <= 1) & (distance > 0.55),  # a ring
    lambda angle, distance: (distance <= 1) & (np.cos(angle) <= 0.5),  # a disc without a slice
)
PATTERNS: tuple[Callable[[Ints, Ints], NDArray[Any]], ...] = (
    lambda down, across: np.ones_like(down),
    lambda down, across: down // 3 % 2,
    lambda down, across: across // 3 % 2,
    lambda down, across: (down + across) // 4 % 2,
    lambda down, across: (down - across) // 4 % 2,
    lambda down, across: (down // 4 + across // 4) % 2,
    lambda down, across: np.minimum(down % 6, across % 6) > 1,
    lambda down, across: np.maximum(down % 6, across % 6) > 3,
    lambda down, across: np.hypot(down % 8 - 3.5, across % 8 - 3.5) > 2.5,
    lambda down, across: (down + 2 * np.sin(across)) // 4 % 2,
)
