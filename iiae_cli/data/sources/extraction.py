"""Plans features of pictures of classes or pairs: networks, fine-tuning, extraction.

Everything is decided before any work, so that a leak is refused at once. Fine-tuning only ever sees
training pictures. A batch of pictures is a block of the plan.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import sha256_of, writing
from iiae_cli.data.backbone import (
    Extractor,
    FeatureNetwork,
    NetworkRecord,
    Preprocessing,
    Weights,
    build_backbone,
    find_weights,
    full_name,
    load_network,
    read_record,
    save_network,
)
from iiae_cli.data.datafile import Seen, Split, refuse_leak
from iiae_cli.data.finetune import FineTuning, fine_tune
from iiae_cli.data.hubs import Pool
from iiae_cli.data.sources.features import classes_of, describe
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Read, Reader, Work
from iiae_cli.model import DOMAINS, Domain

DEFAULT_BACKBONE = "vgg16"


@dataclass
class Networks:
    """The networks that turn pictures into features, and their settings."""

    options: PrepareOptions
    backbone: str  # its full name
    pool: Pool
    weights: Weights  # to begin with
    preprocessing: Preprocessing
    seen: Seen  # classes in the networks' training
    kept: Path | None = None  # folder of networks fine-tuned earlier, instead of `weights`
    tuning: FineTuning | None = None
    train: Split | None = None  # files to fine-tune on

    def reader(self) -> Reader:
        """Returns the reader of features, a batch per block; it fine-tunes first."""
        described = json.dumps(self._described(self.kept), sort_keys=True)
        weights = hashlib.sha256(described.encode()).hexdigest()[:16]
        size = self.options.batch_size
        return Reader(self.read, size, verb="extracting features of", weights=weights)

    def read(
        self, domain: Domain, blocks: Sequence[Sequence[Path]], work: Work
    ) -> Iterator[Sequence[Read]]:
        """Yields the features of a domain's pictures, block by block."""
        path = self._file(domain, work)
        if self.tuning is not None and not path.exists():
            self._tune(domain, path, work)
        network: torch.nn.Module
        if self.kept is not None or self.tuning is not None:
            network = load_network(path, domain)
        else:  # both domains share it
            network, _ = build_backbone(self.backbone, self.weights, self.options.seed, self.pool)
        yield from self._extractor(network, domain).features(blocks)

    def _file(self, domain: Domain, work: Work) -> Path:
        return (self.kept or work.folder) / f"{domain}.safetensors"

    def _tune(self, domain: Domain, path: Path, work: Work) -> None:
        assert self.tuning is not None and self.train is not None
        body, width = build_backbone(self.backbone, self.weights, self.options.seed, self.pool)
        network = FeatureNetwork(body, width, seed=self.options.seed)
        checkpoint = work.folder / f"{domain}-fine-tuning.safetensors"
        side = self.train.side(domain)
        accuracy = fine_tune(
            self._extractor(network, domain),
            side.rows.tolist(),
            side.labels or [],
            settings=self.tuning,
            checkpoint=checkpoint,
            stop=work.stop,
        )
        record = NetworkRecord(
            backbone=self.backbone,
            pool=self.pool,
            weights=self.weights.to_json(),
            preprocessing=self.preprocessing,
            fine_tuning={**asdict(self.tuning), "accuracy": accuracy},
            seen=self.seen,
        )
        save_network(path, network, domain, record)
        checkpoint.unlink(missing_ok=True)

    def _extractor(self, network: torch.nn.Module, domain: Domain) -> Extractor:
        device, workers = torch.device(self.options.device), self.options.workers
        return Extractor(self.backbone, self.preprocessing, network, domain, device, workers)

    def _described(self, folder: Path | None) -> dict[str, Any]:
        """Returns how features are made, by the weights or fine-tuned networks in a folder."""
        weights = self.weights.to_json()
        if folder is not None:
            files = {domain: folder / f"{domain}.safetensors" for domain in DOMAINS}
            weights = {
                "weights": "fine-tuned",
                "weights_file": {domain: path.name for domain, path in files.items()},
                "weights_sha256": {domain: sha256_of(path) for domain, path in files.items()},
                "trained_on": f"{self.weights.trained_on}, then the training classes",
            }
        return {
            "name": self.backbone,
            "pool": self.pool,
            **weights,
            "preprocessing": asdict(self.preprocessing),
            "seed": self.options.seed,
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        }

    def _keep(self, work: Work) -> Path | None:
        """Copies newly fine-tuned networks beside the data file, or to the user's folder."""
        if self.tuning is None:
            return self.kept
        folder = self.options.save_backbone or work.output.with_suffix(".backbone")
        for domain in DOMAINS:
            with writing(folder / f"{domain}.safetensors") as temporary:
                shutil.copyfile(self._file(domain, work), temporary)
        console.say(f"the fine-tuned networks are in {folder}: keep them with the data file")
        return folder

    def record(self, plan: Plan, work: Work) -> dict[str, Any]:
        """Returns the data file's record of how features were made."""
        tuned, folder = None, self._keep(work)
        if folder is not None:
            x, y = (read_record(folder / f"{domain}.safetensors", domain) for domain in DOMAINS)
            tuned = {
                **x.fine_tuning,
                "accuracy": {"x": x.fine_tuning["accuracy"], "y": y.fine_tuning["accuracy"]},
                "preprocessing": asdict(x.preprocessing),
                "from": x.weights,
            }
        path = folder or self.weights.path
        return {
            **self._described(folder),
            "weights_path": path and str(path.absolute()),
            "layer": "linear on the penultimate layer" if tuned else "penultimate layer",
            "width": next(iter(plan.splits.values())).x.rows.shape[1],
            "fine_tuning": tuned,
        }

    def finish_pairs(self, plan: Plan, work: Work) -> None:
        """Records the networks of a set of pairs."""
        record = {**self.record(plan, work), **self.seen.to_json()}
        plan.attributes["backbone"] = json.dumps(record)


def networks_for_pairs(options: PrepareOptions) -> Networks:
    """Chooses one network, as it is, for pictures of pairs."""
    tuned = options.fine_tune_epochs or options.save_backbone is not None
    if tuned or options.side_by_side or options.image_size is not None:
        raise IiaeError(
            "features of pairs come from whole pictures without fine-tuning",
            "leave --fine-tune-epochs, --save-backbone, --side-by-side and --image-size out",
        )
    return choose_networks(options, None, 0)


def choose_networks(options: PrepareOptions, train: Split | None, epochs: int) -> Networks:
    """Chooses networks; fine-tunes for `epochs` unless the user says otherwise."""
    folder = Path(options.backbone_weights or "none")
    if options.backbone_weights != "none" and folder.is_dir():
        return _kept_networks(folder, options)
    name, pool = full_name(options.backbone or DEFAULT_BACKBONE), options.pool or "pooled"
    weights = find_weights(name, options.backbone_weights, download=options.download)
    if weights.kind == "random":
        console.warn(f"{name} has random weights: for trying things out, not for figures")
    wanted = epochs if options.fine_tune_epochs is None else options.fine_tune_epochs
    tuning = FineTuning(wanted, options.seed) if wanted else None
    if tuning is None and options.save_backbone is not None:
        raise IiaeError(
            "--save-backbone has nothing to save without fine-tuning", "add --fine-tune-epochs 10"
        )
    seen = weights.seen.and_also(classes_of(train) if tuning else ())
    preprocessing = _preprocessing(options, Preprocessing.of(name))
    return Networks(options, name, pool, weights, preprocessing, seen, tuning=tuning, train=train)


def _kept_networks(folder: Path, options: PrepareOptions) -> Networks:
    """Chooses networks that an earlier call fine-tuned, as they are."""
    x, y = (read_record(folder / f"{domain}.safetensors", domain) for domain in DOMAINS)
    named = options.backbone and full_name(options.backbone)
    other = named not in (None, x.backbone) or y.backbone != x.backbone or options.pool
    if other or options.fine_tune_epochs or options.save_backbone is not None:
        raise IiaeError(
            f"{folder} holds networks of {x.backbone} and {y.backbone}, fine-tuned already",
            "leave --backbone, --pool, --fine-tune-epochs and --save-backbone out",
        )
    preprocessing = _preprocessing(options, x.preprocessing)
    seen = Seen(x.seen.and_also(y.seen.classes).classes, x.seen.complete and y.seen.complete)
    begun = Weights("random", trained_on=str(x.weights.get("trained_on")))
    return Networks(options, x.backbone, x.pool, begun, preprocessing, seen, kept=folder)


def _preprocessing(options: PrepareOptions, default: Preprocessing) -> Preprocessing:
    switches = {"invert_sketches": options.invert_sketches, "normalise": options.normalise}
    given: dict[str, Any] = {name: on for name, on in switches.items() if on is not None}
    return replace(default, **given)


def plan_features(
    divided: dict[str, Split], options: PrepareOptions, *, split_name: str, epochs: int
) -> Plan:
    """Plans the features of pictures, whose files are the rows of the `divided` splits.

    `epochs` is the default length of fine-tuning.
    """
    networks = choose_networks(options, divided["train"], epochs)
    origin = f"the backbone {options.backbone_weights or networks.backbone}"
    refuse_leak(networks.seen, classes_of(divided.get("test")), origin, options.allow_leak)

    def finish(plan: Plan, work: Work) -> None:
        for name, split in plan.splits.items():
            for domain in DOMAINS:
                if not len(split.side(domain)):
                    raise IiaeError(
                        f"no picture of {name}/{domain} can be read",
                        "the warnings above name every one, and say why",
                    )
        describe(
            plan,
            options,
            split_name=split_name,
            backbone=networks.record(plan, work),
            seen=networks.seen,
            what=origin,
        )

    plan = Plan(divided, reader=networks.reader(), by_class=True, finish=finish)
    if networks.tuning is not None:
        plan.whole = IiaeError(
            "fine-tuning needs all training pictures, and a shard has only some",
            "fine-tune in one call with --save-backbone DIR, and pass every shard "
            "--backbone-weights DIR; or pass --fine-tune-epochs 0",
        )
    return plan
