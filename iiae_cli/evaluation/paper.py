"""The paper's published figures (Hwang et al., NeurIPS 2020; Tables 2 to 6) beside a run's own.

Domain x is CB of MNIST-CDCB, the aerial picture S of Maps, the photo F of Facades, the sketch of
Sketchy. So CD→CB is y→x, and the paper's zero-shot figures, sketches looking for photos, are x→y.
Table 4 was measured on "bimodal" Cars, not on the 23 views of Tables 1 and 9, by "the updated
version" of LPIPS; neither the network nor the number of samples is stated. Its rows stand beside
the mean over samples by AlexNet, and say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iiae_cli.evaluation.figures import Table, dotted_figures

CLASS_SPLIT = "sempcyc-25"
PICTURE_SIZE = (256, 256)
OBJECTIVES = {"ii": "II", "ii-mi": "II-MI", "elbo+ii": "ELBO+λII", "elbo+ii-mi": "ELBO+λ(II-MI)"}
_METRICS = {2: "euclidean", 5: "euclidean", 3: "cosine", 6: "cosine"}  # by table


@dataclass(frozen=True)
class PaperRow:
    """A number of the paper, named as there, beside a run's own."""

    table: int
    method: str
    direction: str
    figure: str
    key: str  # of the counterpart among `evaluate`'s figures
    paper: float  # fraction in [0, 1], or LPIPS
    paper_spread: float | None = None  # what the paper puts behind ±
    ours: float | None = None  # None if not measured
    note: str = ""  # how the set-ups differ
    data_set: str = ""  # as `prepare` names it
    split: str = "test"
    queries: int = 0  # 0 if unknown; a paired set's gallery has as many items

    def to_json(self) -> dict[str, Any]:
        """The row's object in `--json`."""
        left_out = ("data_set", "split", "queries")
        return {name: value for name, value in vars(self).items() if name not in left_out}


_WAYS = {
    **dict.fromkeys(("CB→CD", "S→M", "F→L", "X→Y"), "x_to_y"),
    **dict.fromkeys(("CD→CB", "M→S", "L→F", "Y→X"), "y_to_x"),
}
# Split, number of queries and directions of a table's data set.
_MEASURED = {
    (2, "mnist-cdcb"): ("test", 10000, ("CD→CB", "CB→CD")),
    (2, "maps"): ("test", 1098, ("S→M", "M→S")),
    (2, "facades"): ("test", 106, ("F→L", "L→F")),
    (5, "facades"): ("valid", 100, ("F→L", "L→F")),
}
# For each of the two directions, Recall@1 in percent by shared and by exclusive latents.
_RECALLS: tuple[tuple[int, str, str, Sequence[float], Sequence[float]], ...] = (
    (2, "mnist-cdcb", "CdDN", (99.6, 0.0), (99.6, 0.0)),
    (2, "mnist-cdcb", "IIAE", (99.7, 0.01), (99.7, 0.01)),
    (2, "maps", "DRIT", (33.8, 0.09), (37.3, 0.09)),
    (2, "maps", "CdDN", (91.4, 0.18), (96.9, 0.09)),
    (2, "maps", "IIAE", (96.6, 0.09), (97.3, 0.0)),
    (2, "facades", "DRIT", (31.1, 0.94), (44.3, 0.94)),
    (2, "facades", "CdDN", (84.9, 0.94), (89.6, 0.0)),
    (2, "facades", "IIAE", (96.2, 0.94), (99.1, 0.94)),
    (5, "facades", "BicycleGAN", (), (45.0,)),
    (5, "facades", "CdDN", (95.0, 1.0), (97.0, 1.0)),
    (5, "facades", "IIAE", (100.0, 1.0), (100.0, 0.0)),
)
# mAP@all and P@100.
_ZERO_SHOT = (
    (3, "SAE", 0.216, 0.293),
    (3, "FRWGAN", 0.127, 0.169),
    (3, "ZSIH", 0.258, 0.342),
    (3, "CAAE", 0.196, 0.284),
    (3, "SEM-PCYC", 0.349, 0.463),
    (3, "LCALE", 0.476, 0.583),
    (3, "IIAE", 0.573, 0.659),
    (6, "II", 0.517, 0.605),
    (6, "II-MI", 0.534, 0.616),
    (6, "ELBO+λII", 0.516, 0.595),
    (6, "ELBO+λ(II-MI)", 0.573, 0.659),
)
# LPIPS and its spread, X→Y and Y→X.
_LPIPS = (
    ("pix2pix", (0.24987, 0.00780), (0.21524, 0.00704)),
    ("CdDN", (0.23517, 0.00799), (0.19295, 0.00687)),
    ("IIAE", (0.21478, 0.00844), (0.15277, 0.00774)),
)


def _published() -> Iterator[PaperRow]:
    for table, data_set, method, *recalls in _RECALLS:
        split, queries, directions = _MEASURED[table, data_set]
        for direction, percents in zip(directions, recalls, strict=True):
            for latents, percent in zip(("shared", "exclusive"), percents, strict=False):
                key = f"retrieval.{latents}.{_WAYS[direction]}.recall@1"
                names = (table, method, direction, f"Recall@1 {latents}", key)
                value = round(percent / 100, 6)
                yield PaperRow(*names, value, data_set=data_set, split=split, queries=queries)
    for method, *distances in _LPIPS:
        for direction, (value, spread) in zip(("X→Y", "Y→X"), distances, strict=True):
            key = f"translation.{_WAYS[direction]}.lpips_mean"
            yield PaperRow(4, method, direction, "LPIPS", key, value, spread, data_set="cars")
    for table, method, *values in _ZERO_SHOT:
        figures = (("mAP@all", "map@all"), ("P@100", "precision@100"))
        for (figure, name), value in zip(figures, values, strict=True):
            names = (table, method, "sketch→photo", figure, f"zero_shot.x_to_y.{name}")
            yield PaperRow(*names, value, data_set="sketchy", queries=14421)


PUBLISHED = tuple(_published())


def paper_rows(
    figures: Mapping[str, Any],
    protocol: Mapping[str, Any],
    picture_size: tuple[int, int] | None = None,
) -> list[PaperRow]:
    """The paper's rows of the measured data set, in its order, beside `evaluate`'s figures.

    In Table 6 ours stands beside the objective of the run. `picture_size` (H, W) is the model's.
    """
    measured, split = dotted_figures(figures), protocol["split"]
    rows = []
    for row in PUBLISHED:
        if row.data_set != protocol["data_set"]:
            continue
        ours = None
        if row.split != split:
            notes = [f"the paper measured split '{row.split}', this is '{split}'"]
        elif row.table == 6 and row.method != OBJECTIVES.get(protocol["objective"]):
            notes = ["another objective than this run's"]
        else:
            ours, notes = measured.get(row.key), _differences(row, protocol, picture_size)
            count = measured.get(row.key.rpartition(".")[0] + ".n")
            if row.queries and count is not None and count != row.queries:
                notes.append(f"{count:,.0f} queries, the paper has {row.queries:,}")
        rows.append(replace(row, ours=ours, note="; ".join(notes)))
    return rows


def _differences(
    row: PaperRow, protocol: Mapping[str, Any], picture_size: tuple[int, int] | None
) -> list[str]:
    """How this run's set-up differs from a row's."""
    notes = []
    class_split = protocol.get("class_split") or "unknown"
    if row.data_set == "sketchy" and class_split != CLASS_SPLIT:
        notes.append(f"not comparable: class split {class_split}, the paper's is {CLASS_SPLIT}")
    if row.table == 4:
        unknown = "LPIPS network and number of samples not stated"
        notes.append(f"the paper: bimodal Cars, {unknown}; ours: AlexNet, v0.1")
    if picture_size is not None and picture_size != PICTURE_SIZE:
        notes.append(f"pictures of {picture_size[0]}×{picture_size[1]}, the paper's have 256×256")
    usual, objective = _METRICS.get(row.table, protocol["metric"]), protocol["objective"]
    if protocol["metric"] != usual:
        notes.append(f"{protocol['metric']} distance, the paper's is {usual}")
    if row.table != 6 and objective != "elbo+ii-mi":
        name = OBJECTIVES.get(objective, objective)
        notes.append(f"this run's objective is the ablation {name}")
    return notes


def paper_table(rows: Sequence[PaperRow]) -> Table:
    """The paper's rows beside a run's."""
    headers = ("table", "method", "direction", "figure", "paper", "ours", "note")
    values = [[getattr(row, name) for name in headers] for row in rows]
    cells = [["" if value is None else value for value in row] for row in values]
    return Table("Beside the paper", headers, cells, 4)
