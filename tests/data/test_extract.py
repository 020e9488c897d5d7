"""Extraction: rows in order, blocks that survive an interruption, pictures left out by name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from class_sources import class_folders
from helpers import StopAt
from PIL import Image
from torch import nn

from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.common.signals import NEVER
from iiae_cli.data.backbone import Preprocessing
from iiae_cli.data.extract import feature_reading
from iiae_cli.data.sources.work import Work


class Means(nn.Module):
    """Features (B, 6): means of the channels of the left and right halves; counts what it is shown."""

    def __init__(self):
        super().__init__()
        self.shown = 0

    def forward(self, pictures):
        self.shown += len(pictures)
        assert pictures.shape[1:] == (3, 224, 224) and not self.training
        return torch.cat([pictures[..., :112].mean((2, 3)), pictures[..., 112:].mean((2, 3))], 1)


def run(folder, paths, network=None, stop=NEVER, **keywords):
    folder.mkdir(exist_ok=True)
    reading = feature_reading(
        "train/x",
        paths,
        lambda: network or Means(),
        **{
            "domain": "x",
            "preprocessing": Preprocessing(normalise=False),
            "device": torch.device("cpu"),
            "batch_size": 2,
            **keywords,
        },
    )
    found = Work(folder, stop).read([reading])["train/x"]
    return SimpleNamespace(
        features=found.rows[0], rows=found.places, skipped=[str(error) for error in found.errors]
    )


@pytest.fixture
def paths(tmp_path):
    return class_folders(tmp_path / "pictures", {"ant": 6, "bee": 5})


def slow(path):
    with Image.open(path) as image:
        image = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    values = np.asarray(image) / 255
    return np.concatenate([values[:, :112].mean((0, 1)), values[:, 112:].mean((0, 1))])


@pytest.mark.parametrize("workers", [1, 3])
def test_features_are_those_of_each_picture_in_order(tmp_path, paths, workers):
    found = run(tmp_path / "work", paths, workers=workers)
    np.testing.assert_allclose(found.features, [slow(path) for path in paths], atol=1e-5)
    assert (
        found.features.dtype == np.float32
        and found.rows.tolist() == list(range(11))
        and found.skipped == []
    )


def test_unreadable_pictures_are_named_and_left_out(tmp_path, paths):
    for row in (0, 4, 5):  # a whole batch among them
        paths[row].write_bytes(b"broken")
    found = run(tmp_path / "work", paths)
    assert found.rows.tolist() == [1, 2, 3, 6, 7, 8, 9, 10]
    assert [line.split(":")[0] for line in found.skipped] == [str(paths[row]) for row in (0, 4, 5)]
    np.testing.assert_allclose(found.features, [slow(paths[row]) for row in found.rows], atol=1e-5)
    again = run(tmp_path / "work", paths, network=nn.Identity())
    np.testing.assert_array_equal(again.features, found.features)
    assert again.skipped == found.skipped and again.rows.tolist() == found.rows.tolist()


def test_nothing_readable_gives_no_rows(tmp_path, paths):
    for path in paths:
        path.write_bytes(b"broken")
    found = run(tmp_path / "work", paths)
    assert len(found.features) == len(found.rows) == 0 and len(found.skipped) == 11
    assert len(run(tmp_path / "empty", []).rows) == 0


def test_finished_batches_are_not_computed_again(tmp_path, paths):
    whole = run(tmp_path / "a", paths)
    with pytest.raises(Interrupted, match="8 of 11 items of train/x are saved") as stopped:
        run(tmp_path / "b", paths, stop=StopAt(4, 130))
    assert stopped.value.exit_code == 130 and len(list((tmp_path / "b").iterdir())) == 1
    rest = Means()
    found = run(tmp_path / "b", paths, network=rest)
    assert rest.shown == 3
    np.testing.assert_array_equal(found.features, whole.features)
    assert found.rows.tolist() == whole.rows.tolist()


def test_what_a_kill_tore_is_computed_again(tmp_path, paths):
    whole = run(tmp_path / "work", paths)
    log = tmp_path / "work" / "train-x.blocks"
    content = log.read_bytes()
    for length, missing in ((0, 11), (len(content) // 2, 7), (len(content) - 1, 1)):
        log.write_bytes(content[:length])
        again = Means()
        np.testing.assert_array_equal(
            run(tmp_path / "work", paths, network=again).features, whole.features
        )
        assert again.shown == missing
        assert log.read_bytes() == content


def test_features_that_are_not_finite_are_refused(tmp_path, paths):
    class Broken(nn.Module):
        def forward(self, pictures):
            return pictures.mean((2, 3)) / torch.tensor([[1.0], [0.0]])[: len(pictures)]

    with pytest.raises(IiaeError, match=r"features of .*1\.png are not finite"):
        run(tmp_path / "work", paths, network=Broken())
