"""Several ranks: the losses of one process that normalises each part by itself; what launchers say;
lost ranks.
"""

import json
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from helpers import StopAt, metrics_of, refusal, sets
from moments import TINY
from torch import Tensor

from iiae_cli import builders
from iiae_cli.builders import place
from iiae_cli.common.errors import Interrupted, Stop
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.data.batches import Augmentation
from iiae_cli.data.datafile import DataFile
from iiae_cli.training import distributed
from iiae_cli.training.data import TrainingData
from iiae_cli.training.distributed import Share, World, find_world
from iiae_cli.training.step import Feed, seed_step

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
TORCHRUN |= {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
SRUN |= {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
CPU = torch.device("cpu")

# Nine rows, so that two ranks have five and four, and double precision, so that only a mistake
# makes a difference.
BATCH, STEPS = 9, 12
PLAIN = f"training.log_every=1 training.batch_size={BATCH} training.precision=fp64"
CONTRAST = (
    " objective.contrastive=100 objective.independence=10 augment.geometric=0.5 "
    "augment.photometric=0.5 model.dropout=0.3"
)


def losses(run):
    return {line["step"]: line for line in metrics_of(run) if line["kind"] == "train"}


def one_process(data_file, assignments):
    """The same training in one process that passes each rank's rows through the networks by
    themselves.
    """
    own = [text for text in [*TINY, *assignments.split()] if "=" in text]
    config = resolve([*preset_layers("digits-cdcb"), set_layer(own)]).config
    data = TrainingData(DataFile(data_file), config)
    torch.manual_seed(config.training.seed)
    model = place(builders.build_model(config, data.info).double(), "cpu")
    named: dict[int, Tensor] = {}  # a part's rows, by their identity, to all parts' rows
    objective = builders.build_objective(config, lambda rows: named[id(rows)])
    optimizer = builders.build_optimizer(config, model)
    augment = Augmentation(**config.augment.model_dump())
    rate, order = builders.build_schedule(config, STEPS), data.order(BATCH, config.training.seed)
    worlds = [World(rank, 2) for rank in (0, 1)]
    shares = [Share(world, BATCH) for world in worlds]
    logged = []
    for step in range(STEPS):
        passes = []
        for world, share in zip(worlds, shares, strict=True):
            seed = world.seed(config.training.seed)
            feed = Feed(data, lambda step, s=share: order.indices(step)[s.rows], (32, 32), CPU)
            x, y = feed(step)
            if augment.active:
                x, y = augment(x, y, seed, step)
            seed_step(seed, step)
            passes.append(model(x, y))
        named.update(joined([posteriors for posteriors, _ in passes]))
        terms = [objective(*part, step) for part in passes]
        mean = {
            name: sum(share.weight * part[name] for share, part in zip(shares, terms, strict=True))
            for name in terms[0]
        }
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        mean["loss"].backward()
        optimizer.step()
        logged.append({name: float(value.detach()) for name, value in mean.items()})
    return logged


def joined(parts):
    """All parts' rows of a name for each part's rows of that name."""
    named: dict[int, Tensor] = {}
    for kind in ("shared", "exclusive"):
        for domain in ("x", "y"):
            for name in ("mean", "logvar"):
                rows = [getattr(getattr(part, kind)[domain], name) for part in parts]
                named |= {id(part): torch.cat(rows) for part in rows}
    return named


# InfoNCE's sums are in single precision.
@pytest.mark.parametrize(("more", "tolerance"), [("", 1e-9), (CONTRAST, 1e-6)])
def test_two_ranks_have_the_losses_of_one_process_that_normalises_each_part(
    nursery, more, tolerance
):
    run = f"two-{len(more)}"
    done = nursery.train(run, *sets(PLAIN + more), "--steps", STEPS, ranks=2)
    assert done["codes"] == [0, 0], done["errs"]
    expected = one_process(nursery.folder / "d.h5", PLAIN + more)
    for step, terms in losses(nursery.folder / run).items():
        found = {name: terms[name] for name in expected[step - 1]}
        assert found == pytest.approx(expected[step - 1], rel=tolerance, abs=1e-9), step
    assert json.loads((nursery.folder / run / "run.json").read_text())["ranks"] == 2


def test_two_ranks_stop_together_and_resume_exactly_and_one_may_go_on(nursery):
    every = (*sets(PLAIN), "--steps", STEPS)
    assert nursery.train("steady", *every, ranks=2)["codes"] == [0, 0]
    # Stopped in the middle of a checkpoint's interval, by a signal to a rank that writes nothing.
    stopped = nursery.train("parts", *every, ranks=2, rank=1, at=8, act="TERM")
    assert stopped["codes"] == [75, 75] and stopped["seconds"] < 5, stopped["errs"]
    assert "saved at step 8" in stopped["errs"][0] and stopped["errs"][1] == ""
    assert nursery.train("alone", *every, ranks=2, rank=1, at=8, act="TERM")["codes"] == [75, 75]
    assert nursery.train("parts", *every, "--resume", ranks=2)["codes"] == [0, 0]
    assert losses(nursery.folder / "parts") == losses(nursery.folder / "steady")
    assert nursery.train("alone", *every, "--resume")["code"] == 0


def test_a_rank_that_dies_or_fails_takes_the_others_along(nursery):
    dead = nursery.train("dead", "--steps", 9, ranks=2, rank=1, at=5, act="kill")
    assert dead["codes"] == [2, 137]
    assert "error: another rank has ended" in dead["err"] and "Traceback" not in dead["err"]
    full = nursery.train("full", "--steps", 9, ranks=2, at=16, act="ENOSPC")
    assert full["codes"] == [2, 2], full["errs"]
    assert "No space left" in full["errs"][0] and "another rank has ended" in full["errs"][1]
    for run in ("dead", "full"):
        assert nursery.train(run, "--steps", 9, "--resume", ranks=2)["codes"] == [0, 0]


@pytest.mark.exhaustive
def test_torchrun_starts_and_stops_it(nursery, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "-m", "iiae_cli", "train", "--preset", "digits-cdcb"]
    launcher += ["--data", str(nursery.folder / "d.h5"), "--run-dir", "run", *TINY]
    command = [*launcher, "--resume", "--steps", "100000"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 4:"):
            process.terminate()
    assert process.wait(timeout=60) != 0
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "interrupted"
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_torchruns_variables_make_a_world():
    assert find_world(TORCHRUN) == World(1, 4, 1, "a:1")
    assert find_world({}) == find_world({**TORCHRUN, "WORLD_SIZE": "1"}) == World()
    assert "MASTER_ADDR" in refusal(find_world, {"WORLD_SIZE": "2", "RANK": "0"}).message
    assert "rank 4 of 4" in refusal(find_world, {**TORCHRUN, "RANK": "4"}).message
    assert "a:70000" in refusal(find_world, {**TORCHRUN, "MASTER_PORT": "70000"}).message


def test_sruns_variables_make_a_world_only_where_a_meeting_point_is_named():
    assert find_world(SRUN) == World()
    named = {**SRUN, "MASTER_ADDR": "node7", "SLURM_JOB_ID": "1234567"}
    assert find_world(named) == World(3, 4, 1, "node7:34567")
    assert find_world({**named, "MASTER_PORT": "5000"}).address == "node7:5000"
    assert find_world({**named, **TORCHRUN}) == World(1, 4, 1, "a:1")
    batch_script = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "MASTER_ADDR": "node7"}
    assert find_world(batch_script) == World()
    del named["SLURM_LOCALID"]
    assert "SLURM_LOCALID" in refusal(find_world, named).message


def test_each_rank_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    world, cuda = World(3, 4, 1), torch.device("cuda")
    assert world.device(cuda) == torch.device("cuda", 1)
    assert world.device(CPU) == CPU
    assert World().device(torch.device("cuda:1")) == torch.device("cuda:1")
    for device in ("cuda:1", "mps"):
        assert f"cannot train on {device}" in refusal(world.device, torch.device(device)).message
    assert "sees 2 GPUs" in refusal(World(2, 4, 2).device, cuda).message
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert world.device(cuda) == torch.device("cuda", 0)


def test_slices_cover_the_batch_and_too_small_a_batch_is_refused():
    shares = [Share(World(rank, 3), 8) for rank in range(3)]
    assert [share.rows for share in shares] == [slice(0, 3), slice(3, 5), slice(5, 8)]
    assert sum(share.weight for share in shares) == pytest.approx(1.0)
    assert "too small for 3 ranks" in refusal(Share, World(0, 3), 5).message


@pytest.fixture
def address(monkeypatch):
    """A free meeting point on this machine, where ranks say at every look that they wait."""
    monkeypatch.setattr(distributed, "WORD", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def wait_alone(rank, address, code=75):
    """Wait for two other ranks, until a signal comes; the exit code."""
    with (
        pytest.raises(Interrupted) as caught,
        World(rank, 3, 0, address).joined(CPU, StopAt(9, code)),
    ):
        raise AssertionError("nobody is there")
    assert "nothing was lost" in caught.value.where
    return caught.value.exit_code


@pytest.mark.parametrize(("rank", "code"), [(0, 75), (2, 130)])
def test_a_lone_rank_says_that_it_waits_until_a_signal_ends_it(rank, code, address, capsys):
    assert wait_alone(rank, address, code) == code
    assert f"rank {rank} of 3 waits for the others at {address} (" in capsys.readouterr().err


def test_the_wait_has_an_end_and_a_port_that_is_taken_is_named(address, monkeypatch):
    def meet():
        with World(0, 2, 0, address).joined(CPU, Stop()):
            raise AssertionError("nobody is there")

    with socket.socket() as taken:
        taken.bind(("", int(address[10:])))
        taken.listen()
        refused = refusal(meet)
        assert address in refused.message and "MASTER_PORT" in refused.hint
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=1))
    assert "cannot meet the others" in refusal(meet).message
