"""Training and evaluating on rows paired by class: hold-out, selection, the second training,
resume, leaks.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from class_sources import write_features
from helpers import metrics_of, sets, stopping_at
from safetensors.torch import load_file
from test_train import same_tensors

from iiae_cli.config import Config
from iiae_cli.data.datafile import DataFile, Side, Split, class_list_hash, write_data_file
from iiae_cli.training.data import TrainingData

SMALL = sets(
    "model.feature_width=16 model.exclusive_hidden=[16,8] model.shared_hidden=8 model.shared=6 "
    "model.exclusive=4 model.decoder_hidden=8 training.validate_every=5 "
    "training.checkpoint_every=7 training.log_every=4"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """8 training and 4 test classes of 15 rows in each domain."""
    folder = tmp_path_factory.mktemp("classes")
    write_features(folder / "mine.npz", 1)
    arrays = np.load(folder / "mine.npz")
    splits = {}
    for split in ("train", "test"):
        x, y = arrays[f"{split}_sketch_features"], arrays[f"{split}_image_features"][:-2]
        labels = [
            [f"class {code}" for code in arrays[f"{split}_{word}_labels"]]
            for word in ("sketch", "image")
        ]
        ids = [f"{split}/{number}" for number in range(len(x))]
        splits[split] = Split(Side(x, ids, labels[0]), Side(y, ids[:-2], labels[1][:-2]))
    seen = {"classes_seen": ["class 0", "class 1"], "classes_seen_complete": True}
    backbone = json.dumps({"name": "given", **seen})
    attributes = {"alignment": "class", "backbone": backbone}
    write_data_file(folder / "mine.h5", "classes", splits, attributes)
    return folder / "mine.h5"


def train(iiae, data, run, *more, preset="features", steps=20):
    named = ("--preset", preset, "--data", data, "--run", run, "--steps", steps)
    return iiae("train", *named, *SMALL, *more)


def training_data(data, **section):
    return TrainingData(DataFile(data), Config.model_validate({"data": section}))


# ---- what is held out


def test_whole_classes_are_held_out_of_both_domains(data):
    held = training_data(data, holdout=0.25)
    assert held.validation is not None and held.validation.x.labels is not None
    away = {*held.validation.x.labels} | {*(held.validation.y.labels or [])}
    assert len(away) == 2 and len(held.train.classes) == 6
    assert not away & {*(held.train.x.labels or []), *(held.train.y.labels or [])}
    assert len(held.train.x) + len(held.validation.x) == 120
    assert len(held.train.y) + len(held.validation.y) == 118
    held.use_all()
    for everything in (held, training_data(data, holdout=0.0)):
        assert len(everything.train.classes) == 8 and everything.validation is None
        assert not everything.holds_out


# ---- runs


def test_the_shared_means_are_held_where_training_gains_nothing(iiae, data):
    outcome = train(iiae, data, "run", "--set", "selection.least_gain=9", "--json")
    assert outcome.code == 0 and "the shared means held where they began" in outcome.err
    assert outcome.json["steps"] == 40
    weights = load_file("run/model.safetensors")
    held = ("shared.x", "shared.y", "joint_shared")
    assert all(weights[f"{name}.learned"] == 0.0 for name in held)
    assert (weights["shared.x.linear.weight"] == weights["shared.y.linear.weight"]).all()
    # The closed form is that of all training classes, held-out ones too.
    x = h5py.File(data)["train/x"][()]
    np.testing.assert_allclose(weights["standardise.x.mean"], x.mean(axis=0), rtol=1e-4, atol=1e-4)


def test_with_too_few_classes_to_hold_out_the_means_are_held_at_once(iiae, data):
    outcome = train(iiae, data, "run", "--set", "data.holdout=0", "--json")
    assert outcome.code == 0 and "the shared means held where they began" in outcome.err
    assert load_file("run/model.safetensors")["joint_shared.learned"] == 0.0
    assert [line["step"] for line in metrics_of("run")] == [24, 28, 32, 36, 40]


def test_domains_of_different_width_train_without_a_closed_form_or_a_baseline(iiae, data, tmp_path):
    splits = {name: DataFile(data).split(name) for name in ("train", "test")}
    for split in splits.values():
        split.y.rows = split.y.rows[:, :7]
    write_data_file(tmp_path / "narrow.h5", "classes", splits, {"alignment": "class"})
    outcome = train(iiae, tmp_path / "narrow.h5", "run")
    assert outcome.code == 0 and "linear paths begin at random" in outcome.err
    figures = iiae("evaluate", "--run", "run", "--json").json["zero_shot"]
    assert {"x_to_y", "y_to_x", "exclusive"} == set(figures)


def test_a_gain_is_trained_again_on_all_classes(iiae, data):
    outcome = train(iiae, data, "run", "--set", "selection.from_start=false", steps=40)
    assert outcome.code == 0 and "shared means held" not in outcome.err
    lines = metrics_of("run")
    validations = [line for line in lines if line["kind"] == "validation" and line["step"] > 0]
    best = max(validations, key=lambda line: (sum(line["shared_map"]), line["step"]))
    assert lines[-1]["step"] == 40 + best["step"]
    assert load_file("run/model.safetensors")["shared.x.learned"] == 1.0


@pytest.mark.parametrize("stop_after", [3, 14, 20, 26])
def test_resuming_either_training_ends_in_the_same_weights(iiae, data, stop_after):
    """Steps 1 to 20 are the first training's, 21 to 40 the second's."""
    gain = ("--set", "selection.least_gain=9")
    assert train(iiae, data, "whole", *gain).code == 0

    with stopping_at(stop_after):
        stopped = train(iiae, data, "parts", *gain)
    assert stopped.code == 75 and f"saved at step {stop_after}" in stopped.err
    assert iiae("evaluate", "--run", "parts").code == 0
    assert train(iiae, data, "parts", *gain, "--resume").code == 0
    for name in ("model.safetensors", "checkpoints/step-00000040.safetensors"):
        assert same_tensors(Path("whole") / name, Path("parts") / name)


def test_a_collapsed_model_is_warned_of(iiae, data):
    more = ("--set", "data.holdout=0.3", "--set", "objective.reconstruction_weight=0.001")
    outcome = train(iiae, data, "run", *more, preset="sketchy", steps=5)
    assert "below the training-free baseline on validation: mAP@all" in outcome.err
    assert "objective.reconstruction_weight" in outcome.err and "--preset features" in outcome.err


# ---- evaluation


def test_zero_shot_is_what_rows_paired_by_class_are_measured_by(iiae, data):
    train(iiae, data, "run")
    outcome = iiae("evaluate", "--run", "run", "--json")
    assert outcome.code == 0
    figures, protocol = outcome.json["zero_shot"], outcome.json["protocol"]
    assert {"x_to_y", "y_to_x", "exclusive", "baseline_raw", "baseline_centred"} == set(figures)
    assert figures["x_to_y"]["n"] == 60 and figures["y_to_x"]["n"] == 58
    names = [f"class {code}" for code in range(8, 12)]
    assert protocol["classes"] == 4 and protocol["classes_sha256"] == class_list_hash(names)
    assert protocol["classes_seen_in_training"] == [] and protocol["classes_seen_by_backbone"] == []
    assert protocol["metric"] == "cosine" and protocol["class_split"] == "given"
    table = iiae("evaluate", "--run", "run").out.splitlines()
    assert table[0].split("\t")[:3] == ["latent", "direction", "map@all"] and len(table) == 9
    gate = iiae("evaluate", "--run", "run", "--fail-under", "zero_shot.x_to_y.map@all=1.01")
    assert gate.code == 2 and "below 1.01" in gate.error()[0]


def test_seen_classes_are_said_and_a_leaking_backbone_is_refused(iiae, data):
    train(iiae, data, "run")
    refused = iiae("evaluate", "--run", "run", "--split", "train")
    assert refused.code == 2
    assert "class 0, class 1" in refused.error()[0] and "--allow-leak" in refused.error()[1]
    allowed = iiae("evaluate", "--run", "run", "--split", "train", "--allow-leak", "--json")
    assert allowed.code == 0
    protocol = allowed.json["protocol"]
    assert protocol["classes_seen_by_backbone"] == ["class 0", "class 1"]
    assert len(protocol["classes_seen_in_training"]) == 8
    assert "not zero-shot: the backbone was trained on 2 of 8 classes" in allowed.err
    assert "the model was trained on 8 of 8 classes" in allowed.err
