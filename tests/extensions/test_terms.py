"""InfoNCE and distance correlation against their definitions; what the terms see and move."""

import itertools

import numpy as np
import pytest
import torch
from helpers import small_batch
from scipy.special import log_softmax
from sklearn.metrics.pairwise import cosine_similarity

from iiae_cli.extensions.extended import (
    contrastive_term,
    dependence,
    dependence_term,
    distance_correlation,
    info_nce,
)
from iiae_cli.model.iiae import DiagonalGaussian


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(means, logvar=0.0):
    return DiagonalGaussian(means, torch.full_like(means, logvar))


# ---- contrastive


def slow_info_nce(x, y, temperature):
    """Mean over both directions of −log softmax of the partner's cosine / τ, by query."""
    scores = cosine_similarity(x.flatten(1), y.flatten(1)) / temperature
    return -np.mean([np.diag(log_softmax(rows, axis=1)) for rows in (scores, scores.T)])


def test_info_nce_is_its_definition():
    x, y = normal(5, 3, 2, 2), normal(5, 3, 2, 2, seed=1)
    for temperature in (0.1, 0.5, 2.0):
        assert abs(float(info_nce(x, y, temperature)) - slow_info_nce(x, y, temperature)) < 1e-4


def test_the_term_compares_the_whole_batchs_shared_means():
    posteriors, decoded = small_batch()
    x, y = (posteriors.shared[domain].mean for domain in ("x", "y"))
    alone = contrastive_term(7.0, 0.3).values(posteriors, decoded)
    torch.testing.assert_close(alone, info_nce(x, y, 0.3))
    doubled = contrastive_term(7.0, 0.3, gather=lambda rows: rows.repeat(2, 1, 1, 1))
    expected = info_nce(torch.cat([x, x]), torch.cat([y, y]), 0.3)
    torch.testing.assert_close(doubled.values(posteriors, decoded), expected)


# ---- dependence


def slow_distance_correlation(a, b):
    """Entry by entry (Székely & Rizzo, 2014, definitions 2 and 3)."""

    def centred(values):
        n = len(values)
        distances = np.array([[np.linalg.norm(p - q) for q in values] for p in values])
        whole = np.zeros((n, n))
        for i, j in itertools.permutations(range(n), 2):
            row, column = distances[i].sum() / (n - 2), distances[:, j].sum() / (n - 2)
            everything = distances.sum() / ((n - 1) * (n - 2))
            whole[i, j] = distances[i, j] - row - column + everything
        return whole

    p, q = centred(a), centred(b)
    return float((p * q).sum() / np.sqrt((p * p).sum() * (q * q).sum()))


@pytest.mark.parametrize("rows", [4, 5, 11])
def test_distance_correlation_is_its_definition(rows):
    a, b = normal(rows, 3), normal(rows, 2, seed=1) ** 2
    expected = slow_distance_correlation(a.numpy(), b.numpy())
    assert float(distance_correlation(a, b)) == pytest.approx(expected, abs=1e-12)
    assert float(distance_correlation(a, a)) == pytest.approx(1.0)


def test_it_is_zero_on_average_for_independent_rows_and_sees_what_no_line_fits():
    independent = [
        float(distance_correlation(normal(16, 4, seed=s), normal(16, 3, seed=1000 + s)))
        for s in range(300)
    ]
    assert abs(np.mean(independent)) < 4 * np.std(independent) / np.sqrt(300)
    assert min(independent) < 0
    angle = torch.linspace(0, 6, 64, dtype=torch.float64)[:, None]
    circle = torch.cat([angle.cos(), angle.sin()], dim=1)
    assert float(distance_correlation(circle, (2 * angle).cos())) > 0.05  # though uncorrelated


def test_descending_it_takes_the_content_out_and_leaves_the_shared_latent_alone():
    content, manner = normal(64, 2), normal(64, 2, seed=1)
    mixing = torch.eye(4, 2, dtype=torch.float64).requires_grad_()
    shared = content.clone().requires_grad_()
    seen = torch.cat([content + manner, manner], dim=1)
    before = float(dependence(posterior(seen @ mixing), posterior(shared)).detach())
    for _ in range(200):
        penalty = dependence(posterior(seen @ mixing), posterior(shared))
        (gradient,) = torch.autograd.grad(penalty, mixing)
        with torch.no_grad():
            mixing -= 0.3 * gradient
    after = dependence(posterior(seen @ mixing), posterior(shared))
    after.backward()
    assert before > 0.2 and float(after.detach()) < 0.02 and shared.grad is None


@pytest.mark.parametrize(
    ("rows", "dimensions", "scale"),
    [(8, 3, 0.0), (8, 3, 1e-20), (2, 3, 1.0), (3, 3, 1.0), (4, 8, 1.0), (6, 8, 1.0)],
)
def test_collapsed_and_tiny_batches_have_finite_values_and_gradients(rows, dimensions, scale):
    means = (scale * normal(rows, dimensions).float()).requires_grad_()
    penalty = dependence(posterior(means), posterior(normal(rows, 5, seed=3).float()))
    penalty.backward()
    assert torch.isfinite(penalty) and torch.isfinite(means.grad).all()
    if rows < 4:
        assert float(penalty.detach()) == 0.0


def test_a_shared_dimension_counts_by_its_signal_over_its_noise():
    content, whisper = normal(48, 1), normal(48, 1, seed=1)
    means = torch.cat([content, 10 * whisper], dim=1)
    quiet = DiagonalGaussian(means, torch.tensor([0.0, 12.0]).double().expand_as(means))
    # Of the second dimension little outlives its noise.
    assert float(dependence(posterior(content), quiet)) > 0.9
    assert float(dependence(posterior(content), posterior(means))) < 0.1


def test_the_term_compares_with_the_partner():
    posteriors, decoded = small_batch(6)
    found = dependence_term(7.0).values(posteriors, decoded)
    for domain, other in (("x", "y"), ("y", "x")):
        expected = dependence(posteriors.exclusive[domain], posteriors.shared[other])
        torch.testing.assert_close(found[domain], expected)
