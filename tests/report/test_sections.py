"""Cards, curves and tables of the report."""

import json

import numpy as np

from iiae_cli.report.sections import (
    Line,
    cell,
    line_charts,
    read_records,
    recall_charts,
    training_charts,
)


def test_cells_are_short():
    values = (None, "", 0.99666, 1.0, 1234.5, 0.0000123, 12345, True, [1, "a"], float("nan"))
    shown = ["—", "—", "0.9967", "1", "1,234.5", "1.2e-05", "12,345", "True"]
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
    assert [chart.title for chart in charts] == [
        "Loss and its terms",
        "Validation: Recall@1 by shared latents",
        "KL of the exclusive latents to the prior",
    ]
    assert "x → y from 0.5 to 0.5;" in charts[1].text
    assert "baseline y → x 0.5" in charts[1].text


def test_recall_grows_with_the_neighbours_looked_at():
    (chart,) = recall_charts({"x → y": np.array([1, 1, 4, 5]), "y → x": np.array([1, 2, 3, 4])})
    assert "x → y from 0.5 to 0.75; y → x from 0.25 to 1." in chart.text


def test_plots_are_the_same_twice_and_need_no_font():
    lines = [Line("a", [(1, 5.0), (2, float("nan")), (3, -1.0)]), Line("b", [(1, 1.0)])]
    (first,), (second,) = (line_charts("t", lines, y_label="n") for _ in range(2))
    assert first == second
    assert b"<svg" in first.svg and b"<text" not in first.svg
