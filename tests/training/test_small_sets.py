"""What small sets of pairs get beside the paper, end to end: baselines, augmentation, early
stopping, linear paths.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import built, metrics_of, sets
from safetensors.torch import load_file

from iiae_cli.builders import build_model
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.data.datafile import DataFile, write_data_file
from iiae_cli.training.data import TrainingData, take_statistics

TINY = sets(
    "model.widths=[4,8] model.decoder_widths=[8,4] model.flat_hidden=8 model.flat_width=8 "
    "model.shared=16 training.batch_size=16 training.validate_every=4 training.log_every=2 "
    "training.checkpoint_every=3 training.samples=1"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """240 training and 60 test pairs of outlined digits."""
    splits = built("digits-edge").splits
    counts = {"train": 240, "test": 60}
    small = {name: splits[name].take_pairs(np.arange(n)) for name, n in counts.items()}
    path = tmp_path_factory.mktemp("small") / "pairs.h5"
    write_data_file(path, "pairs", small, {})
    return path


def train(iiae, data, run, *more, preset="pairs", steps=12):
    named = ("--preset", preset, "--data", data, "--run", run, "--steps", steps)
    return iiae("train", *named, *TINY, *more)


def records(run, kind):
    return [line for line in metrics_of(run) if line["kind"] == kind]


@pytest.mark.parametrize(
    ("preset", "more"), [("pairs-plus", "model.patches=20"), ("fashion-edges-plus", "")]
)
def test_the_plus_presets_start_far_above_the_baseline_and_log_their_contrast(
    iiae, data, preset, more
):
    options = sets(f"model.shared=64 selection.from_start=true {more}")
    trained = train(iiae, data, "run", *options, "--json", preset=preset)
    assert trained.code == 0, trained.err
    first = records("run", "validation")[0]
    assert first["step"] == 0 and min(first["shared_recall"]) > 0.5  # the closed form alone
    assert all(0 < line["contrastive"] < np.log(16) + 1 for line in records("run", "train"))
    figures = iiae("evaluate", "--run", "run", "--task", "retrieval", "--json")
    assert figures.code == 0, figures.err
    shared, baseline = (
        figures.json["retrieval"][name]["x_to_y"]["recall@1"] for name in ("shared", "baseline")
    )
    assert shared > baseline + 0.3
    assert figures.json["protocol"]["metric"] == trained.json["validation"]["metric"]
    assert iiae("translate", data, "--from", "x", "--run", "run", "--grid", "grid.png").code == 0


@pytest.mark.parametrize("channels", [3, 1])
def test_domains_of_equal_channels_begin_with_one_map_and_others_with_two(data, tmp_path, channels):
    split = DataFile(data).split("train")
    x = replace(split.x, rows=split.x.rows[:, :, :, :channels])
    write_data_file(tmp_path / "some.h5", "pairs", {"train": replace(split, x=x)}, {})
    file = DataFile(tmp_path / "some.h5")
    config = resolve([*preset_layers("pairs-plus"), set_layer(["model.patches=20"])]).config
    model = build_model(config, file.info)
    take_statistics(model, TrainingData(file, config), config)
    paths = [model.shared[domain].linear.weight for domain in "xy"]
    assert all(path.isfinite().all() and path.any() for path in paths)
    assert (len(paths[0].T) == len(paths[1].T) and torch.equal(*paths)) == (channels == 3)
    filters = [model.features[domain].describe.filters for domain in "xy"]
    assert [part.shape[1] for part in filters] == [channels, 3] and filters[0].any()


def test_a_dual_encoder_retrieves_and_refuses_what_needs_decoders(iiae, data):
    trained = train(iiae, data, "run", "--set", "objective.kind=infonce", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["validation"]["guided_l1"] is None and trained.json["warnings"] == []
    lines = records("run", "train")
    assert all(line["loss"] == line["contrastive"] for line in lines)
    names = {".".join(name.split(".")[:2]) for name in load_file("run/model.safetensors")}
    assert names == {"features.x", "features.y", "shared.x", "shared.y"}
    everything = iiae("evaluate", "--run", "run", "--task", "all", "--report", "report", "--json")
    assert everything.code == 0
    assert not everything.json.keys() & {"translation", "disentanglement"}
    for task in ("translation", "disentanglement"):
        refused = iiae("evaluate", "--run", "run", "--task", task)
        assert refused.code == 2 and "infonce" in refused.error()[0] and task in refused.error()[1]
    refused = iiae("translate", data, "--from", "x", "--run", "run", "--grid", "grid.png")
    assert refused.code == 2
    assert "no decoders" in refused.error()[0] and "objective.kind" in refused.error()[1]
    assert iiae("encode", data, "--domain", "y", "--run", "run", "-o", "y.h5").code == 0


def test_augmentation_changes_training_and_nothing_else(iiae, data):
    augment = ("--set", "augment.flip=0.5", "--set", "augment.photometric=0.5")
    for run, more in (("plain", ()), ("augmented", augment)):
        from_start = ("--set", "selection.from_start=true")
        assert train(iiae, data, run, *more, *from_start, steps=4).code == 0
    plain, augmented = (records(run, "validation") for run in ("plain", "augmented"))
    assert plain[0] == augmented[0]  # before the first step: validation pictures are left alone
    assert plain[1]["guided_l1"] != augmented[1]["guided_l1"]


def test_a_time_limit_never_stops_before_the_first_step(iiae, data):
    from_start = ("--set", "selection.from_start=true", "--time-limit", "0s")
    stopped = train(iiae, data, "run", *from_start)
    assert stopped.code == 75 and "saved at step 1 " in stopped.err
    stopped = train(iiae, data, "run", *from_start, "--resume")
    assert stopped.code == 75 and "saved at step 2 " in stopped.err


def test_early_stopping_ends_training_for_good(iiae, data):
    patient = sets("optimizer.lr=1e-12 selection.patience=2")
    refused = train(iiae, data, "run", *patient, "--set", "selection.rule=last", steps=400)
    assert refused.code == 2 and "set rule=recall" in refused.error()[0]
    still = (*patient, "--set", "selection.rule=recall")
    stopped = train(iiae, data, "run", *still, "--json", steps=400)
    # Validated at 4, 8 and 12, never better than at 4.
    assert stopped.code == 0 and stopped.json["steps"] == 12
    assert "training ends here" in stopped.err
    weights = Path("run/model.safetensors").read_bytes()
    again = train(iiae, data, "run", *still, "--resume", "--json", steps=400)
    assert again.code == 0 and again.json["steps"] == 12
    assert Path("run/model.safetensors").read_bytes() == weights
    refit = train(iiae, data, "refit", *still, "--set", "selection.refit=true", steps=400)
    assert refit.code == 0 and "training again on all rows" in refit.err, refit.err
