"""Digits (or garments) with a coloured ground in x and a coloured digit in y, and edge variants.

MNIST-CDCB was published as 100 samples without its generator; the recipe below is read off those
samples (`docs/data.md`). `colour_pair` is the published recipe; the two edge recipes make the
domains differ in more than colour, so that raw pixels no longer solve the retrieval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.data.datafile import Side, Split
from iiae_cli.data.pictures import resize_pictures
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions

UInt8Array: TypeAlias = NDArray[np.uint8]
Recipe: TypeAlias = Callable[
    [UInt8Array, np.random.Generator], tuple[UInt8Array, UInt8Array, dict[str, UInt8Array]]
]

THRESHOLD = 102  # a grey value above it belongs to the digit
TEST_DIGITS = 300


def _colours(count: int, rng: np.random.Generator) -> UInt8Array:
    return rng.integers(0, 256, size=(count, 3), dtype=np.uint8)


def _paint(mask: NDArray[np.bool_], inside: UInt8Array, outside: UInt8Array) -> UInt8Array:
    return np.where(mask[..., None], inside, outside)


def _grounds(colours: UInt8Array) -> UInt8Array:
    return colours[:, None, None, :]


def colour_pair(
    grey: UInt8Array, rng: np.random.Generator
) -> tuple[UInt8Array, UInt8Array, dict[str, UInt8Array]]:
    """MNIST-CDCB: white digit on a coloured background (x), coloured digit on black (y).

    Args:
        grey: (N, H, W) uint8.
        rng: draws both colours of every pair, uniform over RGB and independent.

    Returns:
        x (N, H, W, 3), y (N, H, W, 3), and the factors `x_color`, `y_color` (N, 3). Grey below the
        threshold stays in y, grey above it stays in x, as in the published samples.
    """
    background, foreground = _colours(len(grey), rng), _colours(len(grey), rng)
    digit, mask = grey[..., None], grey > THRESHOLD
    x = _paint(mask, digit, _grounds(background))
    y = _paint(mask, _grounds(foreground), digit)
    return x, y, {"x_color": background, "y_color": foreground}


def outline_pair(
    grey: UInt8Array, rng: np.random.Generator
) -> tuple[UInt8Array, UInt8Array, dict[str, UInt8Array]]:
    """x as in `colour_pair`; y is the digit's outline, one pixel around it, coloured on black."""
    background, foreground = _colours(len(grey), rng), _colours(len(grey), rng)
    mask = grey > THRESHOLD
    x = _paint(mask, grey[..., None], _grounds(background))
    y = _paint(_dilate(mask) & ~mask, _grounds(foreground), np.zeros((1, 1, 1, 1), np.uint8))
    return x, y, {"x_color": background, "y_color": foreground}


def sketch_pair(
    grey: UInt8Array, rng: np.random.Generator
) -> tuple[UInt8Array, UInt8Array, dict[str, UInt8Array]]:
    """x is the garment's edge map, dark on white; y is the garment on a random-coloured ground."""
    ground = _colours(len(grey), rng)
    horizontal, vertical = np.gradient(grey.astype(np.float32), axis=(2, 1))
    strength = np.clip(2.0 * np.hypot(horizontal, vertical), 0, 255).astype(np.uint8)
    x = np.repeat(255 - strength[..., None], 3, axis=3)
    # The garment's own grey covers the ground by its opacity, so that soft borders stay soft.
    opacity = np.minimum(grey.astype(np.float32) / THRESHOLD, 1.0)[..., None]
    y = opacity * grey[..., None] + (1 - opacity) * _grounds(ground)
    return x, np.rint(y).astype(np.uint8), {"y_color": ground}


def _dilate(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow (N, H, W) masks by one pixel in the eight directions."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    height, width = mask.shape[1:]
    shifts = ((row, column) for row in range(3) for column in range(3))
    grown = np.zeros_like(mask)
    for row, column in shifts:
        grown |= padded[:, row : row + height, column : column + width]
    return grown


def embedded_digits(size: int = 32) -> tuple[UInt8Array, NDArray[np.int64]]:
    """scikit-learn's digits as bilevel pictures (1797, size, size), 0 or 255, and labels (1797,).

    They were made from 32×32 bilevel scans by counting the inked pixels, 0 to 16, of 4×4 blocks.
    Enlarged bicubically and cut at the recipe's threshold they are bilevel again.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = resize_pictures(np.rint(digits.images * (255 / 16)).astype(np.uint8), size)
    return np.where(grey > THRESHOLD, 255, 0).astype(np.uint8), digits.target.astype(np.int64)


def coloured_splits(
    grey: Mapping[str, tuple[UInt8Array, NDArray[np.int64]]],
    recipe: Recipe,
    seed: int,
    size: int | None = None,
) -> dict[str, Split]:
    """Pairs of grey pictures, coloured first and resized after, as MNIST-CDCB was made.

    Args:
        grey: pictures (N, H, W) and labels (N,) per split.
        recipe: draws colours from one stream, split after split.
        seed: of the stream.
        size: side of the pictures; None: their own.
    """
    rng = np.random.default_rng(seed)
    splits = {}
    for split, (pictures, labels) in grey.items():
        *domains, colours = recipe(pictures, rng)
        ids = [f"{split}/{number:05d}" for number in range(1, len(pictures) + 1)]
        x, y = (
            Side(rows if size is None else resize_pictures(rows, size), ids, list(map(str, labels)))
            for rows in domains
        )
        factors: dict[str, NDArray[Any]] = {**colours, "class": labels}
        splits[split] = Split(x, y, factors)
    return splits


def plan_digits(recipe: Recipe, options: PrepareOptions) -> Plan:
    """Plan scikit-learn's digits: 1,497 train and 300 test pairs, stratified; none for valid."""
    from sklearn.model_selection import train_test_split

    grey, labels = embedded_digits(options.image_size or 32)
    divided: list[NDArray[np.int64]] = train_test_split(
        np.arange(len(grey)), test_size=TEST_DIGITS, stratify=labels, random_state=options.seed
    )
    limited = [rows[: options.limit] for rows in divided]
    parts = {
        split: (grey[rows], labels[rows])
        for split, rows in zip(("train", "test"), limited, strict=True)
    }
    attributes = {"source": "scikit-learn's bundled digits"}
    return Plan(
        lambda rows, work: Prepared(coloured_splits(parts, recipe, options.seed), attributes)
    )
