"""Tables as spreadsheets and people write them: separators, encodings, line ends, paths."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers import built, refusal
from PIL import Image

from iiae_cli.data.sources.plan import PrepareOptions

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """in/0.png … in/3.png, whose value is ten times their number; the working folder is another."""
    (tmp_path / "tables" / "in").mkdir(parents=True)
    for number in range(4):
        picture = np.full((4, 4, 3), 10 * number, np.uint8)
        Image.fromarray(picture).save(tmp_path / "tables" / "in" / f"{number}.png")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "tables"


def read(folder, content, name="t.csv"):
    """The values of the pairs of x and y in train, and what was made."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    options = PrepareOptions(source=folder / name, valid_fraction=0, test_fraction=0)
    made = built("pairs", options)
    train = made.splits["train"].take_pairs(np.arange(made.splits["train"].pair_count))
    x, y = (side.rows[:, 0, 0, 0].tolist() for side in (train.x, train.y))
    return list(zip(x, y, strict=True)), made


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("stated", [False, True])
def test_separators_line_ends_and_byte_order_marks(folder, end, separator, bom, stated):
    rows = [["X", ' "y" '], ["in/0.png", '"in/1.png"'], ["in/2.png", "in/3.png"], ["", ""]]
    lines = [separator.join(row).replace(' "y" ', "y") for row in rows]
    lines = ([f"sep={separator}"] if stated else []) + lines
    pairs, made = read(folder, bom + "".join(line + end for line in lines))
    assert pairs == [(0, 10), (20, 30)] and made.skipped == []


def test_rows_are_named_by_the_line_of_the_file(folder):
    content = 'sep=;\r\n\r\nx;y;label\r\nin/0.png;in/1.png;"two\r\nlines"\r\nin/2.png;no.png;a\r\n'
    _, made = read(folder, content)
    assert [line.partition(" ")[0] for line in made.skipped] == [f"{folder / 't.csv'}:6:"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_read_with_or_without_a_byte_order_mark(folder, encoding):
    pairs, made = read(folder, "x\ty\nin/0.png\tin/1.png\n".encode(encoding))
    assert pairs == [(0, 10)] and made.skipped == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x,y\n".encode("utf-32"), "is in UTF-32"),
        ("x,y\n".encode("utf-32-le"), "is in UTF-32"),
        ("x,y\n".encode("utf-32-be"), "is in UTF-32"),
        (b"PK\3\4", "is a spreadsheet or compressed"),
        (b"x,y,fold\na,b,train\nc,d,test\ne,f,\n", "column 'fold' of"),
        (b"x,y,is_test\na,b,0\n", "column 'is_test' of"),
        (b"x,y,Partition\na,b,0\nc,d,2\n", "column 'partition' of"),
        (b"x,y,note\na,b,0\nc,d,test\n", "names no pair that can be read"),
    ],
)
def test_what_would_be_misread_is_refused_by_name(folder, content, said):
    assert said in refusal(read, folder, content).message


def test_another_encoding_is_refused_with_the_line(folder):
    lines = b"x,y\r\nin/0.png,in/1.png\r\n\xe9.png,in/1.png\r\n"
    error = refusal(read, folder, lines, "my t.csv")
    old, new = folder / "my t.csv", folder / "my t-utf8.csv"
    assert "is not in UTF-8: see line 3" in error.message
    assert f"iconv -f CP1252 -t UTF-8 '{old}' > '{new}'" in error.hint


def test_paths_as_people_write_them(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place in (tmp_path / "work", tmp_path / "home"):
        (place / "own").mkdir(parents=True)
        (folder / "in" / "3.png").rename(place / "own" / "a b.png")
        Image.open(place / "own" / "a b.png").save(folder / "in" / "3.png")
    (folder / "in" / "2.png").rename(folder / "in" / f"{NFD}.png")
    lines = [
        "in\\0.png,own/a b.png",
        f"~/own/a b.png,{(folder / 'in' / '0.png').as_uri()}",
        f"{(tmp_path / 'home' / 'own' / 'a b.png').as_uri()},in/{NFC}.png",
        f"file:{folder}/in/a#1.png,in/0.png",
    ]
    (folder / "in" / "1.png").rename(folder / "in" / "a#1.png")
    pairs, made = read(folder, "x,y\n" + "\n".join(lines))
    assert pairs == [(0, 30), (30, 0), (30, 20), (10, 0)] and made.skipped == []
    assert "train/own/a b" in made.splits["train"].y.ids


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("https://a.org/0.png", "is not on this machine"),
        ("file://server/0.png", "is not on this machine"),
        ("C:\\in\\0.png", "is a path on Windows"),
        ("\\\\server\\in\\0.png", "is a path on Windows"),
        ("file:///C:/in/0.png", "is a path on Windows"),
        ("in", "is not a file, or links to none"),
        ("none.png", "does not exist, neither beside the table nor in the working folder"),
        ("~nobody-at-all/0.png", "does not exist"),
    ],
)
def test_paths_that_lead_nowhere_are_named_with_their_row(folder, capsys, path, said):
    _, made = read(folder, f"x,y\nin/0.png,in/1.png\n{path},in/1.png\n")
    assert made.skipped[0].startswith(f"{folder / 't.csv'}:3: {path} ") and said in made.skipped[0]
    error = refusal(read, folder, f"x,y\n{path},in/1.png\n")
    assert "names no pair" in error.message and said in capsys.readouterr().err


def test_one_pair_under_two_spellings_is_one(folder):
    _, made = read(folder, f"x,y\nin/0.png,in/1.png\n./in/0.png,{folder / 'in' / '1.png'}\n")
    assert "the same pair as in line 2" in made.skipped[0]


def test_decimal_commas_stand_where_semicolons_separate(folder):
    _, made = read(folder, "x;y;x_a;x_b\nin/0.png;in/1.png;0,5;1,5 m\nin/2.png;in/3.png;-2;3\n")
    factors = made.splits["train"].factors
    assert factors["x_a"].tolist() == [0.5, -2.0] and factors["x_b"].tolist() == ["1,5 m", "3"]
    assert "a comma in column 'x_a' is a decimal point" in made.attributes["notes"]


def test_splits_under_other_names_and_columns_that_are_not_read_are_said(folder, capsys):
    content = "x,y,split,note\nin/0.png,in/1.png,Train,a\nin/2.png,in/3.png,dev,b\n"
    _, made = read(folder, content)
    assert list(made.splits) == ["train", "valid"]
    err = capsys.readouterr().err
    assert err.count("dev is read as valid") == 1 and "that are not read: note" in err


def test_pictures_for_testing_do_not_get_into_training(folder, capsys):
    for name in ("train", "test"):
        (folder / name).mkdir()
        for number in range(2):
            shutil.copy(folder / "in" / f"{number}.png", folder / name)
    rows = [f"{name}/0.png,{name}/1.png" for name in ("train", "test")]
    error = refusal(read, folder, "x,y\n" + "\n".join(rows))
    assert f"{folder / 'test'} looks like pictures for test" in error.message
    assert read(folder, f"x,y\n{rows[1]}")[0] == [(0, 10)]  # nothing else is there
    read(folder, f"x,y,split\n{rows[0]},train\ntrain/0.png,test/1.png,test\n")
    assert "in train that are in valid or test, too: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "file", "hint"),
    [
        ("classes", "my t.csv", "iiae prepare pairs 'my t.csv'"),
        ("pairs", "f.npz", "iiae prepare classes f.npz"),
        ("pairs", "t.xlsx", "save it as CSV"),
    ],
)
def test_files_of_another_kind_are_refused_with_a_way_out(folder, command, file, hint):
    Path(file).write_bytes(b"PK")
    error = refusal(built, command, PrepareOptions(source=Path(file)))
    assert error.message == f"{file} is not a source that {command} reads" and hint in error.hint
