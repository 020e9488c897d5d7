"""Tiny sources for tests: classes of pictures in folders, features in arrays, IDX files."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iiae_cli.data.datafile import SPLITS, DataFile, Split
from iiae_cli.data.sources.plan import Plan
from iiae_cli.model import DOMAINS

NETWORK = "shufflenet_v2_x0_5"  # the smallest of torchvision's; features 1024 wide


def picture(path: Path, value: Any = 9, size: tuple[int, int] = (8, 8)) -> Path:
    """Save a picture of one value in each channel, or of an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = value if isinstance(value, np.ndarray) else np.full((*size, 3), value, np.uint8)
    Image.fromarray(array).save(path)
    return path


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def pair_values(split: Split) -> list[tuple[int, int]]:
    """The values of x and y in every pair, pictures of one value each."""
    pairs = split.take_pairs(np.arange(split.pair_count))
    x, y = (side.rows[:, 0, 0, 0].tolist() for side in (pairs.x, pairs.y))
    return list(zip(x, y, strict=True))


def make_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures into the network and small batches to fine-tune with."""
    from iiae_cli.data import hubs
    from iiae_cli.data.sources import extraction

    monkeypatch.setattr(hubs, "INPUT_SIZE", (48, 48))
    monkeypatch.setattr(extraction, "FineTuning", partial(extraction.FineTuning, batch_size=6))


def class_folders(root: Path, classes: dict[str, int], suffix: str = ".png") -> list[Path]:
    """`ROOT/CLASS/0.png` … as many as each class says; its grey level tells the class."""
    paths = []
    for place, (name, count) in enumerate(classes.items()):
        level = 40 + 37 * place % 180
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            paths.append(root / name / f"{number}{suffix}")
            noise = np.random.default_rng((level, number)).integers(-15, 16, (20, 24, 3))
            Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def feature_arrays(
    classes: dict[str, list[str]], width: int = 6, rows: int = 3
) -> dict[str, np.ndarray]:
    """`{split}_{sketch,image}_{features,paths}`, `rows` (image: one more) of each class."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, names in classes.items():
        for word, count, suffix in (("sketch", rows, "png"), ("image", rows + 1, "jpg")):
            paths = [f"data/{word}/{name}/{n}.{suffix}" for name in names for n in range(count)]
            features = rng.normal(size=(len(paths), width)).astype(np.float32)
            arrays[f"{split}_{word}_features"] = features
            arrays[f"{split}_{word}_paths"] = np.array(paths)
    return arrays


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Arrays in a folder, or in an `.npz`."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    path.mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        np.save(path / f"{name}.npy", values)
    return path


def assert_same_data(left: Path | str, right: Path | str) -> None:
    """Two data files hold the same rows, ids and labels."""
    for name in SPLITS:
        one, other = (DataFile(Path(path)).split(name) for path in (left, right))
        for domain in DOMAINS:
            np.testing.assert_array_equal(one.side(domain).rows, other.side(domain).rows)
            assert one.side(domain).ids == other.side(domain).ids
            assert one.side(domain).labels == other.side(domain).labels


def told(made: Plan, name: str) -> Any:
    """An attribute of a data file that is JSON."""
    return json.loads(made.attributes[name])


def idx_bytes(array: np.ndarray) -> bytes:
    """The content of an IDX file."""
    extents = b"".join(count.to_bytes(4, "big") for count in array.shape)
    return bytes([0, 0, 8, array.ndim]) + extents + array.tobytes()


def write_features(path: Path, seed: int, width: int = 24, classes: int = 12) -> None:
    """Write an `.npz` of classes in a few directions, under much variation that they share."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, 4)) @ rng.standard_normal((4, width))
    nuisance = 3 * rng.standard_normal((4, width))
    arrays = {}
    for split, some in (("train", range(classes - 4)), ("test", range(classes - 4, classes))):
        labels = np.repeat(np.array(some), 15)
        for domain, offset in (("sketch", 2.0), ("image", -1.0)):
            noise = rng.standard_normal((len(labels), 4)) @ nuisance
            noise += 0.3 * rng.standard_normal(noise.shape)
            rows = centres[labels] + noise + offset
            arrays[f"{split}_{domain}_features"] = rows.astype(np.float32)
            arrays[f"{split}_{domain}_labels"] = labels
    np.savez(path, **arrays)
