"""Diagonal Gaussians against torch.distributions."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from iiae_cli.model.gaussian import DiagonalGaussian, kl_between, kl_to_prior

SHAPES = [(5, 7), (3, 4, 2, 6)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(shape, seed):
    generator = seeded(seed)
    mean, logvar = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return DiagonalGaussian(mean, 1.5 * logvar)


def reference(gauss):
    return Independent(Normal(gauss.mean, torch.exp(0.5 * gauss.logvar)), gauss.mean.ndim - 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_kls_sum_over_latent_dimensions_as_torch_does(shape):
    q, p = gaussian(shape, 1), gaussian(shape, 2)
    prior = DiagonalGaussian(torch.zeros_like(q.mean), torch.zeros_like(q.mean))
    assert kl_between(q, p).shape == kl_to_prior(q).shape == (shape[0],)
    torch.testing.assert_close(kl_between(q, p), kl_divergence(reference(q), reference(p)))
    torch.testing.assert_close(kl_to_prior(q), kl_divergence(reference(q), reference(prior)))
    torch.testing.assert_close(kl_between(q, q), torch.zeros(shape[0], dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_hold_the_mean_first_and_the_logvar_second(shape):
    mean, logvar = torch.randn(shape, generator=seeded(5)), torch.randn(shape, generator=seeded(6))
    made = DiagonalGaussian.from_heads(torch.cat([mean, logvar], dim=1))
    assert torch.equal(made.mean, mean) and torch.equal(made.logvar, logvar)


def test_heads_in_half_precision_are_split_in_float32():
    made = DiagonalGaussian.from_heads(torch.ones(2, 4, dtype=torch.bfloat16))
    assert made.mean.dtype == made.logvar.dtype == torch.float32


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


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_is_reparameterised(shape):
    q = gaussian(shape, 7)
    mean, logvar = q.mean.clone().requires_grad_(), q.logvar.clone().requires_grad_()
    sample = DiagonalGaussian(mean, logvar).sample(seeded(8))
    sample.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(logvar.grad, 0.5 * (sample - mean).detach())
