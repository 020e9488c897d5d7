"""Batches are the same whichever way they come; what `auto` becomes by device, processor, pictures
and length, the same for a run that is resumed.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import refusal

from iiae_cli.builders import picture_size
from iiae_cli.config import Config, TrainingSection
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import DataFile, DataInfo, Side, Split, write_data_file
from iiae_cli.training import step as speed
from iiae_cli.training.data import TrainingData
from iiae_cli.training.step import Feed, choose_speed, has_compiler

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def training_data(folder, kind):
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


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("kind", ["pictures", "recurring", "features"])
def test_every_way_gives_the_rows_of_the_step(tmp_path, kind, resident):
    data = training_data(tmp_path, kind)
    order = data.order(4, seed=0)
    size = None if kind == "features" else (24, 24)
    with Feed(data, order.indices, size, CPU, resident) as feed:
        for step in (0, 1, 2, 7, 3, 4, 4, 25):  # also out of order, twice, and in a later epoch
            wanted = [to_inputs(rows, size) for rows in data.rows(order.indices(step))]
            for found, one in zip(feed(step), wanted, strict=True):
                assert torch.equal(found, one)
                assert kind == "features" or found.is_contiguous(memory_format=torch.channels_last)


def test_the_next_step_is_read_while_the_caller_computes(tmp_path):
    data = training_data(tmp_path, "pictures")
    order, read = data.order(4, seed=0), threading.Event()

    def indices(step):
        assert threading.current_thread() is not threading.main_thread()
        if step == 6:
            read.set()
        return order.indices(step)

    with Feed(data, indices, (16, 16), CPU) as feed:
        feed(5)
        assert read.wait(10)


# ---- precision and compilation


def config_of(preset, *assignments):
    return resolve([*preset_layers(preset), set_layer(list(assignments))]).config


def chosen(config, device):
    shape = (512,) if config.model.kind == "features" else (32, 32, 3)
    pictures = picture_size(config, DataInfo("some", shape, shape, {}, {}))
    training = choose_speed(config, pictures, device).training
    return training.precision, training.compile


@pytest.fixture
def amx(monkeypatch):
    monkeypatch.setattr(speed, "multiplies_bf16", lambda: True)


@pytest.fixture
def ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(speed, "has_compiler", lambda device: True)


def test_a_cpu_takes_bf16_only_with_a_matrix_unit_and_pictures_of_some_size(amx, monkeypatch):
    assert chosen(config_of("mnist-cdcb-32"), CPU) == ("bf16", False)
    for config in (config_of("digits-cdcb", "data.image_size=28"), config_of("sketchy")):
        assert chosen(config, CPU)[0] == "fp32"
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert chosen(config_of("mnist-cdcb"), CPU)[0] == "fp32"
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not speed.multiplies_bf16()


def test_a_gpu_takes_tf32_where_it_has_it_and_compiles_long_runs(ampere, monkeypatch):
    asked = config_of("mnist-cdcb", "training.precision=fp32", "training.compile=true")
    assert chosen(asked, GPU) == chosen(asked, CPU) == ("fp32", True)
    assert chosen(config_of("mnist-cdcb"), GPU) == ("tf32", True)
    assert chosen(config_of("digits-cdcb"), GPU) == ("tf32", False)
    assert chosen(config_of("sketchy"), GPU)[0] == "fp32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert chosen(config_of("mnist-cdcb"), GPU)[0] == "fp32"


def test_without_a_compiler_auto_does_not_compile_and_asking_for_it_is_an_error(
    ampere, monkeypatch, tmp_path
):
    monkeypatch.setattr(speed, "has_compiler", has_compiler)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert chosen(config_of("mnist-cdcb"), GPU)[1] is False
    refused = refusal(chosen, config_of("mnist-cdcb", "training.compile=true"), CPU)
    assert "no C++ compiler" in refused.message and "--no-compile" in refused.hint
    (tmp_path / "g++").touch(mode=0o755)
    assert has_compiler(CPU)
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    assert has_compiler(CPU) and not has_compiler(GPU)


def test_a_run_records_its_choice_and_resumes_with_it(iiae, few, monkeypatch, amx):
    monkeypatch.setattr(speed, "BF16_PIXELS", 0)
    call = ["train", "--preset", "digits-cdcb", "--data", few, "--run", "run"]
    call += ["--steps", 2, "--set", "model.widths=[4,8]", "--set", "model.decoder_widths=[8,4]"]
    first = iiae(*call)
    assert first.code == 0 and "in bf16, not compiled" in first.err
    recorded = yaml.safe_load(Path("run/config.yaml").read_text())["training"]
    assert (recorded["precision"], recorded["compile"]) == ("bf16", False)
    monkeypatch.setattr(speed, "multiplies_bf16", lambda: False)
    again = iiae(*call, "--resume", "--set", "training.log_every=1")
    assert again.code == 0, again.err
    refused = iiae(*call, "--resume", "--precision", "fp32")
    assert refused.code == 2 and "training.precision=bf16" in refused.error()[0]
