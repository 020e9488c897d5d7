"""Erasure against theory: what it must remove and leave, and how little it may change."""

import math

import pytest
import torch

from iiae_cli.extensions.erasure import (
    LinearErasure,
    SharedPart,
    channel_basis,
    fit_maps,
    leace,
    shared_regression,
    without,
)
from iiae_cli.model.gaussian import DiagonalGaussian

N = 2000


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def r2(values, target):
    """In-sample R² of least squares with an intercept, per column of the target."""
    design = torch.cat([values.double(), torch.ones(len(values), 1, dtype=torch.float64)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, target, rcond=1e-6, driver="gelsd").solution
    return 1 - (target - fitted).square().sum(dim=0) / (target - target.mean(dim=0)).square().sum(
        dim=0
    )


def leaky(seed=0, width=6, concepts=2):
    """Correlated values (N, 6) that linearly tell a concept (N, 2)."""
    concept = noise(N, concepts, seed=seed)
    return noise(N, width, seed=seed + 1) @ noise(width, width, seed=seed + 2) + concept @ noise(
        concepts, width, seed=seed + 3
    ), concept


def erased(values, concept):
    removed, read = leace(values, concept)
    return values - (values - values.mean(dim=0)) @ read @ removed.T


# ---- LEACE


def test_after_leace_no_linear_map_reads_the_concept():
    values, concept = leaky()
    assert (r2(values, concept) > 0.2).all()
    clean = erased(values, concept)
    assert (r2(clean, concept) < 1e-6).all()
    torch.testing.assert_close(clean.mean(dim=0), values.mean(dim=0))


@pytest.mark.parametrize("metric", range(3))
def test_leace_changes_as_little_as_any_affine_map_may_in_every_norm(metric):
    """Oracle: constrained least squares, solved as one linear system with multipliers."""
    values, concept = leaky(seed=10)
    centred, told = values - values.mean(dim=0), concept - concept.mean(dim=0)
    covariance, cross = centred.T @ centred / N, centred.T @ told / N
    root = noise(6, 6, seed=metric)
    gram = root @ root.T
    # min over P of E‖(P − I) v‖²_gram subject to P cross = 0, in vec(P) (columns stacked).
    quadratic = torch.kron(covariance, gram)
    constraint = torch.kron(cross.T.contiguous(), torch.eye(6, dtype=torch.float64))
    zeros = torch.zeros(len(constraint), len(constraint), dtype=torch.float64)
    upper = torch.cat([quadratic, constraint.T], dim=1)
    system = torch.cat([upper, torch.cat([constraint, zeros], dim=1)])
    right_side = torch.cat([(gram @ covariance).T.flatten(), zeros[0]])
    best = torch.linalg.solve(system, right_side)[:36].reshape(6, 6).T
    removed, read = leace(values, concept)
    torch.testing.assert_close(
        torch.eye(6, dtype=torch.float64) - removed @ read.T, best, rtol=1e-6, atol=1e-8
    )


def test_leace_survives_singular_covariances_on_both_sides():
    values, concept = leaky(seed=20)
    flat = torch.cat([values, values[:, :2], torch.full((N, 1), 3.0, dtype=torch.float64)], dim=1)
    doubled = torch.cat([concept, concept, torch.zeros(N, 1, dtype=torch.float64)], dim=1)
    clean = erased(flat, doubled)
    assert torch.isfinite(clean).all() and (r2(clean, concept) < 1e-6).all()
    torch.testing.assert_close(clean[:, :6], erased(values, concept))


def test_leace_with_a_partner_erases_what_only_one_domain_says():
    """The concept tells two directions; one of them both domains say, so it is shared and stays."""
    shared, factor = noise(N, 2, seed=1), noise(N, 2, seed=2)
    values = torch.cat([shared, 0.3 * factor[:, :1] + 0.1 * noise(N, 1, seed=3)], dim=1)
    partner = torch.cat([shared, noise(N, 1, seed=4)], dim=1) + 0.05 * noise(N, 3, seed=5)
    concept = torch.cat([factor, shared[:, :1] + noise(N, 1, seed=6)], dim=1)
    removed, read = leace(values, concept, partner=partner, least_correlation=0.2)
    assert removed.shape == (3, 1)
    clean = values - (values - values.mean(dim=0)) @ read @ removed.T
    assert r2(clean, factor[:, :1]) < 0.02 < 0.8 < r2(values, factor[:, :1])
    assert (r2(clean, shared) > 0.95).all()
    assert leace(values, concept)[0].shape == (3, 3)  # nothing would be left of them


# ---- the channel


def channel_case(strength=(30.0, 5.0, 0.01), width=5, rows=N):
    """Means of known SNR along random directions; (means, noise, scores)."""
    scale = torch.tensor([0.2, 0.5, 1.0, 0.7, 0.4], dtype=torch.float64)
    axes = torch.linalg.qr(noise(width, width, seed=1)).Q[:, : len(strength)]
    scores = noise(rows, len(strength), seed=2) - 0.0
    scores = torch.linalg.qr(scores - scores.mean(dim=0)).Q * math.sqrt(rows)
    means = 2.0 + scores * torch.tensor(strength, dtype=torch.float64).sqrt() @ axes.T * scale
    return means, scale**2, scores


def test_the_channel_keeps_the_directions_that_exceed_the_noise():
    means, variance, scores = channel_case()
    basis = channel_basis(means, variance, 0.1)
    torch.testing.assert_close(basis.snr, torch.tensor([30.0, 5.0], dtype=torch.float64))
    erase = LinearErasure(5)
    erase.set(basis.centre, basis.left, basis.right)
    kept = erase(means.float())
    assert (r2(kept, scores[:, :2]) > 0.999).all() and r2(kept, scores[:, 2:]) < 1e-3
    torch.testing.assert_close(erase(kept), kept)
    torch.testing.assert_close(
        channel_basis(means, variance, 0.001).snr.float(), torch.tensor([30.0, 5.0, 0.01])
    )


def test_a_latent_wider_than_the_rows_gives_the_same_projection():
    """The Gram matrix's way against the covariance's, on the same directions."""
    means, variance, _ = channel_case(rows=4, strength=(30.0, 5.0))
    doubled = channel_basis(means.repeat(2, 1), variance, 0.1)  # 8 rows: by the covariance
    basis = channel_basis(means, variance, 0.1)  # 4 rows: by the Gram matrix
    torch.testing.assert_close(basis.snr, doubled.snr)
    torch.testing.assert_close(basis.left @ basis.right.T, doubled.left @ doubled.right.T)


def test_channel_and_leace_together_drop_and_erase():
    means, variance, scores = channel_case(strength=(30.0, 8.0, 0.01))
    concept = scores[:, 1:2] + noise(N, 1, seed=5)
    for least_snr, kept in ((0.1, 0.0), (0.0, 1.0)):  # with the channel, and LEACE alone
        basis = without(channel_basis(means, variance, least_snr), means, concept)
        erase = LinearErasure(5)
        erase.set(basis.centre, basis.left, basis.right)
        clean = erase(means.float())
        assert r2(clean, concept) < 1e-6 < 0.3 < r2(means, concept)
        assert r2(clean, scores[:, :1]) > 0.98
        torch.testing.assert_close(r2(clean, scores[:, 2:]).item(), kept, rtol=0, atol=0.02)
        torch.testing.assert_close(erase(clean), clean, rtol=1e-4, atol=1e-4)


# ---- the residual


def instrument_case():
    """Shared means, x's with a trace of its own factor; x's exclusive mean with shape in it."""
    shared, factor = noise(N, 4, seed=1), noise(N, 3, seed=2)
    x = shared + 0.1 * noise(N, 4, seed=3)
    x[:, 3] = 0.02 * shared[:, 3] + 0.3 * factor[:, 0]
    y = shared + 0.1 * noise(N, 4, seed=4)
    y[:, 3] = 0.02 * shared[:, 3]
    exclusive = factor @ noise(3, 3, seed=5) + shared[:, :3] @ noise(3, 3, seed=6)
    return x, y, shared, factor, exclusive


def test_the_residual_loses_what_is_shared_and_keeps_what_leaks():
    x, y, shared, factor, exclusive = instrument_case()
    basis = channel_basis(x, torch.full((4,), 0.01), 0.1)
    remains = {}
    for name, instrument in (("partner", y), ("own", x)):
        weight = shared_regression(exclusive, basis, x, instrument, 0.01)
        remains[name] = exclusive - (x - x.mean(dim=0)) @ weight.T
    assert (r2(exclusive, shared[:, :3]) > 0.3).all()
    assert (r2(remains["partner"], shared[:, :3]) < 0.03).all()
    kept = {name: float(r2(values, factor[:, :1])) for name, values in remains.items()}
    # The own mean mistakes the leaked factor for a shared one.
    assert kept["partner"] > 0.9 > 0.5 > kept["own"]


def test_with_its_own_mean_as_instrument_and_ridge_one_it_regresses_on_samples():
    means, variance, _ = channel_case()
    target = means @ noise(5, 2, seed=7) + noise(N, 2, seed=8)
    weight = shared_regression(target, channel_basis(means, variance, 0.0), means, means, 1.0)
    repeats = 200
    samples = means.repeat(repeats, 1) + variance.sqrt() * noise(N * repeats, 5, seed=9)
    samples = torch.cat([samples, torch.ones(len(samples), 1, dtype=torch.float64)], dim=1)
    fitted = torch.linalg.lstsq(samples, target.repeat(repeats, 1)).solution[:5].T
    # Equal where means vary; the other directions are noise, of which the regression learns
    # nothing.
    basis = channel_basis(means, variance, 0.0)
    torch.testing.assert_close(weight @ basis.left, fitted @ basis.left, rtol=0.02, atol=0.02)


# ---- the modules


@pytest.mark.parametrize("residual", [True, False])
def test_fitted_maps_erase_the_leak_and_keep_what_is_shared(residual):
    x, y, shared, factor, exclusive = instrument_case()
    posterior = DiagonalGaussian(x, torch.full_like(x, math.log(0.01)))
    erase, part = LinearErasure(4), SharedPart(4, 3) if residual else None
    settings = {"least_snr": 0.1, "least_correlation": 0.2, "ridge": 0.01}
    fit_maps(erase, part, posterior, exclusive, y, **settings)
    clean = erase(x.float())
    assert r2(clean, factor[:, :1]) < 0.05 < 0.5 < r2(x, factor[:, :1])
    assert (r2(clean, shared[:, :3]) > 0.9).all()
    if part is not None:
        assert (r2(exclusive - part(x.float()), shared[:, :3]) < 0.05).all()


def test_the_rank_travels_with_the_weights():
    erase, other = LinearErasure(4), LinearErasure(4)
    erase.set(noise(4), noise(4, 3, seed=1), noise(4, 3, seed=2))
    other.load_state_dict(erase.state_dict())
    means = noise(5, 4).float()
    assert torch.equal(other(means), erase(means)) and not torch.equal(erase(means), means)
    erase.make_room(0)
    assert torch.equal(erase(means), means)


def test_an_erasure_of_another_width_is_refused():
    wrong = {"centre": torch.zeros(4), "left": torch.zeros(5, 2), "right": torch.zeros(5, 2)}
    with pytest.raises(RuntimeError, match="left"):
        LinearErasure(4).load_state_dict(wrong)
