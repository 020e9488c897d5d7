"""What tests of several folders share beside the fixtures in conftest.py."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor

from iiae_cli.builders import build_model
from iiae_cli.cli import app as cli
from iiae_cli.common.errors import IiaeError, Stop
from iiae_cli.config.presets import preset_layers, resolve
from iiae_cli.data.blocks import block_store
from iiae_cli.data.datafile import DataInfo
from iiae_cli.data.pictures import SEEN
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Work
from iiae_cli.data.sources.preparation import build
from iiae_cli.model import Domain
from iiae_cli.model.iiae import IIAE, Posteriors, Reconstructions
from iiae_cli.model.networks import FeatureNetworks, FlatNetworks, ImageNetworks, Networks
from iiae_cli.runs import RunDir, save_weights
from iiae_cli.training.trainer import Trainer


def sets(text: str) -> list[str]:
    """`--set` before each of the assignments."""
    return [word for assignment in text.split() for word in ("--set", assignment)]


# Small enough to train in seconds, large enough that recall rises far above the baseline.
SMALL = sets("model.widths=[16,32] model.decoder_widths=[64,32] training.samples=2")
SMALL += ["--batch-size", "16"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM)


@dataclass
class Outcome:
    """What a call of the program did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """stdout as one JSON object."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    def error(self) -> tuple[str, str]:
        """The error and hint lines of a user's error, without a traceback."""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        hints = [line for line in lines if line.startswith("hint: ")]
        assert len(errors) == 1 and len(hints) == 1, self.err
        return errors[0], hints[0]


Program = Callable[..., Outcome]


def call(*arguments: object) -> Outcome:
    """Run the program in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape") for _ in range(2)]
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    code: object = 0
    SEEN.take()  # of the call before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["iiae", *map(str, arguments)])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        finally:
            for number, handler in handlers.items():  # an interrupted command ignores them
                signal.signal(number, handler)
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "surrogateescape"))
    return Outcome(int(code or 0), *texts)


def refusal(call: Callable[..., object], *arguments: Any, **keywords: Any) -> IiaeError:
    """The user's error that a call raises, its message and hint one line each."""
    with pytest.raises(IiaeError) as caught:
        call(*arguments, **keywords)
    error = caught.value
    assert error.message and error.hint and "\n" not in error.message + error.hint
    return error


@dataclass
class Trained:
    """A finished run and the data that it was trained on."""

    run: Path
    data: Path
    pictures: Path


def metrics_of(run: Path | str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without the time they took."""
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "pairs_per_s"} for line in lines]


def content(path: Path) -> dict[str, object]:
    """Everything in an HDF5 file, datasets by digest, and attributes."""
    values: dict[str, object] = {}

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            digest = hashlib.sha256(item[()].tobytes()).hexdigest()
            values[name] = (item.dtype.str, item.shape, digest)

    with h5py.File(path, "r") as file:
        file.visititems(add)
        return values | {f"@{name}": str(value) for name, value in file.attrs.items()}


def untrained_run(folder: Path) -> Path:
    """A run of the embedded digits' networks with their first weights."""
    torch.manual_seed(0)
    run = RunDir(folder)
    config = resolve(preset_layers("digits-cdcb")).config
    info = DataInfo("digits-cdcb", (32, 32, 3), (32, 32, 3), {}, {})
    run.create(config)
    save_weights(run.model_file, build_model(config, info), config, info, {"preset": "digits-cdcb"})
    return folder


@contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """Trainings in this process are interrupted, as by a signal, once so many steps are done."""

    def moved(trainer: Trainer) -> None:
        if trainer.steps_done >= step:
            trainer.stop.request(75)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "moved", moved)
        yield


# Small networks of each family, with an own width or number of channels in each domain.
FAMILIES: dict[str, Networks] = {
    "maps": ImageNetworks((16, 16), [4, 6], [8, 6], 5),
    "flat": FlatNetworks((16, 16), [4, 6], [8, 6], 5, hidden=6, flat_width=4),
    "features": FeatureNetworks(6, (8, 6), 6, 6, 6, 4),
}


def small_model(family: str, cls: type[IIAE] = IIAE, **options: Any) -> IIAE:
    """A model of a family whose weights are always the same."""
    torch.manual_seed(3)
    widths: dict[Domain, int] = {"x": 7, "y": 5} if family == "features" else {"x": 3, "y": 1}
    return cls(FAMILIES[family], widths, **{"exclusive_dim": 3, **options})


def small_pairs(family: str, rows: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    if family == "features":
        return torch.randn((rows, 7), generator=draw), torch.randn((rows, 5), generator=draw)
    shapes = (rows, 3, 16, 16), (rows, 1, 16, 16)
    x, y = (torch.rand(shape, generator=draw) * 2 - 1 for shape in shapes)
    return x, y


def small_batch(rows: int = 4) -> tuple[Posteriors, Reconstructions]:
    """What a small model infers and reconstructs of random pairs: what an objective compares."""
    return small_model("maps").forward(*small_pairs("maps", rows))


class StopAt(Stop):
    """Asks to stop at a question, counted from 0, and at every later one."""

    def __init__(self, question: int, exit_code: int = 75) -> None:
        super().__init__()
        self._left, self._then = question, exit_code

    @property
    def exit_code(self) -> int | None:
        self._left -= 1
        return self._then if self._left < 0 else None


def built(name: str, source: Path | None = None, **options: Any) -> Plan:
    """A data set, read without a file."""
    plan = build(name, PrepareOptions(source, **options))
    with TemporaryDirectory() as folder, block_store(Path(folder, "d.h5"), {}) as store:
        numbers, work = range(len(plan.blocks)), Work(store.folder, Path(folder, "d.h5"))
        plan.make(store, numbers, work)
        plan.read(map(store.read, numbers), work)
        return plan
