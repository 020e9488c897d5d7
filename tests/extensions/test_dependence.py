"""Distance correlation against its definition; what the penalty sees and moves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import small_batch
from torch import Tensor

from iiae_cli.common.errors import IiaeError
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.extensions.dependence import (
    dependence,
    dependence_term,
    distance_correlation,
    whitened,
)
from iiae_cli.model.gaussian import DiagonalGaussian


def slow_distance_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Entry by entry (Székely & Rizzo, 2014, definitions 2 and 3)."""

    def centred(values: np.ndarray) -> np.ndarray:
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


def posterior(means: Tensor, logvar: float = 0.0) -> DiagonalGaussian:
    return DiagonalGaussian(means, torch.full_like(means, logvar))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [4, 5, 11])
def test_distance_correlation_is_its_definition(rows: int) -> None:
    a, b = normal(rows, 3), normal(rows, 2, seed=1) ** 2
    assert float(distance_correlation(a, b)) == pytest.approx(
        slow_distance_correlation(a.numpy(), b.numpy()), abs=1e-12
    )
    assert float(distance_correlation(a, a)) == pytest.approx(1.0)


def test_it_is_zero_on_average_for_independent_rows_and_sees_what_no_line_fits() -> None:
    independent = [
        float(distance_correlation(normal(16, 4, seed=s), normal(16, 3, seed=1000 + s)))
        for s in range(300)
    ]
    assert abs(np.mean(independent)) < 4 * np.std(independent) / np.sqrt(300)
    assert min(independent) < 0
    angle = torch.linspace(0, 6, 64, dtype=torch.float64)[:, None]
    radius_and_angle = torch.cat([angle.cos(), angle.sin()], dim=1)
    squared = (2 * angle).cos()  # uncorrelated with both columns
    assert float(distance_correlation(radius_and_angle, squared)) > 0.05


def test_whitening_forgets_every_linear_map_of_the_exclusive_means() -> None:
    values = normal(40, 3)
    mixed = values @ torch.tensor(
        [[1.0, 5.0, 0.0], [0.0, 0.01, 2.0], [0.3, 0.0, 1.0]], dtype=torch.float64
    )
    white = whitened(mixed)
    torch.testing.assert_close(
        white.T @ white / 40, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.05
    )
    content = posterior(values[:, :1])
    assert float(dependence(posterior(values), content)) == pytest.approx(
        float(dependence(posterior(mixed), content)), abs=0.01
    )


def test_descending_it_takes_the_content_out_and_leaves_the_shared_latent_alone() -> None:
    content, manner = normal(64, 2), normal(64, 2, seed=1)
    mixing = torch.eye(4, 2, dtype=torch.float64).requires_grad_()
    shared = content.clone().requires_grad_()
    seen = torch.cat([content + manner, manner], dim=1)
    before = float(dependence(posterior(seen @ mixing), posterior(shared)).detach())
    for _ in range(200):
        told = dependence(posterior(seen @ mixing), posterior(shared))
        (gradient,) = torch.autograd.grad(told, mixing)
        with torch.no_grad():
            mixing -= 0.3 * gradient
    assert before > 0.2
    assert float(dependence(posterior(seen @ mixing), posterior(shared)).detach()) < 0.02
    dependence(posterior(seen @ mixing), posterior(shared)).backward()
    assert shared.grad is None


@pytest.mark.parametrize(
    ("rows", "dimensions", "scale"),
    [(8, 3, 0.0), (8, 3, 1e-20), (2, 3, 1.0), (3, 3, 1.0), (4, 8, 1.0), (6, 8, 1.0)],
)
def test_collapsed_and_tiny_batches_have_finite_values_and_gradients(
    rows: int, dimensions: int, scale: float
) -> None:
    means = (scale * normal(rows, dimensions).float()).requires_grad_()
    told = dependence(posterior(means), posterior(normal(len(means), 5, seed=3).float()))
    told.backward()
    assert torch.isfinite(told) and means.grad is not None and torch.isfinite(means.grad).all()
    if len(means) < 4:
        assert float(told.detach()) == 0.0


def test_a_shared_dimension_counts_by_its_signal_over_its_noise() -> None:
    content, whisper = normal(48, 1), normal(48, 1, seed=1)
    means = torch.cat([content, 10 * whisper], dim=1)
    quiet = DiagonalGaussian(means, torch.tensor([0.0, 12.0], dtype=torch.float64).expand_as(means))
    loud = DiagonalGaussian(means, torch.zeros_like(means))
    # Of the second dimension little outlives its noise.
    assert float(dependence(posterior(content), quiet)) > 0.9
    assert float(dependence(posterior(content), loud)) < 0.1


def test_the_term_compares_with_the_partner() -> None:
    posteriors, decoded = small_batch(6)
    found = dependence_term(7.0).values(posteriors, decoded)
    for domain, other in (("x", "y"), ("y", "x")):
        expected = dependence(posteriors.exclusive[domain], posteriors.shared[other])
        torch.testing.assert_close(found[domain], expected)


@pytest.mark.parametrize("kind", ["ii", "infonce"])
def test_objectives_without_exclusive_latents_refuse_it(kind: str) -> None:
    settings = set_layer(["objective.independence=1", f"objective.kind={kind}"])
    with pytest.raises(IiaeError, match="independence"):
        resolve([*preset_layers("digits-cdcb"), settings])
