"""`--log`: figures go to a service, under one id for a run and its continuation."""

import json
import sys
from pathlib import Path

import pytest
from helpers import stopping_at
from test_train import train

from iiae_cli.training import loggers
from iiae_cli.training.loggers import Service


def id_of(run, service):
    return str(json.loads(Path(run, "run.json").read_text())["log"][service])


def test_mlflow_has_the_figures_of_a_run_and_of_its_continuation(iiae, few):
    mlflow = pytest.importorskip("mlflow")
    with stopping_at(7):
        assert train(iiae, few, "runs/a", "--log", "mlflow").code == 75
    known = id_of("runs/a", "mlflow")
    client = mlflow.MlflowClient(Path("runs/mlruns").absolute().as_uri())
    assert client.get_run(known).info.status == "KILLED"
    resumed = train(iiae, few, "runs/a", "--log", "mlflow", "--resume")
    assert resumed.code == 0 and id_of("runs/a", "mlflow") == known, resumed.err
    steps = [point.step for point in client.get_metric_history(known, "train/loss")]
    assert steps == [5, 10, 15, 20] and client.get_run(known).info.status == "FINISHED"
    assert client.get_run(known).data.params["model.dropout"] == "0.3"
    assert client.list_artifacts(known, "samples")


def test_wandb_continues_a_run_offline(iiae, few, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with stopping_at(7):
        assert train(iiae, few, "run", "--log", "wandb").code == 75
    resumed = train(iiae, few, "run", "--log", "wandb", "--resume", "--json")
    assert resumed.code == 0 and resumed.json["steps"] == 20, resumed.err
    known = id_of("run", "wandb")
    files = list(Path("run/wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
    assert len(files) == 2 and all(b"train/loss" in path.read_bytes() for path in files)


def test_a_service_that_is_missing_or_unknown_is_a_users_error_before_training(
    iiae, few, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message, hint = train(iiae, few, "run", "--log", "wandb").error()
    assert "--log wandb cannot start" in message and "pip install 'iiae-cli[wandb]'" in hint
    assert train(iiae, few, "run", "--resume").code == 0  # nothing else asks for it
    assert "'wandb' or 'mlflow'" in train(iiae, few, "other", "--log", "aim").error()[0]


def test_a_service_that_fails_ends_no_training(iiae, few, monkeypatch):
    def refuse(*_):
        raise ConnectionError("no route to host")

    service = Service(refuse, refuse, refuse, "id")
    monkeypatch.setitem(loggers._SERVICES, "mlflow", lambda *_: service)
    outcome = train(iiae, few, "run", "--log", "mlflow")
    assert outcome.code == 0 and outcome.err.count("no route to host") == 1
