"""Enlarging by small matrix products, held to torch's own kernel bit for bit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from iiae_cli.data import bicubic
from iiae_cli.data.batches import to_inputs
from iiae_cli.data.bicubic import enlarge

SHAPES = [
    # channels, old, new
    (3, (28, 28), (256, 256)),
    (3, (32, 32), (256, 256)),
    (1, (28, 28), (32, 32)),
    (3, (37, 61), (101, 90)),
    (4, (1, 9), (5, 30)),
    (1, (1, 1), (7, 3)),
    (2, (12, 40), (60, 13)),  # more pixels, though fewer columns
]


def pictures(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "extremes":  # overshoots, and many values at half a grey level
        return (255 * rng.integers(0, 2, shape)).astype(np.uint8)
    if kind == "edge":
        found = np.zeros(shape, np.uint8)
        found[:, :, shape[2] // 2 :] = 255
        return found
    return rng.integers(0, 256, shape).astype(np.uint8)


def planes(rows):
    return torch.from_numpy(rows).permute(0, 3, 1, 2).float()


def by_torch(pictures, size):
    return F.interpolate(pictures, size=size, mode="bicubic", align_corners=False)


@pytest.mark.parametrize("kind", ["random", "extremes", "edge"])
@pytest.mark.parametrize(("channels", "old", "new"), SHAPES)
def test_every_bit_is_torchs(kind, channels, old, new):
    rows = pictures(kind, (5, *old, channels))
    expected = by_torch(planes(rows), new)
    for given in (planes(rows), planes(rows).contiguous()):
        assert torch.equal(enlarge(given, new), expected)


def test_random_shapes_are_torchs_too():
    rng = np.random.default_rng(1)
    for seed in range(25):
        old, new = (tuple(rng.integers(1, top, 2).tolist()) for top in (50, 120))
        rows = pictures("random", (2, *old, int(rng.integers(1, 5))), seed)
        assert torch.equal(enlarge(planes(rows), new), by_torch(planes(rows), new)), (old, new)


def test_products_are_right_whatever_adds_them_up():
    for channels, old, new in SHAPES:
        given = planes(pictures("random", (2, *old, channels)))
        torch.testing.assert_close(
            bicubic._by_products(given, new), by_torch(given, new), rtol=0, atol=2e-3
        )


def test_torch_serves_where_products_add_up_otherwise(monkeypatch):
    given = planes(pictures("random", (2, 9, 9, 3)))
    honest = bicubic._by_products
    monkeypatch.setattr(bicubic, "_by_products", lambda *args: honest(*args) + 2.0**-10)
    bicubic._adds_like_torch.cache_clear()
    assert not bicubic._adds_like_torch(3, (9, 9), (20, 20))
    assert torch.equal(enlarge(given, (20, 20)), by_torch(given, (20, 20)))
    bicubic._adds_like_torch.cache_clear()


def test_a_pictures_values_depend_on_nothing_beside_it(monkeypatch):
    given = planes(pictures("random", (7, 28, 28, 3)))
    alone = torch.cat([enlarge(one[None], (64, 64)) for one in given])
    assert torch.equal(enlarge(given, (64, 64)), alone)
    monkeypatch.setattr(
        bicubic, "_CACHED", 3 * 29 * 3 * 64 * 3
    )  # three pictures at once, then a rest
    assert torch.equal(enlarge(given, (64, 64)), alone)
    assert enlarge(given[:0], (64, 64)).shape == (0, 3, 64, 64)


def test_autocast_rounds_nothing():
    given = planes(pictures("random", (2, 28, 28, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bicubic._by_products(given, (64, 64))
    assert found.dtype == torch.float32 and torch.equal(
        found, bicubic._by_products(given, (64, 64))
    )


def test_results_lie_as_convolutions_read_them():
    assert enlarge(planes(pictures("random", (2, 28, 28, 3))), (64, 64)).is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("kind", ["random", "extremes"])
def test_network_inputs_are_what_torch_alone_would_make(kind):
    rows = pictures(kind, (8, 28, 28, 3))
    expected = by_torch(planes(rows), (256, 256)).round().clamp(0, 255).div(127.5).sub(1.0)
    with torch.inference_mode():
        first = to_inputs(rows, (256, 256))
    assert torch.equal(first, expected)
    later = to_inputs(
        rows, (256, 256)
    ).requires_grad_()  # tables made without gradients serve with them
    later.sum().backward()
    assert torch.equal(later.detach(), expected)
