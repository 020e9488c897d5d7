"""Linear paths: they begin as a linear map alone, and learn or are held from there."""

from __future__ import annotations

import pytest
import torch

from iiae_cli.extensions.edge_features import PictureDescription, PictureMap
from iiae_cli.extensions.linear_paths import (
    DescribedFlat,
    DescribedMaps,
    LinearPathFeatures,
    described_rows,
    hold_linear_paths,
    start_linear_paths,
)
from iiae_cli.model.iiae import IIAE
from iiae_cli.model.objective import bound, bound_weights

FEATURES = LinearPathFeatures(8, [6], 6, 7, 5, 4)
PICTURES = {
    "maps": lambda size: DescribedMaps(size, [4, 6], [8, 6], 5),
    "flat": lambda size: DescribedFlat(size, [4, 6], [8, 6], 5, hidden=6, flat_width=4),
}


def feature_model(seed: int = 0) -> tuple[IIAE, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A model whose paths begin as one map (S, F) of both domains; x and y."""
    torch.manual_seed(seed)
    model = IIAE(FEATURES, {"x": 9, "y": 9}, exclusive_dim=3)
    weight, (x, y) = torch.randn(4, 9), torch.randn(2, 32, 9)
    start_linear_paths(model, {"x": weight, "y": weight}, dict.fromkeys("xy", torch.zeros(4)))
    return model, weight, x, y


def train(model: IIAE, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    objective = bound(bound_weights("elbo+ii-mi", 5.0), reconstruction="l2")
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        objective(*model(x, y), step)["loss"].backward()
        optimizer.step()
    model.eval()


def test_started_paths_are_the_linear_map_alone_and_held_ones_stay_it() -> None:
    model, weight, x, y = feature_model()
    model.eval()
    torch.testing.assert_close(model.encode_shared("x", x).mean, x @ weight.T)
    joint = model.infer(x, y).joint_shared
    assert joint is not None
    torch.testing.assert_close(joint.mean, (x @ weight.T + y @ weight.T) / 2)
    before = model.encode_shared("x", x).logvar.detach()
    hold_linear_paths(model)
    train(model, x, y, steps=3)
    again, *_ = feature_model(1)
    again.load_state_dict(model.state_dict())
    held = again.eval().encode_shared("x", x)
    torch.testing.assert_close(held.mean, x @ weight.T)
    assert not torch.allclose(held.logvar, before)


def test_paths_that_are_not_held_learn_a_mean_of_their_own() -> None:
    model, _, x, y = feature_model()
    train(model, x, y, steps=3)
    learned = model.encode_shared("x", x).mean - model.shared["x"].linear(x)
    assert learned.abs().max() > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_begin_as_linear_maps_of_their_descriptions(
    kind: str, size: tuple[int, int]
) -> None:
    model = IIAE(PICTURES[kind](size), {"x": 3, "y": 1}, exclusive_dim=3).eval()
    inputs = {"x": torch.rand(5, 3, *size) * 2 - 1, "y": torch.rand(5, 1, *size) * 2 - 1}
    rows = {domain: described_rows(model, domain, inputs[domain]) for domain in inputs}
    weights = {domain: torch.randn(5, rows[domain].shape[1]) for domain in rows}
    biases = {domain: torch.randn(5) for domain in rows}
    start_linear_paths(model, weights, biases)
    with torch.no_grad():
        found = model.infer(inputs["x"], inputs["y"])
    assert found.joint_shared is not None
    expected = {}
    for domain in rows:
        cells = (rows[domain] @ weights[domain].T + biases[domain]).view(5, -1, 5)
        expected[domain] = cells.transpose(1, 2).reshape(5, *model.shared_shape)
        shared = found.shared[domain]
        torch.testing.assert_close(shared.mean, expected[domain], rtol=1e-4, atol=1e-4)
    joint = (expected["x"] + expected["y"]) / 2
    torch.testing.assert_close(found.joint_shared.mean, joint, rtol=1e-4, atol=1e-4)


def test_a_path_reads_the_description_of_every_cells_window() -> None:
    model = IIAE(PICTURES["maps"]((32, 32)), {"x": 3, "y": 3}, exclusive_dim=3)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    rows = described_rows(model, "x", pictures)
    described = PictureMap(3, (8, 8), 8)(pictures)
    assert rows.shape == (2 * 4 * 4, 16 * described.shape[1])
    window = described[1, :, 1:5, 3:7]  # row 1, column 2 of the 4×4 grid
    assert torch.equal(rows[16 + 4 + 2], window.reshape(-1))
    flat = IIAE(PICTURES["flat"]((32, 32)), {"x": 3, "y": 3}, exclusive_dim=3)
    assert torch.equal(described_rows(flat, "x", pictures), PictureDescription(3)(pictures))
