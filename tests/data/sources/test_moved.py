"""Sets whose content moves: what the views share, what each draws, and what the factors say."""

import numpy as np
import pytest
from class_sources import idx_bytes
from helpers import built

from iiae_cli.data.sources import moved
from iiae_cli.data.sources.cdcb import IDX_FILES
from iiae_cli.data.sources.moved import draw_moved, draw_quadrant, pair_instances


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def mnist(tmp_path):
    """A folder of IDX files: digit d is a square of 4 + 2d pixels in its corner."""
    for name, count in zip(IDX_FILES[::2], (400, 100), strict=True):
        labels = np.arange(count, dtype=np.uint8) % 10
        digits = np.zeros((count, 28, 28), np.uint8)
        for digit, label in zip(digits, labels, strict=True):
            digit[: 4 + 2 * label, : 4 + 2 * label] = 255
        (tmp_path / name).write_bytes(idx_bytes(digits))
        (tmp_path / name.replace("images-idx3", "labels-idx1")).write_bytes(idx_bytes(labels))
    return tmp_path


def area(pictures):
    """Pixels of ink: light in x."""
    return (pictures.min(axis=3) > 200).sum(axis=(1, 2))


def test_quadrants_hold_two_digits_of_a_class_and_their_factors(mnist, monkeypatch):
    monkeypatch.setattr("iiae_cli.data.sources.cdcb.TRAIN_IDX", 300)
    monkeypatch.setattr(moved, "COUNTS", {"train": 120, "valid": 20, "test": 30})
    splits = built("mnist-quadrants", mnist, seed=3).splits
    assert {name: len(split.x) for name, split in splits.items()} == moved.COUNTS
    train = splits["train"]
    assert train.x.labels == train.y.labels == list(map(str, train.factors["class"]))
    expected = (4 + 2 * train.factors["class"]) ** 2
    np.testing.assert_array_equal(area(train.x.rows), expected)
    np.testing.assert_array_equal(area(255 - train.y.rows), expected)
    for name in ("quadrant", "ground"):
        assert not np.array_equal(train.factors[f"x_{name}"], train.factors[f"y_{name}"])
    again = built("mnist-quadrants", mnist, seed=3, limit=8).splits
    np.testing.assert_array_equal(again["train"].factors["class"], train.factors["class"][:8])


def test_ink_lies_in_the_quadrant_that_the_factor_names():
    digits = np.full((64, 28, 28), 255, np.uint8)
    pictures, factors = draw_quadrant("x", digits, rng())
    light = pictures.min(axis=3) > 200
    for picture, quadrant in zip(light, factors["quadrant"], strict=True):
        down, across = divmod(int(quadrant), 2)
        half = picture[32 * down : 32 * down + 32, 32 * across : 32 * across + 32]
        assert half.sum() == picture.sum() == 28 * 28
    assert set(factors["quadrant"]) == {0, 1, 2, 3}


@pytest.mark.parametrize("domain", ["x", "y"])
def test_grounds_have_the_colour_that_the_factor_names_and_differ(domain):
    pictures, factors = draw_quadrant(domain, np.zeros((50, 28, 28), np.uint8), rng())
    mean = pictures.astype(float).mean(axis=(1, 2))
    assert np.abs(mean - factors["ground"]).max() < 10
    assert pictures.std(axis=(1, 2)).min() > 5  # textured
    assert (mean.max() < 150) if domain == "x" else (mean.min() > 105)


def test_partners_are_of_one_class_and_no_row_is_in_two_pairs():
    labels = rng(1).integers(0, 10, 500)
    x, y = pair_instances(labels, rng(), same=False).T
    np.testing.assert_array_equal(labels[x], labels[y])
    assert len({*x, *y}) == 2 * len(x) > 480
    same_x, same_y = pair_instances(labels, rng(), same=True).T
    np.testing.assert_array_equal(same_x, same_y)
    assert len({*same_x}) == 500


def test_a_moved_digit_lies_where_and_as_its_factors_say():
    digits = np.zeros((40, 32, 32), np.uint8)
    digits[:, 4:28, 12:20] = 255  # upright
    pictures, factors = draw_moved("x", digits, rng())
    ink = (pictures[..., 0] - 25.5) / 204
    place, angles = np.arange(32) - 15.5, []
    for row, picture in enumerate(ink):
        mass = picture.sum()
        centre = np.array([picture.sum(1) @ place, picture.sum(0) @ place]) / mass
        np.testing.assert_allclose(centre, 32 * factors["shift"][row], atol=0.5)
        assert mass == pytest.approx(24 * 8 * factors["scale"][row] ** 2, rel=0.2)
        down, across = np.meshgrid(place - centre[0], place - centre[1], indexing="ij")
        tilt = 2 * (picture * down * across).sum()
        angles.append(0.5 * np.arctan2(tilt, (picture * (down**2 - across**2)).sum()))
    assert np.corrcoef(angles, factors["rotation"])[0, 1] > 0.9  # from down to right


def test_the_embedded_set_shows_one_digit_in_both_views():
    splits = built("digits-moved", limit=20).splits
    assert list(splits) == ["train", "test"]
    assert {split.x.rows.shape for split in splits.values()} == {(20, 32, 32, 1)}
    test = splits["test"]
    assert test.x.labels == list(map(str, test.factors["class"]))
    assert {*test.factors} == {"class"} | {
        f"{domain}_{name}" for domain in "xy" for name in ("shift", "scale", "rotation")
    }


def test_three_features_are_drawn_apart_and_only_the_shape_is_shared():
    split = built("trifeature", limit=300, image_size=48).splits["train"]
    assert split.x.rows.shape == (300, 48, 48, 3)
    columns = np.stack(
        [split.factors[f"{d}_{name}"] for d in "xy" for name in ("texture", "color")]
        + [split.factors["class"]]
    )
    assert all(len(set(column)) == 10 for column in columns)
    assert np.abs(np.corrcoef(columns) - np.eye(5)).max() < 0.25
