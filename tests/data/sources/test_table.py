"""Tables as spreadsheets and people write them: separators, encodings, line ends, paths, rows."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from class_sources import pair_values, picture
from helpers import built, refusal

from iiae_cli.common.files import sha256_of

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """in/0.png … in/7.png, whose value is ten times their number; the working folder is another."""
    for number in range(8):
        picture(tmp_path / "tables" / "in" / f"{number}.png", 10 * number)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "tables"


def row(x, y, *more):
    return ",".join([f"in/{x}.png", f"in/{y}.png", *more])


def read(folder, content, name="t.csv"):
    """The values of the pairs in train, and what was made of a table."""
    if isinstance(content, list):
        content = "".join(f"{line}\n" for line in content)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    made = built("pairs", folder / name, valid_fraction=0, test_fraction=0)
    return pair_values(made.splits["train"]), made


# ---- the text


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(("end", "bom"), [("\n", ""), ("\r\n", "\ufeff"), ("\r", "")])
def test_separators_line_ends_and_byte_order_marks(folder, end, separator, bom):
    rows = [["X", "y"], ["in/0.png", '"in/1.png"'], ["in/2.png", "in/3.png"], ["", ""]]
    pairs, made = read(folder, bom + "".join(separator.join(cells) + end for cells in rows))
    assert pairs == [(0, 10), (20, 30)] and made.skipped == []


def test_rows_are_named_by_the_line_of_the_file(folder):
    content = 'x;y;label\r\n\r\nin/0.png;in/1.png;"two\r\nlines"\r\nin/2.png;no.png;a\r\n'
    _, made = read(folder, content)
    assert [line.partition(" ")[0] for line in made.skipped] == [f"{folder / 't.csv'}:5:"]


def test_utf_16_is_read(folder):
    pairs, made = read(folder, "x\ty\nin/0.png\tin/1.png\n".encode("utf-16"))
    assert pairs == [(0, 10)] and made.skipped == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x,y\n".encode("utf-32"), "is not a text in UTF-8 or UTF-16: see line 1"),
        ("x,y\n".encode("utf-32-le"), "is not a text"),
        ("x,y\n".encode("utf-32-be"), "is not a text"),
        (b"PK\3\4\x14\0\6\0", "is not a text"),
        (b"x,y\nin/a\0.png,in/1.png", "is not a text in UTF-8 or UTF-16: see line 2"),
        ("x,y\n".encode("utf-16-le"), "is not a text"),
        (b"in/\xe9.png,in/1.png\r\n", "is not a text in UTF-8 or UTF-16: see line 1"),
        (b"", "needs one column 'x'"),
        (["sep=;", "x;y"], "needs one column 'x': its first line has sep="),
        (["x,y"], "holds nothing that can be read"),
        (["x,z", "a,b"], "needs one column 'y'"),
        (["x,y,x", "a,b,c"], "needs one column 'x'"),
        (["x,y,x_a,x_a", row(0, 1, "1", "2")], "needs one column 'x_a'"),
        (["x|z"], "its first line has x, z"),
        (["in/0.png;in/1.png"], "its first line has in/0.png, in/1.png"),
        (["x,y", '"in/0.png,in/1.png'], "is not valid CSV at line 2: unexpected end of data"),
        (["x,y,split", row(0, 1, "val"), row(2, 3, "Dev")], "both val and dev"),
        (["x,y,Set", row(0, 1, "train"), row(2, 3, "test")], "column 'set' of"),
        (["x,y,fold", "a,b,train", "c,d,test", "e,f,"], "column 'fold' of"),
        (["x,y,is_test", "a,b,0"], "column 'is_test' of"),
        (["x,y,Partition", "a,b,0", "c,d,2"], "column 'partition' of"),
    ],
)
def test_what_would_be_misread_is_refused_by_name(folder, content, said):
    assert said in refusal(read, folder, content).message


# ---- paths


def test_paths_as_people_write_them(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place in (tmp_path / "work", tmp_path / "home"):
        (place / "own").mkdir(parents=True)
        shutil.copy(folder / "in" / "3.png", place / "own" / "a b.png")
    (folder / "in" / "2.png").rename(folder / "in" / f"{NFD}.png")
    (folder / "in" / "1.png").rename(folder / "in" / "a#1.png")
    lines = [
        "in\\0.png,own/a b.png",
        f"~/own/a b.png,{folder / 'in' / '0.png'}",
        f"{tmp_path / 'home' / 'own' / 'a b.png'},in/{NFC}.png",
        "in/a#1.png,in/0.png",
    ]
    pairs, made = read(folder, ["x,y", *lines])
    assert pairs == [(0, 30), (30, 0), (30, 20), (10, 0)] and made.skipped == []
    assert "train/own/a b" in made.splits["train"].y.ids


def test_no_id_leads_out_of_a_folder_and_ids_are_unique(folder, tmp_path):
    shutil.copy(folder / "in" / "3.png", tmp_path / "work" / "z.png")
    shutil.copy(folder / "in" / "2.png", folder / "in" / "2.bmp")
    outside = f"../{folder.name}/in"
    lines = [f"{tmp_path / 'work' / 'z.png'},in/1.png", f"{outside}/2.png,in/4.png"]
    _, made = read(folder, ["x,y", *lines, f"{outside}/2.bmp,{folder / 'in' / '5.png'}"])
    inside = f"train/{folder.name}/in/2"
    wanted = [f"train{tmp_path / 'work' / 'z'}", f"{inside}#1", f"{inside}#2"]
    assert made.splits["train"].x.ids == wanted


def test_paths_that_lead_nowhere_are_named_with_their_row(folder, capsys):
    nowhere = ["https://a.org/0.png", "file:///in/0.png", "C:\\in\\0.png", "~nobody-at-all/0.png"]
    rows = [f"{path},in/1.png" for path in [*nowhere, "in"]]
    _, made = read(folder, ["x,y", row(0, 1), *rows])
    missing = "does not exist, neither beside the table nor in the working folder"
    assert made.skipped == [
        *(f"{folder / 't.csv'}:{3 + n}: {path} {missing}" for n, path in enumerate(nowhere)),
        f"{folder / 't.csv'}:7: in is not a file, or links to none",
    ]
    assert "holds nothing" in refusal(read, folder, ["x,y", *rows]).message
    said = capsys.readouterr().err
    assert all(f"{path} does not exist" in said for path in nowhere)


# ---- rows


def test_rows_have_splits_and_labels(folder, capsys):
    lines = [
        row(2, 3, "train", "cat"),
        row(0, 1, "train", "dog", "a note"),
        row(4, 5, "val", "cat"),
        row(6, 7, "Test", "dog"),
    ]
    _, made = read(folder, ["x,y,split,label,note", *lines])
    err = capsys.readouterr().err
    assert err.count("val is read as valid") == 1 and "that are not read: note" in err
    assert made.skipped == [] and made.attributes["source_sha256"] == sha256_of(folder / "t.csv")
    assert {name: pair_values(split) for name, split in made.splits.items()} == {
        "train": [(20, 30), (0, 10)],
        "valid": [(40, 50)],
        "test": [(60, 70)],
    }
    train = made.splits["train"]
    assert train.x.ids == train.y.ids == ["train/in/2", "train/in/0"] and train.pairs is None
    assert train.x.labels == train.y.labels == ["cat", "dog"]


def test_a_recurring_picture_is_stored_once(folder):
    pairs = [(0, 1), (2, 3), (2, 1), (0, 3)]
    lines = [*(row(*pair, "train") for pair in pairs), row(4, 5, "test")]
    _, made = read(folder, ["x,y,split", *lines])
    train, test = made.splits["train"], made.splits["test"]
    assert made.skipped == [] and pair_values(train) == [(0, 10), (20, 30), (20, 10), (0, 30)]
    assert train.x.ids == ["train/in/0", "train/in/2"]
    assert train.y.ids == ["train/in/1", "train/in/3"]
    assert train.pairs.tolist() == [[0, 0], [1, 1], [1, 0], [0, 1]]
    assert test.pairs.tolist() == [[0, 0]] and test.y.ids == ["test/in/5"]


def test_an_unreadable_recurring_picture_goes_with_all_its_pairs(folder):
    path = folder / "in" / "0.png"
    path.write_bytes(b"broken")
    lines = [row(*pair, "cat") for pair in ((0, 1), (0, 3), (4, 3), (6, 5))]
    pairs, made = read(folder, ["x,y,label", *lines])
    train = made.splits["train"]
    assert made.skipped == [f"{path}: is not a readable picture"]
    assert pairs == [(40, 30), (60, 50)] and train.pairs.tolist() == [[0, 0], [1, 1]]
    assert train.y.ids == ["train/in/3", "train/in/5"]  # in/1.png has no partner left
    assert train.x.labels == train.y.labels == ["cat", "cat"]


def test_rows_that_cannot_be_used_are_named(folder):
    lines = [
        row(0, 1, "train", "cat"),
        "in/2.png,,train,cat",
        row(2, 3),
        row(2, 3, "tran", "cat"),
        f"./in/0.png,{folder / 'in' / '3.png'},train,dog",  # in another spelling
        row(4, 5, "train", "big", " cat"),
        row(4, 5, "train", "dog", " "),
    ]
    pairs, made = read(folder, ["x,y,split,label", *lines])
    assert list(made.splits) == ["train"] and pairs == [(0, 10), (40, 50)]
    assert made.skipped == [
        f"{folder / 't.csv'}:{line}"
        for line in (
            "7: more cells than columns",
            "3: y empty",
            "4: split and label empty",
            "5: unknown split 'tran' (splits: train, valid, test)",
            "6: label 'dog', but 'cat' above for the same picture",
        )
    ]


def test_columns_of_factors_are_kept_with_their_pairs(folder):
    lines = [
        "x,y,split,x_angle,y_Pen,shared_a/b,x_view,x_none,note",
        row(0, 1, "train", "0.5", "ink", "round", "3", "", "hm"),
        row(2, 3, "test", "", "", "square", "1", "", "hm"),
        row(4, "missing", "train", "7", "chalk", "round", "2", "", "hm"),
        row(6, 7, "train", "-2e1", "chalk", "", "4", "", "hm"),
    ]
    _, made = read(folder, lines)
    train, test = (made.splits[name].factors for name in ("train", "test"))
    assert set(train) == set(test) == {"x_angle", "y_pen", "shared_a-b", "x_view", "x_none"}
    np.testing.assert_array_equal(train["x_angle"], [0.5, -20.0])  # the third row is left out
    assert np.isnan(test["x_angle"]).all()
    assert train["y_pen"].tolist() == ["ink", "chalk"] and test["y_pen"].tolist() == [""]
    assert train["shared_a-b"].tolist() == ["round", ""]
    assert train["x_view"].dtype == np.int64 and train["x_view"].tolist() == [3, 4]
    assert train["x_none"].tolist() == ["", ""]


def test_decimal_commas_stand_where_semicolons_separate(folder):
    _, made = read(folder, "x;y;x_a;x_b\nin/0.png;in/1.png;0,5;1,5 m\nin/2.png;in/3.png;-2;3\n")
    factors = made.splits["train"].factors
    assert factors["x_a"].tolist() == [0.5, -2.0] and factors["x_b"].tolist() == ["1,5 m", "3"]
    assert "a comma in column 'x_a' is a decimal point" in made.attributes["notes"]


def test_pictures_for_testing_do_not_get_into_training(folder, capsys):
    for name in ("train", "test"):
        (folder / name).mkdir()
        for number in range(2):
            shutil.copy(folder / "in" / f"{number}.png", folder / name)
    rows = [f"{name}/0.png,{name}/1.png" for name in ("train", "test")]
    error = refusal(read, folder, ["x,y", *rows])
    assert f"{folder / 'test'} looks like pictures for test" in error.message
    assert read(folder, ["x,y", rows[1]])[0] == [(0, 10)]  # nothing else is there
    read(folder, ["x,y,split", f"{rows[0]},train", "train/0.png,test/1.png,test"])
    assert "in train that are in valid or test, too: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "file"), [("classes", "my t.csv"), ("pairs", "f.npz"), ("pairs", "t.xlsx")]
)
def test_files_of_another_kind_are_refused_with_a_way_out(folder, command, file):
    Path(file).write_bytes(b"PK")
    error = refusal(built, command, Path(file))
    assert error.message.startswith(f"{file} is n") and "save a spreadsheet as CSV" in error.hint
