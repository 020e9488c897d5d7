"""Run directories: round trips, what stays when a write fails, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iiae_cli.builders import build_model
from iiae_cli.common.errors import IiaeError
from iiae_cli.config.schema import Config
from iiae_cli.data.datafile import DataInfo
from iiae_cli.runs.directory import Checkpoint, RunDir, load_model
from iiae_cli.runs.weights import fingerprint_of, place, read_weights

INFO = DataInfo("tiny", (16, 16, 3), (16, 16, 1), {}, {})
CONFIG = Config.model_validate(
    {
        "model": {"widths": [4], "decoder_widths": [4], "shared": 2, "exclusive": 2},
        "training": {"steps": 1},
    }
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
        torch.equal(a, b)
        for a, b in zip(
            model.state_dict().values(), loaded.model.state_dict().values(), strict=True
        )
    )
    assert not loaded.model.training
    with safe_open(run.model_file, framework="pt") as file:
        header = file.metadata()
    assert header["schema"] == "iiae.model/2" and json.loads(header["config"])["model"][
        "widths"
    ] == [4]


def test_the_fingerprint_changes_with_any_weight(tmp_path: Path) -> None:
    _, model, before = saved(tmp_path / "run")
    state = {name: values.clone() for name, values in model.state_dict().items()}
    state["shared.x.bias"][0] += 1e-6
    assert fingerprint_of(state) != before


def test_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    run, _, _ = saved(tmp_path / "run")
    for step in (5, 9, 100):
        run.save_checkpoint(
            Checkpoint(
                step,
                {"w": torch.full((2,), float(step))},
                {"w.step": torch.tensor(1.0)},
                {},
                {"best": step},
            )
        )
    assert [path.name for path in sorted(run.checkpoint_folder.iterdir())] == [
        "step-00000009.safetensors",
        "step-00000100.safetensors",
    ]
    newest = run.latest_checkpoint()
    assert newest is not None and newest.step == 100 and newest.progress == {"best": 100}
    assert newest.model["w"].tolist() == [100.0, 100.0]


def with_checkpoints(path: Path, *steps: int) -> RunDir:
    run, _, _ = saved(path)
    for step in steps:
        run.save_checkpoint(
            Checkpoint(step, {"w": torch.full((40,), float(step))}, {}, {}, {"best": step})
        )
    return run


@pytest.mark.parametrize(
    "damage", ["flipped in the tensors", "flipped in the header", "torn", "longer", "empty"]
)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before_said_aloud(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_checkpoints(tmp_path / "run", 5, 9)
    newest, older = run.checkpoint_file(9), run.checkpoint_file(5)
    content = bytearray(newest.read_bytes())
    if damage == "flipped in the tensors":
        content[-3] ^= 4
    elif damage == "flipped in the header":
        content[content.index(b'"step":"9"') + 8] ^= 1  # 9 becomes 8
    kept = {"torn": content[:-7], "longer": content + b"x", "empty": b""}.get(damage, content)
    newest.write_bytes(kept)
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None and checkpoint.step == 5
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and str(newest) in said and str(older) in said
    assert not newest.exists() and newest.with_name(f"{newest.name}.damaged").read_bytes() == kept
    run.save_checkpoint(Checkpoint(7, {}, {}, {}))
    run.save_checkpoint(Checkpoint(8, {}, {}, {}))
    assert run.latest_checkpoint().step == 8 and capsys.readouterr().err == ""  # type: ignore[union-attr]


def test_where_no_checkpoint_is_whole_both_are_named_and_left_alone(tmp_path: Path) -> None:
    run = with_checkpoints(tmp_path / "run", 5, 9)
    for step in (5, 9):
        run.checkpoint_file(step).write_bytes(b"torn")
    with pytest.raises(IiaeError) as caught:
        run.latest_checkpoint()
    assert (
        str(run.checkpoint_file(5)) in caught.value.message
        and str(run.checkpoint_file(9)) in caught.value.message
    )
    assert "--overwrite" in caught.value.hint
    assert run.checkpoint_file(5).exists() and run.checkpoint_file(9).exists()


def test_any_flipped_bit_of_the_weights_is_found(tmp_path: Path) -> None:
    run, _, _ = saved(tmp_path / "run")
    content = run.model_file.read_bytes()
    for offset in (
        3,
        content.index(b"fingerprint") + 20,
        content.index(b"step") + 9,
        len(content) // 2,
        -1,
    ):
        flipped = bytearray(content)
        flipped[offset] ^= 16
        run.model_file.write_bytes(flipped)
        with pytest.raises(IiaeError, match="damaged"):
            load_model(run)
    run.model_file.write_bytes(content)
    load_model(run)


def test_weights_without_a_checksum_must_match_their_fingerprint(tmp_path: Path) -> None:
    run, _, fingerprint = saved(tmp_path / "run")
    with safe_open(run.model_file, framework="pt") as file:
        header = {name: value for name, value in file.metadata().items() if name != "checksum"}
    state = load_file(run.model_file)
    save_file(state, run.model_file, metadata=header)
    assert load_model(run).fingerprint == fingerprint
    state["shared.x.bias"][0] += 1
    save_file(state, run.model_file, metadata=header)
    with pytest.raises(IiaeError, match="do not match their fingerprint"):
        load_model(run)


def test_a_pipe_is_no_file_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(IiaeError, match="is no file"):
        read_weights(tmp_path / "model.safetensors")


def test_one_process_at_a_time_trains_in_a_run_directory(tmp_path: Path) -> None:
    run, _, _ = saved(tmp_path / "run")
    other = RunDir(run.path)
    with pytest.raises(IiaeError, match="another process"):
        other.lock()
    left = run.checkpoint_folder / ".step-00000001.safetensors.abc.tmp"
    left.write_bytes(b"half")
    run.lock()
    assert left.exists()  # the lock was held all along
    run.unlock()
    other.lock()
    assert not left.exists()
    other.unlock()


def test_a_half_made_folder_is_free_and_any_other_is_not(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.is_free()
    run.samples_folder.mkdir(parents=True)
    run.checkpoint_folder.mkdir()
    (run.path / ".config.yaml.x1.tmp").write_text("")
    assert run.is_free()
    (run.samples_folder / "mine.png").write_bytes(b"")
    assert not run.is_free()
    (run.samples_folder / "mine.png").unlink()
    (run.path / "notes.txt").write_text("")
    assert not run.is_free()


def test_clearing_ends_with_checkpoints_first_so_that_a_half_cleared_run_is_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_checkpoints(tmp_path / "run", 5, 9)
    removed: list[str] = []
    unlink = Path.unlink

    def record(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", record)
    run.clear()
    assert removed[:2] == ["step-00000009.safetensors", "step-00000005.safetensors"]
    assert run.exists() and not run.model_file.exists()


def test_metrics_after_a_checkpoint_are_dropped_and_a_torn_line_too(tmp_path: Path) -> None:
    run, _, _ = saved(tmp_path / "run")
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "lo')
    run.truncate_metrics(2)
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [
        1,
        2,
    ]


def test_a_validation_that_is_owed_leaves_no_line(tmp_path: Path) -> None:
    run, _, _ = saved(tmp_path / "run")
    for kind, step in (("validation", 1), ("train", 2), ("validation", 2), ("train", 3)):
        run.append_metrics({"kind": kind, "step": step})
    run.truncate_metrics(2, validated=False)
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("validation", 1), ("train", 2)]


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
    del header["checksum"]  # as files have it that were written before there was one
    tensors = load_file(run.model_file)
    del tensors["shared.x.bias"]
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
