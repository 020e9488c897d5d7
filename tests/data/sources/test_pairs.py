"""Pairs in folders, side by side in one picture (Facades, Maps and your own), and in tables."""

from itertools import chain

import numpy as np
import pytest
from helpers import built, refusal
from PIL import Image

from iiae_cli.common.files import sha256_of
from iiae_cli.data.seen import SEEN
from iiae_cli.data.sources.plan import PrepareOptions

WHOLE = {"valid_fraction": 0, "test_fraction": 0}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def side_by_side(folder, stem, value, size=(8, 16), suffix=".png"):
    """A picture whose left half is `value`, its right half `value` + 1, an odd last column 255."""
    array = np.full((*size, 3), value, np.uint8)
    middle = size[1] // 2
    array[:, middle:] += 1
    array[:, 2 * middle :] = 255
    save(folder / f"{stem}{suffix}", array)


def in_folders(folder, stem, value):
    """The same pair in folders of its own, suffixes differing."""
    for offset, (domain, suffix) in enumerate((("x", ".png"), ("y", ".bmp"))):
        array = np.full((8, 8, 3), value + offset, np.uint8)
        save(folder / domain / f"{stem}{suffix}", array)


def prepared(name, source, **options):
    return built(name, PrepareOptions(source=source, **options))


def values(split):
    pairs = split.take_pairs(np.arange(split.pair_count))
    x, y = (side.rows[:, 0, 0, 0].tolist() for side in (pairs.x, pairs.y))
    return list(zip(x, y, strict=True))


# ---- Facades and Maps


def test_facades_keep_their_splits_in_the_order_of_their_numbers(tmp_path):
    for split, numbers in (("train", (1, 2, 10, 100)), ("val", (3,)), ("test", (9, 30))):
        for number in numbers:
            side_by_side(tmp_path / "facades" / split, number, number, size=(256, 513))
    splits = prepared("facades", tmp_path).splits  # the folder that the archive was unpacked in
    wanted = {"train": (1, 2, 10, 100), "valid": (3,), "test": (9, 30)}
    for name, numbers in wanted.items():
        split = splits[name]
        assert split.x.ids == split.y.ids == [f"{name}/{number}" for number in numbers]
        assert split.x.rows.shape == (len(numbers), 256, 256, 3) and split.pairs is None
        assert (split.x.rows == np.array(numbers)[:, None, None, None]).all()
        assert (split.y.rows == np.array(numbers)[:, None, None, None] + 1).all()


@pytest.mark.parametrize("size", [16, None])
def test_without_a_folder_test_val_of_maps_is_the_test_split(tmp_path, size):
    for number, folder in enumerate(("train", "val")):
        side_by_side(tmp_path / folder, 1, 10 * number)
    splits = prepared("maps", tmp_path, image_size=size).splits
    assert {name: values(split) for name, split in splits.items()} == {
        "train": [(0, 1)],
        "test": [(10, 11)],
    }
    assert {split.x.rows.shape[1] for split in splits.values()} == {size or 256}


def test_a_source_without_readable_pictures_is_refused(tmp_path, capsys):
    assert "holds nothing that can be read" in refusal(prepared, "facades", tmp_path).message
    (tmp_path / "train").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "train" / name).write_bytes(b"broken")
    assert "holds nothing that can be read" in refusal(prepared, "maps", tmp_path).message
    said = capsys.readouterr().err
    assert all(f"{name}: is not a readable" in said for name in ("1.png", "2.png"))


# ---- your own, in folders or side by side

BOTH = pytest.mark.parametrize("write", [in_folders, side_by_side])


@BOTH
def test_splits_are_kept_val_is_valid_and_subfolders_are_part_of_the_name(tmp_path, write):
    for number, name in enumerate(("train/a", "train/cats/b", "val/c")):
        split, _, stem = name.partition("/")
        write(tmp_path / split, stem, 10 * number)
    splits = prepared("pairs", tmp_path, side_by_side=write is side_by_side).splits
    assert splits["train"].x.ids == splits["train"].y.ids == ["train/a", "train/cats/b"]
    assert values(splits["train"]) == [(0, 1), (10, 11)] and splits["valid"].x.ids == ["valid/c"]
    assert splits["train"].x.rows.shape == (2, 8, 8, 3)


@BOTH
def test_pairs_without_splits_are_divided_by_seeded_fractions(tmp_path, write):
    for number in range(20):
        write(tmp_path, number, 10 * number)
    fractions = {"valid_fraction": 0.1, "test_fraction": 0.25}
    drawn = []
    for seed in (0, 0, 1):
        options = {"side_by_side": write is side_by_side, "seed": seed, **fractions}
        splits = prepared("pairs", tmp_path, **options).splits
        counts = {name: split.pair_count for name, split in splits.items()}
        assert counts == {"train": 13, "valid": 2, "test": 5}
        numbers = [[int(text.partition("/")[2]) for text in s.x.ids] for s in splits.values()]
        assert sorted(chain(*numbers)) == list(range(20))
        for part, split in zip(numbers, splits.values(), strict=True):
            assert values(split) == [(10 * n, 10 * n + 1) for n in part]
        drawn.append(numbers)
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_used_is_named(tmp_path):
    for stem in "abc":
        in_folders(tmp_path / "apart", stem, 10)
        side_by_side(tmp_path / "halves", stem, 10)
    save(tmp_path / "apart" / "y" / "lone.png", np.zeros((8, 8, 3), np.uint8))
    side_by_side(tmp_path / "halves", "a", 90, suffix=".bmp")
    side_by_side(tmp_path / "halves", "thin", 10, size=(8, 1))
    for path in ("apart/x/c.png", "halves/c.png"):
        (tmp_path / path).write_bytes(b"broken")
    for workers in (1, 3):
        apart = prepared("pairs", tmp_path / "apart", **WHOLE, workers=workers)
        assert apart.splits["train"].y.ids == ["train/a", "train/b"]
        lone, broken = apart.skipped
        assert lone.endswith("lone.png: has no partner")
        assert broken.endswith("x/c.png: is not a readable picture")
    options = {"side_by_side": True, "image_size": 8, **WHOLE}
    side_by_side(tmp_path / "halves", "b", 10, size=(8, 17))
    SEEN.clear()
    beside = prepared("pairs", tmp_path / "halves", **{**options, "image_size": 4})
    said = {"read without an odd last column": 1, "resized to 4×4": 2}
    assert SEEN.take()["changes"] == said
    assert [line.partition(": ")[2] for line in beside.skipped] == [
        f"{tmp_path / 'halves' / 'a.bmp'} has the same stem",
        "is not a readable picture",
        "is one pixel wide",
    ]
    limited = prepared("pairs", tmp_path / "halves", **options, limit=1)
    assert limited.splits["train"].x.ids == ["train/a"]


def test_the_flag_is_asked_for_and_refused_where_it_is_wrong(tmp_path):
    assert "--side-by-side" not in refusal(prepared, "pairs", tmp_path).hint
    side_by_side(tmp_path, 1, 10)
    error = refusal(prepared, "pairs", tmp_path)
    assert error.message == f"{tmp_path} has no folder x/; it holds no folder"
    assert "--side-by-side" in error.hint
    in_folders(tmp_path / "apart" / "train", 1, 10)
    error = refusal(prepared, "pairs", tmp_path / "apart", side_by_side=True)
    assert "folders of their own" in error.message and "leave out --side-by-side" in error.hint
    error = refusal(prepared, "pairs", tmp_path / "1.png", side_by_side=True)
    assert "is neither a tar nor a zip archive" in error.message and "folder" in error.hint


# ---- tables


@pytest.fixture
def folder(tmp_path):
    """Pictures a … f: x/a.png is 10, y/a.bmp is 11, x/b.png is 20, and so on."""
    for number, stem in enumerate("abcdef", start=1):
        in_folders(tmp_path, stem, 10 * number)
    return tmp_path


def table(folder, *lines, name="mine.csv", encoding="utf-8", end="\n"):
    path = folder / name
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def pairs(*stems, end=""):
    return [f"x/{stem[0]}.png,y/{stem[-1]}.bmp{end}" for stem in stems]


def read(manifest, **options):
    return prepared("pairs", manifest, **{**WHOLE, **options})


def test_rows_with_splits_and_labels(folder):
    ends = (",train,cat", ",train,dog", ",val,cat", ",Test,dog")
    lines = [pairs(stem, end=end)[0] for stem, end in zip("bacd", ends, strict=True)]
    manifest = table(folder, "x,y,split,label", *lines)
    made = read(manifest)
    assert made.skipped == [] and made.attributes["source_sha256"] == sha256_of(manifest)
    assert {name: values(split) for name, split in made.splits.items()} == {
        "train": [(20, 21), (10, 11)],
        "valid": [(30, 31)],
        "test": [(40, 41)],
    }
    train = made.splits["train"]
    assert train.x.ids == train.y.ids == ["train/x/b", "train/x/a"] and train.pairs is None
    assert train.x.labels == train.y.labels == ["cat", "dog"]


def test_paths_are_absolute_or_relative_to_the_table_and_ids_unique(
    folder, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    Image.open(folder / "x" / "f.png").save(elsewhere / "z.png")
    Image.open(folder / "x" / "b.png").save(folder / "x" / "b.bmp")
    outside = f"../{folder.name}/x"
    lines = [f"{elsewhere / 'z.png'},y/a.bmp", f"{outside}/b.png,y/b.bmp"]
    lines += [f"{outside}/b.bmp,{folder / 'y' / 'c.bmp'}"]
    train = read(table(folder, "x,y", *lines)).splits["train"]
    assert values(train) == [(60, 11), (20, 21), (20, 31)]
    inside = f"train/{folder.name}/x/b"  # no id leads out of a folder
    assert train.x.ids == [f"train{elsewhere}/z", f"{inside}#1", f"{inside}#2"]


def test_a_recurring_picture_is_stored_once(folder):
    lines = pairs("ab", "cd", "cb", "ad", end=",train") + pairs("ef", end=",test")
    made = read(table(folder, "x,y,split", *lines))
    train, test = made.splits["train"], made.splits["test"]
    assert made.skipped == [] and values(train) == [(10, 21), (30, 41), (30, 21), (10, 41)]
    assert train.x.ids == ["train/x/a", "train/x/c"] and train.y.ids == ["train/y/b", "train/y/d"]
    assert train.pairs.tolist() == [[0, 0], [1, 1], [1, 0], [0, 1]]
    assert test.pairs.tolist() == [[0, 0]] and test.y.ids == ["test/y/f"]


def test_an_unreadable_recurring_picture_goes_with_all_its_pairs(folder):
    path = folder / "x" / "a.png"
    path.write_bytes(b"broken")
    made = read(table(folder, "x,y,label", *pairs("aa", "ab", "cb", "dc", end=",cat")))
    train = made.splits["train"]
    assert made.skipped == [f"{path}: is not a readable picture"]
    assert values(train) == [(30, 21), (40, 31)] and train.pairs.tolist() == [[0, 0], [1, 1]]
    assert train.y.ids == ["train/y/b", "train/y/c"]  # y/a.bmp has no partner left
    assert train.x.labels == train.y.labels == ["cat", "cat"]


def test_rows_that_cannot_be_used_are_named(folder):
    manifest = table(
        folder,
        "x,y,split,label",
        *("x/a.png,y/a.bmp,train,cat", "x/b.png,,train,cat", "x/c.png,y/c.bmp"),
        *("x/d.png,y/d.bmp,tran,cat", "x/a.png,y/a.bmp,test,cat"),
        *("x/a.png,y/f.bmp,train,dog", "x/e.png,y/e.bmp,train,big, cat"),
        *("x/f.png,y/f.bmp,train,dog", "x/none.png,y/d.bmp,train,dog"),
    )
    made = read(manifest)
    assert list(made.splits) == ["train"] and values(made.splits["train"]) == [(10, 11), (60, 61)]
    assert made.skipped == [
        f"{manifest}:8: more cells than columns",
        f"{manifest}:3: y empty",
        f"{manifest}:4: split and label empty",
        f"{manifest}:5: unknown split 'tran' (splits: train, valid, test)",
        f"{manifest}:6: the same pair as in line 2",
        f"{manifest}:7: label 'dog', but 'cat' above for the same picture",
        f"{manifest}:10: x/none.png does not exist, neither beside the table nor in the working "
        "folder",
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["x,z", "a,b"], "needs one column 'y'"),
        (["x,y,x", "a,b,c"], "needs one column 'x'"),
        (["x,y"], "names no pair"),
        (["x,y", "x/a\0.png,y/a.bmp"], "holds NUL characters"),
        (["x,y", '"x/a.png,y/a.bmp'], "is not valid CSV at line 2: unexpected end of data"),
        (["x,y", "\udcff,y"], "is not in UTF-8: see line 2"),
        (["x,y,split", "x/a.png,y/a.bmp,val", "x/b.png,y/b.bmp,Dev"], "both val and dev"),
        (["x,y,Set", "x/a.png,y/a.bmp,train", "x/b.png,y/b.bmp,test"], "column 'set' of"),
        (["x,y,x_a,x_a", "x/a.png,y/a.bmp,1,2"], "needs one column 'x_a'"),
        (["x|z"], "separated by bars, has x, z"),
        (["in/0.png;in/1.png"], "separated by semicolons, has in/0.png, in/1.png"),
        ([], "mine.csv holds no line"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(folder, lines, said):
    manifest = folder / "mine.csv"
    manifest.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    assert said in refusal(read, manifest).message


def test_columns_of_factors_are_kept_with_their_pairs(folder):
    lines = [
        "x,y,split,x_angle,y_Pen,shared_a/b,x_view,x_none,note",
        "x/a.png,y/a.bmp,train,0.5,ink,round,3,,hm",
        "x/b.png,y/b.bmp,test,,,square,1,,hm",
        "x/c.png,y/missing.bmp,train,7,chalk,round,2,,hm",
        "x/d.png,y/d.bmp,train,-2e1,chalk,,4,,hm",
    ]
    splits = read(table(folder, *lines)).splits
    train, test = splits["train"].factors, splits["test"].factors
    assert set(train) == set(test) == {"x_angle", "y_pen", "shared_a-b", "x_view", "x_none"}
    np.testing.assert_array_equal(train["x_angle"], [0.5, -20.0])  # the third row is left out
    assert np.isnan(test["x_angle"]).all()
    assert train["y_pen"].tolist() == ["ink", "chalk"] and test["y_pen"].tolist() == [""]
    assert train["shared_a-b"].tolist() == ["round", ""]
    assert train["x_view"].dtype == np.int64 and train["x_view"].tolist() == [3, 4]
    assert train["x_none"].tolist() == ["", ""]
