"""The loss against a slow oracle written from the formula, term by term and number by number."""

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from helpers import small_model, small_pairs
from torch.distributions import Normal, kl_divergence

from iiae_cli.model.iiae import DiagonalGaussian, Posteriors, Reconstructions
from iiae_cli.model.objective import bound, kl_annealing

KINDS = ("elbo+ii-mi", "elbo+ii", "ii-mi", "ii")
SHAPES = {"pictures": (3, 2, 4, 5), "features": (3, 7)}  # of x; y differs in its second dimension


def objective(kind="elbo+ii-mi", lam=5.0, loss="l1", weight=1000.0, tau=25000.0):
    options = {"reconstruction": loss, "reconstruction_weight": weight, "annealing_steps": tau}
    return bound(kind, lam, **options)


@cache
def case(data, kind):
    """Posteriors and reconstructions with unrelated random values everywhere."""
    draw = torch.Generator().manual_seed(7)
    batch, width, *size = SHAPES[data]
    shapes = {"x": (batch, width, *size), "y": (batch, width + 1, *size)}
    shared = (3, 2, 2, 2) if data == "pictures" else (3, 4)

    def values():
        return {d: torch.randn(shape, generator=draw) for d, shape in shapes.items()}

    def gaussian(*shape):
        return DiagonalGaussian(*(torch.randn(shape, generator=draw) for _ in range(2)))

    posteriors = Posteriors(
        inputs=values(),
        exclusive={} if kind == "ii" else {d: gaussian(3, 2) for d in "xy"},
        joint_shared=gaussian(*shared),
        shared={d: gaussian(*shared) for d in "xy"},
    )
    return posteriors, Reconstructions(values(), values() if kind == "elbo+ii" else {})


def slow_kl(q, p=None):
    """Batch mean of KL(q ‖ p) summed over latent dimensions, one dimension at a time."""
    sums = 0.0
    p = p or DiagonalGaussian(torch.zeros_like(q.mean), torch.zeros_like(q.mean))
    columns = (q.mean, q.logvar, p.mean, p.logvar)
    for numbers in zip(*(values.flatten().tolist() for values in columns), strict=True):
        own = Normal(numbers[0], math.exp(numbers[1] / 2))
        sums += float(kl_divergence(own, Normal(numbers[2], math.exp(numbers[3] / 2))))
    return sums / len(q.mean)


def slow_error(decoded, target, loss):
    """Mean over pixels, channels and batch of |x̂ − x| or (x̂ − x)²."""
    pairs = list(zip(decoded.flatten().tolist(), target.flatten().tolist(), strict=True))
    return sum(abs(a - b) if loss == "l1" else (a - b) ** 2 for a, b in pairs) / len(pairs)


@cache
def slow_terms(data, kind, loss):
    """What the objective should log, with w = 1."""
    q, decoded = case(data, kind)
    terms = {"kl_shared_prior": slow_kl(q.joint_shared)}
    for d in "xy":
        terms[f"kl_shared_{d}"] = slow_kl(q.joint_shared, q.shared[d])
        terms[f"reconstruction_{d}"] = slow_error(decoded.mean[d], q.inputs[d], loss)
        if kind != "ii":
            terms[f"kl_exclusive_{d}"] = slow_kl(q.exclusive[d])
        if kind == "elbo+ii":
            error = slow_error(decoded.shared_only[d], q.inputs[d], loss)
            terms[f"shared_only_reconstruction_{d}"] = error
    return terms


def slow_loss(terms, kind, lam, weight, annealing):
    """Minus the bound of SPEC.md, divided by λ where λ appears in it (released scale)."""

    def both(name):
        return terms.get(f"{name}_x", 0.0) + terms.get(f"{name}_y", 0.0)

    log_p, single = -weight * both("reconstruction"), both("kl_shared")
    exclusive, prior = annealing * both("kl_exclusive"), annealing * terms["kl_shared_prior"]
    if kind == "elbo+ii-mi":
        return -((1 + lam) * (log_p - exclusive) - prior - lam * single) / lam
    if kind == "elbo+ii":
        log_p_shared = -weight * both("shared_only_reconstruction")
        return -((log_p - exclusive - prior) + lam * (log_p_shared - single)) / lam
    return -(log_p - exclusive - single)  # II-MI, and II, which has no exclusive latents


@pytest.mark.parametrize("data", list(SHAPES))
@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_formulas_and_terms_are_weighted_by_neither_lambda_nor_annealing(
    kind, loss, data
):
    terms = slow_terms(data, kind, loss)
    for lam, step, (weight, tau) in itertools.product(
        (1, 5, 1000), (0, 700, 10**6), ((1000.0, 25000.0), (1.5, 100.0))
    ):
        found = objective(kind, lam, loss, weight, tau)(*case(data, kind), step)
        annealing = 1 - math.exp(-step / tau)
        expected = {
            name: value * (weight if "reconstruction" in name else 1.0)
            for name, value in terms.items()
        }
        expected["loss"] = slow_loss(terms, kind, lam, weight, annealing)
        assert all(value.ndim == 0 for value in found.values())
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            expected, rel=2e-5
        )


def test_annealing_rises_from_zero_to_one():
    assert kl_annealing(0, 25000) == 0.0
    assert kl_annealing(25000, 25000) == pytest.approx(1 - 1 / math.e)
    assert kl_annealing(10**9, 100) == pytest.approx(1.0)
    assert kl_annealing(0, 0) == kl_annealing(7, 0) == 1.0


def test_a_term_without_weight_is_logged_and_has_no_gradient():
    q, decoded = case("features", "ii-mi")
    joint = replace(q.joint_shared, logvar=torch.full((3, 4), torch.inf))
    terms = objective("ii-mi")(replace(q, joint_shared=joint, shared={}), decoded, 10)
    assert not torch.isfinite(terms["kl_shared_prior"]) and torch.isfinite(terms["loss"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["maps", "flat", "features"])
def test_every_weight_learns_under_every_objective(family, kind):
    model = small_model(
        family, exclusive_dim=0 if kind == "ii" else 8, shared_decoders=kind == "elbo+ii"
    )
    objective(kind)(*model(*small_pairs(family)), 1000)["loss"].backward()
    for label, parameter in model.named_parameters():
        if not label.endswith("bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, label
