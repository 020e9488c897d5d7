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
    """Loads a run's kept weights [IIAE_RUN, else runs/latest].

    The model encodes, retrieves and translates pictures; see docs/python.md. `backbone_weights` is
    the path of a feature run's backbone, if it moved.
    """
    from iiae_cli.inference.api import Model  # `--help` loads no torch

    return Model.load(run, device, backbone_weights)
