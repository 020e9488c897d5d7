"""kill -9, SIGTERM and full disks while `prepare` and `encode` work: --resume ends in what an
undisturbed call writes. IIAE_CRASHES=40 takes so many moments of each instead of three.
"""

import os
import random
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from helpers import content
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


@pytest.fixture(scope="module")
def places(tmp_path_factory, run):
    """160 pairs of noise as JPEGs, two of them broken; pictures of four classes; and a run."""
    folder = tmp_path_factory.mktemp("source")
    places = {name: folder / name for name in ("pairs", "classes")} | {"run": run}
    classes = ("train/{}/a", "train/{}/b", "test/{}/c", "test/{}/d")
    draw = np.random.default_rng(0)
    for domain in "xy":
        paths = [places["pairs"] / f"test/{domain}/{number:04d}.jpg" for number in range(160)]
        folders = [places["classes"] / name.format(domain) for name in classes]
        paths += [folder / f"{number}.png" for folder in folders for number in range(3)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    for number in (7, 131):
        (places["pairs"] / "test" / "y" / f"{number:04d}.jpg").write_bytes(b"broken")
    return places


Call = Callable[..., tuple[int, str, int]]


@pytest.fixture(scope="module")
def call(nursery, places):
    """Runs the program in a folder; returns its exit code, stderr, and moments (moments.py)."""

    def call(folder, command, *more, **job):
        words = [word.format(**places) for word in command]
        done = nursery.run(folder, *words, *more, **job)
        return done["code"], done["err"], done["moments"]

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_and_resumed_is_undisturbed(tmp_path, call, name):
    command = COMMANDS[name]
    done = 0 if "features" in name else 3  # two pictures of y are broken
    whole = tmp_path / "whole"
    whole.mkdir()
    code, err, moments = call(whole, command)
    assert code == done, err
    wanted = content(whole / "out.h5")
    assert [path.name for path in whole.iterdir()] == ["out.h5"]
    draw = random.Random(1)
    killed = 0
    for moment in range(MOMENTS):
        folder = tmp_path / f"moment{moment}"
        folder.mkdir()
        act = "TERM" if moment % 3 == 2 else "kill"
        for more in ([], ["--resume"]):  # what was resumed is killed again
            at = draw.randint(1, moments)
            code, err, _ = call(folder, command, *more, at=at, act=act)
            assert code in (0, 3, 75, 137), err
            killed += code not in (0, 3)
            if (folder / "out.h5").exists():
                assert content(folder / "out.h5") == wanted
        code, err, _ = call(folder, command, "--resume")
        assert code == done, err
        assert content(folder / "out.h5") == wanted
        assert [path.name for path in folder.iterdir()] == ["out.h5"]
        assert done == 0 or all(f"{number:04d}.jpg" in err for number in (7, 131))
        shutil.rmtree(folder)
    assert killed > MOMENTS // 4


@pytest.mark.parametrize("act", ["ENOSPC", "EACCES"])
@pytest.mark.parametrize("name", ["prepare", "encode"])
def test_a_refusal_to_write_leaves_earlier_outputs_and_what_is_done(tmp_path, call, name, act):
    said = {"ENOSPC": "No space left on device", "EACCES": "Permission denied"}
    codes = []
    for moment in range(1, 12, 2):
        (tmp_path / "out.h5").write_bytes(b"earlier")
        arguments = (COMMANDS[name], "--overwrite", "--resume")
        code, err, _ = call(tmp_path, *arguments, at=moment, act=act)
        codes.append(code)
        assert code in (2, 3) and "Traceback" not in err, err
        if code == 2:
            assert said[act] in err and "hint: " in err
            assert (tmp_path / "out.h5").read_bytes() == b"earlier"
    assert codes.count(2) >= 2
    assert call(tmp_path, COMMANDS[name], "--overwrite", "--resume")[0] == 3
    assert content(tmp_path / "out.h5")
