"""Facades, Maps and your own pictures that hold a pair side by side."""

from itertools import chain

import numpy as np
import pytest
from helpers import built
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.resize import resize_picture
from iiae_cli.data.sources.plan import PrepareOptions


def picture(folder, stem, value, size=(8, 16), suffix=".png"):
    """A picture whose left half is `value`, whose right half is `value` + 1; an odd column at the end is 255."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.full((*size, 3), value, np.uint8)
    middle = size[1] // 2
    array[:, middle:] += 1
    array[:, 2 * middle :] = 255
    Image.fromarray(array).save(folder / f"{stem}{suffix}")


def prepared(name, source, **options):
    return built(name, PrepareOptions(source=source, **options))


def of(name, source, **options):
    return prepared(name, source, **options).splits


def refusal(*arguments, **options):
    with pytest.raises(IiaeError) as caught:
        prepared(*arguments, **options)
    return caught.value.message, caught.value.hint


def ids(splits):
    return {name: split.x.ids for name, split in splits.items()}


def values(split):
    return split.x.rows[:, 0, 0, 0].tolist(), split.y.rows[:, 0, 0, 0].tolist()


# ---- Facades and Maps


def test_facades_keep_their_splits_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "facades"
    for split, numbers in (("train", (1, 2, 10, 100)), ("val", (3, 20)), ("test", (9, 30))):
        for number in numbers:
            picture(folder / split, number, number, size=(256, 512))
    splits = of("facades", folder)
    assert ids(splits) == {
        "train": ["train/1", "train/2", "train/10", "train/100"],
        "valid": ["valid/3", "valid/20"],
        "test": ["test/9", "test/30"],
    }
    for split in splits.values():
        assert split.x.rows.shape == split.y.rows.shape == (len(split.x.ids), 256, 256, 3)
        assert split.y.ids == split.x.ids and split.pairs is None
        numbers = [int(one.partition("/")[2]) for one in split.x.ids]
        assert (split.x.rows == np.array(numbers)[:, None, None, None]).all()
        assert (split.y.rows == np.array(numbers)[:, None, None, None] + 1).all()
    # The folder that the archive was unpacked in does as well.
    assert ids(of("facades", tmp_path)) == ids(splits)


@pytest.mark.parametrize("test_folder", ["val", "test"])
def test_either_folder_of_maps_is_the_test_split(tmp_path, test_folder):
    picture(tmp_path / "train", 1, 10)
    picture(tmp_path / test_folder, 1, 20)
    assert ids(of("maps", tmp_path)) == {"train": ["train/1"], "test": ["test/1"]}


def test_maps_with_both_folders_have_a_valid_split(tmp_path):
    for folder, value in (("train", 10), ("val", 20), ("test", 30)):
        picture(tmp_path / folder, 1, value)
    splits = of("maps", tmp_path)
    assert {name: values(split) for name, split in splits.items()} == {
        "train": ([10], [11]),
        "valid": ([20], [21]),
        "test": ([30], [31]),
    }


def test_maps_are_stored_at_256_by_exact_area_unless_asked_otherwise(tmp_path):
    original = (
        np.random.default_rng(0)
        .integers(0, 256, (60, 120, 3))
        .repeat(10, 0)
        .repeat(10, 1)
        .astype(np.uint8)
    )
    (tmp_path / "train").mkdir()
    Image.fromarray(original).save(tmp_path / "train" / "1.png")
    halves = original[:, :600], original[:, 600:]
    split, native = of("maps", tmp_path)["train"], of("maps", tmp_path, image_size=600)["train"]
    for domain, half in zip("xy", halves, strict=True):
        expected = np.asarray(resize_picture(Image.fromarray(half), (256, 256)))
        np.testing.assert_array_equal(split.side(domain).rows[0], expected)
        np.testing.assert_array_equal(native.side(domain).rows[0], half)


def test_limit_and_threads(tmp_path):
    for number in range(12):
        picture(tmp_path / "train", number, 10 * number)
    (tmp_path / "train" / "3.png").write_bytes(b"broken")
    one, three = (prepared("maps", tmp_path, workers=workers, image_size=16) for workers in (1, 3))
    assert one.skipped == three.skipped and len(one.skipped) == 1
    assert ids(one.splits) == ids(three.splits)
    np.testing.assert_array_equal(one.splits["train"].y.rows, three.splits["train"].y.rows)
    assert of("maps", tmp_path, limit=2)["train"].x.ids == ["train/0", "train/1"]


def test_the_last_column_of_an_odd_width_belongs_to_neither_half(tmp_path):
    picture(tmp_path / "train", 1, 10, size=(16, 33))
    split = of("facades", tmp_path, image_size=16)["train"]
    assert (split.x.rows == 10).all() and (split.y.rows == 11).all()


@pytest.mark.parametrize("name", ["facades", "maps"])
def test_the_source_must_be_named_and_hold_pictures(tmp_path, name):
    message, hint = refusal(name, None)
    assert (
        message == f"the source of {name} was not named" and f"iiae prepare {name} SOURCE" in hint
    )
    assert refusal(name, tmp_path / "none")[0] == f"{tmp_path / 'none'} does not exist"
    assert "holds no readable side-by-side pictures" in refusal(name, tmp_path)[0]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(b"broken")
    message, hint = refusal(name, tmp_path)
    assert "holds no readable side-by-side pictures" in message and "1.png" in hint


# ---- your own


def test_your_own_splits_are_kept_and_val_is_valid(tmp_path):
    picture(tmp_path / "train", "a", 10)
    picture(tmp_path / "train" / "cats", "b", 20, suffix=".bmp")
    picture(tmp_path / "val", "c", 30)
    splits = of("pairs", tmp_path, side_by_side=True)
    assert ids(splits) == {"train": ["train/a", "train/cats/b"], "valid": ["valid/c"]}
    assert splits["train"].x.rows.shape == (2, 8, 8, 3)


def test_your_own_without_splits_are_divided_by_seeded_fractions(tmp_path):
    for number in range(20):
        picture(tmp_path, number, 10 * number)
    found = {}
    for seed in (0, 0, 1):
        splits = of("pairs", tmp_path, side_by_side=True, fractions=(0.1, 0.25), seed=seed)
        assert {name: len(split.x) for name, split in splits.items()} == {
            "train": 13,
            "valid": 2,
            "test": 5,
        }
        numbers = {
            name: [int(one.partition("/")[2]) for one in split.x.ids]
            for name, split in splits.items()
        }
        assert sorted(chain.from_iterable(numbers.values())) == list(range(20))
        for name, split in splits.items():
            assert values(split) == (
                [10 * n for n in numbers[name]],
                [10 * n + 1 for n in numbers[name]],
            )
        assert found.setdefault(seed, numbers) == numbers
    assert found[0] != found[1]


def test_halves_of_several_sizes_become_256(tmp_path):
    picture(tmp_path / "train", 1, 10)
    picture(tmp_path / "test", 2, 20, size=(8, 20))
    assert of("pairs", tmp_path, side_by_side=True)["train"].x.rows.shape == (1, 256, 256, 3)
    assert of("pairs", tmp_path, side_by_side=True, image_size=16)["test"].y.rows.shape == (
        1,
        16,
        16,
        3,
    )


def test_what_cannot_be_used_is_named(tmp_path):
    for stem in "ab":
        picture(tmp_path / "train", stem, 10)
    picture(tmp_path / "train", "a", 90, suffix=".bmp")
    picture(tmp_path / "train", "thin", 10, size=(8, 1))
    (tmp_path / "train" / "c.png").write_bytes(b"broken")
    done = prepared("pairs", tmp_path, side_by_side=True)
    assert done.splits["train"].x.ids == ["train/a", "train/b"] and len(done.skipped) == 3
    same, damaged, thin = done.skipped
    assert "a.png: a.bmp has the same stem" in same
    assert "c.png: is not a readable picture" in damaged and "thin.png: is one pixel wide" in thin


def test_the_flag_is_asked_for_and_refused_where_it_is_wrong(tmp_path):
    picture(tmp_path, 1, 10)
    message, hint = refusal("pairs", tmp_path)
    assert message == f"{tmp_path} has no folder x/" and "--side-by-side" in hint
    picture(tmp_path / "own" / "train", 1, 10)
    message, hint = refusal("pairs", tmp_path / "own")
    assert message == f"{tmp_path / 'own' / 'train'} has no folder x/" and "--side-by-side" in hint
    for domain in "xy":
        picture(tmp_path / "apart" / "train" / domain, 1, 10)
    message, hint = refusal("pairs", tmp_path / "apart", side_by_side=True)
    assert "folders of their own" in message and "leave out --side-by-side" in hint
    message, _ = refusal("pairs", tmp_path / "1.png", side_by_side=True)
    assert "is no folder of side-by-side pictures" in message


def test_a_folder_without_pictures_is_not_told_of_the_flag(tmp_path):
    assert "--side-by-side" not in refusal("pairs", tmp_path)[1]


# ---- the program


def test_the_program_prepares_maps_and_says_what_it_left_out(iiae, tmp_path):
    for folder in ("train", "val"):
        for number in (1, 2):
            picture(tmp_path / "maps" / folder, number, 10 * number, suffix=".jpg")
    done = iiae("prepare", "maps", "maps", "-o", "maps.h5", "--json")
    assert done.code == 0 and done.json["splits"] == {"train": 2, "valid": 0, "test": 2}
    assert DataFile(tmp_path / "maps.h5").info.shape_x == (256, 256, 3)
    (tmp_path / "maps" / "val" / "1.jpg").write_bytes(b"broken")
    done = iiae("prepare", "maps", "maps", "-o", "maps.h5", "--overwrite", "--json")
    assert done.code == 3 and done.json["splits"] == {"train": 2, "valid": 0, "test": 1}
    assert "1.jpg: is not a readable picture" in done.err


def test_the_program_prepares_facades_and_your_own(iiae, tmp_path):
    picture(tmp_path / "facades" / "train", 1, 10)
    assert iiae("prepare", "facades", "facades", "-o", "facades.h5").code == 0
    assert iiae("prepare", "pairs", "facades", "--side-by-side", "-o", "mine.h5").code == 0
    assert DataFile(tmp_path / "facades.h5").info.shape_x == (256, 256, 3)
    assert DataFile(tmp_path / "mine.h5").info.shape_x == (8, 8, 3)
    _, hint = iiae("prepare", "pairs", "facades", "-o", "other.h5").error()
    assert "--side-by-side" in hint


def test_the_flag_is_refused_where_it_means_nothing(iiae):
    error, hint = iiae("prepare", "digits-cdcb", "--side-by-side").error()
    assert (
        error == "error: --side-by-side does not apply to digits-cdcb"
        and "iiae prepare pairs" in hint
    )
