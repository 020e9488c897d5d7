"""A server that runs the program in forked children and does something to them at a chosen moment.

Run as a script, it imports everything once and computes on one thread, so that a child starts in
milliseconds and no thread is lost by forking. It reads one JSON object a line: `arguments`,
`folder`, and optionally `at`, the moment (from 1), and `act`: `kill` (as by kill -9), a signal
(TERM, INT …) or the system's refusal (ENOSPC, EACCES). Moments are what touches the folder (opening
for writing, making, renaming and removing files, syncing) and every step.

It answers with one JSON object: `code`, `err`, `moments` counted, and the processor `seconds` that
the child took after its moment, as a busy machine delays everything. With `ranks` it forks so many
children, as torchrun starts them; the act happens to the `rank` named (0), and `codes` and `errs`
are lists.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# Dropout, annealing, and validations, log lines and checkpoints that fall on different steps.
TINY = (
    *("--set", "model.widths=[4,8]", "--set", "model.decoder_widths=[8,4]"),
    *("--set", "model.dropout=0.3", "--set", "training.samples=1"),
    *("--set", "training.validate_every=4", "--set", "training.log_every=3"),
    *("--set", "training.checkpoint_every=3", "--batch-size", "8"),
)

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.symlink")
_reports = -1  # file in which a child reports how many moments there were, and when it acted


class Moments:
    """Counts moments in the child, and acts at one of them."""

    def __init__(self, folder: str, at: int, act: str) -> None:
        self.folder, self.at, self.act = os.path.realpath(folder), at, act
        self.count = 0

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
        report(self.count, time.process_time())
        if self.act == "kill":
            os._exit(137)
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


def report(count: int, when: float) -> None:
    os.pwrite(_reports, json.dumps([count, when]).encode().ljust(64), 0)


def run_child(job: dict[str, Any], err: Path) -> None:
    """Run one job; does not return."""
    from iiae_cli.__main__ import main

    out, null = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, null), (2, out)):
        os.dup2(source, target)
    os.chdir(job["folder"])
    sys.argv = ["iiae", *job["arguments"]]
    moments = Moments(job.get("watch", job["folder"]), job.get("at", 0), job.get("act", ""))
    moments.install()
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    chosen = os.environ.get("RANK", "0") == str(job.get("rank", 0))
    if chosen and (moments.count < moments.at or not moments.at):
        report(moments.count, 0.0)
    sys.stderr.flush()
    os._exit(code)


def answer(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Run a job in children; returns how they ended."""
    global _reports
    _reports = os.open(scratch / "report", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    children = fork_children(job, scratch)
    ends = [os.wait4(child, 0) for child in children]
    codes = [os.waitstatus_to_exitcode(status) for _, status, _ in ends]
    usage = ends[job.get("rank", 0)][2]
    ended = usage.ru_utime + usage.ru_stime
    count, when = json.loads(os.pread(_reports, 64, 0) or b"[0, 0]")
    os.close(_reports)
    errs = [(scratch / f"err-{rank}").read_text() for rank in range(len(children))]
    done = {"code": codes[0], "err": errs[0], "seconds": ended - when if when else 0.0}
    return {**done, "moments": count, "codes": codes, "errs": errs}


def fork_children(job: dict[str, Any], scratch: Path) -> list[int]:
    """One child, or one for every rank; returns their process numbers."""
    ranks = job.get("ranks", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = job if rank == job.get("rank", 0) else {**job, "at": 0}
            run_child(own, scratch / f"err-{rank}")
        children.append(child)
    return children


def serve() -> None:
    """Answer jobs until standard input ends; a `warm` one runs here, so that it imports for all."""
    from helpers import call

    scratch = Path(sys.argv[1])
    for line in sys.stdin:
        job = json.loads(line)
        if job.get("warm"):
            os.chdir(job["folder"])
            call(*job["arguments"])
        print(json.dumps({} if job.get("warm") else answer(job, scratch)), flush=True)


class Server:
    """The server's other end; trainings lie in its folder, beside what it notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scratch = folder / "scratch"
        scratch.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IIAE_")}
        kept |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=kept,
        )

    def run(self, folder: Path, *arguments: object, **job: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        job |= {"folder": str(folder), "arguments": [str(word) for word in arguments]}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        done: dict[str, Any] = json.loads(self.process.stdout.readline())
        return done

    def train(self, run: str, *more: object, **job: Any) -> dict[str, Any]:
        """Train the smallest model in FOLDER/RUN on the folder's data set d.h5."""
        path = self.folder / run
        arguments = ("train", "--preset", "digits-cdcb", "--data", "d.h5", "--run", path, *TINY)
        return self.run(self.folder, *arguments, *more, watch=str(path), **job)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


if __name__ == "__main__":
    serve()
