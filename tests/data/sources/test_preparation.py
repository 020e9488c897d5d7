"""Data sets by name, and the files that they are written to."""

import json
from dataclasses import replace

import numpy as np
import pytest
from class_sources import NETWORK, picture
from helpers import built, refusal

from iiae_cli.data.blocks import differences
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.sources import plan
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import BUILDERS, DOWNLOADED, build, prepare_file

# ---- names


def test_an_unknown_set_is_refused_with_those_there_are(tmp_path):
    error = refusal(built, "mnist")
    assert error.message == "unknown data set 'mnist'"
    assert all(name in error.hint for name in BUILDERS)
    mine = refusal(built, str(tmp_path))
    assert f"iiae prepare pairs {tmp_path}" in mine.hint


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("digits-cdcb", {"unseen_classes": "3"}, "--unseen-classes does not apply to"),
        ("cars", {"backbone": "vgg16"}, "--backbone… does not apply"),
        ("maps", {"side_by_side": True}, "--side-by-side does not apply"),
        ("digits-cdcb", {"same_instance": True}, "--same-instance does not apply to digits-cdcb"),
        ("classes", {"split": "sake-25"}, "--split does not apply to classes"),
        ("classes", {"image_size": 32}, "--image-size does not apply"),
    ],
)
def test_options_of_other_sets_are_refused(name, options, said):
    assert said in refusal(built, name, **options).message


@pytest.mark.parametrize("name", ["facades", "mnist-cdcb", "cars", "sketchy", "classes", "pairs"])
def test_a_source_that_was_not_named_is_asked_for(tmp_path, name):
    error = refusal(built, name)
    assert error.message == f"the source of {name} was not named"
    assert f"iiae prepare {name} SOURCE" in error.hint
    assert (f"iiae prepare {name} --download" in error.hint) == (name in DOWNLOADED)
    assert ("sketchy.eye.gatech.edu" in error.hint) == (name == "sketchy")
    missing = refusal(built, name, tmp_path / "none", download=True)
    assert "does not exist" in missing.message


# ---- files


def test_rows_that_do_not_fit_into_the_memory_stay_in_a_file(tmp_path, monkeypatch):
    for number in range(9):
        for domain in "xy":
            picture(tmp_path / "s" / domain / f"{number}.png", number)
    for name in ("x/0.png", "y/4.png"):
        (tmp_path / "s" / name).write_bytes(b"broken")
    monkeypatch.setattr(plan, "free_memory", lambda: 0)
    monkeypatch.setattr(plan, "BLOCK_FILES", 2)
    split = built("pairs", tmp_path / "s", valid_fraction=0, test_fraction=0).splits["train"]
    for side in (split.x, split.y):
        assert isinstance(side.rows, np.memmap)
        assert side.rows[:, 0, 0, 0].tolist() == [1, 2, 3, 5, 6, 7, 8]


def test_other_weights_are_not_called_another_source(tmp_path):
    for name in ("x/a.png", "x/b.png", "y/a.png", "y/b.png"):
        picture(tmp_path / "s" / name)
    options = PrepareOptions(source=tmp_path / "s", backbone=NETWORK, backbone_weights="none")
    jobs = []
    for normalise in (True, False):
        made = build("pairs", replace(options, normalise=normalise))
        jobs.append(made.job("pairs", options))
    assert differences(*jobs) == ["weights"]


def test_a_whole_self_describing_file_is_written_or_the_old_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["iiae", "prepare", "pairs", "my source", "--overwrite"])
    path, source = tmp_path / "mine.h5", tmp_path / "source"
    path.write_bytes(b"old")
    options = PrepareOptions(source=source, seed=4)
    refusal(prepare_file, "pairs", path, options, overwrite=True)  # there is no source
    for name in ("x/a.png", "x/b.png", "x/alone.png", "y/a.png", "y/b.png"):
        picture(source / "train" / name)
    refusal(prepare_file, "pairs", path, options)
    assert path.read_bytes() == b"old"
    prepare_file("pairs", path, options, overwrite=True)
    file = DataFile(path)
    told = {key: file.info.attributes[key] for key in ("command", "seed", "skipped", "source")}
    assert told == {
        "command": "iiae prepare pairs 'my source'",
        "seed": "4",
        "skipped": "1",
        "source": str(source),
    }
    assert "alone.png" in file.skipped()[0]
    assert "iiae" in json.loads(file.info.attributes["versions"])
