"""The files that data sets are written to."""

import json

import numpy as np
from helpers import refusal
from PIL import Image

from iiae_cli.data.datafile import DataFile
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import prepare_file


def test_a_whole_self_describing_file_is_written_or_the_old_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["iiae", "prepare", "pairs", "my source", "--overwrite"])
    path, source = tmp_path / "mine.h5", tmp_path / "source"
    path.write_bytes(b"old")
    options = PrepareOptions(source=source, seed=4)
    refusal(prepare_file, "pairs", path, options, overwrite=True)  # there is no source
    for name in ("x/a.png", "x/b.png", "x/alone.png", "y/a.png", "y/b.png"):
        (source / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(source / "train" / name)
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
