"""What will turn pictures into features: backbone, weights, fine-tuning, preprocessing, decided before any work.

Deciding first lets a leak be refused at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.backbone import INPUT_SIZE, Preprocessing, Weights, find_weights
from iiae_cli.data.feature_network import NetworkRecord, SavedNetwork, find_networks
from iiae_cli.data.feature_options import FeatureOptions
from iiae_cli.data.finetune import FineTuning
from iiae_cli.data.leaks import Seen
from iiae_cli.model import Domain

DEFAULT_BACKBONE = "vgg16"


@dataclass(frozen=True)
class Plan:
    """Everything decided before work begins.

    Attributes:
        backbone: torchvision's name.
        weights: to begin with; None where kept networks are used.
        kept: networks that an earlier call fine-tuned; empty where there are none.
        tuning: None: no fine-tuning.
        preprocessing: of pictures.
        seen: classes that the networks will have been trained on.
        seed: of new layers, batches, dropout, random weights.
        origin: the backbone, for an error.
    """

    backbone: str
    weights: Weights | None
    kept: dict[Domain, SavedNetwork]
    tuning: FineTuning | None
    preprocessing: Preprocessing
    seen: Seen
    seed: int
    origin: str

    def record(self, width: int, records: dict[Domain, NetworkRecord]) -> dict[str, Any]:
        """How features came about, for the data file.

        Args:
            width: of the features.
            records: of fine-tuned networks; empty where there are none.
        """
        tuned = None
        if records:
            both = {domain: one.fine_tuning for domain, one in records.items()}
            shared = {key: value for key, value in both["x"].items() if key != "accuracy"}
            tuned = {
                **shared,
                "accuracy": {domain: one["accuracy"] for domain, one in both.items()},
                "preprocessing": asdict(records["x"].preprocessing),
                "from": records["x"].weights,
            }
        return {
            "name": self.backbone,
            **self._weights(),
            "layer": "linear on the penultimate layer" if records else "penultimate layer",
            "width": width,
            "preprocessing": {
                "size": list(INPUT_SIZE),
                "resize": "area where that shrinks, bicubic where it enlarges",
                **asdict(self.preprocessing),
            },
            "fine_tuning": tuned,
            "versions": _versions(),
        }

    def identity(self) -> str:
        """16 hex digits over everything that features of a picture depend on."""
        told = [self.backbone, self._weights(), self.seed, asdict(self.preprocessing), _versions()]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _weights(self) -> dict[str, Any]:
        if self.weights is not None:
            return self.weights.to_json()
        return {
            "weights": "fine-tuned",
            "weights_file": {domain: one.path.name for domain, one in self.kept.items()},
            "weights_sha256": {domain: one.sha256 for domain, one in self.kept.items()},
        }


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "torchvision": torchvision.__version__}


def plan_backbone(
    options: FeatureOptions, train_classes: Iterable[str], *, epochs: int, seed: int, download: bool
) -> Plan:
    """Decide how pictures become features.

    Args:
        options: what the user said.
        train_classes: that fine-tuning will see.
        epochs: of fine-tuning where the user did not say.
        seed: of everything drawn.
        download: whether published weights may be fetched.

    Raises:
        IiaeError: weights that are missing or damaged, or options that exclude each other.
    """
    given = options.backbone_weights
    if given is not None and given != "none" and Path(given).is_dir():
        return _plan_of_kept(Path(given), options, seed)
    name = options.backbone or DEFAULT_BACKBONE
    weights = find_weights(name, given, download=download)
    if weights.kind == "random":
        console.warn(f"{name} has random weights: for trying things out, not for figures")
    wanted = epochs if options.fine_tune_epochs is None else options.fine_tune_epochs
    tuning = FineTuning(wanted, seed) if wanted else None
    if tuning is None and options.save_backbone is not None:
        raise IiaeError(
            "--save-backbone has nothing to save without fine-tuning", "add --fine-tune-epochs 10"
        )
    seen = weights.seen if tuning is None else weights.seen.and_also(train_classes)
    preprocessing = _preprocessing(options, Preprocessing())
    return Plan(
        name, weights, {}, tuning, preprocessing, seen, seed, f"the backbone {given or name}"
    )


def _plan_of_kept(folder: Path, options: FeatureOptions, seed: int) -> Plan:
    """Networks that an earlier call fine-tuned, as they are."""
    kept = find_networks(folder)
    record = kept["x"].record
    if options.backbone is not None and options.backbone != record.backbone:
        raise IiaeError(
            f"{folder} holds networks of {record.backbone}, not {options.backbone}",
            "leave --backbone out",
        )
    if options.fine_tune_epochs or options.save_backbone is not None:
        raise IiaeError(
            f"the networks in {folder} are fine-tuned already",
            "leave --fine-tune-epochs and --save-backbone out",
        )
    preprocessing = _preprocessing(options, record.preprocessing)
    if preprocessing != record.preprocessing:
        console.warn(
            f"pictures are prepared in another way than {folder} was fine-tuned with; the data file says both"
        )
    other = kept["y"].record.seen
    seen = Seen(
        record.seen.and_also(other.classes).classes, record.seen.complete and other.complete
    )
    return Plan(
        record.backbone, None, kept, None, preprocessing, seen, seed, f"the backbone in {folder}"
    )


def _preprocessing(options: FeatureOptions, default: Preprocessing) -> Preprocessing:
    invert, normalise = options.invert_sketches, options.normalise
    return Preprocessing(
        default.invert_sketches if invert is None else invert,
        default.normalise if normalise is None else normalise,
    )
