"""The paper's tables: transcribed whole, in the right direction, and beside a run's figures."""

from typing import get_args

import numpy as np
import pytest

from iiae_cli.data.datafile import DataFile, Side, Split, write_data_file
from iiae_cli.evaluation import protocol
from iiae_cli.evaluation.protocol import OBJECTIVES, PUBLISHED, paper_rows
from iiae_cli.model.objective import BoundKind

RETRIEVAL = {
    "retrieval": {
        "shared": {"x_to_y": {"recall@1": 0.91, "n": 106}, "y_to_x": {"recall@1": 0.92, "n": 106}},
        "exclusive": {"x_to_y": {"recall@1": 0.01}, "y_to_x": {"recall@1": 0.02}},
    }
}
ZERO_SHOT = {"zero_shot": {"x_to_y": {"map@all": 0.5, "precision@100": 0.6}}}
# As the paper prints it: method, direction, shared (exclusive).
TABLES = {
    2: """CdDN  CD→CB 99.6 (0.0) / CdDN CB→CD 99.6 (0.0) / IIAE CD→CB 99.7 (0.01)
          IIAE CB→CD 99.7 (0.01) / DRIT S→M 33.8 (0.09) / DRIT M→S 37.3 (0.09)
          CdDN S→M 91.4 (0.18) / CdDN M→S 96.9 (0.09) / IIAE S→M 96.6 (0.09)
          IIAE M→S 97.3 (0.0) / DRIT F→L 31.1 (0.94) / DRIT L→F 44.3 (0.94)
          CdDN F→L 84.9 (0.94) / CdDN L→F 89.6 (0.0) / IIAE F→L 96.2 (0.94)
          IIAE L→F 99.1 (0.94)""",
    5: """BicycleGAN L→F 45.0 (-) / CdDN F→L 95.0 (1.0) / CdDN L→F 97.0 (1.0)
          IIAE F→L 100.0 (1.0) / IIAE L→F 100.0 (0.0)""",
}


def rows_of(data_set, figures, picture_size=None, **options):
    metric = "cosine" if data_set == "sketchy" else "euclidean"
    protocol = {"split": "test", "metric": metric, "objective": "elbo+ii-mi", **options}
    return paper_rows(figures, {"data_set": data_set, **protocol}, picture_size)


@pytest.mark.parametrize("table", TABLES)
def test_recalls_are_the_papers(table):
    printed = {}
    for line in TABLES[table].replace("\n", "/").split("/"):
        method, direction, *percents = line.split()
        for latents, text in zip(("shared", "exclusive"), percents, strict=True):
            if text != "(-)":
                percent = float(text.strip("()"))
                printed[method, direction, f"Recall@1 {latents}"] = pytest.approx(percent / 100)
    names = ("method", "direction", "figure")
    rows = [row for row in PUBLISHED if row["table"] == table]
    assert {tuple(row[name] for name in names): row["paper"] for row in rows} == printed


@pytest.mark.parametrize(
    "table, printed",
    [
        (3, "SAE .216 .293 FRWGAN .127 .169 ZSIH .258 .342 CAAE .196 .284 "
            "SEM-PCYC .349 .463 LCALE .476 .583 IIAE .573 .659"),
        (6, "II .517 .605 II-MI .534 .616 ELBO+λII .516 .595 ELBO+λ(II-MI) .573 .659"),
        (4, "pix2pix .24987 .21524 CdDN .23517 .19295 IIAE .21478 .15277"),
    ],
)  # fmt: skip
def test_zero_shot_ablation_and_lpips_are_the_papers(table, printed):
    words = iter(printed.split())
    expected = [(name, float(value)) for name in words for value in (next(words), next(words))]
    rows = [row for row in PUBLISHED if row["table"] == table]
    assert [(row["method"], row["paper"]) for row in rows] == expected


def test_directions_are_translated():
    """x has the coloured background, is the aerial picture, the photo, the sketch."""
    forward = {"CB→CD", "S→M", "F→L", "X→Y", "sketch→photo"}
    for row in PUBLISHED:
        way = "x_to_y" if row["direction"] in forward else "y_to_x"
        assert row["key"].split(".")[-2] == way


def test_rows_stand_beside_our_figures():
    rows = rows_of("facades", RETRIEVAL, picture_size=(256, 256))
    key = "retrieval.shared.x_to_y.recall@1"
    (row,) = [row for row in rows if (row["table"], row["method"], row["key"]) == (2, "IIAE", key)]
    names = {"table": 2, "method": "IIAE", "direction": "F→L", "figure": "Recall@1 shared"}
    values = {"key": key, "paper": 0.962, "paper_spread": None, "ours": 0.91, "note": ""}
    assert row == {**names, **values}
    assert rows_of("digits-cdcb", RETRIEVAL) == []


@pytest.mark.parametrize("split, table", [("test", 2), ("valid", 5)])
def test_each_split_has_its_own_table(split, table):
    rows = rows_of("facades", RETRIEVAL, split=split)
    beside = {row["ours"] for row in rows if row["table"] == table}
    assert beside == {0.91, 0.92, 0.01, 0.02}
    others = [row for row in rows if row["table"] != table]
    assert all(row["ours"] is None and f"this is '{split}'" in row["note"] for row in others)


def test_other_set_ups_are_named():
    rows = rows_of("maps", RETRIEVAL, (128, 128), metric="cosine", objective="ii")
    (note,) = {row["note"] for row in rows if row["figure"] == "Recall@1 shared"}
    assert note == (
        "pictures of 128×128, the paper's have 256×256; cosine distance, the paper's is euclidean; "
        "this run's objective is the ablation II; 106 queries, the paper has 1,098"
    )
    rows = rows_of("cars", {"translation": {"x_to_y": {"lpips_mean": 0.3}}})
    assert [row["ours"] for row in rows] == [0.3, None] * 3
    assert all("bimodal" in row["note"] for row in rows)


@pytest.mark.parametrize("name", ["sempcyc-25", "sake-25", None])
def test_another_class_split_is_not_comparable(name):
    rows = [row for row in rows_of("sketchy", ZERO_SHOT, class_split=name) if row["table"] == 3]
    note = f"not comparable: class split {name or 'unknown'}, the paper's is sempcyc-25"
    assert {row["note"] for row in rows} == {"" if name == "sempcyc-25" else note}
    assert [row["ours"] for row in rows[:2]] == [0.5, 0.6]


@pytest.mark.parametrize("objective", get_args(BoundKind))
def test_table_six_has_our_figure_beside_the_runs_own_objective(objective):
    rows = rows_of("sketchy", ZERO_SHOT, class_split="sempcyc-25", objective=objective)
    beside = [row for row in rows if row["table"] == 6 and row["ours"] is not None]
    assert {row["method"] for row in beside} == {OBJECTIVES[objective]}


@pytest.mark.parametrize(("rows", "recurring"), [(20, False), (20, True), (19, False)])
def test_few_rows_and_pictures_that_recur_are_warned_of(tmp_path, capsys, rows, recurring):
    side = Side(np.zeros((rows, 3), np.float32), [*map(str, range(rows))])
    pairs = np.stack([np.arange(rows) // 2, np.arange(rows)], axis=1) if recurring else None
    write_data_file(tmp_path / "d.h5", "d", {"test": Split(side, side, pairs=pairs)}, {})
    split = protocol.rows_of(DataFile(tmp_path / "d.h5"), "test", ["retrieval"])
    assert len(split.x) == len(split.y) == rows
    said = capsys.readouterr().err
    assert ("pictures recur in several pairs" in said) == recurring
    assert ("too few for firm figures" in said) == (rows < 20)
