"""From stored rows to what the networks read, and back.

Resizing and scaling happen here, once per batch, so that a data file keeps its native resolution:
60,000 pairs at 256×256 would be 23 GB.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iiae_cli.data.resize import resize


def to_inputs(
    rows: NDArray[np.generic], size: tuple[int, int] | None, device: torch.device | str = "cpu"
) -> Tensor:
    """Stored rows as network input.

    Args:
        rows: pictures (B, H, W, C) uint8, or features (B, F) float32.
        size: (H, W) that pictures are resized to; None leaves them as they are.
        device: where the result lies; pictures travel there as uint8.

    Returns:
        Pictures (B, C, H, W) float32 in [−1, 1], or the features unchanged.
    """
    return from_stored(stored_tensor(rows).to(device, non_blocking=True), size)


def stored_tensor(rows: NDArray[np.generic]) -> Tensor:
    """Stored rows as a tensor of their own type, contiguous and safe to hand on."""
    # A copy where rows are a read-only map, or would be handed on as they are.
    copied = (
        np.array(rows, order="C")
        if rows.ndim <= 2 or not rows.flags.writeable
        else np.ascontiguousarray(rows)
    )
    return torch.from_numpy(copied)


def from_stored(rows: Tensor, size: tuple[int, int] | None) -> Tensor:
    """`to_inputs` of rows that lie on the device already; nothing waits for the device."""
    if rows.ndim == 2:
        return rows.float()
    pictures = rows.permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory
    if size is not None and tuple(pictures.shape[-2:]) != size:
        pictures = resize(pictures, size)
    return pictures.float().div_(127.5).sub_(1.0)


def to_pictures(outputs: Tensor) -> NDArray[np.uint8]:
    """Network output (B, C, H, W) in [−1, 1] as pictures (B, H, W, C) uint8."""
    scaled = outputs.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    pictures: NDArray[np.uint8] = (
        scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    )
    return pictures
