"""Typed configuration: presets, files, environment, options and `--set`, merged in that order.

A field's default, type and help stand in one place, here; a preset shows only what differs. Every value remembers
where it came from. All errors of a configuration are reported at once, unknown keys with their nearest match.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iiae_cli import console
from iiae_cli.errors import IiaeError
from iiae_cli.yamls import MOST_CHARACTERS, load_yaml

MOST_PROBLEMS = 12  # told at once

Scalar = bool | int | float | str | None
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp64"]


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class DataSection(Section):
    """What is learned from."""

    set: str = Field("", description="name of the data set; its file is DATA/NAME.h5 unless --data names a file")
    image_size: Annotated[int, Field(ge=16, lt=2**15)] | None = Field(
        None, description="side in pixels that pictures are resized to per batch; none: the data file's own size"
    )
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1,
        description="fraction of the training pairs (of the classes, where the set is paired by class) held out for "
        "validation where the file has no valid split",
    )
    standardise: Literal["none", "global", "each"] = Field(
        "none",
        description="features: subtract the training mean, then divide by one scale for all dimensions (global) or by "
        "each dimension's own (each); the statistics are saved with the weights. none: the paper",
    )


class AugmentSection(Section):
    """What is done to training pictures, batch by batch (beyond the paper); off where all is 0."""

    geometric: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="turn, zoom and shift, the same for both pictures of a pair; 1: up to 15 degrees, 15 %, 12 %"
    )
    flip: Fraction = Field(0.0, description="probability of mirroring both pictures of a pair, left to right")
    misalign: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="turn, zoom and shift drawn for each picture, beside the pair's; in the same unit"
    )
    photometric: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="contrast, light and tint, drawn for each picture; 1: contrast by up to 50 %"
    )
    grey: Fraction = Field(0.0, description="probability of losing its colour, for each picture")
    erase: Fraction = Field(0.0, description="probability of a rectangle of one random colour, for each picture")


class ModelSection(Section):
    """The networks (paper, appendix D)."""

    kind: Literal["image", "flat", "features"] = Field(
        "image", description="image: shared map; flat: shared vector (the Cars networks); features: linear layers"
    )
    widths: list[PositiveInt] = Field(
        [32, 64, 128, 256],
        min_length=1,
        max_length=32,
        description="filters of the encoders' convolutions, one per stage",
    )
    decoder_widths: list[PositiveInt] = Field(
        [512, 256, 128, 64],
        min_length=1,
        max_length=32,
        description="filters of the decoder's transposed convolutions but the last",
    )
    stages: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="halvings from picture to latent grid, the shared head's included; none: as many as the widths "
        "allow while the grid stays at least 4x4. Fewer stages drop the deepest widths",
    )
    shared: PositiveInt = Field(128, description="channels of the shared map, or width of the shared vector")
    exclusive: PositiveInt = Field(8, description="dimensions of each exclusive latent")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.5, description="in the decoder's first two stages")
    flat_hidden: PositiveInt = Field(256, description="flat: filters of the fifth convolution and of the linear layer")
    flat_width: PositiveInt = Field(512, description="flat: grid channels that the decoder starts from")
    feature_width: PositiveInt = Field(512, description="features: width of the feature extractor")
    exclusive_hidden: list[PositiveInt] = Field(
        [512, 256], min_length=1, max_length=32, description="features: hidden widths of the exclusive encoders"
    )
    shared_hidden: PositiveInt = Field(256, description="features: hidden width of r(z^s|.)")
    joint_hidden: PositiveInt = Field(512, description="features: hidden width of q(z^s|x,y)")
    decoder_hidden: PositiveInt = Field(128, description="features: hidden width of the decoders")

    linear_path: Literal["none", "random", "two-covariance", "canonical"] = Field(
        "none",
        description="features: add a linear map of the features to each shared mean, begun at random or as the closed "
        "form of the linear-Gaussian model of classes (two-covariance); flat: of the pictures' edges and coarse "
        "colours, begun as their regularised canonical correlation (canonical). none: the paper",
    )
    linear_shrinkage: Annotated[float, Field(gt=0.0)] = Field(
        3.0,
        description="two-covariance: how many times its mean variance is added to the within-class covariance; "
        "canonical: likewise to each domain's covariance",
    )

    @model_validator(mode="after")
    def _same_depth(self) -> ModelSection:
        if len(self.widths) != len(self.decoder_widths):
            raise ValueError(
                f"widths has {len(self.widths)} entries and decoder_widths {len(self.decoder_widths)}; "
                "encoder and decoder need the same depth"
            )
        return self


class ObjectiveSection(Section):
    """The variational bound (paper, Eq. 12 and Table 6)."""

    kind: Literal["elbo+ii-mi", "elbo+ii", "ii-mi", "ii", "elbo", "infonce"] = Field(
        "elbo+ii-mi",
        description="elbo+ii-mi: the paper's objective; elbo+ii, ii-mi and ii: its ablations; elbo and infonce: "
        "baselines to compare with (infonce: a dual encoder, which retrieves but translates nothing)",
    )
    lam: Annotated[float, Field(gt=0.0)] = Field(5.0, alias="lambda", description="weight of the information terms")
    reconstruction: Literal["l1", "l2"] = Field("l1", description="error that stands for -log p")
    reconstruction_weight: Annotated[float, Field(gt=0.0)] = Field(1000.0, description="w, multiplies that error")
    annealing_steps: Annotated[float, Field(ge=0.0)] = Field(
        25000.0, description="tau of the prior KLs' weight 1 - exp(-step/tau); 0: no annealing"
    )
    contrastive: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="weight of InfoNCE between the batch's shared means, beside the bound. 0: the paper"
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        0.1, description="contrastive and infonce: what the cosines of shared means are divided by"
    )
    independence: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="weight of a penalty on what exclusive means tell of the content: their distance correlation with "
        "the partner's shared mean. 0: the paper",
    )

    @model_validator(mode="after")
    def _something_to_penalise(self) -> ObjectiveSection:
        if self.independence and self.kind in ("ii", "infonce"):
            raise ValueError(f"independence speaks of exclusive latents, which {self.kind} has not")
        return self


class ErasureSection(Section):
    """What is taken out of posterior means in closed form, at every validation (beyond the paper)."""

    shared: Literal["none", "channel", "leace", "channel+leace"] = Field(
        "none",
        description="of shared means; channel: directions in which they hardly exceed the posterior's noise; leace: "
        "what linearly tells the exclusive means. none: the paper",
    )
    exclusive: Literal["none", "residual"] = Field(
        "none",
        description="of exclusive means; residual: what the shared mean predicts of them, which decoding adds again. "
        "none: the paper",
    )
    least_snr: Annotated[float, Field(gt=0.0)] = Field(
        0.1, description="channel: the variance of means, over the posterior's, that a direction must have to be kept"
    )
    least_correlation: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.2,
        description="leace: canonical correlations with what a pair disagrees in, up to which nothing is erased",
    )
    ridge: Annotated[float, Field(gt=0.0)] = Field(
        3.0, description="residual: of its regression, in units of the shared posterior's noise"
    )
    rows: Annotated[int, Field(ge=2)] = Field(10000, description="at most so many training rows are read for it")

    @property
    def any(self) -> bool:
        """Whether anything is erased."""
        return self.shared != "none" or self.exclusive != "none"


class OptimizerSection(Section):
    """Adam and its learning-rate schedule."""

    lr: Annotated[float, Field(gt=0.0)] = Field(2e-4, description="Adam's learning rate")
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.5, description="Adam's first moment decay")
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.999, description="Adam's second moment decay")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the learning rate, after the warm-up")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="linear warm-up from zero")
    final_lr_fraction: Fraction = Field(0.02, description="cosine: fraction of the learning rate at the last step")


class TrainingSection(Section):
    """How long, how fast, and what is written on the way."""

    steps: PositiveInt | None = Field(None, description="optimiser steps in all; exclusive with epochs")
    epochs: PositiveInt | None = Field(None, description="passes over the training pairs; exclusive with steps")
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] | None = Field(
        None, description="pairs per step; none: 8, or one pair of every class where the set is paired by class"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of initial weights, order of pairs, noise and dropout"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Precision = Field(
        "auto",
        description="tf32: GPUs' rounded products; bf16: autocast, KLs stay in float32; auto: the fastest that device "
        "and model take well (a run records which); fp64: to compare runs whose sums are ordered otherwise",
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the networks with torch.compile; auto: where the run is long enough to gain by it"
    )
    deterministic: bool = Field(False, description="deterministic algorithms on GPUs; CPU training always is")
    threads: Annotated[int, Field(ge=0, lt=2**12)] = Field(0, description="CPU threads; 0: torch's choice")
    log_every: PositiveInt = Field(50, description="steps between lines of metrics.jsonl")
    validate_every: Annotated[int, Field(ge=0)] = Field(0, description="steps between validations; 0: once an epoch")
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between checkpoints; 0: at every validation"
    )
    batch_norm: Literal["synchronised", "local"] = Field(
        "synchronised",
        description="with several processes: statistics of the whole batch, as in one process, or of each one's part",
    )
    samples: Annotated[int, Field(ge=0)] = Field(8, description="rows of the sample grid drawn at every validation")


class SelectionSection(Section):
    """Which weights are kept."""

    rule: Literal["recall", "paper", "last"] = Field(
        "recall",
        description="recall: best sum of both directions' shared Recall@1 on validation, mAP@all where rows are paired "
        "by class, later wins ties; "
        "paper: the same among those with at most one exclusive hit per direction; last: the final weights",
    )
    validate_on: Literal["valid", "train"] = Field(
        "valid", description="valid: held-out pairs; train: copies of training pairs, as the released code does"
    )
    patience: Annotated[int, Field(ge=0)] = Field(
        0, description="early stopping: end after so many validations in a row without a better score; 0: never"
    )
    validation_pairs: PositiveInt = Field(800, description="at most so many validation pairs")
    first_epoch: Annotated[int, Field(ge=0)] = Field(0, description="epochs completed before weights may be kept")
    from_start: bool = Field(
        False, description="validate the weights before the first step too; they are kept unless training gains enough"
    )
    least_gain: Annotated[float, Field(ge=0.0)] = Field(
        0.1, description="from_start: the fraction by which a later score must exceed the start's"
    )
    refit: bool = Field(
        False,
        description="then train once more, on the held-out rows too, for as many steps as the kept weights had; where "
        "those are the start's, with the shared means held there",
    )


class EvaluationSection(Section):
    """How retrieval is measured."""

    metric: Literal["euclidean", "cosine", "auto"] = Field(
        "euclidean",
        description="distance between shared means; auto: whichever has the higher Recall@1 on validation, "
        "remembered with the kept weights; euclidean where nothing is held out",
    )


class Config(Section):
    """Everything that decides what a run does."""

    description: str = Field("", description="what the preset is for")
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    objective: ObjectiveSection = ObjectiveSection()
    erasure: ErasureSection = ErasureSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    selection: SelectionSection = SelectionSection()
    evaluation: EvaluationSection = EvaluationSection()

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values, keyed as YAML files are."""
        return self.model_dump(by_alias=True)

    def to_yaml(self) -> str:
        """As a YAML file that loads back to the same configuration."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))


@dataclass
class Resolved:
    """A configuration and where each dotted key's value came from (`default` where no layer set it)."""

    config: Config
    sources: dict[str, str]

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted key, value, source) of every value, in file order."""
        return [(key, value, self.sources.get(key, "default")) for key, value in flatten(self.config.to_dict()).items()]


@dataclass
class Layer:
    """Values from one place."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)


# Environment names beside the general form IIAE_SECTION__KEY.
SHORT_ENVIRONMENT = {
    f"IIAE_{name.upper()}": f"training.{name}"
    for name in ("steps", "epochs", "batch_size", "seed", "device", "precision", "compile", "deterministic", "threads")
}

# Read elsewhere (`places.py`).
OTHER_ENVIRONMENT = ("IIAE_DATA", "IIAE_RUN", "IIAE_INDEX")

# Steps and epochs exclude each other: a later layer's choice of one takes back an earlier layer's of the other.
_EXCLUSIVE = {"training.steps": "training.epochs", "training.epochs": "training.steps"}


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def known_keys() -> list[str]:
    """Every dotted key of the configuration."""
    return list(flatten(Config().to_dict()))


def key_help() -> dict[str, str]:
    """Dotted key to its one-line help."""
    help_texts = {"description": Config.model_fields["description"].description or ""}
    for name, info in Config.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            for key, entry in section.model_fields.items():
                help_texts[f"{name}.{entry.alias or key}"] = entry.description or ""
    return help_texts


def resolve(layers: Iterable[Layer]) -> Resolved:
    """Merge layers, later ones winning, and validate.

    Raises:
        IiaeError: unknown keys or bad values, all of them named.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    keys = known_keys()
    for layer in layers:
        for key, value in layer.values.items():
            if value in (None, {}) and any(name.startswith(f"{key}.") for name in keys):
                continue  # a section with nothing in it
            if key not in keys:
                near = _near(key, keys) if len(problems) < MOST_PROBLEMS else ""  # matching takes time
                problems.append(f"unknown key '{key[:80]}' in {layer.source}{near}")
                continue
            values[key], sources[key] = value, layer.source
            rival = _EXCLUSIVE.get(key)
            if rival is not None and value is not None and rival not in layer.values:
                values.pop(rival, None)
                sources.pop(rival, None)
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    config: Config | None = None
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        for item in error.errors():
            dotted = _dotted(item["loc"])
            origin = f" in {sources[dotted]}" if dotted in sources else ""
            given = "" if isinstance(item["input"], Mapping) else f", not {_short(item['input'])}"
            problems.append(f"{dotted}{origin}: {item['msg'].removeprefix('Value error, ')}{given}")
    lengths = sum(values.get(key) is not None for key in _EXCLUSIVE)
    if lengths != 1:
        problems.append(f"training.steps and training.epochs are both {'set' if lengths else 'unset'}")
    if problems or config is None:
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise IiaeError(
            "; ".join(problems[:MOST_PROBLEMS]) + more,
            "iiae train --preset NAME --print-config lists every key, its value and its source",
        )
    return Resolved(config, sources)


def _short(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _dotted(location: tuple[int | str, ...]) -> str:
    names = [str(part) for part in location if isinstance(part, str)]
    return ".".join(names) or "config"


def _near(key: str, candidates: Iterable[str]) -> str:
    names = list(candidates)
    matches = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if not matches:  # right name, wrong or missing section
        last = key.rsplit(".", 1)[-1]
        matches = [name for name in names if name.rsplit(".", 1)[-1] == last]
    return f", did you mean '{matches[0]}'?" if matches else ""


def preset_folder() -> Path:
    """Where the shipped presets lie: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parent
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_layers(preset: str) -> list[Layer]:
    """The layers of a preset, given by name or as a YAML file, its `extends` chain first.

    Raises:
        IiaeError: no such preset or file, unreadable YAML, or a chain that bites its own tail.
    """
    layers: list[Layer] = []
    seen: list[Path] = []
    name: str | None = preset
    base = Path()
    while name is not None:
        path = _preset_path(name, base)
        if path.resolve() in seen:
            raise IiaeError(f"preset {preset} extends itself through {path.name}", "break the chain of 'extends'")
        seen.append(path.resolve())
        content = read_yaml(path)
        parent = content.pop("extends", None)
        if parent is not None and not isinstance(parent, str):
            raise IiaeError(f"'extends' in {path} is not a name", "name one preset or one YAML file")
        shipped = path.parent == preset_folder()
        layers.insert(0, Layer(f"preset {path.stem}" if shipped else str(path), flatten(content)))
        name, base = parent, path.parent
    return layers


def _preset_path(name: str, base: Path) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = base / name
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on names that are too long
            raise IiaeError(f"preset file {path} does not exist", f"shipped presets: {', '.join(preset_names())}")
        return path
    path = preset_folder() / f"{name}.yaml"
    if name not in preset_names():
        raise IiaeError(
            f"unknown preset '{name}'{_near(name, preset_names())}", f"presets: {', '.join(preset_names())}"
        )
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        IiaeError: missing, unreadable, or not a mapping of names.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise IiaeError(f"cannot read {path}: it is no file", "name a YAML file")
        with path.open(encoding="utf-8") as file:
            content = load_yaml(file.read(MOST_CHARACTERS + 1))
    except OSError as error:
        raise IiaeError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        first = " ".join(str(error).split())[:300]
        raise IiaeError(f"{path} is not valid YAML: {first}", "compare it with a preset in presets/") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise IiaeError(f"{path} does not hold a mapping of keys", "compare it with a preset in presets/")
    return content


def environment_layer(environment: Mapping[str, str] | None = None) -> Layer:
    """`IIAE_SECTION__KEY` and the short forms (`IIAE_SEED`, …) of the environment; warns of other `IIAE_…` names."""
    layer = Layer("environment")
    for name, text in (os.environ if environment is None else environment).items():
        if not name.startswith("IIAE_") or not text:
            continue
        if name in SHORT_ENVIRONMENT:
            layer.values[SHORT_ENVIRONMENT[name]] = parse_value(text, name)
        elif "__" in name:
            layer.values[name.removeprefix("IIAE_").lower().replace("__", ".")] = parse_value(text, name)
        elif name not in OTHER_ENVIRONMENT:
            console.warn(f"{name} is set, but means nothing{_near(name, [*SHORT_ENVIRONMENT, *OTHER_ENVIRONMENT])}")
    return layer


def set_layer(assignments: Iterable[str]) -> Layer:
    """`--set KEY=VALUE` with dotted keys and YAML-typed values.

    Raises:
        IiaeError: an assignment without '=' or with a value that is no YAML.
    """
    layer = Layer("--set")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise IiaeError(f"--set {assignment} has no '='", "write --set objective.lambda=50")
        layer.values[key.strip()] = parse_value(text, f"--set {key}")
    return layer


def parse_value(text: str, where: str) -> Any:
    """One YAML value.

    Raises:
        IiaeError: `text` is no YAML.
    """
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise IiaeError(f"{where}: {_short(text)} is no YAML value", "quote texts, write lists as [1, 2]") from error
