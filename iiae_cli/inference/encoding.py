"""Rows of a data set, or decoded pictures, to latents: batch norm in inference mode, dropout off, means not samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.data.batches import to_inputs
from iiae_cli.model import Domain
from iiae_cli.model.iiae import IIAE

Array: TypeAlias = NDArray[np.float32]
LatentKind: TypeAlias = Literal["shared", "exclusive"]


@dataclass
class Encoded:
    """Posteriors of N rows of one domain; what was not asked for, or does not exist, is None.

    Attributes:
        shared_mean: (N, S), a map flattened as (C, H, W); `shared_logvar` likewise.
        exclusive_mean: (N, E); `exclusive_logvar` likewise.
    """

    shared_mean: Array | None = None
    shared_logvar: Array | None = None
    exclusive_mean: Array | None = None
    exclusive_logvar: Array | None = None

    def mean(self, kind: LatentKind) -> Array:
        """Means of one kind.

        Raises:
            KeyError: not encoded.
        """
        value = self.shared_mean if kind == "shared" else self.exclusive_mean
        if value is None:
            raise KeyError(kind)
        return value

    def logvar(self, kind: LatentKind) -> Array | None:
        """Log-variances of one kind, where encoded."""
        return self.shared_logvar if kind == "shared" else self.exclusive_logvar

    def take(self, rows: NDArray[np.int64]) -> Encoded:
        """These rows alone, in this order."""
        return Encoded(
            **{name: None if one is None else one[rows] for name, one in vars(self).items()}
        )

    def joined(self, other: Encoded) -> Encoded:
        """These rows, then those of another that holds the same kinds."""
        both = {name: (one, getattr(other, name)) for name, one in vars(self).items()}
        return Encoded(
            **{
                name: None if parts[0] is None else np.concatenate(parts)
                for name, parts in both.items()
            }
        )


@contextmanager
def inference(model: IIAE) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def encode_rows(
    model: IIAE,
    domain: Domain,
    rows: NDArray[Any],
    *,
    size: tuple[int, int] | None,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    shared: bool = True,
    exclusive: bool = True,
) -> Encoded:
    """Encode stored rows (N, H, W, C) uint8 or (N, F) float32 of one domain.

    Args:
        model: on `device`.
        domain: which encoders.
        rows: an array or memory map, read one batch at a time.
        size: (H, W) the model works at; None for features.
        device: where the model lies.
        batch_size: rows at once.
        shared: encode r(z^s|·).
        exclusive: encode q(z^x|x), where the model has it.
    """
    exclusive = exclusive and model.exclusive_dim > 0
    parts: dict[str, list[Array]] = {}
    with inference(model):
        for start in range(0, len(rows), batch_size):
            inputs = to_inputs(rows[start : start + batch_size], size, device)
            for kind, wanted, encode in (
                ("shared", shared, model.encode_shared),
                ("exclusive", exclusive, model.encode_exclusive),
            ):
                if wanted:
                    posterior = encode(domain, inputs)
                    parts.setdefault(f"{kind}_mean", []).append(
                        posterior.mean.flatten(1).cpu().numpy()
                    )
                    parts.setdefault(f"{kind}_logvar", []).append(
                        posterior.logvar.flatten(1).cpu().numpy()
                    )
    return Encoded(**{name: np.concatenate(chunks) for name, chunks in parts.items()})
