"""The variational bound and its ablations as named loss terms (paper, Eq. 12 and Table 6).

The full objective, maximised (`elbo+ii-mi`, the paper's method):

    (1+λ) · { E[log p(x|z^x,z^s)] + E[log p(y|z^y,z^s)] − KL(q(z^x|x)‖p) − KL(q(z^y|y)‖p) }
          −   KL(q(z^s|x,y)‖p(z^s))
          − λ · { KL(q(z^s|x,y)‖r^x(z^s|x)) + KL(q(z^s|x,y)‖r^y(z^s|y)) }

Two facts come from the released code: KLs against the *prior* are annealed by 1 − exp(−step/τ)
while those against r are not, and where λ appears the whole objective is divided by it (under Adam
that changes no more than the effect of epsilon). The loss here is the negative of that scaled
bound, so logged terms compare with the authors'.

Every term is a scalar: KLs in nats, summed over latent dimensions and averaged over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from iiae_cli.model import Domain
from iiae_cli.model.iiae import DiagonalGaussian, Posteriors, Reconstructions, full

BoundKind: TypeAlias = Literal["elbo+ii-mi", "elbo+ii", "ii-mi", "ii"]
ByDomain: TypeAlias = Mapping[Domain, Tensor]


def kl_between(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    """Returns KL(q ‖ p) in nats, summed over latent dimensions: (B,)."""
    ratio = torch.exp(q.logvar - p.logvar)
    distance = (q.mean - p.mean).square() * torch.exp(-p.logvar)
    return 0.5 * (ratio + distance - 1.0 + p.logvar - q.logvar).flatten(1).sum(dim=1)


def kl_to_prior(q: DiagonalGaussian) -> Tensor:
    """Returns KL(q ‖ N(0, I)) in nats, summed over latent dimensions: (B,)."""
    return 0.5 * (torch.exp(q.logvar) + q.mean.square() - 1.0 - q.logvar).flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Term:
    """A summand of the loss."""

    name: str  # of its logged values, followed by _x and _y if they are by domain
    weight: float  # multiplies their sum in the loss; 0 only logs them
    values: Callable[[Posteriors, Reconstructions], Tensor | ByDomain]  # scalars of a batch
    annealed: bool = False  # whether annealing multiplies it as well


@dataclass(frozen=True)
class Objective:
    """The loss of a step: the weighted sum of its terms."""

    terms: list[Term]
    annealing_steps: float = 25000.0  # τ

    def __call__(
        self, posteriors: Posteriors, reconstructions: Reconstructions, step: int
    ) -> dict[str, Tensor]:
        """Returns named scalars of a batch: `loss`, which is minimised, then every term's values.

        The values are weighted by neither λ nor annealing: they mean the same at every step.
        """
        named: dict[str, Tensor] = {}
        weighted = []
        for term in self.terms:
            values = term.values(posteriors, reconstructions)
            if isinstance(values, Tensor):
                logged = {term.name: values}
            else:
                logged = {f"{term.name}_{domain}": value for domain, value in values.items()}
            named |= logged
            if term.weight and logged:
                annealing = kl_annealing(step, self.annealing_steps) if term.annealed else 1.0
                weighted.append(term.weight * annealing * reduce(add, logged.values()))
        return {"loss": reduce(add, weighted), **named}


def kl_annealing(step: int, steps: float) -> float:
    """Returns the prior KLs' weight at step 0, 1, …: 1 − exp(−step/τ), τ = `steps`; 1 if τ is 0."""
    return 1.0 if steps <= 0 else 1.0 - math.exp(-step / steps)


@dataclass(frozen=True)
class Weights:
    """The weight of each group of terms in the loss, before annealing."""

    reconstruction: float  # −log p(x|z^x,z^s) − log p(y|z^y,z^s)
    shared_kl: float  # KL(q(z^s|x,y)‖r^x) + KL(q(z^s|x,y)‖r^y)
    shared_prior_kl: float = 0.0  # KL(q(z^s|x,y)‖p)
    exclusive_kl: float = 0.0  # KL(q(z^x|x)‖p) + KL(q(z^y|y)‖p)
    shared_only_reconstruction: float = 0.0  # −log p(x|z^s) − log p(y|z^s)


def bound_weights(kind: BoundKind, lam: float) -> Weights:
    """Returns the weights of a bound at λ = `lam`, in the released code's scale."""
    if kind == "elbo+ii-mi":  # the full objective (Eq. 12), divided by λ
        return Weights((1 + lam) / lam, 1.0, 1 / lam, (1 + lam) / lam)
    if kind == "elbo+ii":  # divided by λ; II reconstructs from z^s alone, by its own decoders
        return Weights(1 / lam, 1.0, 1 / lam, 1 / lam, 1.0)
    if kind == "ii-mi":  # Eq. 25, without λ
        return Weights(1.0, 1.0, exclusive_kl=1.0)
    return Weights(1.0, 1.0)  # Eq. 22, without λ: neither exclusive latents nor prior KLs


def bound(
    kind: BoundKind = "elbo+ii-mi",
    lam: float = 5.0,
    *,
    reconstruction: Literal["l1", "l2"] = "l1",
    reconstruction_weight: float = 1000.0,
    annealing_steps: float = 25000.0,
) -> Objective:
    """Builds a bound at λ = `lam` as the loss.

    −log p is the `reconstruction_weight` times the mean of |x̂ − x| (`l1`, pictures) or (x̂ − x)²
    (`l2`, features) over everything, the batch too.
    """
    weights = bound_weights(kind, lam)
    size = torch.abs if reconstruction == "l1" else torch.square

    def errors(decoded: ByDomain, posteriors: Posteriors) -> ByDomain:
        differences = {d: full(mean) - full(posteriors.inputs[d]) for d, mean in decoded.items()}
        return {d: reconstruction_weight * size(error).mean() for d, error in differences.items()}

    terms = [
        Term("reconstruction", weights.reconstruction, lambda q, p: errors(p.mean, q)),
        Term("kl_shared", weights.shared_kl, _shared_kl),
        Term("kl_shared_prior", weights.shared_prior_kl, _shared_prior_kl, annealed=True),
        Term("kl_exclusive", weights.exclusive_kl, _exclusive_kl, annealed=True),
        Term(
            "shared_only_reconstruction",
            weights.shared_only_reconstruction,
            lambda q, p: errors(p.shared_only, q),
        ),
    ]
    return Objective(terms, annealing_steps)


def _shared_kl(posteriors: Posteriors, _: Reconstructions) -> ByDomain:
    joint = posteriors.joint_shared
    assert joint is not None
    return {domain: kl_between(joint, r).mean() for domain, r in posteriors.shared.items()}


def _shared_prior_kl(posteriors: Posteriors, _: Reconstructions) -> Tensor:
    assert posteriors.joint_shared is not None
    return kl_to_prior(posteriors.joint_shared).mean()


def _exclusive_kl(posteriors: Posteriors, _: Reconstructions) -> ByDomain:
    return {domain: kl_to_prior(q).mean() for domain, q in posteriors.exclusive.items()}
