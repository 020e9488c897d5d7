"""A trained model on rows: latents, translations, visual analogies.

Batch norm runs in inference mode, dropout is off, and latents are posterior means, not samples.

Shapes: N rows, K exclusive latents per row, S shared and E exclusive dimensions; pictures (N, H, W,
C) uint8 or features (N, F) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.common import console
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.inference.inputs import Block
from iiae_cli.model import Domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.runs import LoadedModel

Array: TypeAlias = NDArray[np.float32]
LatentKind: TypeAlias = Literal["shared", "exclusive"]
KINDS: tuple[LatentKind, ...] = ("shared", "exclusive")
BATCH = 64  # translations made at once
ARRAYS = ("shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar")


@dataclass
class Encoded:
    """Posteriors of N rows of one domain; None for what was not encoded or does not exist."""

    shared_mean: Array | None = None  # (N, S), a map flattened as (C, H, W)
    shared_logvar: Array | None = None
    exclusive_mean: Array | None = None  # (N, E)
    exclusive_logvar: Array | None = None

    def mean(self, kind: LatentKind) -> Array:
        """Returns the means of one kind; raises IiaeError if they were not encoded."""
        value = self.shared_mean if kind == "shared" else self.exclusive_mean
        if value is None:
            raise IiaeError(f"the rows have no {kind} latents", f"encode with --latents {kind}")
        return value

    def logvar(self, kind: LatentKind) -> Array | None:
        """Returns the log-variances of one kind, None if they were not encoded."""
        return self.shared_logvar if kind == "shared" else self.exclusive_logvar

    def take(self, rows: NDArray[np.int64]) -> Encoded:
        """Returns these rows alone, in this order."""
        known = {name: part[rows] for name, part in vars(self).items() if part is not None}
        return Encoded(**known)

    @classmethod
    def joined(cls, parts: Sequence[Encoded]) -> Encoded:
        """Returns the rows of all parts, which hold the same kinds."""
        arrays = {name: [getattr(part, name) for part in parts] for name in ARRAYS}
        known = {name: each for name, each in arrays.items() if each and each[0] is not None}
        return cls(**{name: np.concatenate(each) for name, each in known.items()})


@dataclass(frozen=True)
class TrainedModel:
    """A network, the size of its pictures, and its device."""

    network: IIAE  # its mode is restored after every call
    size: tuple[int, int] | None  # (H, W) that pictures are resized to; None for features
    device: torch.device | str = "cpu"
    stop: Stop = NEVER  # checked before every batch

    @classmethod
    def of(cls, loaded: LoadedModel) -> TrainedModel:
        """Wraps loaded weights, on their device."""
        return cls(loaded.model, loaded.size, loaded.device)

    def inputs(self, rows: NDArray[Any]) -> Tensor:
        """Returns stored rows as network inputs: (N, C, H, W) in [-1, 1], or (N, F)."""
        self.stop.check()
        return to_inputs(rows, self.size, self.device)

    def shown(self, rows: NDArray[Any]) -> list[NDArray[np.uint8]]:
        """Returns stored pictures at the network's size; for features, a dot each."""
        if self.size is None:
            return [np.zeros((1, 1, 3), np.uint8)] * len(rows)
        return list(to_pictures(to_inputs(rows, self.size))) if len(rows) else []

    def encode(
        self,
        rows: NDArray[Any],
        domain: Domain,
        kinds: Collection[LatentKind] = KINDS,
        *,
        batch_size: int = 256,
    ) -> Encoded:
        """Encodes stored rows of one domain: r(z^s|·), and q(z^x|x) if the network has it.

        The rows may be a memory map: one batch at a time is read.
        """
        network = self.network
        encoders = {"shared": network.encode_shared, "exclusive": network.encode_exclusive}
        known = [kind for kind in kinds if kind == "shared" or network.exclusive_dim]
        parts = []
        with inference(network), console.progress(f"rows of {domain}", len(rows), "rows") as bar:
            for start in range(0, len(rows), batch_size):
                inputs = self.inputs(rows[start : start + batch_size])
                part = Encoded()
                for kind in known:
                    for name, values in vars(encoders[kind](domain, inputs)).items():
                        setattr(part, f"{kind}_{name}", values.flatten(1).cpu().numpy())
                parts.append(part)
                bar.update(start + len(inputs))
        return Encoded.joined(parts)

    def decoded(
        self, domain: Domain, shared: Tensor, exclusive: Tensor | None, *, batch_size: int = BATCH
    ) -> Iterator[Tensor]:
        """Yields batches of decoded latents (N, …) and (N, E), as the network returns them."""
        for start in range(0, len(shared), batch_size):
            part = slice(start, start + batch_size)
            own = None if exclusive is None else exclusive[part].to(self.device)
            with inference(self.network):
                outputs = self.network.decode(domain, shared[part].to(self.device), own)
            yield outputs

    def decode(self, domain: Domain, shared: Tensor, exclusive: Tensor | None) -> NDArray[Any]:
        """Decodes latents (N, …) and (N, E) to pictures (N, H, W, C) uint8, or features (N, F)."""

        def plain(rows: Tensor) -> NDArray[Any]:
            return to_pictures(rows) if rows.ndim == 4 else rows.float().cpu().numpy()

        return np.concatenate([*map(plain, self.decoded(domain, shared, exclusive))])

    def translate(
        self, rows: NDArray[Any], source: Domain, target: Domain, exclusive: Tensor | None
    ) -> NDArray[Any]:
        """Decodes every row's shared mean in `target` with each of its K exclusive latents.

        A target equal to the source makes visual analogies (Table 8). `exclusive` holds (N, K, E)
        latents of `target`; None for a network without them (K = 1). Returns pictures (N, K, H, W,
        C) uint8, or features (N, K, F) float32.
        """
        encoded = self.encode(rows, source, ["shared"], batch_size=BATCH)
        count, latents = 1, None
        if exclusive is not None:
            count, latents = exclusive.shape[1], exclusive.flatten(0, 1)
        shared = torch.from_numpy(encoded.mean("shared")).repeat_interleave(count, dim=0)
        decoded = self.decode(target, shared, latents)
        return decoded.reshape(len(rows), count, *decoded.shape[1:])


@contextmanager
def inference(network: IIAE) -> Iterator[None]:
    """Switches to evaluation mode without gradients; restores the network's mode afterwards."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def prior_samples(count: int, rows: Iterable[int], exclusive_dim: int, seed: int) -> Tensor:
    """Draws z ~ N(0, I) for each of the N rows: (N, count, E), a function of seed and row alone."""
    shape = count, exclusive_dim
    samples = [np.random.default_rng((seed, row)).standard_normal(shape) for row in rows]
    return torch.from_numpy(np.stack(samples).astype(np.float32))


@dataclass(frozen=True)
class Styles:
    """The sources of the exclusive latents of an input's K outputs."""

    names: list[str]  # (K,)
    pictures: list[tuple[NDArray[np.uint8], str] | None]  # (K,) references as the model sees them
    # Returns (N, K, E) for the inputs at N positions; None for a network without them.
    exclusive: Callable[[list[int]], Tensor | None]


def styles_of(
    trained: TrainedModel,
    target: Domain,
    references: Block | None = None,
    partners: Callable[[list[int]], NDArray[Any]] | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Styles:
    """Returns styles: draws [3; none beside others], references, each input's partner.

    References are of the domain `target`, and so are partners, which a function returns for the
    positions of inputs.
    """
    width = trained.network.exclusive_dim
    if samples is None:
        samples = 0 if references or partners else 3
    if not width:
        return Styles(["translation"], [None], lambda positions: None)

    def encoded(rows: NDArray[Any]) -> Tensor:
        return torch.from_numpy(trained.encode(rows, target, ["exclusive"]).mean("exclusive"))

    names = [f"sample {number + 1}" for number in range(samples)]
    pictures: list[tuple[NDArray[np.uint8], str] | None] = [None] * samples
    means = torch.empty(0, width)
    if references is not None:
        means = encoded(references.rows)
        names += [Path(name).name for name in references.ids]
        pictures += zip(trained.shown(references.rows), references.ids, strict=True)
    if partners is not None:
        names.append("guided")
        pictures.append(None)

    def exclusive(positions: list[int]) -> Tensor:
        drawn = prior_samples(samples, positions, width, seed)
        parts = [drawn, means.expand(len(positions), -1, -1)]
        if partners is not None:
            parts.append(encoded(partners(positions))[:, None])
        return torch.cat(parts, dim=1)

    return Styles(names, pictures, exclusive)
