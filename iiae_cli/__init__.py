"""Cross-domain disentanglement with the Interaction Information Auto-Encoder (NeurIPS 2020)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iiae_cli.inference.trained import TrainedModel

__version__ = "0.1.0"


def load(run: Path | str, device: str = "auto") -> TrainedModel:
    """Reads the kept weights of a run directory; returns a model that encodes and translates."""
    from iiae_cli.inference.trained import TrainedModel

    return TrainedModel.load(run, device)
