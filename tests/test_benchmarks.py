"""Every benchmark of training runs, on a model of no size, and prints its JSON."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import call

ROOT = Path(__file__).parent.parent
TINY = ["--set=model.widths=[4,8]", "--set=model.decoder_widths=[8,4]", "--set=model.stages=3"]
TINY += ["--set=data.image_size=32", "--repetitions=1", "--json"]


@pytest.fixture
def measured(monkeypatch, capsys):
    """Run a benchmark in this process; returns its JSON."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr("benchmarks.common.matmul_peak", lambda: 100.0)  # takes a second
    threads = torch.get_num_threads()

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [name, *options])
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        result = json.loads(capsys.readouterr().out)
        assert result["benchmark"] == name and result["threads"] == 1
        assert result["versions"]["torch"]
        return result

    yield run
    torch.set_num_threads(threads)


def test_train_step(measured):
    result = measured("train_step", *TINY, "--no-memory", "--batch-size=4")
    plain, own = result["competitors"]["plain"], result["competitors"]["fp32"]
    assert plain["time_of_plain"]["median"] == 1.0 and own["time_of_plain"]["median"] > 0
    assert result["batch_size"] == 4 and own["pairs_per_second"] > 0 and 0 < own["of_fp32_peak"] < 1


def test_train_step_of_features(measured):
    options = ["--preset=sketchy", "--no-memory", "--repetitions=1", "--json", "--batch-size=4"]
    assert measured("train_step", *options)["gflop_per_step"] > 0


def test_input_pipeline(measured):
    result = measured("input_pipeline", *TINY, "--pairs=32", "--batch-size=4")
    assert result["added_to_step"]["cpu"]["median"] > 0 and result["pairs_per_second"] > 0


def test_encode(measured):
    result = measured("encode", *TINY, "--pictures=8", "--batch-size=4")
    assert result["rate_of_bare_forward"]["median"] > 0


def test_startup(measured):
    result = measured("startup", "--repetitions=1", "--only=iiae --version", "--json")
    assert result["times_python"]["iiae --version"]["median"] > 0


def test_the_paper_in_small_form_writes_a_row_per_result_and_repeats_none(tmp_path):
    words = ["--small", "--device", "cpu", "--out", str(tmp_path), "--only", "few", "steps"]
    command = [sys.executable, "-m", "benchmarks.paper", *words]
    for _ in range(2):
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) == len((tmp_path / "rows.md").read_text().splitlines())
    by_name = dict(zip(names, rows, strict=True))
    assert 0 <= by_name["400 pairs, 500 steps, fp32, seed 0"]["shared x_to_y"] <= 1
    assert by_name["step, batch 2, fp32"]["ms"] > 0 and rows[0]["device"] == "CPU"


def test_disentanglement_in_small_form_reads_every_model_by_the_same_probes(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import disentanglement

    assert call("prepare", "digits-moved", "--limit", 60, "-o", tmp_path / "d.h5").code == 0
    words = [str(tmp_path / "d.h5"), "--out", str(tmp_path), "--factor=scale", "--steps=2"]
    for _ in range(2):
        disentanglement.main([*words, "--seeds=0", *TINY[:3], "--set=training.batch_size=16"])
    rows = {row["name"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").open())}
    assert {"iiae", "plus", "infonce"} <= set(rows)
    assert 0 <= rows["plus"]["shared_x.class"] <= 1 and "exclusive_x.scale" in rows["iiae"]
    assert "exclusive_x.scale" not in rows["infonce"] and rows["infonce"]["parameters"] > 0
    peers = set(rows) & {"dmvae", "mmvae+"}
    assert peers or "pip install multivae" in capsys.readouterr().err
    assert len((tmp_path / "table.md").read_text().splitlines()) == 2 + len(rows)
