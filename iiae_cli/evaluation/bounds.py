"""The variational bounds that training works on, recomputed on a split, in nats per pair.

Written for x; y is analogous. Every figure is a mean over rows of terms that `metrics.jsonl` holds by the same names.

* I(X; Z^s | Y) ≤ E KL(q(z^s|x,y) ‖ r^y(z^s|y)), logged as `kl_shared_y`: what the shared latent says of x that y does
  not tell. Zero would mean that nothing of x alone is in z^s.
* I(X; Z^x) ≤ E KL(q(z^x|x) ‖ p), logged as `kl_exclusive_x`. It bounds I(Z^x; Z^s) too: z^x knows of z^s only by x.
* I(X, Y; Z^s) ≤ E KL(q(z^s|x,y) ‖ p), logged as `kl_shared_prior`.
* I(Z^x; Z^s) = I(X; Z^x) + I(X; Z^s) − I(X; Z^x, Z^s) (the paper's supplement, A.2), where the last term is at least
  H(X) + E log p(x|z^x,z^s). So I(Z^x; Z^s) + H(X) ≤ `kl_exclusive_x` + `kl_shared_prior` + `reconstruction_x` + c.
  H(X) and the likelihood's constant c are the data's and w's: between runs on the same data with the same w the sums
  compare, by itself a sum says nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from iiae_cli.data.datafile import Split
from iiae_cli.inference.trained import TrainedModel, inference
from iiae_cli.model import DOMAINS, other_domain
from iiae_cli.model.gaussian import kl_between, kl_to_prior


def bound_figures(
    trained: TrainedModel,
    split: Split,
    *,
    loss: Literal["l1", "l2"] = "l1",
    weight: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Upper bounds by domain, and what both share.

    `x` and `y` each have `shared_given_other` and, with exclusive latents, `exclusive` and
    `exclusive_shared_plus_entropy`; beside them stand `shared` and `rows`.

    Args:
        trained: the model.
        split: aligned rows, each of which is read.
        loss: whose mean, times `weight`, stands for −log p.
        weight: w.
        batch_size: rows at once.
        seed: of the latents' samples, which reconstruct.
    """
    terms: dict[str, list[Any]] = {}
    generator = torch.Generator(trained.device).manual_seed(seed)
    model = trained.network
    with inference(model):
        for start in range(0, len(split.x), batch_size):
            inputs = [
                trained.inputs(split.side(one).rows[start : start + batch_size]) for one in DOMAINS
            ]
            posteriors = model.infer(*inputs)
            joint = posteriors.joint_shared
            assert joint is not None  # a dual encoder has no bounds
            latents = model.sample(posteriors, generator)
            made = model.generate(latents)
            batch = {"shared": kl_to_prior(joint)}
            for domain in DOMAINS:
                decoded, target = made.mean[domain], posteriors.inputs[domain]
                single = posteriors.shared[other_domain(domain)]
                batch[f"{domain}.shared_given_other"] = kl_between(joint, single)
                exclusive = posteriors.exclusive.get(domain)
                if exclusive is not None:
                    error = (decoded - target).float()
                    error = (error.abs() if loss == "l1" else error.square()).flatten(1).mean(dim=1)
                    own = kl_to_prior(exclusive)
                    batch[f"{domain}.exclusive"] = own
                    batch[f"{domain}.exclusive_shared_plus_entropy"] = (
                        own + batch["shared"] + weight * error
                    )
            for name, values in batch.items():
                terms.setdefault(name, []).append(values.double().cpu().numpy())
    means = {name: float(np.concatenate(parts).mean()) for name, parts in terms.items()}
    figures: dict[str, Any] = {
        domain: {
            name.partition(".")[2]: value
            for name, value in means.items()
            if name.startswith(f"{domain}.")
        }
        for domain in DOMAINS
    }
    return {**figures, "shared": means["shared"], "rows": len(split.x)}
