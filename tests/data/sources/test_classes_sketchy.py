"""Sketchy Extended: layouts, named splits, released features; and other divisions of classes."""

import shutil
from functools import partial

import numpy as np
import pytest
from class_sources import NETWORK, class_folders, feature_arrays, make_quick, save_arrays, told
from helpers import built, refusal

from iiae_cli.data.datafile import CLASS_SPLITS, Side, Split, class_list_hash, normalise_class
from iiae_cli.data.names import Notes
from iiae_cli.data.sources import extraction
from iiae_cli.data.sources.classes import divide_unseen, find_pictures
from iiae_cli.data.sources.plan import PrepareOptions

RANDOM = {"backbone": NETWORK, "backbone_weights": "none", "fine_tune_epochs": 0}
TX = "tx_000000000000"
UNSEEN = {name: sorted(classes) for name, classes in CLASS_SPLITS.items()}
ALL = sorted({*UNSEEN["sempcyc-25"], *UNSEEN["eccv18-21"], *UNSEEN["sake-25"], "ant"})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)


def as_stored(name):
    """As the archive spells it."""
    return name.replace("jack_o_lantern", "jack-o-lantern")


def archive(root, *, below="", tx=TX, classes=ALL):
    """One sketch, one photo and one extended photo of every class."""
    once = {as_stored(name): 1 for name in classes}
    class_folders(root / below / "sketch" / tx, once)
    class_folders(root / below / "photo" / tx, once, ".jpg")
    class_folders(root / below / "extended_photo", once, ".jpg")
    return root


make = partial(built, "sketchy")
refused = partial(refusal, make)


# ---- pictures


@pytest.mark.parametrize(("below", "tx"), [("", TX), ("256x256", f"{TX}_ready")])
def test_both_layouts_give_sketches_and_all_photos_and_count_the_rest(tmp_path, below, tx):
    archive(tmp_path, below=below, tx=tx, classes=["ant", "jack_o_lantern"])
    root, notes = tmp_path / below, Notes()
    class_folders(root / "sketch" / "tx_000100000000", {"ant": 3})
    class_folders(tmp_path, {"more": 2})
    class_folders(root / "sketch", {tx: 1})
    found = find_pictures(tmp_path, notes)
    other = root / "sketch" / "tx_000100000000"
    assert notes.decided == [f"{other} is not read, as it is another transform"]
    more, loose = notes.skipped
    assert more.startswith(f"{tmp_path / 'more'}: 2 pictures that lie beside")
    assert loose.startswith(f"{root / 'sketch' / tx}: 1 pictures that lie beside")
    names = ("ant", "jack-o-lantern")
    prefix = f"{below}/" if below else ""
    assert found.x.ids == [f"{prefix}sketch/{tx}/{name}/0.png" for name in names]
    assert found.y.ids == [
        *(f"{prefix}photo/{tx}/{name}/0.jpg" for name in names),
        *(f"{prefix}extended_photo/{name}/0.jpg" for name in names),
    ]
    assert found.x.labels == ["ant", "jack_o_lantern"] and found.y.labels == found.x.labels * 2
    assert all(path.is_file() for side in (found.x, found.y) for path in side.rows)


def test_sketchy_without_its_extension_is_said(tmp_path):
    notes = Notes()
    shutil.rmtree(archive(tmp_path, classes=["ant"]) / "extended_photo")
    assert len(find_pictures(tmp_path, notes).y) == 1
    assert "no extended_photo/" in notes.decided[0]


@pytest.mark.parametrize("name", CLASS_SPLITS)
def test_a_named_split_is_made_and_named(tmp_path, name):
    made = make(archive(tmp_path), split=name, **RANDOM)
    train, test = made.splits["train"], made.splits["test"]
    assert made.attributes["split_name"] == name and told(made, "test_classes") == UNSEEN[name]
    assert made.attributes["test_classes_sha256"] == class_list_hash(CLASS_SPLITS[name])
    assert told(made, "train_classes") == sorted({*ALL} - {*UNSEEN[name]})
    assert set(test.x.labels) == set(test.y.labels) == {*UNSEEN[name]}
    assert len(test.y) == 2 * len(test.x) == 2 * len(UNSEEN[name])
    assert len(train.x) + len(test.x) == len(ALL)


def test_the_papers_split_and_recipe_are_the_default(tmp_path, monkeypatch):
    asked = {}

    def spy(divided, *options, **keywords):
        asked.update(keywords, test=set(divided["test"].y.labels))
        return plan_features(divided, *options, **keywords)

    plan_features = extraction.plan_features
    monkeypatch.setattr(extraction, "plan_features", spy)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    error = refused(archive(tmp_path))
    assert "vgg16-397923af.pth" in error.message and "--backbone-weights" in error.hint
    assert (asked["split_name"], asked["epochs"]) == ("sempcyc-25", 10)
    assert asked["test"] == {*UNSEEN["sempcyc-25"]}


def test_other_divisions_and_incomplete_archives(tmp_path):
    (tmp_path / "empty").mkdir()
    error = refused(tmp_path / "empty")
    assert "not laid out as Sketchy" in error.message and "extended_photo/CLASS" in error.hint
    source = archive(tmp_path / "a", classes=[name for name in ALL if name not in ("swan", "harp")])
    made = make(source, unseen_classes="4", **RANDOM)
    assert made.attributes["split_name"] == "unseen-4-seed0"
    assert len(told(made, "test_classes")) == 4
    assert "exclude each other" in refused(source, unseen_classes="4", split="sake-25").message
    lacking = refused(source, split="sake-25", **RANDOM)
    assert "no class harp, swan of split sake-25" in lacking.message


def test_a_test_class_without_a_readable_picture_makes_the_split_another(tmp_path, capsys):
    archive(tmp_path)
    (tmp_path / "sketch" / TX / "bear" / "0.png").write_bytes(b"broken")
    made = make(tmp_path, **RANDOM)
    assert made.attributes["split_name"] == "given" and "bear" not in told(made, "test_classes")
    assert "not those of sempcyc-25" in capsys.readouterr().err
    assert made.skipped[-1].startswith("class bear of test")


# ---- released features


def released(root, part, classes):
    train = [as_stored(name) for name in ALL if name not in classes]
    arrays = feature_arrays({"train": train, "test": [as_stored(name) for name in classes]}, rows=2)
    save_arrays(root / part, arrays)
    return arrays


@pytest.mark.parametrize("inside", ["SketchyVGG", ""])
def test_the_released_features_of_both_splits(tmp_path, capsys, inside):
    for name, part in (("sempcyc-25", "split1"), ("eccv18-21", "split2")):
        arrays = released(tmp_path / inside, part, UNSEEN[name])
        made = make(tmp_path, split=name)
        assert made.attributes["split_name"] == name and "leak" not in made.attributes
        assert made.attributes["test_classes_sha256"] == class_list_hash(CLASS_SPLITS[name])
        np.testing.assert_array_equal(made.splits["test"].y.rows, arrays["test_image_features"])
        labels = {label for split in made.splits.values() for label in split.x.labels}
        assert labels == {*ALL}
        backbone = {"name": "vgg16", "weights": "released", "width": 6}
        seen = {"classes_seen": None, "classes_seen_complete": False}
        assert told(made, "backbone") == {**backbone, **seen}
    assert make(tmp_path).attributes["split_name"] == "sempcyc-25"
    assert make(tmp_path / inside / "split2").attributes["split_name"] == "eccv18-21"
    error = refused(tmp_path, split="sake-25")
    assert "not laid out as Sketchy" in error.message and "released features" in error.hint
    released(tmp_path / inside, "split1", [*UNSEEN["sempcyc-25"][:-1], "ant"])  # of other classes
    made = make(tmp_path, split="sempcyc-25")
    assert made.attributes["split_name"] == "given" and "ant" in told(made, "test_classes")
    assert "not those of sempcyc-25" in capsys.readouterr().err


# ---- divisions of classes


def test_the_published_lists_have_their_classes():
    hashes = {name: class_list_hash(classes)[:12] for name, classes in CLASS_SPLITS.items()}
    assert hashes == {
        "sempcyc-25": "48988ec24cb3",
        "eccv18-21": "e9111ba44e60",
        "sake-25": "8e6c3d72376d",
    }
    assert len(class_list_hash(["caf\udce9"])) == 64  # a folder's name that is no UTF-8
    for name, classes in CLASS_SPLITS.items():
        assert len(classes) == int(name.rpartition("-")[2])
        assert all(label == normalise_class(label) for label in classes)


def unseen(value, known, seed=0):
    """The test classes that `--unseen-classes` makes of known ones, and the division's name."""
    side = Side(np.zeros((len(known), 1), np.float32), list(known), list(known))
    options = PrepareOptions(unseen_classes=str(value), seed=seed)
    splits, name = divide_unseen(Split(side, side), options)
    train, test = splits["train"].x.labels, splits["test"].y.labels
    assert not {*train} & {*test} and {*train, *test} == {*known}
    return test, name


def test_a_number_of_classes_is_drawn_by_seed():
    known = [f"c{number:02}" for number in range(20)]
    drawn, name = unseen(6, known, seed=3)
    assert len(drawn) == 6 and name == "unseen-6-seed3"
    assert {*unseen(6, known[::-1], seed=3)[0]} == {*drawn}
    assert len({tuple(unseen(6, known, seed)[0]) for seed in range(5)}) > 1
    for number in (0, 20, 21):
        assert "leaves no class to train" in refusal(unseen, number, known).message


def test_a_file_names_classes_in_any_spelling(tmp_path):
    path = tmp_path / "unseen.txt"
    path.write_text("\ufeff# mine\r\nteddy bear\r\n\r\nzebra\r\ncafe\u0301\r\n")  # by Windows
    known = ["ant", "caf\u00e9", "teddy bear", "teddy-bear", "zebra"]  # \u00e9 is composed
    assert unseen(path, known) == (known[1:], "given")
    assert "no class teddy bear of" in refusal(unseen, path, known[:2] + known[4:]).message
    assert "no class to train" in refusal(unseen, path, known[1:]).message
    path.write_text("# nothing\n")
    assert "no class to train or to test" in refusal(unseen, path, ["ant"]).message
    assert "takes a number, or a text file" in refusal(unseen, tmp_path / "none", ["ant"]).hint
