"""Layers of the paper's networks, checked one by one and against functional torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iiae_cli.model.convolutions import DoublingConv, HalvingConv
from iiae_cli.model.iiae import image_iiae
from iiae_cli.model.networks import (
    ConvTrunk,
    Dropout,
    FeatureDecoder,
    ImageDecoder,
    LinearTrunk,
    PadToMultiple,
    drop,
    feature_exclusive_encoder,
    flat_shared_head,
    grid_after,
    image_exclusive_encoder,
    init_paper_weights,
    map_shared_head,
)
from iiae_cli.model.objective import Objective


def kinds(module):
    return [type(layer) for layer in module]


def decoder(**changes):
    settings = {
        "shared_channels": 5,
        "exclusive_dim": 3,
        "grid": (2, 3),
        "widths": [8, 6, 4, 4],
        "channels": 3,
        "size": (60, 90),
        "dropout": 0.5,
    }
    return ImageDecoder(**{**settings, **changes})


def norm_layers(module):
    return [
        layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    ]


def whole_zoo():
    return [
        ConvTrunk(3, [4, 6]),
        LinearTrunk(5, [4, 6]),
        image_exclusive_encoder(3, [4, 6], (4, 4), 2, 8),
        flat_shared_head(12, 7, 3),
        feature_exclusive_encoder(9, [8, 4], 2),
        decoder(),
        decoder(flat_width=4),
        FeatureDecoder(shared_dim=4, exclusive_dim=2, hidden=6, width=9),
    ]


def test_convolutions_are_four_by_four_stride_two_with_bias():
    trunk = ConvTrunk(3, [4, 6])
    convolutions = [layer for layer in trunk if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(3, 4), (4, 6)]
    transposed = [layer for layer in decoder().stages if isinstance(layer, nn.ConvTranspose2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in transposed] == [
        (8, 8),
        (8, 6),
        (6, 4),
        (4, 4),
        (4, 3),
    ]
    head = map_shared_head(6, 5)
    assert (head.in_channels, head.out_channels) == (6, 10)
    for layer in (*convolutions, *transposed, head):
        assert layer.kernel_size == (4, 4)
        assert layer.stride == (2, 2)
        assert layer.padding == (1, 1)
        assert layer.bias is not None
        assert layer.groups == 1


def test_every_batch_norm_has_the_papers_epsilon_and_momentum():
    for module in whole_zoo():
        norms = norm_layers(module)
        assert norms
        for norm in norms:
            assert norm.eps == 1e-5
            assert norm.momentum == 0.1
            assert norm.affine and norm.track_running_stats


def test_encoders_use_leaky_relu_of_slope_one_fifth_and_decoders_relu():
    for module in whole_zoo():
        slopes = [
            layer.negative_slope for layer in module.modules() if isinstance(layer, nn.LeakyReLU)
        ]
        relus = [layer for layer in module.modules() if isinstance(layer, nn.ReLU)]
        if isinstance(module, ImageDecoder | FeatureDecoder):
            assert relus and not slopes
        else:
            assert slopes and set(slopes) == {0.2} and not relus


def test_trunks_put_batch_norm_between_layer_and_activation():
    assert kinds(ConvTrunk(3, [4, 6])) == [HalvingConv, nn.BatchNorm2d, nn.LeakyReLU] * 2
    assert kinds(LinearTrunk(5, [4, 6])) == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU] * 2


def test_a_conv_trunk_computes_what_functional_torch_computes():
    torch.manual_seed(0)
    trunk = ConvTrunk(2, [3, 4]).apply(init_paper_weights)
    for layer in trunk:
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            nn.init.normal_(layer.bias)
    pictures = torch.randn(3, 2, 8, 12)
    hidden = pictures
    for index in (0, 3):
        conv, norm = trunk[index], trunk[index + 1]
        hidden = F.conv2d(F.pad(hidden, (1, 1, 1, 1)), conv.weight, conv.bias, stride=2)
        centred = hidden - hidden.mean((0, 2, 3), keepdim=True)
        hidden = centred / torch.sqrt(centred.square().mean((0, 2, 3), keepdim=True) + 1e-5)
        hidden = hidden * norm.weight[:, None, None] + norm.bias[:, None, None]
        hidden = torch.maximum(hidden, 0.2 * hidden)
    torch.testing.assert_close(trunk(pictures), hidden, rtol=1e-4, atol=1e-5)


def test_a_posteriors_last_layer_has_neither_norm_nor_activation():
    exclusive = image_exclusive_encoder(3, [4, 6], (4, 4), 2, 8)
    assert isinstance(exclusive[-1], nn.Linear) and exclusive[-1].out_features == 4
    assert exclusive[-1].in_features == 6 * 4 * 4
    flat = flat_shared_head(12, 7, 3)
    assert isinstance(flat[-1], nn.Linear) and flat[-1].out_features == 6
    assert isinstance(map_shared_head(6, 5), nn.Conv2d)
    features = feature_exclusive_encoder(9, [8, 4], 2)
    assert isinstance(features[-1], nn.Linear) and features[-1].out_features == 4


def test_dropout_stands_in_the_decoders_first_two_stages_between_norm_and_relu():
    with_dropout = [DoublingConv, nn.BatchNorm2d, Dropout, nn.ReLU]
    without = [DoublingConv, nn.BatchNorm2d, nn.ReLU]
    assert kinds(decoder().stages) == [*with_dropout * 2, *without * 2, DoublingConv]
    assert [layer.p for layer in decoder(dropout=0.3).stages if isinstance(layer, nn.Dropout)] == [
        0.3,
        0.3,
    ]
    flat = decoder(flat_width=4)
    assert kinds(flat.entry) == [nn.Linear, nn.BatchNorm1d, Dropout, nn.ReLU]
    assert kinds(flat.stages) == [*with_dropout * 2, *without * 2, DoublingConv]


def test_no_dropout_is_left_where_its_rate_is_zero_or_outside_image_decoders():
    plain = [decoder(dropout=0.0), decoder(dropout=0.0, flat_width=4)]
    others = [module for module in whole_zoo() if not isinstance(module, ImageDecoder)]
    for module in (*plain, *others):
        assert not any(isinstance(layer, nn.Dropout) for layer in module.modules())


@pytest.mark.parametrize("flat_width", [None, 4])
def test_decoder_dropout_is_off_in_evaluation_mode(flat_width):
    torch.manual_seed(0)
    net = decoder(flat_width=flat_width)
    shared = torch.randn(4, 5) if flat_width else torch.randn(4, 5, 2, 3)
    exclusive = torch.randn(4, 3)
    assert not torch.equal(net(shared, exclusive), net(shared, exclusive))
    net.eval()
    assert torch.equal(net(shared, exclusive), net(shared, exclusive))


def first_input(module, *inputs):
    """What the first layer of `module` is given."""
    seen = []
    first = next(
        layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.ConvTranspose2d)
    )
    handle = first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module(*inputs)
    handle.remove()
    return seen[0]


def test_an_exclusive_latent_is_tiled_over_the_grid_before_the_shared_map():
    shared, exclusive = torch.randn(2, 5, 2, 3), torch.randn(2, 3)
    given = first_input(decoder(), shared, exclusive)
    assert given.shape == (2, 8, 2, 3)
    assert torch.equal(given[:, 3:], shared)
    for row in range(2):
        for column in range(3):
            assert torch.equal(given[:, :3, row, column], exclusive)


def test_vector_latents_are_joined_with_the_exclusive_one_first():
    shared, exclusive = torch.randn(2, 5), torch.randn(2, 3)
    for net in (
        decoder(flat_width=4),
        FeatureDecoder(shared_dim=5, exclusive_dim=3, hidden=6, width=9),
    ):
        assert torch.equal(
            first_input(net, shared, exclusive), torch.cat([exclusive, shared], dim=1)
        )


def test_decoders_without_exclusive_latents_read_the_shared_one_alone():
    grid, vector = torch.randn(2, 5, 2, 3), torch.randn(2, 5)
    assert torch.equal(first_input(decoder(exclusive_dim=0), grid, None), grid)
    assert torch.equal(first_input(decoder(exclusive_dim=0, flat_width=4), vector, None), vector)
    features = FeatureDecoder(shared_dim=5, exclusive_dim=0, hidden=6, width=9)
    assert torch.equal(first_input(features, vector, None), vector)


def test_the_flat_entry_gives_channels_before_rows_and_columns():
    net = decoder(flat_width=4, dropout=0.0).eval()
    seen = []
    net.stages[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    shared, exclusive = torch.randn(2, 5), torch.randn(2, 3)
    net(shared, exclusive)
    cells = net.entry(torch.cat([exclusive, shared], dim=1))
    assert torch.equal(seen[0], cells.reshape(2, 4, 2, 3))


@pytest.mark.parametrize("size", [(64, 96), (60, 90), (33, 65)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_decoder_ends_in_tanh_and_crops_at_the_bottom_and_right(size, channels):
    torch.manual_seed(1)
    net = decoder(size=size, channels=channels, dropout=0.0)
    net.stages[-1].weight.data.mul_(30)
    shared, exclusive = torch.randn(2, 5, 2, 3), torch.randn(2, 3)
    pictures = net(shared, exclusive)
    whole = torch.tanh(net.stages(first_input(net, shared, exclusive)))
    assert whole.shape[-2:] == (64, 96)
    assert pictures.shape == (2, channels, *size)
    assert pictures.abs().max() <= 1.0
    torch.testing.assert_close(pictures, whole[..., : size[0], : size[1]])


def test_a_feature_decoder_is_linear_norm_relu_linear_without_output_activation():
    net = FeatureDecoder(shared_dim=4, exclusive_dim=2, hidden=6, width=9)
    assert kinds(net.layers) == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    net.layers[-1].bias.data.copy_(torch.linspace(-50, 50, 9))
    decoded = net(torch.randn(3, 4), torch.randn(3, 2))
    assert decoded.shape == (3, 9)
    assert decoded.max() > 40 and decoded.min() < -40


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_grid_after_counts_the_halvings_of_the_padded_side(stages):
    for size in range(1, 70):
        padded = size
        while padded % 2**stages:
            padded += 1
        assert grid_after(size, stages) == padded >> stages


def test_padding_does_nothing_at_multiples():
    pictures = torch.randn(2, 3, 256, 256)
    assert PadToMultiple(32)(pictures) is pictures


def test_padding_repeats_the_bottom_and_right_edges():
    pictures = torch.randn(2, 3, 5, 7)
    padded = PadToMultiple(8)(pictures)
    assert padded.shape == (2, 3, 8, 8)
    assert torch.equal(padded[..., :5, :7], pictures)
    for row in (5, 6, 7):
        assert torch.equal(padded[..., row, :7], pictures[..., 4, :])
    assert torch.equal(padded[..., 7], padded[..., 6])


def test_convolutions_start_from_a_normal_of_deviation_one_fiftieth():
    torch.manual_seed(2)
    for layer in (nn.Conv2d(64, 96, 4), nn.ConvTranspose2d(64, 96, 4)):
        weight = layer.apply(init_paper_weights).weight.detach()
        assert float(weight.mean()) == pytest.approx(0.0, abs=4e-4)
        assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
        assert float((weight.abs() < 0.02).float().mean()) == pytest.approx(0.6827, abs=0.01)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batch_norm_starts_around_one(norm):
    torch.manual_seed(3)
    layer = norm(20_000)
    nn.init.ones_(layer.bias)
    weight = layer.apply(init_paper_weights).weight.detach()
    assert float(weight.mean()) == pytest.approx(1.0, abs=1e-3)
    assert float(weight.std()) == pytest.approx(0.02, rel=0.03)
    assert not layer.bias.any()


def test_linear_layers_start_glorot_uniform():
    torch.manual_seed(4)
    weight = nn.Linear(300, 100).apply(init_paper_weights).weight.detach()
    bound = math.sqrt(6 / 400)
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0.0, abs=2e-3)


def test_every_bias_starts_at_zero():
    for layer in (nn.Conv2d(2, 3, 4), nn.ConvTranspose2d(2, 3, 4), nn.Linear(2, 3)):
        nn.init.ones_(layer.bias)
        layer.apply(init_paper_weights)
        assert not layer.bias.any()


def trained_once(build, layout, straightforward):
    """Loss terms and gradients of one step; `straightforward`: every bias learns, nothing happens in place."""
    torch.manual_seed(3)
    model = build().to(memory_format=layout).train()
    if straightforward:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        for layer in model.modules():
            if isinstance(layer, nn.ReLU | nn.LeakyReLU):
                layer.inplace = False
    x, y = (torch.rand(4, 3, 32, 32).contiguous(memory_format=layout) * 2 - 1 for _ in range(2))
    posteriors = model.infer(x, y)
    torch.manual_seed(4)
    terms = Objective(annealing_steps=0)(posteriors, model.generate(model.sample(posteriors)), 0)
    terms["loss"].backward()
    return terms, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_fast_model_has_the_straightforward_ones_losses_and_gradients():
    def build():
        settings = {
            "channels_x": 3,
            "channels_y": 3,
            "size": (32, 32),
            "widths": [8, 16],
            "decoder_widths": [16, 8],
        }
        return image_iiae(**settings, shared_channels=4, exclusive_dim=2, dropout=0.0)

    wanted, gradients = trained_once(build, torch.contiguous_format, straightforward=True)
    found, own = trained_once(build, torch.channels_last, straightforward=False)
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    left_out = [name for name, gradient in own.items() if gradient is None]
    # two layers of FE, exclusive encoder and decoder, in both domains
    assert len(left_out) == 12 and all(name.endswith("bias") for name in left_out)
    for name, gradient in gradients.items():
        if name in left_out:
            assert gradient.abs().max() < 1e-6 * largest
        else:
            torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-6 * largest.item())


def test_only_biases_that_a_norm_subtracts_stay_where_they_are():
    for module in whole_zoo():
        layers = [layer for layer in module.modules() if not list(layer.children())]
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                normed = isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d)
                assert layer.bias.requires_grad is not normed
                assert layer.weight.requires_grad


@pytest.mark.parametrize("rate", [0.25, 0.3, 0.5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate, layout):
    inputs = torch.ones(8, 16, 32, 33).contiguous(memory_format=layout).requires_grad_()
    torch.manual_seed(0)
    found = drop(inputs, rate)
    found.sum().backward()
    torch.testing.assert_close(inputs.grad, found.detach())
    assert found.is_contiguous(memory_format=layout)
    kept = found.detach() != 0
    assert found.detach()[kept].unique().tolist() == pytest.approx([1 / (1 - rate)])
    assert kept.float().mean().item() == pytest.approx(1 - rate, abs=0.01)
    # no value's fate tells its neighbour's, whichever way the bytes lie
    flat = (
        kept.permute(0, 2, 3, 1).reshape(-1).float()
        if layout is torch.channels_last
        else kept.reshape(-1).float()
    )
    for distance in (1, 4, 8):
        both = (flat[distance:] * flat[:-distance]).mean().item()
        assert both == pytest.approx((1 - rate) ** 2, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(drop(inputs, rate), found)


def test_dropout_is_off_in_evaluation_and_takes_tensors_that_are_not_dense():
    inputs = torch.ones(4, 6, 8, 10)[:, ::2]
    assert torch.equal(Dropout(0.5).eval()(inputs), inputs)
    assert 0.3 < (Dropout(0.5)(inputs) == 0).float().mean().item() < 0.7
