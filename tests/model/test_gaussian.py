"""Diagonal Gaussians against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from iiae_cli.model.gaussian import MAX_LOGVAR, DiagonalGaussian, kl_between, kl_to_prior

SHAPES = [(5, 7), (3, 4, 2, 6)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(shape, seed):
    generator = seeded(seed)
    return DiagonalGaussian(
        torch.randn(shape, generator=generator, dtype=torch.float64),
        1.5 * torch.randn(shape, generator=generator, dtype=torch.float64),
    )


def reference(gauss):
    return Independent(Normal(gauss.mean, torch.exp(0.5 * gauss.logvar)), gauss.mean.ndim - 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_kl_between_sums_over_latent_dimensions_as_torch_does(shape):
    q, p = gaussian(shape, 1), gaussian(shape, 2)
    found = kl_between(q, p)
    assert found.shape == (shape[0],)
    torch.testing.assert_close(found, kl_divergence(reference(q), reference(p)))
    torch.testing.assert_close(kl_between(p, q), kl_divergence(reference(p), reference(q)))


@pytest.mark.parametrize("shape", SHAPES)
def test_kl_to_prior_is_the_kl_to_a_standard_normal(shape):
    q = gaussian(shape, 3)
    prior = DiagonalGaussian(torch.zeros_like(q.mean), torch.zeros_like(q.mean))
    found = kl_to_prior(q)
    assert found.shape == (shape[0],)
    torch.testing.assert_close(found, kl_divergence(reference(q), reference(prior)))
    torch.testing.assert_close(kl_to_prior(prior), torch.zeros(shape[0], dtype=torch.float64))


def test_kl_of_a_gaussian_to_itself_is_zero():
    q = gaussian((4, 9), 4)
    torch.testing.assert_close(kl_between(q, q), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_hold_the_mean_first_and_the_logvar_second(shape):
    generator = seeded(5)
    mean, logvar = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    made = DiagonalGaussian.from_heads(torch.cat([mean, logvar], dim=1))
    assert torch.equal(made.mean, mean)
    assert torch.equal(made.logvar, logvar)


def test_heads_in_half_precision_are_split_in_float32():
    made = DiagonalGaussian.from_heads(torch.ones(2, 4, dtype=torch.bfloat16))
    assert made.mean.dtype == made.logvar.dtype == torch.float32


def test_logvar_is_clamped_from_above_only():
    logvar = torch.tensor([[50.0, 9.3, 9.2, 0.0, -60.0]])
    made = DiagonalGaussian.from_heads(torch.cat([torch.zeros(1, 5), logvar], dim=1))
    torch.testing.assert_close(
        made.logvar, torch.tensor([[9.21035, 9.21035, 9.2, 0.0, -60.0]]), rtol=0, atol=0
    )
    assert MAX_LOGVAR == 9.21035


def test_sampling_sees_the_clamped_logvar():
    made = DiagonalGaussian.from_heads(
        torch.cat([torch.full((3, 4), 2.0), torch.full((3, 4), 80.0)], dim=1)
    )
    noise = torch.randn(3, 4, generator=seeded(6))
    torch.testing.assert_close(made.sample(seeded(6)), 2.0 + math.exp(9.21035 / 2) * noise)


def test_every_kl_sees_the_clamped_logvar():
    huge = DiagonalGaussian.from_heads(
        torch.cat([torch.ones(2, 3), torch.full((2, 3), 80.0)], dim=1)
    )
    clamped = Normal(torch.ones(2, 3), math.exp(9.21035 / 2))
    unit = Normal(torch.zeros(2, 3), 1.0)
    torch.testing.assert_close(kl_to_prior(huge), kl_divergence(clamped, unit).sum(1))
    plain = DiagonalGaussian.from_heads(torch.zeros(2, 6))
    torch.testing.assert_close(kl_between(huge, plain), kl_divergence(clamped, unit).sum(1))
    torch.testing.assert_close(kl_between(plain, huge), kl_divergence(unit, clamped).sum(1))


def test_a_clamped_logvar_passes_no_gradient_and_nothing_overflows():
    heads = torch.cat([torch.ones(2, 3), torch.full((2, 3), 1e4)], dim=1).requires_grad_()
    made = DiagonalGaussian.from_heads(heads)
    (kl_to_prior(made).sum() + made.sample(seeded(0)).sum()).backward()
    assert torch.isfinite(heads.grad).all()
    assert torch.equal(heads.grad[:, 3:], torch.zeros(2, 3))
    assert (heads.grad[:, :3] != 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_is_reparameterised(shape):
    q = gaussian(shape, 7)
    mean, logvar = q.mean.clone().requires_grad_(), q.logvar.clone().requires_grad_()
    sample = DiagonalGaussian(mean, logvar).sample(seeded(8))
    sample.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(logvar.grad, 0.5 * (sample - mean).detach())


def test_samples_have_the_mean_and_deviation_of_the_gaussian():
    mean, deviation = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0])
    gauss = DiagonalGaussian(mean.expand(20_000, 2), (2 * deviation.log()).expand(20_000, 2))
    sample = gauss.sample(seeded(9))
    torch.testing.assert_close(sample.mean(0), mean, rtol=0, atol=0.06)
    torch.testing.assert_close(sample.std(0), deviation, rtol=0.03, atol=0)
    assert abs(float(torch.corrcoef(sample.T)[0, 1])) < 0.03


def test_a_generator_makes_sampling_reproducible():
    q = gaussian((6, 5), 10)
    assert torch.equal(q.sample(seeded(1)), q.sample(seeded(1)))
    assert not torch.equal(q.sample(seeded(1)), q.sample(seeded(2)))
    torch.manual_seed(3)
    first = q.sample()
    torch.manual_seed(3)
    assert torch.equal(first, q.sample())
