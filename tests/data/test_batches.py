"""Rows as network inputs and back, and the order in which pairs and rows of classes are seen."""

import numpy as np
import pytest
import torch

from iiae_cli.data.batches import ClassOrder, PairOrder, to_inputs, to_pictures

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def noise(shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_pictures_are_scaled_to_minus_one_and_one_with_channels_first():
    rows = noise((2, 12, 20, 3))
    rows[0, 0, 0] = (0, 255, 51)
    inputs = to_inputs(rows, None)
    assert inputs.shape == (2, 3, 12, 20) and inputs.dtype == torch.float32
    assert inputs[0, :, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])
    np.testing.assert_allclose(inputs.permute(0, 2, 3, 1), rows / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("rows", [EVERY_VALUE, noise((2, 16, 16, 3))])
def test_every_value_survives_the_way_to_the_network_and_back(rows):
    for size in (None, (16, 16)):
        np.testing.assert_array_equal(to_pictures(to_inputs(rows, size)), rows)


def test_outputs_are_rounded_to_the_nearest_value_and_clamped():
    outputs = torch.tensor([-1.3, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 1.7])
    assert to_pictures(outputs[None, None, None]).ravel().tolist() == [0, 0, 0, 1, 255, 255]
    pictures = to_pictures(torch.zeros(2, 3, 4, 5, requires_grad=True))
    assert pictures.shape == (2, 4, 5, 3) and pictures.dtype == np.uint8


# ---- orders


@pytest.mark.parametrize("count", [24, 26])
def test_an_epoch_sees_pairs_once_and_leaves_out_another_remainder_each_time(count):
    order, left_out = PairOrder(count, 4, seed=1), set()
    assert order.steps_per_epoch == 6
    for epoch in range(6):
        seen = np.concatenate([order.indices(6 * epoch + step) for step in range(6)]).tolist()
        assert len({*seen}) == len(seen) == 24
        left_out.add(frozenset(range(count)) - {*seen})
    assert (len(left_out) > 1) == (count > 24)


@pytest.mark.parametrize(
    "make",
    [lambda seed: PairOrder(50, 8, seed), lambda seed: ClassOrder(X_LABELS, Y_LABELS, None, seed)],
)
def test_an_order_is_a_function_of_seed_and_step_alone(make):
    fresh = [make(3).indices(step) for step in range(20)]
    order, other = make(3), make(4)
    for step in (*range(20), 19, 0, 7, 6, 13, 13, 1):
        np.testing.assert_array_equal(order.indices(step), fresh[step])
    assert any((other.indices(step) != fresh[step]).any() for step in range(5))


def test_too_few_pairs_or_classes_are_refused():
    assert PairOrder(8, 8, seed=0).steps_per_epoch == 1
    with pytest.raises(ValueError, match="7 pairs are fewer than one batch of 8"):
        PairOrder(7, 8, seed=0)
    with pytest.raises(ValueError, match="1 classes have rows in both domains"):
        ClassOrder(["a", "b"], ["a", "c"], None, 0)


# ---- rows paired by class


def labels_of(counts):
    return [name for name, count in counts.items() for _ in range(count)]


X_LABELS = labels_of({"a": 3, "b": 1, "c": 7, "x only": 4})
Y_LABELS = labels_of({"c": 2, "y only": 5, "a": 6, "b": 4})


def test_a_step_draws_one_row_of_every_class_from_each_domain():
    order = ClassOrder(X_LABELS, Y_LABELS, None, 0)
    assert order.classes == ["a", "b", "c"] and order.batch_size == 3
    for step in range(20):
        rows = order.indices(step)
        assert rows.shape == (3, 2)
        drawn = [X_LABELS[row] for row in rows[:, 0]]
        assert sorted(drawn) == ["a", "b", "c"]
        assert drawn == [Y_LABELS[row] for row in rows[:, 1]]


def test_every_row_of_a_shared_class_is_drawn_and_equally_often():
    order = ClassOrder(X_LABELS, Y_LABELS, None, 1)
    drawn = np.concatenate([order.indices(step) for step in range(6000)])
    for column, labels in ((0, X_LABELS), (1, Y_LABELS)):
        counts = np.bincount(drawn[:, column], minlength=len(labels))
        for name in set(labels):
            own = counts[[label == name for label in labels]]
            expected = 6000 / len(own) if name in order.classes else 0
            np.testing.assert_allclose(own, expected, rtol=0.12)
    # The two domains are drawn independently: every pair of rows of a class occurs.
    of_a = {(x, y) for x, y in drawn if X_LABELS[x] == "a"}
    assert len(of_a) == 3 * 6


@pytest.mark.parametrize("batch_size", [2, 4, 7])
def test_other_batch_sizes_walk_through_the_classes_in_turn(batch_size):
    order = ClassOrder(X_LABELS, Y_LABELS, batch_size, 0)
    seen = [X_LABELS[row] for step in range(30) for row in order.indices(step)[:, 0]]
    assert all(len(order.indices(step)) == batch_size for step in range(5))
    for start in range(0, len(seen) - 2, 3):
        assert sorted(seen[start : start + 3]) == ["a", "b", "c"]
