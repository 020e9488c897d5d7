"""From the pictures of a divided set of classes to feature vectors: fine-tuning where asked for, then extraction.

Only training pictures are ever shown to fine-tuning. Finished networks and batches of features lie in the work's
folder, so that an interrupted call is taken up.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.common.signals import Stop
from iiae_cli.data.backbone import build_backbone
from iiae_cli.data.datafile import Side, Split
from iiae_cli.data.extract import feature_reading
from iiae_cli.data.feature_network import (
    FeatureNetwork,
    NetworkRecord,
    load_network,
    read_record,
    save_network,
)
from iiae_cli.data.feature_options import FeatureOptions
from iiae_cli.data.finetune import fine_tune
from iiae_cli.data.leaks import refuse_leak
from iiae_cli.data.sources.backbone_plan import Plan, plan_backbone
from iiae_cli.data.sources.class_sets import ClassSet, Picture, Pictures, finish
from iiae_cli.data.sources.work import ReadBlock, Reading, Work
from iiae_cli.model import DOMAINS, Domain


def picture_features(
    divided: dict[str, Pictures],
    *,
    split_name: str,
    options: FeatureOptions,
    epochs: int,
    seed: int,
    download: bool,
    workers: int,
    work: Work,
    skipped: list[str],
) -> ClassSet:
    """Features of all pictures, and what the data file says of them.

    Args:
        divided: pictures by split and domain.
        split_name: of the division of classes.
        options: backbone, weights, fine-tuning, device.
        epochs: of fine-tuning where the options do not say.
        seed: of new layers, batches, dropout, random weights.
        download: whether published weights may be fetched.
        workers: decoding threads.
        work: keeps networks and features.
        skipped: lines of what was left out so far.

    Raises:
        IiaeError: weights that are missing or do not fit, a leak, no readable picture.
        Interrupted: a signal came; the work's folder holds what is done.
    """
    train = {one.label for one in divided["train"]["x"]}
    test = {one.label for one in divided.get("test", {}).get("x", [])}
    plan = plan_backbone(options, train, epochs=epochs, seed=seed, download=download)
    refuse_leak(plan.seen, test, plan.origin, options.allow_leak)
    if plan.tuning is not None and not work.whole:
        raise IiaeError(
            "fine-tuning looks at all training pictures, of which a shard has a part",
            "fine-tune in one call with --save-backbone DIR, and give every shard --backbone-weights DIR; "
            "or pass --fine-tune-epochs 0",
        )
    with ExitStack() as stack:
        folder = work.folder or Path(stack.enter_context(TemporaryDirectory()))
        networks = _Networks(plan, folder, options, workers, work.stop)
        if plan.tuning is not None:
            for domain in DOMAINS:
                networks.tune(domain, divided["train"][domain])
        # One domain after the other, as each may have a network of its own.
        found = work.read(
            [networks.reading(one, name, divided[name][one]) for one in DOMAINS for name in divided]
        )
        splits = {name: Split(Side([], []), Side([], [])) for name in divided}  # type: ignore[arg-type]
        for domain in DOMAINS:
            for name, pictures in divided.items():
                skipped += map(str, found[f"{name}/{domain}"].errors)
                _fill(splits[name], name, domain, found[f"{name}/{domain}"], pictures[domain])
        if options.save_backbone is not None:
            networks.keep(options.save_backbone)
        backbone = plan.record(splits["train"].x.rows.shape[1], networks.records)
    return finish(
        splits,
        split_name=split_name,
        backbone=backbone,
        seen=plan.seen,
        what=plan.origin,
        allow_leak=options.allow_leak,
        skipped=skipped,
    )


class _Networks:
    """A plan carried out in a folder, one domain's network at a time in memory."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        options: FeatureOptions,
        workers: int,
        stop: Stop,
    ) -> None:
        self.plan, self.folder, self.options, self.workers = plan, folder, options, workers
        self.stop = stop
        self.device = torch.device(options.device)
        self._ready: dict[Domain, nn.Module] = {}
        self.records: dict[Domain, NetworkRecord] = {
            domain: one.record for domain, one in plan.kept.items()
        }
        self._body: tuple[nn.Module, int] | None = None

    def tune(self, domain: Domain, pictures: list[Picture]) -> None:
        """Fine-tune a domain's network, unless the folder has it."""
        path = self.folder / f"{domain}.safetensors"
        if not path.exists():
            assert self.plan.tuning is not None and self.plan.weights is not None
            checkpoint = self.folder / f"{domain}-fine-tuning.safetensors"
            body, width = build_backbone(self.plan.backbone, self.plan.weights, self.plan.seed)
            network = FeatureNetwork(body, width, seed=self.plan.seed)
            accuracy = fine_tune(
                network,
                [one.path for one in pictures],
                [one.label for one in pictures],
                domain=domain,
                settings=self.plan.tuning,
                preprocessing=self.plan.preprocessing,
                checkpoint=checkpoint,
                device=self.device,
                workers=self.workers,
                stop=self.stop,
            )
            record = NetworkRecord(
                backbone=self.plan.backbone,
                weights=self.plan.weights.to_json(),
                preprocessing=self.plan.preprocessing,
                fine_tuning={**asdict(self.plan.tuning), "accuracy": accuracy},
                seen=self.plan.seen,
            )
            save_network(path, network, domain, record)
            checkpoint.unlink(missing_ok=True)
        self.records[domain] = read_record(path, domain)

    def get(self, domain: Domain) -> nn.Module:
        """A domain's network; the other's is let go of."""
        if domain not in self._ready:
            self._ready = {domain: self._load(domain)}
        return self._ready[domain]

    def _load(self, domain: Domain) -> nn.Module:
        """A domain's network; without fine-tuning both domains share one."""
        if self.plan.kept:
            return load_network(self.plan.kept[domain].path, domain)
        if self.plan.tuning is not None:
            return load_network(self.folder / f"{domain}.safetensors", domain)
        if self._body is None:
            assert self.plan.weights is not None
            self._body = build_backbone(self.plan.backbone, self.plan.weights, self.plan.seed)
        return self._body[0]

    def reading(self, domain: Domain, split: str, pictures: list[Picture]) -> Reading:
        """Features of a split's pictures of one domain."""
        return feature_reading(
            f"{split}/{domain}",
            [one.path for one in pictures],
            lambda: self.get(domain),
            domain=domain,
            preprocessing=self.plan.preprocessing,
            device=self.device,
            batch_size=self.options.batch_size,
            workers=self.workers,
            maker=self.plan.identity(),
        )

    def keep(self, folder: Path) -> None:
        """Copy the fine-tuned networks to a folder of the user's."""
        for domain in DOMAINS:
            name = f"{domain}.safetensors"
            with writing(folder / name) as temporary:
                shutil.copyfile(self.folder / name, temporary)


def _fill(
    split: Split, name: str, domain: Domain, found: ReadBlock, pictures: list[Picture]
) -> None:
    """Put a domain's features, ids and labels into the split of a name.

    Raises:
        IiaeError: none of its pictures could be read.
    """
    if pictures and not len(found.places):
        raise IiaeError(
            f"no picture of {name}/{domain} can be read", f"check {pictures[0].path} and the others"
        )
    there = [pictures[place] for place in found.places]
    side = split.side(domain)
    side.rows = found.rows[0]
    side.ids = [one.id for one in there]
    side.labels = [one.label for one in there]
