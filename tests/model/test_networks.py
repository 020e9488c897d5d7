"""The families' networks layer by layer against the paper's tables, and what single layers do."""

import math

import pytest
import torch
from helpers import FAMILIES
from torch import nn

from iiae_cli.model.iiae import IIAE
from iiae_cli.model.networks import (
    FeatureNetworks,
    FlatNetworks,
    ImageDecoder,
    ImageNetworks,
    joined,
)
from iiae_cli.model.objective import bound

PICTURES = ((256, 256), [32, 64, 128, 256], [512, 256, 128, 64], 128)
PAPER = {"maps": ImageNetworks(*PICTURES), "cars": FlatNetworks(*PICTURES)}
PAPER["features"] = FeatureNetworks()

TRUNK = "conv 3>32 bn leaky conv 32>64 bn leaky conv 64>128 bn leaky conv 128>256 bn leaky"
STAGES = "up 512>256 bn drop relu up 256>128 bn relu up 128>64 bn relu up 64>3"
# SPEC.md, "Networks for images" and "Networks for features".
TABLES = {
    ("maps", "exclusive"): f"{TRUNK} linear 65536>16",
    ("maps", "features"): TRUNK,
    ("maps", "shared"): "conv 256>256",
    ("maps", "joint"): "conv 512>256",
    ("maps", "decoder"): f"up 136>512 bn drop relu {STAGES}",
    ("cars", "exclusive"): f"{TRUNK} linear 65536>16",
    ("cars", "features"): f"{TRUNK} conv 256>256 bn leaky",
    ("cars", "shared"): "linear 16384>256 bn leaky linear 256>256",
    ("cars", "joint"): "linear 32768>256 bn leaky linear 256>256",
    ("cars", "decoder"): f"linear 136>32768 bn drop relu up 512>512 bn drop relu {STAGES}",
    ("features", "exclusive"): "linear 512>512 bn leaky linear 512>256 bn leaky linear 256>128",
    ("features", "features"): "linear 512>512 bn leaky",
    ("features", "shared"): "linear 512>256 bn leaky linear 256>128",
    ("features", "joint"): "linear 1024>512 bn leaky linear 512>128",
    ("features", "decoder"): "linear 128>128 bn relu linear 128>512",
}


def described(module):
    """The layers of a module as one line."""
    names = {nn.LeakyReLU: "leaky", nn.ReLU: "relu", nn.BatchNorm1d: "bn", nn.BatchNorm2d: "bn"}
    words = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            name = "conv" if isinstance(layer, nn.Conv2d) else "up"
            words.append(f"{name} {layer.in_channels}>{layer.out_channels}")
        elif isinstance(layer, nn.Linear):
            words.append(f"linear {layer.in_features}>{layer.out_features}")
        elif isinstance(layer, nn.Dropout):
            assert layer.p == 0.5
            words.append("drop")
        elif type(layer) in names:
            words.append(names[type(layer)])
    return " ".join(words)


@pytest.mark.parametrize(("family", "part"), TABLES)
def test_each_network_has_the_papers_layers(family, part):
    networks, width = PAPER[family], 512 if family == "features" else 3
    exclusive_dim = 64 if family == "features" else 8
    with torch.device("meta"):
        module = {
            "exclusive": lambda: networks.exclusive(width, exclusive_dim),
            "features": lambda: networks.features(width),
            "shared": lambda: networks.shared(width),
            "joint": lambda: networks.shared(width, width),
            "decoder": lambda: networks.decoder(width, exclusive_dim),
        }[part]()
    assert described(module) == TABLES[family, part]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_have_the_released_codes_settings(family):
    model = IIAE(FAMILIES[family], {"x": 6, "y": 6}, exclusive_dim=2)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert layer.bias is not None
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (layer.eps, layer.momentum, layer.track_running_stats) == (1e-5, 0.1, True)
        if isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2


# ---- decoders


def test_an_exclusive_latent_stands_before_the_shared_one_in_every_cell():
    shared, exclusive = torch.randn(2, 5, 2, 3), torch.randn(2, 3)
    tiled = joined(shared, exclusive)
    assert torch.equal(tiled[:, 3:], shared)
    assert torch.equal(tiled[:, :3], exclusive[:, :, None, None].expand(2, 3, 2, 3))
    assert torch.equal(joined(shared, None), shared)


@pytest.mark.parametrize("size", [(64, 96), (60, 90), (33, 65)])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_decoder_ends_in_tanh_and_crops_at_the_bottom_and_right(size, channels):
    torch.manual_seed(1)
    net = ImageDecoder(nn.Identity(), [8, 8, 6, 4, 4, channels], size, dropout=0.0)
    net.stages[-1].weight.data.mul_(30)
    shared, exclusive = torch.randn(2, 5, 2, 3), torch.randn(2, 3)
    whole = torch.tanh(net.stages(joined(shared, exclusive)))
    pictures = net(shared, exclusive)
    assert whole.shape[-2:] == (64, 96) and pictures.shape == (2, channels, *size)
    torch.testing.assert_close(pictures, whole[..., : size[0], : size[1]])


# ---- initial weights


def test_a_new_model_has_the_papers_initial_weights():
    torch.manual_seed(6)
    networks = ImageNetworks((64, 64), [32, 64], [64, 32], 128)
    model = IIAE(networks, {"x": 3, "y": 3}, exclusive_dim=8)
    layers = list(model.modules())
    gammas = [layer.weight.detach() for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert float(torch.cat(gammas).mean()) == pytest.approx(1.0, abs=0.005)
    assert float(torch.cat(gammas).std()) == pytest.approx(0.02, rel=0.15)
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.08)
        if isinstance(layer, nn.Linear):  # Glorot, uniform
            limit = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert 0.98 * limit < float(layer.weight.detach().abs().max()) <= limit
        assert getattr(layer, "bias", None) is None or not layer.bias.detach().any()


def test_biases_that_a_norm_subtracts_stay_zero():
    """They would change no loss: two layers of FE, exclusive encoder and decoder, both domains."""
    model = IIAE(ImageNetworks((32, 32), [8, 16], [16, 8], 4), {"x": 3, "y": 3}, exclusive_dim=2)
    x, y = (torch.rand(4, 3, 32, 32) * 2 - 1 for _ in range(2))
    bound("elbo+ii-mi", 5.0)(*model(x, y), 1000)["loss"].backward()
    fixed = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert len(fixed) == 12 and all(name.endswith("bias") for name in fixed)
    assert not any(model.get_parameter(name).any() for name in fixed)
