"""Dropout and batch norm for a batch that several ranks share, equal to what one process computes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.model.gaussian import Part, full


class SliceDropout(nn.Module):
    """Dropout whose mask is this rank's rows of the whole batch's, drawn as one process would draw it."""

    def __init__(self, rate: float, part: Part) -> None:
        super().__init__()
        self.rate = rate
        self.part = part

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop in training; (B, …) of the whole (N, …)."""
        if not self.training:
            return inputs
        layout = torch.contiguous_format
        if inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last  # values are drawn in the order of memory
        whole = torch.empty(
            (self.part.whole, *inputs.shape[1:]), dtype=inputs.dtype, device=inputs.device
        )
        mask = F.dropout(torch.ones_like(whole, memory_format=layout), self.rate)
        return inputs * mask[self.part.first : self.part.first + len(inputs)]


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all ranks' rows, on any device (torch's own runs on GPUs alone)."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its sums across ranks are no part of a compiled graph
    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (B, C, …) by the statistics of every rank's rows; inference is as ever."""
        if not self.training:
            return super().forward(inputs)
        normed, mean, variance, count = _Normalise.apply(inputs, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert (
                self.running_mean is not None
                and self.running_var is not None
                and self.momentum is not None
            )
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        result: Tensor = normed
        return result


class _Normalise(torch.autograd.Function):
    """y = (x − mean) / √(variance + eps) · weight + bias with both moments over all ranks; one sum more backwards."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = full(inputs)
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
        channels = values.shape[1]
        rows = values.new_tensor([values.numel() / channels])
        own = values.mean(axes)
        squares = (values - own.view(shape)).square().sum(axes)
        # Two passes rather than E[x²] − E[x]²: every rank's own mean first, then the deviations from everybody's.
        total = total_of(torch.cat([own * rows, rows]))
        count = total[-1]
        mean = total[:-1] / count
        variance = total_of(squares + rows * (own - mean).square()) / count
        scale = torch.rsqrt(variance + eps)
        standard = (values - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(standard, scale, weight, count)
        ctx.axes, ctx.shape = axes, shape
        normed = standard * weight.view(shape) + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, count)
        return normed.to(inputs.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        standard, scale, weight, count = ctx.saved_tensors
        axes, shape = ctx.axes, ctx.shape
        gradient = full(gradients[0])
        of_bias, of_weight = gradient.sum(axes), (gradient * standard).sum(axes)
        sum_bias, sum_weight = (total_of(torch.cat([of_bias, of_weight])) / count).chunk(2)
        back = gradient - sum_bias.view(shape) - standard * sum_weight.view(shape)
        return (
            (back * (scale * weight).view(shape)).to(gradients[0].dtype),
            of_weight,
            of_bias,
            None,
        )


def replace_layers(module: nn.Module, part: Part, *, synchronised: bool) -> None:
    """Put these layers in the places of ordinary ones; names, weights and statistics stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, SliceDropout(child.p, part))
        elif synchronised and isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            norm = SynchronisedBatchNorm(child.num_features, child.eps, child.momentum)
            norm.weight, norm.bias = child.weight, child.bias
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            norm.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, norm)
        else:
            replace_layers(child, part, synchronised=synchronised)


class _Whole(torch.autograd.Function):
    """This rank's rows (B, …) to the whole batch's (N, …); backwards, what all ranks want of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, part: Part) -> Tensor:
        ctx.rows = slice(part.first, part.first + len(rows))
        whole = rows.new_zeros((part.whole, *rows.shape[1:]))
        whole[ctx.rows] = rows
        return total_of(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return total_of(gradients[0].contiguous().clone())[ctx.rows], None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # as above
def whole_of(rows: Tensor, part: Part) -> Tensor:
    """The whole batch's rows (N, …), every rank giving its own (B, …); differentiable."""
    whole: Tensor = _Whole.apply(rows, part)
    return whole


def total_of(values: Tensor) -> Tensor:
    """Sum over all ranks, in place."""
    with peers():
        dist.all_reduce(values)
    return values


@contextmanager
def peers(what: str = "another rank has ended") -> Iterator[None]:
    """A lost connection is no bug of this rank's.

    Raises:
        IiaeError: instead of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(
            r"^\[[^]]*\] |\. This is typically.*", "", str(error).strip().splitlines()[0]
        )  # gloo's chatter
        raise IiaeError(
            f"{what}: {reason}", "see what the other ranks said; then run again with --resume"
        ) from error
