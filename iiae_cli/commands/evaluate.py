"""`iiae evaluate`: the paper's measurements on a run's kept weights, the training-free baseline beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iiae_cli import console
from iiae_cli.builders import choose_device
from iiae_cli.data.dataset import DataFile, Split, class_list_sha256
from iiae_cli.errors import IiaeError
from iiae_cli.evaluation.protocols import (
    colour_factors,
    encode_pairs,
    exclusive_kl,
    guided_translation,
    paired_retrieval,
    zero_shot,
)
from iiae_cli.inference.retrieval import Metric
from iiae_cli.places import data_file, run_folder
from iiae_cli.runs import LoadedModel, RunDir, load_model

Task = Literal["retrieval", "zero-shot", "translation", "disentanglement", "all"]


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line says; see `iiae evaluate --help`."""

    run: Path | None = None
    data: Path | None = None
    split: str = "test"
    task: Task | None = None
    metric: Metric | None = None
    allow_leak: bool = False
    fail_under: tuple[str, ...] = ()
    batch_size: int = 256
    device: str = "auto"


@dataclass
class EvaluateResult:
    """The figures.

    Attributes:
        figures: by task, as `--json` prints them, fractions in [0, 1]; translation errors on the [−1, 1] scale.
        protocol: what was measured on what.
        failures: a line for every `--fail-under` that was not reached.
    """

    figures: dict[str, Any]
    protocol: dict[str, Any]
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"schema": "iiae.evaluate/1", **self.figures, "protocol": self.protocol, "failures": self.failures}

    def show(self) -> None:
        """Print for people and pipes."""
        for task, title, names, columns in _TABLES:
            found = self.figures.get(task, {})
            if task == "zero_shot" and found:  # the model's own figures stand above the others, without a name
                own = {way: found[way] for way in ("x_to_y", "y_to_x")}
                found = {"shared": own, **{name: row for name, row in found.items() if name not in own}}
            rows = [
                (*path, *[row.get(column, "") for column in columns])
                for path, row in _leaves(found)
                if len(path) == len(names) and set(columns) <= set(row)
            ]
            if rows:
                console.print_table([*names, *columns], rows, title=title)


# task, title, what names a row, its figures
_TABLES = (
    (
        "retrieval",
        "Retrieval: only the true pair is a hit",
        ("latent", "direction"),
        ("recall@1", "recall@5", "recall@10", "median_rank", "n"),
    ),
    (
        "zero_shot",
        "Zero-shot retrieval: items of the query's class are hits",
        ("latent", "direction"),
        ("map@all", "map@200", "precision@100", "precision@200", "n"),
    ),
    ("translation", "Translation guided by the true partner", ("direction",), ("l1", "n")),
    ("disentanglement", "Exclusive latents, KL to the prior in nats", ("latent",), ("x", "y")),
    ("disentanglement", "Colours read from latent means by ridge regression", ("", "factor", "latent"), ("r2",)),
)


def _leaves(figures: dict[str, Any], names: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """(names, figures) of every innermost mapping that holds numbers only."""
    found = []
    for name, value in figures.items():
        if isinstance(value, dict):
            if value and all(not isinstance(one, dict) for one in value.values()):
                found.append(((*names, name), value))
            else:
                found += _leaves(value, (*names, name))
    return found


def run(options: EvaluateOptions) -> EvaluateResult:
    """Measure a run.

    Raises:
        IiaeError: no run, no data, data of another shape, an empty split, an unknown `--fail-under` key.
    """
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen}), kept at step {loaded.details.get('step')}")
    path = _data_path(options.data, loaded)
    file = DataFile(path)
    task = options.task or ("zero-shot" if file.info.by_class else "retrieval")
    if (file.info.shape_x[-1:], file.info.shape_y[-1:]) != (loaded.info.shape_x[-1:], loaded.info.shape_y[-1:]):
        raise IiaeError(
            f"{path} holds {file.info.shape_x} and {file.info.shape_y}, the model was trained on "
            f"{loaded.info.shape_x} and {loaded.info.shape_y}",
            "evaluate on data of the shape that the run was trained on",
        )
    split = _rows_of(file, options.split, task)
    metric: Metric = options.metric or loaded.config.evaluation.metric
    pairs = encode_pairs(loaded.model, split, size=loaded.size, device=device, batch_size=options.batch_size)
    by_class = file.info.by_class
    figures: dict[str, Any] = {}
    protocol = {
        "run": str(folder),
        "fingerprint": loaded.fingerprint,
        "step": loaded.details.get("step"),
        "data": str(path),
        "data_set": file.info.name,
        "split": options.split,
    }
    if task == "zero-shot" or (task == "all" and by_class):
        protocol |= _class_protocol(file, split, loaded, options)
        figures["zero_shot"] = zero_shot(pairs, file.split("train"), split)
    else:
        protocol |= _pair_protocol(split, loaded, metric)
    if task == "retrieval" or (task == "all" and not by_class):
        figures["retrieval"] = paired_retrieval(pairs, split, metric)
    if task == "translation" or (task == "all" and not by_class):
        figures["translation"] = guided_translation(
            loaded.model, pairs, split, size=loaded.size, device=device, batch_size=options.batch_size
        )
    if task in ("disentanglement", "all"):
        figures["disentanglement"] = {
            "exclusive_kl": dict(exclusive_kl(pairs)),
            "factors": {} if by_class else colour_factors(pairs, split),
        }
    failures = [line for text in options.fail_under if (line := _check(text, figures)) is not None]
    return EvaluateResult(figures, protocol, failures)


def _data_path(option: Path | None, loaded: LoadedModel) -> Path:
    """`--data`, else the file that the run was trained on, else DATA/SET.h5."""
    trained_on = loaded.details.get("data")
    if option is None and trained_on and Path(trained_on).exists():
        return Path(trained_on)
    return data_file(option, loaded.config.data.set or loaded.info.name)


def _rows_of(file: DataFile, name: str, task: Task) -> Split:
    """What a task measures on: rows with labels, or aligned pairs.

    Raises:
        IiaeError: the split is empty, has no labels, or is not paired.
    """
    split = file.split(name)
    if split.pair_count == 0 or not len(split.y):
        have = [f"{one} ({count})" for one, count in file.info.counts.items() if count]
        raise IiaeError(f"{file.path} has nothing in split '{name}'", f"choose another --split: {', '.join(have)}")
    if task == "zero-shot" and (split.x_labels is None or split.y_labels is None):
        raise IiaeError(
            f"split '{name}' of {file.path} has no labels", "zero-shot retrieval needs classes: iiae prepare classes"
        )
    if file.info.by_class:
        if task in ("retrieval", "translation"):
            raise IiaeError(
                f"{file.path} is paired by class: no row has a partner of its own",
                "measure class retrieval: iiae evaluate --task zero-shot",
            )
        return split
    if split.pairs is not None and task != "zero-shot":
        return split.take_pairs(np.arange(split.pair_count))
    if split.pairs is None and len(split.x) != len(split.y):
        raise IiaeError(f"split '{name}' of {file.path} is not paired", "paired retrieval needs partners")
    return split


def _pair_protocol(split: Split, loaded: LoadedModel, metric: Metric) -> dict[str, Any]:
    pictures = loaded.size is not None
    return {
        "pairs": len(split.x),
        "metric": metric,
        "relevance": "the true pair only",
        "l1_scale": "pixels in [-1, 1]" if pictures else "features",
        "baseline": "z-scored grey pixels at 32x32, correlation" if pictures else "raw features",
    }


def _class_protocol(file: DataFile, split: Split, loaded: LoadedModel, options: EvaluateOptions) -> dict[str, Any]:
    """What a reader must know before comparing a zero-shot figure; says on stderr what makes it no zero-shot figure.

    Raises:
        IiaeError: the features' backbone has seen a class of this split, and that was not allowed.
    """
    classes = sorted({*(split.x_labels or [])} | {*(split.y_labels or [])})
    attributes = file.info.attributes
    leak = sorted({*json.loads(attributes.get("backbone_classes") or "[]")} & {*classes})
    if leak and not options.allow_leak:
        raise IiaeError(
            f"the backbone of {file.path} was trained on classes of split '{options.split}': {', '.join(leak)}",
            "prepare the features with a backbone that has not seen them, or pass --allow-leak and say so",
        )
    if leak:
        console.warn(f"the backbone has seen {len(leak)} of {len(classes)} classes: {', '.join(leak)}")
    trained = loaded.details.get("train_classes")
    seen = None if trained is None else sorted({*trained} & {*classes})
    if seen:
        console.warn(f"the model was trained on {len(seen)} of these {len(classes)} classes: this is not zero-shot")
    return {
        "x": len(split.x),
        "y": len(split.y),
        "metric": "cosine",
        "relevance": "the same class",
        "class_split": attributes.get("class_split", "given"),
        "classes": len(classes),
        "classes_sha256": class_list_sha256(classes),
        "classes_seen_in_training": seen,
        "backbone_leak": leak if "backbone_classes" in attributes else None,
        "baselines": {"raw": "rows as they are", "centred": "each domain minus its mean over the training split"},
    }


def _check(text: str, figures: dict[str, Any]) -> str | None:
    """A line saying that a figure lies below its gate, or None. `KEY` is dotted: retrieval.shared.x_to_y.recall@1.

    Raises:
        IiaeError: no such figure, or no number.
    """
    key, equals, bound_text = text.partition("=")
    try:
        bound = float(bound_text)
    except ValueError:
        equals = ""
        bound = 0.0
    if not equals:
        raise IiaeError(
            f"--fail-under {text} is not KEY=VALUE", "write --fail-under retrieval.shared.x_to_y.recall@1=0.9"
        )
    value: Any = figures
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        leaves = [".".join((*names, column)) for names, row in _leaves(figures) for column in row]
        raise IiaeError(f"there is no figure '{key}'", f"figures: {', '.join(leaves)}")
    return None if value >= bound else f"{key} is {value:.6g}, below {bound:.6g}"
