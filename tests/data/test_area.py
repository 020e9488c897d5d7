"""Resizing by exact area against an integral over the piecewise-constant picture, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from iiae_cli.data.area import overlap_weights, resize_by_area, sizes_divide
from iiae_cli.data.batches import resize
from iiae_cli.data.pictures import decode, shrink_or_enlarge

# Both sides shrink; one does by a whole factor; one shrinks and the other grows.
SIZES = [
    ((13, 17), (5, 7)),
    ((12, 17), (6, 5)),
    ((6, 40), (9, 11)),
    ((40, 6), (11, 12)),
    ((7, 5), (1, 2)),
    ((9, 9), (8, 9)),
]


def pictures(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def overlap(first, second):
    return max(0.0, min(first[1], second[1]) - max(first[0], second[0]))


def integral(picture, size):
    """The mean of (H, W) over the rectangle that every new pixel covers, not rounded."""
    height, width = picture.shape
    down, across = height / size[0], width / size[1]
    mean = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            for row in range(height):
                part = overlap((i * down, (i + 1) * down), (row, row + 1))
                if part == 0:
                    continue
                for column in range(width):
                    area = part * overlap((j * across, (j + 1) * across), (column, column + 1))
                    mean[i, j] += area * picture[row, column] / (down * across)
    return mean


@pytest.mark.parametrize("old, new", SIZES)
def test_a_new_pixel_is_the_mean_of_what_it_covers(old, new):
    picture = pictures(0, (*old, 3))
    expected = np.stack([integral(picture[..., channel], new) for channel in range(3)], axis=2)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    by_torch = resize(tensor, new)[0].permute(1, 2, 0).numpy()
    by_pillow = np.asarray(shrink_or_enlarge(Image.fromarray(picture), new))
    for found in (resize_by_area(picture, new), by_torch, by_pillow):
        assert found.shape == (*new, 3)
        np.testing.assert_allclose(found, expected, atol=0.5 + 1e-4)
        np.testing.assert_array_equal(found, np.rint(found))


def test_pictures_and_batches_are_shrunk_alike_from_600_to_256():
    picture = pictures(1, (600, 600, 3))
    by_torch = resize(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), (256, 256))[
        0
    ].permute(1, 2, 0)
    by_pillow = np.asarray(shrink_or_enlarge(Image.fromarray(picture), (256, 256)))
    difference = np.abs(by_torch.numpy() - by_pillow)
    assert difference.max() <= 1 and difference.mean() < 1e-4  # ties may fall either way
    expected = integral(picture[:75, :75, 0], (32, 32))  # 75 old pixels are 32 new ones
    np.testing.assert_allclose(by_pillow[:32, :32, 0], expected, atol=0.5 + 1e-3)


@pytest.mark.parametrize("old, new", [(600, 256), (7, 3), (3, 7), (5, 5), (4000, 256), (9, 1)])
def test_weights_are_fractions_of_the_pixels_covered(old, new):
    weights = overlap_weights(old, new)
    assert weights.shape == (new, old) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        weights.sum(axis=0), new / old, atol=1e-5
    )  # every old pixel counts the same
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 1


def test_which_sizes_divide():
    assert (
        sizes_divide((600, 600), (300, 200))
        and sizes_divide((4, 40), (8, 10))
        and sizes_divide((5, 5), (5, 5))
    )
    assert not sizes_divide((600, 600), (300, 256)) and not sizes_divide((4, 40), (6, 10))


def test_grey_pictures_have_no_channel_axis():
    picture = pictures(2, (13, 17))
    np.testing.assert_allclose(
        resize_by_area(picture, (5, 7)), integral(picture, (5, 7)), atol=0.5 + 1e-4
    )
    assert shrink_or_enlarge(Image.fromarray(picture), (5, 7)).mode == "L"


@pytest.mark.parametrize("channels", [2, 4])
def test_a_hidden_colour_does_not_bleed_into_its_neighbours(tmp_path, channels):
    """The right half is transparent black: shrunk, what is seen stays white, only its opacity sinks."""
    picture = np.full((5, 10, 4), 255, np.uint8)
    picture[:, 5:] = 0
    path = tmp_path / "half.png"
    Image.fromarray(picture).save(path)
    small = decode(path, channels, (2, 3))
    assert small[0, :, -1].tolist() == [255, pytest.approx(127.5, abs=1), 0]
    assert (small[:, :2, :-1] >= 254).all()


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_stays(value):
    picture = np.full((31, 29, 3), value, np.uint8)
    assert (resize_by_area(picture, (10, 13)) == value).all()
