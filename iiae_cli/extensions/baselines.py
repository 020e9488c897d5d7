"""What the paper's objective is compared with: the plain ELBO, and a dual encoder under InfoNCE."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from iiae_cli.extensions.extended import ExtendedIIAE
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.model.gaussian import DiagonalGaussian
from iiae_cli.model.iiae import Posteriors, Reconstructions
from iiae_cli.model.networks import Networks
from iiae_cli.model.objective import Weights

# The limit λ → 0 of Eq. 12, not divided by it. Retrieval and translation need r, so it is fitted to
# q by a small weight: Adam steps by a gradient's direction, whatever its size, so r learns at full
# pace, while q and the features feel a thousandth of the pull.
ELBO_FIT = 1e-3
ELBO = Weights(1.0, ELBO_FIT, shared_prior_kl=1.0, exclusive_kl=1.0)


class DualEncoder(ExtendedIIAE):
    """r^x and r^y alone: retrieves, but has neither exclusive latents nor decoders."""

    generative = False

    def __init__(
        self, networks: Networks, widths: Mapping[Domain, int], **extensions: bool
    ) -> None:
        super().__init__(networks, widths, exclusive_dim=0, **extensions)
        del self.joint_shared  # nothing trains it

    def forward(self, x: Tensor, y: Tensor) -> tuple[Posteriors, Reconstructions]:
        """All networks' part of a training step on pairs x (B, …) and y (B, …)."""
        return self.infer(x, y), Reconstructions({})

    def infer(self, x: Tensor, y: Tensor) -> Posteriors:
        """The shared posteriors of pairs x (B, …) and y (B, …)."""
        inputs: dict[Domain, Tensor] = {"x": self.read("x", x), "y": self.read("y", y)}
        shared = {
            domain: DiagonalGaussian.from_heads(
                self.shared[domain](self.features[domain](inputs[domain]))
            )
            for domain in DOMAINS
        }
        return Posteriors(inputs=inputs, exclusive={}, joint_shared=None, shared=shared)
