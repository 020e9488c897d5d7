"""Pairs in folders, and side by side in one picture (Facades, Maps and your own)."""

from itertools import chain

import numpy as np
import pytest
from class_sources import pair_values, picture
from helpers import built, refusal

from iiae_cli.data.pictures import SEEN

WHOLE = {"valid_fraction": 0, "test_fraction": 0}


def side_by_side(folder, stem, value, size=(8, 16), suffix=".png"):
    """A picture whose left half is `value`, its right half `value` + 1, an odd last column 255."""
    array = np.full((*size, 3), value, np.uint8)
    middle = size[1] // 2
    array[:, middle:] += 1
    array[:, 2 * middle :] = 255
    picture(folder / f"{stem}{suffix}", array)


def in_folders(folder, stem, value):
    """The same pair in folders of its own, suffixes differing."""
    picture(folder / "x" / f"{stem}.png", value)
    picture(folder / "y" / f"{stem}.bmp", value + 1)


# ---- Facades and Maps


def test_facades_keep_their_splits_in_the_order_of_their_numbers(tmp_path):
    for split, numbers in (("train", (1, 2, 10, 100)), ("val", (3,)), ("test", (9, 30))):
        for number in numbers:
            side_by_side(tmp_path / "facades" / split, number, number, size=(256, 513))
    splits = built("facades", tmp_path).splits  # the folder that the archive was unpacked in
    for name, numbers in {"train": (1, 2, 10, 100), "valid": (3,), "test": (9, 30)}.items():
        split = splits[name]
        assert split.x.ids == split.y.ids == [f"{name}/{number}" for number in numbers]
        assert split.x.rows.shape == (len(numbers), 256, 256, 3) and split.pairs is None
        assert (split.x.rows == np.array(numbers)[:, None, None, None]).all()
        assert (split.y.rows == np.array(numbers)[:, None, None, None] + 1).all()


@pytest.mark.parametrize("size", [16, None])
def test_without_a_folder_test_val_of_maps_is_the_test_split(tmp_path, size):
    for number, folder in enumerate(("train", "val")):
        side_by_side(tmp_path / folder, 1, 10 * number)
    splits = built("maps", tmp_path, image_size=size).splits
    assert {name: pair_values(split) for name, split in splits.items()} == {
        "train": [(0, 1)],
        "test": [(10, 11)],
    }
    assert {split.x.rows.shape[1] for split in splits.values()} == {size or 256}


def test_a_source_without_readable_pictures_is_refused(tmp_path, capsys):
    assert "holds nothing that can be read" in refusal(built, "facades", tmp_path).message
    (tmp_path / "train").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "train" / name).write_bytes(b"broken")
    assert "holds nothing that can be read" in refusal(built, "maps", tmp_path).message
    said = capsys.readouterr().err
    assert all(f"{name}: is not a readable" in said for name in ("1.png", "2.png"))


# ---- your own, in folders or side by side

BOTH = pytest.mark.parametrize("write", [in_folders, side_by_side])


@BOTH
def test_splits_are_kept_val_is_valid_and_subfolders_are_part_of_the_name(tmp_path, write):
    for number, name in enumerate(("train/a", "train/cats/b", "val/c")):
        split, _, stem = name.partition("/")
        write(tmp_path / split, stem, 10 * number)
    splits = built("pairs", tmp_path, side_by_side=write is side_by_side).splits
    assert splits["train"].x.ids == splits["train"].y.ids == ["train/a", "train/cats/b"]
    assert pair_values(splits["train"]) == [(0, 1), (10, 11)] and splits["valid"].x.ids == [
        "valid/c"
    ]
    assert splits["train"].x.rows.shape == (2, 8, 8, 3)


@BOTH
def test_pairs_without_splits_are_divided_by_seeded_fractions(tmp_path, write):
    for number in range(20):
        write(tmp_path, number, 10 * number)
    fractions = {"valid_fraction": 0.1, "test_fraction": 0.25}
    drawn = []
    for seed in (0, 0, 1):
        options = {"side_by_side": write is side_by_side, "seed": seed, **fractions}
        splits = built("pairs", tmp_path, **options).splits
        counts = {name: split.pair_count for name, split in splits.items()}
        assert counts == {"train": 13, "valid": 2, "test": 5}
        numbers = [[int(text.partition("/")[2]) for text in s.x.ids] for s in splits.values()]
        assert sorted(chain(*numbers)) == list(range(20))
        for part, split in zip(numbers, splits.values(), strict=True):
            assert pair_values(split) == [(10 * n, 10 * n + 1) for n in part]
        drawn.append(numbers)
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_used_is_named(tmp_path):
    for stem in "abc":
        in_folders(tmp_path / "apart", stem, 10)
        side_by_side(tmp_path / "halves", stem, 10)
    picture(tmp_path / "apart" / "y" / "lone.png")
    side_by_side(tmp_path / "halves", "a", 90, suffix=".bmp")
    side_by_side(tmp_path / "halves", "thin", 10, size=(8, 1))
    for path in ("apart/x/c.png", "halves/c.png"):
        (tmp_path / path).write_bytes(b"broken")
    for workers in (1, 3):
        apart = built("pairs", tmp_path / "apart", **WHOLE, workers=workers)
        assert apart.splits["train"].y.ids == ["train/a", "train/b"]
        lone, broken = apart.skipped
        assert lone.endswith("lone.png: has no partner of the same name")
        assert broken.endswith("x/c.png: is not a readable picture")
    options = {"side_by_side": True, "image_size": 8, **WHOLE}
    side_by_side(tmp_path / "halves", "b", 10, size=(8, 17))
    SEEN.take()
    beside = built("pairs", tmp_path / "halves", **{**options, "image_size": 4})
    said = {"read without an odd last column": 1, "resized to 4×4": 2}
    assert SEEN.take()["changes"] == said
    assert [line.partition(": ")[2] for line in beside.skipped] == [
        f"{tmp_path / 'halves' / 'a.bmp'} has the same stem",
        "is not a readable picture",
        "is one pixel wide",
    ]
    limited = built("pairs", tmp_path / "halves", **options, limit=1)
    assert limited.splits["train"].x.ids == ["train/a"]


def test_the_flag_is_asked_for_and_refused_where_it_is_wrong(tmp_path):
    side_by_side(tmp_path, 1, 10)
    error = refusal(built, "pairs", tmp_path)
    assert error.message == f"{tmp_path} has no folder x/; it holds no folder"
    assert "--side-by-side" in error.hint
    in_folders(tmp_path / "apart" / "train", 1, 10)
    error = refusal(built, "pairs", tmp_path / "apart", side_by_side=True)
    assert "folders of their own" in error.message and "leave out --side-by-side" in error.hint
    error = refusal(built, "pairs", tmp_path / "1.png", side_by_side=True)
    assert "is neither a tar nor a zip archive" in error.message and "folder" in error.hint
