"""Your own pairs from a table of paths."""

from itertools import chain

import numpy as np
import pytest
from helpers import built, refusal
from PIL import Image

from iiae_cli.common.files import sha256_of
from iiae_cli.data.datafile import DataFile
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


def pairs(*stems, end=""):
    return [f"x/{stem[0]}.png,y/{stem[-1]}.bmp{end}" for stem in stems]


def read(manifest, **options):
    options = {"valid_fraction": 0, "test_fraction": 0, **options}
    return built("pairs", PrepareOptions(source=manifest, **options))


def values(split):
    """x and y value of every pair."""
    pairs = split.take_pairs(np.arange(split.pair_count))
    x, y = (side.rows[:, 0, 0, 0].tolist() for side in (pairs.x, pairs.y))
    return list(zip(x, y, strict=True))


# ---- what is read


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
    assert train.x.rows.shape == train.y.rows.shape == (2, 6, 8, 3) and train.pairs is None
    assert train.x.ids == train.y.ids == ["train/x/b", "train/x/a"]
    assert train.x.labels == train.y.labels == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "lines", "file"),
    [
        ("a.csv", ["note, Y ,x", "hm,y/a.bmp,x/a.png", '"a, b",y/b.bmp, x/b.png'], {}),
        ("a.csv", ["x,y", *pairs(*"ab")], {"encoding": "utf-8-sig", "end": "\r\n"}),
        ("a.csv", ["x,y", *pairs(*"ab")], {"end": "\n\n"}),
        ("a.tsv", ["x\ty\tlabel", "x/a.png\ty/a.bmp\tcat, big", "x/b.png\ty/b.bmp\tdog"], {}),
    ],
)
def test_columns_in_any_order_and_tables_of_other_programs(folder, name, lines, file):
    made = read(table(folder, *lines, name=name, **file))
    assert made.skipped == [] and values(made.splits["train"]) == [(10, 11), (20, 21)]
    wanted = ["cat, big", "dog"] if name.endswith("tsv") else None
    assert made.splits["train"].y.labels == wanted


def test_paths_are_absolute_or_relative_to_the_table_and_ids_unique(
    folder, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    Image.open(folder / "x" / "f.png").save(elsewhere / "z.png")
    Image.open(folder / "x" / "b.png").save(folder / "x" / "b.bmp")
    lines = [
        f"{elsewhere / 'z.png'},y/a.bmp",
        f"../{folder.name}/x/b.png,{folder / 'y' / 'b.bmp'}",
        f"../{folder.name}/x/b.bmp,y/c.bmp",
    ]
    train = read(table(folder, "x,y", *lines)).splits["train"]
    assert values(train) == [(60, 11), (20, 21), (20, 31)]
    inside = f"train/{folder.name}/x/b"  # no id leads out of a folder
    assert train.x.ids == [f"train{elsewhere}/z", f"{inside}#1", f"{inside}#2"]


def test_without_splits_pairs_are_divided_by_seeded_fractions(folder):
    manifest = table(folder, "x,y", *pairs(*"abcdef"))
    drawn = []
    for seed in (0, 0, 1, 2, 3):
        splits = read(manifest, valid_fraction=1 / 6, test_fraction=1 / 3, seed=seed).splits
        counts = {name: split.pair_count for name, split in splits.items()}
        assert counts == {"train": 3, "valid": 1, "test": 2}
        everything = sorted(chain.from_iterable(map(values, splits.values())))
        assert everything == [(10 * n, 10 * n + 1) for n in range(1, 7)]
        drawn.append(tuple(splits["test"].x.ids))
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    limited = read(manifest, limit=2, image_size=16, workers=3).splits["train"]
    assert limited.x.rows.shape == (2, 16, 16, 3) and limited.y.rows[1, 0, 0, 0] == 21


# ---- recurring pictures


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
        "x/none.png,y/d.bmp,train,dog",
    )
    made = read(manifest)
    assert list(made.splits) == ["train"] and values(made.splits["train"]) == [(10, 11), (60, 61)]
    missing = f"{folder / 'x' / 'none.png'}: does not exist"
    assert made.skipped == [
        f"{manifest}:8: more cells than columns",
        f"{manifest}:3: y empty",
        f"{manifest}:4: split and label empty",
        f"{manifest}:5: unknown split 'training' (splits: train, valid, test)",
        f"{manifest}:6: the same pair as in line 2",
        f"{manifest}:7: label 'dog', but 'cat' above for the same picture",
        missing,
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["x,z", "a,b"], "has no column 'y'"),
        (["x,y,x", "a,b,c"], "has more than one column 'x'"),
        ([], "has no column 'x'"),
        (["x,y"], "names no pair"),
        (["x,y", "x/none.png,y/a.bmp"], "holds nothing that can be read"),
        (["x,y", '"x/a.png,y/a.bmp'], "is damaged: unexpected end of data"),
        (["x,y", "\udcff,y"], "is damaged: 'utf-8' codec"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(folder, lines, said):
    manifest = folder / "mine.csv"
    manifest.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    assert said in refusal(read, manifest).message
    assert refusal(read, folder / "none.csv").message.endswith("none.csv does not exist")


# ---- factors


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


# ---- the program


def test_the_program_prepares_a_table_and_says_what_it_left_out(iiae, folder):
    lines = [*pairs("aa", "ab", end=",train,ink"), "x/c.png,,train,chalk"]
    table(folder, "x,y,split,y_pen", *lines)
    done = iiae("prepare", "pairs", "mine.csv", "-o", "mine.h5", "--json")
    assert done.code == 3 and done.json["splits"] == {"train": 2, "valid": 0, "test": 0}
    assert done.json["skipped"] == ["mine.csv:4: y empty"]
    assert "warning: skipped mine.csv:4: y empty" in done.err
    train = DataFile(folder / "mine.h5").split("train")
    assert train.pairs.tolist() == [[0, 0], [0, 1]]
    assert train.factors["y_pen"].tolist() == ["ink", "ink"]
