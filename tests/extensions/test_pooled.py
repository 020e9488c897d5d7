"""Pooled shared encoders: blind to where content stands, while exclusive ones see it."""

import pytest
import torch
from helpers import refusal

from iiae_cli.builders import build_model
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.data.datafile import DataInfo
from iiae_cli.extensions.pooled import PooledNetworks, Wrap
from iiae_cli.model.iiae import IIAE


def test_wrapping_repeats_the_opposite_side():
    pictures = torch.rand(2, 3, 5, 4)
    expected = torch.nn.functional.pad(pictures, (1, 1, 1, 1), mode="circular")
    assert torch.equal(Wrap()(pictures), expected)


@pytest.mark.parametrize("shift", [(16, 0), (0, 16), (16, 32)])
def test_shared_posteriors_do_not_change_when_content_moves_around(shift):
    torch.manual_seed(0)
    networks = PooledNetworks((64, 64), [4, 6, 8, 8], [8, 6, 4, 4], 5, hidden=6, flat_width=4)
    model = IIAE(networks, {"x": 3, "y": 1}, exclusive_dim=3).eval()
    x, y = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 1, 64, 64) * 2 - 1
    before = model.infer(x, y)
    after = model.infer(x.roll(shift, dims=(2, 3)), y.roll(shift, dims=(2, 3)))
    pairs = [(before.joint_shared, after.joint_shared)]
    pairs += [(before.shared[domain], after.shared[domain]) for domain in "xy"]
    for old, new in pairs:
        torch.testing.assert_close(old.mean, new.mean, rtol=1e-3, atol=1e-5)
        assert old.mean.shape == (2, 5)
    assert not torch.allclose(before.exclusive["x"].mean, after.exclusive["x"].mean, rtol=1e-2)
    assert model(x, y)[1].mean["y"].shape == y.shape


@pytest.mark.parametrize("assignment", ["model.kind=image", "model.linear_path=canonical"])
def test_it_is_for_flat_networks_without_linear_paths(assignment):
    layers = [*preset_layers("mnist-quadrants-plus"), set_layer([assignment])]
    info = DataInfo("mnist-quadrants", (64, 64, 3), (64, 64, 3), {}, {})
    error = refusal(build_model, resolve(layers).config, info)
    assert "model.pooled does not go with" in error.message
