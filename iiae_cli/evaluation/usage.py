"""How much of its latents a model uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iiae_cli.inference.trained import Encoded, LatentKind

ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True)
class LatentUsage:
    """One latent of one domain, dimension by dimension, over a split.

    Attributes:
        kl: (D,) mean KL(q ‖ N(0, 1)) in nats; their sum is the latent's KL to the prior.
        variance: (D,) of the posterior means over the rows.
    """

    kl: NDArray[np.float64]
    variance: NDArray[np.float64]

    @property
    def active(self) -> int:
        """Dimensions whose mean moves with the data: variance above `ACTIVE_VARIANCE` (Burda et al., 2016)."""
        return int((self.variance > ACTIVE_VARIANCE).sum())


def latent_usage(encoded: Encoded, kind: LatentKind) -> LatentUsage | None:
    """Of one kind of latent; None where the model has none."""
    mean = encoded.shared_mean if kind == "shared" else encoded.exclusive_mean
    logvar = encoded.logvar(kind)
    if mean is None or logvar is None:
        return None
    means, logvars = mean.astype(np.float64), logvar.astype(np.float64)
    nats = 0.5 * (np.exp(logvars) + means**2 - 1.0 - logvars)
    return LatentUsage(nats.mean(axis=0), means.var(axis=0))
