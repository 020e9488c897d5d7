"""Encoding by blocks: the values of encoding at once, whatever is sharded, skipped, interrupted or
resumed.
"""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import StopAt
from PIL import Image

from iiae_cli.builders import build_model
from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.config.presets import preset_layers, resolve
from iiae_cli.data.block_log import BlockLog
from iiae_cli.data.datafile import DataInfo
from iiae_cli.inference.inputs import ArrayInputs, PictureInputs
from iiae_cli.inference.latents import LatentFormat
from iiae_cli.inference.streaming import Encoder, ahead, batch_size_for, encode_stream
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.runs.weights import place

SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = resolve(preset_layers("digits-cdcb")).config
    return place(build_model(config, DataInfo("d", SHAPE, SHAPE, {}, {})), "cpu").eval()


@pytest.fixture
def pictures(tmp_path):
    draw = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(21)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, SHAPE, np.uint8)).save(path)
    return paths


def encoder(model, batch_size=4, **more):
    return Encoder(
        TrainedModel(model, SHAPE[:2]),
        "y",
        batch_size,
        LatentFormat(**{"logvar": True, **more}),
    )


def encoded(path, model, inputs, bounds=None, **more):
    batch = more.pop("batch_size", 4)
    with BlockLog(path) as log:
        encode_stream(encoder(model, batch), inputs, bounds or (0, inputs.total), log, **more)
    return collected(path)


def collected(path):
    with BlockLog(path) as log:
        blocks = list(log)
    positions = [one for block in blocks for one in block.arrays["positions"]]
    full = [block for block in blocks if len(block.arrays["positions"])]
    names = [name for name in full[0].arrays if name != "positions"]
    arrays = {name: np.concatenate([block.arrays[name] for block in full]) for name in names}
    return positions, arrays, [line for block in blocks for line in block.lines]


def assert_equal(found, wanted):
    assert found[0] == wanted[0] and found[2] == wanted[2]
    for name, values in wanted[1].items():
        np.testing.assert_array_equal(found[1][name], values)


def test_blocks_hold_what_encoding_at_once_gives(tmp_path, model, pictures):
    inputs = PictureInputs(pictures, SHAPE, 2)
    positions, arrays, skipped = encoded(tmp_path / "log", model, inputs)
    rows = np.stack([np.asarray(Image.open(path)) for path in pictures])
    slow = TrainedModel(model, SHAPE[:2]).encode(rows, "y")
    assert positions == list(range(21)) and skipped == []
    assert set(arrays) == {"shared_mean", "shared_logvar", "exclusive_mean", "exclusive_logvar"}
    for name, values in arrays.items():
        np.testing.assert_allclose(values, getattr(slow, name), atol=1e-5)
    from_array = ArrayInputs(rows, [str(one) for one in range(21)], None, {}, pictures[0])
    assert_equal(encoded(tmp_path / "other", model, from_array), (positions, arrays, []))


@pytest.mark.parametrize("cuts", [(0, 4, 12, 21), (0, 1, 2, 21), (0, 7, 13, 21)])
def test_shards_are_equal_to_the_last_bit_wherever_they_are_cut(tmp_path, model, pictures, cuts):
    pictures[5].write_bytes(b"broken")
    inputs = PictureInputs(pictures, SHAPE, 1)
    whole = encoded(tmp_path / "whole", model, inputs)
    parts = [encoded(tmp_path / f"{a}-", model, inputs, (a, b)) for a, b in pairwise(cuts)]
    joined = (
        [one for part in parts for one in part[0]],
        {name: np.concatenate([part[1][name] for part in parts]) for name in whole[1]},
        [line for part in parts for line in part[2]],
    )
    assert_equal(joined, whole)
    assert whole[0] == [one for one in range(21) if one != 5] and str(pictures[5]) in whole[2][0]


@pytest.mark.parametrize("stop_at", [0, 1, 3, 5])
def test_an_interrupted_encoding_goes_on_at_the_next_block(tmp_path, model, pictures, stop_at):
    for number in (0, 9):
        pictures[number].write_bytes(b"broken")
    inputs = PictureInputs(pictures, SHAPE, 2)
    whole = encoded(tmp_path / "whole", model, inputs)
    with pytest.raises(Interrupted, match=f"{stop_at * 4} of 21 inputs are saved") as stopped:
        encoded(
            tmp_path / "log",
            model,
            inputs,
            stop=StopAt(stop_at),
        )
    assert stopped.value.exit_code == 75
    done = []
    again = PictureInputs(pictures, SHAPE, 2)
    read = again.read
    again.read = lambda start, stop: done.append(start) or read(start, stop)
    assert_equal(encoded(tmp_path / "log", model, again), whole)
    assert sorted(done) == list(range(stop_at * 4, 21, 4))


def test_a_batch_without_a_readable_picture_is_a_block_of_no_rows(tmp_path, model, pictures):
    for path in pictures[4:8]:
        path.write_bytes(b"broken")
    positions, _, skipped = encoded(tmp_path / "log", model, PictureInputs(pictures, SHAPE, 1))
    assert positions == [*range(4), *range(8, 21)] and len(skipped) == 4


def test_only_what_is_kept_is_written(tmp_path, model):
    inputs = ArrayInputs(np.zeros((3, *SHAPE), np.uint8), list("abc"), None, {}, tmp_path)
    with BlockLog(tmp_path / "log") as log:
        encode_stream(
            encoder(model, 2, kinds=("exclusive",), logvar=False, dtype="float16"),
            inputs,
            (0, 3),
            log,
        )
    _, arrays, _ = collected(tmp_path / "log")
    assert set(arrays) == {"exclusive_mean"} and arrays["exclusive_mean"].dtype == np.float16


def test_a_full_disk_ends_the_encoding(tmp_path, model, pictures):
    class Full:
        path = tmp_path / "log"

        def __len__(self):
            return 0

        def append(self, arrays, lines):
            raise IiaeError("no space left", "free some")

    with pytest.raises(IiaeError, match="no space left"):
        encode_stream(encoder(model), PictureInputs(pictures, SHAPE, 2), (0, 21), Full())


def test_ahead_is_in_order_bounded_and_in_another_thread():
    made, used = [], []

    def make(item):
        assert threading.current_thread() is not threading.main_thread()
        made.append(item)
        return item * 2

    for result in ahead(make, range(20), 3):
        time.sleep(0.002)
        used.append(result)
        assert len(made) - len(used) <= 4
    assert used == [2 * item for item in range(20)]


def test_an_error_while_reading_ahead_reaches_the_caller():
    def make(item):
        if item == 3:
            raise IiaeError("damaged", "again")
        return item

    found = []
    with pytest.raises(IiaeError, match="damaged"):
        for one in ahead(make, range(9), 2):
            found.append(one)
    assert found == [0, 1, 2]


def test_the_batch_follows_from_the_shape_alone():
    assert (
        batch_size_for((256, 256)) == 16
        and batch_size_for((32, 32)) == 64
        and batch_size_for((512,)) == 256
    )
    assert batch_size_for((4000, 4000)) == 8
