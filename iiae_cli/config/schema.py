"""The typed configuration: a field's default, type and help stand in one place, here.

Where values come from, presets first and `--set` last, is `layers.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Scalar = bool | int | float | str | None
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp64"]


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class DataSection(Section):
    """What is learned from."""

    set: str = Field(
        "", description="name of the data set; its file is DATA/NAME.h5 unless --data names a file"
    )
    image_size: Annotated[int, Field(ge=16, lt=2**15)] | None = Field(
        None,
        description="side in pixels that pictures are resized to per batch; none: the data file's own size",
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
        0.0,
        description="turn, zoom and shift, the same for both pictures of a pair; 1: up to 15 degrees, 15 %, 12 %",
    )
    flip: Fraction = Field(
        0.0, description="probability of mirroring both pictures of a pair, left to right"
    )
    misalign: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="turn, zoom and shift drawn for each picture, beside the pair's; in the same unit",
    )
    photometric: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="contrast, light and tint, drawn for each picture; 1: contrast by up to 50 %",
    )
    grey: Fraction = Field(0.0, description="probability of losing its colour, for each picture")
    erase: Fraction = Field(
        0.0, description="probability of a rectangle of one random colour, for each picture"
    )


class ModelSection(Section):
    """The networks (paper, appendix D)."""

    kind: Literal["image", "flat", "features"] = Field(
        "image",
        description="image: shared map; flat: shared vector (the Cars networks); features: linear layers",
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
    shared: PositiveInt = Field(
        128, description="channels of the shared map, or width of the shared vector"
    )
    exclusive: PositiveInt = Field(8, description="dimensions of each exclusive latent")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.5, description="in the decoder's first two stages"
    )
    flat_hidden: PositiveInt = Field(
        256, description="flat: filters of the fifth convolution and of the linear layer"
    )
    flat_width: PositiveInt = Field(
        512, description="flat: grid channels that the decoder starts from"
    )
    feature_width: PositiveInt = Field(512, description="features: width of the feature extractor")
    exclusive_hidden: list[PositiveInt] = Field(
        [512, 256],
        min_length=1,
        max_length=32,
        description="features: hidden widths of the exclusive encoders",
    )
    shared_hidden: PositiveInt = Field(256, description="features: hidden width of r(z^s|.)")
    joint_hidden: PositiveInt = Field(512, description="features: hidden width of q(z^s|x,y)")
    decoder_hidden: PositiveInt = Field(128, description="features: hidden width of the decoders")

    linear_path: Literal["none", "random", "two-covariance", "canonical"] = Field(
        "none",
        description="features: add a linear map of the features to each shared mean, begun at random or as the closed "
        "form of the linear-Gaussian model of classes (two-covariance); image, flat: of the pictures' edges and coarse "
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
    lam: Annotated[float, Field(gt=0.0)] = Field(
        5.0, alias="lambda", description="weight of the information terms"
    )
    reconstruction: Literal["l1", "l2"] = Field("l1", description="error that stands for -log p")
    reconstruction_weight: Annotated[float, Field(gt=0.0)] = Field(
        1000.0, description="w, multiplies that error"
    )
    annealing_steps: Annotated[float, Field(ge=0.0)] = Field(
        25000.0, description="tau of the prior KLs' weight 1 - exp(-step/tau); 0: no annealing"
    )
    contrastive: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="weight of InfoNCE between the batch's shared means, beside the bound. 0: the paper",
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
        0.1,
        description="channel: the variance of means, over the posterior's, that a direction must have to be kept",
    )
    least_correlation: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.2,
        description="leace: canonical correlations with what a pair disagrees in, up to which nothing is erased",
    )
    ridge: Annotated[float, Field(gt=0.0)] = Field(
        3.0, description="residual: of its regression, in units of the shared posterior's noise"
    )
    rows: Annotated[int, Field(ge=2)] = Field(
        10000, description="at most so many training rows are read for it"
    )

    @property
    def any(self) -> bool:
        """Whether anything is erased."""
        return self.shared != "none" or self.exclusive != "none"


class OptimizerSection(Section):
    """Adam and its learning-rate schedule."""

    lr: Annotated[float, Field(gt=0.0)] = Field(2e-4, description="Adam's learning rate")
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.5, description="Adam's first moment decay"
    )
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.999, description="Adam's second moment decay"
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate, after the warm-up"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="linear warm-up from zero")
    final_lr_fraction: Fraction = Field(
        0.02, description="cosine: fraction of the learning rate at the last step"
    )


class TrainingSection(Section):
    """How long, how fast, and what is written on the way."""

    steps: PositiveInt | None = Field(
        None, description="optimiser steps in all; exclusive with epochs"
    )
    epochs: PositiveInt | None = Field(
        None, description="passes over the training pairs; exclusive with steps"
    )
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] | None = Field(
        None,
        description="pairs per step; none: 8, or one pair of every class where the set is paired by class",
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
        "auto",
        description="compile the networks with torch.compile; auto: where the run is long enough to gain by it",
    )
    deterministic: bool = Field(
        False, description="deterministic algorithms on GPUs; CPU training always is"
    )
    threads: Annotated[int, Field(ge=0, lt=2**12)] = Field(
        0, description="CPU threads; 0: torch's choice"
    )
    log_every: PositiveInt = Field(50, description="steps between lines of metrics.jsonl")
    validate_every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between validations; 0: once an epoch"
    )
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between checkpoints; 0: at every validation"
    )
    batch_norm: Literal["synchronised", "local"] = Field(
        "synchronised",
        description="with several processes: statistics of the whole batch, as in one process, or of each one's part",
    )
    samples: Annotated[int, Field(ge=0)] = Field(
        8, description="rows of the sample grid drawn at every validation"
    )


class SelectionSection(Section):
    """Which weights are kept."""

    rule: Literal["recall", "paper", "last"] = Field(
        "recall",
        description="recall: best sum of both directions' shared Recall@1 on validation, mAP@all where rows are paired "
        "by class, later wins ties; "
        "paper: the same among those with at most one exclusive hit per direction; last: the final weights",
    )
    validate_on: Literal["valid", "train"] = Field(
        "valid",
        description="valid: held-out pairs; train: copies of training pairs, as the released code does",
    )
    patience: Annotated[int, Field(ge=0)] = Field(
        0,
        description="early stopping: end after so many validations in a row without a better score; 0: never",
    )
    validation_pairs: PositiveInt = Field(800, description="at most so many validation pairs")
    first_epoch: Annotated[int, Field(ge=0)] = Field(
        0, description="epochs completed before weights may be kept"
    )
    from_start: bool = Field(
        False,
        description="validate the weights before the first step too; they are kept unless training gains enough",
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
