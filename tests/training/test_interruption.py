"""Training that is killed, stopped or refused by the operating system at any moment, and resumed.

The few moments that are tried by default are spread over a run; `pytest -m exhaustive` tries every
one.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from helpers import content, metrics_of
from moments import TINY
from safetensors import safe_open

from iiae_cli.runs import RunDir, load_model

STEPS = 8
SOON = 5.0  # processor seconds from a signal to the end of the process
EXHAUSTIVE = [False, pytest.param(True, marks=pytest.mark.exhaustive)]


@pytest.fixture(scope="module")
def train(nursery):
    """Trains in a folder of this name, eight steps."""
    return lambda run, *more, **job: nursery.train(run, "--steps", STEPS, *more, **job)


@pytest.fixture(scope="module")
def whole(nursery, train):
    """A run that nothing happened to, and the number of its moments."""
    done = train("whole")
    assert done["code"] == 0, done["err"]
    return nursery.folder / "whole", done["moments"]


@pytest.fixture(scope="module")
def finish(whole, train):
    """Resumes a run to its end, and finds the same files there as in the whole one."""

    def finish(run):
        resumed = train(run, "--resume")
        assert resumed["code"] == 0, (run, resumed["err"])
        assert_equal_runs(whole[0], whole[0].with_name(run))

    return finish


def outputs(run):
    """Every file but TensorBoard's, and but the older checkpoint: a stop leaves one where
    it came.
    """
    older = min((run / "checkpoints").iterdir())
    paths = [path for path in run.rglob("*") if "tfevents" not in path.name and path != older]
    return sorted(str(path.relative_to(run)) for path in paths)


def assert_equal_runs(one, other):
    """Every output equal, value for value, and nothing left over."""
    names = outputs(one)
    assert names == outputs(other)
    assert len(list((other / "checkpoints").iterdir())) == 2
    assert metrics_of(one) == metrics_of(other)
    assert content(one / "gallery.h5") == content(other / "gallery.h5")
    for name in names:
        if name.endswith(".safetensors"):  # the headers have checksums, too
            heads = [safe_open(run / name, framework="pt").metadata() for run in (one, other)]
            assert heads[0] == heads[1], name
        elif name.endswith((".png", ".yaml")):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert RunDir(other).read_info()["state"] == "finished"


def assert_whole(run):
    """Every file that has its name can be read."""
    directory = RunDir(run)
    if directory.exists():
        directory.read_config()
    if directory.model_file.exists():
        load_model(directory)
    directory.latest_checkpoint()
    assert not list(run.glob("checkpoints/*.damaged"))
    if directory.metrics_file.exists():
        metrics_of(run)
    if directory.info_file.exists():
        assert directory.read_info()
    if directory.gallery_file.exists():
        with h5py.File(directory.gallery_file) as file:
            assert len(file["ids"]) == len(file["shared/mean"])


def spread(last, count, exhaustive):
    """Moments from the first to the last, or all of them."""
    if exhaustive:
        return list(range(1, last + 1))
    return sorted({round(1 + index * (last - 1) / (count - 1)) for index in range(count)})


CODES = {"kill": 137, "TERM": 75, "USR1": 75, "USR2": 75, "INT": 130, "ENOSPC": 2, "EACCES": 2}
WORDS = {"ENOSPC": "No space left on device", "EACCES": "Permission denied"}


@pytest.mark.parametrize("exhaustive", EXHAUSTIVE)
@pytest.mark.parametrize(
    ("acts", "count"),
    [(["kill"], 6), (["TERM", "USR2", "INT", "USR1"], 5), (["ENOSPC"], 4), (["EACCES"], 4)],
)
def test_stopped_at_any_moment_it_is_whole_and_resumed_ends_in_the_same_files(
    nursery, train, whole, finish, acts, count, exhaustive
):
    for index, moment in enumerate(spread(whole[1], count, exhaustive)):
        act = acts[index % len(acts)]
        name = f"{act}-{moment}-{exhaustive}"
        done, run = train(name, at=moment, act=act), nursery.folder / name
        assert_whole(run)
        assert done["seconds"] < SOON and "Traceback" not in done["err"], done["err"]
        # Too late for a signal; steps, locks, removals and syncing a folder cannot be refused.
        if done["code"] or RunDir(run).read_info().get("state") != "finished":
            assert done["code"] == CODES[act], (moment, done["err"])
            starts = [line.split(" ")[0] for line in done["err"].splitlines()]
            assert starts.count("error:") == starts.count("hint:") == (act in WORDS)
            assert WORDS.get(act, "") in done["err"]
        finish(name)


def test_stopped_twice_and_killed_between_still_ends_in_the_same_files(train, whole, finish):
    codes = []
    for act, part in (("kill", 0.3), ("TERM", 0.2), ("kill", 0.25), ("USR2", 0.3)):
        done = train("often", "--resume", at=max(1, round(part * whole[1])), act=act)
        codes.append(done["code"])
    assert codes == [137, 75, 137, 75]
    finish("often")


def test_a_finished_run_says_so_and_is_left_alone(train, whole):
    run = whole[0]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = train("whole", "--resume")
    assert again["code"] == 0 and "already finished" in again["err"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def stat_of(pid):
    """Whether a process has a handler for SIGTERM (the interpreter has started), and its processor
    seconds.
    """
    status, stat = (Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "stat"))
    caught = int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1
    times = stat.rsplit(")", 1)[1].split()[11:13]
    return bool(caught), sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


EARLY = [pytest.param(seconds, marks=pytest.mark.exhaustive) for seconds in (0.0, 1.0, 2.0, 4.0)]


@pytest.mark.parametrize("seconds", [None, *EARLY])
def test_a_signal_ends_the_program_soon_while_it_starts_and_while_it_trains(
    nursery, tmp_path, seconds
):
    command = [sys.executable, "-m", "iiae_cli", "train", "--preset", "digits-cdcb", *TINY]
    command += ["--data", str(nursery.folder / "d.h5"), "--run", "run", "--steps", "100000"]
    process = subprocess.Popen([*command, "--resume"], cwd=tmp_path, stderr=subprocess.PIPE)
    if seconds is None:
        assert any(line.startswith(b"step 4:") for line in process.stderr)
    else:
        while not stat_of(process.pid)[0]:
            time.sleep(0.01)
        time.sleep(seconds)
    before = stat_of(process.pid)[1]
    process.terminate()
    err = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 75, err
    assert usage.ru_utime + usage.ru_stime - before < SOON
    assert "--resume" in err and "Traceback" not in err
