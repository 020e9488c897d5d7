"""From stored rows to network inputs and back."""

import numpy as np
import pytest
import torch

from iiae_cli.data.batches import to_inputs, to_pictures

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def pictures(seed, rows=2, shape=(12, 20, 3)):
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape)).astype(np.uint8)


def test_pictures_are_scaled_to_minus_one_and_one_with_channels_first():
    rows = pictures(0)
    rows[0, 0, 0] = (0, 255, 51)
    inputs = to_inputs(rows, None)
    assert inputs.shape == (2, 3, 12, 20) and inputs.dtype == torch.float32
    assert inputs[0, :, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])
    np.testing.assert_allclose(inputs.permute(0, 2, 3, 1), rows / 127.5 - 1, atol=1e-6)


def test_the_stored_rows_are_not_changed():
    rows = pictures(1)
    before = rows.copy()
    to_inputs(rows, None)
    to_inputs(rows, (6, 10))
    np.testing.assert_array_equal(rows, before)


def test_features_pass_unchanged():
    features = np.random.default_rng(2).normal(size=(4, 7)).astype(np.float32)
    inputs = to_inputs(features, None)
    assert inputs.dtype == torch.float32
    np.testing.assert_array_equal(inputs, features)


def test_rows_may_be_strided_views():
    rows = pictures(3, rows=4)[::-2, ::-1]
    np.testing.assert_allclose(
        to_inputs(rows, None).permute(0, 2, 3, 1), rows / 127.5 - 1, atol=1e-6
    )


def test_every_value_survives_the_way_to_the_network_and_back():
    np.testing.assert_array_equal(to_pictures(to_inputs(EVERY_VALUE, None)), EVERY_VALUE)
    rows = pictures(4)
    np.testing.assert_array_equal(to_pictures(to_inputs(rows, (12, 20))), rows)


def test_outputs_are_rounded_to_the_nearest_value_and_clamped():
    outputs = torch.tensor([-1.3, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 1.7]).view(
        1, 1, 1, 6
    )
    assert to_pictures(outputs).ravel().tolist() == [0, 0, 0, 1, 255, 255]
    assert to_pictures(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)
    assert to_pictures(torch.zeros(1, 1, 1, 1, requires_grad=True)).dtype == np.uint8


def test_the_same_size_is_left_alone():
    np.testing.assert_array_equal(to_inputs(pictures(7), (12, 20)), to_inputs(pictures(7), None))
