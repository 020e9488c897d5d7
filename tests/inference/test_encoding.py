"""Encoding in blocks: what is read, resumed and divided has the values of one call."""

import numpy as np
import pytest
import torch
from helpers import StopAt, small_model
from PIL import Image

from iiae_cli.common.errors import Interrupted
from iiae_cli.data.blocks import Part, block_store
from iiae_cli.data.datafile import DataInfo
from iiae_cli.inference.encoding import (
    EncodeJob,
    read_shards,
    write_blocks,
    write_merged,
)
from iiae_cli.inference.inputs import open_inputs
from iiae_cli.inference.latents import Gallery, LatentFormat
from iiae_cli.inference.trained import TrainedModel

SHAPE = (16, 16, 3)
HEAD = {
    "fingerprint": "f" * 16,
    "domain": "x",
    "shared_shape": [4, 4, 4],
    "preset": "",
    "metric": "euclidean",
    "source": {"pictures": True},
}


@pytest.fixture
def folder(tmp_path):
    """21 pictures, two of them broken."""
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(21):
        path = tmp_path / "in" / f"{number:02d}.png"
        Image.fromarray(draw.integers(0, 256, SHAPE, np.uint8)).save(path)
        if number in (5, 9):
            path.write_bytes(b"broken")
    return tmp_path / "in"


@pytest.fixture
def job(folder):
    torch.manual_seed(0)
    inputs = open_inputs([str(folder)], "x", DataInfo("", SHAPE, SHAPE, {}, {}), workers=2)
    trained = TrainedModel(small_model("maps").eval(), SHAPE[:2])
    return EncodeJob(trained, inputs, LatentFormat(logvar=True), 4, HEAD)


def encoded(job, path, part=None):
    with block_store(path, job.settings(), resume=True) as store:
        job.make(store, (part or Part(0, 1)).of(job.total))
        write_blocks(path, job, store, part)
    return Gallery(path).read()


def test_a_cache_holds_what_encoding_at_once_returns(job, folder, tmp_path):
    cache = encoded(job, tmp_path / "z.h5")
    paths = [path for path in sorted(folder.iterdir()) if path.stem not in ("05", "09")]
    assert cache.ids == [str(path) for path in paths]
    rows = np.stack([np.asarray(Image.open(path)) for path in paths])
    direct = job.trained.encode(rows, "x")
    for name, values in vars(direct).items():
        np.testing.assert_allclose(getattr(cache.encoded, name), values, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 7])  # seven shards of six blocks: one is empty
def test_merged_shards_have_the_values_of_one_call(job, tmp_path, count):
    whole = encoded(job, tmp_path / "whole.h5")
    paths = [tmp_path / f"{index}.h5" for index in range(count)]
    shards = [encoded(job, path, Part(index, count)) for index, path in enumerate(paths)]
    assert [name for shard in shards for name in shard.ids] == whole.ids
    write_merged(tmp_path / "merged.h5", read_shards(paths[::-1]))
    stored = Gallery(tmp_path / "merged.h5")
    merged = stored.read()
    assert (merged.ids, merged.labels) == (whole.ids, whole.labels)
    assert merged.attributes() == whole.attributes()
    assert stored.head.skipped == Gallery(tmp_path / "whole.h5").head.skipped != []
    for name, values in vars(whole.encoded).items():
        np.testing.assert_allclose(getattr(merged.encoded, name), values, rtol=1e-6)


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_an_interrupted_encoding_continues_at_the_next_block(job, tmp_path, stop_at):
    path = tmp_path / "z.h5"
    with (
        pytest.raises(Interrupted, match="items are saved"),
        block_store(path, job.settings()) as store,
    ):
        job.make(store, range(job.total), stop=StopAt(stop_at))
    with block_store(path, job.settings(), resume=True) as store:
        assert 0 < len(store.missing(range(job.total))) < job.total
        job.make(store, range(job.total))
        write_blocks(path, job, store)
    whole = encoded(job, tmp_path / "whole.h5")
    np.testing.assert_allclose(
        Gallery(path).read().encoded.shared_mean, whole.encoded.shared_mean, rtol=1e-6
    )


def test_a_changed_picture_changes_the_job(job, folder):
    before = job.settings()
    (folder / "03.png").write_bytes((folder / "04.png").read_bytes() + b" ")
    after = job.settings()
    assert {key for key in before if before[key] != after[key]} == {"content of the inputs"}
