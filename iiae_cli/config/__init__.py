"""The typed configuration: each value's type, default and help in one place.

`presets.py` reads values from presets, files, the environment and options.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=0, lt=2**31)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
AtLeastTwo = Annotated[int, Field(ge=2, lt=2**31)]
Widths = Annotated[list[PositiveInt], Field(min_length=1, max_length=32)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp64"]


class Section(BaseModel):
    """A part of the configuration; the string below a field is its help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataSection(Section):
    """The training data."""

    set: str = ""
    """name of the data set; its file is DATA/NAME.h5 unless --data names a file"""
    image_size: Annotated[int, Field(ge=16, lt=2**15)] | None = None
    """side in pixels that pictures are resized to per batch; none: the data file's own"""
    holdout: BelowOne = 0.1
    """fraction of training pairs (or classes) for validation, if the file has no valid split"""
    standardise: Literal["none", "global"] = "none"
    """features: centre, then divide by one scale for all dimensions (global)"""


class AugmentSection(Section):
    """Random changes of training pictures (beyond the paper), see data/batches.py."""

    geometric: NonNegative = 0.0
    """turn, zoom and shift of both pictures of a pair alike; 1: up to 15 degrees, 15 %, 12 %"""
    apart: bool = False
    """turn, zoom and shift each picture by itself, for content that moves"""
    flip: Fraction = 0.0
    """probability of mirroring both pictures of a pair, left to right"""
    photometric: NonNegative = 0.0
    """contrast, light and tint, drawn for each picture; 1: contrast by up to 50 %"""


class ModelSection(Section):
    """The networks (paper, appendix D)."""

    kind: Literal["image", "flat", "features"] = "image"
    """image: shared map; flat: shared vector (the Cars networks); features: linear layers"""
    widths: Widths = [32, 64, 128, 256]
    """filters of the encoders' convolutions, one per stage"""
    decoder_widths: Widths = [512, 256, 128, 64]
    """filters of the decoder's transposed convolutions but the last"""
    stages: AtLeastTwo | None = None
    """halvings from picture to latent grid; none: as many as widths and a 4x4 grid allow"""
    shared: PositiveInt = 128
    """channels of the shared map, or width of the shared vector"""
    exclusive: PositiveInt = 8
    """dimensions of each exclusive latent"""
    dropout: BelowOne = 0.5
    """dropout rate in the decoder's first two stages"""
    flat_hidden: PositiveInt = 256
    """flat: filters of the fifth convolution and of the linear layer"""
    flat_width: PositiveInt = 512
    """flat: grid channels that the decoder starts from"""
    pooled: bool = False
    """flat: shared encoders pool over places, so that the place of content cannot matter"""
    attention: Count = 0
    """heads of attention with which exclusive encoders of pictures pool over places; 0: none"""
    feature_width: PositiveInt = 512
    """features: width of the feature extractor"""
    exclusive_hidden: Widths = [512, 256]
    """features: hidden widths of the exclusive encoders"""
    shared_hidden: PositiveInt = 256
    """features: hidden width of r(z^s|.)"""
    joint_hidden: PositiveInt = 512
    """features: hidden width of q(z^s|x,y)"""
    decoder_hidden: PositiveInt = 128
    """features: hidden width of the decoders"""
    linear_path: Literal["none", "two-covariance", "canonical"] = "none"
    """a linear map added to each shared mean. features: begun in closed form for classes
    (two-covariance); pictures: of edges and colours, begun by correlation (canonical), flat ones of
    equal channels by one map"""
    linear_shrinkage: Positive = 3.0
    """two-covariance, canonical: how many mean variances are added to their covariances"""
    patches: Annotated[Count, Field(multiple_of=2)] = 0
    """flat, canonical: patches of training pictures, half of them mirrored, whose likeness a linear
    path reads; 0: none"""

    @model_validator(mode="after")
    def _same_depth(self) -> ModelSection:
        if len(self.widths) != len(self.decoder_widths):
            entries = f"{len(self.widths)} entries and decoder_widths {len(self.decoder_widths)}"
            raise ValueError(f"widths has {entries}; encoder and decoder need the same depth")
        return self


class ObjectiveSection(Section):
    """The variational bound (paper, Eq. 12 and Table 6)."""

    kind: Literal["elbo+ii-mi", "elbo+ii", "ii-mi", "ii", "infonce"] = "elbo+ii-mi"
    """elbo+ii-mi: the paper; elbo+ii, ii-mi, ii: its ablations; infonce: a baseline"""
    lam: Positive = Field(5.0, alias="lambda")
    """weight of the information terms"""
    reconstruction: Literal["l1", "l2"] = "l1"
    """error that stands for -log p"""
    reconstruction_weight: Positive = 1000.0
    """w, multiplies that error"""
    annealing_steps: NonNegative = 25000.0
    """tau of the prior KLs' weight 1 - exp(-step/tau); 0: no annealing"""
    contrastive: NonNegative = 0.0
    """weight of InfoNCE between the batch's shared means, beside the bound"""
    temperature: Positive = 0.1
    """contrastive and infonce: divides the cosines of shared means"""
    independence: NonNegative = 0.0
    """weight of the distance correlation of exclusive means and the partner's shared mean"""


class ErasureSection(Section):
    """What every validation removes from posterior means in closed form (beyond the paper)."""

    shared: Literal["none", "channel+leace"] = "none"
    """erased from shared means; channel: directions within the noise; leace: exclusive content"""
    least_snr: Positive = 0.1
    """channel: smallest ratio of a kept direction's variance to the posterior's"""
    least_correlation: Fraction = 0.2
    """leace: canonical correlation, with what a pair disagrees in, above which it erases"""
    rows: AtLeastTwo = 10000
    """most training rows that it reads"""


class OptimizerSection(Section):
    """Adam and its learning-rate schedule."""

    lr: Positive = 2e-4
    """Adam's learning rate"""
    beta1: BelowOne = 0.5
    """Adam's first moment decay"""
    beta2: BelowOne = 0.999
    """Adam's second moment decay"""
    schedule: Literal["constant", "cosine"] = "constant"
    """course of the learning rate after the warm-up"""
    warmup_steps: Count = 0
    """linear warm-up from zero"""
    final_lr_fraction: Fraction = 0.02
    """cosine: fraction of the learning rate at the last step"""


class TrainingSection(Section):
    """How long, how fast, and what is written on the way."""

    steps: PositiveInt | None = None
    """optimiser steps in all; exclusive with epochs"""
    epochs: PositiveInt | None = None
    """passes over the training pairs; exclusive with steps"""
    batch_size: AtLeastTwo | None = None
    """pairs per step; none: 8, or one pair of every class if the set is paired by class"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """seed of initial weights, order of pairs, noise and dropout"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    precision: Precision = "auto"
    """tf32: GPUs' rounded products; bf16: autocast; fp64: to compare; auto: the fastest suitable"""
    compile: bool | Literal["auto"] = "auto"
    """compile the networks with torch.compile; auto: if the run is long enough to gain by it"""
    deterministic: bool = False
    """deterministic algorithms on GPUs; CPU training always is"""
    threads: Annotated[int, Field(ge=0, lt=2**12)] = 0
    """CPU threads; 0: torch's choice"""
    log: list[Literal["wandb", "mlflow"]] = []
    """services that figures are sent to, beside TensorBoard's files"""
    log_every: PositiveInt = 50
    """steps between lines of metrics.jsonl"""
    validate_every: Count = 0
    """steps between validations; 0: once an epoch"""
    checkpoint_every: Count = 0
    """steps between checkpoints; 0: at every validation"""
    batch_norm: Literal["synchronised", "local"] = "synchronised"
    """several GPUs: statistics of the whole batch, or of each process's part, as on CPUs"""
    freeze_norm: Fraction = 0.0
    """last fraction of the steps, in which batch norm keeps its statistics (beyond the paper)"""
    samples: Count = 8
    """rows of the sample grid drawn at every validation"""


class SelectionSection(Section):
    """Which weights a run keeps."""

    rule: Literal["recall", "paper", "last"] = "recall"
    """recall: best sum of both directions' Recall@1 (mAP@all by class) on validation; paper: the
    same among those with at most one exclusive hit per direction; last: the final weights"""
    validate_on: Literal["valid", "train"] = "valid"
    """valid: held-out pairs; train: copies of training pairs, as the released code does"""
    patience: Count = 0
    """end after so many validations in a row without a better score; 0: never"""
    validation_pairs: PositiveInt = 800
    """most validation pairs"""
    first_epoch: Count = 0
    """epochs completed before weights may be kept"""
    from_start: bool = False
    """validate the weights before the first step too; they are kept unless training gains enough"""
    least_gain: NonNegative = 0.1
    """from_start: the fraction by which a later score must exceed the start's"""
    refit: bool = False
    """then train on the held-out rows too, for as many steps as the kept weights had; if those
    are the start's, with the shared means held there"""

    @model_validator(mode="after")
    def _patience_compares(self) -> SelectionSection:
        if self.patience and self.rule == "last":
            raise ValueError("patience compares scores, and rule=last does not: set rule=recall")
        return self


class EvaluationSection(Section):
    """How retrieval is measured."""

    metric: Literal["euclidean", "cosine", "auto"] = "euclidean"
    """distance between shared means; auto: whichever has the higher Recall@1 on validation"""


class Config(Section):
    """Everything that decides the outcome of a run."""

    description: str = ""
    """what the preset is for"""
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    objective: ObjectiveSection = ObjectiveSection()
    erasure: ErasureSection = ErasureSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    selection: SelectionSection = SelectionSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _fit_together(self) -> Config:
        model, augment, path = self.model, self.augment, self.model.linear_path
        features, bare = model.kind == "features", self.objective.kind in ("ii", "infonce")
        wrong = {
            "objective.independence": bare and self.objective.independence,
            "erasure.shared": bare and self.erasure.shared != "none",
            "augment": features and any((augment.geometric, augment.flip, augment.photometric)),
            "model.attention": features and model.attention,
            "model.linear_path": path != "none" and (path == "canonical") == features,
            "model.patches": model.patches and (path == "none" or model.kind != "flat"),
            "model.pooled": model.pooled and (path != "none" or model.kind != "flat"),
        }
        for key in filter(wrong.get, wrong):
            kinds = f"model.kind={model.kind}, model.linear_path={path}"
            others = f"{kinds} and objective.kind={self.objective.kind}"
            raise ValueError(f"{key} does not go with {others}: turn it off")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain values, keyed as YAML files are."""
        return self.model_dump(by_alias=True)

    def to_yaml(self) -> str:
        """Returns a YAML file that loads back to the same configuration."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))
