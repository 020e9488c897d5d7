"""A fine-tuned domain's network, and the file that keeps it: weights, and in the header what they were trained on.

A folder of two such files, `x.safetensors` and `y.safetensors`, is what `--save-backbone` writes and
`--backbone-weights` takes. The header names the classes that were seen, so that a later use on another division of the
classes can be refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.common.tensors import read_header, read_tensors, save_tensors
from iiae_cli.data.backbone import (
    NETWORK_SCHEMA,
    Preprocessing,
    Weights,
    build_backbone,
    check_name,
)
from iiae_cli.data.datafile import sha256_of
from iiae_cli.data.leaks import Seen
from iiae_cli.model import DOMAINS, Domain

FEATURES = 512


class FeatureNetwork(nn.Module):
    """Backbone → linear `width`, no activation: pictures (B, 3, 224, 224) to signed features (B, width).

    Args:
        body: the backbone up to its feature layer.
        body_width: of that layer.
        width: of the features.
        seed: of the linear layer.
    """

    def __init__(
        self, body: nn.Module, body_width: int, width: int = FEATURES, seed: int = 0
    ) -> None:
        super().__init__()
        self.body = body
        self.width = width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Linear(body_width, width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features (B, width)."""
        features: Tensor = self.embed(self.body(pictures))
        return features


@dataclass(frozen=True)
class NetworkRecord:
    """What a kept network says of itself.

    Attributes:
        backbone: torchvision's name.
        weights: what fine-tuning began with: `weights`, `weights_file`, `weights_sha256`.
        preprocessing: of the pictures it was fine-tuned on.
        fine_tuning: settings, and `accuracy` on the training pictures of this domain.
        seen: classes that it was trained on.
    """

    backbone: str
    weights: dict[str, Any]
    preprocessing: Preprocessing
    fine_tuning: dict[str, Any]
    seen: Seen


def save_network(
    path: Path, network: FeatureNetwork, domain: Domain, record: NetworkRecord
) -> None:
    """Write a network, atomically."""
    header = {
        "schema": NETWORK_SCHEMA,
        "domain": domain,
        "backbone": record.backbone,
        "weights": json.dumps(record.weights),
        "preprocessing": json.dumps(asdict(record.preprocessing)),
        "fine_tuning": json.dumps(record.fine_tuning),
        **{key: json.dumps(value) for key, value in record.seen.to_json().items()},
    }
    state = {
        name: values.detach().cpu().contiguous() for name, values in network.state_dict().items()
    }
    with writing(path) as temporary:
        save_tensors(state, temporary, header)


@dataclass(frozen=True)
class SavedNetwork:
    """A kept network's file, its SHA-256 and its record."""

    path: Path
    sha256: str
    record: NetworkRecord


def find_networks(folder: Path) -> dict[Domain, SavedNetwork]:
    """The networks of both domains in a folder, their weights not yet loaded.

    Raises:
        IiaeError: one is missing, damaged, or they are of different kinds.
    """
    found: dict[Domain, SavedNetwork] = {}
    for domain in DOMAINS:
        path = folder / f"{domain}.safetensors"
        record = read_record(path, domain)
        found[domain] = SavedNetwork(path, sha256_of(path), record)
    first, second = (found[domain].record for domain in DOMAINS)
    if (first.backbone, first.preprocessing) != (second.backbone, second.preprocessing):
        raise IiaeError(
            f"{folder} holds networks that differ in more than their weights", _remedy()
        )
    return found


def read_record(path: Path, domain: Domain) -> NetworkRecord:
    """What a kept network says of itself.

    Raises:
        IiaeError: missing, damaged, of the other domain, or not ours.
    """
    header = read_header(path, NETWORK_SCHEMA, _remedy())
    if header.get("domain") != domain:
        raise IiaeError(f"{path} is the network of domain {header.get('domain', '?')}", _remedy())
    try:
        record = NetworkRecord(
            backbone=header["backbone"],
            weights=json.loads(header["weights"]),
            preprocessing=Preprocessing(**json.loads(header["preprocessing"])),
            fine_tuning=json.loads(header["fine_tuning"]),
            seen=Seen.of_header(header),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IiaeError(f"{path} has a damaged header: {error}", _remedy()) from error
    check_name(record.backbone)
    return record


def load_network(path: Path, domain: Domain) -> FeatureNetwork:
    """A kept network, in evaluation mode.

    Raises:
        IiaeError: as `read_record`; or its weights do not fit.
    """
    record = read_record(path, domain)
    _, state = read_tensors(path, NETWORK_SCHEMA, _remedy())
    body, body_width = build_backbone(record.backbone, Weights(record.weights["weights"]))
    width = state["embed.weight"].shape[0] if "embed.weight" in state else FEATURES
    network = FeatureNetwork(body, body_width, width)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise IiaeError(
            f"{path} does not hold the weights of its {record.backbone}", _remedy()
        ) from error
    return network.eval()


def _remedy() -> str:
    return "name a folder that 'iiae prepare sketchy … --save-backbone DIR' wrote"
