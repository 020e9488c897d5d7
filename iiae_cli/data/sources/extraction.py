"""Plans features of pictures of classes or pairs: networks, fine-tuning, extraction.

Everything is decided before any work, so that a leak is refused at once. Fine-tuning only ever sees
training pictures, and each domain has its own network. A batch of pictures is a block of the plan.
"""

from __future__ import annotations

import hashlib
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
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.common import console
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.common.files import writing
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.data import backbone
from iiae_cli.data.backbone import Extractor, FeatureNetwork, Preprocessing, Weights
from iiae_cli.data.datafile import Seen, Side, Split, refuse_leak
from iiae_cli.data.hubs import Pool, published
from iiae_cli.data.sources.features import classes_of, describe
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Read, Reader, Work
from iiae_cli.model import DOMAINS, Domain

CHECKPOINT_SCHEMA = "iiae.fine-tuning/3"
DEFAULT_BACKBONE = "vgg16"


# ---- networks, and the rows that they make


@dataclass
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

    def reader(self) -> Reader:
        """Returns the reader of features, a batch per block; it fine-tunes first."""
        described = json.dumps(self._described(self.weights), sort_keys=True)
        weights = hashlib.sha256(described.encode()).hexdigest()[:16]
        size = self.options.batch_size
        return Reader(self.read, size, verb="extracting features of", weights=weights)

    def read(
        self, domain: Domain, blocks: Sequence[Sequence[Path]], work: Work
    ) -> Iterator[Sequence[Read]]:
        """Yields the features of a domain's pictures, block by block."""
        weights = self.weights
        if self.tuning is not None:
            if not backbone.network_file(work.folder, domain).exists():
                self._tune(domain, work)
            weights = Weights("fine-tuned", work.folder)
        network = backbone.network_of(self.name, weights, domain, self.options.seed, self.pool)
        yield from self._extractor(network, domain).features(blocks)

    def _tune(self, domain: Domain, work: Work) -> None:
        assert self.tuning is not None and self.train is not None
        seed = self.options.seed
        body, width = backbone.build_backbone(self.name, self.weights, seed, self.pool)
        network = FeatureNetwork(body, width, seed=seed)
        checkpoint = work.folder / f"{domain}-fine-tuning.safetensors"
        extractor, side = self._extractor(network, domain), self.train.side(domain)
        accuracy = fine_tune(extractor, side, self.tuning, checkpoint, work.stop)
        tuning = {**asdict(self.tuning), "accuracy": accuracy}
        weights = self.weights.to_json()
        record = backbone.NetworkRecord(
            self.name, self.pool, weights, self.preprocessing, tuning, self.seen
        )
        backbone.save_network(work.folder, network, domain, record)
        checkpoint.unlink(missing_ok=True)

    def _extractor(self, network: nn.Module, domain: Domain) -> Extractor:
        device, workers = torch.device(self.options.device), self.options.workers
        return Extractor(self.name, self.preprocessing, network, domain, device, workers)

    def _described(self, weights: Weights) -> dict[str, Any]:
        """Returns what decides the features."""
        return {
            "name": self.name,
            "pool": self.pool,
            **weights.to_json(),
            "preprocessing": asdict(self.preprocessing),
            "seed": self.options.seed,
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        }

    def _kept(self, work: Work) -> Weights:
        """Returns the weights, after new ones are put beside the data file, or where asked."""
        if self.tuning is None:
            return self.weights
        folder = self.options.save_backbone or work.output.with_suffix(".backbone")
        for domain in DOMAINS:
            with writing(backbone.network_file(folder, domain)) as temporary:
                shutil.copyfile(backbone.network_file(work.folder, domain), temporary)
        console.say(f"the fine-tuned networks are in {folder}: keep them with the data file")
        return Weights.fine_tuned(folder, self.weights.trained_on)

    def record(self, plan: Plan, work: Work) -> dict[str, Any]:
        """Returns the data file's record of how features were made."""
        weights, tuned = self._kept(work), None
        if weights.kind == "fine-tuned" and weights.path is not None:
            x, y = (backbone.read_record(weights.path, domain) for domain in DOMAINS)
            tuned = {
                **x.fine_tuning,
                "accuracy": {"x": x.fine_tuning["accuracy"], "y": y.fine_tuning["accuracy"]},
                "preprocessing": asdict(x.preprocessing),
                "from": x.weights,
            }
        return {
            **self._described(weights),
            "weights_path": weights.path and str(weights.path.absolute()),
            "layer": "linear on the penultimate layer" if tuned else "penultimate layer",
            "width": next(iter(plan.splits.values())).x.rows.shape[1],
            "fine_tuning": tuned,
        }


def choose_networks(options: PrepareOptions, train: Split | None, epochs: int) -> Networks:
    """Chooses networks; fine-tunes for `epochs` unless the user says otherwise."""
    folder = Path(options.backbone_weights or "none")
    if options.backbone_weights != "none" and folder.is_dir():
        return _kept_networks(folder, options)
    known, pool = published(options.backbone or DEFAULT_BACKBONE), options.pool or "pooled"
    name, own = known.name, Preprocessing(configuration=known.transform)
    weights = backbone.find_weights(name, options.backbone_weights, download=options.download)
    if weights.kind == "random":
        console.warn(f"{name} has random weights: for trying things out, not for figures")
    wanted = epochs if options.fine_tune_epochs is None else options.fine_tune_epochs
    tuning = FineTuning(wanted, options.seed) if wanted else None
    if tuning is None and options.save_backbone is not None:
        raise IiaeError(
            "--save-backbone has nothing to save without fine-tuning", "add --fine-tune-epochs 10"
        )
    seen = weights.seen.and_also(classes_of(train) if tuning else ())
    return Networks(options, name, pool, weights, _preprocessing(options, own), seen, tuning, train)


def _kept_networks(folder: Path, options: PrepareOptions) -> Networks:
    """Chooses networks that an earlier call fine-tuned, as they are."""
    x, y = (backbone.read_record(folder, domain) for domain in DOMAINS)
    named = options.backbone and published(options.backbone).name
    other = named not in (None, x.backbone) or y.backbone != x.backbone or options.pool
    if other or options.fine_tune_epochs or options.save_backbone is not None:
        raise IiaeError(
            f"{folder} holds networks of {x.backbone} and {y.backbone}, fine-tuned already",
            "leave --backbone, --pool, --fine-tune-epochs and --save-backbone out",
        )
    preprocessing = _preprocessing(options, x.preprocessing)
    seen = Seen(x.seen.and_also(y.seen.classes).classes, x.seen.complete and y.seen.complete)
    weights = Weights.fine_tuned(folder, str(x.weights.get("trained_on")))
    return Networks(options, x.backbone, x.pool, weights, preprocessing, seen)


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
    origin = f"the backbone {options.backbone_weights or networks.name}"
    refuse_leak(networks.seen, classes_of(divided.get("test")), origin, options.allow_leak)

    def finish(plan: Plan, work: Work) -> None:
        sides = [(name, domain) for name in plan.splits for domain in DOMAINS]
        for name, domain in sides:
            if not len(plan.splits[name].side(domain)):
                hint = "the warnings above name every one, and say why"
                raise IiaeError(f"no picture of {name}/{domain} can be read", hint)
        describe(plan, split_name, networks.record(plan, work), networks.seen, origin)

    plan = Plan(divided, reader=networks.reader(), by_class=True, finish=finish)
    if networks.tuning is not None:
        plan.whole = IiaeError(
            "fine-tuning needs all training pictures, and a shard has only some",
            "fine-tune in one call with --save-backbone DIR, and pass every shard "
            "--backbone-weights DIR; or pass --fine-tune-epochs 0",
        )
    return plan


# ---- fine-tuning, by the recipe of the Sketchy features: backbone → linear 512, no activation (the
# features, signed) → linear classifier; cross-entropy, SGD with momentum, a rate that falls
# linearly to 0, batches that draw every class equally often. A step's batch and dropout are
# functions of seed and step, so that resumed fine-tuning ends in the same weights.


@dataclass(frozen=True)
class FineTuning:
    """The settings of fine-tuning."""

    epochs: int  # in one, as many pictures are drawn as the domain has for training
    seed: int = 0  # of new layers, batches and dropout
    batch_size: int = 64
    learning_rate: float = 0.01  # at the first step; falls linearly to 0
    momentum: float = 0.9


class _Tuner:
    """One domain's network, its classifier and optimiser, and their checkpoint."""

    def __init__(
        self, network: FeatureNetwork, labels: Sequence[str], domain: Domain, settings: FineTuning
    ) -> None:
        self.settings, self.domain = settings, domain
        self.targets = np.unique(np.array(labels), return_inverse=True)[1]
        classes = range(self.targets.max() + 1)
        self.rows_of = [np.flatnonzero(self.targets == label) for label in classes]
        self._seed(-1)  # of the classifier's first values
        classifier = nn.Linear(network.width, len(classes)).to(network.embed.weight.device)
        self.model = nn.ModuleDict({"network": network, "classifier": classifier})
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), settings.learning_rate, momentum=settings.momentum
        )
        # Steps done; pictures of this epoch that were classified correctly, and all.
        self.counts = {"step": 0, "correct": 0, "shown": 0}

    def _entropy(self, step: int) -> np.random.SeedSequence:
        return np.random.SeedSequence((self.settings.seed, "xy".index(self.domain), step + 1))

    def _seed(self, step: int) -> None:
        torch.manual_seed(int(self._entropy(step).generate_state(1)[0]))

    def draw(self, step: int) -> NDArray[np.int64]:
        """Draws the rows (B,) of a step: a class uniformly, then one of its pictures uniformly."""
        rng = np.random.default_rng(self._entropy(step))
        classes = rng.integers(len(self.rows_of), size=self.settings.batch_size)
        places = rng.integers([len(self.rows_of[label]) for label in classes])
        return np.array([self.rows_of[classes[n]][place] for n, place in enumerate(places)])

    def learn(self, inputs: Tensor, rows: NDArray[np.int64], total: int) -> None:
        """Takes one of `total` steps of SGD; raises for a loss that is not finite."""
        step = self.counts["step"]
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * (1.0 - step / total)
        targets = torch.from_numpy(self.targets[rows]).to(inputs.device)
        self._seed(step)
        logits = self.model["classifier"](self.model["network"](inputs))
        loss = F.cross_entropy(logits, targets)
        if not math.isfinite(float(loss.detach())):
            message = f"fine-tuning of domain {self.domain} diverged at step {step}"
            raise IiaeError(message, "check the weights, or pass --fine-tune-epochs 0")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.counts["correct"] += int((logits.argmax(1) == targets).sum())
        self.counts["shown"] += len(targets)

    def save(self, path: Path) -> None:
        momenta = {
            f"momentum.{name}": self.optimizer.state[values]["momentum_buffer"]
            for name, values in self.model.named_parameters()
            if values in self.optimizer.state
        }
        header = {"schema": CHECKPOINT_SCHEMA, "counts": json.dumps(self.counts)}
        save_tensors({**self.model.state_dict(), **momenta}, path, header)

    def restore(self, path: Path) -> None:
        hint = f"delete {path} and run the same command again with --resume"
        header, tensors = read_tensors(path, CHECKPOINT_SCHEMA, hint)
        for name, values in self.model.named_parameters():
            momentum = tensors.pop(f"momentum.{name}", None)
            if momentum is not None:
                self.optimizer.state[values]["momentum_buffer"] = momentum.to(values.device)
        self.model.load_state_dict(tensors)
        self.counts = json.loads(header["counts"])


def fine_tune(
    extractor: Extractor, side: Side, settings: FineTuning, checkpoint: Path, stop: Stop = NEVER
) -> float:
    """Fine-tunes a network, in place, to classify the files of a side.

    Unreadable pictures are left out of their batch. The checkpoint is written after every epoch and
    at a stop. Returns the accuracy during the last epoch.
    """
    network, device, domain = extractor.network, extractor.device, extractor.domain
    assert isinstance(network, FeatureNetwork)
    steps = math.ceil(len(side) / settings.batch_size)
    total = steps * settings.epochs
    forked = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=forked),
        backbone.repeatable(),
        console.progress(f"fine-tuning {domain}", total, "steps") as progress,
    ):
        tuner = _Tuner(network.to(device), side.labels or [], domain, settings)
        if checkpoint.exists():
            tuner.restore(checkpoint)
        counts = tuner.counts
        progress.start_at(counts["step"])
        network.train()
        batches = [tuner.draw(step) for step in range(counts["step"], total)]
        sources = (side.rows[rows].tolist() for rows in batches)
        with closing(extractor.inputs(sources)) as decoded:  # ends its threads on an error
            for rows, (errors, pictures) in zip(batches, decoded, strict=True):
                if counts["step"] % steps == 0:
                    counts["correct"] = counts["shown"] = 0
                if len(pictures) > 1:  # batch norm needs two
                    tuner.learn(pictures, rows[[error is None for error in errors]], total)
                counts["step"] += 1
                progress.facts["accuracy"] = f"{counts['correct'] / max(1, counts['shown']):.3f}"
                progress.update(counts["step"])
                stopping = stop.exit_code is not None
                if stopping or counts["step"] % steps == 0:
                    tuner.save(checkpoint)
                if stopping:
                    stop.check(f"fine-tuning of {domain} is saved at step {counts['step']}")
    return counts["correct"] / max(1, counts["shown"])
