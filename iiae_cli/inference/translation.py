"""Translation between domains and visual analogies within one (paper, Section 4.1 and Table 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.inference.encoding import inference
from iiae_cli.model import Domain
from iiae_cli.model.iiae import IIAE


def prior_samples(
    count: int, rows: int, exclusive_dim: int, seed: int, *, first: int = 0
) -> Tensor:
    """z ~ N(0, I) for the rows first, first + 1, …: (rows, count, E).

    Row r is a function of (seed, r), so neither a longer input nor a division into blocks changes another row.
    """
    numbers = range(first, first + rows)
    samples = [
        np.random.default_rng((seed, row)).standard_normal((count, exclusive_dim))
        for row in numbers
    ]
    return torch.from_numpy(np.stack(samples).astype(np.float32))


def interpolated(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Latents (steps, E) at equal distances on the line from `start` (E,) to `end` (E,), both of them included."""
    weights = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    return torch.lerp(start, end, weights[:, None])


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
        batch_size: rows encoded, and outputs decoded, at once.

    Returns:
        Pictures (N, K, H, W, C) uint8, or features (N, K, F) float32.
    """
    outputs = []
    with inference(model):
        for start in range(0, len(rows), batch_size):
            shared = model.encode_shared(
                source, to_inputs(rows[start : start + batch_size], size, device)
            ).mean
            if exclusive is None:
                count, latents = 1, None
            else:
                chosen = exclusive[start : start + batch_size].to(shared.device)
                count, latents = chosen.shape[1], chosen.flatten(0, 1)
            repeated = shared.repeat_interleave(count, dim=0)
            # In parts, as one row may have any number of latents.
            parts = [slice(at, at + batch_size) for at in range(0, len(repeated), batch_size)]
            decoded = np.concatenate(
                [
                    _stored(
                        model.decode(
                            target, repeated[part], None if latents is None else latents[part]
                        )
                    )
                    for part in parts
                ]
            )
            outputs.append(decoded.reshape(len(shared), count, *decoded.shape[1:]))
    return np.concatenate(outputs)


def _stored(decoded: Tensor) -> NDArray[Any]:
    if decoded.ndim == 4:
        return to_pictures(decoded)
    features: NDArray[Any] = decoded.float().cpu().numpy()
    return features
