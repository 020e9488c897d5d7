"""What is whole: data files, a preset, runs and a latent cache, small enough to be made in a second or two."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from iiae_cli.cli import app as cli
from iiae_cli.data.datafile import Side, Split, write_data_file
from malformed.cases import Ground

PRESET = """
data: {set: mine}
model: {kind: image, widths: [4, 4], decoder_widths: [4, 4], shared: 4, exclusive: 2, dropout: 0}
training: {steps: 2, batch_size: 4, validate_every: 2, log_every: 2, samples: 1}
"""
FEATURE_PRESET = """
data: {set: mine}
model: {kind: features, feature_width: 8, exclusive_hidden: [8], shared_hidden: 8, joint_hidden: 8,
        decoder_hidden: 8, shared: 4, exclusive: 2}
training: {steps: 2, batch_size: 4, validate_every: 2, log_every: 2}
objective: {reconstruction: l2}
"""


def picture_split(name: str, count: int) -> Split:
    """Random pictures with labels and a factor."""
    rng = np.random.default_rng(count)
    x, y = rng.integers(0, 256, (2, count, 16, 16, 3)).astype(np.uint8)
    ids = [f"{name}/{number:03d}" for number in range(count)]
    labels = [str(number % 3) for number in range(count)]
    return Split(
        Side(x, ids, labels), Side(y, ids, labels), {"x_color": x[:, 0, 0], "y_color": y[:, 0, 0]}
    )


def feature_split(name: str, count: int) -> Split:
    """Random features of 8 classes."""
    rng = np.random.default_rng(count)
    x, y = rng.normal(size=(2, count, 12)).astype(np.float32)
    ids = [f"{name}/{number:03d}" for number in range(count)]
    labels = [f"class {number % 8}" for number in range(count)]
    return Split(Side(x, ids, labels), Side(y, ids, labels))


def call(*arguments: object) -> None:
    """The program, in this process; it must succeed."""
    sys.argv = ["iiae", *map(str, arguments)]
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, told.getvalue()


def lay_ground(folder: Path) -> Ground:
    """Make all of it; imports everything that a command imports on the way."""
    for name in list(os.environ):
        if name.startswith("IIAE_"):
            del os.environ[name]
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    ground = Ground(folder)
    ground.preset.write_text(PRESET)
    ground.feature_preset.write_text(FEATURE_PRESET)
    write_data_file(
        ground.pictures,
        "mine",
        {"train": picture_split("train", 24), "test": picture_split("test", 8)},
        {},
    )
    classes = {"train": feature_split("train", 32), "test": feature_split("test", 16)}
    write_data_file(ground.features, "mine", classes, {"alignment": "class", "backbone": "{}"})
    call("train", "--preset", ground.preset, "--data", ground.pictures, "--run", ground.run)
    call(
        "train",
        "--preset",
        ground.feature_preset,
        "--data",
        ground.features,
        "--run",
        ground.feature_run,
    )
    stopped = (
        "train",
        "--preset",
        ground.preset,
        "--data",
        ground.pictures,
        "--run",
        ground.stopped,
    )
    call(*stopped, "--set", "training.checkpoint_every=1")
    newest = max((ground.stopped / "checkpoints").glob("*.safetensors"))
    newest.unlink()  # as if it had been killed after step 1
    call("encode", ground.pictures, "--domain", "x", "--run", ground.run, "-o", ground.cache)
    call("retrieve", ground.cache, "--index", ground.run / "gallery.h5")
    call("evaluate", "--run", ground.run, "--data", ground.pictures, "--lpips", "none")
    call("evaluate", "--run", ground.feature_run, "--data", ground.features)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(
        ground.picture
    )
    call(
        "translate",
        ground.picture,
        "--from",
        "x",
        "--run",
        ground.run,
        "--grid",
        folder / "grid.png",
    )
    import torchvision.models  # noqa: F401

    return ground
