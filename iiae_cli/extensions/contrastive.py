"""The contrastive term on shared means: each picture should find its own partner in the batch.

InfoNCE (van den Oord et al., 2018) in both directions: with cosine similarities s_ij of the means
of r^x(z^s|x_i) and r^y(z^s|y_j), divided by a temperature τ, it is the mean of −log
softmax_j(s_ij/τ) at j = i and the same over i. It bounds from below what both single-domain
encoders' means have in common, ln B − loss ≤ I(r^x; r^y), so it asks for the same as the paper's
II, by comparison instead of reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iiae_cli.model import DOMAINS
from iiae_cli.model.iiae import Posteriors, Reconstructions
from iiae_cli.model.objective import Term


def contrastive_term(
    weight: float, temperature: float, gather: Callable[[Tensor], Tensor] = lambda rows: rows
) -> Term:
    """InfoNCE of a batch's shared means, in nats.

    Args:
        weight: in the loss.
        temperature: τ.
        gather: makes the whole batch's rows of one process's, if several share a batch.
    """

    def value(posteriors: Posteriors, _: Reconstructions) -> Tensor:
        x, y = (gather(posteriors.shared[domain].mean) for domain in DOMAINS)
        return info_nce(x, y, temperature)

    return Term("contrastive", weight, value)


def info_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE in nats, a scalar; ln B at chance.

    Args:
        x: (B, S…) shared means of domain x.
        y: (B, S…) shared means of domain y, row i the partner of x's row i.
        temperature: τ > 0, which the cosines are divided by.
    """
    x, y = (F.normalize(means.float().flatten(1), dim=1) for means in (x, y))
    similarities = x @ y.T / temperature
    partners = torch.arange(len(x), device=similarities.device)
    return 0.5 * (
        F.cross_entropy(similarities, partners) + F.cross_entropy(similarities.T, partners)
    )
