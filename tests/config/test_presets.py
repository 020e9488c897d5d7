"""Every preset of the paper, on a tiny set in its source's own layout: prepare, ten steps, encode, evaluate."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from class_sources import NETWORK, class_folders, make_quick
from conftest import Program
from PIL import Image
from scipy.io import savemat

from iiae_cli.common.paths import data_file
from iiae_cli.config.presets import preset_layers, preset_names, resolve
from iiae_cli.data.sources.class_splits import CLASS_SPLITS

RNG = np.random.default_rng(0)
EASE = ("--batch-size", 4, "--set", "data.image_size=64", "--set", "training.samples=1")


def mnist(folder: Path) -> None:
    for stem, count in (("train", 40), ("t10k", 6)):
        grey = RNG.integers(0, 256, (count, 28, 28), np.uint8)
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in grey.shape)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(header + grey.tobytes())
        )
        labels = (
            b"\0\0\x08\x01"
            + count.to_bytes(4, "big")
            + bytes(number % 10 for number in range(count))
        )
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def side_by_side(folder: Path, counts: dict[str, int], height: int) -> None:
    for split, count in counts.items():
        (folder / split).mkdir(parents=True)
        for number in range(1, count + 1):
            small = Image.fromarray(RNG.integers(0, 256, (8, 16, 3), np.uint8))
            small.resize((2 * height, height)).save(folder / split / f"{number}.jpg")


def cars(folder: Path) -> None:
    place = folder / "data" / "cars"
    place.mkdir(parents=True)
    for number in (1, 191, 192):
        im = np.broadcast_to(RNG.integers(0, 256, (1, 1, 3, 24, 4), np.uint8), (128, 128, 3, 24, 4))
        savemat(
            place / f"car_{number:03d}_mesh.mat",
            {"im": np.ascontiguousarray(im)},
            do_compression=True,
        )
    (place / "list.txt").write_text("car_001_mesh\ncar_191_mesh\ncar_192_mesh\n")


def source_of(preset: str, folder: Path) -> tuple[object, ...]:
    """Make a preset's source; what `prepare` is told beside."""
    folder.mkdir()
    if preset == "mnist-cdcb":
        mnist(folder)
    elif preset == "facades":
        side_by_side(folder / "facades", {"train": 8, "val": 2, "test": 4}, 256)
    elif preset == "maps":
        side_by_side(folder / "maps", {"train": 8, "val": 4}, 600)
    elif preset == "cars":
        cars(folder)
    else:
        once = dict.fromkeys((*CLASS_SPLITS["sempcyc-25"], "ant", "bee", "cat", "dog", "owl"), 2)
        class_folders(folder / "sketch" / "tx_000000000000", once)
        class_folders(folder / "photo" / "tx_000000000000", once, ".jpg")
        class_folders(folder / "extended_photo", once, ".jpg")
        return ("--backbone", NETWORK, "--backbone-weights", "none", "--fine-tune-epochs", 0)
    return ("--limit", 40)


@pytest.mark.parametrize("preset", ["mnist-cdcb", "facades", "maps", "cars", "sketchy"])
def test_a_preset_of_the_paper_goes_all_the_way(
    iiae: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    make_quick(monkeypatch)
    more = source_of(preset, tmp_path / "source")
    assert iiae("prepare", preset, tmp_path / "source", *more).code == 0
    ease = () if preset == "sketchy" else EASE
    trained = iiae("train", "--preset", preset, "--steps", 10, *ease, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["steps"] == 10
    encoded = iiae("encode", f"data/{preset}.h5", "--domain", "y", "-o", "y.h5", "--json")
    assert encoded.code == 0 and encoded.json["rows"] > 0
    measured = iiae(
        "evaluate", "--task", "all", "--lpips", "none", "--probe-rows", 60, "--paper", "--json"
    )
    assert measured.code == 0, measured.err
    figures = measured.json
    if preset == "sketchy":
        assert (
            figures["protocol"]["class_split"] == "sempcyc-25"
            and figures["protocol"]["classes"] == 25
        )
        assert 0 < figures["zero_shot"]["x_to_y"]["map@all"] < 1
        assert (
            figures["zero_shot"]["baseline_centred"]["y_to_x"]["n"] == 100
        )  # photos, extended ones too
    else:
        assert (
            figures["translation"]["x_to_y"]["ssim"] <= 1
            and figures["translation"]["x_to_y"]["samples"] == 3
        )
        assert figures["retrieval"]["shared"]["x_to_y"]["n"] == figures["protocol"]["pairs"] > 0
    ours = [row for row in figures["paper"] if row["ours"] is not None]
    wanted = {"mnist-cdcb": 2, "facades": 2, "maps": 2, "cars": None, "sketchy": 3}[preset]
    assert {row["table"] for row in figures["paper"]} >= ({4} if wanted is None else {wanted})
    assert (wanted is None) or any(
        row["table"] == wanted and row["method"] == "IIAE" for row in ours
    )


def test_every_preset_names_its_set_and_resolves() -> None:
    for name in preset_names():
        config = resolve(preset_layers(name)).config
        assert config.description and data_file(None, config.data.set).suffix == ".h5"


def test_the_papers_values_stand_in_its_presets() -> None:
    """SPEC's table of hyper-parameters, value by value."""
    lambdas = {"mnist-cdcb": 5, "cars": 50, "facades": 1000, "maps": 50, "sketchy": 2}
    weights = {"mnist-cdcb": 1000, "cars": 1000, "facades": 1000, "maps": 20000, "sketchy": 10}
    annealing = {"mnist-cdcb": 25000, "cars": 100, "facades": 25000, "maps": 25000, "sketchy": 2000}
    for name, lam in lambdas.items():
        config = resolve(preset_layers(name)).config
        objective, model, optimizer = config.objective, config.model, config.optimizer
        assert (objective.kind, objective.lam) == ("elbo+ii-mi", lam)
        assert (objective.reconstruction_weight, objective.annealing_steps) == (
            weights[name],
            annealing[name],
        )
        assert objective.reconstruction == ("l2" if name == "sketchy" else "l1")
        assert (optimizer.lr, optimizer.beta1, optimizer.beta2) == (2e-4, 0.5, 0.999)
        assert optimizer.schedule == "constant" and optimizer.warmup_steps == 0
        assert (model.exclusive, model.shared) == ((64, 64) if name == "sketchy" else (8, 128))
        assert model.kind == {"cars": "flat", "sketchy": "features"}.get(name, "image")
        assert (config.data.standardise, model.linear_path) == ("none", "none")
        if name == "sketchy":
            assert config.training.batch_size is None and config.training.epochs == 10
        else:
            assert config.training.batch_size == 8 and config.data.image_size == 256
    first = {
        name: resolve(preset_layers(name)).config.selection.first_epoch
        for name in ("mnist-cdcb", "facades", "maps")
    }
    assert first == {"mnist-cdcb": 6, "facades": 299, "maps": 399}


def write_features(path: Path, seed: int, width: int = 24, classes: int = 12) -> None:
    """Features whose classes lie in a few directions, under much variation that classes share, as `.npz`."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, 4)) @ rng.standard_normal((4, width))
    nuisance = 3 * rng.standard_normal((4, width))
    arrays = {}
    for split, some in (("train", range(classes - 4)), ("test", range(classes - 4, classes))):
        labels = np.repeat(np.array(some), 15)
        for domain, offset in (("sketch", 2.0), ("image", -1.0)):
            noise = rng.standard_normal((len(labels), 4)) @ nuisance + 0.3 * rng.standard_normal(
                (len(labels), width)
            )
            arrays[f"{split}_{domain}_features"] = (centres[labels] + noise + offset).astype(
                np.float32
            )
            arrays[f"{split}_{domain}_labels"] = labels
    np.savez(path, **arrays)


def test_the_features_preset_ends_above_the_centred_baseline_and_says_how(
    iiae: Program, tmp_path: Path
) -> None:
    write_features(tmp_path / "mine.npz", 3)
    assert iiae("prepare", "classes", "mine.npz").code == 0
    trained = iiae("train", "--preset", "features", "--steps", 100, "--json")
    assert trained.code == 0 and "training again on all rows" in trained.err
    figures = iiae("evaluate", "--json").json["zero_shot"]
    for direction in ("x_to_y", "y_to_x"):
        assert figures[direction]["map@all"] > figures["baseline_centred"][direction]["map@all"]
    lines = [
        json.loads(line) for line in Path("runs/latest/metrics.jsonl").read_text().splitlines()
    ]
    assert lines[0]["kind"] == "validation" and lines[0]["step"] == 0
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(steps) and steps[-1] > 100 and trained.json["steps"] == steps[-1]
