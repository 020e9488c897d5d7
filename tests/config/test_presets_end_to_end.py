"""Every preset of the paper goes all the way, narrow, on a tiny set in its source's own layout."""

import numpy as np
import pytest
from class_sources import NETWORK, class_folders, make_quick, write_features
from helpers import metrics_of
from PIL import Image
from test_cdcb import idx_source
from test_published import save_v5

from iiae_cli.data.datafile import CLASS_SPLITS

RNG = np.random.default_rng(0)
EASE = (
    *("--batch-size", 4, "--set", "data.image_size=64", "--set", "training.samples=1"),
    *("--set", "model.widths=[4,8,8,8]", "--set", "model.decoder_widths=[8,8,8,4]"),
)


def side_by_side(folder, counts, height):
    for split, count in counts.items():
        (folder / split).mkdir(parents=True)
        for number in range(1, count + 1):
            small = Image.fromarray(RNG.integers(0, 256, (8, 16, 3), np.uint8))
            small.resize((2 * height, height)).save(folder / split / f"{number}.jpg")


def source_of(preset, folder):
    """Make a preset's source; what `prepare` is told beside."""
    folder.mkdir()
    if preset == "mnist-cdcb":
        idx_source(folder, suffix=".gz", train=40, test=6)
    elif preset == "facades":
        side_by_side(folder / "facades", {"train": 8, "val": 2, "test": 4}, 256)
    elif preset == "maps":
        side_by_side(folder / "maps", {"train": 8, "val": 4}, 600)
    elif preset == "cars":
        for number in (1, 191, 192):
            save_v5(folder / "data" / "cars", number)
        (folder / "data/cars/list.txt").write_text("car_001_mesh\ncar_191_mesh\ncar_192_mesh\n")
    else:
        once = dict.fromkeys((*CLASS_SPLITS["sempcyc-25"], "ant", "bee", "cat", "dog", "owl"), 2)
        class_folders(folder / "sketch" / "tx_000000000000", once)
        class_folders(folder / "photo" / "tx_000000000000", once, ".jpg")
        class_folders(folder / "extended_photo", once, ".jpg")
        return ("--backbone", NETWORK, "--backbone-weights", "none", "--fine-tune-epochs", 0)
    return ("--limit", 40)


@pytest.mark.parametrize("preset", ["mnist-cdcb", "facades", "maps", "cars", "sketchy"])
def test_a_preset_of_the_paper_goes_all_the_way(iiae, tmp_path, monkeypatch, preset):
    make_quick(monkeypatch)
    more = source_of(preset, tmp_path / "source")
    assert iiae("prepare", preset, tmp_path / "source", *more).code == 0
    ease = () if preset == "sketchy" else EASE
    trained = iiae("train", "--preset", preset, "--steps", 3, *ease, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["steps"] == 3
    encoded = iiae("encode", f"data/{preset}.h5", "--domain", "y", "-o", "y.h5", "--json")
    assert encoded.code == 0 and encoded.json["rows"] > 0
    measured = iiae(
        "evaluate", "--task", "all", "--lpips", "none", "--probe-rows", 60, "--paper", "--json"
    )
    assert measured.code == 0, measured.err
    figures, protocol = measured.json, measured.json["protocol"]
    if preset == "sketchy":
        assert (protocol["class_split"], protocol["classes"]) == ("sempcyc-25", 25)
        assert 0 < figures["zero_shot"]["x_to_y"]["map@all"] < 1
        photos = 100  # extended ones too
        assert figures["zero_shot"]["baseline_centred"]["y_to_x"]["n"] == photos
    else:
        assert figures["translation"]["x_to_y"]["samples"] == 3
        assert figures["retrieval"]["shared"]["x_to_y"]["n"] == protocol["pairs"] > 0
    table = {"cars": 4, "sketchy": 3}.get(preset, 2)
    rows = [row for row in figures["paper"] if row["table"] == table]
    assert rows
    assert preset == "cars" or any(
        row["method"] == "IIAE" and row["ours"] is not None for row in rows
    )


def test_the_features_preset_ends_above_the_centred_baseline_and_says_how(iiae, tmp_path):
    write_features(tmp_path / "mine.npz", 3)
    assert iiae("prepare", "classes", "mine.npz").code == 0
    trained = iiae("train", "--preset", "features", "--steps", 100, "--json")
    assert trained.code == 0 and "training again on all rows" in trained.err
    figures = iiae("evaluate", "--json").json["zero_shot"]
    for direction in ("x_to_y", "y_to_x"):
        assert figures[direction]["map@all"] > figures["baseline_centred"][direction]["map@all"]
    lines = metrics_of("runs/latest")
    assert lines[0]["kind"] == "validation" and lines[0]["step"] == 0
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(steps) and steps[-1] > 100 and trained.json["steps"] == steps[-1]
