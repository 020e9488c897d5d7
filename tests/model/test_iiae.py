"""Gaussians, and the composed model: who reads what, shapes at any picture size, ablations."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FAMILIES, small_model, small_pairs
from torch.distributions import Independent, Normal, kl_divergence

from iiae_cli.model.iiae import IIAE, DiagonalGaussian, Latents, Posteriors
from iiae_cli.model.networks import FlatNetworks, ImageNetworks
from iiae_cli.model.objective import kl_between, kl_to_prior

every_family = pytest.mark.parametrize("family", FAMILIES)
every_shape = pytest.mark.parametrize("shape", [(5, 7), (3, 4, 2, 6)])


def settled(family, **options):
    """A model in evaluation mode, its batch norm statistics settled, with pairs for it."""
    model = small_model(family, **options)
    x, y = small_pairs(family)
    for _ in range(30):
        model(x, y)
    return model.eval(), x, y


def same(first, second):
    torch.testing.assert_close(first.mean, second.mean)
    torch.testing.assert_close(first.logvar, second.logvar)


# ---- diagonal Gaussians against torch.distributions


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(shape, seed):
    generator = seeded(seed)
    mean, logvar = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return DiagonalGaussian(mean, 1.5 * logvar)


def reference(gauss):
    return Independent(Normal(gauss.mean, torch.exp(0.5 * gauss.logvar)), gauss.mean.ndim - 1)


@every_shape
def test_kls_sum_over_latent_dimensions_as_torch_does(shape):
    q, p = gaussian(shape, 1), gaussian(shape, 2)
    prior = DiagonalGaussian(torch.zeros_like(q.mean), torch.zeros_like(q.mean))
    assert kl_between(q, p).shape == kl_to_prior(q).shape == (shape[0],)
    torch.testing.assert_close(kl_between(q, p), kl_divergence(reference(q), reference(p)))
    torch.testing.assert_close(kl_to_prior(q), kl_divergence(reference(q), reference(prior)))
    torch.testing.assert_close(kl_between(q, q), torch.zeros(shape[0], dtype=torch.float64))


def test_samples_and_kls_see_the_logvar_clamped_from_above_at_variance_ten_thousand():
    heads = torch.tensor([[2.0, 2.0, 2.0, 80.0, 9.2, -60.0]])
    made = DiagonalGaussian.from_heads(heads)
    assert made.logvar[0].tolist() == pytest.approx([9.21035, 9.2, -60.0])
    noise = torch.randn(1, 3, generator=seeded(6))
    torch.testing.assert_close(made.sample(seeded(6)), 2.0 + (made.logvar / 2).exp() * noise)
    clamped = Normal(torch.full((1, 3), 2.0), (torch.tensor([[9.21035, 9.2, -60.0]]) / 2).exp())
    expected = kl_divergence(clamped, Normal(torch.zeros(1, 3), 1.0)).sum(1)
    torch.testing.assert_close(kl_to_prior(made), expected)


def test_a_clamped_logvar_passes_no_gradient_and_nothing_overflows():
    heads = torch.cat([torch.ones(2, 3), torch.full((2, 3), 1e4)], dim=1).requires_grad_()
    made = DiagonalGaussian.from_heads(heads)
    (kl_to_prior(made).sum() + made.sample(seeded(0)).sum()).backward()
    assert torch.isfinite(heads.grad).all()
    assert not heads.grad[:, 3:].any() and (heads.grad[:, :3] != 0).all()


def test_a_sample_is_reparameterised():
    q = gaussian((3, 4, 2), 7)
    mean, logvar = q.mean.requires_grad_(), q.logvar.requires_grad_()
    sample = q.sample(seeded(8))
    sample.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(logvar.grad, 0.5 * (sample - mean).detach())


# ---- shapes


@pytest.mark.parametrize("channels", [(3, 3), (4, 1)])
@pytest.mark.parametrize(
    ("size", "grid"), [((16, 16), (2, 2)), ((17, 17), (3, 3)), ((30, 45), (4, 6))]
)
@pytest.mark.parametrize("cls", [ImageNetworks, FlatNetworks])
def test_pictures_of_any_size_and_channel_count_come_back_in_their_shape(size, grid, channels, cls):
    networks = cls(size, [4, 6], [8, 6], 5)
    model = IIAE(networks, dict(zip("xy", channels, strict=True)), exclusive_dim=3)
    x, y = (torch.rand(2, count, *size) * 2 - 1 for count in channels)
    posteriors, decoded = model(x, y)
    shape = (5,) if cls is FlatNetworks else (5, *grid)
    assert model.shared_shape == shape
    for posterior in (posteriors.joint_shared, *posteriors.shared.values()):
        assert posterior.mean.shape == posterior.logvar.shape == (2, *shape)
    for posterior in posteriors.exclusive.values():
        assert posterior.mean.shape == posterior.logvar.shape == (2, 3)
    for domain, pictures in (("x", x), ("y", y)):
        assert decoded.mean[domain].shape == pictures.shape
        assert decoded.mean[domain].abs().max() <= 1


def test_an_odd_picture_is_treated_as_its_edge_padded_self_and_cropped():
    odd, even = (
        IIAE(ImageNetworks(size, [4, 6], [8, 6], 5), {"x": 3, "y": 3}, exclusive_dim=3).eval()
        for size in ((30, 45), (32, 48))
    )
    even.load_state_dict(odd.state_dict())
    x = torch.rand(3, 3, 30, 45) * 2 - 1
    padded = F.pad(x, (0, 3, 0, 2), mode="replicate")
    same(odd.encode_shared("x", x), even.encode_shared("x", padded))
    same(odd.encode_exclusive("x", x), even.encode_exclusive("x", padded))
    latents = torch.randn(3, 5, 4, 6), torch.randn(3, 3)
    torch.testing.assert_close(odd.decode("y", *latents), even.decode("y", *latents)[..., :30, :45])


# ---- who reads what


@every_family
def test_infer_is_composed_of_the_named_networks_and_agrees_with_single_encoders(family):
    model, x, y = settled(family)
    posteriors = model.infer(x, y)
    features = {"x": model.features["x"](x), "y": model.features["y"](y)}
    joint = model.joint_shared(torch.cat([features["x"], features["y"]], dim=1))
    same(posteriors.joint_shared, DiagonalGaussian.from_heads(joint))
    for domain, inputs in (("x", x), ("y", y)):
        assert torch.equal(posteriors.inputs[domain], inputs)
        shared, exclusive = posteriors.shared[domain], posteriors.exclusive[domain]
        same(shared, DiagonalGaussian.from_heads(model.shared[domain](features[domain])))
        same(exclusive, DiagonalGaussian.from_heads(model.exclusive[domain](inputs)))
        same(shared, model.encode_shared(domain, inputs))
        same(exclusive, model.encode_exclusive(domain, inputs))


def test_latents_are_drawn_from_the_exclusive_and_the_joint_posteriors():
    def narrow(value, *shape):
        return DiagonalGaussian(torch.full(shape, value), torch.full(shape, -60.0))

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


@every_family
def test_generate_decodes_each_domain_from_its_exclusive_and_the_shared_latent(family):
    model, x, y = settled(family)
    latents = model.sample(model.infer(x, y))
    decoded = model.generate(latents)
    for domain in "xy":
        own = latents.exclusive[domain]
        expected = model.decoder[domain](latents.shared, own)
        torch.testing.assert_close(decoded.mean[domain], expected)
        torch.testing.assert_close(model.decode(domain, latents.shared, own), expected)
        torch.testing.assert_close(model.decode(domain, latents.shared.flatten(1), own), expected)
    assert not decoded.shared_only


# ---- ablations


@every_family
def test_without_exclusive_latents_there_are_no_such_networks(family):
    model = small_model(family, exclusive_dim=0)
    x, y = small_pairs(family)
    posteriors, decoded = model(x, y)
    assert not model.exclusive and not posteriors.exclusive
    assert (decoded.mean["x"].shape, decoded.mean["y"].shape) == (x.shape, y.shape)
    with pytest.raises(ValueError, match="without exclusive latents"):
        model.encode_exclusive("x", x)


@every_family
def test_shared_decoders_read_the_shared_latent_alone(family):
    model, x, y = settled(family, shared_decoders=True)
    latents = model.sample(model.infer(x, y))
    other = Latents({d: values + 1 for d, values in latents.exclusive.items()}, latents.shared)
    decoded, moved = model.generate(latents), model.generate(other)
    for domain, inputs in (("x", x), ("y", y)):
        assert decoded.shared_only[domain].shape == inputs.shape
        expected = model.shared_decoder[domain](latents.shared, None)
        torch.testing.assert_close(decoded.shared_only[domain], expected)
        torch.testing.assert_close(moved.shared_only[domain], expected)
        assert not torch.allclose(moved.mean[domain], decoded.mean[domain])
