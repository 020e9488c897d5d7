"""`iiae prepare --shard` and `--merge` end to end: a job array, resuming, and what is refused."""

import os
import signal
from pathlib import Path

import pytest
from class_sources import NETWORK, assert_same_data, class_folders, make_quick, noise, picture

from iiae_cli.data import backbone
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.sources import plan


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)
    monkeypatch.setattr(plan, "BLOCK_FILES", 2)


@pytest.fixture
def pairs(tmp_path):
    """Nine pairs, one of which cannot be read."""
    for number in range(9):
        picture(tmp_path / "mine" / "x" / f"{number}.png", noise((8, 8, 3), number))
        picture(tmp_path / "mine" / "y" / f"{number}.png", noise((8, 8, 3), 9 + number))
    (tmp_path / "mine" / "y" / "3.png").write_bytes(b"broken")
    return Path("mine")


def task(monkeypatch, number, count, lowest=0):
    for name, value in (("ID", number), ("COUNT", count), ("MIN", lowest)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_a_job_array_and_its_merge_equal_one_call(iiae, pairs, monkeypatch):
    base = ("prepare", "pairs", pairs, "--seed", 2)
    assert iiae(*base, "-o", "whole.h5").code == 3
    codes = []
    for number in range(1, 5):
        task(monkeypatch, number, 4, lowest=1)
        outcome = iiae(*base, "--shard", "auto", "-o", "d-{shard}.h5", "--resume")
        assert outcome.out.startswith("part\trows\n")
        codes.append(outcome.code)
    assert sorted(codes) == [0, 0, 0, 3]
    again = iiae(*base, "--shard", "auto", "-o", "d-{shard}.h5", "--resume", "--json")
    assert "d-3-of-4.h5 is already complete" in again.err and again.json["shard"] == "3/4"
    paths = sorted(Path().glob("d-*-of-4.h5"))
    outcome = iiae("prepare", *paths[::-1], "--merge", "-o", "d.h5", "--json")
    assert outcome.code == 3 and len(outcome.json["skipped"]) == 1 and "y/3.png" in outcome.err
    assert outcome.json["splits"] == {"train": 6, "valid": 1, "test": 1}
    assert_same_data("d.h5", "whole.h5")
    commands = [DataFile(Path(p)).info.attributes["command"] for p in ("d.h5", "whole.h5")]
    assert commands[1] in commands[0].replace(" --shard auto -o 'd-{shard}.h5'", " -o whole.h5")
    assert commands[0].endswith("--merge -o d.h5 --json")
    # To every later call it is the file of one call.
    assert "already complete" in iiae(*base, "-o", "d.h5", "--resume").err
    merge = ("prepare", *paths, "--merge", "-o", "d.h5")
    outcome = iiae(*merge, "--resume")
    assert outcome.code == 3 and "already complete" in outcome.err
    assert "d.h5 already exists" in iiae(*merge).error()[0]
    assert iiae(*merge, "--overwrite", "--pictures", "p").code == 3
    assert len(list(Path("p").rglob("*.png"))) == 16


def test_a_signal_leaves_features_that_resume_takes_up(iiae, monkeypatch, tmp_path):
    for part, names in (("train", ("ant", "bee")), ("test", ("cow",))):
        for domain in "xy":
            class_folders(tmp_path / "classes" / part / domain, dict.fromkeys(names, 3))
    network = ("--backbone", NETWORK, "--backbone-weights", "none", "--device", "cpu")
    classes = ("prepare", "classes", "classes", *network, "--batch-size", 2)
    kept, computed = backbone.repeatable, []

    def stop():
        computed.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return kept()

    part = ("--shard", "1/2", "-o", "f-{shard}.h5")
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "repeatable", stop)
        outcome = iiae(*classes, *part)
    assert outcome.code == 75 and "--resume" in outcome.err and not Path("f-1-of-2.h5").exists()
    assert "holds interrupted work" in iiae(*classes, *part).error()[0] and len(computed) == 1
    assert iiae(*classes, *part, "--resume").code == 0
    missing = iiae("prepare", "f-1-of-2.h5", "--merge", "-o", "f.h5").error()
    assert "missing shards: 0/2" in missing[0] and "--shard 0/2 --resume" in missing[1]
    assert iiae(*classes, "--shard", "0/2", "-o", "f-{shard}.h5").code == 0
    shards = ("prepare", "f-0-of-2.h5", "f-1-of-2.h5", "--merge", "-o", "f.h5")
    outcome = iiae(*shards)
    assert outcome.code == 0 and outcome.out.startswith("split\tx\ty\tclasses\ntrain\t6\t6\t2\n")
    assert iiae(*classes, "-o", "whole.h5").code == 0
    assert_same_data("f.h5", "whole.h5")
    other = iiae(*classes, "--no-normalise", *part, "--resume").error()
    assert "made by other options" in other[0]
    class_folders(tmp_path / "classes" / "test" / "x", {"cow": 4})
    error, hint = iiae(*shards, "--overwrite").error()
    assert "content of the source" in error and "make all shards again" in hint
    tuned = iiae(*classes, "--fine-tune-epochs", 1, "--shard", "0/2", "-o", "t.h5").error()
    assert "fine-tuning needs all training pictures" in tuned[0]


@pytest.mark.parametrize(
    "arguments, said, mended",
    [
        ("digits-cdcb --shard 2/2 -o d-{shard}.h5", "--shard 2/2 is not I/N", "0/4"),
        ("digits-cdcb --shard 0/2 --pictures p", "nor to --shard", "merged"),
        ("a.h5 --merge --shard 0/2 -o d.h5", "--merge takes no --shard", "leave it out"),
        ("a.h5 --merge --seed 3 -o d.h5", "no option of how data", "the shards say"),
        ("none.h5 --merge -o d.h5", "none.h5 does not exist", "--shard"),
        ("digits-cdcb a.h5 b.h5 -o d.h5", "2 sources are named", "--merge"),
        ("pairs a --source b -o d.h5", "2 sources are named: a, b", "name one"),
        ("pairs --source b -o d.h5", "b does not exist", ""),
    ],
)
def test_what_does_not_go_together_is_refused(iiae, monkeypatch, arguments, said, mended):
    task(monkeypatch, 0, 2)
    outcome = iiae("prepare", *arguments.split())
    error, hint = outcome.error()
    assert outcome.code == 2 and said in error and mended in hint
    assert not list(Path().iterdir())
