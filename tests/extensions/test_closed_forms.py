"""Closed forms against scikit-learn and theory, on data whose shared part or classes are known."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from iiae_cli.extensions import closed_forms
from iiae_cli.extensions.closed_forms import (
    canonical_maps,
    channel_basis,
    common_map,
    fit_erasure,
    leace,
    thin_svd,
    two_covariance_map,
)
from iiae_cli.extensions.extended import LinearErasure
from iiae_cli.model.iiae import DiagonalGaussian

N = 2000

# ---- canonical maps


def pairs(count=600):
    """x (N, 12) and y (N, 9), which mix a shared part of three dimensions and add noise."""
    rng = np.random.default_rng(0)
    shared, seen = rng.standard_normal((count, 3)), []
    for width in (12, 9):
        mixing, noise = rng.standard_normal((3, width)), rng.standard_normal((width, width))
        own = 0.5 * rng.standard_normal((count, width)) @ noise
        seen.append(shared @ mixing + own + rng.standard_normal(width))
    return seen


def codes(x, y, dim, shrinkage):
    maps = canonical_maps(x, y, dim, shrinkage)
    return [rows @ weight.T + bias for rows, (weight, bias) in zip((x, y), maps, strict=True)]


def test_canonical_maps_find_scikit_learns_directions():
    from sklearn.cross_decomposition import CCA

    x, y = pairs()
    theirs = CCA(3, max_iter=5000, tol=1e-10).fit_transform(x, y)
    for mine, other in zip(codes(x, y, 3, 1e-9), theirs, strict=True):
        correlation = np.abs(np.corrcoef(mine.T, other.T)[:3, 3:])
        np.testing.assert_allclose(np.diag(correlation), 1.0, atol=1e-4)


def test_outputs_are_centred_of_unit_variance_and_partners_agree():
    code_x, code_y = codes(*pairs(), 4, 0.1)
    assert code_x.shape == code_y.shape == (600, 4)
    np.testing.assert_allclose([code_x.mean(axis=0), code_y.mean(axis=0)], 0.0, atol=1e-9)
    assert abs(np.mean(code_x**2) - 1.0) < 1e-9
    between = np.square(code_x[:, None] - code_y[None]).sum(axis=-1)
    assert np.mean(between.argmin(axis=1) == np.arange(600)) > 0.1  # chance 1/600
    spread = code_x.var(axis=0)
    assert all(spread[:-1] >= spread[1:])  # the surer, the longer


def test_a_common_map_is_the_canonical_one_of_pairs_taken_both_ways():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((600, 3)) @ rng.standard_normal((3, 9))
    x, y = (shared + gap + rng.standard_normal((600, 9)) for gap in (0.0, 2.0))
    (weight, bias_x), (same, bias_y) = common_map(x, y, 4, 0.1)
    assert np.array_equal(weight, same)
    np.testing.assert_allclose(x.mean(axis=0) @ weight.T + bias_x, 0.0, atol=1e-9)
    np.testing.assert_allclose(y.mean(axis=0) @ weight.T + bias_y, 0.0, atol=1e-9)
    assert abs(np.mean((x @ weight.T + bias_x) ** 2) - 1.0) < 1e-9
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    (both, _), _ = canonical_maps(np.concatenate([x, y]), np.concatenate([y, x]), 4, 0.1)
    lengths = np.linalg.norm(weight[:3], axis=1) * np.linalg.norm(both[:3], axis=1)
    np.testing.assert_allclose(np.abs((weight[:3] * both[:3]).sum(axis=1)) / lengths, 1.0)
    ratios = np.linalg.norm(weight[:3], axis=1) / np.linalg.norm(both[:3], axis=1)
    np.testing.assert_allclose(ratios, ratios[0])


def test_directions_in_which_partners_are_opposed_are_left_out_of_a_common_map():
    x = np.random.default_rng(0).standard_normal((200, 2))
    (weight, _), _ = common_map(x, x * [1.0, -1.0], 2, 1e-6)
    assert np.abs(weight[0, 0]) > 0.9 and np.abs(weight[:, 1]).max() < 0.1 and not weight[1].any()


def test_more_dimensions_than_features_are_left_empty():
    maps = canonical_maps(*pairs(50), 20, 1.0)
    assert [weight.shape for weight, _ in maps] == [(20, 12), (20, 9)]
    assert all(np.isfinite(weight).all() and np.isfinite(bias).all() for weight, bias in maps)
    assert not maps[0][0][9:].any() and maps[0][0][:2].any()
    (weight, _), _ = common_map(*two_classes(count=50)[:2], 5, 1.0)
    assert weight.shape == (5, 3) and not weight[3:].any() and weight[0].any()
    weight = two_covariance_map(*two_classes(count=50), 5, 1.0)
    assert weight.shape == (5, 3) and not weight[3:].any() and weight[:3].any(axis=1).all()


def test_where_lapacks_fast_driver_fails_the_slow_one_finds_the_same(monkeypatch):
    def failing(matrix, lapack_driver="gesdd", **options):
        if lapack_driver == "gesdd":
            raise np.linalg.LinAlgError("SVD did not converge")
        return scipy.linalg.svd(matrix, lapack_driver=lapack_driver, **options)

    monkeypatch.setattr(closed_forms, "svd", failing)
    matrix = noise(6, 4)
    left, sizes, right = thin_svd(matrix)
    torch.testing.assert_close((left * sizes) @ right, matrix)


# ---- two-covariance map


def two_classes(count=4000, gap=0.0):
    """Classes differ along dimension 0; 1 varies widely within them; the domains lie apart on 2."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    x, y = rng.normal(0.0, [0.5, 4.0, 0.5], (2, count, 3))
    for rows, offset in ((x, gap), (y, -gap)):
        rows[:, 0] += 2.0 * labels - 1.0
        rows[:, 2] += offset
    names = [str(label) for label in labels]
    return x, y, [names, names]


def test_the_map_makes_variation_within_classes_isotropic():
    x, y, labels = two_classes()
    weight = two_covariance_map(x, y, labels, 3, 1e-9)
    mapped = np.concatenate([x, y]) @ weight.T
    first = np.concatenate(labels) == "1"
    groups = [mapped[first], mapped[~first]]
    within = np.cov(np.concatenate([group - group.mean(0) for group in groups]).T)
    np.testing.assert_allclose(within, np.eye(3) * within[0, 0], atol=0.02 * within[0, 0])
    assert np.mean(mapped**2) == pytest.approx(1.0, rel=0.01)
    assert abs(weight[0, 0]) > 20 * abs(weight[0, 1])  # the widest direction tells classes apart


def test_the_gap_between_domains_counts_as_variation_within_a_class():
    narrow, wide = (two_covariance_map(*two_classes(gap=gap), 3, 1e-9) for gap in (0.0, 5.0))
    assert np.linalg.norm(wide[:, 2]) < 0.3 * np.linalg.norm(narrow[:, 2])


# ---- LEACE


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def r2(values, target):
    """In-sample R² of least squares with an intercept, per column of the target."""
    design = torch.cat([values.double(), torch.ones(len(values), 1, dtype=torch.float64)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, target, rcond=1e-6, driver="gelsd").solution
    total = (target - target.mean(dim=0)).square().sum(dim=0)
    return 1 - (target - fitted).square().sum(dim=0) / total


def leaky(seed=0):
    """Correlated values (N, 6) that linearly tell a concept (N, 2); the concept."""
    concept, own = noise(N, 2, seed=seed), noise(N, 6, seed=seed + 1)
    return own @ noise(6, 6, seed=seed + 2) + concept @ noise(2, 6, seed=seed + 3), concept


def erased(values, concept):
    removed, read = leace(values, concept, torch.zeros_like(values))
    return values - (values - values.mean(dim=0)) @ read @ removed.T


@pytest.mark.parametrize("metric", range(3))
def test_leace_changes_as_little_as_any_affine_map_may_in_every_norm(metric):
    """Oracle: constrained least squares, solved as one linear system with multipliers."""
    values, concept = leaky(seed=10)
    centred, told = values - values.mean(dim=0), concept - concept.mean(dim=0)
    covariance, cross = centred.T @ centred / N, centred.T @ told / N
    root, unit = noise(6, 6, seed=metric), torch.eye(6, dtype=torch.float64)
    gram = root @ root.T
    # min over P of E‖(P − I) v‖²_gram subject to P cross = 0, in vec(P) (columns stacked).
    constraint = torch.kron(cross.T.contiguous(), unit)
    zeros = torch.zeros(len(constraint), len(constraint), dtype=torch.float64)
    upper = torch.cat([torch.kron(covariance, gram), constraint.T], dim=1)
    system = torch.cat([upper, torch.cat([constraint, zeros], dim=1)])
    right_side = torch.cat([(gram @ covariance).T.flatten(), zeros[0]])
    best = torch.linalg.solve(system, right_side)[:36].reshape(6, 6).T
    removed, read = leace(values, concept, torch.zeros_like(values))
    torch.testing.assert_close(unit - removed @ read.T, best, rtol=1e-6, atol=1e-8)


def test_leace_survives_singular_covariances_on_both_sides():
    values, concept = leaky(seed=20)
    flat = torch.cat([values, values[:, :2], torch.full((N, 1), 3.0, dtype=torch.float64)], dim=1)
    doubled = torch.cat([concept, concept, torch.zeros(N, 1, dtype=torch.float64)], dim=1)
    clean = erased(flat, doubled)
    assert torch.isfinite(clean).all() and (r2(clean, concept) < 1e-6).all()
    torch.testing.assert_close(clean[:, :6], erased(values, concept))


# ---- the channel


def test_the_channel_keeps_the_directions_that_exceed_the_noise():
    scale = torch.tensor([0.2, 0.5, 1.0, 0.7, 0.4], dtype=torch.float64)
    strength = torch.tensor([30.0, 5.0, 0.01], dtype=torch.float64)
    axes, scores = torch.linalg.qr(noise(5, 5, seed=1)).Q[:, :3], noise(N, 3, seed=2)
    scores = torch.linalg.qr(scores - scores.mean(dim=0)).Q * math.sqrt(N)
    means, variance = 2.0 + scores * strength.sqrt() @ axes.T * scale, scale**2
    for least_snr, expected in ((0.1, [30.0, 5.0]), (0.001, [30.0, 5.0, 0.01])):
        centre, _, right = channel_basis(means, variance, least_snr)
        snr = ((means - centre) @ right).var(dim=0, correction=0)
        torch.testing.assert_close(snr.float(), torch.tensor(expected))
    erase = LinearErasure(5)
    erase.set(*channel_basis(means, variance, 0.1))
    kept = erase(means.float())
    assert (r2(kept, scores[:, :2]) > 0.999).all() and r2(kept, scores[:, 2:]) < 1e-3
    torch.testing.assert_close(erase(kept), kept)


def test_more_dimensions_than_rows_leave_no_more_directions_than_rows():
    width = 30_000  # whose covariance would take 7 GB
    means, variance = noise(4, width), torch.full((width,), 1e-6, dtype=torch.float64)
    centre, left, right = channel_basis(means, variance, 0.1)
    assert right.shape == (width, 3)
    torch.testing.assert_close(centre + ((means - centre) @ right) @ left.T, means)


# ---- both, fitted


def test_fitted_erasure_removes_the_leak_and_keeps_what_is_shared():
    """Shared means, x's with a trace of its own factor; x's exclusive mean with shape in it."""
    shared, factor = noise(N, 4, seed=1), noise(N, 3, seed=2)
    x, y = (shared + 0.1 * noise(N, 4, seed=seed) for seed in (3, 4))
    x[:, 3] = 0.02 * shared[:, 3] + 0.3 * factor[:, 0]
    y[:, 3] = 0.02 * shared[:, 3]
    exclusive = factor @ noise(3, 3, seed=5) + shared[:, :3] @ noise(3, 3, seed=6)
    posterior, erase = DiagonalGaussian(x, torch.full_like(x, math.log(0.01))), LinearErasure(4)
    fit_erasure(erase, posterior, exclusive, y, least_snr=0.1, least_correlation=0.2)
    clean = erase(x.float())
    assert r2(clean, factor[:, :1]) < 0.05 < 0.5 < r2(x, factor[:, :1])
    assert (r2(clean, shared[:, :3]) > 0.9).all()


def test_where_all_is_noise_nothing_is_erased():
    means, erase = 0.01 * noise(N, 4), LinearErasure(4)
    posterior = DiagonalGaussian(means, torch.zeros_like(means))
    fit_erasure(erase, posterior, noise(N, 2), means, least_snr=0.1, least_correlation=0.2)
    assert torch.equal(erase(means.float()), means.float())
