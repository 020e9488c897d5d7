"""Run directories: round trips, what stays when something is damaged, what is refused."""

import json

import pytest
import torch
from helpers import refusal
from hypothesis import given
from hypothesis import strategies as st

from iiae_cli.builders import build_model, place
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.config import Config
from iiae_cli.data.datafile import DataInfo
from iiae_cli.runs import MODEL_SCHEMA, Checkpoint, RunDir, load_model, save_weights

INFO = DataInfo("tiny", (16, 16, 3), (16, 16, 1), {}, {})
CONFIG = Config.model_validate(
    {
        "model": {"widths": [4], "decoder_widths": [4], "shared": 2, "exclusive": 2},
        "training": {"steps": 1},
    }
)


def saved(path):
    run = RunDir(path)
    run.create(CONFIG)
    torch.manual_seed(0)
    model = place(build_model(CONFIG, INFO), "cpu")
    save_weights(run.model_file, model, CONFIG, INFO, {"step": 7})
    return run, model


def with_checkpoints(path, *steps):
    run, _ = saved(path)
    for step in steps:
        weights = {"w": torch.full((40,), float(step))}
        data = {"name": "tiny", "train pairs": 3}
        run.save(Checkpoint(step, weights, progress={"best": step}, data=data))
    return run


# ---- kept weights


def test_a_model_comes_back_equal_with_its_config_inside(tmp_path):
    run, model = saved(tmp_path / "run")
    loaded = load_model(run)
    assert loaded.config == CONFIG and loaded.details == {"step": 7}
    assert loaded.info.shape_y == (16, 16, 1) and loaded.size == (16, 16)
    state = model.state_dict()
    assert all(torch.equal(state[name], kept) for name, kept in loaded.model.state_dict().items())
    assert not loaded.model.training
    for change, same in ((0.0, True), (1e-6, False)):  # the fingerprint is the weights' alone
        state["shared.x.bias"][0] += change
        save_weights(run.model_file, model, CONFIG, INFO, {"step": 8})
        assert (load_model(run).fingerprint == loaded.fingerprint) == same


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run, _ = saved(tmp_path_factory.mktemp("weights") / "run")
    return run, run.model_file.read_bytes()


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_any_flipped_bit_of_the_weights_is_found(whole, place, bit):
    run, content = whole[0], bytearray(whole[1])
    content[int(place * len(content))] ^= 1 << bit
    run.model_file.write_bytes(content)
    refusal(load_model, run)


def test_a_run_without_weights_says_what_to_do(tmp_path):
    assert "iiae train" in refusal(load_model, RunDir(tmp_path / "none")).hint
    run = RunDir(tmp_path / "begun")
    run.create(CONFIG)
    assert "--run RUN" in refusal(load_model, run).hint


# ---- checkpoints


def test_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path):
    run = with_checkpoints(tmp_path / "run", 5, 9, 100)
    assert [path.stem for path in run.checkpoint_files()] == ["step-00000009", "step-00000100"]
    newest = run.latest_checkpoint()
    assert newest is not None and newest.step == 100 and newest.progress == {"best": 100}
    assert newest.data == {"name": "tiny", "train pairs": 3}
    assert newest.model["w"].tolist() == [100.0] * 40


@pytest.mark.parametrize("damage", ["flipped", "torn", "longer", "empty"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage, capsys):
    run = with_checkpoints(tmp_path / "run", 5, 9)
    newest, older = (run.checkpoint_file(step) for step in (9, 5))
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[-3] ^= 4
    kept = {"torn": content[:-7], "longer": content + b"x", "empty": b""}.get(damage, content)
    newest.write_bytes(kept)
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None and checkpoint.step == 5
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and str(newest) in said and older.exists()
    assert not newest.exists() and newest.with_name(f"{newest.name}.damaged").read_bytes() == kept
    run.save(Checkpoint(7))
    assert run.latest_checkpoint() == Checkpoint(7) and capsys.readouterr().err == ""


def test_where_no_checkpoint_can_be_read_no_run_begins_anew(tmp_path, capsys):
    run = with_checkpoints(tmp_path / "run", 5, 9)
    oldest, newest = run.checkpoint_files()
    for path in (oldest, newest):
        path.write_bytes(b"torn")
    for _ in range(2):
        refused = refusal(run.latest_checkpoint)
        assert str(oldest) in refused.message and "--overwrite" in refused.hint
    assert str(newest) in capsys.readouterr().err


# ---- the folder


def test_one_process_at_a_time_works_in_a_run_directory(tmp_path):
    run = with_checkpoints(tmp_path / "run", 5)
    left = run.checkpoint_folder / ".step-00000001.safetensors.abc.tmp"
    left.write_bytes(b"half")
    with run.locked():
        assert not left.exists()
        with pytest.raises(IiaeError, match="another process"), RunDir(run.path).locked():
            pass
    with RunDir(run.path).locked():
        pass


def test_a_refused_run_leaves_nothing_a_half_made_folder_is_free_and_any_other_is_not(tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    assert not run.path.exists() and run.is_free()
    run.path.mkdir()
    (run.path / ".config.yaml.x1.tmp").write_text("")
    assert run.is_free()
    run.samples_folder.mkdir()
    assert not run.is_free()


def test_a_new_run_replaces_an_old_one_but_nothing_that_it_did_not_write(tmp_path):
    run = with_checkpoints(tmp_path / "run", 5)
    run.samples_folder.mkdir()
    for name in ("1.png", "step-00000005.png"):
        (run.samples_folder / name).touch()
    run.create(CONFIG)
    assert run.exists() and not run.model_file.exists() and run.latest_checkpoint() is None
    assert [path.name for path in run.samples_folder.iterdir()] == ["1.png"]


def test_metrics_after_a_checkpoint_are_dropped_and_a_torn_line_too(tmp_path):
    run, _ = saved(tmp_path / "run")
    for step in (1, 2):
        run.save(Checkpoint(step))
        run.append_metrics({"step": step})
        with run.metrics_file.open("a") as file:
            file.write('{"step": 9, "lo')
        run.truncate_metrics(run.latest_checkpoint().lines)
        lines = run.metrics_file.read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, step))
        run.append_metrics({"step": step})


def test_a_config_or_weights_of_another_version_are_not_called_damaged(tmp_path):
    run, _ = saved(tmp_path / "run")
    assert run.read_config() == CONFIG
    header, state = read_tensors(run.model_file, MODEL_SCHEMA, "")
    save_tensors(state, run.model_file, {**header, "config": '{"objective": {"gone": 1}}'})
    run.config_file.write_text("model: {width: 3}\n")
    other, _ = saved(tmp_path / "other")
    kept = {name: values for name, values in state.items() if not name.endswith("bias")}
    save_tensors(kept, other.model_file, header)
    for error in (refusal(run.read_config), refusal(load_model, run), refusal(load_model, other)):
        assert "was written by another version" in error.message and "the version" in error.hint


def test_latest_is_replaced_but_a_real_folder_is_left_alone(tmp_path):
    for name in ("a", "b"):
        run, _ = saved(tmp_path / "runs" / name)
        run.link_latest()
        assert (tmp_path / "runs" / "latest").resolve() == run.path.resolve()
    (tmp_path / "other" / "latest").mkdir(parents=True)
    run, _ = saved(tmp_path / "other" / "c")
    run.link_latest()
    assert not (tmp_path / "other" / "latest").is_symlink()
