"""A trained model and what it is asked for: latents of rows, translations, visual analogies.

Batch norm runs in inference mode, dropout is off, and latents are posterior means, not samples.

Shapes: N rows, K exclusive latents per row, S shared and E exclusive dimensions; pictures (N, H, W,
C) uint8 or features (N, F) float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.builders import choose_device
from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.model import Domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.runs.directory import RunDir
from iiae_cli.runs.weights import LoadedModel, load_model

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
        """Returns the means of one kind; raises KeyError if they were not encoded."""
        value = self.shared_mean if kind == "shared" else self.exclusive_mean
        if value is None:
            raise KeyError(kind)
        return value

    def logvar(self, kind: LatentKind) -> Array | None:
        """Returns the log-variances of one kind, None if they were not encoded."""
        return self.shared_logvar if kind == "shared" else self.exclusive_logvar

    def take(self, rows: NDArray[np.int64]) -> Encoded:
        """Returns these rows alone, in this order."""
        return Encoded(
            **{name: None if part is None else part[rows] for name, part in vars(self).items()}
        )

    def joined(self, other: Encoded) -> Encoded:
        """Returns these rows, then those of another that holds the same kinds."""
        return Encoded(
            **{
                name: None if part is None else np.concatenate([part, getattr(other, name)])
                for name, part in vars(self).items()
            }
        )


@dataclass(frozen=True)
class TrainedModel:
    """A network, the size of its pictures, and the device it lies on.

    Attributes:
        network: on `device`; its mode is restored after every call.
        size: (H, W) that pictures are resized to; None for features.
        device: of the network.
    """

    network: IIAE
    size: tuple[int, int] | None
    device: torch.device | str = "cpu"

    @classmethod
    def load(cls, run: Path | str, device: str = "auto") -> TrainedModel:
        """Reads the kept weights of a run directory.

        Raises:
            IiaeError: the run is missing or damaged.
        """
        return cls.of(load_model(RunDir(Path(run)), choose_device(device)))

    @classmethod
    def of(cls, loaded: LoadedModel) -> TrainedModel:
        """Wraps weights that are loaded already, on the device where they lie."""
        return cls(loaded.model, loaded.size, next(loaded.model.parameters()).device)

    def inputs(self, rows: NDArray[Any]) -> Tensor:
        """Returns stored rows as the network takes them: (N, C, H, W) in [-1, 1], or (N, F)."""
        return to_inputs(rows, self.size, self.device)

    def encode(
        self,
        rows: NDArray[Any],
        domain: Domain,
        *,
        shared: bool = True,
        exclusive: bool = True,
        batch_size: int = 256,
    ) -> Encoded:
        """Encodes stored rows of one domain.

        Args:
            rows: an array or memory map, read one batch at a time.
            domain: whose encoders read them.
            shared: whether r(z^s|·) is wanted.
            exclusive: whether q(z^x|x) is wanted, where the network has it.
            batch_size: rows at once.
        """
        network = self.network
        encoders = {"shared": network.encode_shared} if shared else {}
        if exclusive and network.exclusive_dim:
            encoders["exclusive"] = network.encode_exclusive
        parts: dict[str, list[Array]] = {}
        with inference(network):
            for start in range(0, len(rows), batch_size):
                inputs = self.inputs(rows[start : start + batch_size])
                for kind, encode in encoders.items():
                    posterior = encode(domain, inputs)
                    for name, values in (("mean", posterior.mean), ("logvar", posterior.logvar)):
                        part = values.flatten(1).cpu().numpy()
                        parts.setdefault(f"{kind}_{name}", []).append(part)
        return Encoded(**{name: np.concatenate(arrays) for name, arrays in parts.items()})

    def decode(
        self, domain: Domain, shared: Tensor, exclusive: Tensor | None, *, batch_size: int = 64
    ) -> NDArray[Any]:
        """Decodes latents (N, …) and (N, E) to pictures (N, H, W, C) uint8, or features (N, F)."""
        outputs = []
        with inference(self.network):
            for start in range(0, len(shared), batch_size):
                part = slice(start, start + batch_size)
                own = None if exclusive is None else exclusive[part].to(self.device)
                decoded = self.network.decode(domain, shared[part].to(self.device), own)
                picture = decoded.ndim == 4
                outputs.append(to_pictures(decoded) if picture else decoded.float().cpu().numpy())
        return np.concatenate(outputs)

    def translate(
        self,
        rows: NDArray[Any],
        source: Domain,
        target: Domain,
        exclusive: Tensor | None,
        *,
        batch_size: int = 64,
    ) -> NDArray[Any]:
        """Decodes every row's shared mean in `target` with each of its K exclusive latents.

        Args:
            rows: of `source`; a target equal to it makes visual analogies (Table 8).
            source: domain of the rows.
            target: domain of the outputs.
            exclusive: (N, K, E) latents of `target`; None for a network without them (K = 1).
            batch_size: rows encoded, and outputs decoded, at once.

        Returns:
            Pictures (N, K, H, W, C) uint8, or features (N, K, F) float32.
        """
        outputs = []
        with inference(self.network):
            for start in range(0, len(rows), batch_size):
                part = slice(start, start + batch_size)
                shared = self.network.encode_shared(source, self.inputs(rows[part])).mean
                count = 1 if exclusive is None else exclusive.shape[1]
                latents = None if exclusive is None else exclusive[part].flatten(0, 1)
                repeated = shared.repeat_interleave(count, dim=0)
                decoded = self.decode(target, repeated, latents, batch_size=batch_size)
                outputs.append(decoded.reshape(len(shared), count, *decoded.shape[1:]))
        return np.concatenate(outputs)


@contextmanager
def inference(network: IIAE) -> Iterator[None]:
    """Evaluation mode without gradients; the network's mode is restored afterwards."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def prior_samples(
    count: int, rows: int, exclusive_dim: int, seed: int, *, first: int = 0
) -> Tensor:
    """Draws z ~ N(0, I) for the rows first, first + 1, …: (rows, count, E).

    Row r is a function of (seed, r), so neither more rows nor a division into blocks changes it.
    """
    samples = [
        np.random.default_rng((seed, row)).standard_normal((count, exclusive_dim))
        for row in range(first, first + rows)
    ]
    return torch.from_numpy(np.stack(samples).astype(np.float32))


def interpolated(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Returns latents (steps, E) at equal distances from `start` (E,) to `end` (E,), both
    included.
    """
    weights = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    return torch.lerp(start, end, weights[:, None])
