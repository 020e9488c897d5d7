"""Your own pairs from a table of paths."""

from itertools import chain

import numpy as np
import pytest
from helpers import assembled, built
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import DataFile, sha256_of, write_data_file
from iiae_cli.data.sources.manifest import read_manifest
from iiae_cli.data.sources.plan import PrepareOptions


@pytest.fixture
def folder(tmp_path):
    """Pictures a … f: x/a.png is 10, y/a.bmp is 11, x/b.png is 20, and so on."""
    for domain, more, suffix in (("x", 0, ".png"), ("y", 1, ".bmp")):
        (tmp_path / domain).mkdir()
        for number, stem in enumerate("abcdef", start=1):
            array = np.full((6, 8, 3), 10 * number + more, np.uint8)
            Image.fromarray(array).save(tmp_path / domain / f"{stem}{suffix}")
    return tmp_path


def table(folder, *lines, name="mine.csv", encoding="utf-8", end="\n"):
    path = folder / name
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def pairs(*stems):
    return [f"x/{stem[0]}.png,y/{stem[-1]}.bmp" for stem in stems]


def read(manifest, **options):
    settings = {"image_size": None, "fractions": (0.0, 0.0), "seed": 0, **options}
    prepared = assembled(read_manifest(manifest, **settings))
    return prepared.splits, prepared.skipped


def values(split):
    """x and y value of every pair."""
    found = split.pair_rows(np.arange(split.pair_count))
    return [tuple(int(one[row, 0, 0, 0]) for one in found) for row in range(split.pair_count)]


def refusal(manifest, **options):
    with pytest.raises(IiaeError) as caught:
        read(manifest, **options)
    return caught.value.message, caught.value.hint


# ---- what is read


def test_rows_with_splits_and_labels(folder):
    ends = ("train,cat", "train,dog", "val,cat", "Test,dog")
    lines = [f"{row},{end}" for row, end in zip(pairs(*"bacd"), ends, strict=True)]
    splits, skipped = read(table(folder, "x,y,split,label", *lines))
    assert skipped == [] and {name: values(split) for name, split in splits.items()} == {
        "train": [(20, 21), (10, 11)],
        "valid": [(30, 31)],
        "test": [(40, 41)],
    }
    train = splits["train"]
    assert train.x.rows.shape == train.y.rows.shape == (2, 6, 8, 3) and train.pairs is None
    assert train.x.ids == train.y.ids == ["train/x/b", "train/x/a"]
    assert train.x.labels == train.y.labels == ["cat", "dog"]


def test_columns_stand_in_any_order_and_others_are_passed_over(folder):
    lines = ["note, Y ,x", "hm,y/a.bmp,x/b.png", '"a, b",y/c.bmp, x/c.png']
    splits, skipped = read(table(folder, *lines))
    assert skipped == [] and values(splits["train"]) == [(20, 11), (30, 31)]
    assert splits["train"].x.labels is None


@pytest.mark.parametrize("encoding, end", [("utf-8-sig", "\r\n"), ("utf-8", "\n\n")])
def test_tables_of_other_programs(folder, encoding, end):
    splits, _ = read(table(folder, "x,y", *pairs(*"ab"), encoding=encoding, end=end))
    assert values(splits["train"]) == [(10, 11), (20, 21)]


def test_tabs_separate_in_a_tsv(folder):
    lines = ["x\ty\tlabel", "x/a.png\ty/a.bmp\tcat, big"]
    splits, _ = read(table(folder, *lines, name="mine.tsv"))
    assert splits["train"].y.labels == ["cat, big"]


def test_paths_are_absolute_or_relative_to_the_table(folder, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    Image.fromarray(np.full((6, 8, 3), 99, np.uint8)).save(elsewhere / "z.png")
    lines = [f"{elsewhere / 'z.png'},y/a.bmp", f"../{folder.name}/x/b.png,{folder / 'y' / 'b.bmp'}"]
    splits, _ = read(table(folder, "x,y", *lines))
    assert values(splits["train"]) == [(99, 11), (20, 21)]
    first, second = splits["train"].x.ids
    assert (
        first == f"train{elsewhere}/z" and second == f"train/{folder.name}/x/b"
    )  # no id leads out of a folder


def test_ids_are_unique_where_stems_are_not(folder):
    Image.open(folder / "x" / "a.png").save(folder / "x" / "a.bmp")
    splits, _ = read(table(folder, "x,y", "x/a.png,y/a.bmp", "x/a.bmp,y/b.bmp"))
    assert splits["train"].x.ids == splits["train"].y.ids == ["train/x/a", "train/x/a-2"]


def test_without_splits_pairs_are_divided_by_seeded_fractions(folder):
    manifest = table(folder, "x,y", *pairs(*"abcdef"))
    counts = []
    for seed in (0, 0, 1, 2, 3):
        splits, _ = read(manifest, fractions=(1 / 6, 1 / 3), seed=seed)
        assert {name: split.pair_count for name, split in splits.items()} == {
            "train": 3,
            "valid": 1,
            "test": 2,
        }
        assert sorted(chain.from_iterable(values(split) for split in splits.values())) == [
            (10 * n, 10 * n + 1) for n in range(1, 7)
        ]
        counts.append(tuple(splits["test"].x.ids))
    assert counts[0] == counts[1] and len(set(counts)) > 1


def test_limit_image_size_and_threads(folder):
    manifest = table(folder, "x,y", *pairs(*"abcdef"))
    splits, _ = read(manifest, limit=2, image_size=4)
    assert splits["train"].x.rows.shape == (2, 4, 4, 3)
    one, three = (read(manifest, workers=workers)[0]["train"] for workers in (1, 3))
    np.testing.assert_array_equal(one.y.rows, three.y.rows)


# ---- recurring pictures


def test_a_recurring_picture_is_stored_once(folder):
    lines = [f"{row},train" for row in pairs("ab", "cd", "cb", "ad")] + [
        f"{row},test" for row in pairs("ef")
    ]
    splits, skipped = read(table(folder, "x,y,split", *lines))
    train, test = splits["train"], splits["test"]
    assert skipped == [] and values(train) == [(10, 21), (30, 41), (30, 21), (10, 41)]
    assert train.x.ids == ["train/x/a", "train/x/c"] and train.y.ids == ["train/y/b", "train/y/d"]
    assert train.pairs.tolist() == [[0, 0], [1, 1], [1, 0], [0, 1]]
    assert test.pairs.tolist() == [[0, 0]] and test.y.ids == ["test/y/f"]


def test_an_unreadable_recurring_picture_goes_with_all_its_pairs(folder):
    (folder / "x" / "a.png").write_bytes(b"broken")
    splits, skipped = read(
        table(folder, "x,y,label", *[f"{row},cat" for row in pairs("aa", "ab", "cb", "dc")])
    )
    train = splits["train"]
    assert skipped == [
        f"{folder / 'x' / 'a.png'}: is not a readable picture (left out with its 2 pairs)"
    ]
    assert values(train) == [(30, 21), (40, 31)] and train.pairs.tolist() == [[0, 0], [1, 1]]
    assert train.y.ids == ["train/y/b", "train/y/c"]  # y/a.bmp has no partner left
    assert train.x.labels == train.y.labels == ["cat", "cat"]


# ---- what is left out


def test_rows_that_cannot_be_used_are_named(folder):
    manifest = table(
        folder,
        "x,y,split,label",
        "x/a.png,y/a.bmp,train,cat",
        "x/b.png,,train,cat",
        "x/c.png,y/c.bmp",
        "x/d.png,y/d.bmp,training,cat",
        "x/a.png,y/a.bmp,test,cat",
        "x/a.png,y/f.bmp,train,dog",
        "x/e.png,y/e.bmp,train,big, cat",
        "x/f.png,y/f.bmp,train,dog",
    )
    splits, skipped = read(manifest)
    assert list(splits) == ["train"] and values(splits["train"]) == [(10, 11), (60, 61)]
    assert skipped == [
        f"{manifest}:3: y empty",
        f"{manifest}:4: split and label empty",
        f"{manifest}:5: unknown split 'training' (splits: train, valid, test)",
        f"{manifest}:6: the same pair as in line 2",
        f"{manifest}:7: label 'dog', but 'cat' above for the same picture",
        f"{manifest}:8: more cells than columns",
    ]


def test_missing_and_unreadable_pictures_are_named_with_their_partners(folder):
    (folder / "y" / "b.bmp").write_bytes(b"broken")
    splits, skipped = read(table(folder, "x,y", "x/none.png,y/a.bmp", *pairs("b", "c")))
    assert values(splits["train"]) == [(30, 31)] and splits["train"].pairs is None
    assert skipped == [
        f"{folder / 'x' / 'none.png'}: does not exist (left out with its partner {folder / 'y' / 'a.bmp'})",
        f"{folder / 'y' / 'b.bmp'}: is not a readable picture (left out with its partner {folder / 'x' / 'b.png'})",
    ]


# ---- what is refused


def test_a_table_without_its_columns_is_refused(folder):
    for lines, said in (
        (["x,z", "a,b"], "no column 'y'"),
        (["x;y", "a;b"], "no column 'x'"),
        (["x/a.png,y/a.bmp"], "no column 'x'"),
        (["x,y,x", "a,b,c"], "more than one column 'x'"),
        ([], "no column 'x'"),
    ):
        manifest = table(folder, *lines)
        message, hint = refusal(manifest)
        assert message == f"{manifest} has {said}" and "x,y[,split][,label]" in hint


def test_a_table_without_a_usable_pair_is_refused(folder):
    assert "names no pair" in refusal(table(folder, "x,y"))[0]
    message, hint = refusal(table(folder, "x,y", "x/a.png,"))
    assert "names no pair" in message and "mine.csv:2: y empty" in hint
    message, hint = refusal(table(folder, "x,y", "none.png,y/a.bmp"))
    assert (
        message == f"{folder / 'mine.csv'} holds no readable pair"
        and "none.png: does not exist" in hint
    )


def test_what_is_no_table_is_refused(folder):
    assert refusal(folder / "none.csv")[0] == f"{folder / 'none.csv'} does not exist"
    for content in (b"x,y\n\xff\xfe,b\n", b'x,y\n"a,b\n'):
        (folder / "mine.csv").write_bytes(content)
        assert "cannot be read" in refusal(folder / "mine.csv")[0]


# ---- the builder and the program


def test_a_table_is_told_from_a_folder_by_its_name(folder):
    manifest = table(folder, "x,y", *pairs("a"), name="MINE.CSV")
    attributes = built("pairs", PrepareOptions(source=manifest)).attributes
    assert attributes == {"source": str(manifest), "source_sha256": sha256_of(manifest)}
    (folder / "x").rename(folder / "mine.csv")  # a folder of that name is a folder
    with pytest.raises(IiaeError, match="has no folder x/"):
        built("pairs", PrepareOptions(source=folder / "mine.csv"))


def test_the_program_prepares_a_table_and_says_what_it_left_out(iiae, folder):
    table(
        folder,
        "x,y,split,label",
        *[f"{row},train,cat" for row in pairs("aa", "ab")],
        "x/c.png,,train,cat",
    )
    done = iiae("prepare", "pairs", "mine.csv", "-o", "mine.h5", "--json")
    assert done.code == 3 and done.json["splits"] == {"train": 2, "valid": 0, "test": 0}
    assert (
        done.json["skipped"] == ["mine.csv:4: y empty"]
        and "warning: skipped mine.csv:4: y empty" in done.err
    )
    train = DataFile(folder / "mine.h5").split("train")
    assert train.pairs.tolist() == [[0, 0], [0, 1]] and train.y.labels == ["cat", "cat"]
    error, hint = iiae("prepare", "pairs", "none.csv", "-o", "other.h5").error()
    assert error == "error: none.csv does not exist" and "x,y[,split][,label]" in hint


def test_pictures_of_a_table_without_recurrence_need_no_manifest(iiae, folder):
    table(folder, "x,y,split", *[f"{row},train" for row in pairs(*"ab")])
    assert iiae("prepare", "pairs", "mine.csv", "-o", "mine.h5", "--pictures", "out").code == 0
    assert not (folder / "out" / "pairs.csv").exists()
    assert iiae("prepare", "pairs", "out", "-o", "again.h5").code == 0
    again = DataFile(folder / "again.h5").split("train")
    assert values(again) == [(10, 11), (20, 21)]


# ---- factors


def test_columns_of_factors_are_kept_with_their_pairs(folder):
    lines = [
        "x,y,split,x_angle,y_Pen,shared_shape,x_view,note",
        "x/a.png,y/a.bmp,train,0.5,ink,round,3,hm",
        "x/b.png,y/b.bmp,test,,,square,1,hm",
        "x/c.png,y/missing.bmp,train,7,chalk,round,2,hm",
        "x/d.png,y/d.bmp,train,-2e1,chalk,,4,hm",
    ]
    splits, skipped = read(table(folder, *lines))
    assert len(skipped) == 1 and "missing.bmp" in skipped[0]
    train, test = splits["train"].factors, splits["test"].factors
    assert set(train) == set(test) == {"x_angle", "y_pen", "shared_shape", "x_view"}
    np.testing.assert_array_equal(
        train["x_angle"], [0.5, -20.0]
    )  # the unreadable pair is gone, with its factors
    assert np.isnan(test["x_angle"]).all()
    assert train["y_pen"].tolist() == ["ink", "chalk"] and test["y_pen"].tolist() == [""]
    assert train["shared_shape"].tolist() == ["round", ""]
    assert train["x_view"].dtype == np.int64 and train["x_view"].tolist() == [3, 4]


def test_factors_survive_the_data_file(folder, tmp_path):
    source = table(
        folder, "x,y,y_pen,x_angle", "x/a.png,y/a.bmp,übung,1.5", "x/b.png,y/b.bmp,chalk,2"
    )
    prepared = built("pairs", PrepareOptions(source=source, fractions=(0.0, 0.0)))
    write_data_file(tmp_path / "mine.h5", "mine", prepared.splits, {})
    found = DataFile(tmp_path / "mine.h5").split("train").factors
    assert found["y_pen"].tolist() == ["übung", "chalk"]
    np.testing.assert_array_equal(found["x_angle"], [1.5, 2.0])


def test_a_column_without_values_and_one_with_a_slash(folder):
    splits, _ = read(table(folder, "x,y,x_none,y_a/b", *[f"{one},,1" for one in pairs(*"ab")]))
    assert splits["train"].factors["x_none"].tolist() == ["", ""]
    assert splits["train"].factors["y_a-b"].tolist() == [1, 1]
