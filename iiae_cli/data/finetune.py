"""Fine-tuning a backbone as classifier of the training classes.

The recipe of the Sketchy features: backbone → linear 512, no activation (the features, signed) → linear classifier;
cross-entropy, SGD with momentum 0.9, learning rate 0.01 decayed linearly to 0, batches of 64 that draw every class
equally often. Each domain has a network of its own.

A step's batch and its dropout are functions of seed and step, so that fine-tuning taken up from a checkpoint ends in
the weights of one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import writing
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.data.backbone import INPUT_SIZE, Preprocessing
from iiae_cli.data.feature_network import FeatureNetwork
from iiae_cli.data.pictures import PictureError, decode_batches, readable
from iiae_cli.model import Domain

CHECKPOINT_SCHEMA = "iiae.fine-tuning/1"


@dataclass(frozen=True)
class FineTuning:
    """How a backbone is fine-tuned.

    Attributes:
        epochs: one draws as many pictures as the domain has for training.
        seed: of new layers, batches and dropout.
        batch_size: pictures per step.
        learning_rate: of the first step; it falls linearly to 0.
        momentum: of SGD.
    """

    epochs: int
    seed: int = 0
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9


@dataclass
class _State:
    """What a checkpoint holds beside tensors: steps done, and the current epoch's tally."""

    step: int = 0
    correct: int = 0
    shown: int = 0


class _Tuner:
    """One domain's network, its classifier and optimiser, and their checkpoint."""

    def __init__(
        self,
        network: FeatureNetwork,
        classes: int,
        settings: FineTuning,
        domain: Domain,
        device: torch.device,
    ) -> None:
        self.settings, self.domain, self.device = settings, domain, device
        self.network = network.to(device)
        self.seed_step(-1)
        self.classifier = nn.Linear(network.width, classes).to(device)
        self.parameters = {
            **{f"network/{name}": one for name, one in self.network.named_parameters()},
            **{f"classifier/{name}": one for name, one in self.classifier.named_parameters()},
        }
        self.optimizer = torch.optim.SGD(
            self.parameters.values(), settings.learning_rate, momentum=settings.momentum
        )
        self.state = _State()

    def seed_step(self, step: int) -> None:
        """Make dropout a function of seed, domain and step; −1 stands for the classifier's first values."""
        torch.manual_seed(int(self._entropy(step).generate_state(1)[0]))

    def _entropy(self, step: int) -> np.random.SeedSequence:
        return np.random.SeedSequence((self.settings.seed, "xy".index(self.domain), step + 1))

    def draw(self, rows_of: Sequence[NDArray[np.int64]], step: int) -> NDArray[np.int64]:
        """Rows (B,) of a step: a class uniformly, then one of its pictures uniformly."""
        rng = np.random.default_rng(self._entropy(step))
        classes = rng.integers(len(rows_of), size=self.settings.batch_size)
        places = rng.integers([len(rows_of[one]) for one in classes])
        return np.array(
            [rows_of[one][place] for one, place in zip(classes, places, strict=True)], np.int64
        )

    def learn(self, inputs: Tensor, targets: Tensor, total: int) -> None:
        """One step of SGD.

        Raises:
            IiaeError: the loss is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * (1.0 - self.state.step / total)
        self.seed_step(self.state.step)
        logits = self.classifier(self.network(inputs))
        loss = F.cross_entropy(logits, targets)
        if not math.isfinite(float(loss.detach())):
            raise IiaeError(
                f"fine-tuning of domain {self.domain} diverged at step {self.state.step}",
                "check the weights, or take the features as they are: --fine-tune-epochs 0",
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.state.correct += int((logits.argmax(1) == targets).sum())
        self.state.shown += len(targets)

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        tensors = {
            **{f"network/{name}": one for name, one in self.network.state_dict().items()},
            **{f"classifier/{name}": one for name, one in self.classifier.state_dict().items()},
            **{
                f"momentum/{name}": self.optimizer.state[one]["momentum_buffer"]
                for name, one in self.parameters.items()
                if one in self.optimizer.state
            },
        }
        header = {
            "schema": CHECKPOINT_SCHEMA,
            **{key: str(value) for key, value in vars(self.state).items()},
        }
        with writing(path) as temporary:
            save_tensors(
                {name: one.detach().cpu().contiguous() for name, one in tensors.items()},
                temporary,
                header,
            )

    def restore(self, path: Path) -> None:
        """Take a checkpoint up.

        Raises:
            IiaeError: damaged.
        """
        remedy = f"delete {path} and run the same command again with --resume"
        header, tensors = read_tensors(path, CHECKPOINT_SCHEMA, remedy)
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "classifier": {}, "momentum": {}}
        for full_name, values in tensors.items():
            part, name = full_name.split("/", 1)
            parts[part][name] = values
        self.network.load_state_dict(parts["network"])
        self.classifier.load_state_dict(parts["classifier"])
        for name, values in parts["momentum"].items():
            self.optimizer.state[self.parameters[name]]["momentum_buffer"] = values.to(self.device)
        self.state = _State(*(int(header[key]) for key in ("step", "correct", "shown")))


def fine_tune(
    network: FeatureNetwork,
    paths: Sequence[Path],
    labels: Sequence[str],
    *,
    domain: Domain,
    settings: FineTuning,
    preprocessing: Preprocessing,
    checkpoint: Path,
    device: torch.device,
    workers: int = 1,
    stop: Stop = NEVER,
) -> float:
    """Fine-tune a network, in place, to tell the classes of its pictures; it ends in evaluation mode.

    Unreadable pictures are left out of their batch (extraction names them).

    Args:
        network: with a feature layer of its own.
        paths: training pictures of one domain.
        labels: their classes.
        domain: x or y; seeds differ.
        settings: of the optimiser.
        preprocessing: of pictures.
        checkpoint: file that is written after every epoch, and taken up where it exists.
        device: that computes.
        workers: decoding threads.
        stop: asked before every block.

    Returns:
        Accuracy on the pictures drawn in the last epoch, while it was learnt.

    Raises:
        IiaeError: no readable picture, or the loss is not finite.
        Interrupted: a signal came; the checkpoint is written.
    """
    classes, targets = np.unique(np.array(labels), return_inverse=True)
    rows_of = [np.flatnonzero(targets == one) for one in range(len(classes))]
    steps = math.ceil(len(paths) / settings.batch_size)
    total = steps * settings.epochs
    forked = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=forked),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        console.progress(f"fine-tuning {domain}", total, "steps") as progress,
    ):
        tuner = _Tuner(network, len(classes), settings, domain, device)
        if checkpoint.exists():
            tuner.restore(checkpoint)
        progress.start_at(tuner.state.step)
        network.train()
        batches = [tuner.draw(rows_of, step) for step in range(tuner.state.step, total)]
        for rows, pictures in zip(batches, _decoded(batches, paths, workers), strict=True):
            if tuner.state.step % steps == 0:
                tuner.state.correct = tuner.state.shown = 0
            there, stack, _ = readable(pictures)
            if len(there) > 1:  # batch norm needs two
                inputs = preprocessing.tensor(stack, domain, device)
                tuner.learn(inputs, torch.from_numpy(targets[rows[there]]).to(device), total)
            tuner.state.step += 1
            progress.facts["accuracy"] = f"{tuner.state.correct / max(1, tuner.state.shown):.3f}"
            progress.update(tuner.state.step)
            stopping = stop.exit_code is not None
            if stopping or tuner.state.step % steps == 0:
                tuner.save(checkpoint)
            if stopping:
                stop.check(
                    f"fine-tuning of {domain} is saved at step {tuner.state.step} of {total}"
                )
    network.eval()
    if tuner.state.shown == 0:
        raise IiaeError(
            f"no training picture of domain {domain} can be read",
            f"check {paths[0]} and the others",
        )
    return tuner.state.correct / tuner.state.shown


def _decoded(
    batches: Sequence[NDArray[np.int64]], paths: Sequence[Path], workers: int
) -> Iterator[list[NDArray[np.uint8] | PictureError]]:
    return decode_batches(
        ([paths[row] for row in rows] for rows in batches), 3, INPUT_SIZE, workers
    )
