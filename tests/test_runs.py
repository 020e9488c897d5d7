"""Run directories: round trips, what stays when a write fails, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from iiae_cli.builders import build_model
from iiae_cli.config import Config
from iiae_cli.data.dataset import DataInfo
from iiae_cli.errors import IiaeError
from iiae_cli.runs import Checkpoint, RunDir, fingerprint_of, load_model, place

INFO = DataInfo("tiny", (16, 16, 3), (16, 16, 1), {}, {})
CONFIG = Config.model_validate(
    {"model": {"widths": [4], "decoder_widths": [4], "shared": 2, "exclusive": 2}, "training": {"steps": 1}}
)


def saved(path: Path) -> tuple[RunDir, torch.nn.Module, str]:
    run = RunDir(path)
    run.create(CONFIG)
    torch.manual_seed(0)
    model = place(build_model(CONFIG, INFO), "cpu")
    return run, model, run.save_model(model, CONFIG, INFO, {"step": 7})


def test_a_model_comes_back_equal_with_its_config_inside(tmp_path: Path) -> None:
    run, model, fingerprint = saved(tmp_path / "run")
    loaded = load_model(run)
    assert loaded.fingerprint == fingerprint == fingerprint_of(dict(model.state_dict()))
    assert loaded.config == CONFIG and loaded.details == {"step": 7}
    assert loaded.info.shape_y == (16, 16, 1) and loaded.size == (16, 16)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.model.state_dict().values(), strict=True)
    )
    assert not loaded.model.training
    with safe_open(run.model_file, framework="pt") as file:
        header = file.metadata()
    assert header["schema"] == "iiae.model/1" and json.loads(header["config"])["model"]["widths"] == [4]


def test_the_fingerprint_changes_with_any_weight(tmp_path: Path) -> None:
    _, model, before = saved(tmp_path / "run")
    state = {name: values.clone() for name, values in model.state_dict().items()}
    state["shared_x.bias"][0] += 1e-6
    assert fingerprint_of(state) != before


def test_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    run, _, _ = saved(tmp_path / "run")
    for step in (5, 9, 100):
        run.save_checkpoint(
            Checkpoint(step, {"w": torch.full((2,), float(step))}, {"w.step": torch.tensor(1.0)}, {}, {"best": step})
        )
    assert [path.name for path in sorted(run.checkpoint_folder.iterdir())] == [
        "step-00000009.safetensors",
        "step-00000100.safetensors",
    ]
    newest = run.latest_checkpoint()
    assert newest is not None and newest.step == 100 and newest.progress == {"best": 100}
    assert newest.model["w"].tolist() == [100.0, 100.0]


def test_metrics_after_a_checkpoint_are_dropped_and_a_torn_line_too(tmp_path: Path) -> None:
    run, _, _ = saved(tmp_path / "run")
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "lo')
    run.truncate_metrics(2)
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [1, 2]


def test_config_survives_the_round_trip_through_yaml(tmp_path: Path) -> None:
    run, _, _ = saved(tmp_path / "run")
    assert run.read_config() == CONFIG
    run.config_file.write_text("model: {width: 3}\n")
    with pytest.raises(IiaeError, match="another version"):
        run.read_config()


def test_weights_that_do_not_fit_their_header_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run, _, _ = saved(tmp_path / "run")
    with safe_open(run.model_file, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(run.model_file)
    del tensors["shared_x.bias"]
    save_file(tensors, run.model_file, metadata=header)
    with pytest.raises(IiaeError, match="does not fit"):
        load_model(run)


def test_latest_is_replaced_but_a_real_folder_is_left_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run, _, _ = saved(tmp_path / "runs" / name)
        run.link_latest()
        assert (tmp_path / "runs" / "latest").resolve() == run.path.resolve()
    (tmp_path / "other" / "latest").mkdir(parents=True)
    run, _, _ = saved(tmp_path / "other" / "c")
    run.link_latest()
    assert not (tmp_path / "other" / "latest").is_symlink()
