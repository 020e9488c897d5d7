"""Splits as people call them, and files whose names are composed (NFC) or decomposed (NFD)."""

import io
import unicodedata
from functools import partial
from itertools import product

import pytest
from class_sources import NETWORK, class_folders, make_quick, pair_values, picture
from helpers import built, refusal

from iiae_cli.data.names import expand_inputs, find_file, find_pictures, refuse_held_out, split_of
from iiae_cli.data.pictures import SEEN

WHOLE = {"valid_fraction": 0, "test_fraction": 0}
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def tree(folder, names):
    """Make pictures, named without a suffix, and other files."""
    for name in names.split():
        if "." in name:
            (folder / name).write_text("0")
        else:
            picture(folder / f"{name}.png", size=(8, 16))
    return folder


prepared = partial(built, "pairs")


def refused(source, **options):
    return refusal(prepared, source, **options).message


def decomposing(folder):
    """Skip where the file system takes both forms for one name."""
    (folder / f"{NFC}-").touch()
    if (folder / f"{NFD}-").exists():
        pytest.skip("one name in both forms")


# ---- splits


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train TRAIN Training train_set"),
        ("valid", "valid validation Val val-set DEV"),
        ("test", "test tests Testing eval holdout hold-out Hold_Out testset"),
        (None, "train2 tests-old pictures x set tr testify ﬁnal _test .train"),
    ],
)
def test_splits_have_the_names_that_people_use(split, names):
    assert [split_of(name) for name in names.split()] == [split] * len(names.split())


@pytest.mark.parametrize("beside", [False, True])
def test_folders_of_splits_are_read_under_other_names_and_said_once(tmp_path, capsys, beside):
    for split, items in {"Training": "0", "validation": "01", "HOLDOUT": "012"}.items():
        for item, domain in product(items, [""] if beside else ["x/", "y/"]):
            picture(tmp_path / f"{split}/{domain}{item}.png")
    made = prepared(tmp_path, side_by_side=beside)
    counts = {name: split.pair_count for name, split in made.splits.items()}
    assert counts == {"train": 1, "valid": 2, "test": 3} and made.skipped == []
    said = ["Training is read as train", "validation is read as valid", "HOLDOUT is read as test"]
    assert made.attributes["notes"].splitlines() == said
    assert [line for line in capsys.readouterr().err.splitlines() if "is read as" in line] == said
    assert made.splits["test"].x.ids[0] == "test/0"


def test_what_lies_beside_the_folders_is_counted(tmp_path):
    tree(tmp_path, "train/x/0 train/y/0 test2/x/0 test2/y/0 x/1 y/1 cover train/z/1 train/1")
    tree(tmp_path, "__MACOSX/0 more.txt")
    SEEN.take()
    made = prepared(tmp_path)
    assert SEEN.take()["left_out"] == {".txt": 1}
    assert made.splits["train"].pair_count == 1
    counts = {"/train/z": 1, "/train": 1, "/test2": 2, "/x": 1, "/y": 1, "": 1}
    assert {*made.skipped} == {
        f"{tmp_path}{name}: {count} pictures that lie beside what is read"
        for name, count in counts.items()
    }


@pytest.mark.parametrize("name", ["test", "val", "Holdout", "test2017", "testB", "old_test_images"])
@pytest.mark.parametrize("below", ["x", "train/x"])
def test_folders_for_testing_do_not_get_into_training(tmp_path, name, below):
    tree(tmp_path, f"{below}/0 {below}/{name}/1 {below[:-1]}y/0 {below[:-1]}y/{name}/1")
    assert f"{tmp_path / below / name} looks like pictures for" in refused(tmp_path)
    tree(tmp_path, f"halves/a/{name}/0")
    assert "looks like pictures for" in refused(tmp_path / "halves", side_by_side=True)


@pytest.mark.parametrize(
    "files",
    [
        "x/train_0 x/test_0 y/train_0 y/test_0",  # names that differ in the word of a split
        "x/1 x/val-2 x/test-3 y/1 y/val-2 y/test-3",
        "x/maps_train/0 x/maps_test/0 y/maps_train/0 y/maps_test/0",
        "x/0 y/0 val.txt",  # lists of test pictures are not passed over
        "x/0 y/0 valid_ids.csv",
        "x/0 y/0 TestClasses.txt",
        "x/0 y/0 splits.json",
        "x/0 y/0 list_eval_partition.txt",
    ],
)
def test_what_looks_like_splits_is_not_divided_at_random(tmp_path, files):
    error = refusal(prepared, tree(tmp_path, files))
    assert " looks like " in error.message and "SOURCE/train" in error.hint


def test_other_folders_are_part_of_a_name(tmp_path):
    for name in ("testimony", "test tube", "train", "values", "a"):
        refuse_held_out(tmp_path, [tmp_path / name / "0.png"])
    refuse_held_out(tmp_path, [tmp_path / "val" / "0.png"], "test")


@pytest.mark.parametrize(
    ("files", "said", "hint"),
    [
        ("val/x/0 validation/x/0", "{0}/val and {0}/validation both mean valid", "join them"),
        ("X/0 photos/0", "{0} has no folder y/; it holds X/, photos/", ""),
        ("x/0_x y/0_y", "{0} holds nothing that can be read", "the warnings above"),
        ("A/0 data/Train/x/0", "{0} has no folder x/; it holds A/, data/", "x/ and y/"),
        ("train/A/0 train/B/0", "{0}/train has no folder x/; it holds A/, B/", "x/ and y/"),
        ("A/train/0 B/train/0", "{0} has no folder x/; it holds A/, B/", "x/ and y/"),
        ("train2017/x/0 val2017/x/0", "holds train2017/, val2017/", "x/ and y/"),
        ("trainA/0 trainB/0", "{0} has no folder x/; it holds trainA/, trainB/", "SOURCE/train"),
    ],
)
def test_other_layouts_are_answered_by_what_there_is(tmp_path, files, said, hint):
    error = refusal(prepared, tree(tmp_path, files))
    assert said.format(tmp_path) in error.message and hint.format(tmp_path) in error.hint


def test_splits_inside_of_domains_are_read_and_an_empty_test_is_said(tmp_path):
    for level, name in enumerate(("X/Train", "y/train", "X/val", "y/val", "X/test2", "y/testing")):
        picture(tmp_path / name / "0.png", level)
    made = prepared(tmp_path)
    values = {split: pair_values(pairs) for split, pairs in made.splits.items()}
    assert values == {"train": [(0, 1)], "valid": [(2, 3)]}
    assert made.attributes["notes"].splitlines() == [
        "the splits inside of x/ and y/ are read",
        "X/Train is read as train",
        "X/val is read as valid",
        "y/val is read as valid",
        "the split test is empty",
    ]
    assert [line.partition(": ")[0] for line in made.skipped] == [
        str(tmp_path / name) for name in ("X/test2", "y/testing")
    ]


def test_what_a_reader_of_the_names_would_not_expect_is_said(tmp_path, capsys):
    """A source called test, a broken link for a split, one picture in two splits."""
    tree(tmp_path, "test/x/0 test/y/0 s/train/x/0 s/train/y/0")
    assert "looks like test, and is divided" in prepared(tmp_path / "test").attributes["notes"]
    source = tmp_path / "s"
    (source / "test").symlink_to(source / "train")
    (source / "val").symlink_to(source / "none")
    assert f"{source / 'val'} links to {source / 'none'}, which" in refused(source)
    (source / "val").unlink()
    prepared(source)
    assert "pictures in train that are in valid or test, too: 2" in capsys.readouterr().err


# ---- lists of inputs


def test_lists_name_files_as_people_and_other_systems_write_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a b.png", f"{NFD}.png", "z .png", "odd.png\r"):
        (tmp_path / name).touch()
    lines = b'a b.png \r\n\r\n"a b.png"\r\nz .png\nodd.png\r\nnone.png\r\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert expand_inputs(["-"]) == ["a b.png", "a b.png", "z .png", "odd.png\r", "none.png"]
    (path,) = find_pictures([f"{NFC}.png"])
    assert path.is_file()


# ---- Unicode forms


def test_partners_pair_in_either_form_and_keep_the_name_of_the_file_system(tmp_path):
    made = prepared(tree(tmp_path, f"x/{NFD} y/{NFC}"), **WHOLE)
    (identity,) = made.splits["train"].x.ids
    assert made.skipped == [] and unicodedata.normalize("NFC", identity) == f"train/{NFC}"
    assert identity.partition("/")[2] in {path.stem for path in (tmp_path / "x").iterdir()}


def test_the_second_file_of_one_name_is_named(tmp_path):
    decomposing(tmp_path)
    made = prepared(tree(tmp_path, f"x/{NFC} y/{NFC} x/{NFD}"), **WHOLE)
    (line,) = made.skipped
    assert made.splits["train"].pair_count == 1
    assert NFC in line and NFD in line and "in another Unicode form" in line


def test_a_path_is_found_in_the_other_form_unless_two_files_have_it(tmp_path):
    picture(tmp_path / NFD / f"{NFD}.png")
    listings = {}
    found = find_file(tmp_path / NFC / f"{NFC}.png", listings)
    assert found is not None and found.samefile(tmp_path / NFD / f"{NFD}.png")
    assert find_file(tmp_path / NFC / "none.png", listings) is None
    assert find_file(tmp_path / f"{NFC}-none", listings) is None
    twice = "e\u0323\u0302"  # has three forms: this, one in between, and one character
    decomposing(tmp_path)
    for form in ("\u1eb9\u0302", "\u1ec7"):
        (tmp_path / form).touch()
    with pytest.raises(ValueError, match="one name in two Unicode forms"):
        find_file(tmp_path / twice, {})


# ---- classes


@pytest.fixture
def quick(monkeypatch):
    make_quick(monkeypatch)


def classes(source, **options):
    options = {"backbone": NETWORK, "backbone_weights": "none", **options}
    return built("classes", source, **options)


@pytest.mark.usefixtures("quick")
def test_classes_pair_in_either_form_in_splits_of_other_names(tmp_path):
    for split, name in (("training", "ant"), ("Eval", "")):
        class_folders(tmp_path / split / "x", {name or NFC: 1})
        class_folders(tmp_path / split / "y", {name or NFD: 1})
    made = classes(tree(tmp_path, "training/x/loose more/0"))
    assert made.splits["test"].x.labels == made.splits["test"].y.labels == [NFC]
    assert made.skipped == [
        f"{tmp_path / name}: 1 pictures that lie beside what is read"
        for name in ("more", "training/x")
    ]
    assert "Eval is read as test" in made.attributes["notes"]


def test_one_class_in_two_folders_is_refused(tmp_path):
    decomposing(tmp_path)
    for domain in "xy":
        class_folders(tmp_path / domain, {NFC: 1, "ant": 1})
    class_folders(tmp_path / "x", {NFD: 1})
    assert "are both the class" in refusal(classes, tmp_path, unseen_classes="1").message


# ---- the program


def test_no_output_replaces_what_iiae_did_not_write(iiae, tmp_path):
    tree(tmp_path, "p/x/0 p/y/0")
    before = (tmp_path / "p" / "x" / "0.png").read_bytes()
    for outputs in (["-o", "p/x/0.png"], ["-o", "o.h5", "--pictures", "p"]):
        done = iiae("prepare", "pairs", "p", *outputs, "--overwrite")
        assert "choose another" in done.error()[1]
    assert (tmp_path / "p" / "x" / "0.png").read_bytes() == before
