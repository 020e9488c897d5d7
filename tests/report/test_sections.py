"""Charts of training and of latents, and the plots they are drawn with."""

import json

import numpy as np

from iiae_cli.evaluation.protocols import EncodedPairs
from iiae_cli.inference.trained import Encoded
from iiae_cli.report.plots import Line, line_chart, lying_bars
from iiae_cli.report.sections import read_records, training_charts, usage_charts, usage_table


def test_training_is_drawn_from_what_was_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recall, baseline = [0.5, 0.75], [0.25, 0.5]
    records = [
        {"kind": "train", "step": 1, "loss": 2.0, "kl_exclusive_x": 4.0},
        {"kind": "validation", "step": 1, "shared_recall": recall, "baseline": baseline},
    ]
    path.write_text("\n".join([*map(json.dumps, records), '{"kind": "tra']))  # torn at its end
    assert read_records(path) == records
    charts = training_charts(records)
    assert [chart.title for chart in charts] == [
        "Loss and its terms",
        "Validation: Recall@1 by shared latents",
        "KL of the exclusive latents to the prior",
    ]
    assert "x → y: from 0.5 to 0.5." in charts[1].text
    assert "baseline y → x: 0.500" in charts[1].text


def test_a_run_without_records_has_no_charts(tmp_path):
    assert read_records(tmp_path / "none") == [] and training_charts([]) == []


def test_usage_by_hand():
    mean = np.array([[1, 0], [-1, 0]], np.float32)
    encoded = Encoded(mean, np.zeros_like(mean), mean, np.zeros_like(mean))
    pairs = EncodedPairs(encoded, Encoded(mean, np.zeros_like(mean)))
    assert usage_table(pairs).rows == [
        ("shared x", 2, 1, None),
        ("shared y", 2, 1, None),
        ("exclusive x", 2, 1, 0.5),
    ]
    (chart,) = usage_charts(pairs)
    assert chart.text == "Nats, largest first. exclusive x: 0.50, 0.00."


def test_plots_are_the_same_twice_and_need_no_font():
    lines = [Line("a", [(1, 5.0), (2, float("nan")), (3, -1.0)]), Line("b", [(1, 1.0)])]
    first, second = (line_chart(lines, y_label="nats", scale="log") for _ in range(2))
    assert first == second
    assert b"<svg" in first and b"<text" not in first


def test_plots_accept_nothing_to_draw():
    nothing = [Line("nothing", [(1, float("inf"))])]
    assert b"<svg" in line_chart(nothing, y_label="nats", scale="symlog")
    assert b"<svg" in lying_bars(["1"], {"a": [0]}, x_label="n", y_label="rank")
    assert b"<svg" in lying_bars(["1"], {"a": [-0.5]}, x_label="R²", chances=[0.0])
