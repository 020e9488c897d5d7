"""Training on pairs: exact resume, signals, what is kept, what a run refuses."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import metrics_of, sets, stopping_at
from safetensors.torch import load_file

from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.config import Config
from iiae_cli.data.datafile import DataFile, Side, Split, write_data_file
from iiae_cli.runs import CHECKPOINT_SCHEMA
from iiae_cli.training.data import TrainingData

# Dropout and annealing are on, so that a resumed run must restore more than weights.
TINY = sets(
    "model.widths=[4,8] model.decoder_widths=[8,4] model.dropout=0.3 training.samples=1 "
    "training.validate_every=8 training.log_every=5 training.checkpoint_every=6"
)
# Wide enough for the gradients that bfloat16 computes in a way of its own.
WIDE = sets("model.widths=[16,16] model.decoder_widths=[16,16] training.batch_size=4")
ERASE = sets("erasure.shared=channel+leace erasure.rows=500 erasure.least_snr=0.0001")
OTHERWISE = {
    "fp32": ["--precision", "fp32"],
    "bf16": ["--precision", "bf16", *WIDE],
    "penalty": sets("training.precision=fp32 objective.independence=30 training.freeze_norm=0.5"),
    "erasure": ERASE,
    "plus": sets(
        "model.shared=16 model.flat_hidden=8 model.flat_width=8 model.patches=20 "
        "selection.rule=recall selection.patience=9 augment.geometric=0.5 augment.flip=0.5 "
        "augment.photometric=0.5 training.batch_size=16"
    ),
}
OTHERWISE["plus"] += ["--preset", "pairs-plus"]


def train(iiae, few, run, *more, steps=20):
    named = ("--preset", "digits-cdcb", "--data", few, "--run", run)
    return iiae("train", *named, "--steps", steps, *TINY, *more)


def same_tensors(first, second):
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("stop_after", "how"),
    [(13, "fp32"), (7, "bf16"), (7, "penalty"), (13, "erasure"), (7, "plus")],
)
def test_resumed_training_ends_in_the_same_weights(iiae, few, stop_after, how):
    assert train(iiae, few, "whole", *OTHERWISE[how]).code == 0
    with stopping_at(stop_after):
        stopped = train(iiae, few, "parts", *OTHERWISE[how])
    assert stopped.code == 75
    assert f"saved at step {stop_after}" in stopped.err and "--resume" in stopped.err
    assert iiae("evaluate", "--run", "parts", "--data", few).code == 0
    resumed = train(iiae, few, "parts", "--resume", *OTHERWISE[how])
    assert resumed.code == 0 and f"at step {stop_after}" in resumed.err
    for name in ("checkpoints/step-00000020.safetensors", "model.safetensors"):
        assert same_tensors(Path("whole") / name, Path("parts") / name)
    assert metrics_of("whole") == metrics_of("parts")
    assert len(list(Path("parts/checkpoints").iterdir())) == 2


def test_an_existing_run_is_neither_overwritten_nor_resumed_differently(iiae, few):
    train(iiae, few, "run", steps=4)
    before = Path("run/model.safetensors").read_bytes()
    hint = train(iiae, few, "run", steps=4).error()[1]
    assert "--resume" in hint and "--overwrite" in hint
    refused = train(iiae, few, "run", "--resume", "--set", "objective.lambda=7", steps=4)
    assert refused.code == 2 and "objective.lambda=5" in refused.error()[0]
    assert Path("run/model.safetensors").read_bytes() == before
    assert train(iiae, few, "run", "--overwrite", "--seed", 1, steps=4).code == 0
    assert Path("run/model.safetensors").read_bytes() != before


def test_a_checkpoint_of_other_networks_is_of_another_version_not_damaged(iiae, few):
    train(iiae, few, "run", steps=4)
    path = Path("run/checkpoints/step-00000004.safetensors")
    header, tensors = read_tensors(path, CHECKPOINT_SCHEMA, "")
    kept = {name: values for name, values in tensors.items() if not name.endswith("bias")}
    save_tensors(kept, path, header)
    message, hint = train(iiae, few, "run", "--resume", steps=4).error()
    assert "was written by another version" in message and "another --run" in hint


def test_a_run_goes_on_with_its_own_data_alone(iiae, few):
    shutil.copy(few, "d.h5")
    own = ("train", "--preset", "digits-cdcb", "--run", "run", "--steps", 8, *TINY)
    with stopping_at(3):
        assert iiae(*own, "--data", "d.h5").code == 75
    iiae("prepare", "digits-cdcb", "--limit", 60, "-o", "fewer.h5")
    with h5py.File("d.h5", "r+") as file:
        file["train/y"][7, 0, 0, 0] += 1
    for data, difference in (("d.h5", "in train y"), ("fewer.h5", "in train factors, train pairs")):
        message, hint = iiae(*own, "--data", data, "--resume").error()
        assert f"other data than run was begun with, {difference}" in message
        assert "--data" in hint and "--overwrite" in hint
    iiae("prepare", "digits-cdcb", "--limit", 120, "-o", "again/equal.h5")
    assert iiae(*own, "--data", "again/equal.h5", "--resume").code == 0
    assert iiae("evaluate", "--run", "run", "--data", "fewer.h5").code == 0
    assert iiae(*own, "--data", "fewer.h5", "--overwrite").code == 0


def test_a_run_resumes_by_its_own_configuration(iiae, few):
    assert train(iiae, few, "whole", "--seed", 4).code == 0
    with stopping_at(7):
        train(iiae, few, "runs/a", "--seed", 4)
    alone = ("train", "--resume", "--run", "runs/a")
    assert "training.seed=4, not 5" in iiae(*alone, "--seed", 5).error()[0]
    resumed = iiae(*alone, "--set", "training.log_every=5")
    assert resumed.code == 0, resumed.err
    assert "runs/a continues with its own config.yaml (preset digits-cdcb, data " in resumed.err
    assert str(few) in resumed.err and "at step 7" in resumed.err
    assert same_tensors(Path("whole/model.safetensors"), Path("runs/a/model.safetensors"))
    Path("runs/latest").symlink_to("a")
    assert "already finished" in iiae("train", "--resume").err
    assert Path("runs/latest").readlink() == Path("a")
    assert "--run RUN --resume" in iiae("train", "--run", "runs/a").error()[1]
    assert "no run to resume in b" in iiae("train", "--resume", "--run", "b").error()[0]


def pairs_file(path, change=""):
    """Six rows in four pairs, one of its parts changed."""
    parts = {"rows": np.arange(96, dtype=np.float32).reshape(6, 16), "labels": np.arange(6)}
    parts |= {"ids": np.arange(6), "pairs": np.array([[0, 1], [1, 1], [2, 3], [5, 5]])}
    parts["factors"] = np.linspace(0, 1, 4)
    if change:
        parts[change] = parts[change][::-1]
    ids, labels = (list(map(str, parts[name])) for name in ("ids", "labels"))
    side, factors = Side(parts["rows"], ids, labels), {"colour": parts["factors"]}
    split = Split(side, side, factors, parts["pairs"])
    write_data_file(Path(path), "mine", {"train": split, "valid": split}, {"made": path})
    return TrainingData(DataFile(Path(path)), Config.model_validate({"training": {"steps": 1}}))


@pytest.mark.parametrize("change", ["rows", "ids", "labels", "pairs", "factors"])
def test_a_fingerprint_covers_all_that_is_read_but_not_the_file(tmp_path, change):
    first = pairs_file(f"{tmp_path}/a.h5").fingerprint()
    assert first["train pairs"] == 4 and first["name"] == "mine"
    assert pairs_file(f"{tmp_path}/b.h5").fingerprint() == first
    other = pairs_file(f"{tmp_path}/c.h5", change).fingerprint()
    parts = ("factors",) if change in ("pairs", "factors") else ("x", "y")
    expected = {f"{split} {part}" for split in ("train", "valid") for part in parts}
    assert {key for key in first if first[key] != other[key]} == expected


def test_a_preset_alone_prepares_the_embedded_set_and_links_the_latest_run(iiae):
    small = ("train", "--preset", "digits-edge", "--epochs", 2, "--batch-size", 400, *TINY)
    for seed in (3, 4):
        assert iiae(*small, "--seed", seed, "--json").json["steps"] == 2 * (1347 // 400)
        assert Path("runs/latest").resolve() == Path(f"runs/digits-edge-seed{seed}").resolve()
    assert Path("data/digits-edge.h5").exists()


def test_frozen_batch_norm_keeps_its_statistics(iiae, few):
    means = {}
    for part in (0.0, 0.5, 1.0):
        run = f"frozen-{part}"
        frozen = ("--set", f"training.freeze_norm={part}", "--set", "training.validate_every=1")
        assert train(iiae, few, run, *frozen, steps=4).code == 0
        state = load_file(Path(run) / "checkpoints/step-00000004.safetensors")
        means[part] = state["model/features.x.2.running_mean"]
        assert state["model/features.x.2.num_batches_tracked"] == 4 * (1 - part)
    assert not means[1.0].any() and means[0.5].any() and not torch.equal(means[0.5], means[0.0])


def test_bf16_autocasts_the_networks_and_compiling_changes_no_weight(iiae, few, monkeypatch):
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda what, mode: compiled.append(what) or what)
    full, half = ("--precision", "fp32"), ("--precision", "bf16")
    for run, more in (("full", full), ("half", half), ("compiled", (*full, "--compile"))):
        assert train(iiae, few, run, *more, steps=3).code == 0
    assert len(compiled) == 1
    assert same_tensors(Path("full/model.safetensors"), Path("compiled/model.safetensors"))
    one, other = (load_file(Path(name) / "model.safetensors") for name in ("full", "half"))
    assert all(other[name].dtype == one[name].dtype for name in one)
    assert any(not torch.equal(other[name], one[name]) for name in one)
    assert all(torch.allclose(other[name].float(), one[name].float(), atol=0.05) for name in one)


def test_pictures_of_another_size_and_every_objective_train(iiae):
    iiae("prepare", "digits-cdcb", "--image-size", 20, "--limit", 40, "-o", "small.h5")
    base = ("train", "--preset", "digits-cdcb", "--data", "small.h5", "--steps", 2)
    base += ("--batch-size", 4, "--set", "training.samples=1")
    own = iiae(*base, "--run", "own", "--set", "model.stages=null")
    assert own.code == 0 and "shared latent 32 x 5 x 5" in own.err
    flat = iiae(*base, "--run", "flat", "--set", "model.kind=flat", "--set", "model.shared=16")
    assert flat.code == 0 and "shared latent 16," in flat.err
    for kind in ("ii", "ii-mi", "elbo+ii"):
        outcome = iiae(*base, "--run", kind, "--set", f"objective.kind={kind}")
        assert outcome.code == 0, outcome.err
        task = "all" if kind == "ii" else "retrieval"
        assert iiae("evaluate", "--run", kind, "--data", "small.h5", "--task", task).code == 0
    assert iiae("translate", "small.h5", "--from", "x", "--run", "ii", "--grid", "g.png").code == 0
    exclusive = ("--run", "ii", "--latents", "exclusive", "-o", "z.h5")
    refused = iiae("encode", "small.h5", "--domain", "x", *exclusive)
    assert refused.code == 2 and "exclusive" in refused.error()[0]


def test_training_warns_of_a_dead_latent(iiae, few):
    crushed = ("--set", "objective.reconstruction_weight=0.001", "--set", "optimizer.lr=0.02")
    crushed += ("--set", "objective.annealing_steps=0", "--json")
    outcome = train(iiae, few, "run", *crushed, steps=60)
    assert any("exclusive latent of y" in warning for warning in outcome.json["warnings"])
    at_once, last = (outcome.err.index(text) for text in ("y is dying", "step 60: validation"))
    assert at_once < last and "larger values of objective.annealing_steps" in outcome.err


def test_a_loss_that_is_not_finite_stops_training(iiae, few):
    outcome = train(iiae, few, "run", "--set", "optimizer.lr=1e30")
    assert outcome.code == 2
    assert "loss is" in outcome.error()[0] and "optimizer.lr" in outcome.error()[1]


def test_too_few_pairs_for_a_batch_leave_no_run(iiae, few):
    message, hint = train(iiae, few, "run", "--batch-size", 5000).error()
    assert "5000" in message and "--batch-size" in hint and not Path("run").exists()
