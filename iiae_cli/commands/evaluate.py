"""`iiae evaluate`: the paper's measurements on a run's kept weights, the training-free baseline beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iiae_cli import console
from iiae_cli.builders import choose_device
from iiae_cli.data.dataset import DataFile, Split
from iiae_cli.errors import IiaeError
from iiae_cli.evaluation.gates import failed_gates, parse_gates
from iiae_cli.evaluation.protocols import (
    colour_factors,
    encode_pairs,
    exclusive_kl,
    guided_translation,
    paired_retrieval,
)
from iiae_cli.inference.retrieval import Metric
from iiae_cli.places import data_file, run_folder
from iiae_cli.runs import LoadedModel, RunDir, load_model

Task = Literal["retrieval", "translation", "disentanglement", "all"]


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line says; see `iiae evaluate --help`."""

    run: Path | None = None
    data: Path | None = None
    split: str = "test"
    task: Task = "retrieval"
    metric: Metric | None = None
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
            rows = [
                (*path, *[row.get(column, "") for column in columns])
                for path, row in _leaves(self.figures.get(task, {}))
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
    gates = parse_gates(options.fail_under)
    folder, chosen = run_folder(options.run)
    device = choose_device(options.device)
    loaded = load_model(RunDir(folder), device)
    console.say(f"model {loaded.fingerprint} of {folder} ({chosen}), kept at step {loaded.details.get('step')}")
    path = _data_path(options.data, loaded)
    file = DataFile(path)
    if (file.info.shape_x[-1:], file.info.shape_y[-1:]) != (loaded.info.shape_x[-1:], loaded.info.shape_y[-1:]):
        raise IiaeError(
            f"{path} holds {file.info.shape_x} and {file.info.shape_y}, the model was trained on "
            f"{loaded.info.shape_x} and {loaded.info.shape_y}",
            "evaluate on data of the shape that the run was trained on",
        )
    split = _aligned(file, options.split)
    metric: Metric = options.metric or loaded.config.evaluation.metric
    pairs = encode_pairs(loaded.model, split, size=loaded.size, device=device, batch_size=options.batch_size)
    figures: dict[str, Any] = {}
    if options.task in ("retrieval", "all"):
        figures["retrieval"] = paired_retrieval(pairs, split, metric)
    if options.task in ("translation", "all"):
        figures["translation"] = guided_translation(
            loaded.model, pairs, split, size=loaded.size, device=device, batch_size=options.batch_size
        )
    if options.task in ("disentanglement", "all"):
        figures["disentanglement"] = {
            "exclusive_kl": dict(exclusive_kl(pairs)),
            "factors": colour_factors(pairs, split),
        }
    protocol = {
        "run": str(folder),
        "fingerprint": loaded.fingerprint,
        "step": loaded.details.get("step"),
        "data": str(path),
        "data_set": file.info.name,
        "split": options.split,
        "pairs": len(split.x),
        "metric": metric,
        "relevance": "the true pair only",
        "l1_scale": "pixels in [-1, 1]" if loaded.size is not None else "features",
        "baseline": "z-scored grey pixels at 32x32, correlation" if loaded.size is not None else "raw features",
    }
    return EvaluateResult(figures, protocol, failed_gates(gates, figures))


def _data_path(option: Path | None, loaded: LoadedModel) -> Path:
    """`--data`, else the file that the run was trained on, else DATA/SET.h5."""
    trained_on = loaded.details.get("data")
    if option is None and trained_on and Path(trained_on).exists():
        return Path(trained_on)
    return data_file(option, loaded.config.data.set or loaded.info.name)


def _aligned(file: DataFile, name: str) -> Split:
    """A split whose rows are pairs.

    Raises:
        IiaeError: the split is empty or unpaired.
    """
    split = file.split(name)
    if split.pair_count == 0:
        have = [f"{one} ({count})" for one, count in file.info.counts.items() if count]
        raise IiaeError(f"{file.path} has nothing in split '{name}'", f"choose another --split: {', '.join(have)}")
    if split.pairs is not None:
        return split.take_pairs(np.arange(split.pair_count))
    if len(split.x) != len(split.y):
        raise IiaeError(f"split '{name}' of {file.path} is not paired", "paired retrieval needs partners")
    return split
