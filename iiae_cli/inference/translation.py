"""Translation between domains and visual analogies within one (paper, Section 4.1 and Table 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.inference.encoding import inference
from iiae_cli.model.iiae import IIAE, Domain


def prior_samples(count: int, rows: int, exclusive_dim: int, seed: int) -> Tensor:
    """z ~ N(0, I): (rows, count, E). Row r is a function of (seed, r), so a longer input changes no earlier row."""
    samples = [np.random.default_rng((seed, row)).standard_normal((count, exclusive_dim)) for row in range(rows)]
    return torch.from_numpy(np.stack(samples).astype(np.float32))


def translate_rows(
    model: IIAE,
    source: Domain,
    target: Domain,
    rows: NDArray[Any],
    exclusive: Tensor | None,
    *,
    size: tuple[int, int] | None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> NDArray[Any]:
    """Decode every row's shared mean in `target` with each of its K exclusive latents.

    Args:
        model: on `device`.
        source: domain of `rows`; equal to `target` for a visual analogy.
        target: domain of the output.
        rows: (N, H, W, C) uint8 or (N, F) float32.
        exclusive: (N, K, E) latents of `target`; None for a model without exclusive latents (K = 1).
        size: (H, W) the model works at; None for features.
        device: where the model lies.
        batch_size: rows at once.

    Returns:
        Pictures (N, K, H, W, C) uint8, or features (N, K, F) float32.
    """
    outputs = []
    with inference(model):
        for start in range(0, len(rows), batch_size):
            shared = model.encode_shared(source, to_inputs(rows[start : start + batch_size], size, device)).mean
            if exclusive is None:
                count, latents = 1, None
            else:
                chosen = exclusive[start : start + batch_size].to(shared.device)
                count, latents = chosen.shape[1], chosen.flatten(0, 1)
            decoded = model.decode(target, shared.repeat_interleave(count, dim=0), latents)
            outputs.append(_stored(decoded).reshape(len(shared), count, *_stored(decoded).shape[1:]))
    return np.concatenate(outputs)


def _stored(decoded: Tensor) -> NDArray[Any]:
    if decoded.ndim == 4:
        return to_pictures(decoded)
    features: NDArray[Any] = decoded.float().cpu().numpy()
    return features
