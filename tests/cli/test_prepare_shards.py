"""`iiae prepare --shard` and `--merge` end to end: a job array, resuming, what was skipped, and what is refused."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from class_sources import NETWORK, class_folders, make_quick
from helpers import Program
from PIL import Image

from iiae_cli.data.sources import extraction, work
from iiae_cli.data.sources import registry as prepare


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)
    monkeypatch.setattr(work, "BLOCK_ITEMS", 2)
    monkeypatch.setattr(prepare, "embedded_digits", cache(prepare.embedded_digits))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Nine pairs, one of which cannot be read."""
    draw = np.random.default_rng(0)
    for number in range(9):
        for domain in "xy":
            path = tmp_path / "mine" / domain / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (tmp_path / "mine" / "y" / "3.png").write_bytes(b"broken")
    return Path("mine")


@pytest.fixture
def classes(tmp_path: Path) -> tuple[object, ...]:
    """A call that extracts features."""
    for part, names in (("train", ("ant", "bee")), ("test", ("cow",))):
        for domain in "xy":
            class_folders(tmp_path / "classes" / part / domain, dict.fromkeys(names, 3))
    network = (
        "--backbone",
        NETWORK,
        "--backbone-weights",
        "none",
        "--batch-size",
        2,
        "--device",
        "cpu",
    )
    return "prepare", "classes", "classes", *network


def task(monkeypatch: pytest.MonkeyPatch, number: int, count: int, lowest: int = 0) -> None:
    """Be a task of a SLURM job array."""
    for name, value in (("ID", number), ("COUNT", count), ("MIN", lowest)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_a_job_array_and_its_merge_equal_one_call(
    iiae: Program, pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    base = ("prepare", "pairs", pairs, "--seed", 2)
    assert iiae(*base, "-o", "d.h5").code == 3
    Path("d.h5").rename("whole/d.h5")
    codes = []
    for number in range(1, 5):
        task(monkeypatch, number, 4, lowest=1)
        outcome = iiae(*base, "--shard", "auto", "-o", "d-{shard}.h5", "--resume")
        assert f"shard {number - 1}/4: " in outcome.err and outcome.out.startswith("part\trows\n")
        codes.append(outcome.code)
    assert sorted(codes) == [0, 0, 0, 3]
    again = iiae(*base, "--shard", "auto", "-o", "d-{shard}.h5", "--resume", "--json")
    assert "d-3-of-4.h5 is complete already" in again.err and again.json["shard"] == "3/4"
    paths = sorted(Path().glob("d-*-of-4.h5"))
    outcome = iiae("prepare", *paths[::-1], "--merge", "-o", "d.h5", "--json")
    assert outcome.code == 3 and len(outcome.json["skipped"]) == 1 and "y/3.png" in outcome.err
    assert outcome.json["splits"] == {"train": 6, "valid": 1, "test": 1}
    assert Path("d.h5").read_bytes() == (tmp_path / "whole" / "d.h5").read_bytes()
    # To every later call it is the file of one call.
    assert "complete already" in iiae(*base, "-o", "d.h5", "--resume").err
    before = Path("d.h5").stat()
    outcome = iiae("prepare", "pairs", *paths, "--merge", "-o", "d.h5", "--resume")
    assert outcome.code == 3 and "complete already" in outcome.err and Path("d.h5").stat() == before
    assert "d.h5 exists already" in iiae("prepare", *paths, "--merge", "-o", "d.h5").error()[0]
    assert (
        iiae("prepare", *paths, "--merge", "-o", "d.h5", "--overwrite", "--pictures", "p").code == 3
    )
    assert len(list(Path("p").rglob("*.png"))) == 16
    assert iiae("prepare", "digits-cdcb", "--limit", 3, "-o", "other.h5").code == 0
    assert (
        "of other shards"
        in iiae("prepare", *paths, "--merge", "-o", "other.h5", "--resume").error()[0]
    )


def test_the_default_places_are_the_sets(iiae: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        task(monkeypatch, number, 2)
        assert iiae("prepare", "digits-edge", "--limit", 5, "--shard", "auto").code == 0
    shards = [f"data/digits-edge-{number}-of-2.h5" for number in range(2)]
    assert iiae("prepare", *shards, "--merge").out == "split\tpairs\ntrain\t5\nvalid\t0\ntest\t5\n"
    merged = Path("data/digits-edge.h5").read_bytes()
    assert iiae("prepare", "digits-edge", "--limit", 5, "--overwrite").code == 0
    assert Path("data/digits-edge.h5").read_bytes() == merged


@pytest.mark.parametrize("named", [("-o", "{}"), ("-o{}",), ("--output={}",), ("--output", "./{}")])
def test_the_command_is_told_as_one_call_would(iiae: Program, named: tuple[str, ...]) -> None:
    base = ("prepare", "digits-cdcb", "--limit", 3)
    for index in ("0/2", "1/2"):
        words = [word.format("d-{shard}.h5") for word in named]
        assert (
            iiae(
                *base,
                *words,
                "--shard" if index == "0/2" else f"--shard={index}",
                *[index][: index == "0/2"],
            ).code
            == 0
        )
    assert iiae("prepare", "d-0-of-2.h5", "d-1-of-2.h5", "--merge", "-o", "d.h5").code == 0
    merged = Path("d.h5").read_bytes()
    words = [word.format("d.h5").replace("./", "") for word in named]
    assert iiae(*base, *words, "--overwrite").code == 0
    assert Path("d.h5").read_bytes() == merged


def test_shards_come_from_standard_input(
    iiae: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for index in range(2):
        assert (
            iiae(
                "prepare",
                "digits-cdcb",
                "--limit",
                3,
                "--shard",
                f"{index}/2",
                "-o",
                "d-{shard}.h5",
            ).code
            == 0
        )
    (tmp_path / "list").write_text("d-1-of-2.h5\nd-0-of-2.h5\n")
    with (tmp_path / "list").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert iiae("prepare", "-", "--merge", "-o", "d.h5").code == 0


def test_a_signal_leaves_features_that_resume_takes_up(
    iiae: Program, classes: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, computed = extraction._features, []

    def stop(network, inputs, paths):  # type: ignore[no-untyped-def]
        computed.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return compute(network, inputs, paths)

    part = ("--shard", "1/2", "-o", "f-{shard}.h5")
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_features", stop)
        outcome = iiae(*classes, *part)
    assert outcome.code == 75 and "--resume" in outcome.err and not Path("f-1-of-2.h5").exists()
    assert "holds interrupted work" in iiae(*classes, *part).error()[0] and len(computed) == 1
    assert iiae(*classes, *part, "--resume").code == 0
    assert iiae(*classes, "--shard", "0/2", "-o", "f-{shard}.h5").code == 0
    outcome = iiae("prepare", "f-0-of-2.h5", "f-1-of-2.h5", "--merge", "-o", "f.h5")
    assert outcome.code == 0 and outcome.out.startswith("split\tx\ty\tclasses\ntrain\t6\t6\t2\n")
    merged = Path("f.h5").read_bytes()
    assert iiae(*classes, "-o", "f.h5", "--overwrite").code == 0
    assert Path("f.h5").read_bytes() == merged
    assert (
        "another shard, by other options"
        in iiae(*classes, "--no-normalise", *part, "--resume").error()[0]
    )


@pytest.mark.parametrize(
    "arguments, said, mended",
    [
        (("digits-cdcb", "--shard", "2/2", "-o", "d-{shard}.h5"), "--shard 2/2 is not I/N", "0/4"),
        (
            ("digits-cdcb", "--shard", "auto", "-o", "d.h5"),
            "all tasks of the array would write d.h5",
            "{shard}",
        ),
        (("digits-cdcb", "-o", "d-{shard}.h5"), "asks for a shard, and none was named", "--shard"),
        (
            ("digits-cdcb", "--shard", "0/2", "--pictures", "p"),
            "--pictures does not apply to --shard",
            "merged",
        ),
        (
            ("a.h5", "--merge", "--shard", "0/2", "-o", "d.h5"),
            "--shard does not apply to --merge",
            "leave it out",
        ),
        (
            ("a.h5", "--merge", "--seed", "3", "-o", "d.h5"),
            "does not apply to --merge",
            "the shards say",
        ),
        (
            ("a.h5", "--merge", "--source", "mine", "-o", "d.h5"),
            "does not apply to --merge",
            "the shards say",
        ),
        (
            ("digits-cdcb", "--merge", "-o", "d.h5"),
            "no shard was named",
            "iiae prepare data-*-of-4.h5 --merge",
        ),
        (("none.h5", "--merge", "-o", "d.h5"), "none.h5 does not exist", "--shard"),
        (("digits-cdcb", "a.h5", "b.h5", "-o", "d.h5"), "2 sources are named", "--merge"),
    ],
)
def test_what_does_not_go_together_is_refused(
    iiae: Program,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
    mended: str,
) -> None:
    task(monkeypatch, 0, 2)
    outcome = iiae("prepare", *arguments)
    error, hint = outcome.error()
    assert outcome.code == 2 and said in error and mended in hint
    assert not list(Path().iterdir())


def test_shards_of_another_set_than_named_are_refused(iiae: Program) -> None:
    assert iiae("prepare", "digits-cdcb", "--limit", 3, "--shard", "0/1", "-o", "d.h5").code == 0
    assert (
        "is a shard of digits-cdcb, not of cars"
        in iiae("prepare", "cars", "d.h5", "--merge", "-o", "z.h5").error()[0]
    )
    error, hint = iiae("train", "--preset", "digits-cdcb", "--data", "d.h5").error()
    assert "d.h5 is one shard of a data set" in error and "--merge" in hint
