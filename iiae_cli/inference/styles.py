"""Where translations take their exclusive latents from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.data.datafile import DataFile, is_hdf5
from iiae_cli.inference.inputs import Inputs, open_inputs
from iiae_cli.inference.trained import TrainedModel, interpolated, prior_samples
from iiae_cli.model import Domain

DEFAULT_SAMPLES = 3
Picture: TypeAlias = NDArray[np.uint8]


@dataclass
class Styles:
    """Where an input's K outputs take their exclusive latents from: samples, then references, then
    its partner.

    Attributes:
        trained: the model.
        target: domain of the outputs.
        names: (K,) of the outputs.
        seed: of the samples.
        samples: how many are sampled.
        means: (R, E) of references, or between two of them.
        partners: of all inputs, where they guide too.
        pictures: (K,) the references at the model's size and their ids, None beside other outputs;
            empty: none.
    """

    trained: TrainedModel
    target: Domain
    names: list[str]
    seed: int = 0
    samples: int = 0
    means: torch.Tensor | None = None
    partners: Inputs | None = None
    pictures: list[tuple[Picture, str] | None] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        trained: TrainedModel,
        target: Domain,
        references: Inputs | None,
        partners: Inputs | None,
        *,
        samples: int | None,
        interpolate: int | None,
        seed: int,
    ) -> Styles:
        """Encodes the references, and names all outputs of an input."""
        if not trained.network.exclusive_dim:
            return cls(trained, target, ["translation"])
        if samples is None:
            samples = 0 if references is not None or partners is not None else DEFAULT_SAMPLES
        names = [f"sample {number}" for number in range(1, samples + 1)]
        styles = cls(trained, target, names, seed, samples, partners=partners)
        if references is not None:
            styles._refer(references, interpolate)
        if partners is not None:
            styles.names.append("guided")
            styles.pictures += [None] * bool(styles.pictures)
        return styles

    def _refer(self, references: Inputs, steps: int | None) -> None:
        rows, ids, _ = references.all_rows()
        self.means = self._encoded(rows)
        shown: list[tuple[Picture, str] | None] = [*zip(self.shown(rows), ids, strict=True)]
        if steps:
            if len(ids) != 2:
                raise IiaeError(
                    f"an interpolation needs two references, {len(ids)} could be read",
                    "pass --reference FIRST --reference LAST",
                )
            self.means = interpolated(self.means[0], self.means[1], steps)
            shown[1:1] = [None] * (steps - 2)
            ids = [f"step {number}" for number in range(1, steps + 1)]
        self.names += [Path(name).name for name in ids]
        self.pictures += [*[None] * self.samples, *shown]

    def _encoded(self, rows: NDArray[Any]) -> torch.Tensor:
        encoded = self.trained.encode(rows, self.target, shared=False)
        return torch.from_numpy(encoded.mean("exclusive"))

    def shown(self, rows: NDArray[Any]) -> list[Picture]:
        """Returns stored rows as the model sees them."""
        return list(to_pictures(to_inputs(rows, self.trained.size))) if len(rows) else []

    def exclusive(self, positions: list[int]) -> torch.Tensor | None:
        """Returns (N, K, E) for the inputs at these positions; position and seed decide samples."""
        width = self.trained.network.exclusive_dim
        if not width:
            return None
        parts = []
        first, count = positions[0], positions[-1] - positions[0] + 1
        places = [position - first for position in positions]
        if self.samples:
            drawn = prior_samples(self.samples, count, width, self.seed, first=first)
            parts.append(drawn[places])
        if self.means is not None:
            parts.append(self.means[None].expand(len(positions), -1, -1))
        if self.partners is not None:
            read = self.partners.read(first, first + count)
            parts.append(self._encoded(read.rows[places])[:, None])
        return torch.cat(parts, dim=1)


def partners_of(
    paths: Sequence[str], count: int, target: Domain, shape: tuple[int, ...], *, split: str
) -> Inputs:
    """Returns the partners of the first `count` inputs, row by row.

    Raises:
        IiaeError: the inputs are no prepared file, or one whose rows are not aligned.
    """
    path = Path(paths[0])
    if not is_hdf5(path):
        raise IiaeError(
            "--guided needs partners, and pictures have none",
            "give a prepared .h5, or --reference PICTURE",
        )
    file = DataFile(path)
    if file.info.by_class or file.split(split).pairs is not None:
        raise IiaeError(
            f"rows of {path} have no partner of their own", "pass --reference PICTURE instead"
        )
    return open_inputs(paths, target, shape, split=split).first(count)
