"""Resizing, held to Pillow's kernels, to exact areas, and to what no resizing may change."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from iiae_cli.data.pictures import resize, resize_picture

SIDES = st.integers(1, 40)


def pictures(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def resized(rows, size):
    """(B, H, W, C) through (B, C, H, W) and back."""
    return resize(torch.from_numpy(rows).permute(0, 3, 1, 2), size).permute(0, 2, 3, 1).numpy()


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3]))
def test_batches_and_files_are_resized_alike(height, width, new_height, new_width, channels):
    rows = pictures((2, height, width, channels))
    batch = resized(rows, (new_height, new_width))
    assert batch.shape == (2, new_height, new_width, channels) and batch.dtype == np.uint8
    for row, picture in zip(rows, batch, strict=True):
        image = resize_picture(
            Image.fromarray(row.squeeze(2) if channels == 1 else row), (new_height, new_width)
        )
        difference = np.abs(np.asarray(image).reshape(picture.shape).astype(int) - picture)
        assert difference.mean() < 1  # each kernel rounds between its passes in its own way


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 255))
def test_a_constant_picture_stays_as_it_is(height, width, new_height, new_width, value):
    rows = np.full((1, height, width, 3), value, np.uint8)
    assert (resized(rows, (new_height, new_width)) == value).all()


def test_shrinking_by_whole_factors_is_by_exact_area():
    rows = pictures((2, 12, 20, 3), seed=5)
    blocks = rows.reshape(2, 6, 2, 5, 4, 3).astype(np.float64).mean((2, 4))
    np.testing.assert_allclose(resized(rows, (6, 5)), blocks, atol=0.5 + 1e-3)


@pytest.mark.parametrize("size", [(28, 36), (10, 40)])
def test_enlarging_is_bicubic_and_clamped(size):
    rows = pictures((1, 7, 9, 3), seed=6)
    rows[0, :, :4], rows[0, :, 4:] = 0, 255  # overshoots
    expected = Image.fromarray(rows[0]).resize(size[::-1], Image.Resampling.BICUBIC)
    assert np.abs(resized(rows, size)[0].astype(int) - np.asarray(expected)).max() <= 1


def test_a_pictures_values_depend_on_nothing_beside_it():
    rows = pictures((5, 28, 28, 3))
    alone = np.concatenate([resized(row[None], (64, 64)) for row in rows])
    np.testing.assert_array_equal(resized(rows, (64, 64)), alone)
    assert resized(rows[:0], (64, 64)).shape == (0, 64, 64, 3)


def test_hidden_colours_of_transparent_pixels_do_not_bleed():
    picture = np.zeros((9, 9, 4), np.uint8)
    picture[..., 0] = 255  # red where transparent
    picture[:, 5:] = (0, 255, 0, 255)
    for size in ((4, 4), (3, 3), (20, 20)):
        shown = np.asarray(resize_picture(Image.fromarray(picture), size))
        assert shown[shown[..., 3] > 8][:, 0].max() < 32
