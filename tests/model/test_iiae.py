"""The composed model: the paper's sizes, who reads what, and shapes at every picture size."""

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL_IMAGE
from torch import nn

from iiae_cli.builders import build_model
from iiae_cli.config.presets import preset_layers, resolve
from iiae_cli.data.datafile import DataInfo
from iiae_cli.model import other_domain
from iiae_cli.model.gaussian import DiagonalGaussian
from iiae_cli.model.iiae import IIAE, Latents, Posteriors, feature_iiae, image_iiae

PAPER_IMAGE = {
    "channels_x": 3,
    "channels_y": 3,
    "size": (256, 256),
    "widths": [32, 64, 128, 256],
    "decoder_widths": [512, 256, 128, 64],
    "shared_channels": 128,
    "exclusive_dim": 8,
}
PARTS = ("exclusive", "features", "shared", "decoder", "shared_decoder")


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def small_image(**changes):
    return image_iiae(**{**SMALL_IMAGE, **changes})


def small_features(**changes):
    settings = {
        "width_x": 7,
        "width_y": 5,
        "feature_width": 6,
        "exclusive_hidden": (8, 6),
        "shared_hidden": 6,
        "joint_hidden": 6,
        "decoder_hidden": 6,
        "shared_dim": 4,
        "exclusive_dim": 3,
    }
    return feature_iiae(**{**settings, **changes})


def batch_of(rows=3, size=(16, 16), channels=(3, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.rand((rows, number, *size), generator=generator) * 2 - 1 for number in channels
    )


def features_of(rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, 7), generator=generator), torch.randn((rows, 5), generator=generator)


def every_kind():
    """(model, x, y) of each family of networks, in evaluation mode, batch norm statistics settled."""
    torch.manual_seed(5)
    cases = [
        (small_image(), *batch_of()),
        (small_image(flat_hidden=6), *batch_of()),
        (small_features(), *features_of()),
    ]
    for model, x, y in cases:
        for _ in range(30):
            model.generate(model.sample(model.infer(x, y)))
        model.eval()
    return cases


def same(first, second):
    torch.testing.assert_close(first.mean, second.mean)
    torch.testing.assert_close(first.logvar, second.logvar)


# ---- the paper's sizes


@pytest.mark.parametrize(
    "build, total, exclusive, shared_encoder, decoder, joint",
    [
        (lambda: image_iiae(**PAPER_IMAGE), 16_801_830, 1_739_696, 1_739_936, 3_872_579, 2_097_408),
        (
            lambda: image_iiae(**PAPER_IMAGE, flat_hidden=256),
            46_952_230,
            1_739_696,
            6_001_312,
            11_507_523,
            8_455_168,
        ),
        (
            lambda: feature_iiae(width_x=512, width_y=512),
            2_470_784,
            428_416,
            428_416,
            82_816,
            591_488,
        ),
    ],
    ids=["images", "cars", "features"],
)
def test_the_papers_models_have_its_parameter_counts(
    build, total, exclusive, shared_encoder, decoder, joint
):
    with torch.device("meta"):
        model = build()
    assert count(model) == total
    assert count(model.joint_shared) == joint
    for domain in ("x", "y"):
        part = {name: getattr(model, name)[domain] for name in PARTS[:4]}
        assert count(part["exclusive"]) == exclusive
        assert count(part["features"], part["shared"]) == shared_encoder
        assert count(part["decoder"]) == decoder
        assert not model.shared_decoder


def test_the_mnist_preset_builds_the_papers_model():
    config = resolve(preset_layers("mnist-cdcb")).config
    with torch.device("meta"):
        model = build_model(config, DataInfo("mnist-cdcb", (28, 28, 3), (28, 28, 3), {}, {}))
    assert count(model) == 16_801_830
    assert model.shared_shape == (128, 8, 8)
    assert model.exclusive_dim == 8


def test_the_papers_latents_have_its_shapes():
    with torch.device("meta"):
        maps, flat = image_iiae(**PAPER_IMAGE), image_iiae(**PAPER_IMAGE, flat_hidden=256)
        pictures = torch.empty(2, 3, 256, 256)
        found, vector = maps.encode_shared("x", pictures), flat.encode_shared("y", pictures)
        exclusive = maps.encode_exclusive("x", pictures)
        assert maps.features["x"](pictures).shape == (2, 256, 16, 16)
        assert flat.features["x"](pictures).shape == (2, 8 * 8 * 256)
    assert found.mean.shape == found.logvar.shape == (2, 128, 8, 8)
    assert vector.mean.shape == (2, 128)
    assert exclusive.mean.shape == (2, 8)
    assert flat.decoder["x"].entry[0].out_features == 32_768
    assert (maps.shared_shape, flat.shared_shape) == ((128, 8, 8), (128,))


# ---- shapes


@pytest.mark.parametrize("channels", [(3, 3), (1, 3), (4, 1)])
@pytest.mark.parametrize(
    "size, grid", [((16, 16), (2, 2)), ((17, 17), (3, 3)), ((28, 28), (4, 4)), ((30, 45), (4, 6))]
)
@pytest.mark.parametrize("flat_hidden", [None, 6])
def test_pictures_of_any_size_and_channel_count_come_back_in_their_shape(
    size, grid, channels, flat_hidden
):
    torch.manual_seed(0)
    model = small_image(
        size=size, channels_x=channels[0], channels_y=channels[1], flat_hidden=flat_hidden
    )
    x, y = batch_of(size=size, channels=channels)
    posteriors = model.infer(x, y)
    shape = (5, *grid) if flat_hidden is None else (5,)
    assert model.shared_shape == shape
    for posterior in (posteriors.joint_shared, *posteriors.shared.values()):
        assert posterior.mean.shape == posterior.logvar.shape == (3, *shape)
    assert posteriors.exclusive["x"].mean.shape == posteriors.exclusive["y"].logvar.shape == (3, 3)
    decoded = model.generate(model.sample(posteriors))
    assert decoded.mean["x"].shape == x.shape
    assert decoded.mean["y"].shape == y.shape
    for picture in (decoded.mean["x"], decoded.mean["y"]):
        assert torch.isfinite(picture).all()
        assert picture.abs().max() <= 1


def test_features_of_two_widths_come_back_in_their_shapes():
    model = small_features()
    x, y = features_of()
    posteriors = model.infer(x, y)
    assert posteriors.joint_shared.mean.shape == posteriors.shared["x"].mean.shape == (3, 4)
    assert posteriors.exclusive["y"].mean.shape == (3, 3)
    decoded = model.generate(model.sample(posteriors))
    assert (decoded.mean["x"].shape, decoded.mean["y"].shape) == ((3, 7), (3, 5))
    assert model.shared_shape == (4,)


def test_decoded_pictures_reach_both_ends_of_the_range():
    model = small_image(dropout=0.0)
    for layer in (model.decoder["x"].stages[-1], model.decoder["y"].stages[-1]):
        layer.weight.data.mul_(1000)
    with torch.no_grad():
        decoded = model.generate(model.sample(model.infer(*batch_of())))
    for pictures in (decoded.mean["x"], decoded.mean["y"]):
        assert float(pictures.max()) == pytest.approx(1.0, abs=1e-3)
        assert float(pictures.min()) == pytest.approx(-1.0, abs=1e-3)


def test_padding_is_a_no_op_at_the_papers_size():
    model = small_image(size=(256, 256), widths=[2] * 4, decoder_widths=[2] * 4)
    x, y = batch_of(rows=2, size=(256, 256))
    seen = []
    for module in (model.features["x"], model.exclusive["x"][0]):
        convolution = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
        convolution.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    decoded = model.generate(model.sample(model.infer(x, y)))
    assert len(seen) == 2 and all(given is x for given in seen)
    assert model.shared_shape == (5, 8, 8)
    whole = model.decoder["x"].stages(torch.zeros(2, 8, 8, 8))
    assert whole.shape == decoded.mean["x"].shape == (2, 3, 256, 256)


def test_an_odd_picture_is_treated_as_its_edge_padded_self_and_cropped():
    torch.manual_seed(1)
    odd, even = small_image(size=(30, 45)), small_image(size=(32, 48))
    even.load_state_dict(odd.state_dict())
    odd.eval(), even.eval()
    x, _ = batch_of(size=(30, 45))
    padded = F.pad(x, (0, 3, 0, 2), mode="replicate")
    same(odd.encode_shared("x", x), even.encode_shared("x", padded))
    same(odd.encode_exclusive("x", x), even.encode_exclusive("x", padded))
    shared, exclusive = torch.randn(3, 5, 4, 6), torch.randn(3, 3)
    torch.testing.assert_close(
        odd.decode("y", shared, exclusive), even.decode("y", shared, exclusive)[..., :30, :45]
    )


# ---- who reads what


def test_the_joint_encoder_reads_both_domains_and_each_r_its_own():
    for model, x, y in every_kind():
        before = model.infer(x, y)
        other_y = model.infer(x, y.flip(0) * 0.5)
        other_x = model.infer(x.flip(0) * 0.5, y)
        same(before.shared["x"], other_y.shared["x"])
        same(before.exclusive["x"], other_y.exclusive["x"])
        same(before.shared["y"], other_x.shared["y"])
        same(before.exclusive["y"], other_x.exclusive["y"])
        for changed, domain in ((other_y, "y"), (other_x, "x")):
            for old, new in (
                (before.joint_shared, changed.joint_shared),
                (before.shared[domain], changed.shared[domain]),
                (before.exclusive[domain], changed.exclusive[domain]),
            ):
                assert ((old.mean - new.mean).abs().flatten(1).amax(1) > 1e-4).all()


def test_infer_is_composed_of_the_named_networks():
    for model, x, y in every_kind():
        posteriors = model.infer(x, y)
        features_x, features_y = model.features["x"](x), model.features["y"](y)
        for posterior, heads in (
            (posteriors.exclusive["x"], model.exclusive["x"](x)),
            (posteriors.exclusive["y"], model.exclusive["y"](y)),
            (posteriors.shared["x"], model.shared["x"](features_x)),
            (posteriors.shared["y"], model.shared["y"](features_y)),
            (
                posteriors.joint_shared,
                model.joint_shared(torch.cat([features_x, features_y], dim=1)),
            ),
        ):
            same(posterior, DiagonalGaussian.from_heads(heads))


def test_single_domain_encoding_agrees_with_infer():
    for model, x, y in every_kind():
        posteriors = model.infer(x, y)
        same(model.encode_shared("x", x), posteriors.shared["x"])
        same(model.encode_shared("y", y), posteriors.shared["y"])
        same(model.encode_exclusive("x", x), posteriors.exclusive["x"])
        same(model.encode_exclusive("y", y), posteriors.exclusive["y"])


def test_in_evaluation_mode_a_row_does_not_depend_on_its_batch():
    for model, x, _ in every_kind():
        whole, alone = model.encode_shared("x", x), model.encode_shared("x", x[1:2])
        torch.testing.assert_close(whole.mean[1:2], alone.mean)


def test_infer_runs_each_feature_extractor_once():
    for model, x, y in every_kind():
        calls = []
        for part in (model.features["x"], model.features["y"]):
            part.register_forward_hook(lambda module, *_, seen=calls: seen.append(module))
        model.infer(x, y)
        assert calls == [model.features["x"], model.features["y"]]


def narrow(value, *shape):
    return DiagonalGaussian(torch.full(shape, value), torch.full(shape, -60.0))


def test_latents_are_drawn_from_the_exclusive_and_the_joint_posteriors():
    posteriors = Posteriors(
        inputs={},
        exclusive={"x": narrow(1.0, 2, 3), "y": narrow(2.0, 2, 3)},
        joint_shared=narrow(3.0, 2, 5, 2, 2),
        shared={"x": narrow(4.0, 2, 5, 2, 2), "y": narrow(5.0, 2, 5, 2, 2)},
    )
    latents = IIAE.sample(posteriors)
    torch.testing.assert_close(latents.exclusive["x"], torch.full((2, 3), 1.0))
    torch.testing.assert_close(latents.exclusive["y"], torch.full((2, 3), 2.0))
    torch.testing.assert_close(latents.shared, torch.full((2, 5, 2, 2), 3.0))


def test_the_latents_of_a_batch_have_noise_of_their_own():
    wide = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    posteriors = Posteriors({}, {"x": wide, "y": wide}, wide, {"x": wide, "y": wide})
    latents = IIAE.sample(posteriors, torch.Generator().manual_seed(1))
    again = IIAE.sample(posteriors, torch.Generator().manual_seed(1))
    drawn = (latents.exclusive["x"], latents.exclusive["y"], latents.shared)
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(latents.exclusive["x"], again.exclusive["x"])
    assert torch.equal(latents.shared, again.shared)


def test_generate_decodes_each_domain_from_its_exclusive_and_the_shared_latent():
    for model, x, y in every_kind():
        latents = model.sample(model.infer(x, y))
        decoded = model.generate(latents)
        torch.testing.assert_close(
            decoded.mean["x"], model.decoder["x"](latents.shared, latents.exclusive["x"])
        )
        torch.testing.assert_close(
            decoded.mean["y"], model.decoder["y"](latents.shared, latents.exclusive["y"])
        )
        torch.testing.assert_close(
            model.decode("x", latents.shared, latents.exclusive["x"]), decoded.mean["x"]
        )
        torch.testing.assert_close(
            model.decode("y", latents.shared.flatten(1), latents.exclusive["y"]), decoded.mean["y"]
        )
        assert not decoded.shared_only


def test_both_latents_reach_every_corner_of_a_picture():
    torch.manual_seed(2)
    model = small_image(size=(32, 32), dropout=0.0).eval()
    shared, exclusive = torch.randn(1, 5, 4, 4), torch.randn(1, 3)
    base = model.decode("x", shared, exclusive)
    by_exclusive = (model.decode("x", shared, exclusive + 1) - base).abs().amax(1)[0]
    by_shared = (model.decode("x", shared + 1, exclusive) - base).abs().amax(1)[0]
    for change in (by_exclusive, by_shared):
        assert (F.max_pool2d(change[None], 8) > 0).all()
    near = shared.clone()
    near[..., 0, 0] += 1
    moved = (model.decode("x", near, exclusive) - base).abs().amax(1)[0]
    assert moved[:8, :8].max() > 0
    assert moved[24:, 24:].max() == 0  # one cell of the map is local


# ---- ablations


@pytest.mark.parametrize("build, data", [(small_image, batch_of), (small_features, features_of)])
def test_without_exclusive_latents_there_are_no_such_networks(build, data):
    model = build(exclusive_latents=False)
    x, y = data()
    assert not model.exclusive
    assert model.exclusive_dim == 0
    assert not any(name.startswith("exclusive") for name, _ in model.named_parameters())
    posteriors = model.infer(x, y)
    assert not posteriors.exclusive
    latents = model.sample(posteriors)
    assert not latents.exclusive
    decoded = model.generate(latents)
    assert (decoded.mean["x"].shape, decoded.mean["y"].shape) == (x.shape, y.shape)
    for domain, inputs in (("x", x), ("y", y)):
        with pytest.raises(ValueError, match="without exclusive latents"):
            model.encode_exclusive(domain, inputs)


@pytest.mark.parametrize(
    "build, data",
    [
        (lambda: small_image(shared_decoders=True), batch_of),
        (lambda: small_image(shared_decoders=True, flat_hidden=6), batch_of),
        (lambda: small_features(shared_decoders=True), features_of),
    ],
    ids=["images", "flat", "features"],
)
def test_shared_decoders_read_the_shared_latent_alone(build, data):
    model = build().eval()
    x, y = data()
    latents = model.sample(model.infer(x, y))
    decoded = model.generate(latents)
    assert (decoded.shared_only["x"].shape, decoded.shared_only["y"].shape) == (x.shape, y.shape)
    torch.testing.assert_close(
        decoded.shared_only["x"], model.shared_decoder["x"](latents.shared, None)
    )
    moved = model.generate(
        Latents({d: values + 1 for d, values in latents.exclusive.items()}, latents.shared)
    )
    torch.testing.assert_close(moved.shared_only["x"], decoded.shared_only["x"])
    torch.testing.assert_close(moved.shared_only["y"], decoded.shared_only["y"])
    assert not torch.allclose(moved.mean["x"], decoded.mean["x"])


@pytest.mark.parametrize(
    "build, changes",
    [
        (small_image, {"shared_decoders": True}),
        (small_image, {"flat_hidden": 6}),
        (small_features, {}),
    ],
    ids=["images", "flat", "features"],
)
def test_no_two_networks_share_a_parameter(build, changes):
    model = build(**changes)
    owners = {}
    parts = [*model.named_modules()]
    parts = [(name, part) for name, part in parts if name.count(".") == 1 or name == "joint_shared"]
    parts = [(name, part) for name, part in parts if not name.startswith("joint_shared.")]
    for name, part in parts:
        for parameter in part.parameters():
            assert owners.setdefault(id(parameter), name) == name
    assert len(owners) == len(list(model.parameters()))
    assert {f"{part}.{domain}" for part in PARTS[:4] for domain in "xy"} <= set(owners.values())


def test_encoder_and_decoder_need_the_same_depth():
    with pytest.raises(ValueError, match="2 encoder widths need as many decoder widths, not 3"):
        small_image(decoder_widths=[8, 6, 4])


# ---- weights


def test_a_new_model_has_the_papers_initial_weights():
    torch.manual_seed(6)
    model = image_iiae(
        **{**PAPER_IMAGE, "size": (64, 64), "widths": [32, 64], "decoder_widths": [64, 32]}
    )
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(convolutions) == 4 * 2 + 3 + 3 * 2 and len(linear) == 2
    for layer in convolutions:
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.08)
    gammas = torch.cat([layer.weight.detach() for layer in norms])
    assert float(gammas.mean()) == pytest.approx(1.0, abs=0.005)
    assert float(gammas.std()) == pytest.approx(0.02, rel=0.15)
    for layer in linear:
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.98 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert not any(layer.bias.detach().any() for layer in (*convolutions, *norms, *linear))


def test_other_domain():
    assert (other_domain("x"), other_domain("y")) == ("y", "x")
