"""The loss against a slow oracle written from the formula, term by term and number by number."""

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from iiae_cli.model.gaussian import DiagonalGaussian
from iiae_cli.model.iiae import Posteriors, Reconstructions, feature_iiae, image_iiae
from iiae_cli.model.objective import (
    Objective,
    has_exclusive_latents,
    has_shared_decoders,
    kl_annealing,
)

KINDS = ("elbo+ii-mi", "elbo+ii", "ii-mi", "ii")
LAMBDAS = (1, 2, 5, 50, 1000)
SHAPES = {"pictures": (3, 2, 4, 5), "features": (3, 7)}  # of x; y differs in its second dimension

# λ, w, loss, τ of the paper's five data sets.
PAPER = {
    "mnist-cdcb": (5, 1000, "l1", 25000),
    "cars": (50, 1000, "l1", 100),
    "facades": (1000, 1000, "l1", 25000),
    "maps": (50, 20000, "l1", 25000),
    "sketchy": (2, 10, "l2", 2000),
}


def random_gaussian(shape, generator):
    return DiagonalGaussian(
        torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    )


@cache
def case(data, kind):
    """(posteriors, reconstructions) with unrelated random values everywhere."""
    generator = torch.Generator().manual_seed(7)
    shape_x = SHAPES[data]
    shape_y = (shape_x[0], shape_x[1] + 1, *shape_x[2:])
    shared = (3, 2, 2, 2) if data == "pictures" else (3, 4)
    x, y, decoded_x, decoded_y, alone_x, alone_y = (
        torch.randn(shape, generator=generator) for shape in (shape_x, shape_y) * 3
    )
    exclusive = [random_gaussian((3, 2), generator) for _ in range(2)]
    posteriors = Posteriors(
        inputs={"x": x, "y": y},
        exclusive={} if kind == "ii" else dict(zip("xy", exclusive, strict=True)),
        joint_shared=random_gaussian(shared, generator),
        shared={domain: random_gaussian(shared, generator) for domain in "xy"},
    )
    own = {"x": alone_x, "y": alone_y} if kind == "elbo+ii" else {}
    return posteriors, Reconstructions({"x": decoded_x, "y": decoded_y}, own)


def slow_kl(q, p=None):
    """Batch mean of KL(q ‖ p) summed over latent dimensions, one dimension of one sample at a time."""
    total = 0.0
    for row in range(len(q.mean)):
        for mean, logvar, *other in zip(
            q.mean[row].flatten().tolist(),
            q.logvar[row].flatten().tolist(),
            *([p.mean[row].flatten().tolist(), p.logvar[row].flatten().tolist()] if p else []),
            strict=True,
        ):
            target = Normal(other[0], math.exp(other[1] / 2)) if other else Normal(0.0, 1.0)
            total += float(kl_divergence(Normal(mean, math.exp(logvar / 2)), target))
    return total / len(q.mean)


def slow_error(decoded, target, loss):
    """Mean over pixels, channels and batch of |x̂ − x| or (x̂ − x)²."""
    pairs = list(zip(decoded.flatten().tolist(), target.flatten().tolist(), strict=True))
    return sum(abs(a - b) if loss == "l1" else (a - b) ** 2 for a, b in pairs) / len(pairs)


@cache
def slow_terms(data, kind):
    q, decoded = case(data, kind)
    x, y = q.inputs.values()
    terms = {
        "kl_shared_x": slow_kl(q.joint_shared, q.shared["x"]),
        "kl_shared_y": slow_kl(q.joint_shared, q.shared["y"]),
        "kl_shared_prior": slow_kl(q.joint_shared),
    }
    if q.exclusive:
        terms["kl_exclusive_x"] = slow_kl(q.exclusive["x"])
        terms["kl_exclusive_y"] = slow_kl(q.exclusive["y"])
    for loss in ("l1", "l2"):
        terms[f"x {loss}"] = slow_error(decoded.mean["x"], x, loss)
        terms[f"y {loss}"] = slow_error(decoded.mean["y"], y, loss)
        if decoded.shared_only:
            terms[f"shared only x {loss}"] = slow_error(decoded.shared_only["x"], x, loss)
            terms[f"shared only y {loss}"] = slow_error(decoded.shared_only["y"], y, loss)
    return terms


def slow_loss(data, kind, lam, weight, loss, tau, step):
    """Minus the bound of SPEC.md, divided by λ where λ appears in it (released scale)."""
    t = slow_terms(data, kind)
    annealing = 1 - math.exp(-step / tau)
    log_p = -weight * (t[f"x {loss}"] + t[f"y {loss}"])
    exclusive = annealing * (t.get("kl_exclusive_x", 0.0) + t.get("kl_exclusive_y", 0.0))
    prior = annealing * t["kl_shared_prior"]
    single = t["kl_shared_x"] + t["kl_shared_y"]
    if kind == "elbo+ii-mi":
        return -((1 + lam) * (log_p - exclusive) - prior - lam * single) / lam
    if kind == "elbo+ii":
        log_p_shared = -weight * (t[f"shared only x {loss}"] + t[f"shared only y {loss}"])
        return -((log_p - exclusive - prior) + lam * (log_p_shared - single)) / lam
    if kind == "ii-mi":
        return -(log_p - exclusive - single)
    return -(log_p - single)


@pytest.mark.parametrize("data", list(SHAPES))
@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_formulas(kind, loss, data):
    for lam, step, (weight, tau) in itertools.product(
        LAMBDAS, (0, 1, 700, 10**6), ((1000.0, 25000.0), (1.5, 100.0))
    ):
        objective = Objective(kind, lam, loss, weight, tau)
        found = objective(*case(data, kind), step)["loss"]
        assert found.ndim == 0
        expected = slow_loss(data, kind, lam, weight, loss, tau, step)
        assert float(found) == pytest.approx(expected, rel=2e-5), (lam, step, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_named_and_weighted_by_neither_lambda_nor_annealing(kind):
    t = slow_terms("pictures", kind)
    expected = {
        "reconstruction_x": 30 * t["x l1"],
        "reconstruction_y": 30 * t["y l1"],
        **{name: value for name, value in t.items() if name.startswith("kl_")},
    }
    if kind == "elbo+ii":
        expected["shared_only_reconstruction_x"] = 30 * t["shared only x l1"]
        expected["shared_only_reconstruction_y"] = 30 * t["shared only y l1"]
    for lam, step in itertools.product((1, 1000), (0, 50_000)):
        terms = Objective(kind, lam, "l1", 30.0, 25000.0)(*case("pictures", kind), step)
        assert {
            name: float(value) for name, value in terms.items() if name != "loss"
        } == pytest.approx(expected, rel=2e-5)


def test_annealing_rises_from_zero_to_one():
    assert kl_annealing(0, 25000) == 0.0
    assert kl_annealing(25000, 25000) == pytest.approx(1 - 1 / math.e)
    assert kl_annealing(100, 2000) == pytest.approx(1 - math.exp(-0.05))
    assert kl_annealing(10**9, 100) == pytest.approx(1.0)
    assert kl_annealing(0, 0) == kl_annealing(7, 0) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_annealing_applies_to_the_prior_kls_only(kind):
    """At step 0 the loss depends on the KLs against r and not on those against the prior."""
    q, decoded = case("features", kind)
    objective = Objective(kind, 5.0, "l2", 3.0, 100.0)

    def loss(step, **changes):
        changed = {kind: {**getattr(q, kind), **new} for kind, new in changes.items()}
        return float(objective(replace(q, **changed), decoded, step)["loss"])

    wide = DiagonalGaussian(torch.full((3, 2), 2.0), torch.full((3, 2), 1.0))
    wide_kl = slow_kl(wide)
    if kind != "ii":
        weight = {"elbo+ii-mi": 6 / 5, "elbo+ii": 1 / 5, "ii-mi": 1.0}[kind]
        for domain in "xy":
            assert loss(0, exclusive={domain: wide}) == pytest.approx(loss(0))
            change = weight * (wide_kl - slow_terms("features", kind)[f"kl_exclusive_{domain}"])
            found = loss(10**6, exclusive={domain: wide}) - loss(10**6)
            assert found == pytest.approx(change, rel=1e-3)
    for domain, r in q.shared.items():
        other = DiagonalGaussian(r.mean + 1, r.logvar)
        change = slow_kl(q.joint_shared, other) - slow_kl(q.joint_shared, r)
        for step in (0, 10**6):
            found = loss(step, shared={domain: other}) - loss(step)
            assert found == pytest.approx(change, rel=1e-3)


def test_gradients_reach_targets_of_the_bound_in_its_proportions():
    """∂loss/∂x̂ is (1+λ)/λ · w · sign / elements: the mean runs over everything, the batch too."""
    q, decoded = case("pictures", "elbo+ii-mi")
    x = q.inputs["x"]
    guess = decoded.mean["x"].clone().requires_grad_()
    guessed = Reconstructions({"x": guess, "y": decoded.mean["y"]})
    Objective("elbo+ii-mi", 4.0, "l1", 8.0, 10.0)(q, guessed, 3)["loss"].backward()
    torch.testing.assert_close(guess.grad, 10.0 * torch.sign(decoded.mean["x"] - x) / x.numel())


def test_which_objective_needs_which_networks():
    assert [has_exclusive_latents(kind) for kind in KINDS] == [True, True, True, False]
    assert [has_shared_decoders(kind) for kind in KINDS] == [False, True, False, False]


def test_the_default_objective_is_the_papers_for_mnist_cdcb():
    assert Objective() == Objective("elbo+ii-mi", 5.0, "l1", 1000.0, 25000.0)


def model_and_batch(name, kind="elbo+ii-mi"):
    torch.manual_seed(11)
    ablation = {
        "exclusive_latents": has_exclusive_latents(kind),
        "shared_decoders": has_shared_decoders(kind),
    }
    if name == "sketchy":
        model = feature_iiae(
            width_x=9, width_y=9, feature_width=8, shared_dim=4, exclusive_dim=4, **ablation
        )
        return model, torch.randn(4, 9), torch.randn(4, 9)
    model = image_iiae(
        channels_x=3,
        channels_y=3,
        size=(32, 32),
        widths=[8, 8],
        decoder_widths=[8, 8],
        shared_channels=4,
        exclusive_dim=8,
        flat_hidden=8 if name == "cars" else None,
        flat_width=8,
        **ablation,
    )
    return model, torch.rand(4, 3, 32, 32) * 2 - 1, torch.rand(4, 3, 32, 32) * 2 - 1


def push_logvars(model, values):
    """Add a constant to the log-variance half of each named posterior's last bias."""
    for name, value in values.items():
        part = model.get_submodule(name)
        last = part if not isinstance(part, torch.nn.Sequential) else part[-1]
        last.bias.data[len(last.bias) // 2 :] += value


EXTREMES = {
    "initial": {},
    "all wide": dict.fromkeys(
        ("exclusive.x", "exclusive.y", "joint_shared", "shared.x", "shared.y"), 1e4
    ),
    "all narrow": dict.fromkeys(
        ("exclusive.x", "exclusive.y", "joint_shared", "shared.x", "shared.y"), -30.0
    ),
    "wide q, narrow r": {"joint_shared": 1e4, "shared.x": -30.0, "shared.y": -30.0},
    "narrow q, wide r": {"joint_shared": -60.0, "shared.x": 1e4, "shared.y": 1e4},
}


@pytest.mark.parametrize("extreme", list(EXTREMES))
@pytest.mark.parametrize("name", list(PAPER))
def test_gradients_are_finite_at_the_papers_hyper_parameters(name, extreme):
    lam, weight, loss, tau = PAPER[name]
    model, x, y = model_and_batch(name)
    push_logvars(model, EXTREMES[extreme])
    posteriors = model.infer(x, y)
    terms = Objective("elbo+ii-mi", lam, loss, weight, tau)(
        posteriors, model.generate(model.sample(posteriors)), 1000
    )
    assert all(torch.isfinite(value) for value in terms.values())
    terms["loss"].backward()
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # a bias before batch norm
            assert parameter_name.endswith(".bias") and not parameter.any(), parameter_name
            continue
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mnist-cdcb", "cars", "sketchy"])
def test_every_parameter_learns_under_every_objective(name, kind):
    lam, weight, loss, tau = PAPER[name]
    model, x, y = model_and_batch(name, kind)
    posteriors = model.infer(x, y)
    decoded = model.generate(model.sample(posteriors))
    Objective(kind, lam, loss, weight, tau)(posteriors, decoded, 1000)["loss"].backward()
    weights = [
        (label, parameter.grad)
        for label, parameter in model.named_parameters()
        if not label.endswith("bias")
    ]
    for label, gradient in weights:
        assert gradient is not None and torch.isfinite(gradient).all(), label
        assert gradient.abs().max() > 0, label
