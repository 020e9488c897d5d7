"""L1, SSIM and what a split's translations come to, against slow oracles and cases worked by hand."""

import numpy as np
import pytest
import torch

from iiae_cli.evaluation.quality import (
    FEATURE_MEASURES,
    PICTURE_MEASURES,
    TranslationQuality,
    l1,
    ssim,
    ssim_window,
)


def pictures(count=3, channels=3, height=16, width=16, seed=0):
    return (
        torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))
        * 2
        - 1
    )


def slow_ssim(a, b, window, sigma):
    """Wang et al. (2004) window by window in double precision; a, b: (C, H, W) in [−1, 1]."""
    a, b = (np.asarray(one, np.float64) / 2 + 0.5 for one in (a, b))
    steps = np.arange(window) - window // 2
    weights = np.exp(-0.5 * (steps[:, None] ** 2 + steps[None] ** 2) / sigma**2)
    weights /= weights.sum()
    values = []
    for channel in range(a.shape[0]):
        for row in range(a.shape[1] - window + 1):
            for column in range(a.shape[2] - window + 1):
                p = a[channel, row : row + window, column : column + window]
                q = b[channel, row : row + window, column : column + window]
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                values.append(
                    (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
                    / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2))
                )  # fmt: skip
    return np.mean(values)


# ---- L1


def test_l1_is_the_mean_difference_of_each_row():
    wanted = torch.zeros(2, 3, 4, 5)
    translated = wanted.clone()
    translated[0, 0] = 0.5
    translated[1] = -1.0
    torch.testing.assert_close(l1(translated, wanted), torch.tensor([0.5 / 3, 1.0]))
    assert l1(torch.ones(2, 7), torch.zeros(2, 7)).tolist() == [1.0, 1.0]


# ---- SSIM


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("height, width", [(16, 13), (11, 11)])
def test_ssim_equals_the_oracle_on_any_number_of_channels(channels, height, width):
    wanted = pictures(2, channels, height, width)
    translated = (wanted + 0.3 * pictures(2, channels, height, width, seed=1)).clamp(-1, 1)
    values = ssim(translated, wanted)
    assert values.shape == (2,)
    for value, a, b in zip(values.tolist(), translated, wanted, strict=True):
        assert value == pytest.approx(slow_ssim(a, b, 11, 1.5), abs=1e-9)
        assert value < 0.99


@pytest.mark.parametrize(
    "height, width, window", [(10, 10, 9), (9, 30, 9), (8, 8, 7), (6, 4, 3), (2, 2, 1), (1, 5, 1)]
)
def test_the_window_shrinks_with_small_pictures(height, width, window):
    assert ssim_window(height, width) == window
    a, b = pictures(1, 3, height, width), pictures(1, 3, height, width, seed=1)
    assert ssim(a, b).item() == pytest.approx(
        slow_ssim(a[0], b[0], window, 1.5 * window / 11), abs=1e-9
    )


def test_ssim_is_one_for_equal_pictures_and_scaled_from_minus_one():
    same = pictures(2)
    torch.testing.assert_close(ssim(same, same), torch.ones(2, dtype=torch.float64))
    # Even pictures, worked by hand: 2·¾·¼ + C1 over ¾² + ¼² + C1, on the [0, 1] scale.
    value = ssim(torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), -0.5)).item()
    assert value == pytest.approx((2 * 0.75 * 0.25 + 1e-4) / (0.75**2 + 0.25**2 + 1e-4), abs=1e-12)


def test_even_areas_lose_nothing_to_rounding():
    """float32 would be off by up to 0.001."""
    for value in np.linspace(-1, 1, 21):
        even = torch.full((1, 3, 20, 20), float(value))
        assert ssim(even, even).item() == pytest.approx(1, abs=1e-9)


def test_ssim_equals_the_librarys():
    from torchmetrics.functional.image import structural_similarity_index_measure

    wanted = pictures(2, 3, 40, 30).double()
    translated = (wanted + 0.3 * pictures(2, 3, 40, 30, seed=1)).clamp(-1, 1)
    _, windows = structural_similarity_index_measure(
        translated / 2 + 0.5,
        wanted / 2 + 0.5,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    inside = windows[..., 5:-5, 5:-5].flatten(1).mean(dim=1)  # the others look at a mirrored border
    torch.testing.assert_close(ssim(translated, wanted), inside, rtol=0, atol=1e-7)


def test_measures_are_of_single_pictures_whatever_the_batch():
    a, b = pictures(5), pictures(5, seed=1)
    for measure in PICTURE_MEASURES.values():
        alone = torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(measure(a, b), alone)


# ---- a whole split


def test_guided_figures_are_means_over_inputs_whatever_the_batches():
    wanted, translated = pictures(7), pictures(7, seed=1)
    quality = TranslationQuality(PICTURE_MEASURES)
    for start in (0, 3, 6):
        quality.add(translated[start : start + 3], wanted[start : start + 3])
    figures = quality.figures()
    assert list(figures) == ["l1", "ssim", "n"] and figures["n"] == 7
    assert figures["l1"] == pytest.approx((translated - wanted).abs().mean().item(), rel=1e-6)
    assert figures["ssim"] == pytest.approx(ssim(translated, wanted).mean().item(), rel=1e-6)


def test_sampled_figures_are_the_mean_and_the_best_of_n():
    def score(translated, wanted):
        return (translated - wanted).flatten(1).sum(dim=1)

    # two inputs, three samples each
    translated = torch.tensor([[[1.0], [4.0], [7.0]], [[2.0], [0.0], [1.0]]])
    quality = TranslationQuality(
        {"l1": score, "ssim": score, "lpips": score, "lpips_vgg": score}, samples=3
    )
    quality.add(translated[:1], torch.zeros(1, 1))
    quality.add(translated[1:], torch.zeros(1, 1))
    figures = quality.figures()
    assert figures["samples"] == 3 and figures["n"] == 2
    for name, best in (("l1", 0.5), ("ssim", 4.5), ("lpips", 0.5), ("lpips_vgg", 0.5)):
        assert figures[f"{name}_mean"] == pytest.approx(2.5)
        assert figures[f"{name}_best"] == best


def test_each_measure_chooses_its_own_best_sample():
    wanted = pictures(4)
    near = [wanted + 0.05, pictures(4, seed=1), wanted * 0.9]
    quality = TranslationQuality(PICTURE_MEASURES, samples=3)
    quality.add(torch.stack(near, dim=1), wanted)
    figures = quality.figures()
    by_hand = torch.stack([ssim(one, wanted) for one in near])
    assert figures["ssim_best"] == pytest.approx(by_hand.max(dim=0).values.mean().item(), rel=1e-6)
    by_hand = torch.stack([l1(one, wanted) for one in near])
    assert figures["l1_best"] == pytest.approx(by_hand.min(dim=0).values.mean().item(), rel=1e-6)


def test_features_have_an_l1():
    quality = TranslationQuality(FEATURE_MEASURES, samples=2)
    quality.add(torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]), torch.zeros(1, 2))
    assert quality.figures() == {"samples": 2, "l1_mean": 0.75, "l1_best": 0.5, "n": 1}


def test_what_is_not_finite_or_was_never_measured_is_none():
    quality = TranslationQuality(PICTURE_MEASURES)
    assert quality.figures() == {"l1": None, "ssim": None, "n": 0}
    quality.add(pictures(0), pictures(0))
    quality.add(pictures(2) * float("nan"), pictures(2))
    assert quality.figures() == {"l1": None, "ssim": None, "n": 2}


@pytest.mark.parametrize(
    "samples, shape", [(None, (2, 3, 8, 9)), (None, (1, 3, 8, 8)), (3, (2, 2, 3, 8, 8))]
)
def test_outputs_of_another_shape_are_refused(samples, shape):
    with pytest.raises(ValueError, match="outputs of shape"):
        TranslationQuality(PICTURE_MEASURES, samples).add(torch.zeros(shape), pictures(2, 3, 8, 8))
    with pytest.raises(ValueError):
        TranslationQuality(PICTURE_MEASURES, samples=0)
