"""Pairs in folders, and pictures that hold a pair side by side: Facades, Maps and your own."""

from itertools import chain

import numpy as np
import pytest
from helpers import built, refusal
from PIL import Image

from iiae_cli.data.datafile import DataFile
from iiae_cli.data.pictures import resize_picture
from iiae_cli.data.sources.plan import PrepareOptions


def side_by_side(folder, stem, value, size=(8, 16), suffix=".png"):
    """A picture whose left half is `value`, its right half `value` + 1, an odd last column 255."""
    array = np.full((*size, 3), value, np.uint8)
    middle = size[1] // 2
    array[:, middle:] += 1
    array[:, 2 * middle :] = 255
    save(folder / f"{stem}{suffix}", array)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def flat(path, value, size=(8, 8)):
    save(path, np.full((*size, 3), value, np.uint8))


def prepared(name, source, **options):
    return built(name, PrepareOptions(source=source, **options))


def values(splits):
    """First values of x and y by split."""
    return {
        name: tuple(side.rows[:, 0, 0, 0].tolist() for side in (split.x, split.y))
        for name, split in splits.items()
    }


def ids(splits):
    for split in splits.values():
        assert split.x.ids == split.y.ids and split.pairs is None
    return {name: split.x.ids for name, split in splits.items()}


# ---- Facades and Maps


def test_facades_keep_their_splits_in_the_order_of_their_numbers(tmp_path):
    for split, numbers in (("train", (1, 2, 10, 100)), ("val", (3,)), ("test", (9, 30))):
        for number in numbers:
            side_by_side(tmp_path / "facades" / split, number, number, size=(256, 513))
    splits = prepared("facades", tmp_path).splits  # the folder that the archive was unpacked in
    assert ids(splits) == {
        "train": ["train/1", "train/2", "train/10", "train/100"],
        "valid": ["valid/3"],
        "test": ["test/9", "test/30"],
    }
    for split in splits.values():
        numbers = np.array([int(name.partition("/")[2]) for name in split.x.ids])
        assert split.x.rows.shape == split.y.rows.shape == (len(numbers), 256, 256, 3)
        assert (split.x.rows == numbers[:, None, None, None]).all()
        assert (split.y.rows == numbers[:, None, None, None] + 1).all()


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (("train", "val"), ("train", "test")),
        (("train", "test"), ("train", "test")),
        (("train", "val", "test"), ("train", "valid", "test")),
    ],
)
def test_either_folder_of_maps_is_the_test_split(tmp_path, folders, wanted):
    for number, folder in enumerate(folders):
        side_by_side(tmp_path / folder, 1, 10 * number)
    found = values(prepared("maps", tmp_path, image_size=16).splits)
    assert found == {name: ([10 * number], [10 * number + 1]) for number, name in enumerate(wanted)}


def test_maps_are_stored_at_256_by_exact_area_unless_asked_otherwise(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (60, 120, 3)).astype(np.uint8)
    original = small.repeat(10, 0).repeat(10, 1)
    save(tmp_path / "train" / "1.png", original)
    default, native = (
        prepared("maps", tmp_path, image_size=size).splits["train"] for size in (None, 600)
    )
    for domain, half in zip("xy", (original[:, :600], original[:, 600:]), strict=True):
        expected = np.asarray(resize_picture(Image.fromarray(half), (256, 256)))
        np.testing.assert_array_equal(default.side(domain).rows[0], expected)
        np.testing.assert_array_equal(native.side(domain).rows[0], half)


@pytest.mark.parametrize("name", ["facades", "maps"])
def test_the_source_must_be_named_and_hold_pictures(tmp_path, name):
    assert f"iiae prepare {name} SOURCE" in refusal(prepared, name, None).hint
    assert refusal(prepared, name, tmp_path / "none").message.endswith("none does not exist")
    assert "holds nothing that can be read" in refusal(prepared, name, tmp_path).message
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(b"broken")
    assert "1.png" in refusal(prepared, name, tmp_path).hint


# ---- your own


@pytest.mark.parametrize("apart", [False, True])
def test_splits_are_kept_val_is_valid_and_subfolders_are_part_of_the_name(tmp_path, apart):
    for number, name in enumerate(("train/a", "train/cats/b", "val/c")):
        split, _, stem = name.partition("/")
        if apart:
            flat(tmp_path / split / "x" / f"{stem}.png", 10 * number)
            flat(tmp_path / split / "y" / f"{stem}.bmp", 10 * number + 1)
        else:
            side_by_side(tmp_path / split, stem.replace("cats/", ""), 10 * number) if (
                "cats" not in stem
            ) else side_by_side(tmp_path / split / "cats", "b", 10 * number)
    splits = prepared("pairs", tmp_path, side_by_side=not apart).splits
    assert ids(splits) == {"train": ["train/a", "train/cats/b"], "valid": ["valid/c"]}
    assert values(splits) == {"train": ([0, 10], [1, 11]), "valid": ([20], [21])}
    assert splits["train"].x.rows.shape == (2, 8, 8, 3)


@pytest.mark.parametrize("apart", [False, True])
def test_pairs_without_splits_are_divided_by_seeded_fractions(tmp_path, apart):
    for number in range(20):
        if apart:
            for offset, domain in enumerate("xy"):
                flat(tmp_path / domain / f"{number}.png", 10 * number + offset)
        else:
            side_by_side(tmp_path, number, 10 * number)
    options = {"side_by_side": not apart, "valid_fraction": 0.1, "test_fraction": 0.25}
    found = {}
    for seed in (0, 0, 1):
        splits = prepared("pairs", tmp_path, seed=seed, **options).splits
        numbers = {
            name: [int(text.partition("/")[2]) for text in texts]
            for name, texts in ids(splits).items()
        }
        assert {name: len(part) for name, part in numbers.items()} == {
            "train": 13,
            "valid": 2,
            "test": 5,
        }
        assert sorted(chain.from_iterable(numbers.values())) == list(range(20))
        assert values(splits) == {
            name: ([10 * n for n in part], [10 * n + 1 for n in part])
            for name, part in numbers.items()
        }
        assert found.setdefault(seed, numbers) == numbers
    assert found[0] != found[1]


def test_pictures_of_several_sizes_become_256(tmp_path):
    side_by_side(tmp_path / "train", 1, 10)
    side_by_side(tmp_path / "test", 2, 20, size=(8, 20))
    for size, side in ((None, 256), (16, 16)):
        splits = prepared("pairs", tmp_path, side_by_side=True, image_size=size).splits
        assert splits["test"].y.rows.shape == (1, side, side, 3)


def test_what_cannot_be_used_is_named_with_its_partner(tmp_path):
    for stem in "abc":
        for domain in "xy":
            flat(tmp_path / "train" / domain / f"{stem}.png", 10)
            side_by_side(tmp_path / "halves", stem, 10)
    flat(tmp_path / "train" / "x" / "a.bmp", 90)
    flat(tmp_path / "train" / "y" / "lone.png", 90)
    side_by_side(tmp_path / "halves", "a", 90, suffix=".bmp")
    side_by_side(tmp_path / "halves", "thin", 10, size=(8, 1))
    for path in ("train/x/c.png", "halves/c.png"):
        (tmp_path / path).write_bytes(b"broken")
    for workers in (1, 3):
        apart = prepared(
            "pairs", tmp_path / "train", valid_fraction=0, test_fraction=0, workers=workers
        )
        assert apart.splits["train"].x.ids == ["train/a", "train/b"]
        same, lone, broken = apart.skipped
        assert "a.png: a.bmp has the same stem" in same and "lone.png: has no partner" in lone
        assert broken.endswith("x/c.png: is not a readable picture")
    options = {"side_by_side": True, "valid_fraction": 0, "test_fraction": 0, "image_size": 8}
    beside = prepared("pairs", tmp_path / "halves", **options)
    assert [line.partition(": ")[2] for line in beside.skipped] == [
        "a.bmp has the same stem",
        "is not a readable picture",
        "is one pixel wide",
    ]
    limited = prepared("pairs", tmp_path / "halves", **options, limit=1)
    assert limited.splits["train"].x.ids == ["train/a"]


def test_the_flag_is_asked_for_and_refused_where_it_is_wrong(tmp_path):
    assert "--side-by-side" not in refusal(prepared, "pairs", tmp_path).hint
    side_by_side(tmp_path, 1, 10)
    error = refusal(prepared, "pairs", tmp_path)
    assert error.message == f"{tmp_path} has no folder x/" and "--side-by-side" in error.hint
    for domain in "xy":
        side_by_side(tmp_path / "apart" / "train" / domain, 1, 10)
    error = refusal(prepared, "pairs", tmp_path / "apart", side_by_side=True)
    assert "folders of their own" in error.message and "leave out --side-by-side" in error.hint
    error = refusal(prepared, "pairs", tmp_path / "1.png", side_by_side=True)
    assert "is neither a tar nor a zip archive" in error.message and "folder" in error.hint
    assert "does not apply" in refusal(prepared, "digits-cdcb", None, side_by_side=True).message


def test_the_program_prepares_maps_and_says_what_it_left_out(iiae, tmp_path):
    for folder in ("train", "val"):
        for number in (1, 2):
            side_by_side(tmp_path / "maps" / folder, number, 10 * number, suffix=".jpg")
    (tmp_path / "maps" / "val" / "1.jpg").write_bytes(b"broken")
    done = iiae("prepare", "maps", "maps", "-o", "maps.h5", "--json")
    assert done.code == 3 and done.json["splits"] == {"train": 2, "valid": 0, "test": 1}
    assert "1.jpg: is not a readable picture" in done.err
    assert DataFile(tmp_path / "maps.h5").info.shape_x == (256, 256, 3)
