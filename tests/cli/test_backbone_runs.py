"""Runs of features take pictures: through their own backbone, whose weights may have moved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from class_sources import NETWORK, class_folders, make_quick
from helpers import call

from iiae_cli import load
from iiae_cli.data.datafile import DataFile
from iiae_cli.inference.latents import LatentCache

TRAINING = ("--steps", "3", "--set", "training.samples=0")
SKETCHES, PHOTOS = "sketchy/sketch/tx_000000000000", "sketchy/photo/tx_000000000000"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)


def weights_file(path, seed=5):
    torch.manual_seed(seed)
    torch.save(torchvision.models.get_model(NETWORK, weights=None).state_dict(), path)
    return path


def means(path):
    return LatentCache.read(Path(path)).shared


def run_of(*prepare, preset="sketchy"):
    """Prepare a data file, train a few steps, as RUN."""
    assert call("prepare", *prepare, "-o", "data.h5").code == 0
    outcome = call("train", "--preset", preset, "--data", "data.h5", "--run", "run", *TRAINING)
    assert outcome.code == 0, outcome.err


PREPARE = ("sketchy", "sketchy", "--unseen-classes", "unseen.txt", "--fine-tune-epochs", "0")
PREPARE += ("--backbone", NETWORK, "--backbone-weights")
ENCODE = ("encode", f"{PHOTOS}/cow", "--domain", "y", "-o")


@pytest.fixture
def sketchy(iiae, tmp_path):
    """A run on a small Sketchy, its backbone's weights in w.pth, others in other.pth."""
    classes = dict.fromkeys(("ant", "bee", "cow"), 2)
    class_folders(tmp_path / SKETCHES, classes)
    class_folders(tmp_path / PHOTOS, classes, ".jpg")
    (tmp_path / "unseen.txt").write_text("cow\n")
    weights_file(tmp_path / "w.pth")
    weights_file(tmp_path / "other.pth", seed=6)
    run_of(*PREPARE, "w.pth")
    return iiae


def test_a_sketchy_run_takes_pictures_as_it_took_its_data(sketchy):
    outcome = sketchy(*ENCODE, "z.h5", "--run", "run")
    assert outcome.code == 0, outcome.err
    rows = DataFile(Path("data.h5")).split("test").y.rows
    expected = load("run").encode(rows, "y").shared
    np.testing.assert_allclose(means("z.h5"), expected, rtol=1e-4, atol=1e-5)
    told = sketchy("evaluate", "--run", "run", "--json").json["protocol"]["backbone"]
    assert told["name"] == NETWORK and "cannot be told" in told["trained_on"]
    query = f"{SKETCHES}/cow/0.png"
    for index in (("--index", "z.h5"), ()):
        found = sketchy("retrieve", query, "--k", 2, "--run", "run", "--json", *index)
        assert len(found.json["results"][0]["neighbours"]) == 2, found.err
    assert sketchy("export", "run", "-o", "exported").code == 0
    assert sketchy(*ENCODE, "again.h5", "--run", "exported").code == 0
    np.testing.assert_array_equal(means("again.h5"), means("z.h5"))
    Path("broken.png").write_bytes(b"no picture")
    outcome = sketchy("encode", query, "broken.png", "--domain", "x", "-o", "x.h5", "--run", "run")
    assert outcome.code == 3 and "broken.png" in outcome.err and len(means("x.h5")) == 1


def test_weights_that_moved_are_named_and_others_refused(sketchy, monkeypatch):
    monkeypatch.setenv("IIAE_RUN", "run")
    shutil.move("w.pth", "moved.pth")
    error, hint = sketchy(*ENCODE, "z.h5").error()
    assert "w.pth" in error and "--backbone-weights FILE" in hint
    assert sketchy(*ENCODE, "z.h5", "--backbone-weights", "moved.pth").code == 0
    monkeypatch.setenv("IIAE_BACKBONE_WEIGHTS", "moved.pth")
    assert sketchy(*ENCODE, "again.h5").code == 0
    np.testing.assert_array_equal(means("z.h5"), means("again.h5"))
    error, hint = sketchy(*ENCODE, "o.h5", "--backbone-weights", "other.pth").error()
    assert "the weights of the run's backbone" in error and "--backbone-weights FILE" in hint
    assert sketchy("prepare", *PREPARE, "other.pth", "-o", "other.h5").code == 0
    for command in (
        ("encode", "other.h5", "--domain", "y", "-o", "z.h5"),
        ("evaluate", "--data", "other.h5"),
        ("retrieve", "other.h5", "--domain", "x"),
    ):
        error, hint = sketchy(*command).error()
        assert "weights_sha256 differ" in error and "backbone" in hint


def test_fine_tuned_networks_stay_beside_the_data_file(iiae, tmp_path):
    for domain in "xy":
        class_folders(tmp_path / "mine" / "train" / domain, {"ant": 4, "bee": 4})
        class_folders(tmp_path / "mine" / "test" / domain, {"cow": 2})
    backbone = ("--backbone", NETWORK, "--backbone-weights", "none", "--fine-tune-epochs", 1)
    run_of("classes", "mine", *backbone, preset="features")
    record = json.loads(DataFile(Path("data.h5")).info.attributes["backbone"])
    assert record["weights"] == "fine-tuned" and record["weights_path"].endswith("data.backbone")
    outcome = iiae("encode", "mine/test/x", "--domain", "x", "-o", "z.h5", "--run", "run")
    assert outcome.code == 0, outcome.err
    expected = load("run").encode(DataFile(Path("data.h5")).split("test").x.rows, "x").shared
    np.testing.assert_allclose(means("z.h5"), expected, rtol=1e-4, atol=1e-5)
    shutil.move("data.backbone", "moved")
    retrieve = ("retrieve", "mine/test/x/cow/0.png", "--run", "run")
    assert "--backbone-weights DIR" in iiae(*retrieve).error()[1]
    assert iiae(*retrieve, "--backbone-weights", "moved").code == 0


def test_pairs_of_pictures_become_pairs_of_features(iiae, tmp_path):
    for domain, count in (("x", 11), ("y", 10)):  # the last has no partner
        class_folders(tmp_path / "pairs", {domain: count})
    weights_file("w.pth")
    backbone = ("--backbone", NETWORK, "--backbone-weights", "w.pth")
    outcome = iiae("prepare", "pairs", "pairs", *backbone, "-o", "data.h5", "--json")
    assert outcome.code == 3 and outcome.json["splits"] == {"train": 8, "valid": 1, "test": 1}
    file = DataFile(Path("data.h5"))
    train = file.split("train")
    assert train.x.ids == train.y.ids and train.x.rows.shape == (8, 1024)
    assert file.info.is_features and not file.info.by_class
    assert json.loads(file.info.attributes["backbone"])["weights_path"] == str(tmp_path / "w.pth")
    train = ("train", "--preset", "pair-features", "--data", "data.h5", "--run", "run")
    assert iiae(*train, "--steps", 2).code == 0
    outcome = iiae("retrieve", "pairs/x/3.png", "--run", "run", "--k", 1)
    assert len(outcome.out.splitlines()) == 1, outcome.err
    translate = ("translate", "pairs/x/3.png", "--from", "x", "--run", "run")
    assert len(iiae(*translate, "-o", "out").out.splitlines()) == 3
    assert np.load("out/3-to-y-sample1.npy").shape == (1024,)
    assert "-o DIR" in iiae(*translate, "--grid", "g.png").error()[1]
    for refused in ("--side-by-side", "--fine-tune-epochs=2", "--image-size=32"):
        assert iiae("prepare", "pairs", "pairs", *backbone, "-o", "no.h5", refused).code == 2
