"""kill -9, SIGTERM and full disks while `prepare` and `encode` work: --resume ends in what an
undisturbed call writes.

IIAE_CRASHES=40 takes so many moments of each instead of three. One server process imports torch
once and forks for each call, which so costs a tenth of a second instead of seconds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import untrained_run
from moments import Server
from PIL import Image

MOMENTS = int(os.environ.get("IIAE_CRASHES", "3"))

PREPARE = ("prepare", "pairs", "{pairs}", "-o", "out.h5", "--image-size", "64")
FEATURES = (
    *("prepare", "classes", "{classes}", "-o", "out.h5", "--backbone", "shufflenet_v2_x0_5"),
    *("--backbone-weights", "none", "--batch-size", "2", "--device", "cpu"),
)
ENCODE = (
    *("encode", "{pairs}/test/y", "--domain", "y", "--run", "{run}", "-o", "out.h5"),
    *("--batch-size", "8", "--logvar", "--device", "cpu"),
)
COMMANDS = {
    "prepare": PREPARE,
    "features": FEATURES,
    "shard": (*PREPARE, "--shard", "1/2"),  # which has all pictures of y
    "shard-of-features": (*FEATURES, "--shard", "0/2"),
    "encode": ENCODE,
}


def noise(draw: np.random.Generator, path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """400 pairs of noise as JPEGs, two of them broken; pictures of four classes; and a run."""
    folder = tmp_path_factory.mktemp("source")
    places = {name: folder / name for name in ("pairs", "classes", "run")}
    draw = np.random.default_rng(0)
    for number in range(400):
        for domain in "xy":
            noise(draw, places["pairs"] / "test" / domain / f"{number:04d}.jpg", 64)
    for number in (7, 301):
        (places["pairs"] / "test" / "y" / f"{number:04d}.jpg").write_bytes(b"broken")
    for part, names in (("train", "ab"), ("test", "cd")):
        for name in [
            f"{domain}/{name}/{n}.png" for domain in "xy" for name in names for n in "012"
        ]:
            noise(draw, places["classes"] / part / name, 40)
    untrained_run(places["run"])
    return places


Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory, places: dict[str, Path]) -> Iterator[Call]:
    """Runs the program in a folder; returns its exit code, or minus a signal, and its stderr."""
    server = Server(tmp_path_factory.mktemp("server"))

    def call(folder: Path, command: tuple[str, ...], *more: str, **job: Any) -> tuple[int, str]:
        words = [word.format(**places) for word in command]
        done = server.run(folder, *words, *more, **job)
        return done.get("code", 0), done.get("err", "")

    for command in (FEATURES, ENCODE):  # later calls find imported what these import
        call(server.folder, command, warm=True)
        (server.folder / "out.h5").unlink(missing_ok=True)
    yield call
    server.close()


def content(path: Path) -> dict[str, object]:
    """Everything in an HDF5 file, datasets and attributes."""
    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visit(names.append)
        arrays = {name: file[name] for name in names if isinstance(file[name], h5py.Dataset)}
        values: dict[str, object] = {name: array[()].tolist() for name, array in arrays.items()}
        return values | {f"@{name}": str(value) for name, value in file.attrs.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_and_resumed_is_undisturbed(
    tmp_path: Path, call: Call, name: str
) -> None:
    command = COMMANDS[name]
    done = 0 if "features" in name else 3  # two pictures of y are broken
    whole = tmp_path / "whole"
    whole.mkdir()
    began = time.monotonic()
    code, err = call(whole, command)
    seconds = time.monotonic() - began
    assert code == done, err
    wanted = content(whole / "out.h5")
    assert [path.name for path in whole.iterdir()] == ["out.h5"]
    draw = random.Random(1)
    killed = 0
    for moment in range(MOMENTS):
        folder = tmp_path / f"moment{moment}"
        folder.mkdir()
        act = "TERM" if moment % 3 == 2 else "KILL"
        for more in ([], ["--resume"]):  # what was resumed is killed again
            code, err = call(folder, command, *more, after=draw.uniform(0, seconds), act=act)
            # Python needs a moment until it can take a SIGTERM as more than one.
            assert code in (0, 3, 75, -signal.SIGKILL, -signal.SIGTERM), err
            killed += code not in (0, 3)
            if (folder / "out.h5").exists():
                assert content(folder / "out.h5") == wanted
        code, err = call(folder, command, "--resume")
        assert code == done, err
        assert content(folder / "out.h5") == wanted
        assert [path.name for path in folder.iterdir()] == ["out.h5"]
        assert done == 0 or all(f"{number:04d}.jpg" in err for number in (7, 301))
        shutil.rmtree(folder)
    assert killed > MOMENTS // 4


def test_encode_resumes_only_what_is_its_own(
    tmp_path: Path, call: Call, places: dict[str, Path]
) -> None:
    for delay in (0.5, 0.2, 1.0, 0.1, 2.0):  # until it is stopped in the middle
        (tmp_path / "out.h5").unlink(missing_ok=True)
        code, err = call(tmp_path, ENCODE, "--resume", after=delay, act="TERM")
        if code == 75 and (tmp_path / "out.h5.partial").exists():
            break
    else:
        pytest.skip("this machine is too busy to stop a call in the middle")
    assert "--resume" in err
    half = ("--resume", "--dtype", "float16")

    def then(*more: str) -> tuple[int, str]:
        return call(tmp_path, ENCODE, *more)

    code, err = then()
    assert code == 2 and "holds interrupted work" in err
    code, err = then(*half)
    assert code == 3 and "begun with another options: starting afresh" in err
    code, err = then("--resume")
    assert code == 2 and "exists already, with another options" in err and "--overwrite" in err
    code, err = then(*half)
    assert code == 3 and "is complete already" in err and "0301.jpg" in err
    changed = places["pairs"] / "test" / "y" / "0000.jpg"
    before = changed.stat()
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    code, err = then(*half)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert code == 2 and "another content of the inputs" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("name", ["prepare", "encode"])
def test_a_full_disk_leaves_earlier_outputs_and_what_is_done(
    tmp_path: Path, call: Call, name: str
) -> None:
    command = COMMANDS[name]
    assert call(tmp_path, command)[0] == 3
    wanted, size = content(tmp_path / "out.h5"), (tmp_path / "out.h5").stat().st_size
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", small]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        (small / "out.h5").write_bytes(b"earlier")
        code, err = call(small, command, "--overwrite")
        assert code == 2, err
        assert "error: no space left while writing" in err and "hint: free some space" in err
        assert "Traceback" not in err and (small / "out.h5").read_bytes() == b"earlier"
        subprocess.run(["mount", "-o", f"remount,size={size * 8}", small], check=True)
        code, err = call(small, command, "--overwrite", "--resume")
        assert code == 3, err
        assert content(small / "out.h5") == wanted
    finally:
        subprocess.run(["umount", small], check=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["prepare", "encode"])
def test_a_folder_without_permission_is_named(tmp_path: Path, call: Call, name: str) -> None:
    tmp_path.chmod(0o500)
    code, err = call(tmp_path, COMMANDS[name])
    assert code == 2 and "error: no permission to write" in err and "hint: " in err
