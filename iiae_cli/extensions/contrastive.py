"""The contrastive term on shared means: each picture should find its own partner among the batch's.

InfoNCE (van den Oord et al., 2018) in both directions: with cosine similarities s_ij of the means of r^x(z^s|x_i) and
r^y(z^s|y_j), divided by a temperature τ, it is the mean of −log softmax_j(s_ij/τ) at j = i and the same over i. It
bounds from below what both single-domain encoders' means have in common, ln B − loss ≤ I(r^x; r^y), so it asks for the
same as the paper's II, by comparison instead of reconstruction. Beyond the paper; off unless configured.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
