"""Sketchy Extended: both layouts of the archive, the named splits, the released features."""

import json
from pathlib import Path

import numpy as np
import pytest
from class_sources import NETWORK, class_folders, feature_arrays, make_quick, save_arrays
from helpers import Program, built

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.leaks import class_list_hash
from iiae_cli.data.sources import extraction
from iiae_cli.data.sources.class_splits import CLASS_SPLITS
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.sketchy import find_pictures_of

RANDOM = {"backbone": NETWORK, "backbone_weights": "none", "fine_tune_epochs": 0}
TX = "tx_000000000000"
UNSEEN = {name: sorted(classes) for name, classes in CLASS_SPLITS.items()}
ALL = sorted(
    {*(one for classes in CLASS_SPLITS.values() for one in classes), "ant", "hot_air_balloon"}
)
FOLDERS = {
    "jack_o_lantern": "jack-o-lantern",
    "hot_air_balloon": "hot-air_balloon",
}  # as the archive spells them


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)


def archive(root, *, below="", tx=TX, classes=ALL):
    """One sketch, one photo and one extended photo of every class."""
    once = {FOLDERS.get(name, name): 1 for name in classes}
    class_folders(root / below / "sketch" / tx, once)
    class_folders(root / below / "photo" / tx, once, ".jpg")
    class_folders(root / below / "extended_photo", once, ".jpg")
    return root


def make(source, **features):
    return built("sketchy", PrepareOptions(source=source, **features))


def refusal(*arguments, **keywords):
    with pytest.raises(IiaeError) as caught:
        make(*arguments, **keywords)
    assert caught.value.hint
    return caught.value


def told(prepared, name):
    return json.loads(prepared.attributes[name])


# ---- pictures


@pytest.mark.parametrize(("below", "tx"), [("", TX), ("256x256", TX), ("256x256", f"{TX}_ready")])
def test_both_layouts_give_sketches_and_all_photos(tmp_path, below, tx):
    found = find_pictures_of(
        archive(tmp_path, below=below, tx=tx, classes=["ant", "jack_o_lantern"])
    )
    prefix = f"{below}/" if below else ""
    assert [(one.id, one.label) for one in found["x"]] == [
        (f"{prefix}sketch/{tx}/ant/0.png", "ant"),
        (f"{prefix}sketch/{tx}/jack-o-lantern/0.png", "jack_o_lantern"),
    ]
    assert [one.id for one in found["y"]] == [
        *(f"{prefix}photo/{tx}/ant/0.jpg", f"{prefix}photo/{tx}/jack-o-lantern/0.jpg"),
        *(f"{prefix}extended_photo/ant/0.jpg", f"{prefix}extended_photo/jack-o-lantern/0.jpg"),
    ]
    assert all(one.path.is_file() for pictures in found.values() for one in pictures)


def test_other_transformations_are_left_alone(tmp_path):
    archive(tmp_path, classes=["ant"])
    class_folders(tmp_path / "sketch" / "tx_000100000000", {"ant": 3})
    class_folders(tmp_path / "sketch" / f"{TX}_ready", {"ant": 3})
    assert len(find_pictures_of(tmp_path)["x"]) == 1
    (tmp_path / "sketch" / TX).rename(tmp_path / "sketch" / f"{TX}_more")
    with pytest.raises(IiaeError, match="several tx_000000000000"):
        find_pictures_of(tmp_path)


@pytest.mark.parametrize("name", list(CLASS_SPLITS))
def test_a_named_split_is_made_and_named(tmp_path, name):
    prepared = make(archive(tmp_path), class_split=name, **RANDOM)
    train, test = prepared.splits["train"], prepared.splits["test"]
    assert (
        prepared.attributes["split_name"] == name and told(prepared, "test_classes") == UNSEEN[name]
    )
    assert prepared.attributes["test_classes_sha256"] == class_list_hash(CLASS_SPLITS[name])
    assert told(prepared, "train_classes") == sorted({*ALL} - {*UNSEEN[name]})
    assert set(test.x.labels) == set(test.y.labels) == set(UNSEEN[name])
    assert len(test.y) == 2 * len(test.x) == 2 * len(UNSEEN[name]) and len(train.x) + len(
        test.x.rows
    ) == len(ALL)


def test_the_papers_split_and_recipe_are_the_default(tmp_path, monkeypatch):
    asked = {}

    def spy(divided, options, **keywords):
        asked.update(keywords, divided=divided)
        raise IiaeError("stop", "here")

    monkeypatch.setattr(extraction, "plan_features", spy)
    assert refusal(archive(tmp_path)).message == "stop"
    assert asked["split_name"] == "sempcyc-25" and asked["epochs"] == 10
    assert {one.label for one in asked["divided"]["test"]["y"]} == set(UNSEEN["sempcyc-25"])
    monkeypatch.undo()
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    error = refusal(tmp_path)
    assert "vgg16-397923af.pth" in error.message and "--backbone-weights" in error.hint


def test_unseen_classes_of_ones_own(tmp_path, capsys):
    prepared = make(archive(tmp_path), unseen_classes="4", **RANDOM)
    assert (
        prepared.attributes["split_name"] == "unseen-4-seed0"
        and len(told(prepared, "test_classes")) == 4
    )
    assert "published with 75,479 and 73,002" in capsys.readouterr().err
    assert (
        "exclude each other" in refusal(tmp_path, unseen_classes="4", class_split="sake-25").message
    )


def test_an_incomplete_archive_is_refused_with_what_it_lacks(tmp_path):
    archive(tmp_path, classes=[name for name in ALL if name not in ("swan", "harp")])
    assert (
        "no class harp, swan of split sake-25"
        in refusal(tmp_path, class_split="sake-25", **RANDOM).message
    )
    assert "unknown class split 'best'" in refusal(tmp_path, class_split="best").message
    assert "does not exist" in refusal(tmp_path / "none").message
    (tmp_path / "empty").mkdir()
    error = refusal(tmp_path / "empty")
    assert "not laid out as Sketchy" in error.message and "extended_photo/CLASS" in error.hint
    with pytest.raises(IiaeError, match="was not named"):
        built("sketchy", PrepareOptions())


def test_a_test_class_without_a_readable_picture_makes_the_split_another(tmp_path, capsys):
    archive(tmp_path)
    (tmp_path / "sketch" / TX / "bear" / "0.png").write_bytes(b"broken")
    prepared = make(tmp_path, **RANDOM)
    assert prepared.attributes["split_name"] == "given" and "bear" not in told(
        prepared, "test_classes"
    )
    assert "not those of sempcyc-25" in capsys.readouterr().err
    assert [line.split(":")[0] for line in prepared.skipped][-1] == "class bear of test"


def test_without_extended_photos_it_is_said(tmp_path, capsys):
    import shutil

    shutil.rmtree(archive(tmp_path, classes=["ant"]) / "extended_photo")
    assert len(find_pictures_of(tmp_path)["y"]) == 1
    assert "no extended_photo/" in capsys.readouterr().err


# ---- released features


def released(root, part, classes):
    train = [FOLDERS.get(name, name) for name in ALL if name not in classes]
    test = [FOLDERS.get(name, name) for name in classes]
    arrays = feature_arrays({"train": train, "test": test}, rows=2)
    return save_arrays(root / part, arrays), arrays


@pytest.mark.parametrize("inside", ["SketchyVGG", ""])
def test_the_released_features_of_both_splits(tmp_path, inside):
    arrays = {
        name: released(tmp_path / inside, part, UNSEEN[name])[1]
        for name, part in (("sempcyc-25", "split1"), ("eccv18-21", "split2"))
    }
    for name, given in arrays.items():
        prepared = make(tmp_path, class_split=name)
        assert prepared.attributes["split_name"] == name
        assert prepared.attributes["test_classes_sha256"] == class_list_hash(CLASS_SPLITS[name])
        np.testing.assert_array_equal(prepared.splits["test"].y.rows, given["test_image_features"])
        assert "jack_o_lantern" in {
            *prepared.splits["train"].x.labels,
            *prepared.splits["test"].x.labels,
        }
        assert told(prepared, "backbone") == {
            "name": "vgg16",
            "weights": "released",
            "width": 6,
            "classes_seen": None,
            "classes_seen_complete": False,
        }
        assert "leak" not in prepared.attributes
    assert make(tmp_path).attributes["split_name"] == "sempcyc-25"
    assert make(tmp_path / inside / "split2").attributes["split_name"] == "eccv18-21"
    error = refusal(tmp_path, class_split="sake-25")
    assert (
        "no released features for sake-25" in error.message
        and "sempcyc-25 or eccv18-21" in error.hint
    )


def test_released_features_of_other_classes_are_recorded_as_given(tmp_path, capsys):
    released(tmp_path, "split1", [*UNSEEN["sempcyc-25"][:-1], "ant"])
    assert make(tmp_path).attributes["split_name"] == "given"
    assert "class split given" in capsys.readouterr().err
    prepared = make(tmp_path, class_split="sempcyc-25")
    assert prepared.attributes["split_name"] == "given" and "ant" in told(prepared, "test_classes")
    assert "not those of sempcyc-25" in capsys.readouterr().err


def test_the_program_prepares_released_features(iiae: Program, tmp_path: Path) -> None:
    released(tmp_path / "SketchyVGG", "split1", UNSEEN["sempcyc-25"])
    outcome = iiae("prepare", "sketchy", tmp_path, "-o", "s.h5", "--split", "sempcyc-25", "--json")
    assert outcome.code == 0
    assert outcome.json["rows"]["test"] == {"x": 50, "y": 75, "classes": 25}
    error, hint = iiae("prepare", "sketchy", tmp_path, "-o", "t.h5", "--split", "sempcyc").error()
    assert "sempcyc" in error and "sempcyc-25" in hint
