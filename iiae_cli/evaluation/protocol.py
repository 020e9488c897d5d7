"""Decides what `evaluate` measures on which rows, and compares a run's figures with the paper's.

paper.csv holds Tables 2 to 6 of Hwang et al., NeurIPS 2020. Domain x is CB of MNIST-CDCB, the
aerial picture S of Maps, the photo F of Facades, the sketch of Sketchy. So CD→CB is y→x, and the
paper's zero-shot figures, sketches looking for photos, are x→y. Table 4 was measured on "bimodal"
Cars, not on the 23 views of Tables 1 and 9, by "the updated version" of LPIPS; neither the network
nor the number of samples is stated. Its rows are compared with the mean over samples by AlexNet.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.backbone import backbone_of
from iiae_cli.data.datafile import DataFile, Seen, Split, class_list_hash, refuse_leak
from iiae_cli.evaluation.figures import Table, Task, dotted_figures
from iiae_cli.inference.neighbours import Metric
from iiae_cli.runs import LoadedModel

CLASS_SPLIT = "sempcyc-25"
PICTURE_SIZE = (256, 256)
OBJECTIVES = {"ii": "II", "ii-mi": "II-MI", "elbo+ii": "ELBO+λII", "elbo+ii-mi": "ELBO+λ(II-MI)"}
FEW_ROWS = 20  # with fewer, figures mean little
_METRICS = {2: "euclidean", 5: "euclidean", 3: "cosine", 6: "cosine"}  # by table


# ---- what is measured


def choose_tasks(asked: Task | None, file: DataFile, loaded: LoadedModel) -> list[Task]:
    """Returns the tasks to measure; raises for one that the model or the data cannot support."""
    by_class, generative = file.info.by_class, loaded.model.generative
    if not generative and asked in ("translation", "disentanglement"):
        kind = loaded.config.objective.kind
        message = f"a model of objective {kind} has neither decoders nor exclusive latents"
        raise IiaeError(message, f"train one of objective.kind=elbo+ii-mi to measure {asked}")
    if by_class and asked in ("retrieval", "translation"):
        message = f"{file.path} is paired by class: no row has a partner of its own"
        raise IiaeError(message, "measure retrieval by class: iiae evaluate --task zero-shot")
    if asked is not None and asked != "all":
        return [asked]
    tasks: list[Task] = ["zero-shot"] if by_class else ["retrieval", "translation"]
    return [*tasks, "disentanglement"] if asked and generative else tasks[:1]


def choose_metric(asked: Metric | None, tasks: list[Task], loaded: LoadedModel) -> Metric:
    """Returns the distance between latents: `asked`, else the model's; zero-shot takes cosine."""
    if "zero-shot" not in tasks:
        return asked or loaded.metric
    if asked == "euclidean":
        message = "zero-shot retrieval compares by cosine, not --metric euclidean"
        raise IiaeError(message, "leave --metric out")
    return "cosine"


def rows_of(file: DataFile, name: str, tasks: list[Task]) -> Split:
    """Returns the rows to measure: labelled rows, or aligned pairs; raises for anything else."""
    split, by_class = file.split(name), "zero-shot" in tasks or file.info.by_class
    if split.pair_count == 0 or not len(split.y):
        others = ", ".join(other for other, count in file.info.counts.items() if count)
        message = f"{file.path} has nothing in split '{name}'"
        raise IiaeError(message, f"choose another --split: {others}")
    if split.pair_count < FEW_ROWS:
        console.warn(f"split '{name}' has only {split.pair_count} rows, too few for firm figures")
    if "zero-shot" in tasks and (split.x.labels is None or split.y.labels is None):
        message = f"split '{name}' of {file.path} has no labels"
        raise IiaeError(message, "prepare it by class: iiae prepare classes SOURCE")
    if not by_class and split.pairs is None and len(split.x) != len(split.y):
        message = f"split '{name}' of {file.path} is not paired"
        raise IiaeError(message, "paired retrieval needs partners")
    if by_class or split.pairs is None:
        return split
    if "retrieval" in tasks:
        rule = "recall counts one of several equal partners as the true one"
        console.warn(f"pictures recur in several pairs: {rule}")
    return split.take_pairs(np.arange(split.pair_count))


def check_judge(loaded: LoadedModel, split: Split, tasks: list[Task]) -> None:
    """Raises if there is nothing for --judge to read."""
    labelled = loaded.size and split.x.labels and split.y.labels
    if "translation" not in tasks or not labelled:
        message = "--judge reads translated pictures that have labels, and there are none"
        raise IiaeError(message, "add --task translation, or leave --judge out")


def protocol_of(
    file: DataFile, split: Split, loaded: LoadedModel, tasks: list[Task], allow_leak: bool
) -> dict[str, Any]:
    """Returns what a reader must know to compare figures; warns of what is not zero-shot."""
    means, record = "each domain minus its mean over the training split", backbone_of(file.info)
    made_by = {"backbone": {key: record[key] for key in ("name", "trained_on")}} if record else {}
    if "zero-shot" not in tasks:
        scales = ("pixels in [-1, 1]", "z-scored grey pixels at 32x32, correlation")
        l1_scale, baseline = scales if loaded.size else ("features", "raw features")
        figures = {"pairs": len(split.x), "relevance": "the true pair only"}
        figures |= {"l1_scale": l1_scale, "baseline": baseline}
        return figures | ({} if loaded.size else {"baseline_centred": means}) | made_by
    classes = sorted({*(split.x.labels or ()), *(split.y.labels or ())})
    backbone = Seen.of_data_file(file.info.attributes)
    refuse_leak(backbone, classes, f"the backbone of {file.path}", allow_leak)
    trained = loaded.details.get("train_classes")
    seen = {
        "model": None if trained is None else sorted({*trained} & {*classes}),
        "backbone": backbone.leak(classes),
    }
    for who, known in seen.items():
        if known:
            names = f"{len(known)} of {len(classes)} classes: {', '.join(known)}"
            console.warn(f"not zero-shot: the {who} was trained on {names}")
    return {
        "x": len(split.x),
        "y": len(split.y),
        "relevance": "the same class",
        "class_split": file.info.attributes.get("split_name", "given"),
        "classes": len(classes),
        "classes_sha256": class_list_hash(classes),
        "classes_seen_in_training": seen["model"],
        "classes_seen_by_backbone": seen["backbone"],
        "baselines": {"raw": "rows as they are", "centred": means},
        **made_by,
    }


# ---- comparison with the paper


_TABLE = files("iiae_cli.evaluation").joinpath("paper.csv").read_text(encoding="utf-8")
_KINDS = {"table": int, "paper": float, "paper_spread": float, "queries": int}  # else texts
PUBLISHED: list[dict[str, Any]] = [
    {name: _KINDS.get(name, str)(text) if text else None for name, text in row.items()}
    for row in csv.DictReader(_TABLE.splitlines())
]
_SHOWN = ("table", "method", "direction", "figure", "key", "paper", "paper_spread")


def paper_rows(
    figures: Mapping[str, Any],
    protocol: Mapping[str, Any],
    picture_size: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
    """Returns the paper's rows for the measured data set, in its order, with `evaluate`'s figures.

    `ours` is None if it was not measured; `note` says how the set-ups differ. In Table 6 ours
    stands beside the objective of the run. `picture_size` (H, W) is the model's.
    """
    measured, split = dotted_figures(figures), protocol["split"]
    rows = []
    for row in PUBLISHED:
        if row["data_set"] != protocol["data_set"]:
            continue
        ours = None
        if row["split"] != split:
            notes = [f"the paper measured split '{row['split']}', this is '{split}'"]
        elif row["table"] == 6 and row["method"] != OBJECTIVES.get(protocol["objective"]):
            notes = ["another objective than this run's"]
        else:
            ours = measured.get(row["key"])
            notes = _differences(row["table"], protocol, picture_size)
            count = measured.get(row["key"].rpartition(".")[0] + ".n")
            if row["queries"] and count is not None and count != row["queries"]:
                notes.append(f"{count:,.0f} queries, the paper has {row['queries']:,}")
        shown = {name: row[name] for name in _SHOWN}
        rows.append({**shown, "ours": ours, "note": "; ".join(notes)})
    return rows


def _differences(
    table: int, protocol: Mapping[str, Any], picture_size: tuple[int, int] | None
) -> list[str]:
    notes = []
    class_split = protocol.get("class_split") or "unknown"
    if table in (3, 6) and class_split != CLASS_SPLIT:
        notes.append(f"not comparable: class split {class_split}, the paper's is {CLASS_SPLIT}")
    if table == 4:
        unknown = "LPIPS network and number of samples not stated"
        notes.append(f"the paper: bimodal Cars, {unknown}; ours: AlexNet, v0.1")
    if picture_size is not None and picture_size != PICTURE_SIZE:
        notes.append(f"pictures of {picture_size[0]}×{picture_size[1]}, the paper's have 256×256")
    usual, objective = _METRICS.get(table, protocol["metric"]), protocol["objective"]
    if protocol["metric"] != usual:
        notes.append(f"{protocol['metric']} distance, the paper's is {usual}")
    if table != 6 and objective != "elbo+ii-mi":
        name = OBJECTIVES.get(objective, objective)
        notes.append(f"this run's objective is the ablation {name}")
    return notes


def paper_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table of the paper's rows and a run's."""
    headers = ("table", "method", "direction", "figure", "paper", "ours", "note")
    return Table("Beside the paper", headers, [[row[name] for name in headers] for row in rows], 4)
