"""How good translated pictures are: L1, SSIM and LPIPS per picture, and what a whole split comes to.

Measures are functions of two batches that give one number per picture, so that the best of N samples can be chosen
picture by picture.

SSIM is written here and tested against torchmetrics'. In float32 that one is off by up to 0.001 on evenly coloured
areas, of which these data sets have plenty (a variance is the difference of nearly equal numbers), in double precision
it takes 20 times as long as this on a CPU, and its releases differ in whether they count windows over a mirrored
border. A separable window is two matrix products, exact in double precision and without a border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]

SSIM_WINDOW = 11  # pixels; a Gaussian of σ = 1.5
SSIM_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # (K · data range)²
_HIGHER_IS_BETTER = frozenset({"ssim"})


def l1(translated: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference per row (B,), of pictures (B, C, H, W) in [−1, 1] or features (B, F)."""
    return (translated.float() - wanted.float()).abs().flatten(1).mean(dim=1)


def ssim(translated: Tensor, wanted: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) per picture (B,), float64: the mean over channels and windows.

    Gaussian window of 11 pixels and σ = 1.5, K1 = 0.01, K2 = 0.03, pictures scaled from [−1, 1] to [0, 1], data range
    1; only windows that lie inside the picture count, and every channel counts alike, whatever their number. A picture
    with a side under 11 pixels gets the largest odd window that fits and σ in proportion (`ssim_window`); such figures
    compare among themselves only.

    Args:
        translated: (B, C, H, W) in [−1, 1].
        wanted: likewise.
    """
    # Apple's GPUs have no double precision.
    device = torch.device("cpu") if translated.device.type == "mps" else translated.device
    a, b = ((pictures.to(device).double() + 1) / 2 for pictures in (translated, wanted))
    height, width = a.shape[-2:]
    window = ssim_window(height, width)
    down, across = (_window_means(side, window).to(device) for side in (height, width))

    def local_mean(values: Tensor) -> Tensor:
        return down @ values @ across.T

    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a + b * b) - mean_a**2 - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return (luminance * structure).flatten(1).mean(dim=1)


def ssim_window(height: int, width: int) -> int:
    """Side of SSIM's window in pixels: 11, or the largest odd number that fits into a smaller picture."""
    side = min(SSIM_WINDOW, height, width)
    return side - (side + 1) % 2


def _window_means(side: int, window: int) -> Tensor:
    """The matrix (side − window + 1, side) whose row i weighs pixels i … i + window − 1 by the Gaussian."""
    steps = torch.arange(window, dtype=torch.float64) - window // 2
    gaussian = torch.exp(-0.5 * (steps * SSIM_WINDOW / (SSIM_SIGMA * window)) ** 2)
    means = torch.zeros(side - window + 1, side, dtype=torch.float64)
    for row in range(len(means)):
        means[row, row : row + window] = gaussian / gaussian.sum()
    return means


PICTURE_MEASURES: Mapping[str, Measure] = {"l1": l1, "ssim": ssim}
FEATURE_MEASURES: Mapping[str, Measure] = {"l1": l1}


class TranslationQuality:
    """Gathers a split's figures batch by batch.

    Guided translation has one output per input and each figure is the mean over inputs. Sampled translation has N: the
    figure's `_mean` is over all outputs, its `_best` over inputs of the best among N (the smallest L1 or LPIPS, the
    largest SSIM, each measure choosing for itself).

    Args:
        measures: by name, `PICTURE_MEASURES` and those of `lpips.lpips_measures`.
        samples: N; None for guided translation.
    """

    def __init__(self, measures: Mapping[str, Measure], samples: int | None = None) -> None:
        if samples is not None and samples < 1:
            raise ValueError(f"{samples} samples")
        self.measures = dict(measures)
        self.samples = samples
        self.count = 0
        self._sums = {f"{name}{suffix}": 0.0 for name in self.measures for suffix in self._suffixes}

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("",) if self.samples is None else ("_mean", "_best")

    def add(self, translated: Tensor, wanted: Tensor) -> None:
        """Count a batch in.

        Args:
            translated: (B, C, H, W) or (B, F) guided; (B, N, C, H, W) or (B, N, F) sampled.
            wanted: (B, C, H, W) in [−1, 1], or features (B, F).

        Raises:
            ValueError: shapes that do not fit.
        """
        outputs = translated[:, None] if self.samples is None else translated
        expected = (len(wanted), self.samples or 1, *wanted.shape[1:])
        if tuple(outputs.shape) != expected:
            raise ValueError(f"outputs of shape {tuple(outputs.shape)}, expected {expected}")
        if not len(wanted):
            return
        for name, measure in self.measures.items():
            # One sample after the other: N times the batch need not fit into memory.
            columns = [measure(outputs[:, k], wanted) for k in range(outputs.shape[1])]
            values = torch.stack(columns, dim=1).cpu().double()
            best = values.amax(dim=1) if name in _HIGHER_IS_BETTER else values.amin(dim=1)
            for suffix, per_input in zip(self._suffixes, (values.mean(dim=1), best), strict=False):
                self._sums[name + suffix] += float(per_input.sum())
        self.count += len(wanted)

    def figures(self) -> dict[str, float | int | None]:
        """`l1`, `ssim`, …, `n` guided; `samples`, `l1_mean`, `l1_best`, …, `n` sampled. None where not finite."""
        figures: dict[str, float | int | None] = (
            {} if self.samples is None else {"samples": self.samples}
        )
        for name, total in self._sums.items():
            mean = total / self.count if self.count else math.nan
            figures[name] = mean if math.isfinite(mean) else None
        return {**figures, "n": self.count}
