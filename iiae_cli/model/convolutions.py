"""The 4×4 convolutions of stride 2 that all picture networks consist of, and their transposes.

They are torch's, but for one thing: on a CPU in bfloat16, the gradient of the weights is computed on small grids as one
matrix product over all windows of the batch. oneDNN computes it picture by picture there, and the few cells of one
picture leave a matrix unit mostly idle: it took half of a step at 32×32. Either way sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_CELLS = 16 * 16  # of a picture's grid; on larger ones oneDNN is faster
LEAST_CHANNELS = 16  # windows of a picture's three channels cost more to gather than they save


class HalvingConv(nn.Conv2d):
    """(B, C, 2H, 2W) → (B, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve a batch."""
        height, width = input.shape[-2:]
        whole = height % 2 == 0 and width % 2 == 0
        if whole and _as_product(self, input, height * width // 4):
            return _ByProduct.of(input, self, transposed=False)
        return super().forward(input)


class DoublingConv(nn.ConvTranspose2d):
    """(B, D, H, W) → (B, C, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve a batch; `output_size` is torch's, for sizes that these networks do not have."""
        height, width = input.shape[-2:]
        if output_size is None and _as_product(self, input, height * width):
            return _ByProduct.of(input, self, transposed=True)
        return super().forward(input, output_size)


def _as_product(layer: nn.Conv2d | nn.ConvTranspose2d, inputs: Tensor, cells: int) -> bool:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
    small = cells <= MOST_CELLS and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
    return small and inputs.device.type == "cpu" and dtype == torch.bfloat16


class _ByProduct(torch.autograd.Function):
    """A convolution, or a transposed one, in bfloat16; the weights' gradient is a product."""

    @staticmethod
    def of(inputs: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, *, transposed: bool) -> Tensor:
        """What `layer` makes of inputs of any precision."""
        rounded = (
            None if one is None else one.bfloat16() for one in (inputs, layer.weight, layer.bias)
        )
        result: Tensor = _ByProduct.apply(*rounded, transposed)
        return result

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.transposed = transposed
        return (F.conv_transpose2d if transposed else F.conv2d)(
            inputs, weight, bias, stride=2, padding=1
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        gradient = gradients[0]
        # Whichever way it went, window (i, j) of the fine side belongs to cell (i, j) of the coarse one.
        fine, coarse = (gradient, inputs) if ctx.transposed else (inputs, gradient)
        windows, cells = _windows(fine), _cells(coarse)
        by_weight = (cells.t() @ windows).view(len(weight), 4, 4, -1).permute(0, 3, 1, 2)
        by_inputs = by_bias = None
        if ctx.needs_input_grad[0]:
            if ctx.transposed:
                by_cells = windows @ weight.permute(0, 2, 3, 1).reshape(len(weight), -1).t()
                by_inputs = by_cells.view(len(inputs), *inputs.shape[2:], -1).permute(0, 3, 1, 2)
            else:
                by_inputs = F.conv_transpose2d(gradient, weight, stride=2, padding=1)
        if ctx.needs_input_grad[2]:
            by_bias = gradient.sum(dim=(0, 2, 3))
        return by_inputs, by_weight, by_bias, None


def _windows(fine: Tensor) -> Tensor:
    """Every 4×4 window at stride 2 of (B, C, 2H, 2W), zeros around it: (B·H·W, 16·C), channels last."""
    padded = F.pad(fine.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return padded.unfold(1, 4, 2).unfold(2, 4, 2).permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)


def _cells(coarse: Tensor) -> Tensor:
    """(B, D, H, W) as (B·H·W, D)."""
    return coarse.permute(0, 2, 3, 1).flatten(0, 2)
