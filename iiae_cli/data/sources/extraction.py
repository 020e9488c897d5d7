"""From pictures of classes to feature vectors: which network, its fine-tuning, and extraction.

Everything is decided before any work, so that a leak is refused at once. Only training pictures are
ever shown to fine-tuning. Extraction divides the list of pictures into batches by itself, so that
one that is resumed, or shared by processes, ends in the values of an undivided one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from iiae_cli.common.files import writing
from iiae_cli.data.backbone import (
    INPUT_SIZE,
    Inputs,
    Preprocessing,
    Weights,
    build_backbone,
    find_weights,
)
from iiae_cli.data.datafile import Side, Split, sha256_of
from iiae_cli.data.finetune import (
    FeatureNetwork,
    FineTuning,
    NetworkRecord,
    fine_tune,
    load_network,
    read_record,
    save_network,
)
from iiae_cli.data.leaks import Seen, refuse_leak
from iiae_cli.data.sources.classes import classes_of, finish
from iiae_cli.data.sources.plan import (
    Made,
    Plan,
    Prepared,
    PrepareOptions,
    Reading,
    ReadRows,
    Work,
)
from iiae_cli.model import DOMAINS, Domain

DEFAULT_BACKBONE = "vgg16"


@dataclass(frozen=True)
class Extraction:
    """How pictures become features.

    Attributes:
        backbone: torchvision's name.
        weights: to begin with; None where fine-tuned networks are used.
        kept: folder of networks that an earlier call fine-tuned.
        tuning: None: no fine-tuning.
        preprocessing: of pictures.
        seen: classes that the networks will have been trained on.
        seed: of new layers, batches, dropout, random weights.
        origin: the backbone, for an error.
    """

    backbone: str
    weights: Weights | None
    kept: Path | None
    tuning: FineTuning | None
    preprocessing: Preprocessing
    seen: Seen
    seed: int
    origin: str

    def described(self) -> dict[str, Any]:
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

    def identity(self) -> str:
        """16 hex digits over everything that the features of a picture depend on."""
        values = [
            self.backbone,
            self.described(),
            self.seed,
            asdict(self.preprocessing),
            _versions(),
        ]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "torchvision": torchvision.__version__}


def plan_extraction(
    options: PrepareOptions, train_classes: Iterable[str], epochs: int
) -> Extraction:
    """Decide how pictures become features.

    Args:
        options: what the user said.
        train_classes: that fine-tuning will see.
        epochs: of fine-tuning where the user did not say.

    Raises:
        IiaeError: weights that are missing or damaged, or options that exclude each other.
    """
    given = options.backbone_weights
    if given is not None and given != "none" and Path(given).is_dir():
        return _plan_of_kept(Path(given), options)
    name = options.backbone or DEFAULT_BACKBONE
    weights = find_weights(name, given, download=options.download)
    if weights.kind == "random":
        console.warn(f"{name} has random weights: for trying things out, not for figures")
    wanted = epochs if options.fine_tune_epochs is None else options.fine_tune_epochs
    tuning = FineTuning(wanted, options.seed) if wanted else None
    if tuning is None and options.save_backbone is not None:
        raise IiaeError(
            "--save-backbone has nothing to save without fine-tuning", "add --fine-tune-epochs 10"
        )
    seen = weights.seen if tuning is None else weights.seen.and_also(train_classes)
    preprocessing = _preprocessing(options, Preprocessing())
    origin = f"the backbone {given or name}"
    return Extraction(name, weights, None, tuning, preprocessing, seen, options.seed, origin)


def _plan_of_kept(folder: Path, options: PrepareOptions) -> Extraction:
    """Use networks that an earlier call fine-tuned, as they are."""
    x, y = (read_record(folder / f"{domain}.safetensors", domain) for domain in DOMAINS)
    if (x.backbone, x.preprocessing) != (y.backbone, y.preprocessing):
        raise IiaeError(
            f"{folder} holds networks that differ in more than their weights",
            "name a folder that 'iiae prepare sketchy … --save-backbone DIR' wrote",
        )
    if options.backbone not in (None, x.backbone):
        raise IiaeError(
            f"{folder} holds networks of {x.backbone}, not {options.backbone}",
            "leave --backbone out",
        )
    if options.fine_tune_epochs or options.save_backbone is not None:
        raise IiaeError(
            f"the networks in {folder} are fine-tuned already",
            "leave --fine-tune-epochs and --save-backbone out",
        )
    preprocessing = _preprocessing(options, x.preprocessing)
    if preprocessing != x.preprocessing:
        console.warn(
            f"pictures are prepared in another way than {folder} was fine-tuned with; "
            "the data file says both"
        )
    seen = Seen(x.seen.and_also(y.seen.classes).classes, x.seen.complete and y.seen.complete)
    return Extraction(
        x.backbone,
        None,
        folder,
        None,
        preprocessing,
        seen,
        options.seed,
        f"the backbone in {folder}",
    )


def _preprocessing(options: PrepareOptions, default: Preprocessing) -> Preprocessing:
    invert, normalise = options.invert_sketches, options.normalise
    return Preprocessing(
        default.invert_sketches if invert is None else invert,
        default.normalise if normalise is None else normalise,
    )


class Networks:
    """An extraction carried out: one domain's network at a time in memory.

    Args:
        plan: what to do.
        inputs: how pictures become the networks' input.
        train: files to fine-tune on.
    """

    def __init__(self, plan: Extraction, inputs: Inputs, train: Split) -> None:
        self.plan, self.inputs, self.train = plan, inputs, train
        self._ready: dict[Domain | None, nn.Module] = {}

    def file(self, domain: Domain, work: Work) -> Path:
        """The fine-tuned network of a domain, which is made where it is missing."""
        name = f"{domain}.safetensors"
        if self.plan.kept is not None:
            return self.plan.kept / name
        if not (work.folder / name).exists():
            self._tune(domain, work.folder / name, work)
        return work.folder / name

    def _tune(self, domain: Domain, path: Path, work: Work) -> None:
        plan, side = self.plan, self.train.side(domain)
        assert plan.tuning is not None and plan.weights is not None
        checkpoint = work.folder / f"{domain}-fine-tuning.safetensors"
        body, width = build_backbone(plan.backbone, plan.weights, plan.seed)
        network = FeatureNetwork(body, width, seed=plan.seed)
        accuracy = fine_tune(
            network,
            side.rows.tolist(),
            side.labels or [],
            domain=domain,
            settings=plan.tuning,
            inputs=self.inputs,
            checkpoint=checkpoint,
            stop=work.stop,
        )
        record = NetworkRecord(
            backbone=plan.backbone,
            weights=plan.weights.to_json(),
            preprocessing=plan.preprocessing,
            fine_tuning={**asdict(plan.tuning), "accuracy": accuracy},
            seen=plan.seen,
        )
        save_network(path, network, domain, record)
        checkpoint.unlink(missing_ok=True)

    def get(self, domain: Domain, work: Work) -> nn.Module:
        """A domain's network; without fine-tuning both domains share one."""
        plan = self.plan
        key = None if plan.kept is None and plan.tuning is None else domain
        if key not in self._ready:
            if key is not None:
                network: nn.Module = load_network(self.file(domain, work), domain)
            else:
                assert plan.weights is not None
                network, _ = build_backbone(plan.backbone, plan.weights, plan.seed)
            self._ready = {key: network.to(self.inputs.device).eval()}
        return self._ready[key]

    def reading(self, domain: Domain, name: str, files: Sequence[Path], size: int) -> Reading:
        """The features of pictures of one domain, `size` in a batch, which is a block."""

        def make(blocks: Sequence[Sequence[Path]], work: Work) -> Iterator[Sequence[Made]]:
            network = self.get(domain, work)
            inputs = self.inputs.of(blocks, domain)
            for block, (rows, ready, errors) in zip(blocks, inputs, strict=True):
                made: list[Made] = [()] * len(block)
                for error in errors:
                    made[block.index(error.path)] = error
                if len(rows):
                    values = _features(network, ready, [block[row] for row in rows])
                    for row, features in zip(rows, values, strict=True):
                        made[row] = (features,)
                yield made

        return Reading(
            name,
            files,
            make,
            ((0,),),
            size,
            verb="extracting features of",
            maker=self.plan.identity(),
        )

    def record(self, width: int, work: Work) -> dict[str, Any]:
        """How features of a width came about, for the data file."""
        plan, tuned = self.plan, None
        if plan.kept is not None or plan.tuning is not None:
            x, y = (read_record(self.file(domain, work), domain) for domain in DOMAINS)
            tuned = {
                **x.fine_tuning,
                "accuracy": {"x": x.fine_tuning["accuracy"], "y": y.fine_tuning["accuracy"]},
                "preprocessing": asdict(x.preprocessing),
                "from": x.weights,
            }
        return {
            "name": plan.backbone,
            **plan.described(),
            "layer": "linear on the penultimate layer" if tuned else "penultimate layer",
            "width": width,
            "preprocessing": {
                "size": list(INPUT_SIZE),
                "resize": "area where that shrinks, bicubic where it enlarges",
                **asdict(plan.preprocessing),
            },
            "fine_tuning": tuned,
            "versions": _versions(),
        }

    def keep(self, folder: Path, work: Work) -> None:
        """Copy the fine-tuned networks to a folder of the user's."""
        for domain in DOMAINS:
            with writing(folder / f"{domain}.safetensors") as temporary:
                shutil.copyfile(self.file(domain, work), temporary)


def _features(network: nn.Module, inputs: Tensor, paths: Sequence[Path]) -> NDArray[np.float32]:
    """Features (B, D) of a batch of the pictures `paths`.

    Raises:
        IiaeError: one is not finite.
    """
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        values: NDArray[np.float32] = network(inputs).float().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise IiaeError(
            f"the features of {paths[bad[0]]} are not finite", "check the backbone's weights"
        )
    return values


def plan_features(
    divided: dict[str, Split],
    options: PrepareOptions,
    *,
    split_name: str,
    epochs: int,
    skipped: list[str],
) -> Plan:
    """Plan the features of pictures, and what the data file says of them.

    Args:
        divided: splits whose rows are picture files.
        options: backbone, weights, fine-tuning, device.
        split_name: of the division of classes.
        epochs: of fine-tuning where the options do not say.
        skipped: lines of what was left out so far.

    Raises:
        IiaeError: weights that are missing or do not fit, or a leak.
    """
    train, test = (classes_of(divided.get(name)) for name in ("train", "test"))
    plan = plan_extraction(options, train, epochs)
    refuse_leak(plan.seen, test, plan.origin, options.allow_leak)
    inputs = Inputs(plan.preprocessing, torch.device(options.device), options.workers)
    networks = Networks(plan, inputs, divided["train"])
    # One domain after the other, as each may have a network of its own.
    readings = [
        networks.reading(
            domain, f"{name}/{domain}", split.side(domain).rows.tolist(), options.batch_size
        )
        for domain in DOMAINS
        for name, split in divided.items()
    ]

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        lost = [str(error) for reading in readings for error in rows[reading.name].errors]
        splits = {}
        for name, split in divided.items():
            x, y = (
                _read_side(f"{name}/{domain}", split.side(domain), rows[f"{name}/{domain}"])
                for domain in DOMAINS
            )
            splits[name] = Split(x, y)
        if options.save_backbone is not None:
            networks.keep(options.save_backbone, work)
        return finish(
            splits,
            split_name=split_name,
            backbone=networks.record(splits["train"].x.rows.shape[1], work),
            seen=plan.seen,
            what=plan.origin,
            allow_leak=options.allow_leak,
            skipped=[*skipped, *lost],
        )

    whole = IiaeError(
        "fine-tuning looks at all training pictures, of which a shard has a part",
        "fine-tune in one call with --save-backbone DIR, and give every shard "
        "--backbone-weights DIR; or pass --fine-tune-epochs 0",
    )
    return Plan(assemble, readings, whole if plan.tuning is not None else None)


def _read_side(name: str, files: Side, found: ReadRows) -> Side:
    if len(files) and not len(found.places):
        raise IiaeError(
            f"no picture of {name} can be read", f"check {files.rows[0]} and the others"
        )
    return replace(files.take(found.places), rows=found.rows[0])
