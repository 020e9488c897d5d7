"""What goes beyond the paper for features: standardisation, linear paths, their closed form, the second training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iiae_cli.model.iiae import feature_iiae
from iiae_cli.model.objective import Objective
from iiae_cli.training.data import hold_out
from iiae_cli.training.loop import TrainState, fit
from iiae_cli.training.statistics import SMALLEST_SCALE, scales, two_covariance_map

WIDTH = 9


def small(**more):
    torch.manual_seed(0)
    options = {
        "feature_width": 8,
        "shared_hidden": 6,
        "joint_hidden": 7,
        "decoder_hidden": 5,
        "exclusive_hidden": [6],
    }
    return feature_iiae(
        width_x=WIDTH, width_y=WIDTH, shared_dim=4, exclusive_dim=3, **options, **more
    )


def rows(seed, count=32):
    return torch.from_numpy(
        np.random.default_rng(seed).normal(5.0, 3.0, (count, WIDTH)).astype(np.float32)
    )


# ---- standardisation


def test_a_standardising_model_is_the_plain_one_on_standardised_features():
    plain, standardising = small(), small(standardise=True)
    x, y = rows(1), rows(2)
    for part, inputs in ((standardising.standardise["x"], x), (standardising.standardise["y"], y)):
        part.set(inputs.mean(dim=0), inputs.std(dim=0))
    read = [(one - one.mean(dim=0)) / one.std(dim=0) for one in (x, y)]
    for model in (plain, standardising):
        model.eval()
    for found, expected in zip(standardising.infer(x, y).inputs.values(), read, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        standardising.infer(x, y).joint_shared.mean, plain.infer(*read).joint_shared.mean
    )
    shared = plain.encode_shared("x", read[0]).mean
    torch.testing.assert_close(standardising.encode_shared("x", x).mean, shared)
    exclusive = plain.encode_exclusive("y", read[1]).mean
    torch.testing.assert_close(standardising.encode_exclusive("y", y).mean, exclusive)
    # What leaves the model is in the data's units.
    decoded = plain.decode("y", shared, exclusive) * y.std(dim=0) + y.mean(dim=0)
    torch.testing.assert_close(standardising.decode("y", shared, exclusive), decoded)


def test_the_loop_compares_standardised_features():
    """The mean predicts standardised features with error 1 per dimension, whatever the data's own scale."""
    model = small(standardise=True)
    x, y = 1000 + 50 * rows(1), 7 + 0.01 * rows(2)
    for part, inputs in ((model.standardise["x"], x), (model.standardise["y"], y)):
        part.set(inputs.mean(dim=0), inputs.std(dim=0))
    logged = {}

    class Events:
        def log(self, step, terms):
            logged.update(terms)

        def progress(self, step): ...
        def validate(self, step): ...
        def checkpoint(self, step): ...
        def should_stop(self):
            return False

    fit(
        model=model,
        objective=Objective(reconstruction="l2", reconstruction_weight=1.0),
        optimizer=torch.optim.Adam(model.parameters()),
        learning_rate=lambda step: 1e-3,
        batch_at=lambda step: (x, y),
        state=TrainState(),
        total_steps=1,
        seed=0,
        events=Events(),
        log_every=1,
        validate_every=1,
        checkpoint_every=1,
    )
    for domain in "xy":
        assert 0.3 < logged[f"reconstruction_{domain}"] < 10.0


def test_scales_are_the_training_rows_own():
    values = np.random.default_rng(0).normal(3.0, [1.0, 4.0, 1e-6], (500, 3))
    mean, scale = scales(values, each=False)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    overall = np.sqrt((values - values.mean(axis=0)).var(axis=0).mean())
    np.testing.assert_allclose(scale, overall)
    _, scale = scales(values, each=True)
    np.testing.assert_allclose(scale[:2], values.std(axis=0)[:2])
    assert scale[2] == pytest.approx(SMALLEST_SCALE * overall)
    assert (scales(np.ones((4, 2)), each=True)[1] > 0).all()


# ---- linear paths


def test_started_paths_are_the_linear_map_alone_and_held_ones_stay_it():
    model = small(linear_path=True)
    weight = torch.randn(4, WIDTH)
    model.start_linear_paths(weight)
    x, y = rows(3), rows(4)
    model.eval()
    torch.testing.assert_close(model.encode_shared("x", x).mean, x @ weight.T)
    torch.testing.assert_close(
        model.infer(x, y).joint_shared.mean, (x @ weight.T + y @ weight.T) / 2
    )
    model.hold_linear_paths()
    model.train()
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.1)
    before = model.infer(x, y).shared["x"].logvar.detach().clone()
    for _ in range(3):
        posteriors = model.infer(x, y)
        terms = Objective(reconstruction="l2")(
            posteriors, model.generate(model.sample(posteriors)), 0
        )
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    model.eval()
    torch.testing.assert_close(model.encode_shared("x", x).mean, x @ weight.T)
    assert not torch.allclose(model.infer(x, y).shared["x"].logvar, before)
    again = small(linear_path=True)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval().encode_shared("x", x).mean, x @ weight.T)


def test_paths_that_are_not_held_learn_a_mean_of_their_own():
    model = small(linear_path=True)
    weight = torch.randn(4, WIDTH)
    model.start_linear_paths(weight)
    x, y = rows(3), rows(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):  # the first step moves the last layer away from zero
        posteriors = model.infer(x, y)
        Objective(reconstruction="l2")(posteriors, model.generate(model.sample(posteriors)), 0)[
            "loss"
        ].backward()
        optimizer.step()
    model.eval()
    learned = model.encode_shared("x", x).mean - model.shared["x"].linear(x)
    assert learned.abs().max() > 1e-4


# ---- the closed form


def two_classes(count=4000, gap=0.0):
    """Classes differ along dimension 0; dimension 1 varies widely within them; the domains lie `gap` apart on 2."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    base = np.zeros((count, 3))
    base[:, 0] = 2.0 * labels - 1.0
    noise = [rng.normal(0.0, [0.5, 4.0, 0.5], (count, 3)) for _ in range(2)]
    x, y = (
        base + one + offset * np.array([0, 0, 1.0])
        for one, offset in zip(noise, (gap, -gap), strict=True)
    )
    return x, y, [str(one) for one in labels]


def test_the_map_makes_variation_within_classes_isotropic():
    x, y, labels = two_classes()
    weight = two_covariance_map(x, y, labels, labels, 3, 1e-9)
    mapped = np.concatenate([x, y]) @ weight.T
    codes = np.array([*labels, *labels]) == "1"
    within = np.cov(
        np.concatenate(
            [mapped[codes] - mapped[codes].mean(0), mapped[~codes] - mapped[~codes].mean(0)]
        ).T
    )
    np.testing.assert_allclose(within, np.eye(3) * within[0, 0], atol=0.02 * within[0, 0])
    assert np.mean(mapped**2) == pytest.approx(1.0, rel=0.01)
    # The widest direction is the one that tells the classes apart.
    assert abs(weight[0, 0]) > 20 * abs(weight[0, 1])


def test_the_gap_between_domains_counts_as_variation_within_a_class():
    labels = two_classes()[2]
    narrow, wide = (
        two_covariance_map(*two_classes(gap=gap)[:2], labels, labels, 3, 1e-9) for gap in (0.0, 5.0)
    )
    assert np.linalg.norm(wide[:, 2]) < 0.3 * np.linalg.norm(narrow[:, 2])


def test_much_shrinkage_leaves_principal_components():
    x, y, labels = two_classes()
    weight = two_covariance_map(x, y, labels, labels, 2, 1e9)
    _, vectors = np.linalg.eigh(np.cov(np.concatenate([x, y]).T))
    directions = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(abs(directions @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-3)


def test_more_latent_dimensions_than_features_are_left_empty():
    x, y, labels = two_classes(count=50)
    weight = two_covariance_map(x, y, labels, labels, 5, 1.0)
    assert weight.shape == (5, 3) and not weight[3:].any() and weight[:3].any(axis=1).all()


def test_held_out_indices_are_seeded_disjoint_and_at_least_so_many():
    kept, held = hold_out(9, 0.01, fewest=2)
    assert len(held) == 2 and sorted([*kept, *held]) == list(range(9))
