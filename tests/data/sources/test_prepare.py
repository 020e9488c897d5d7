"""Data sets by name, and the files that they are written to."""

import json

import numpy as np
import pytest
from helpers import built, refusal
from PIL import Image

from iiae_cli.data.datafile import DataFile
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import prepare_file
from iiae_cli.data.sources.registry import BUILDERS


def test_an_unknown_set_is_refused_with_those_there_are():
    error = refusal(built, "mnist", PrepareOptions())
    assert error.message == "unknown data set 'mnist'"
    assert all(name in error.hint for name in BUILDERS)


@pytest.mark.parametrize(
    ("name", "told"),
    [("mine-0-of-2.h5", "iiae prepare {} … --merge"), ("", "iiae prepare pairs {},")],
)
def test_a_file_or_folder_in_the_place_of_a_set_is_told_where_it_belongs(tmp_path, name, told):
    (tmp_path / "mine-0-of-2.h5").touch()
    error = refusal(built, str(tmp_path / name), PrepareOptions())
    assert error.message == f"unknown data set '{tmp_path / name}'"
    assert told.format(tmp_path / name) in error.hint


def test_a_whole_self_describing_file_is_written_or_the_old_one_stays(tmp_path):
    path, source = tmp_path / "mine.h5", tmp_path / "source"
    path.write_bytes(b"old")
    missing = PrepareOptions(source=tmp_path / "none")
    refusal(prepare_file, "pairs", path, missing, command="")
    assert path.read_bytes() == b"old"
    for name in ("x/a.png", "x/b.png", "x/alone.png", "y/a.png", "y/b.png"):
        (source / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(source / "train" / name)
    options = PrepareOptions(source=source, seed=4)
    skipped = prepare_file("pairs", path, options, command="iiae prepare pairs source")
    assert len(skipped) == 1 and "alone.png" in skipped[0]
    file = DataFile(path)
    told = {key: file.info.attributes[key] for key in ("command", "seed", "skipped")}
    assert told == {"command": "iiae prepare pairs source", "seed": "4", "skipped": "1"}
    assert (file.info.name, file.info.counts) == ("pairs", {"train": 2, "valid": 0, "test": 0})
    assert "iiae" in json.loads(file.info.attributes["versions"])
    assert file.split("train").x.ids == ["train/a", "train/b"]
