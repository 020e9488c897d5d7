"""The paper's published figures (Hwang et al., NeurIPS 2020; Tables 2 to 6) beside a run's own.

Every figure carries the dotted key under which `evaluate` gives its counterpart, so that setting them side by side is
a look-up. Figures are fractions in [0, 1]; LPIPS as it is. What the paper leaves blank has no row.

Which domain is x follows the data sets here: CB of MNIST-CDCB, the aerial picture S of Maps, the photo F of Facades,
the sketch of Sketchy. So CD→CB is y→x, and the paper's zero-shot figures, sketches looking for photos, are x→y.

Table 4 was measured on the "bimodal" Cars, not on the 23 views of Tables 1 and 9, by "the updated version" of LPIPS
and the protocol of CdDN; neither the network nor the number of samples is stated. Its rows stand beside the mean over
samples by AlexNet, and say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iiae_cli.evaluation.gates import dotted_figures

CLASS_SPLIT = "sempcyc-25"
PICTURE_SIZE = (256, 256)
OBJECTIVES = {"ii": "II", "ii-mi": "II-MI", "elbo+ii": "ELBO+λII", "elbo+ii-mi": "ELBO+λ(II-MI)"}
_FULL_OBJECTIVE = "elbo+ii-mi"


@dataclass(frozen=True)
class Published:
    """One number of the paper.

    Attributes:
        table: its number.
        method: as the paper names it.
        data_set: as `prepare` names it.
        direction: as the paper writes it.
        figure: what was measured, for people.
        key: of the counterpart among `evaluate`'s figures.
        value: fraction in [0, 1], or LPIPS.
        spread: what the paper puts behind ±; None where nothing.
        split: of the data that it was measured on.
        queries: how many there were, 0 where unknown; a paired set's gallery has as many items.
    """

    table: int
    method: str
    data_set: str
    direction: str
    figure: str
    key: str
    value: float
    spread: float | None = None
    split: str = "test"
    queries: int = 0


@dataclass(frozen=True)
class PaperRow:
    """A published figure and this run's.

    Attributes:
        published: the paper's.
        ours: None where it was not measured.
        note: how the set-ups differ; empty where they do not.
    """

    published: Published
    ours: float | None
    note: str

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        one = self.published
        return {
            "table": one.table,
            "method": one.method,
            "direction": one.direction,
            "figure": one.figure,
            "key": one.key,
            "paper": one.value,
            "paper_spread": one.spread,
            "ours": self.ours,
            "note": self.note,
        }


_Pairs = tuple[tuple[float, float], ...]  # (shared, exclusive) in percent, by direction


def _recalls(
    table: int,
    data_set: str,
    directions: Mapping[str, str],
    queries: int,
    methods: Mapping[str, _Pairs],
    split: str = "test",
) -> Iterable[Published]:
    for method, values in methods.items():
        for (direction, ours), pair in zip(directions.items(), values, strict=True):
            for latents, percent in zip(("shared", "exclusive"), pair, strict=True):
                yield Published(
                    table,
                    method,
                    data_set,
                    direction,
                    f"Recall@1 {latents}",
                    f"retrieval.{latents}.{ours}.recall@1",
                    round(percent / 100, 6),
                    split=split,
                    queries=queries,
                )


def _zero_shot(table: int, methods: Mapping[str, tuple[float, float]]) -> Iterable[Published]:
    for method, values in methods.items():
        for (figure, name), value in zip(
            (("mAP@all", "map@all"), ("P@100", "precision@100")), values, strict=True
        ):
            yield Published(
                table,
                method,
                "sketchy",
                "sketch→photo",
                figure,
                f"zero_shot.x_to_y.{name}",
                value,
                queries=14421,
            )


def _lpips(
    methods: Mapping[str, tuple[tuple[float, float], tuple[float, float]]],
) -> Iterable[Published]:
    for method, values in methods.items():
        for (direction, ours), (value, spread) in zip(
            (("X→Y", "x_to_y"), ("Y→X", "y_to_x")), values, strict=True
        ):
            yield Published(
                4,
                method,
                "cars",
                direction,
                "LPIPS",
                f"translation.{ours}.lpips_mean",
                value,
                spread=spread,
            )


PUBLISHED: tuple[Published, ...] = (
    *_recalls(
        2,
        "mnist-cdcb",
        {"CD→CB": "y_to_x", "CB→CD": "x_to_y"},
        10000,
        {"CdDN": ((99.6, 0.0), (99.6, 0.0)), "IIAE": ((99.7, 0.01), (99.7, 0.01))},
    ),
    *_recalls(
        2,
        "maps",
        {"S→M": "x_to_y", "M→S": "y_to_x"},
        1098,
        {
            "DRIT": ((33.8, 0.09), (37.3, 0.09)),
            "CdDN": ((91.4, 0.18), (96.9, 0.09)),
            "IIAE": ((96.6, 0.09), (97.3, 0.0)),
        },
    ),
    *_recalls(
        2,
        "facades",
        {"F→L": "x_to_y", "L→F": "y_to_x"},
        106,
        {
            "DRIT": ((31.1, 0.94), (44.3, 0.94)),
            "CdDN": ((84.9, 0.94), (89.6, 0.0)),
            "IIAE": ((96.2, 0.94), (99.1, 0.94)),
        },
    ),
    *_zero_shot(
        3,
        {
            "SAE": (0.216, 0.293),
            "FRWGAN": (0.127, 0.169),
            "ZSIH": (0.258, 0.342),
            "CAAE": (0.196, 0.284),
            "SEM-PCYC": (0.349, 0.463),
            "LCALE": (0.476, 0.583),
            "IIAE": (0.573, 0.659),
        },
    ),
    *_lpips(
        {
            "pix2pix": ((0.24987, 0.00780), (0.21524, 0.00704)),
            "CdDN": ((0.23517, 0.00799), (0.19295, 0.00687)),
            "IIAE": ((0.21478, 0.00844), (0.15277, 0.00774)),
        }
    ),
    # Of BicycleGAN one direction and no exclusive figure was published.
    Published(
        5,
        "BicycleGAN",
        "facades",
        "L→F",
        "Recall@1 shared",
        "retrieval.shared.y_to_x.recall@1",
        0.45,
        split="valid",
        queries=100,
    ),
    *_recalls(
        5,
        "facades",
        {"F→L": "x_to_y", "L→F": "y_to_x"},
        100,
        {"CdDN": ((95.0, 1.0), (97.0, 1.0)), "IIAE": ((100.0, 1.0), (100.0, 0.0))},
        split="valid",
    ),
    *_zero_shot(
        6,
        {
            "II": (0.517, 0.605),
            "II-MI": (0.534, 0.616),
            "ELBO+λII": (0.516, 0.595),
            "ELBO+λ(II-MI)": (0.573, 0.659),
        },
    ),
)


def paper_rows(
    data_set: str,
    split_name: str | None,
    figures: Mapping[str, Any],
    *,
    split: str = "test",
    picture_size: tuple[int, int] | None = None,
    metric: str | None = None,
    objective: str | None = None,
) -> list[PaperRow]:
    """The paper's rows for a data set, this run's figures beside them.

    Table 6 has a row for each objective; ours stands beside the one that the run was trained with.

    Args:
        data_set: mnist-cdcb, maps, facades, cars or sketchy; the paper has no row for another.
        split_name: the named division of Sketchy's classes; None where it is unknown or the set has none.
        figures: `evaluate`'s, nested.
        split: that was measured; a row of another split gets no figure of ours.
        picture_size: (H, W) that the model works at; None for features or where unknown.
        metric: distance between latents; None where unknown.
        objective: `objective.kind` of the run; None where unknown, which is taken as the full one.

    Returns:
        Rows in the paper's order, empty for another data set.
    """
    ours = dotted_figures(figures)
    rows = []
    for one in PUBLISHED:
        if one.data_set != data_set:
            continue
        value = ours.get(one.key)
        notes = []
        if one.split != split:
            value = None
            notes.append(f"the paper measured split '{one.split}', this is '{split}'")
        elif one.table == 6 and one.method != OBJECTIVES.get(objective or _FULL_OBJECTIVE):
            value = None
            notes.append("another objective than this run's")
        else:
            notes += _differences(one, split_name, picture_size, metric, objective)
            count = ours.get(one.key.rpartition(".")[0] + ".n")
            if one.queries and count is not None and count != one.queries:
                notes.append(f"{count:,.0f} queries, the paper has {one.queries:,}")
        rows.append(PaperRow(one, value, "; ".join(notes)))
    return rows


def _differences(
    one: Published,
    split_name: str | None,
    picture_size: tuple[int, int] | None,
    metric: str | None,
    objective: str | None,
) -> list[str]:
    """How this run's set-up differs from a row's."""
    notes = []
    if one.data_set == "sketchy" and split_name != CLASS_SPLIT:
        notes.append(
            f"not comparable: class split {split_name or 'unknown'}, the paper's is {CLASS_SPLIT}"
        )
    if one.table == 4:
        notes.append(
            "the paper: bimodal Cars, LPIPS network and number of samples not stated; ours: AlexNet, v0.1"
        )
    if picture_size is not None and picture_size != PICTURE_SIZE:
        notes.append(f"pictures of {picture_size[0]}×{picture_size[1]}, the paper's have 256×256")
    usual = {2: "euclidean", 5: "euclidean", 3: "cosine", 6: "cosine"}.get(one.table)
    if metric is not None and usual is not None and metric != usual:
        notes.append(f"{metric} distance, the paper's is {usual}")
    if one.table != 6 and objective not in (None, _FULL_OBJECTIVE):
        notes.append(
            f"this run's objective is the ablation {OBJECTIVES.get(str(objective), objective)}"
        )
    return notes
