"""Shared by the end-to-end tests: the program in-process, and one small trained run."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from moments import Server

from iiae_cli.cli import app as cli
from iiae_cli.model.iiae import IIAE, Posteriors, Reconstructions, image_iiae
from iiae_cli.training.session import Session

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

# Small enough to train in seconds, large enough that recall rises far above the baseline.
SMALL = [
    "--set",
    "model.widths=[16,32]",
    "--set",
    "model.decoder_widths=[64,32]",
    "--set",
    "training.samples=2",
]

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
        """The error and hint lines of a user's error, and nothing like a traceback beside them."""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        hints = [line for line in lines if line.startswith("hint: ")]
        assert len(errors) == 1 and len(hints) == 1, self.err
        return errors[0], hints[0]


Program = Callable[..., Outcome]


def call(capture: Any, arguments: tuple[object, ...]) -> Outcome:
    """Run the program in this process."""
    capture.readouterr()
    before = sys.argv
    handlers = {
        number: signal.getsignal(number) for number in _SIGNALS
    }  # ignored after an interrupted command
    sys.argv = ["iiae", *map(str, arguments)]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    out, err = capture.readouterr()
    return Outcome(code, out, err)


@pytest.fixture
def iiae(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Program:
    """Call the program in an empty folder, without the caller's IIAE_* environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("IIAE_"):
            monkeypatch.delenv(name)
    return lambda *arguments: call(capsys, arguments)


@dataclass
class Trained:
    """A finished run and the data that it was trained on."""

    run: Path
    data: Path
    pictures: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of 150 steps on the embedded digits."""
    folder = tmp_path_factory.mktemp("trained")
    data, run, pictures = folder / "digits.h5", folder / "run", folder / "digits"

    class Quiet:
        def readouterr(self) -> tuple[str, str]:
            return "", ""

    prepared = call(Quiet(), ("prepare", "digits-cdcb", "-o", data, "--pictures", pictures))
    assert prepared.code == 0
    arguments = (
        "train",
        "--preset",
        "digits-cdcb",
        "--data",
        data,
        "--run",
        run,
        "--steps",
        150,
        *SMALL,
    )
    assert call(Quiet(), arguments).code == 0
    return Trained(run, data, pictures)


def untrained_run(folder: Path) -> Path:
    """A run with the first weights of the embedded digits' networks, for what asks nothing of their quality."""
    from iiae_cli.builders import build_model
    from iiae_cli.config.presets import preset_layers, resolve
    from iiae_cli.data.datafile import DataInfo
    from iiae_cli.runs.directory import RunDir

    torch.manual_seed(0)
    run = RunDir(folder)
    config = resolve(preset_layers("digits-cdcb")).config
    info = DataInfo("digits-cdcb", (32, 32, 3), (32, 32, 3), {}, {})
    run.create(config)
    run.save_model(build_model(config, info), config, info, {"preset": "digits-cdcb"})
    return folder


@contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """Trainings in this process are interrupted, as by a signal, once so many steps are done."""

    def stop(session: Session) -> bool:
        if session.steps_done >= step and session._stop is not None:
            session._stop.request(75)
        return session.steps_done >= step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "should_stop", stop)
        yield


SMALL_IMAGE: dict[str, Any] = {
    "channels_x": 3,
    "channels_y": 3,
    "size": (16, 16),
    "widths": [4, 6],
    "decoder_widths": [8, 6],
    "shared_channels": 5,
    "exclusive_dim": 3,
    "flat_width": 4,
}


def small_image_model(**changes: Any) -> IIAE:
    """A model of 16x16 pictures, 3 channels in both domains, whose weights are always the same."""
    torch.manual_seed(3)
    return image_iiae(**{**SMALL_IMAGE, **changes})


def small_batch(rows: int = 4) -> tuple[Posteriors, Reconstructions]:
    """What `small_image_model` infers and reconstructs of random pairs: what an objective compares."""
    model = small_image_model()
    torch.manual_seed(0)
    x, y = torch.rand(rows, 3, 16, 16), torch.rand(rows, 3, 16, 16)
    posteriors = model.infer(x, y)
    return posteriors, model.generate(model.sample(posteriors))


@dataclass
class Nursery:
    """A server of forked trainings, and the folder with their data set d.h5."""

    server: Server
    folder: Path

    def train(self, run: str, *more: object, **job: Any) -> dict[str, Any]:
        """Train in FOLDER/RUN."""
        return self.server.train(self.folder, self.folder / run, *more, **job)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Forty pairs of the embedded digits, and a server that has trained on them once."""
    folder = tmp_path_factory.mktemp("nursery")
    scratch = folder / "scratch"
    scratch.mkdir()
    nursery = Nursery(Server(scratch), folder)
    assert (
        nursery.server.run(folder, "prepare", "digits-cdcb", "--limit", "40", "-o", "d.h5")["code"]
        == 0
    )
    nursery.train("warm", "--steps", 4, warm=True)
    yield nursery
    nursery.server.close()
