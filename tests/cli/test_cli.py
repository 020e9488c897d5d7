"""The contract of the command line itself: help, streams, exit codes, precedence, errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL

from iiae_cli import __version__
from iiae_cli.cli.app import COMMANDS
from iiae_cli.cli.options import DATA_SETS, complete_keys
from iiae_cli.common.environment import preset_names
from iiae_cli.config.presets import key_help
from iiae_cli.data.datafile import Side, Split, write_data_file
from iiae_cli.data.sources.preparation import BUILDERS


def test_importing_the_cli_leaves_heavy_packages_unloaded():
    code = (
        "import sys, iiae_cli.cli.app; "
        "heavy = {'torch', 'h5py', 'sklearn', 'pydantic', 'numpy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_fits_80_columns(iiae, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = iiae(command, "--help")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert not re.search(r"<\w|\{[A-Z]", outcome.out)  # types as programmers write them


def test_without_arguments_help_lists_every_command_in_a_whole_line(iiae, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = iiae()
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert all(f"{name} {line}" in lines for name, line in COMMANDS.items())
    assert iiae("--version").out == f"iiae {__version__}\n"


# ---- completion


def complete(*words, folder=Path()):
    code = (
        "import atexit, sys; "
        "atexit.register(lambda: print({'torch', 'pydantic', 'yaml'} & set(sys.modules), "
        "file=sys.stderr)); from iiae_cli.__main__ import main; main()"
    )
    asked = {"_IIAE_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["iiae", *words])}
    environment = {**os.environ, **asked, "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.stderr == "set()\n"
    return done.stdout.split()


def test_a_shell_completes_names_without_heavy_imports(tmp_path):
    assert complete("tr") == ["train", "translate"]
    assert complete("train", "digits-c") == ["digits-cdcb", "digits-cdcb-plus"]
    assert complete("train", "--preset", "mnist-cdcb-32-") == ["mnist-cdcb-32-plus"]
    assert complete("train", "pairs", "--set", "objective.la") == ["objective.lambda="]
    assert complete("evaluate", "--split", "") == ["train", "valid", "test"]
    assert complete("prepare", "sketchy", "--backbone", "resnet1") == ["resnet18"]
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").touch()
    assert complete("encode", "--run", "", folder=tmp_path) == ["runs/mine"]


def test_what_is_completed_is_all_there_is():
    assert complete_keys("") == [f"{key}=" for key in key_help() if "." in key]
    assert sorted(DATA_SETS) == sorted(BUILDERS)


# ---- presets and doctor


def test_presets_are_listed_with_data_time_and_purpose(iiae):
    outcome = iiae("presets", "--json")
    assert outcome.json["schema"] == "iiae.presets/1"
    presets = {item["name"]: item for item in outcome.json["presets"]}
    assert list(presets) == preset_names()
    assert all(len(item) == 4 and all(item.values()) for item in presets.values())
    assert presets["fashion-edges-plus"]["data"] == "fashion-edges"
    assert iiae("presets").out.splitlines()[0].split("\t")[:3] == ["preset", "data", "time"]


def test_doctor_shows_this_machine_and_fails_where_something_needed_is_missing(iiae, monkeypatch):
    outcome = iiae("doctor", "--json")
    assert outcome.code == 0 and outcome.json["schema"] == "iiae.doctor/1"
    report = outcome.json
    assert report["versions"]["iiae"] == __version__ and not report["problems"]
    assert report["precision"]["cpu"]["features"] == "fp32" and report["cores"]["allowed"] >= 1
    state = {"path": "data", "exists": False, "writable": "yes", "locks": "yes"}
    assert state.items() < report["folders"]["data"].items()
    monkeypatch.setitem(sys.modules, "h5py", None)
    outcome = iiae("doctor")
    assert outcome.code == 2 and "h5py cannot be imported" in outcome.error()[0]
    assert "versions\ttorch\t" in outcome.out


# ---- errors, values, streams


@pytest.mark.parametrize(
    ("arguments", "names", "mends"),
    [
        ("train --preset digits-cbcd", "digits-cbcd", "digits-cdcb"),
        ("train pairs --set objective.lamda=3", "objective.lambda", "--print-config"),
        ("train pairs --set training.steps=many", "training.steps", "--print-config"),
        ("train --preset digits-cdcb --steps 5 --epochs 1", "--steps", "one"),
        ("train --preset digits-cdcb --device cuda:63", "cuda:63", "--device"),
        ("train --preset digits-cdcb --time-limit soon", "soon", "2h"),
        ("train --preset mnist-cdcb-32", "mnist-cdcb.h5", "iiae prepare mnist-cdcb"),
        ("train --preset missing.yaml", "missing.yaml", "iiae presets"),
        ("train", "no preset", "digits-cdcb"),
        ("train pairs --preset maps", "two presets", "leave one"),
        ("train pairs --lr fast", "--lr", "iiae train --help"),
        ("train pairs --lr 0", "optimizer.lr", "--print-config"),
        ("prepare", "no data set", "digits-cdcb"),
        ("prepare sketchy", "sketchy", "iiae prepare sketchy SOURCE"),
        ("prepare cars", "cars", "iiae prepare cars --download"),
        ("train --preset sketchy", "sketchy.h5", "iiae prepare sketchy SOURCE -o data/sketchy.h5"),
        ("train --preset maps", "maps.h5", "iiae prepare maps --download -o data/maps.h5"),
        ("prepare mnist-cdcb nowhere", "nowhere", "folder"),
        ("prepare pairs nowhere", "nowhere", "folder"),
        ("evaluate", "runs/latest", "iiae train"),
        ("encode a.png -o z.h5", "domain", "--domain x"),
        ("encode a.png --domain z -o z.h5", "'z'", "iiae encode --help"),
        ("encode a.png --domain x --shard 4/4 -o z.h5", "4/4", "0/4"),
        ("retrieve a.png", "runs/latest", "iiae train"),
        ("translate a.png --from x", "no output", "--grid"),
        ("translate a.png --from x --to x --grid g.png", "reference", "--reference"),
        ("encode --bogus", "--bogus", "iiae encode --help"),
        ("bogus", "bogus", "iiae --help"),
    ],
)
def test_users_errors_are_two_lines_and_exit_2(iiae, arguments, names, mends):
    outcome = iiae(*arguments.split())
    error, hint = outcome.error()
    assert outcome.code == 2 and outcome.out == ""
    assert names in error and "Value error" not in error and "Input should" not in error
    assert mends in hint
    assert not list(Path().glob("**/*.h5"))


def test_print_config_shows_values_and_their_sources(iiae, monkeypatch):
    Path("mine.yaml").write_text("optimizer: {lr: 0.5, beta1: 0.1}\ntraining: {seed: 3}\n")
    monkeypatch.setenv("IIAE_OPTIMIZER__BETA1", "0.2")
    monkeypatch.setenv("IIAE_SEED", "4")
    outcome = iiae(
        *("train", "--preset", "digits-edge", "--config", "mine.yaml", "--seed", "5"),
        *("--set", "objective.lambda=50", "--print-config", "--json"),
    )
    values = {key: tuple(entry.values()) for key, entry in outcome.json["values"].items()}
    assert values["optimizer.lr"] == (0.5, "mine.yaml")
    assert values["optimizer.beta1"] == (0.2, "environment")
    assert values["training.seed"] == (5, "option")
    assert values["objective.lambda"] == (50, "--set")
    assert values["data.set"] == ("digits-edge", "preset digits-edge")
    assert values["model.shared"][1] == "preset digits-cdcb"
    assert values["optimizer.beta2"] == (0.999, "default")


def test_verbose_and_quiet_change_stderr_alone(iiae):
    iiae("prepare", "digits-cdcb", "--limit", "20", "-o", "d.h5")
    tiny = ("--data", "d.h5", "--run", "r", "--steps", 1, "--overwrite", "--json", *SMALL)
    plain, loud, silent = (
        iiae(*flag, "train", "--preset", "digits-cdcb", *tiny) for flag in ((), ("-v",), ("-q",))
    )
    assert "objective.lambda = 5.0 (preset digits-cdcb)" in loud.err
    assert "objective.lambda" not in plain.err and "training pairs" in plain.err
    assert all(line.startswith("warning: ") for line in silent.err.splitlines())
    assert plain.json["fingerprint"] == loud.json["fingerprint"] == silent.json["fingerprint"]


def test_prepare_writes_counts_and_never_overwrites_unasked(iiae):
    outcome = iiae("prepare", "digits-edge", "--limit", "20", "--json")
    assert outcome.json["schema"] == "iiae.prepare/1"
    assert outcome.json["splits"] == {"train": 20, "valid": 0, "test": 20}
    before = Path("data/digits-edge.h5").read_bytes()
    again = iiae("prepare", "digits-edge", "--limit", "5")
    assert again.code == 2 and "--overwrite" in again.error()[1]
    assert Path("data/digits-edge.h5").read_bytes() == before
    replaced = iiae("prepare", "digits-edge", "--limit", "5", "--overwrite").out
    assert replaced == "split\tpairs\ntrain\t5\nvalid\t0\ntest\t5\n"


def test_data_of_another_shape_is_refused(iiae, trained):
    side = Side(np.zeros((4, 8), np.float32), list("abcd"))
    write_data_file(Path("f.h5"), "f", dict.fromkeys(("train", "test"), Split(side, side)), {})
    error, _ = iiae("evaluate", "--run", trained.run, "--data", "f.h5").error()
    assert "(32, 32, 3)" in error
    error, _ = iiae("train", "--preset", "digits-cdcb", "--data", "f.h5", "--run", "run").error()
    assert "features" in error
