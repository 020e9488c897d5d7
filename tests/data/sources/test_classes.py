"""Your own classes: layouts, unseen classes, extraction, leaks, resuming; the program."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from class_sources import (
    NETWORK,
    assert_same_data,
    class_folders,
    feature_arrays,
    make_quick,
    save_arrays,
    told,
)
from helpers import Program, StopAt, built, refusal
from torch import nn

from iiae_cli.common.errors import Interrupted
from iiae_cli.data.datafile import DataFile, class_list_hash
from iiae_cli.data.sources import extraction
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import prepare_file

RANDOM = {"backbone": NETWORK, "backbone_weights": "none"}


prepared = partial(built, "classes")
refused = partial(refusal, prepared)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)


@pytest.fixture
def divided(tmp_path):
    """Seen ant, bee and unseen cow; x and y of different lengths."""
    source = tmp_path / "mine"
    class_folders(source / "train" / "x", {"ant": 4, "bee": 3})
    class_folders(source / "train" / "y", {"ant": 5, "bee": 2})
    class_folders(source / "test" / "x", {"cow": 2})
    class_folders(source / "test" / "y", {"cow": 3})
    return source


# ---- layouts


def test_divided_pictures_become_features(divided):
    for domain in "xy":
        class_folders(divided / "val" / domain, {"bee": 1, "dog": 0})
    made = prepared(divided, **RANDOM)
    train, test = made.splits["train"], made.splits["test"]
    assert train.x.rows.shape == train.y.rows.shape == (7, 1024) and train.pairs is None
    assert test.x.rows.shape == (2, 1024) and test.y.rows.shape == (3, 1024)
    assert train.x.rows.dtype == np.float32 and made.splits["valid"].x.labels == ["bee"]
    assert train.x.labels == ["ant"] * 4 + ["bee"] * 3 and test.y.labels == ["cow"] * 3
    assert train.x.ids[4] == "train/x/bee/0.png"
    assert made.attributes["alignment"] == "class" and made.attributes["split_name"] == "given"
    assert f"{divided / 'val' / 'x' / 'dog'} holds no pictures" in made.attributes["notes"]
    assert told(made, "test_classes") == ["cow"] and told(made, "train_classes") == ["ant", "bee"]
    assert made.attributes["test_classes_sha256"] == class_list_hash(["cow"])
    backbone = told(made, "backbone")
    assert (backbone["name"], backbone["weights"], backbone["width"]) == (NETWORK, "random", 1024)
    assert backbone["fine_tuning"] is None and backbone["classes_seen"] == told(made, "leak") == []
    assert set(backbone["versions"]) == {"torch", "torchvision"}


def test_classes_of_one_domain_and_unreadable_pictures_are_named_and_left_out(divided):
    class_folders(divided / "train" / "x", {"elk": 2, "gnu": 1})
    class_folders(divided / "test" / "y", {"fox": 1})
    lost = [divided / "train" / "y" / "ant" / "0.png"]
    lost += class_folders(divided / "train" / "y", {"gnu": 1})
    for path in lost:
        path.write_bytes(b"broken")
    made = prepared(divided, **RANDOM)
    assert [line.split(":")[0] for line in made.skipped] == [
        f"class elk of {divided / 'train'}",
        f"class fox of {divided / 'test'}",
        *map(str, lost),
        "class gnu of train",
    ]
    train = made.splits["train"]
    assert (len(train.x), len(train.y)) == (7, 6) and set(train.x.labels) == {"ant", "bee"}
    assert "train/y/ant/0.png" not in train.y.ids and told(made, "train_classes") == ["ant", "bee"]


def test_a_limit_leaves_every_class_some(divided):
    made = prepared(divided, limit=3, **RANDOM)
    train = made.splits["train"]
    assert train.x.ids == ["train/x/ant/0.png", "train/x/ant/1.png", "train/x/bee/0.png"]
    assert train.y.labels == ["ant", "ant", "bee"] and len(made.splits["test"].y) == 3
    assert "--limit 1 is fewer than the 2 classes" in refused(divided, limit=1, **RANDOM).message


def test_other_layouts_are_refused_with_a_way_out(tmp_path, divided, capsys):
    assert "--backbone resnet18" in refused(divided).hint
    assert "--unseen-classes out" in refused(divided, unseen_classes="1", **RANDOM).hint
    assert "--unseen-classes 10" in refused(divided / "train", **RANDOM).hint
    (divided / "train").rename(divided / "valid")
    assert "no folder train/" in refused(divided, **RANDOM).message
    class_folders(tmp_path / "apart" / "x", {"ant": 1})
    class_folders(tmp_path / "apart" / "y", {"bee": 1})
    assert "in both x/ and y/" in refused(tmp_path / "apart", **RANDOM).message
    assert "class ant of" in (err := capsys.readouterr().err) and "class bee of" in err


# ---- features as given


@pytest.mark.parametrize("place", [".", "split1", "mine.npz"])
def test_given_features_are_taken_as_they_are_and_lone_classes_left_out(tmp_path, place):
    arrays = feature_arrays({"train": ["ant", "bee"], "test": ["cow", "dog"]})
    keep = ["/dog/" not in path for path in arrays["test_image_paths"]]
    for name in ("test_image_paths", "test_image_features"):
        arrays[name] = arrays[name][keep]
    save_arrays(tmp_path / place, arrays)  # a folder's only .npz is its features
    (tmp_path / "README.md").touch()
    made = prepared(tmp_path)
    train = made.splits["train"]
    np.testing.assert_array_equal(train.x.rows, arrays["train_sketch_features"])
    assert train.y.labels == ["ant"] * 4 + ["bee"] * 4 and train.pairs is None
    assert made.skipped == ["class dog of test: only in x, its 3 rows are left out"]
    assert made.splits["test"].x.ids == [f"data/sketch/cow/{number}.png" for number in range(3)]
    assert told(made, "test_classes") == ["cow"] and "leak" not in made.attributes
    backbone = told(made, "backbone")
    assert backbone["weights"] == "given" and backbone["classes_seen"] is None
    assert len(made.attributes["source_sha256"]) == 64
    assert "already divided" in refused(tmp_path, unseen_classes="1").message
    assert "already divided" in refused(tmp_path, backbone="vgg16").message


def test_given_features_that_are_not_finite_are_refused(tmp_path):
    arrays = feature_arrays({"train": ["ant"], "test": ["cow", "dog"]})
    arrays["train_sketch_features"] = np.full((3, 6), 1e300)
    error = refused(save_arrays(tmp_path, arrays))
    assert "the features of data/sketch/ant/0.png are not finite" in error.message


# ---- extraction


def test_features_are_those_of_each_picture_in_order(divided, monkeypatch):
    class Means(nn.Module):
        def forward(self, pictures):
            return pictures.mean((2, 3))

    monkeypatch.setattr("iiae_cli.data.backbone.network_of", lambda *_: Means())
    (divided / "train" / "x" / "ant" / "2.png").write_bytes(b"broken")
    for size, workers in ((2, 1), (64, 3)):
        options = {**RANDOM, "normalise": False, "batch_size": size, "workers": workers}
        side = prepared(divided, **options).splits["train"].x
        numbers = [path.rpartition("/")[2][0] for path in side.ids]
        assert numbers == ["0", "1", "3", "0", "1", "2"]
        levels = np.where(np.array(side.labels) == "ant", 40, 77) / 255
        np.testing.assert_allclose(side.rows.mean(1), levels, atol=0.01)


def test_domains_without_readable_pictures_are_refused(divided):
    for path in (divided / "test" / "y").rglob("*.png"):
        path.write_bytes(b"broken")
    assert "no picture of test/y can be read" in refused(divided, **RANDOM).message


# ---- fine-tuning and leaks


def test_fine_tuning_sees_training_pictures_alone_and_a_leak_is_refused(
    divided, tmp_path, monkeypatch
):
    shown, fine_tune = {}, extraction.fine_tune

    def spy(extractor, side, *more):
        shown[extractor.domain] = {path.relative_to(divided).parts[:3] for path in side.rows}
        return fine_tune(extractor, side, *more)

    monkeypatch.setattr(extraction, "fine_tune", spy)
    kept = tmp_path / "kept"
    made = prepared(divided, **RANDOM, fine_tune_epochs=1, save_backbone=kept)
    assert shown == {
        domain: {("train", domain, label) for label in ("ant", "bee")} for domain in "xy"
    }
    backbone = told(made, "backbone")
    assert backbone["classes_seen"] == ["ant", "bee"] and told(made, "leak") == []
    tuning = backbone["fine_tuning"]
    assert (tuning["epochs"], tuning["momentum"]) == (1, 0.9)
    assert backbone["width"] == 512 and made.splits["test"].y.rows.shape == (3, 512)
    assert (made.splits["train"].x.rows < 0).any()

    # The kept networks give the same features, and are refused where they saw a test class.
    again = prepared(divided, backbone_weights=str(kept))
    np.testing.assert_array_equal(again.splits["test"].x.rows, made.splits["test"].x.rows)
    assert told(again, "backbone")["classes_seen"] == ["ant", "bee"]
    assert told(again, "backbone")["fine_tuning"] == tuning
    for domain in "xy":
        (divided / "test" / domain / "cow").rename(divided / "test" / domain / "bee")
    error = refused(divided, backbone_weights=str(kept))
    assert "1 of the test classes: bee" in error.message and "--allow-leak" in error.hint
    assert told(prepared(divided, backbone_weights=str(kept), allow_leak=True), "leak") == ["bee"]
    # Fine-tuning on a class that is tested too is a leak as well.
    assert "1 of the test classes: bee" in refused(divided, **RANDOM, fine_tune_epochs=1).message
    # Kept networks exclude other options, and remember how pictures were prepared.
    weights = {"backbone_weights": str(kept), "allow_leak": True}
    again = told(prepared(divided, **weights, normalise=False), "backbone")
    normalised = [said["preprocessing"]["normalise"] for said in (again, again["fine_tuning"])]
    assert normalised == [False, True]
    assert "leave --backbone" in refused(divided, **weights, backbone="vgg16").hint
    alone = {**RANDOM, "backbone_weights": str(kept / "x.safetensors")}
    assert "does not fit" in refused(divided, **alone).message
    (kept / "y.safetensors").unlink()
    assert "y.safetensors does not exist" in refused(divided, **weights).message


def test_switches_reach_the_pictures(divided, tmp_path):
    plain = prepared(divided, **RANDOM)
    inverted = prepared(divided, **RANDOM, invert_sketches=True)
    raw = prepared(divided, **RANDOM, normalise=False)
    x, y = ([made.splits["test"].side(d).rows for made in (plain, inverted, raw)] for d in "xy")
    assert not np.allclose(x[0], x[1]) and not np.allclose(y[0], y[2])
    np.testing.assert_array_equal(y[0], y[1])
    assert "nothing to save" in refused(divided, **RANDOM, save_backbone=tmp_path / "m").message


# ---- interruption


def test_an_interrupted_fine_tuning_ends_in_equal_values(divided, tmp_path):
    tuned = {"fine_tune_epochs": 2, "save_backbone": tmp_path / "kept", "batch_size": 2}
    options = PrepareOptions(source=divided, **RANDOM, **tuned)

    def prepare(name, **more):
        prepare_file("classes", tmp_path / name, options, **more)
        return DataFile(tmp_path / name)

    whole = prepare("whole.h5")
    with pytest.raises(Interrupted):
        prepare("part.h5", stop=StopAt(3))
    assert not (tmp_path / "part.h5").exists()
    assert "--resume" in refusal(prepare, "part.h5").hint
    resumed = prepare("part.h5", resume=True)
    one, other = (dict(file.info.attributes) for file in (resumed, whole))
    backbones = [json.loads(said.pop("backbone")) for said in (one, other)]
    assert one == other
    for backbone in backbones:  # a network's file lists its header in any order
        del backbone["weights_sha256"]
    assert backbones[0] == backbones[1]
    assert_same_data(tmp_path / "part.h5", tmp_path / "whole.h5")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "part.h5", "whole.h5", "kept"}


# ---- the program


def test_the_program_shows_both_domains(iiae: Program, divided: Path):
    command = ["prepare", "classes", divided, "--backbone", NETWORK, "--backbone-weights", "none"]
    outcome = iiae(*command, "-o", "mine.h5", "--json")
    assert outcome.code == 0 and "random weights" in outcome.err
    assert outcome.json["splits"] == {"train": 7, "valid": 0, "test": 2}
    assert outcome.json["rows"]["test"] == {"x": 2, "y": 3, "classes": 1}
    assert DataFile(Path("mine.h5")).info.by_class
    assert "--pictures" in iiae(*command, "-o", "more.h5", "--pictures", "p").error()[0]
