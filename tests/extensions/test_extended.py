"""Standardised features and erased means around a model; the baselines beside it."""

import numpy as np
import torch
from helpers import small_batch, small_model, small_pairs

from iiae_cli.extensions.extended import (
    ELBO,
    ELBO_FIT,
    SMALLEST_SCALE,
    ExtendedIIAE,
    LinearErasure,
    Standardise,
)
from iiae_cli.model.objective import bound

# ---- standardisation


def test_a_standardising_model_is_the_plain_one_on_standardised_features():
    plain = small_model("features").eval()
    model = small_model("features", ExtendedIIAE, standardise=True).eval()
    x, y = (1000 + 50 * rows for rows in small_pairs("features", rows=32))
    for domain, rows in (("x", x), ("y", y)):
        model.standardise[domain].fit(rows.numpy(), each=True)
    read = [(rows - rows.mean(dim=0)) / rows.std(dim=0, correction=0) for rows in (x, y)]
    found, expected = model.infer(x, y), plain.infer(*read)
    torch.testing.assert_close(found.inputs["x"], read[0], rtol=1e-3, atol=1e-3)
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found.joint_shared.mean, expected.joint_shared.mean, **close)
    shared, exclusive = model.encode_shared("x", x).mean, model.encode_exclusive("y", y).mean
    torch.testing.assert_close(shared, expected.shared["x"].mean, **close)
    torch.testing.assert_close(exclusive, expected.exclusive["y"].mean, **close)
    # What leaves the model is in the data's units.
    decoded = plain.decode("y", shared, exclusive) * y.std(dim=0, correction=0) + y.mean(dim=0)
    torch.testing.assert_close(model.decode("y", shared, exclusive), decoded)


def test_scales_are_the_rows_own():
    values = np.random.default_rng(0).normal(3.0, [1.0, 4.0, 1e-6], (500, 3))
    overall = np.sqrt((values - values.mean(axis=0)).var(axis=0).mean())
    standardise = Standardise(3)
    standardise.fit(values, each=False)
    np.testing.assert_allclose(standardise.mean, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(standardise.scale, overall, rtol=1e-6)
    standardise.fit(values, each=True)
    expected = [*values.std(axis=0)[:2], SMALLEST_SCALE * overall]
    np.testing.assert_allclose(standardise.scale, expected, rtol=1e-6)
    standardise.fit(np.ones((4, 3)), each=True)
    assert (standardise.scale > 0).all()


# ---- erasure


def test_the_rank_travels_with_the_weights():
    erase, other = LinearErasure(4), LinearErasure(4)
    erase.set(torch.randn(4), torch.randn(4, 3), torch.randn(4, 3))
    other.load_state_dict(erase.state_dict())
    means = torch.randn(5, 4)
    assert torch.equal(LinearErasure(4)(means), means)
    assert torch.equal(other(means), erase(means)) and not torch.equal(erase(means), means)
    erase.make_room(0)
    assert torch.equal(erase(means), means)


# ---- a baseline


def test_the_elbo_is_the_bound_without_lambda_and_fits_r():
    terms = bound(ELBO, annealing_steps=0)(*small_batch(), 10)
    fit = terms["kl_shared_x"] + terms["kl_shared_y"]
    names = ("reconstruction_x", "reconstruction_y", "kl_exclusive_x", "kl_exclusive_y")
    elbo = sum(terms[name] for name in names) + terms["kl_shared_prior"]
    torch.testing.assert_close(terms["loss"], elbo + ELBO_FIT * fit)
