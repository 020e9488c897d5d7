"""What commands say of the pictures that they read: on stderr, and in `--json`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def pairs(folder):
    """Six pairs: floats up to 1400, and RGB, one of them turned and one no picture."""
    for name in ("x", "y"):
        (folder / name).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 3
    for number in range(6):
        ramp = np.linspace(0, 1400, 256, dtype="f4").reshape(16, 16)
        Image.fromarray(ramp).save(folder / "x" / f"{number}.tif")
        turned = {"exif": exif} if number == 2 else {}
        Image.new("RGB", (16, 16)).save(folder / "y" / f"{number}.png", **turned)
    (folder / "y" / "5.png").write_text("no picture")
    (folder / "y" / "notes.txt").write_text("no picture")
    return folder


def test_prepare_ends_with_a_line_on_its_pictures(iiae):
    options = ("--test-fraction", 0, "-o", "p.h5", "--json")
    outcome = iiae("prepare", "pairs", pairs(Path("in")), *options)
    assert outcome.code == 3 and outcome.json["notes"] == ["the split test is empty"]
    assert outcome.json["pictures_seen"] == {
        "read": 11,
        "modes": {"F": 6, "RGB": 5},
        "sizes": ["16×16"],
        "changes": {"scaled from 0 to 2047": 6, "turned as EXIF says": 1},
        "left_out": {".txt": 1},
    }
    lines = outcome.err.splitlines()
    assert "warning: left out 1 file of other kinds: .txt 1" in lines
    assert (
        "pictures: 11 read (F 6, RGB 5), 16×16; 6 scaled from 0 to 2047; 1 turned as EXIF says; "
        "1 skipped"
    ) in lines


def test_a_shard_counts_what_it_read_and_a_merge_nothing(iiae):
    source = pairs(Path("in"))
    base = ("prepare", "pairs", source, "--test-fraction", "0.5", "--valid-fraction", "0", "--json")
    shards = (iiae(*base, "-o", f"{part}.h5", "--shard", f"{part}/2").json for part in range(2))
    first, second = (shard["pictures_seen"]["read"] for shard in shards)
    assert first + second == 11 and first and second
    merged = iiae("prepare", "0.h5", "1.h5", "--merge", "-o", "p.h5", "--json")
    assert merged.code == 3 and merged.json["pictures_seen"]["read"] == 0
    assert "pictures:" not in merged.err


@pytest.mark.parametrize(
    "command", [("encode", "-o", "z.h5", "--domain"), ("translate", "-o", "out", "--from")]
)
def test_others_say_what_they_changed(iiae, run, command):
    Image.new("RGBA", (8, 9)).save("clear.png")
    Image.new("RGB", (32, 32)).save("plain.png")
    name, *options = command
    outcome = iiae(name, "clear.png", *options, "x", "--run", run, "--json")
    changes = {"flattened on white": 1, "resized to 32×32": 1}
    assert outcome.json["pictures_seen"]["changes"] == changes
    assert "pictures: 1 read (RGBA 1), 8×9; 1 flattened on white; 1 resized to" in outcome.err
    outcome = iiae(name, "plain.png", *options, "x", "--run", run, "--json", "--overwrite")
    assert outcome.code == 0 and "pictures:" not in outcome.err
    assert outcome.json["pictures_seen"]["changes"] == {}


@pytest.mark.parametrize(
    "command", [("encode", "in", "--domain", "x", "-o", "z.h5"), ("prepare", "pairs", "in")]
)
def test_what_was_left_out_is_said_if_nothing_remains(iiae, run, command, monkeypatch):
    monkeypatch.setenv("IIAE_RUN", str(run))
    for name in ("x/a.heic", "y/a.heic", "y/b.txt"):
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        Path("in", name).write_bytes(b"\0\0\0\x18ftypheic")
    outcome = iiae(*command)
    assert outcome.code == 2 and outcome.error()
    assert "warning: left out 3 files of other kinds: .heic 2, .txt 1" in outcome.err
