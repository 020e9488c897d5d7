"""Runs the program in forked children and does something to them at a chosen moment.

Children come from multiprocessing's fork server, which imports everything once and computes on one
thread, so that a child starts in milliseconds and no thread is lost by forking. A job is `at`, the
moment (from 1), and `act`: `kill` (as by kill -9), a signal (TERM, INT …) or the system's refusal
(ENOSPC, EACCES). Moments are what touches the folder (opening for writing, making, renaming and
removing files, syncing) and every step.

The outcome has `code`, `err`, `moments` counted, and the processor `seconds` that the child took
after its moment, as a busy machine delays everything. With `ranks` there are so many children, as
torchrun starts them; the act happens to the `rank` named (0), and `codes` and `errs` are lists.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from helpers import sets

# Dropout, annealing, and validations, log lines and checkpoints that fall on different steps.
TINY = sets(
    "model.widths=[4,8] model.decoder_widths=[8,4] model.dropout=0.3 training.samples=1 "
    "training.validate_every=4 training.log_every=3 training.checkpoint_every=3 "
    "training.batch_size=8"
)

ROOT = Path(__file__).parent.parent
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.symlink")
_IMPORTED = [
    *("moments", "iiae_cli.cli.app", "iiae_cli.cli.train", "iiae_cli.cli.prepare"),
    *("iiae_cli.cli.encode", "iiae_cli.training.session", "iiae_cli.inference.api"),
    *("PIL.JpegImagePlugin", "sklearn.datasets", "filelock"),
    *("iiae_cli.data.sources.extraction", "torch.utils.tensorboard", "torchvision.models"),
]


class Moments:
    """Counts moments in the child, and acts at one of them."""

    def __init__(self, folder: Path, at: int, act: str, reports: Connection) -> None:
        self.folder, self.at, self.act = os.path.realpath(folder), at, act
        self.count, self.when, self.reports = 0, 0.0, reports

    def audit(self, event: str, details: tuple[Any, ...]) -> None:
        """A hook for `sys.addaudithook`."""
        if event not in _EVENTS or not isinstance(details[0], str | os.PathLike):
            return
        if event == "open" and not int(details[2]) & (os.O_WRONLY | os.O_RDWR):
            return
        if os.path.realpath(details[0]).startswith(self.folder):
            self.moment(fallible=event != "os.remove")

    def moment(self, *, fallible: bool = True) -> None:
        """One more; `fallible` where the operating system might refuse."""
        self.count += 1
        if self.count != self.at:
            return
        self.when = time.process_time()
        if self.act == "kill":
            self.end(137)
        if self.act not in ("ENOSPC", "EACCES"):
            os.kill(os.getpid(), getattr(signal, f"SIG{self.act}"))
        elif fallible:
            code = getattr(errno, self.act)
            raise OSError(code, os.strerror(code))

    def install(self) -> None:
        from iiae_cli.training.trainer import Trainer

        sys.addaudithook(self.audit)
        sync, moved = os.fsync, Trainer.moved

        def fsync(handle: int) -> None:
            self.moment()
            sync(handle)

        def step(trainer: Trainer) -> None:
            moved(trainer)
            self.moment(fallible=False)

        os.fsync, Trainer.moved = fsync, step  # type: ignore[assignment, method-assign]

    def end(self, code: int) -> None:
        sys.stderr.flush()
        seconds = time.process_time() - self.when if self.when else 0.0
        self.reports.send((min(self.count, self.at or self.count), seconds))
        os._exit(code)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_child(
    moments: Moments, folder: Path, arguments: list[str], environment: dict[str, str], err: Path
) -> None:
    """Runs the program; does not return."""
    from iiae_cli.__main__ import main

    out, null = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, null), (2, out)):
        os.dup2(source, target)
    os.environ |= environment
    os.chdir(folder)
    sys.argv = ["iiae", *arguments]
    moments.install()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    moments.end(code)


class Server:
    """Starts children; trainings lie in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scratch = folder, folder / "scratch"
        self.scratch.mkdir()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_IMPORTED)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("IIAE_")]:
                patch.delenv(name)
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
            forkserver.ensure_running()

    def run(
        self, folder: Path, *arguments: object, at=0, act="", ranks=1, rank=0, watch=None
    ) -> dict[str, Any]:
        children, reports, errs, port = [], [], [], free_port()
        for number in range(ranks):
            receiver, sender = self.context.Pipe(duplex=False)
            moments = Moments(watch or folder, at if number == rank else 0, act, sender)
            world = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks}
            world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in world.items() if ranks > 1}
            errs.append(self.scratch / f"err-{number}")
            job = (moments, folder, [*map(str, arguments)], environment, errs[-1])
            children.append(self.context.Process(target=run_child, args=job))
            children[-1].start()
            sender.close()
            reports.append(receiver)
        for child in children:
            child.join()
        codes, said = [child.exitcode for child in children], [path.read_text() for path in errs]
        count, seconds = reports[rank].recv()
        done = {"code": codes[0], "err": said[0], "codes": codes, "errs": said}
        return {**done, "moments": count, "seconds": seconds}

    def train(self, run: str, *more: object, **job: Any) -> dict[str, Any]:
        """Train the smallest model in FOLDER/RUN on the folder's data set d.h5."""
        path = self.folder / run
        arguments = ("train", "--preset", "digits-cdcb", "--data", "d.h5", "--run", path, *TINY)
        return self.run(self.folder, *arguments, *more, watch=path, **job)
