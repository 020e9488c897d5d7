"""Rows as network inputs and back, the order of pairs and rows of classes, and augmentation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from class_sources import noise

from iiae_cli.data import batches
from iiae_cli.data.batches import Augmentation, ClassOrder, PairOrder, to_inputs, to_pictures

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


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


@pytest.mark.parametrize("batch_size", [None, 2, 4, 7])
def test_steps_walk_through_the_classes_in_turn(batch_size):
    order = ClassOrder(X_LABELS, Y_LABELS, batch_size, 0)
    rows = [order.indices(step) for step in range(30)]
    assert {drawn.shape for drawn in rows} == {(batch_size or 3, 2)}
    seen = [X_LABELS[row] for row in np.concatenate(rows)[:, 0]]
    assert seen == [Y_LABELS[row] for row in np.concatenate(rows)[:, 1]]
    for start in range(0, len(seen) - 2, 3):
        assert sorted(seen[start : start + 3]) == ["a", "b", "c"]


# ---- augmentation: a function of (seed, step); shared geometry, own colours

PARTS = {"geometric": 1.0, "flip": 0.5, "photometric": 1.0}


def smooth(count=8, side=32, seed=0):
    """Smooth random pictures (B, 3, H, W) in [−1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=draw) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_changes_pictures_as_seed_and_step_say(part):
    x, y = smooth(seed=1), smooth(seed=2)
    augmentation = Augmentation(**{part: PARTS[part]})
    assert augmentation.active and not Augmentation().active
    first, state = augmentation(x, y, 3, 7), torch.get_rng_state()
    torch.rand(3)  # the global generator is neither read
    moved, again = torch.get_rng_state(), augmentation(x, y, 3, 7)
    assert torch.equal(torch.get_rng_state(), moved) and not torch.equal(state, moved)  # nor moved
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    for seed, step in ((3, 8), (4, 7)):
        assert not torch.equal(first[0], augmentation(x, y, seed, step)[0])
    for changed, given in zip(first, (x, y), strict=True):
        assert changed.shape == given.shape and not torch.equal(changed, given)
        assert changed.min() >= -1 and changed.max() <= 1


def test_geometry_is_shared_by_a_pair_unless_it_is_drawn_apart():
    x = smooth()
    assert torch.equal(*Augmentation(geometric=1.0, flip=0.5)(x, x, 0, 0))
    first, second = Augmentation(geometric=1.0, apart=True)(x, x, 0, 0)
    assert torch.equal(first, Augmentation(geometric=1.0)(x, x, 0, 0)[0])
    assert (first - second).abs().flatten(1).amax(dim=1).min() > 0.05


def test_flipping_mirrors_both_pictures_of_about_so_many_pairs():
    x, y = smooth(400, 16, 1), smooth(400, 16, 2)
    changed_x, changed_y = Augmentation(flip=0.25)(x, y, 0, 0)
    flipped = (changed_x - x.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    kept = (changed_x - x).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((flipped ^ kept).all()) and 0.15 < float(flipped.float().mean()) < 0.35
    torch.testing.assert_close(changed_y[flipped], y.flip(-1)[flipped], atol=1e-5, rtol=0)


def test_photometry_is_one_line_per_channel_and_each_pictures_own():
    x = 0.1 * smooth()  # far from the clamp
    changed, other = Augmentation(photometric=1.0)(x, x, 0, 0)
    assert (changed - other).abs().mean() > 0.01
    for before, after in zip(x.flatten(0, 1), changed.flatten(0, 1), strict=True):
        centred = before.flatten() - before.mean()
        gain = float((centred @ (after.flatten() - after.mean())) / (centred @ centred))
        offset = float(after.mean() - gain * before.mean())
        torch.testing.assert_close(after, gain * before + offset, atol=1e-5, rtol=0)
        assert abs(torch.tensor(gain).log()) <= batches.CONTRAST + batches.TINT
        assert abs(offset) <= batches.LIGHT + batches.CAST


def test_a_shift_moves_content_by_no_more_than_it_says():
    dot = torch.full((64, 1, 33, 33), -1.0)
    dot[:, :, 16, 16] = 1.0
    moved = Augmentation(geometric=1.0)(dot, dot, 0, 0)[0] + 1.0
    places = torch.arange(33.0) - 16
    mass = moved.sum(dim=(1, 2, 3))
    for axis in (2, 3):
        shift = (moved.sum(dim=(1, 5 - axis)) * places).sum(dim=1) / mass
        assert 1.0 < shift.abs().max() <= batches.SHIFT / 2 * 33 * 1.17 + 1
