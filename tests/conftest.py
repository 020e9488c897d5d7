"""Fixtures of the end-to-end tests: the program in this process, and small trained runs."""

import os

import pytest
import torch
from filelock import FileLock
from helpers import SMALL, Trained, call, untrained_run
from hypothesis import settings
from moments import Server

# A GPU's sums differ from call to call: what is compared bit for bit runs on the CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=30, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def iiae(tmp_path, monkeypatch):
    """Call the program in an empty folder, without the caller's IIAE_* environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("IIAE_"):
            monkeypatch.delenv(name)
    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of 200 steps on the embedded digits, made by the first of pytest's workers to ask."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    above = tmp_path_factory.getbasetemp()
    folder = (above.parent if parallel else above) / "trained"
    data, run, pictures = folder / "digits.h5", folder / "run", folder / "digits"
    with FileLock(f"{folder}.lock"):
        if not (run / "run.json").exists():
            prepare = ("prepare", "digits-cdcb", "-o", data, "--pictures", pictures)
            assert call(*prepare).code == 0
            named = ("--preset", "digits-cdcb", "--data", data, "--run", run)
            assert call("train", *named, "--steps", 200, *SMALL).code == 0
    return Trained(run, data, pictures)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run that was never trained, for what does not ask how good its latents are."""
    return untrained_run(tmp_path_factory.mktemp("untrained") / "run")


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """A data file of 120 pairs in each split of the embedded digits."""
    path = tmp_path_factory.mktemp("few") / "few.h5"
    assert call("prepare", "digits-cdcb", "--limit", 120, "-o", path).code == 0
    return path


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Forty pairs of the embedded digits, and a server of processes that train on them."""
    server = Server(tmp_path_factory.mktemp("nursery"))
    prepare = ("prepare", "digits-cdcb", "--limit", "40", "-o", "d.h5")
    assert server.run(server.folder, *prepare)["code"] == 0
    return server
