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

import torch
import torchvision
from torch import nn

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
VERSIONS = {"torch": torch.__version__, "torchvision": torchvision.__version__}


@dataclass
class Networks:
    """How pictures become features."""

    options: PrepareOptions
    backbone: str
    weights: Weights  # to begin with
    kept: Path | None  # folder of networks that an earlier call fine-tuned, in place of `weights`
    tuning: FineTuning | None
    preprocessing: Preprocessing
    seen: Seen  # classes that the networks will have been trained on

    @property
    def inputs(self) -> Inputs:
        """How files become inputs of the networks."""
        device = torch.device(self.options.device)
        return Inputs(self.preprocessing, device, self.options.workers)

    def file(self, domain: Domain, work: Work) -> Path:
        """The file of a domain's fine-tuned network."""
        return (self.kept or work.folder) / f"{domain}.safetensors"

    def tune(self, train: Split, domain: Domain, work: Work) -> None:
        """Make a domain's fine-tuned network, where that is asked for and it is missing."""
        if self.tuning is None or self.file(domain, work).exists():
            return
        checkpoint = work.folder / f"{domain}-fine-tuning.safetensors"
        body, width = build_backbone(self.backbone, self.weights, self.options.seed)
        network = FeatureNetwork(body, width, seed=self.options.seed)
        side = train.side(domain)
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
            preprocessing=self.preprocessing,
            fine_tuning={**asdict(self.tuning), "accuracy": accuracy},
            seen=self.seen,
        )
        save_network(self.file(domain, work), network, domain, record)
        checkpoint.unlink(missing_ok=True)

    def network(self, domain: Domain, work: Work) -> nn.Module:
        """A domain's network; without fine-tuning both domains have the same."""
        if self.kept is not None or self.tuning is not None:
            network: nn.Module = load_network(self.file(domain, work), domain)
        else:
            network, _ = build_backbone(self.backbone, self.weights, self.options.seed)
        return network.to(self.options.device).eval()

    def described(self) -> dict[str, Any]:
        """Weights as the data file describes them."""
        if self.kept is None:
            return self.weights.to_json()
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
            **self.described(),
            "layer": "linear on the penultimate layer" if tuned else "penultimate layer",
            "width": width,
            "preprocessing": {
                "size": list(backbones.INPUT_SIZE),
                "resize": "area where that shrinks, bicubic where it enlarges",
                **asdict(self.preprocessing),
            },
            "fine_tuning": tuned,
            "versions": VERSIONS,
        }


def choose_networks(options: PrepareOptions, train: Split, epochs: int) -> Networks:
    """Decide how pictures become features; `epochs` of fine-tuning unless the user says."""
    folder = Path(options.backbone_weights or "none")
    if options.backbone_weights != "none" and folder.is_dir():
        return _kept_networks(folder, options)
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
    preprocessing = _preprocessing(options, Preprocessing())
    return Networks(options, name, weights, None, tuning, preprocessing, seen)


def _kept_networks(folder: Path, options: PrepareOptions) -> Networks:
    """Use networks that an earlier call fine-tuned, as they are."""
    x, y = (read_record(folder / f"{domain}.safetensors", domain) for domain in DOMAINS)
    other = options.backbone not in (None, x.backbone) or y.backbone != x.backbone
    if other or options.fine_tune_epochs or options.save_backbone is not None:
        raise IiaeError(
            f"{folder} holds networks of {x.backbone} and {y.backbone}, fine-tuned already",
            "leave --backbone, --fine-tune-epochs and --save-backbone out",
        )
    preprocessing = _preprocessing(options, x.preprocessing)
    if preprocessing != x.preprocessing:
        console.warn(
            f"pictures are prepared in another way than {folder} was fine-tuned with; "
            "the data file says both"
        )
    seen = Seen(x.seen.and_also(y.seen.classes).classes, x.seen.complete and y.seen.complete)
    return Networks(options, x.backbone, Weights("random"), folder, None, preprocessing, seen)


def _preprocessing(options: PrepareOptions, default: Preprocessing) -> Preprocessing:
    given = {"invert_sketches": options.invert_sketches, "normalise": options.normalise}
    return replace(default, **{name: value for name, value in given.items() if value is not None})


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
    values = [networks.backbone, networks.described(), options.seed, VERSIONS]
    values.append(asdict(networks.preprocessing))
    maker = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def reading(name: str, domain: Domain) -> Reading:
        def make(blocks: Sequence[Sequence[Path]], work: Work) -> Iterator[Sequence[Made]]:
            networks.tune(divided["train"], domain, work)
            network = networks.network(domain, work)
            for errors, pictures in networks.inputs.of(blocks, domain):
                features = iter(_features(network, pictures)) if len(pictures) else iter(())
                yield [error or (next(features),) for error in errors]

        files = divided[name].side(domain).rows.tolist()
        verb = "extracting features of"
        return Reading(f"{name}/{domain}", files, make, options.batch_size, verb, maker)

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits = {}
        for name, split in divided.items():
            sides = {}
            for domain in DOMAINS:
                side, part = split.side(domain), rows[f"{name}/{domain}"]
                if not part.rows:
                    raise IiaeError(
                        f"no picture of {name}/{domain} can be read",
                        f"check {side.rows[0]} and the others",
                    )
                sides[domain] = replace(side.take(part.places), rows=part.rows[0])
            splits[name] = Split(sides["x"], sides["y"])
        if options.save_backbone is not None:
            for domain in DOMAINS:
                with writing(options.save_backbone / f"{domain}.safetensors") as temporary:
                    shutil.copyfile(networks.file(domain, work), temporary)
        return finish(
            splits,
            options,
            split_name=split_name,
            backbone=networks.record(splits["train"].x.rows.shape[1], work),
            seen=networks.seen,
            what=origin,
        )

    whole = IiaeError(
        "fine-tuning looks at all training pictures, of which a shard has a part",
        "fine-tune in one call with --save-backbone DIR, and pass every shard "
        "--backbone-weights DIR; or pass --fine-tune-epochs 0",
    )
    # One domain after the other, as each may have a network of its own.
    readings = [reading(name, domain) for domain in DOMAINS for name in divided]
    return Plan(assemble, readings, skipped=skipped, whole=whole if networks.tuning else None)


@torch.inference_mode()
def _features(network: nn.Module, inputs: torch.Tensor) -> Any:
    """Features (B, D) of a batch."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return network(inputs).float().cpu().numpy()
