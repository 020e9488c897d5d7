"""What is measured on which rows, and what a reader must know before comparing the figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.class_lists import Seen, class_list_hash, refuse_leak
from iiae_cli.data.datafile import DataFile, Split
from iiae_cli.evaluation.figures import Task
from iiae_cli.inference.neighbours import Metric
from iiae_cli.runs import LoadedModel


def choose_tasks(asked: Task | None, file: DataFile, loaded: LoadedModel) -> list[Task]:
    """What to measure; a dual encoder has retrieval alone, rows without partners no translation."""
    by_class, generative = file.info.by_class, loaded.model.generative
    if not generative and asked in ("translation", "disentanglement"):
        kind = loaded.config.objective.kind
        message = f"a model of objective {kind} has neither decoders nor exclusive latents"
        raise IiaeError(message, f"train one of objective.kind=elbo+ii-mi to measure {asked}")
    if asked in ("retrieval", "translation") and by_class:
        message = f"{file.path} is paired by class: no row has a partner of its own"
        raise IiaeError(message, "measure retrieval by class: iiae evaluate --task zero-shot")
    if asked is not None and asked != "all":
        return [asked]
    tasks: list[Task] = ["zero-shot"] if by_class else ["retrieval", "translation"]
    return [*tasks, "disentanglement"] if asked and generative else tasks[:1]


def choose_metric(asked: Metric | None, tasks: list[Task], loaded: LoadedModel) -> Metric:
    """The distance between latents: the given one, else the model's; zero-shot takes cosine."""
    if "zero-shot" not in tasks:
        return asked or loaded.metric
    if asked == "euclidean":
        message = "zero-shot retrieval compares by cosine, not --metric euclidean"
        raise IiaeError(message, "leave --metric out")
    return "cosine"


def rows_of(file: DataFile, name: str, tasks: list[Task]) -> Split:
    """What is measured on: rows with labels, or aligned pairs; anything else is an error."""
    split = file.split(name)
    if split.pair_count == 0 or not len(split.y):
        others = ", ".join(other for other, count in file.info.counts.items() if count)
        message = f"{file.path} has nothing in split '{name}'"
        raise IiaeError(message, f"choose another --split: {others}")
    if "zero-shot" in tasks and (split.x.labels is None or split.y.labels is None):
        message = f"split '{name}' of {file.path} has no labels"
        raise IiaeError(message, "prepare it by class: iiae prepare classes SOURCE")
    if "zero-shot" in tasks or file.info.by_class:
        return split
    if split.pairs is None and len(split.x) != len(split.y):
        message = f"split '{name}' of {file.path} is not paired"
        raise IiaeError(message, "paired retrieval needs partners")
    if split.pairs is None:
        return split
    if "retrieval" in tasks:
        rule = "recall counts one of several equal partners as the true one"
        console.warn(f"pictures recur in several pairs: {rule}")
    return split.take_pairs(np.arange(split.pair_count))


def check_judge(loaded: LoadedModel, file: DataFile, split: Split, tasks: list[Task]) -> None:
    """Refuse --judge if there is nothing for it to read."""
    if "translation" not in tasks:
        raise IiaeError("--judge reads translations, and none are made", "add --task translation")
    if loaded.size is None or split.x.labels is None or split.y.labels is None:
        raise IiaeError(f"{file.path} has no pictures with labels to judge by", "leave --judge out")


def protocol_of(
    file: DataFile, split: Split, loaded: LoadedModel, tasks: list[Task], allow_leak: bool
) -> dict[str, Any]:
    """What a reader must know before comparing figures; warns of what is not zero-shot."""
    if "zero-shot" not in tasks:
        scales = ("pixels in [-1, 1]", "z-scored grey pixels at 32x32, correlation")
        l1_scale, baseline = scales if loaded.size else ("features", "raw features")
        figures = {"pairs": len(split.x), "relevance": "the true pair only"}
        return {**figures, "l1_scale": l1_scale, "baseline": baseline}
    classes = sorted({*(split.x.labels or ()), *(split.y.labels or ())})
    attributes, count = file.info.attributes, len(classes)
    backbone = Seen.of_data_file(attributes)
    refuse_leak(backbone, classes, f"the backbone of {file.path}", allow_leak)
    leak = backbone.leak(classes)
    if leak:
        names = f"{len(leak)} of {count} classes: {', '.join(leak)}"
        console.warn(f"not zero-shot: the backbone has seen {names}")
    trained = loaded.details.get("train_classes")
    seen = None if trained is None else sorted({*trained} & {*classes})
    if seen:
        console.warn(f"not zero-shot: the model was trained on {len(seen)} of {count} classes")
    means = "each domain minus its mean over the training split"
    return {
        "x": len(split.x),
        "y": len(split.y),
        "relevance": "the same class",
        "class_split": attributes.get("split_name", "given"),
        "classes": count,
        "classes_sha256": class_list_hash(classes),
        "classes_seen_in_training": seen,
        "classes_seen_by_backbone": leak,
        "baselines": {"raw": "rows as they are", "centred": means},
    }
