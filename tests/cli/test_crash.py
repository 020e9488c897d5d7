"""kill -9, SIGTERM and full disks while `prepare` and `encode` work: --resume ends in what an
undisturbed call writes.

IIAE_CRASHES=40 takes so many moments of each instead of three. One server process imports torch
once and forks for each call, so that a call costs a tenth of a second and not the seconds that an
import takes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import untrained_run
from moments import Server
from PIL import Image

MOMENTS = int(os.environ.get("IIAE_CRASHES", "3"))


class Calls:
    """Calls of the program, each in a process of its own."""

    def __init__(self, scratch: Path) -> None:
        self._server = Server(scratch)
        self._err = ""

    def __call__(
        self,
        folder: Path,
        *arguments: object,
        after: float | None = None,
        number: int = signal.SIGKILL,
    ) -> int:
        """Exit code of a call, or minus the signal that ended it, sent `after` seconds."""
        job = {} if after is None else {"after": after, "act": signal.Signals(number).name[3:]}
        done = self._server.run(folder, *arguments, **job)
        self._err = done["err"]
        return int(done["code"])

    def warm(self, folder: Path, *arguments: object) -> None:
        """Let later calls find imported what this one imports."""
        self._server.run(folder, *arguments, warm=True)

    def said(self) -> str:
        """What the last call wrote."""
        return self._err

    def close(self) -> None:
        """End the server."""
        self._server.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 pairs of noise as JPEGs, two of them broken."""
    folder = tmp_path_factory.mktemp("source")
    draw = np.random.default_rng(0)
    for number in range(400):
        for domain in "xy":
            path = folder / "test" / domain / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    for number in (7, 301):
        (folder / "test" / "y" / f"{number:04d}.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def calls(
    tmp_path_factory: pytest.TempPathFactory, source: Path, run_folder: Path
) -> Iterator[Calls]:
    folder = tmp_path_factory.mktemp("server")
    server = Calls(folder)
    for command in (CLASSES, ENCODE):
        given = class_source(folder / "classes") if command is CLASSES else source
        server.warm(folder, *(word.format(source=given, run=run_folder) for word in command))
        (folder / "out.h5").unlink(missing_ok=True)
    yield server
    server.close()


def content(path: Path) -> dict[str, object]:
    """Everything in an HDF5 file, datasets and attributes."""
    found: dict[str, object] = {}
    with h5py.File(path, "r") as file:
        found.update({f"@{name}": str(value) for name, value in file.attrs.items()})
        file.visititems(
            lambda name, one: (
                found.update({name: one[()].tolist()}) if isinstance(one, h5py.Dataset) else None
            )
        )
    return found


PREPARE = ("prepare", "pairs", "{source}", "-o", "out.h5", "--image-size", "64")
CLASSES = (
    *("prepare", "classes", "{source}", "-o", "out.h5", "--backbone", "shufflenet_v2_x0_5"),
    *("--backbone-weights", "none", "--batch-size", "2", "--device", "cpu"),
)
ENCODE = (
    *("encode", "{source}/test/y", "--domain", "y", "--run", "{run}", "-o", "out.h5"),
    *("--batch-size", "8", "--logvar", "--device", "cpu"),
)


SHARD = (*PREPARE, "--shard", "1/2")  # which has all pictures of y
FEATURES_SHARD = (*CLASSES, "--shard", "0/2")


@pytest.mark.parametrize(
    "command",
    [PREPARE, CLASSES, SHARD, FEATURES_SHARD, ENCODE],
    ids=["prepare", "features", "shard", "shard-of-features", "encode"],
)
def test_killed_at_any_moment_and_resumed_is_undisturbed(
    tmp_path: Path, calls: Calls, source: Path, run_folder: Path, command: tuple[str, ...]
) -> None:
    features = "classes" in command
    given = class_source(tmp_path / "classes") if features else source
    arguments = [one.format(source=given, run=run_folder) for one in command]
    whole = tmp_path / "whole"
    whole.mkdir()
    began = time.monotonic()
    assert calls(whole, *arguments) == (0 if features else 3), calls.said()
    seconds = time.monotonic() - began
    wanted = content(whole / "out.h5")
    assert [path.name for path in whole.iterdir()] == ["out.h5"]
    draw = random.Random(1)
    killed = resumed = 0
    for moment in range(MOMENTS):
        folder = tmp_path / f"moment{moment}"
        folder.mkdir()
        number = signal.SIGTERM if moment % 3 == 2 else signal.SIGKILL
        # Twice: what was resumed is killed again.
        for more in ([], ["--resume"]):
            code = calls(folder, *arguments, *more, after=draw.uniform(0, seconds), number=number)
            # Python needs a moment until it can take a SIGTERM as more than one.
            assert code in (0, 3, 75, -signal.SIGKILL, -signal.SIGTERM), calls.said()
            killed += code not in (0, 3)
            if (folder / "out.h5").exists():
                assert content(folder / "out.h5") == wanted
        code = calls(folder, *arguments, "--resume")
        assert code == (0 if features else 3), calls.said()
        resumed += "resuming" in calls.said()
        print(f"{command[0]}: moment {moment}, {killed} stopped, {resumed} resumed", flush=True)
        assert content(folder / "out.h5") == wanted
        assert [path.name for path in folder.iterdir()] == ["out.h5"]
        if not features:
            assert all(f"{number:04d}.jpg" in calls.said() for number in (7, 301))
        shutil.rmtree(folder)
    assert killed > MOMENTS // 4


def class_source(folder: Path) -> Path:
    draw = np.random.default_rng(1)
    for part, names in (("train", "ab"), ("test", "cd")):
        for domain in "xy":
            for name in names:
                for number in range(3):
                    path = folder / part / domain / name / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return folder


def test_encode_resumes_only_what_is_its_own(
    tmp_path: Path, calls: Calls, source: Path, run_folder: Path
) -> None:
    arguments = [one.format(source=source, run=run_folder) for one in ENCODE]
    code = 3
    for delay in (0.5, 0.2, 1.0, 0.1, 2.0):  # until it is stopped in the middle
        (tmp_path / "out.h5").unlink(missing_ok=True)
        code = calls(tmp_path, *arguments, "--resume", after=delay, number=signal.SIGTERM)
        if code == 75 and (tmp_path / "out.h5.partial").exists():
            break
    else:
        pytest.skip("this machine is too busy to stop a call in the middle")
    assert "--resume" in calls.said()
    assert calls(tmp_path, *arguments) == 2 and "holds interrupted work" in calls.said()
    assert calls(tmp_path, *arguments, "--resume", "--dtype", "float16") == 3
    assert "begun with another options: starting afresh" in calls.said()
    assert calls(tmp_path, *arguments, "--resume") == 2
    assert "exists already, with another options" in calls.said() and "--overwrite" in calls.said()
    assert calls(tmp_path, *arguments, "--resume", "--dtype", "float16") == 3
    assert "is complete already" in calls.said() and "0301.jpg" in calls.said()
    changed = source / "test" / "y" / "0000.jpg"
    before = changed.stat()
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        assert calls(tmp_path, *arguments, "--resume", "--dtype", "float16") == 2
        assert "another content of the inputs" in calls.said()
    finally:
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("command", [PREPARE, ENCODE], ids=["prepare", "encode"])
def test_a_full_disk_leaves_earlier_outputs_and_what_is_done(
    tmp_path: Path, calls: Calls, source: Path, run_folder: Path, command: tuple[str, ...]
) -> None:
    arguments = [one.format(source=source, run=run_folder) for one in command]
    assert calls(tmp_path, *arguments) == 3, calls.said()
    wanted, size = content(tmp_path / "out.h5"), (tmp_path / "out.h5").stat().st_size
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", small], check=False
    ).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        (small / "out.h5").write_bytes(b"earlier")
        assert calls(small, *arguments, "--overwrite") == 2, calls.said()
        said = calls.said()
        assert "error: no space left while writing" in said and "hint: free some space" in said
        assert "Traceback" not in said and (small / "out.h5").read_bytes() == b"earlier"
        assert (
            subprocess.run(
                ["mount", "-o", f"remount,size={size * 8}", small], check=True
            ).returncode
            == 0
        )
        assert calls(small, *arguments, "--overwrite", "--resume") == 3, calls.said()
        assert content(small / "out.h5") == wanted
    finally:
        subprocess.run(["umount", small], check=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(
    tmp_path: Path, calls: Calls, source: Path, run_folder: Path
) -> None:
    tmp_path.chmod(0o500)
    for command in (PREPARE, ENCODE):
        assert calls(tmp_path, *(one.format(source=source, run=run_folder) for one in command)) == 2
        assert "error: no permission to write" in calls.said() and "hint: " in calls.said()
