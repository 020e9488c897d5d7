"""Runs cases in a process of their own, with bounds, and prints one JSON line for each.

    python -m malformed.worker FOLDER [--seed N] [--only TEXT] [--count N] [--keep]

All modules are imported first; then a fork runs one case after another in-process, so that hundreds of programs take
seconds. A case that crashes it, hangs or takes too much ends that fork: it is told, and the next fork goes on behind
it. What a case may do: end with an exit code allowed; on exit 2 say one `error:` and one `hint:` line; write below its
own `work/out`; take `MEMORY` more than the program itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iiae_cli.cli import app as cli
from malformed import ALL_CASES
from malformed.cases import Case, Ground, Making
from malformed.ground import lay_ground

SECONDS = 30.0  # of the clock, on a machine that others use too
PROCESSOR_SECONDS = 5.0
ADDRESSES = 3 << 30  # bytes that may be asked for
MEMORY = 1 << 30  # bytes that may be used
FILE_SIZE = 64 << 20

Record = dict[str, object]


def chosen(only: str, count: int | None, seed: int) -> list[Case]:
    """All cases whose name holds a text, or that many of them by seed."""
    cases = [case for case in ALL_CASES if only in f"{case.kind}/{case.name}"]
    return (
        cases
        if count is None
        else sorted(random.Random(seed).sample(cases, count), key=cases.index)
    )


def run_all(
    cases: list[Case], seed: int, root: Path, ground: Ground, keep: bool
) -> Iterator[Record]:
    """A record of every case, in order."""
    done = 0
    while done < len(cases):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            _run_here(cases[done:], seed, root, ground, keep, os.fdopen(write_end, "w"))
        os.close(write_end)
        with os.fdopen(read_end) as lines:
            for line in lines:
                yield json.loads(line)
                done += 1
        _, status, _ = os.wait4(pid, 0)
        if status != 0:
            case, code = cases[done], os.waitstatus_to_exitcode(status)
            shutil.rmtree(root / case.name, ignore_errors=True)
            ended = signal.Signals(-code).name if code < 0 else f"exit {code}"
            yield _record(case, code, 0.0, 0, f"ended by {ended}", [], "")
            done += 1


def _run_here(
    cases: list[Case], seed: int, root: Path, ground: Ground, keep: bool, lines: object
) -> None:
    """Run cases in this process, a fork; never returns."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        for case in cases:
            print(json.dumps(_run(case, seed, root, ground, keep)), file=lines, flush=True)  # type: ignore[call-overload]
        status = 0
    except BaseException:
        os.dup2(2, 1)
        traceback.print_exc()
    finally:
        os._exit(status)


def _run(case: Case, seed: int, root: Path, ground: Ground, keep: bool) -> Record:
    """Make the input, run the program on it, and say what happened."""
    folder = root / case.name
    for one in ("in", "work", "tmp", "home"):
        (folder / one).mkdir(parents=True)
    making = Making(folder / "in", ground, case.rng(seed), folder / "canary")
    arguments = [str(one) for one in case.build(making)]
    (folder / "stdin").write_bytes(making.stdin)
    before = _listing(root)
    code, seconds, peak = _program(arguments, folder, making.environment)
    error_text = (folder / "stderr").read_text(errors="replace")
    problem = _problem(code, case.allowed, error_text, peak) or _traces(
        folder, before, _listing(root)
    )
    if not (keep and problem):
        shutil.rmtree(folder)
    return _record(case, code, seconds, peak, problem, arguments, error_text)


def _record(
    case: Case,
    code: int,
    seconds: float,
    peak: int,
    problem: str | None,
    arguments: list[str],
    error_text: str,
) -> Record:
    return {
        "kind": case.kind,
        "name": case.name,
        "code": code,
        "seconds": round(seconds, 3),
        "peak": peak,
        "problem": problem,
        "arguments": arguments,
        "stderr": error_text[-2000:],
    }


def _program(
    arguments: list[str], folder: Path, environment: dict[str, str]
) -> tuple[int, float, int]:
    """The program's exit code, the processor's seconds and the bytes that it took."""
    with _standard_files(folder), _environment(folder, environment), _bounds():
        base, before = _resident("VmRSS"), os.times()
        sys.argv = ["iiae", *arguments]
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            code = 1
            traceback.print_exc()
        after = os.times()
        sys.stdout.flush()
        sys.stderr.flush()
        return (
            code,
            after.user + after.system - before.user - before.system,
            max(0, _resident("VmHWM") - base),
        )


@contextmanager
def _standard_files(folder: Path) -> Iterator[None]:
    """Standard input, output and error are files of the case; the working folder is its own."""
    kept = [os.dup(number) for number in range(3)]
    here = Path.cwd()
    os.chdir(folder / "work")
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, (name, flags) in enumerate(
        [("stdin", os.O_RDONLY), ("stdout", write), ("stderr", write)]
    ):
        opened = os.open(folder / name, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(os.dup(0))
    try:
        yield
    finally:
        for number, one in enumerate(kept):
            os.dup2(one, number)
            os.close(one)
        os.chdir(here)


@contextmanager
def _environment(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"), **environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _bounds() -> Iterator[None]:
    """Beyond these the process is ended by the kernel, or gets no more memory."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, most))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _problem(code: int, allowed: frozenset[int], error_text: str, peak: int) -> str | None:
    """What is wrong with the end of the program, if anything."""
    lines = error_text.splitlines()
    if "Traceback" in error_text or code == 1:
        return f"traceback: {lines[-1] if lines else ''}"
    counts = [sum(line.startswith(start) for line in lines) for start in ("error: ", "hint: ")]
    if counts != ([1, 1] if code == 2 else [0, 0]):
        return f"exit {code} with {counts} error and hint lines"
    if code not in allowed:
        return f"exit {code}, not {sorted(allowed)}"
    return f"took {peak >> 20} MiB" if peak > MEMORY else None


Listing = dict[str, tuple[int, int, int]]


def _traces(folder: Path, before: Listing, after: Listing) -> str | None:
    """What was changed outside of the output, or left half-written."""
    own = tuple(
        f"{folder}/{place}" for place in ("work/out", "work/data", "work/runs", "stdout", "stderr")
    )
    touched = [
        path
        for path in {**before, **after}
        if after.get(path) != before.get(path) and not path.startswith(own)
    ]
    if touched:
        return f"touched {touched[0]}"
    left = [path for path in after if path.startswith(f"{folder}/work") and path.endswith(".tmp")]
    return f"left {left[0]}" if left else None


def _resident(name: str) -> int:
    """Bytes of memory in use, or at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _listing(root: Path) -> Listing:
    """Every file, folder and link below the root, and what tells that one was changed."""
    found = {}
    stack = [str(root)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                stat = entry.stat(follow_symlinks=False)
                is_folder = entry.is_dir(follow_symlinks=False)
                found[entry.path] = (
                    (0, 0, stat.st_ino)
                    if is_folder
                    else (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                )
                if is_folder:
                    stack.append(entry.path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--count", type=int)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    root = given.folder.absolute()
    ground = lay_ground(root / "ground")
    for record in run_all(
        chosen(given.only, given.count, given.seed), given.seed, root, ground, given.keep
    ):
        print(json.dumps(record), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
