"""The same batches whichever way they come: read when asked for, ahead in a thread, or kept on the
device.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iiae_cli.config.schema import Config, TrainingSection
from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import DataFile, Side, Split, write_data_file
from iiae_cli.training.data import TrainingData
from iiae_cli.training.step import Feed

CPU = torch.device("cpu")
WAYS = [
    {"ahead": False, "resident": False},
    {"ahead": True, "resident": False},
    {"ahead": False, "resident": True},
    {"ahead": True, "resident": True},
]


def training_data(folder: Path, kind: str) -> TrainingData:
    rng = np.random.default_rng(0)
    rows: list[Any] = [rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8) for _ in range(2)]
    if kind == "features":
        rows = [rng.standard_normal((40, 5)).astype(np.float32) for _ in range(2)]
    ids = [str(number) for number in range(40)]
    labels = [f"class {number % 4}" for number in range(40)] if kind == "features" else None
    pairs = rng.integers(0, 40, (60, 2)) if kind == "recurring" else None
    split = Split(Side(rows[0], ids, labels), Side(rows[1], ids, labels), pairs=pairs)
    attributes = {"alignment": "class"} if kind == "features" else {}
    write_data_file(folder / "data.h5", "some", {"train": split}, attributes)
    return TrainingData(DataFile(folder / "data.h5"), Config(training=TrainingSection(steps=1)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["pictures", "recurring", "features"])
def test_every_way_gives_the_rows_of_the_step(
    tmp_path: Path, kind: str, way: dict[str, bool]
) -> None:
    data = training_data(tmp_path, kind)
    order = data.order(4, seed=0)
    size = None if kind == "features" else (24, 24)
    with Feed(data, order.indices, size, CPU, **way) as feed:
        for step in (0, 1, 2, 7, 3, 4, 4, 25):  # also out of order, twice, and in a later epoch
            wanted = [to_inputs(rows, size) for rows in data.rows(order.indices(step))]
            for found, one in zip(feed(step), wanted, strict=True):
                assert torch.equal(found, one)
                assert kind == "features" or found.is_contiguous(memory_format=torch.channels_last)


def test_the_next_step_is_read_while_the_caller_computes(tmp_path: Path) -> None:
    data = training_data(tmp_path, "pictures")
    order, read = data.order(4, seed=0), threading.Event()

    def indices(step: int) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        if step == 6:
            read.set()
        return order.indices(step)

    with Feed(data, indices, (16, 16), CPU, ahead=True) as feed:
        feed(5)
        assert read.wait(10)


def test_rows_in_memory_need_no_thread_and_mapped_rows_have_one(tmp_path: Path) -> None:
    data = training_data(tmp_path, "pictures")
    before = threading.active_count()
    with Feed(data, data.order(4, seed=0).indices, None, CPU) as feed:
        feed(0)
        assert threading.active_count() == before
    np.save(tmp_path / "x.npy", data.train.x.rows)
    data.train.x.rows = np.load(tmp_path / "x.npy", mmap_mode="r")
    with Feed(data, data.order(4, seed=0).indices, (16, 16), CPU) as feed:
        feed(0)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
