"""Erasure in runs: fitted on training rows at every validation, kept with the weights, gone nowhere
in training.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_train import ERASE, train
from test_train_classes import data as class_data
from test_train_classes import train as train_classes

from iiae_cli.builders import build_model
from iiae_cli.config import ErasureSection
from iiae_cli.data.datafile import DataFile
from iiae_cli.evaluation.retrieval import both_means, encode_pairs, retrieval_figures
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.runs import RunDir, load_model
from iiae_cli.training.data import TrainingData, erase_means

ADDED = "erase_shared."

__all__ = ["class_data"]  # a fixture


def factor_r2(latents, values):
    """Five-fold R² of ridge regression from standardised latents."""
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 7)))
    return float(cross_val_score(probe, latents, values.astype(float), scoring="r2").mean())


def test_erasure_leaves_training_alone(iiae, few):
    for run, more in (("plain", ()), ("whole", ERASE)):
        assert train(iiae, few, run, *more, steps=8).code == 0
    plain, erased = (load_file(Path(run) / "model.safetensors") for run in ("plain", "whole"))
    added = {name for name in erased if name.startswith(ADDED)}
    assert added and added == erased.keys() - plain.keys()
    assert all(torch.equal(values, erased[name]) for name, values in plain.items())
    assert erased["erase_shared.x.left"].shape[1] > 0


def test_the_digits_shared_means_lose_their_colour_and_keep_their_recall(trained):
    """After 150 steps, when some of the colour is still above the noise."""
    loaded = load_model(RunDir(trained.run))
    file = DataFile(trained.data)
    test, data = file.split("test"), TrainingData(file, loaded.config)
    colours = file.split("train").factors["x_color"][data.train.pairs[:, 0]]
    both = ErasureSection(shared="channel+leace")
    network = build_model(loaded.config.model_copy(update={"erasure": both}), loaded.info)
    network.load_state_dict(loaded.model.state_dict(), strict=False)
    erasing = TrainedModel(network.eval(), loaded.size)
    figures = {}
    for name, erasure in (("plain", ErasureSection()), ("erased", both)):
        erase_means(erasing, data, erasure)
        pairs = encode_pairs(erasing, test)
        train_x = erasing.encode(data.rows(np.arange(len(colours)))[0], "x")
        figures[name] = (
            factor_r2(train_x.mean("shared"), colours),
            factor_r2(pairs["x"].mean("exclusive"), test.factors["x_color"]),
            retrieval_figures(*both_means(pairs, "shared"))["x_to_y"]["recall@1"],
        )
    plain, erased = figures["plain"], figures["erased"]
    assert plain[0] > 0.5 > 0.35 > erased[0]
    assert erased[1] > 0.8 * plain[1] and erased[2] > plain[2] - 0.02 > 0.3


def test_without_exclusive_latents_there_is_nothing_to_erase_by(iiae, few):
    for options in (ERASE, ("--set", "objective.independence=30")):
        refused = train(iiae, few, "ii", *options, "--set", "objective.kind=ii")
        assert refused.code == 2 and "objective.kind=ii" in refused.error()[0]


def test_a_second_training_on_all_rows_is_fitted_on_all_rows(iiae, class_data):
    assert train_classes(iiae, class_data, "run", *ERASE).code == 0
    loaded = load_model(RunDir(Path("run")))
    assert loaded.details["refit"]
    kept = {name: values.clone() for name, values in loaded.model.state_dict().items()}
    data = TrainingData(DataFile(class_data), loaded.config)
    for all_rows in (False, True):
        if all_rows:
            data.use_all()
        erase_means(TrainedModel.of(loaded), data, loaded.config.erasure)
        again = loaded.model.state_dict()
        equal = [
            again[name].shape == values.shape
            and torch.allclose(again[name], values, rtol=1e-4, atol=1e-5)
            for name, values in kept.items()
            if name.startswith(ADDED)
        ]
        assert len(equal) > 4 and all(equal) == all_rows
    shapes = iiae("evaluate", "--run", "run", "--data", class_data, "--json")
    assert shapes.code == 0 and shapes.json["zero_shot"]["x_to_y"]["n"] > 0
