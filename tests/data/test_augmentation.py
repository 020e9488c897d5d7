"""Augmentation: a function of (seed, step); shared geometry, own colours."""

import pytest
import torch
import torch.nn.functional as F

from iiae_cli.data.batches import CAST, CONTRAST, LIGHT, SHIFT, TINT, Augmentation

PARTS = {"geometric": 1.0, "flip": 0.5, "photometric": 1.0}


def smooth(count=8, side=32, seed=0):
    """Smooth random pictures (B, 3, H, W) in [−1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=draw) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)


def test_off_by_default_and_then_changes_nothing():
    x, y = smooth(seed=1), smooth(seed=2)
    nothing = Augmentation()
    assert not nothing.active
    assert all(torch.equal(*pair) for pair in zip(nothing(x, y, 0, 0), (x, y), strict=True))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_changes_pictures_as_seed_and_step_say(part):
    x, y = smooth(seed=1), smooth(seed=2)
    augmentation = Augmentation(**{part: PARTS[part]})
    assert augmentation.active
    first, again = augmentation(x, y, 3, 7), augmentation(x, y, 3, 7)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    for seed, step in ((3, 8), (4, 7)):
        assert not torch.equal(first[0], augmentation(x, y, seed, step)[0])
    for changed, given in zip(first, (x, y), strict=True):
        assert changed.shape == given.shape and not torch.equal(changed, given)
        assert changed.min() >= -1 and changed.max() <= 1


def test_the_global_generator_is_neither_read_nor_moved():
    x = smooth()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = Augmentation(**PARTS)(x, x, 0, 0)[0]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(Augmentation(**PARTS)(x, x, 0, 0)[0], first)


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
        assert abs(torch.tensor(gain).log()) <= CONTRAST + TINT and abs(offset) <= LIGHT + CAST


def test_a_shift_moves_content_by_no_more_than_it_says():
    dot = torch.full((64, 1, 33, 33), -1.0)
    dot[:, :, 16, 16] = 1.0
    moved = Augmentation(geometric=1.0)(dot, dot, 0, 0)[0] + 1.0
    places = torch.arange(33.0) - 16
    mass = moved.sum(dim=(1, 2, 3))
    for axis in (2, 3):
        shift = (moved.sum(dim=(1, 5 - axis)) * places).sum(dim=1) / mass
        assert 1.0 < shift.abs().max() <= SHIFT / 2 * 33 * 1.17 + 1
