"""Plans features of pictures of classes or pairs: networks, fine-tuning, extraction.

Everything is decided before any work, so that a leak is refused at once. Fine-tuning only ever sees
training pictures, and each domain has its own network. A batch of pictures is a block of the plan.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from iiae_cli.common import console
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.common.files import reading, writing
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.data import backbone
from iiae_cli.data.backbone import Extractor, FeatureNetwork, Preprocessing, Weights
from iiae_cli.data.datafile import Seen, Side, Split, refuse_leak
from iiae_cli.data.hubs import Pool, published
from iiae_cli.data.sources.features import describe, limited
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Read, Reader, Work
from iiae_cli.model import DOMAINS, Domain

CHECKPOINT_SCHEMA = "iiae.fine-tuning/3"
DEFAULT_BACKBONE = "vgg16"


# ---- networks, and the rows that they make


@dataclass(frozen=True)
class Networks:
    """The networks that turn pictures into features, and their settings."""

    options: PrepareOptions
    name: str  # of the backbone, in full
    pool: Pool
    weights: Weights
    preprocessing: Preprocessing
    seen: Seen  # classes in the networks' training
    tuning: FineTuning | None = None  # of `weights`, before anything is read
    train: Split | None = None  # files to fine-tune on

    def join(self, plan: Plan) -> None:
        """Makes a plan read features, a batch per block, and states what decides them."""
        plan.reader = Reader(self.read, self.options.batch_size, "extracting features of")
        decides = {**self._described(self.weights), "weights_path": None}
        plan.attributes["backbone"] = json.dumps(decides)

    def read(
        self, domain: Domain, blocks: Sequence[Sequence[Path]], work: Work
    ) -> Iterator[Sequence[Read]]:
        """Yields the features of a domain's pictures, block by block."""
        weights, device = self.weights, torch.device(self.options.device)
        if self.tuning is not None:
            for tuned in DOMAINS:
                if not backbone.network_file(work.folder, tuned).exists():
                    self._tune(self.tuning, tuned, device, work)
            weights = Weights.fine_tuned(work.folder, weights.trained_on)
        record, workers = self._described(weights), self.options.workers
        extractor = backbone.recorded_extractor(record, domain, device, workers=workers)
        yield from extractor.features(blocks)

    def _tune(self, tuning: FineTuning, domain: Domain, device: torch.device, work: Work) -> None:
        assert self.train is not None
        body, width = backbone.build_backbone(self.name, self.weights, tuning.seed, self.pool)
        network, workers = FeatureNetwork(body, width, seed=tuning.seed), self.options.workers
        checkpoint = work.folder / f"{domain}-fine-tuning.safetensors"
        extractor = Extractor(self.name, self.preprocessing, network, domain, device, workers)
        fine_tune(extractor, self.train.side(domain), tuning, checkpoint, work.stop)
        before, made = self.weights.to_json(), asdict(tuning)
        record = backbone.NetworkRecord(
            self.name, self.pool, before, self.preprocessing, made, self.seen
        )
        backbone.save_network(work.folder, network, domain, record)
        checkpoint.unlink(missing_ok=True)

    def _described(self, weights: Weights) -> dict[str, Any]:
        """Returns what decides the features."""
        import torchvision  # takes seconds

        return {
            "name": self.name,
            "pool": self.pool,
            **weights.to_json(),
            "weights_path": weights.path and str(weights.path.absolute()),
            "preprocessing": asdict(self.preprocessing),
            "seed": self.options.seed,
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        }

    def record(self, plan: Plan, work: Work) -> dict[str, Any]:
        """Returns the data file's record of how features were made.

        Puts networks that were fine-tuned beside the data file, or where asked.
        """
        weights, tuned = self.weights, None
        if self.tuning is not None:
            folder = self.options.save_backbone or work.output.with_suffix(".backbone")
            for domain in DOMAINS:
                with writing(backbone.network_file(folder, domain)) as temporary:
                    shutil.copyfile(backbone.network_file(work.folder, domain), temporary)
            console.say(f"the fine-tuned networks are in {folder}: keep them with the data file")
            weights = Weights.fine_tuned(folder, weights.trained_on)
        if weights.kind == "fine-tuned" and weights.path is not None:
            kept = backbone.read_record(weights.path, "x")
            before = {"preprocessing": asdict(kept.preprocessing), "from": kept.weights}
            tuned = kept.fine_tuning | before
        return {
            **self._described(weights),
            "layer": "linear on the penultimate layer" if tuned else "penultimate layer",
            "width": next(iter(plan.splits.values())).x.rows.shape[1],
            "fine_tuning": tuned,
        }


def choose_networks(options: PrepareOptions, train: Split | None, epochs: int) -> Networks:
    """Chooses networks; fine-tunes for `epochs` unless the user says otherwise."""
    folder = Path(options.backbone_weights or "none")
    if options.backbone_weights != "none" and folder.is_dir():
        return _kept_networks(folder, options)
    known = published(options.backbone or DEFAULT_BACKBONE)
    weights = backbone.find_weights(known.name, options.backbone_weights, download=options.download)
    if weights.kind == "random":
        console.warn(f"{known.name} has random weights: for trying things out, not for figures")
    wanted = epochs if options.fine_tune_epochs is None else options.fine_tune_epochs
    tuning = FineTuning(wanted, options.seed) if wanted else None
    if tuning is None and options.save_backbone is not None:
        raise IiaeError(
            "--save-backbone has nothing to save without fine-tuning", "add --fine-tune-epochs 10"
        )
    seen = weights.seen.and_also(train.classes if tuning and train else ())
    preprocessing = _switched(Preprocessing(configuration=known.transform), options)
    pool = options.pool or "pooled"
    return Networks(options, known.name, pool, weights, preprocessing, seen, tuning, train)


def _kept_networks(folder: Path, options: PrepareOptions) -> Networks:
    """Chooses networks that an earlier call fine-tuned, as they are."""
    x, y = (backbone.read_record(folder, domain) for domain in DOMAINS)
    names = {x.backbone, y.backbone, published(options.backbone or x.backbone).name}
    if len(names) > 1 or options.pool or options.fine_tune_epochs or options.save_backbone:
        raise IiaeError(
            f"{folder} holds networks of {x.backbone} and {y.backbone}, fine-tuned already",
            "leave --backbone, --pool, --fine-tune-epochs and --save-backbone out",
        )
    seen = Seen(x.seen.and_also(y.seen.classes).classes, x.seen.complete and y.seen.complete)
    weights = Weights.fine_tuned(folder, str(x.weights.get("trained_on")))
    preprocessing = _switched(x.preprocessing, options)
    return Networks(options, x.backbone, x.pool, weights, preprocessing, seen)


def _switched(default: Preprocessing, options: PrepareOptions) -> Preprocessing:
    switches = {"invert_sketches": options.invert_sketches, "normalise": options.normalise}
    given: dict[str, Any] = {name: on for name, on in switches.items() if on is not None}
    return replace(default, **given)


def plan_features(
    divided: dict[str, Split], options: PrepareOptions, *, split_name: str, epochs: int
) -> Plan:
    """Plans the features of pictures, whose files are the rows of the `divided` splits.

    `epochs` is the default length of fine-tuning.
    """
    splits = limited(divided, options.limit)
    networks = choose_networks(options, splits["train"], epochs)
    origin = f"the backbone {options.backbone_weights or networks.name}"
    if "test" in splits:
        refuse_leak(networks.seen, splits["test"].classes, origin, options.allow_leak)

    def finish(plan: Plan, work: Work) -> None:
        for name, split in plan.splits.items():
            for domain in DOMAINS:
                if not len(split.side(domain)):
                    hint = "the warnings above name every one, and say why"
                    raise IiaeError(f"no picture of {name}/{domain} can be read", hint)
        describe(plan, split_name, networks.record(plan, work), networks.seen, origin)

    plan = Plan(splits, by_class=True, finish=finish)
    networks.join(plan)
    if networks.tuning is not None:
        plan.whole = IiaeError(
            "fine-tuning needs all training pictures, and a shard has only some",
            "fine-tune in one call with --save-backbone DIR, and pass every shard "
            "--backbone-weights DIR; or pass --fine-tune-epochs 0",
        )
    return plan


# ---- fine-tuning, by the recipe of the Sketchy features: backbone → linear 512, no activation (the
# features, signed) → linear classifier; cross-entropy, SGD with momentum, a rate that falls
# linearly to 0, batches that draw every class equally often.


@dataclass(frozen=True)
class FineTuning:
    """The settings of fine-tuning."""

    epochs: int  # in one, as many pictures are drawn as the domain has for training
    seed: int = 0  # of new layers, batches and dropout
    batch_size: int = 64
    learning_rate: float = 0.01  # at the first step; falls linearly to 0
    momentum: float = 0.9


def fine_tune(
    extractor: Extractor, side: Side, settings: FineTuning, checkpoint: Path, stop: Stop = NEVER
) -> None:
    """Fine-tunes a network, in place, to classify the files of a side.

    Unreadable pictures are left out of their batch. The checkpoint is written after every epoch and
    at a stop; continued from it, fine-tuning ends in the same weights.
    """
    network, device = extractor.network, extractor.device
    assert isinstance(network, FeatureNetwork)
    targets = torch.from_numpy(np.unique(np.array(side.labels), return_inverse=True)[1])
    classes = torch.bincount(targets)
    chances = (1 / classes / len(classes))[targets].double().numpy()
    per_epoch = math.ceil(len(side) / settings.batch_size)
    steps = per_epoch * settings.epochs
    rng = np.random.default_rng((settings.seed, DOMAINS.index(extractor.domain)))
    batches = rng.choice(len(side), (steps, settings.batch_size), p=chances / chances.sum())
    seeds = rng.integers(2**32, size=steps + 1).tolist()  # of every step's dropout
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        backbone.repeatable(),
        console.progress(f"fine-tuning {extractor.domain}", steps) as progress,
    ):
        torch.manual_seed(seeds.pop())
        classifier = nn.Linear(network.width, len(classes))
        model = nn.ModuleDict({"network": network, "classifier": classifier}).to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), momentum=settings.momentum)
        begun = _restore(checkpoint, model, optimizer) if checkpoint.exists() else 0
        progress.start_at(begun)
        sources = (side.rows[rows].tolist() for rows in batches[begun:])
        with closing(extractor.inputs(sources)) as decoded:  # ends its threads on an error
            for step, (errors, pictures) in enumerate(decoded, begun):
                torch.manual_seed(seeds[step])
                readable = [error is None for error in errors]
                if len(pictures) > 1:  # batch norm needs two
                    optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / steps)
                    logits = classifier(network(pictures))
                    wanted = targets[batches[step][readable]].to(device)
                    loss = F.cross_entropy(logits, wanted)
                    if not loss.isfinite():
                        message = (
                            f"fine-tuning of domain {extractor.domain} diverged at step {step}"
                        )
                        raise IiaeError(message, "check the weights, or pass --fine-tune-epochs 0")
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    progress.facts["loss"] = f"{float(loss.detach()):.3f}"
                progress.update(step + 1)
                stopping = stop.exit_code is not None
                if stopping or (step + 1) % per_epoch == 0:
                    _save(checkpoint, model, optimizer, step + 1)
                if stopping:
                    stop.check(f"fine-tuning of {extractor.domain} is saved at step {step + 1}")


def _save(path: Path, model: nn.Module, optimizer: torch.optim.SGD, step: int) -> None:
    momenta = {
        f"momentum.{name}": optimizer.state[values]["momentum_buffer"]
        for name, values in model.named_parameters()
        if values in optimizer.state
    }
    header = {"schema": CHECKPOINT_SCHEMA, "step": str(step)}
    save_tensors({**model.state_dict(), **momenta}, path, header)


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.SGD) -> int:
    """Restores what `_save` wrote; returns the step."""
    hint = f"delete {path} and run the same command again with --resume"
    header, tensors = read_tensors(path, CHECKPOINT_SCHEMA, hint)
    with reading(path, hint):
        for name, values in model.named_parameters():
            momentum = tensors.pop(f"momentum.{name}", None)
            if momentum is not None:
                optimizer.state[values]["momentum_buffer"] = momentum.to(values.device)
        model.load_state_dict(tensors)
        return int(header["step"])
