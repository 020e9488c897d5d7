"""Cross-domain disentanglement with the Interaction Information Auto-Encoder (NeurIPS 2020)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iiae_cli.inference.api import Model

__version__ = "0.1.0"
__all__ = ["load"]


def load(
    run: Path | str | None = None, device: str = "auto", backbone_weights: str | None = None
) -> Model:
    """Reads the kept weights of a run [IIAE_RUN, else runs/latest].

    The model encodes, retrieves and translates pictures; see docs/python.md. For a run of features,
    `backbone_weights` names its backbone's file if that moved.
    """
    from iiae_cli.inference.api import Model  # `--help` loads no torch

    return Model.load(run, device, backbone_weights)
