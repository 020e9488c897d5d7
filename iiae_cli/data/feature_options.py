"""What `prepare` may be told of features and unseen classes; free of torch, so that the command line can build it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FeatureOptions:
    """How a class-structured set is divided, and how its pictures become feature vectors.

    Attributes:
        class_split: a published list of test classes, by name.
        unseen_classes: a number of test classes, drawn by seed, or a file that names them.
        backbone: torchvision's name of a network.
        backbone_weights: a file of weights; a folder that `save_backbone` wrote; `none` for random ones; None: those
            that torchvision publishes, from torch's hub cache.
        fine_tune_epochs: passes over the training pictures of each domain; 0: the backbone as it is; None: the set's
            own default.
        invert_sketches: whether x is inverted, as the paper's extraction did; None: as the weights were fine-tuned,
            else no.
        normalise: whether ImageNet's mean and deviation are taken out; None: as the weights were fine-tuned, else yes.
        allow_leak: whether a backbone may have seen test classes.
        save_backbone: folder that keeps the fine-tuned networks.
        device: as torch names it.
        batch_size: pictures at once.
    """

    class_split: str | None = None
    unseen_classes: str | None = None
    backbone: str | None = None
    backbone_weights: str | None = None
    fine_tune_epochs: int | None = None
    invert_sketches: bool | None = None
    normalise: bool | None = None
    allow_leak: bool = False
    save_backbone: Path | None = None
    device: str = "cpu"
    batch_size: int = 64

    @property
    def wants_classes(self) -> bool:
        """Whether anything was said that only matters for sets of classes."""
        return (
            self.wants_backbone or self.class_split is not None or self.unseen_classes is not None
        )

    @property
    def wants_backbone(self) -> bool:
        """Whether anything was said that only matters for pictures."""
        return any(
            value is not None
            for value in (
                self.backbone,
                self.backbone_weights,
                self.fine_tune_epochs,
                self.save_backbone,
            )
        )
