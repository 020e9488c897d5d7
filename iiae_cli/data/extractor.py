"""Features of pictures, as a data file's attribute `backbone` says: in `prepare`, and ever after.

A data file and a run keep their backbone by reference: its name, pooling, preprocessing, and the
path and SHA-256 of its weights. Weights that moved are named by the user; others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import sha256_of
from iiae_cli.data.backbone import Inputs, Preprocessing, Weights, build_backbone
from iiae_cli.data.datafile import DataInfo
from iiae_cli.data.finetune import load_network
from iiae_cli.data.pictures import PictureError, Source
from iiae_cli.model import Domain

BATCH = 16  # pictures at once through the network of a run
_AGAIN = "make the data file again: iiae prepare NAME … --overwrite"
_DECIDING = ("name", "pool", "weights", "weights_sha256", "preprocessing", "seed")


@dataclass(frozen=True)
class Extractor:
    """A network, in evaluation mode on its device, and what reads pictures for it."""

    network: nn.Module
    inputs: Inputs
    domain: Domain

    def features(
        self, batches: Iterable[Sequence[Source]]
    ) -> Iterator[tuple[list[PictureError | None], NDArray[np.float32]]]:
        """Why each picture of a batch cannot be read, None where it can; the others' (M, D)."""
        with closing(self.inputs.of(batches, self.domain)) as decoded:
            for errors, pictures in decoded:
                yield errors, _features(self.network, pictures)


@torch.inference_mode()
def _features(network: nn.Module, pictures: Tensor) -> NDArray[np.float32]:
    """Features (M, D) of pictures; none of none."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        features: Tensor = network(pictures) if len(pictures) else pictures
        return features.float().cpu().numpy()


def backbone_of(info: DataInfo) -> dict[str, Any] | None:
    """What a data file says of its features' backbone; None if they were made elsewhere."""
    try:
        record = dict(json.loads(info.attributes.get("backbone", "{}")))
    except (ValueError, TypeError) as error:
        raise IiaeError(f"what {info.name} says of its backbone is damaged", _AGAIN) from error
    return record if record.get("weights_path") or record.get("weights") == "random" else None


def refuse_other_backbone(path: Path, given: DataInfo, trained_on: DataInfo) -> None:
    """Refuse a file whose features another backbone made than those of a model's data."""
    here, there = backbone_of(given), backbone_of(trained_on)
    if here is None or there is None:
        return
    different = [key for key in _DECIDING if here.get(key) != there.get(key)]
    if different:
        raise IiaeError(
            f"the features of {path} are of {here['name']}, the model's of {there['name']}: "
            f"{', '.join(different)} differ",
            "use features of the backbone that the run was trained on",
        )


def recorded_extractor(
    record: Mapping[str, Any],
    domain: Domain,
    device: torch.device | str,
    *,
    workers: int = 1,
    weights: str | None = None,
) -> Extractor:
    """The extractor that made the features of a domain; `weights`: where its weights lie now.

    Raises IiaeError if weights are missing, or others than those.
    """
    place = Path(weights or record["weights_path"] or "none")
    tuned = record["weights"] == "fine-tuned"
    path, wanted = place, record["weights_sha256"]
    if tuned:
        path, wanted = place / f"{domain}.safetensors", wanted[domain]
    if wanted is not None:
        _check_weights(path, wanted, str(record["name"]), folder=tuned)
    preprocessing = Preprocessing(**record["preprocessing"])
    if tuned:
        network: nn.Module = load_network(path, domain)
    else:
        kept = Weights("file", path) if wanted else Weights("random")
        network, _ = build_backbone(record["name"], kept, record["seed"], record["pool"])
    inputs = Inputs(str(record["name"]), preprocessing, torch.device(device), workers)
    return Extractor(network.to(device).eval(), inputs, domain)


def _check_weights(path: Path, wanted: str, name: str, *, folder: bool) -> None:
    takes = "DIR" if folder else "FILE"
    if not path.is_file():
        raise IiaeError(
            f"the weights of the run's backbone {name} are not at {path}",
            f"say where they lie: --backbone-weights {takes}",
        )
    found = sha256_of(path)
    if found != wanted:
        raise IiaeError(
            f"{path} holds other weights than the run's backbone {name} has: their SHA-256 begins "
            f"with {found[:12]}, not {wanted[:12]}",
            f"say where the run's own lie: --backbone-weights {takes}",
        )
