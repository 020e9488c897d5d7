"""Several ranks: the same losses as one process, whoever resumes; what launchers say; ranks that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import Nursery
from moments import TINY
from safetensors.torch import load_file

from iiae_cli.common.errors import IiaeError
from iiae_cli.model.gaussian import DiagonalGaussian, Part
from iiae_cli.training import distributed
from iiae_cli.training.distributed import Ranks, World, find_world
from iiae_cli.training.distributed_layers import SliceDropout

# Nine rows, so that two ranks have five and four. In double precision, since in single precision the order of sums
# makes one of Adam's signs differ now and then, and with it the fifth digit of a loss.
EVERY_STEP = ("--set", "training.log_every=1", "--batch-size", 9, "--precision", "fp64")
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def losses(run: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left_out = ("kind", "pairs_per_s")
    return {
        line["step"]: {key: value for key, value in line.items() if key not in left_out}
        for line in lines
        if line["kind"] == "train"
    }


def assert_same_losses(one: Path, other: Path, tolerance: float = 1e-9) -> None:
    expected, found = losses(one), losses(other)
    assert expected.keys() == found.keys()
    for step, terms in expected.items():
        assert found[step] == pytest.approx(terms, rel=tolerance, abs=1e-12), step


def test_two_ranks_have_the_losses_of_one_process_over_fifty_steps(nursery: Nursery) -> None:
    for run, ranks in (("one", 1), ("two", 2)):
        done = nursery.train(run, *EVERY_STEP, "--steps", 50, ranks=ranks)
        assert done["codes"] == [0] * ranks, done["errs"]
    assert len(losses(nursery.folder / "two")) == 50
    assert_same_losses(nursery.folder / "one", nursery.folder / "two")
    first, second = (
        load_file(nursery.folder / run / "model.safetensors") for run in ("one", "two")
    )
    assert first.keys() == second.keys()
    assert {values.dtype for values in first.values()} == {torch.float32, torch.int64}
    assert json.loads((nursery.folder / "two" / "run.json").read_text())["ranks"] == 2


def test_in_single_precision_the_losses_are_as_near_as_rounding_lets_them(nursery: Nursery) -> None:
    for run, ranks in (("single", 1), ("single-two", 2)):
        done = nursery.train(run, *EVERY_STEP, "--precision", "fp32", "--steps", 8, ranks=ranks)
        assert done["codes"] == [0] * ranks, done["errs"]
    expected, found = losses(nursery.folder / "single"), losses(nursery.folder / "single-two")
    assert [found[step]["loss"] for step in expected] == pytest.approx(
        [one["loss"] for one in expected.values()], rel=1e-4
    )
    assert found[1]["loss"] == pytest.approx(expected[1]["loss"], rel=1e-6)


SMALL_SET = (
    *("--set", "model.kind=flat", "--set", "model.flat_hidden=8", "--set", "model.flat_width=8"),
    *("--set", "model.linear_path=canonical", "--set", "objective.contrastive=100"),
    *(
        "--set",
        "augment.geometric=0.5",
        "--set",
        "augment.photometric=0.5",
        "--set",
        "augment.erase=0.5",
    ),
)


@pytest.mark.parametrize("kind", ["elbo+ii-mi", "infonce"])
def test_two_ranks_contrast_penalise_and_augment_as_one_process(
    nursery: Nursery, kind: str
) -> None:
    penalty = () if kind == "infonce" else ("--set", "objective.independence=10")
    more = (*EVERY_STEP, *SMALL_SET, "--set", f"objective.kind={kind}", *penalty, "--steps", 6)
    for run, ranks in ((f"{kind}-alone", 1), (f"{kind}-both", 2)):
        done = nursery.train(run, *more, ranks=ranks)
        assert done["codes"] == [0] * ranks, done["errs"]
    # Pictures are turned in single precision, whose products round by the size of the batch.
    assert_same_losses(
        nursery.folder / f"{kind}-alone", nursery.folder / f"{kind}-both", tolerance=1e-5
    )


def test_from_two_ranks_to_one_to_three_the_losses_stay(nursery: Nursery) -> None:
    assert nursery.train("steady", *EVERY_STEP, "--steps", 24)["code"] == 0
    # Stopped in the middle of a checkpoint's interval, by a signal to a rank that writes nothing.
    stopped = nursery.train(
        "changing", *EVERY_STEP, "--steps", 24, ranks=2, rank=1, at=8, act="TERM"
    )
    assert stopped["codes"] == [75, 75] and stopped["seconds"] < 5, stopped["errs"]
    assert "saved at step 8" in stopped["errs"][0] and stopped["errs"][1] == ""
    assert (
        nursery.train("changing", *EVERY_STEP, "--steps", 24, "--resume", at=50, act="USR2")["code"]
        == 75
    )
    done = nursery.train("changing", *EVERY_STEP, "--steps", 24, "--resume", ranks=3)
    assert done["codes"] == [0, 0, 0], done["errs"]
    assert "resuming" in done["errs"][0]
    assert_same_losses(nursery.folder / "steady", nursery.folder / "changing")


def test_local_batch_norm_is_another_choice_and_resumes_too(nursery: Nursery) -> None:
    local = (
        "--set",
        "training.batch_norm=local",
        "--batch-size",
        8,
        "--set",
        "training.log_every=1",
        "--steps",
        8,
    )
    for run in ("local", "local-again"):
        assert nursery.train(run, *local, ranks=2)["codes"] == [0, 0]
    assert_same_losses(nursery.folder / "local", nursery.folder / "local-again", tolerance=0)
    assert (
        nursery.train("whole-batch", *local)["code"] == 0
    )  # one process has one slice: the whole batch
    whole, sliced = losses(nursery.folder / "whole-batch"), losses(nursery.folder / "local")
    assert whole[8]["loss"] != pytest.approx(sliced[8]["loss"], rel=1e-4)
    stopped = nursery.train("local-parts", *local, ranks=2, at=40, act="TERM")
    assert stopped["codes"] == [75, 75]
    assert nursery.train("local-parts", *local, "--resume", ranks=2)["codes"] == [0, 0]
    assert_same_losses(nursery.folder / "local", nursery.folder / "local-parts", tolerance=1e-6)


def test_a_rank_that_dies_or_fails_takes_the_others_along(nursery: Nursery) -> None:
    dead = nursery.train("dead", "--steps", 9, ranks=2, rank=1, at=5, act="kill")
    assert dead["codes"] == [2, 137] and dead["seconds"] < 20
    assert "error: another rank has ended" in dead["err"] and "Traceback" not in dead["err"]
    full = nursery.train("full", "--steps", 9, ranks=2, at=40, act="ENOSPC")
    assert full["codes"] == [2, 2] and full["seconds"] < 20
    assert "no space left" in full["errs"][0] and "another rank has ended" in full["errs"][1]
    for run in ("dead", "full"):
        assert nursery.train(run, "--steps", 9, "--resume", ranks=2)["codes"] == [0, 0]


@pytest.mark.exhaustive
def test_torchrun_starts_and_stops_it(nursery: Nursery, tmp_path: Path) -> None:
    arguments = [
        "train",
        "--preset",
        "digits-cdcb",
        "--data",
        str(nursery.folder / "d.h5"),
        "--run-dir",
        "run",
        *TINY,
    ]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command = [*launcher, "-m", "iiae_cli", *arguments, "--resume", "--steps"]
    process = subprocess.Popen(
        [*command, "100000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 4:"):
            process.terminate()
    assert process.wait(timeout=60) != 0
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "interrupted"
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_the_noise_of_a_row_does_not_depend_on_who_draws_it() -> None:
    whole = DiagonalGaussian(torch.zeros(7, 3), torch.zeros(7, 3))
    torch.manual_seed(1)
    expected = whole.sample()
    for first, last in ((0, 4), (4, 7)):
        torch.manual_seed(1)
        part = DiagonalGaussian(whole.mean[first:last], whole.logvar[first:last]).sample(
            part=Part(first, 7)
        )
        assert torch.equal(part, expected[first:last])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_dropout_of_a_row_does_not_depend_on_who_draws_it(layout: torch.memory_format) -> None:
    whole = torch.randn(5, 6, 4, 4).contiguous(memory_format=layout)
    torch.manual_seed(2)
    expected = F.dropout(whole, 0.4)
    for first, last in ((0, 3), (3, 5)):
        torch.manual_seed(2)
        layer = SliceDropout(0.4, Part(first, 5)).train()
        assert torch.equal(layer(whole[first:last]), expected[first:last])
    assert torch.equal(layer.eval()(whole), whole)


def test_torchruns_variables_make_a_world() -> None:
    assert find_world(TORCHRUN) == World(1, 4, 1)
    assert find_world({}) == find_world({**TORCHRUN, "WORLD_SIZE": "1"}) == World()
    with pytest.raises(IiaeError, match="MASTER_ADDR"):
        find_world({"WORLD_SIZE": "2", "RANK": "0"})


def test_sruns_variables_make_a_world_only_where_a_meeting_point_is_named() -> None:
    assert find_world(SRUN) == World()
    named = {**SRUN, "MASTER_ADDR": "node7", "SLURM_JOB_ID": "1234567"}
    assert find_world(named) == World(3, 4, 1, "tcp://node7:34567")
    assert find_world({**named, "MASTER_PORT": "5000"}).address == "tcp://node7:5000"
    assert find_world({**named, **TORCHRUN}) == World(1, 4, 1)
    batch_script = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "MASTER_ADDR": "node7"}
    assert find_world(batch_script) == World()
    with pytest.raises(IiaeError, match="SLURM_LOCALID"):
        find_world({name: value for name, value in named.items() if name != "SLURM_LOCALID"})


def test_each_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    world = World(3, 4, 1)
    assert world.device(torch.device("cuda")) == torch.device("cuda", 1)
    assert world.device(torch.device("cpu")) == torch.device("cpu")
    assert World().device(torch.device("cuda:1")) == torch.device("cuda:1")
    for device, word in (("cuda:1", "names one GPU"), ("mps", "cannot train on mps")):
        with pytest.raises(IiaeError, match=word):
            world.device(torch.device(device))
    with pytest.raises(IiaeError, match="has 2 GPUs"):
        World(2, 4, 2).device(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert world.device(torch.device("cuda")) == torch.device("cuda", 0)


def test_slices_cover_the_batch_and_too_small_a_batch_is_refused() -> None:
    ranks = [Ranks(World(rank, 3), torch.nn.Sequential(), 8, "synchronised") for rank in range(3)]
    assert [one.rows for one in ranks] == [slice(0, 3), slice(3, 5), slice(5, 8)]
    assert sum(one.weight for one in ranks) == pytest.approx(1.0)
    with pytest.raises(IiaeError, match="too small for 3 ranks"):
        Ranks(World(0, 3), torch.nn.Sequential(), 5, "local")
    assert Ranks(World(0, 3), torch.nn.Sequential(), 5, "synchronised").weight == pytest.approx(0.4)


def test_ranks_that_do_not_meet_are_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise RuntimeError("[c10d] timed out\nmore")

    monkeypatch.setattr(distributed.dist, "init_process_group", nobody)
    with (
        pytest.raises(IiaeError, match="the 2 ranks did not meet: timed out"),
        World(0, 2).joined(torch.device("cpu")),
    ):
        raise AssertionError("nobody is there")
