"""The report's first sentence, the shade of a leak, curves and cells."""

import json

import numpy as np
import pytest

from iiae_cli.report.sections import (
    cell,
    leak,
    line_charts,
    read_records,
    recall_charts,
    training_charts,
    verdict,
)


def test_cells_are_short():
    values = (None, "", 0.99666, 1.0, 1234.5, 0.0000123, 12345, True, [1, "a"], float("nan"))
    shown = ["—", "—", "0.9967", "1", "1234", "1.23e-05", "12,345", "true"]
    assert [cell(value) for value in values] == [*shown, '[1, "a"]', "nan"]


def test_training_is_drawn_from_what_was_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recall, baseline = [0.5, 0.75], [0.25, 0.5]
    records = [
        {"kind": "train", "step": 1, "loss": 2.0, "kl_exclusive_x": 4.0},
        {"kind": "validation", "step": 1, "shared_recall": recall, "baseline": baseline},
    ]
    path.write_text("\n".join([*map(json.dumps, records), '{"kind": "tra']))  # torn at its end
    assert read_records(path) == records and read_records(tmp_path / "none") == []
    charts = training_charts(records)
    assert [chart["title"] for chart in charts] == [
        "Loss and its terms",
        "Validation: Recall@1 by shared latents",
        "KL of the exclusive latents, dying below 3 nats",
    ]
    assert "x → y from 0.5 to 0.5;" in charts[1]["text"]
    assert "baseline y → x from 0.5 to 0.5" in charts[1]["text"]


def test_recall_grows_with_the_neighbours_looked_at():
    (chart,) = recall_charts({"x → y": np.array([1, 1, 4, 5]), "y → x": np.array([1, 2, 3, 4])})
    assert "x → y from 0.5 to 0.75; y → x from 0.25 to 1." in chart["text"]


def test_plots_are_the_same_twice_and_need_no_font():
    lines = {"a": [(1, 5.0), (2, float("nan")), (3, -1.0)], "b": [(1, 1.0)]}
    (first,), (second,) = (line_charts("t", lines, "n") for _ in range(2))
    assert first == second
    assert b"<svg" in first["svg"] and b"<text" not in first["svg"]


def both_ways(measure, values):
    return {way: {measure: value} for way, value in zip(("x_to_y", "y_to_x"), values, strict=True)}


def retrieval(ours, baseline):
    kinds = {"shared": ours, "baseline": baseline}
    return {"retrieval": {kind: both_ways("recall@1", both) for kind, both in kinds.items()}}


@pytest.mark.parametrize(
    "ours, baseline, tone, words",
    [
        ([0.5, 0.5], [0.25, 0.25], "right", "Ahead of the training-free baseline"),
        ([0.5, 0.5], [0.25, 0.75], "near", "in one direction only"),
        ([0.5, 0.5], [0.5, 0.75], "wrong", "Not ahead"),
        ([1.0, 1.0], [1.0, 1.0], "near", "needs no training"),
    ],
)
def test_the_baseline_decides(ours, baseline, tone, words):
    judged = verdict(retrieval(ours, baseline))
    assert judged["tone"] == tone and words in judged["headline"]
    assert f"{ours[0]:.3f} / {ours[1]:.3f}" in judged["text"]
    assert f"the baseline's {baseline[0]:.3f} / {baseline[1]:.3f}" in judged["text"]


def test_a_failed_gate_comes_first():
    failures = {"failures": ["recall is 0.5, below 0.9"]}
    judged = verdict(retrieval([0.5, 0.5], [0.25, 0.25]) | failures)
    assert judged["tone"] == "wrong" and "below 0.9" in judged["headline"]


def test_a_large_leak_and_a_dying_latent_spoil_it():
    latents = {
        "shared_x": {"kl": 20.0, "leakage_mean": 0.8},
        "exclusive_x": {"kl": 0.5, "leakage_mean": None},
    }
    measured = {"disentanglement": {"latents": latents}}
    judged = verdict({**retrieval([0.5, 0.5], [0.25, 0.25]), **measured})
    assert judged["tone"] == "near" and "0.80 of 1, read from shared x" in judged["text"]
    assert "exclusive x says next to nothing" in judged["text"]


def test_a_leak_that_was_not_looked_for_is_not_denied():
    latents = {"shared_x": {"kl": 20.0, "leakage_mean": None}}
    judged = verdict(
        {**retrieval([0.5, 0.5], [0.25, 0.25]), "disentanglement": {"latents": latents}}
    )
    assert "leak" not in judged["text"]


def test_classes_are_judged_by_centred_features():
    raw, centred = both_ways("map@all", [0.5, 0.5]), both_ways("map@all", [0.33, 0.33])
    baselines = {"baseline_raw": raw, "baseline_centred": centred}
    judged = verdict({"zero_shot": {**both_ways("map@all", [0.4, 0.4]), **baselines}})
    assert judged["tone"] == "right" and "the baseline's 0.330 / 0.330" in judged["text"]


def test_a_leak_is_graded():
    assert [leak(value) for value in (None, 0.1, 0.2, 0.5)] == ["", "", "some", "high"]
