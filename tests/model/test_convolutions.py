"""Strided convolutions: torch's results, and in bfloat16 on small grids torch's gradients, to rounding."""

from __future__ import annotations

from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_cli.model import convolutions
from iiae_cli.model.convolutions import DoublingConv, HalvingConv

Layer: TypeAlias = HalvingConv | DoublingConv
BF16 = 2.0**-8


def halving(channels: int = 20, width: int = 24) -> HalvingConv:
    torch.manual_seed(0)
    return HalvingConv(channels, width)


def doubling(channels: int = 24, width: int = 20) -> DoublingConv:
    torch.manual_seed(0)
    return DoublingConv(channels, width)


def batch(layer: Layer, grid: tuple[int, int] = (4, 6)) -> Tensor:
    """Inputs of a layer whose coarse side has this grid."""
    times = 2 if isinstance(layer, HalvingConv) else 1
    inputs = torch.randn(3, layer.in_channels, times * grid[0], times * grid[1])
    return inputs.contiguous(memory_format=torch.channels_last).requires_grad_()


def torchs(layer: Layer, inputs: Tensor) -> Tensor:
    """What torch's own layer makes of it."""
    convolve = F.conv2d if isinstance(layer, HalvingConv) else F.conv_transpose2d
    return convolve(inputs, layer.weight, layer.bias, stride=2, padding=1)


def own_way(result: Tensor) -> bool:
    """Whether a result's gradients come from products of windows."""
    node = result.grad_fn
    return node is not None and "ByProduct" in node.name()


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("layer", [halving(), doubling()], ids=["halving", "doubling"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_in_bf16_results_are_torchs_and_gradients_those_of_float32_but_for_rounding(
    layer: Layer, channels_last: bool
) -> None:
    inputs = batch(layer)
    if not channels_last:
        inputs = inputs.detach().contiguous().requires_grad_()
    learned = [inputs, layer.weight, layer.bias]
    with autocast():
        result = layer(inputs)
        assert own_way(result) and torch.equal(result, torchs(layer, inputs))
    gradient = torch.randn_like(result)
    found = torch.autograd.grad(result, learned, gradient)
    expected = torch.autograd.grad(torchs(layer, inputs), learned, gradient.float())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=4 * BF16 * float(other.abs().max()))


@pytest.mark.parametrize("layer", [halving(), doubling()], ids=["halving", "doubling"])
def test_bf16_gradients_are_no_further_from_float32_than_torchs_own(layer: Layer) -> None:
    inputs = batch(layer, (8, 8))
    with autocast():
        ours, theirs = layer(inputs), torchs(layer, inputs)
    gradient = torch.randn_like(ours)
    exact, own, other = (
        torch.autograd.grad(result, layer.weight, gradient.to(result.dtype))[0]
        for result in (torchs(layer, inputs), ours, theirs)
    )
    assert (own - exact).norm() <= 1.1 * (other - exact).norm()


def test_gradients_are_the_same_each_time() -> None:
    layer = halving(64, 64)
    inputs = batch(layer, (8, 8))
    with autocast():
        results = [layer(inputs) for _ in range(2)]
    first, second = (
        torch.autograd.grad(one, [inputs, layer.weight], torch.ones_like(one)) for one in results
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_windows_are_those_of_unfold() -> None:
    fine = torch.randn(2, 5, 6, 8)
    expected = F.unfold(fine, kernel_size=4, stride=2, padding=1)  # (B, C·16, H·W)
    expected = expected.view(2, 5, 16, 12).permute(0, 3, 2, 1).reshape(24, 80)
    assert torch.equal(convolutions._windows(fine), expected)
    assert torch.equal(
        convolutions._windows(fine.contiguous(memory_format=torch.channels_last)), expected
    )


@pytest.mark.parametrize("layer", [halving(), doubling()], ids=["halving", "doubling"])
def test_only_what_learns_gets_a_gradient(layer: Layer) -> None:
    inputs = batch(layer).detach()
    layer.bias.requires_grad_(False)
    with autocast():
        result = layer(inputs)
    result.float().square().sum().backward()
    assert own_way(result) and layer.bias.grad is None
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    layer.weight.grad = None
    layer.bias.requires_grad_(True)


@pytest.mark.parametrize(
    ("layer", "grid"),
    [
        (halving(), (16, 17)),
        (doubling(), (16, 17)),
        (halving(3, 24), (4, 4)),
        (doubling(24, 3), (4, 4)),
    ],
    ids=["large grid", "large grid, doubling", "a picture", "a picture, doubling"],
)
def test_large_grids_and_pictures_go_torchs_way(layer: Layer, grid: tuple[int, int]) -> None:
    inputs = batch(layer, grid)
    with autocast():
        result = layer(inputs)
        assert not own_way(result) and torch.equal(result, torchs(layer, inputs))


@pytest.mark.parametrize("sides", [(9, 8), (8, 9)])
def test_odd_sides_go_torchs_way(sides: tuple[int, int]) -> None:
    layer = halving()
    inputs = torch.randn(2, layer.in_channels, *sides, requires_grad=True)
    with autocast():
        result = layer(inputs)
    assert not own_way(result) and result.shape == (2, 24, 4, 4)
    result.sum().backward()
    assert inputs.grad is not None and inputs.grad.shape == inputs.shape


@pytest.mark.parametrize("layer", [halving(), doubling()], ids=["halving", "doubling"])
def test_float32_and_float64_go_torchs_way(layer: Layer) -> None:
    inputs = batch(layer)
    result = layer(inputs)
    assert not own_way(result) and torch.equal(result, torchs(layer, inputs))
    layer.double()
    assert layer(inputs.double()).dtype == torch.float64
    layer.float()


def test_an_output_size_is_torchs_to_keep() -> None:
    layer = doubling()
    with autocast():
        assert layer(torch.randn(1, 24, 4, 4), [9, 8]).shape == (1, 20, 9, 8)


def test_they_are_torchs_layers_to_everybody_else() -> None:
    assert isinstance(halving(), nn.Conv2d) and isinstance(doubling(), nn.ConvTranspose2d)
    torch.manual_seed(0)
    assert torch.equal(nn.Conv2d(20, 24, 4, 2, 1).weight, halving().weight)
