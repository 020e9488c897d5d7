"""Fine-tunes a backbone as classifier of the training classes.

The recipe of the Sketchy features: backbone → linear 512, no activation (the features, signed) →
linear classifier; cross-entropy, SGD with momentum, a rate that falls linearly to 0, batches that
draw every class equally often. Each domain has its own network. A step's batch and dropout are
functions of seed and step, so that resumed fine-tuning ends in the same weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.common import console
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.common.files import writing
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.data.backbone import Extractor, FeatureNetwork, repeatable
from iiae_cli.model import Domain

CHECKPOINT_SCHEMA = "iiae.fine-tuning/3"


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
        with writing(path) as temporary:
            save_tensors({**self.model.state_dict(), **momenta}, temporary, header)

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
    extractor: Extractor,
    paths: Sequence[Path],
    labels: Sequence[str],
    *,
    settings: FineTuning,
    checkpoint: Path,
    stop: Stop = NEVER,
) -> float:
    """Fine-tunes a network, in place, to classify its pictures; it ends in evaluation mode.

    Unreadable pictures are left out of their batch. The checkpoint is written after every epoch and
    at a stop. Returns the accuracy during the last epoch.
    """
    network, device, domain = extractor.network, extractor.device, extractor.domain
    assert isinstance(network, FeatureNetwork)
    steps = math.ceil(len(paths) / settings.batch_size)
    total = steps * settings.epochs
    forked = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=forked),
        repeatable(),
        console.progress(f"fine-tuning {domain}", total, "steps") as progress,
    ):
        tuner = _Tuner(network.to(device), labels, domain, settings)
        if checkpoint.exists():
            tuner.restore(checkpoint)
        counts = tuner.counts
        progress.start_at(counts["step"])
        network.train()
        batches = [tuner.draw(step) for step in range(counts["step"], total)]
        sources = ([paths[row] for row in rows] for rows in batches)
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
    network.eval()
    return counts["correct"] / max(1, counts["shown"])
