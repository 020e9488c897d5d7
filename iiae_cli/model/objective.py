"""The variational bound, its ablations and baselines as named loss terms (paper, Eq. 12 and Table 6).

The full objective, maximised (`elbo+ii-mi`, the paper's method):

    (1+λ) · { E[log p(x|z^x,z^s)] + E[log p(y|z^y,z^s)] − KL(q(z^x|x)‖p) − KL(q(z^y|y)‖p) }
          −   KL(q(z^s|x,y)‖p(z^s))
          − λ · { KL(q(z^s|x,y)‖r^x(z^s|x)) + KL(q(z^s|x,y)‖r^y(z^s|y)) }

Two facts come from the released code: KLs against the *prior* are annealed by 1 − exp(−step/τ) while those against r
are not, and where λ appears the whole objective is divided by it (under Adam that changes no more than the effect of
epsilon). The loss here is the negative of that scaled bound, so logged terms compare with the authors'.

Beyond the paper: two baselines, `elbo` and `infonce`, and two optional terms, a contrastive one on the shared means and
a penalty on what exclusive means tell of the content (`independence.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from iiae_cli.extensions.contrastive import info_nce
from iiae_cli.extensions.dependence import dependence
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.gaussian import DiagonalGaussian, full, kl_between, kl_to_prior
from iiae_cli.model.iiae import Posteriors, Reconstructions

ObjectiveKind: TypeAlias = Literal["elbo+ii-mi", "elbo+ii", "ii-mi", "ii", "elbo", "infonce"]
ReconstructionLoss: TypeAlias = Literal["l1", "l2"]

# Weight of KL(q‖r) under `elbo`: it fits r to q, as retrieval and translation need r. Adam steps by a gradient's
# direction, whatever its size, so r learns at full pace, while q and the features feel a thousandth of the pull.
ELBO_FIT = 1e-3


@dataclass(frozen=True)
class TermWeights:
    """What multiplies each group of terms in the loss, before annealing."""

    reconstruction: float  # −log p(x|z^x,z^s) − log p(y|z^y,z^s)
    shared_only_reconstruction: float  # −log p(x|z^s) − log p(y|z^s)
    exclusive_kl: float  # KL(q(z^x|x)‖p) + KL(q(z^y|y)‖p)
    shared_prior_kl: float  # KL(q(z^s|x,y)‖p)
    shared_kl: float  # KL(q(z^s|x,y)‖r^x) + KL(q(z^s|x,y)‖r^y)


def term_weights(kind: ObjectiveKind, lam: float) -> TermWeights:
    """The weights of an objective at λ = `lam`, in the released code's scale.

    * `elbo+ii-mi`: the full objective (Eq. 12), divided by λ.
    * `elbo+ii`: ELBO + λ·II, divided by λ; II reconstructs from z^s alone, by decoders of its own.
    * `ii-mi`: Eq. 25; λ plays no part.
    * `ii`: Eq. 22; λ plays no part, the decoders see z^s only, there are no exclusive latents and no prior KLs.
    * `elbo`: the limit λ → 0, not divided by it: reconstructions and prior KLs, with r fitted to q (`ELBO_FIT`).
    * `infonce`: nothing of the bound; a dual encoder r^x, r^y with the contrastive term alone.
    """
    if kind == "elbo+ii-mi":
        return TermWeights((1 + lam) / lam, 0.0, (1 + lam) / lam, 1 / lam, 1.0)
    if kind == "elbo+ii":
        return TermWeights(1 / lam, 1.0, 1 / lam, 1 / lam, 1.0)
    if kind == "ii-mi":
        return TermWeights(1.0, 0.0, 1.0, 0.0, 1.0)
    if kind == "elbo":
        return TermWeights(1.0, 0.0, 1.0, 1.0, ELBO_FIT)
    if kind == "infonce":
        return TermWeights(0.0, 0.0, 0.0, 0.0, 0.0)
    return TermWeights(1.0, 0.0, 0.0, 0.0, 1.0)


def has_exclusive_latents(kind: ObjectiveKind) -> bool:
    """Whether an objective's model has exclusive encoders."""
    return kind not in ("ii", "infonce")


def has_shared_decoders(kind: ObjectiveKind) -> bool:
    """Whether an objective's model has decoders p(·|z^s) beside the ordinary ones."""
    return kind == "elbo+ii"


def has_decoders(kind: ObjectiveKind) -> bool:
    """Whether an objective's model generates; a dual encoder does not."""
    return kind != "infonce"


def kl_annealing(step: int, steps: float) -> float:
    """Weight of the prior KLs at optimiser step `step` (0 at first): 1 − exp(−step/τ), τ = `steps`; 1 if τ is 0."""
    return 1.0 if steps <= 0 else 1.0 - math.exp(-step / steps)


@dataclass(frozen=True)
class Objective:
    """The loss of one step.

    Args:
        kind: which bound.
        lam: λ > 0.
        reconstruction: −log p up to constants: `l1` mean |x̂ − x| (pictures), `l2` mean (x̂ − x)² (features), the
            mean taken over everything, the batch too.
        reconstruction_weight: w, multiplies it.
        annealing_steps: τ.
        contrastive: weight of InfoNCE on the shared means, 0 for the paper; `infonce` has nothing else and takes 1.
        temperature: of InfoNCE.
        independence: weight of `dependence` between each exclusive mean and the partner's shared mean, 0 for the paper.
    """

    kind: ObjectiveKind = "elbo+ii-mi"
    lam: float = 5.0
    reconstruction: ReconstructionLoss = "l1"
    reconstruction_weight: float = 1000.0
    annealing_steps: float = 25000.0
    contrastive: float = 0.0
    temperature: float = 0.1
    independence: float = 0.0

    def __call__(
        self,
        posteriors: Posteriors,
        reconstructions: Reconstructions | None,
        step: int,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Named terms of a batch; every value is a scalar.

        `loss` is what to minimise. The others are unweighted by λ and annealing, so that they mean the same at every
        step: `reconstruction_*` are w · error, `kl_*` are nats (summed over latent dimensions, batch mean),
        `contrastive` is in nats and `dependence_*` a squared distance correlation. A dual encoder has no
        `reconstructions`. Where several processes share a batch, `gather` makes its rows of theirs, so that each
        picture is compared with all of them.
        """
        contrast = None
        if self.contrastive or self.kind == "infonce":
            x_means, y_means = (posteriors.shared[domain].mean for domain in DOMAINS)
            if gather is not None:
                x_means, y_means = gather(x_means), gather(y_means)
            contrast = info_nce(x_means, y_means, self.temperature)
        if reconstructions is None:
            assert contrast is not None
            return {
                "loss": contrast.clone(),
                "contrastive": contrast,
            }  # two sums must not share memory
        terms = self._bound(posteriors, reconstructions, step)
        if contrast is not None:
            terms |= {"loss": terms["loss"] + self.contrastive * contrast, "contrastive": contrast}
        if self.independence:
            told = self._dependence(posteriors, gather)
            terms |= {"loss": terms["loss"] + self.independence * sum(told.values()), **told}
        return terms

    @staticmethod
    def _dependence(
        posteriors: Posteriors, gather: Callable[[Tensor], Tensor] | None
    ) -> dict[str, Tensor]:
        def whole(posterior: DiagonalGaussian) -> DiagonalGaussian:
            return (
                posterior
                if gather is None
                else DiagonalGaussian(gather(posterior.mean), gather(posterior.logvar))
            )

        return {
            f"dependence_{domain}": dependence(
                whole(posterior), whole(posteriors.shared[other_domain(domain)])
            )
            for domain, posterior in posteriors.exclusive.items()
        }

    def _bound(
        self, posteriors: Posteriors, reconstructions: Reconstructions, step: int
    ) -> dict[str, Tensor]:
        assert posteriors.joint_shared is not None
        weights = term_weights(self.kind, self.lam)
        annealing = kl_annealing(step, self.annealing_steps)
        joint, inputs = posteriors.joint_shared, posteriors.inputs
        terms: dict[str, Tensor] = {}

        def add(name: str, values: Mapping[Domain, Tensor]) -> Tensor:
            terms.update({f"{name}_{domain}": value for domain, value in values.items()})
            return sum(values.values(), torch.zeros(()))

        def error(decoded: Mapping[Domain, Tensor]) -> dict[Domain, Tensor]:
            return {d: self._reconstruction(mean, inputs[d]) for d, mean in decoded.items()}

        loss = weights.reconstruction * add("reconstruction", error(reconstructions.mean))
        fits: dict[Domain, Tensor] = {
            domain: kl_between(joint, r).mean() for domain, r in posteriors.shared.items()
        }
        loss = loss + weights.shared_kl * add("kl_shared", fits)
        terms["kl_shared_prior"] = kl_to_prior(joint).mean()
        if weights.shared_prior_kl:
            loss = loss + weights.shared_prior_kl * annealing * terms["kl_shared_prior"]
        exclusive: dict[Domain, Tensor] = {
            domain: kl_to_prior(q).mean() for domain, q in posteriors.exclusive.items()
        }
        loss = loss + weights.exclusive_kl * annealing * add("kl_exclusive", exclusive)
        if reconstructions.shared_only:
            loss = loss + weights.shared_only_reconstruction * add(
                "shared_only_reconstruction", error(reconstructions.shared_only)
            )
        return {"loss": loss, **terms}

    def _reconstruction(self, decoded: Tensor, target: Tensor) -> Tensor:
        error = full(decoded) - full(target)
        return self.reconstruction_weight * (
            error.abs().mean() if self.reconstruction == "l1" else error.square().mean()
        )
