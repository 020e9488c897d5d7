"""From pictures of classes to feature vectors: which networks, their fine-tuning, and extraction.

Everything is decided before any work, so that a leak is refused at once. Only training pictures are
ever shown to fine-tuning. A batch of pictures is a block of the plan.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import sha256_of, writing
from iiae_cli.data import backbone as backbones
from iiae_cli.data.backbone import Inputs, Preprocessing, Weights, build_backbone, find_weights
from iiae_cli.data.class_lists import Seen, refuse_leak
from iiae_cli.data.datafile import Split
from iiae_cli.data.finetune import (
    FeatureNetwork,
    FineTuning,
    NetworkRecord,
    fine_tune,
    load_network,
    read_record,
    save_network,
)
from iiae_cli.data.sources.features import classes_of, finish
from iiae_cli.data.sources.plan import Made, Plan, Prepared, PrepareOptions, Reading, ReadRows, Work
from iiae_cli.model import DOMAINS, Domain

DEFAULT_BACKBONE = "vgg16"


@dataclass
class Networks:
    """How pictures become features."""

    options: PrepareOptions
    train: Split  # files to fine-tune on
    backbone: str
    weights: Weights | None  # to begin with; None: those in `kept`
    kept: Path | None  # folder of networks that an earlier call fine-tuned
    tuning: FineTuning | None
    inputs: Inputs
    seen: Seen  # classes that the networks will have been trained on

    def file(self, domain: Domain, work: Work) -> Path:
        """The fine-tuned network of a domain, which is made where it is missing."""
        path = (self.kept or work.folder) / f"{domain}.safetensors"
        if self.kept is None and not path.exists():
            self._tune(domain, path, work)
        return path

    def _tune(self, domain: Domain, path: Path, work: Work) -> None:
        assert self.tuning is not None and self.weights is not None
        checkpoint = work.folder / f"{domain}-fine-tuning.safetensors"
        body, width = build_backbone(self.backbone, self.weights, self.options.seed)
        network = FeatureNetwork(body, width, seed=self.options.seed)
        side = self.train.side(domain)
        accuracy = fine_tune(
            network,
            side.rows.tolist(),
            side.labels or [],
            domain=domain,
            settings=self.tuning,
            inputs=self.inputs,
            checkpoint=checkpoint,
            stop=work.stop,
        )
        record = NetworkRecord(
            backbone=self.backbone,
            weights=self.weights.to_json(),
            preprocessing=self.inputs.preprocessing,
            fine_tuning={**asdict(self.tuning), "accuracy": accuracy},
            seen=self.seen,
        )
        save_network(path, network, domain, record)
        checkpoint.unlink(missing_ok=True)

    def _network(self, domain: Domain, work: Work) -> nn.Module:
        """A domain's network; without fine-tuning both domains have the same."""
        if self.kept is not None or self.tuning is not None:
            network: nn.Module = load_network(self.file(domain, work), domain)
        else:
            assert self.weights is not None
            network, _ = build_backbone(self.backbone, self.weights, self.options.seed)
        return network.to(self.options.device).eval()

    def reading(self, name: str, files: Sequence[Path], domain: Domain) -> Reading:
        """The features of pictures of a domain, a batch for a block."""

        def make(blocks: Sequence[Sequence[Path]], work: Work) -> Iterator[Sequence[Made]]:
            network = self._network(domain, work)
            inputs = self.inputs.of(blocks, domain)
            for block, (rows, ready, errors) in zip(blocks, inputs, strict=True):
                made: list[Made] = [()] * len(block)
                for error in errors:
                    made[block.index(error.path)] = error
                if len(rows):
                    for row, features in zip(rows, _features(network, ready), strict=True):
                        made[row] = (features,)
                yield made

        values = [self.backbone, self._described(), self.options.seed, _versions()]
        values.append(asdict(self.inputs.preprocessing))
        maker = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        return Reading(name, files, make, self.options.batch_size, "extracting features of", maker)

    def _described(self) -> dict[str, Any]:
        """Weights as the data file describes them."""
        if self.weights is not None:
            return self.weights.to_json()
        assert self.kept is not None
        files = {domain: self.kept / f"{domain}.safetensors" for domain in DOMAINS}
        return {
            "weights": "fine-tuned",
            "weights_file": {domain: path.name for domain, path in files.items()},
            "weights_sha256": {domain: sha256_of(path) for domain, path in files.items()},
        }

    def record(self, width: int, work: Work) -> dict[str, Any]:
        """How features of a width came about, for the data file."""
        tuned = None
        if self.kept is not None or self.tuning is not None:
            x, y = (read_record(self.file(domain, work), domain) for domain in DOMAINS)
            tuned = {
                **x.fine_tuning,
                "accuracy": {"x": x.fine_tuning["accuracy"], "y": y.fine_tuning["accuracy"]},
                "preprocessing": asdict(x.preprocessing),
                "from": x.weights,
            }
        return {
            "name": self.backbone,
            **self._described(),
            "layer": "linear on the penultimate layer" if tuned else "penultimate layer",
            "width": width,
            "preprocessing": {
                "size": list(backbones.INPUT_SIZE),
                "resize": "area where that shrinks, bicubic where it enlarges",
                **asdict(self.inputs.preprocessing),
            },
            "fine_tuning": tuned,
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "torchvision": torchvision.__version__}


def choose_networks(options: PrepareOptions, train: Split, epochs: int) -> Networks:
    """Decide how pictures become features; `epochs` of fine-tuning unless the user says."""
    folder = Path(options.backbone_weights or "none")
    if options.backbone_weights != "none" and folder.is_dir():
        return _kept_networks(folder, options, train)
    name = options.backbone or DEFAULT_BACKBONE
    weights = find_weights(name, options.backbone_weights, download=options.download)
    if weights.kind == "random":
        console.warn(f"{name} has random weights: for trying things out, not for figures")
    wanted = epochs if options.fine_tune_epochs is None else options.fine_tune_epochs
    tuning = FineTuning(wanted, options.seed) if wanted else None
    if tuning is None and options.save_backbone is not None:
        raise IiaeError(
            "--save-backbone has nothing to save without fine-tuning", "add --fine-tune-epochs 10"
        )
    seen = weights.seen if tuning is None else weights.seen.and_also(classes_of(train))
    return Networks(
        options, train, name, weights, None, tuning, _inputs(options, Preprocessing()), seen
    )


def _kept_networks(folder: Path, options: PrepareOptions, train: Split) -> Networks:
    """Use networks that an earlier call fine-tuned, as they are."""
    x, y = (read_record(folder / f"{domain}.safetensors", domain) for domain in DOMAINS)
    other = options.backbone not in (None, x.backbone) or y.backbone != x.backbone
    if other or options.fine_tune_epochs or options.save_backbone is not None:
        raise IiaeError(
            f"{folder} holds networks of {x.backbone} and {y.backbone}, fine-tuned already",
            "leave --backbone, --fine-tune-epochs and --save-backbone out",
        )
    inputs = _inputs(options, x.preprocessing)
    if inputs.preprocessing != x.preprocessing:
        console.warn(
            f"pictures are prepared in another way than {folder} was fine-tuned with; "
            "the data file says both"
        )
    seen = Seen(x.seen.and_also(y.seen.classes).classes, x.seen.complete and y.seen.complete)
    return Networks(options, train, x.backbone, None, folder, None, inputs, seen)


def _inputs(options: PrepareOptions, default: Preprocessing) -> Inputs:
    invert, normalise = options.invert_sketches, options.normalise
    preprocessing = Preprocessing(
        default.invert_sketches if invert is None else invert,
        default.normalise if normalise is None else normalise,
    )
    return Inputs(preprocessing, torch.device(options.device), options.workers)


def _features(network: nn.Module, inputs: Tensor) -> NDArray[np.float32]:
    """Features (B, D) of a batch."""
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        values: NDArray[np.float32] = network(inputs).float().cpu().numpy()
    return values


def plan_features(
    divided: Mapping[str, Split],
    options: PrepareOptions,
    *,
    split_name: str,
    epochs: int,
    skipped: Sequence[str],
) -> Plan:
    """Plan the features of pictures, which are the rows of the `divided` splits.

    `epochs`: of fine-tuning, unless the options say; `skipped`: what was left out so far.
    """
    networks = choose_networks(options, divided["train"], epochs)
    origin = f"the backbone {options.backbone_weights or networks.backbone}"
    refuse_leak(networks.seen, classes_of(divided.get("test")), origin, options.allow_leak)
    # One domain after the other, as each may have a network of its own.
    files = {
        f"{name}/{domain}": (split.side(domain), domain)
        for domain in DOMAINS
        for name, split in divided.items()
    }
    readings = [
        networks.reading(name, side.rows.tolist(), domain) for name, (side, domain) in files.items()
    ]

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        sides = {}
        for name, (side, _) in files.items():
            if not rows[name].rows:
                raise IiaeError(
                    f"no picture of {name} can be read", f"check {side.rows[0]} and the others"
                )
            sides[name] = replace(side.take(rows[name].places), rows=rows[name].rows[0])
        if options.save_backbone is not None:
            for domain in DOMAINS:
                with writing(options.save_backbone / f"{domain}.safetensors") as temporary:
                    shutil.copyfile(networks.file(domain, work), temporary)
        return finish(
            {name: Split(sides[f"{name}/x"], sides[f"{name}/y"]) for name in divided},
            options,
            split_name=split_name,
            backbone=networks.record(sides["train/x"].rows.shape[1], work),
            seen=networks.seen,
            what=origin,
        )

    whole = IiaeError(
        "fine-tuning looks at all training pictures, of which a shard has a part",
        "fine-tune in one call with --save-backbone DIR, and pass every shard "
        "--backbone-weights DIR; or pass --fine-tune-epochs 0",
    )
    return Plan(
        assemble, readings, skipped=skipped, whole=whole if networks.tuning is not None else None
    )
