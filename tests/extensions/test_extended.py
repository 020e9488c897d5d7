"""Standardised features and erased means around a model."""

import numpy as np
import torch
from helpers import small_model, small_pairs

from iiae_cli.extensions.extended import ExtendedIIAE, LinearErasure, Standardise

# ---- standardisation


def test_a_standardising_model_is_the_plain_one_on_standardised_features():
    plain = small_model("features").eval()
    model = small_model("features", ExtendedIIAE, standardise=True).eval()
    x, y = (1000 + 50 * rows for rows in small_pairs("features", rows=32))
    for domain, rows in (("x", x), ("y", y)):
        model.standardise[domain].fit(rows.numpy())
    scales = [rows.var(dim=0, correction=0).mean().sqrt() for rows in (x, y)]
    read = [(x - x.mean(dim=0)) / scales[0], (y - y.mean(dim=0)) / scales[1]]
    found, expected = model.infer(x, y), plain.infer(*read)
    torch.testing.assert_close(found.inputs["x"], read[0], rtol=1e-3, atol=1e-3)
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found.joint_shared.mean, expected.joint_shared.mean, **close)
    shared, exclusive = model.encode_shared("x", x).mean, model.encode_exclusive("y", y).mean
    torch.testing.assert_close(shared, expected.shared["x"].mean, **close)
    torch.testing.assert_close(exclusive, expected.exclusive["y"].mean, **close)
    # What leaves the model is in the data's units.
    decoded = plain.decode("y", shared, exclusive) * scales[1] + y.mean(dim=0)
    torch.testing.assert_close(model.decode("y", shared, exclusive), decoded)


def test_equal_rows_have_a_scale():
    standardise = Standardise(3)
    standardise.fit(np.ones((4, 3)))
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
