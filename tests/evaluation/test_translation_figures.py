"""L1, SSIM and what a split's translations come to, against oracles and cases worked by hand."""

import numpy as np
import pytest
import torch
from helpers import small_model
from torch import nn

from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation.retrieval import encode_pairs
from iiae_cli.evaluation.translation import Subject, l1, ssim, translation_figures
from iiae_cli.inference.trained import Encoded, TrainedModel, prior_samples

L1 = {"l1": l1}


def pictures(count=2, channels=3, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width, generator=generator) * 2 - 1


def slow_ssim(a, b):
    """Wang et al. (2004) window by window in double precision; a, b: (C, H, W) in [−1, 1]."""
    a, b = (np.asarray(picture, np.float64) / 2 + 0.5 for picture in (a, b))
    steps = np.arange(11) - 5
    weights = np.exp(-0.5 * (steps[:, None] ** 2 + steps[None] ** 2) / 1.5**2)
    weights /= weights.sum()
    windows = np.lib.stride_tricks.sliding_window_view
    p, q = (windows(picture, (11, 11), (1, 2)) for picture in (a, b))
    mp, mq = ((weights * values).sum((3, 4), keepdims=True) for values in (p, q))
    vp, vq = ((weights * (v - m) ** 2).sum((3, 4)) for v, m in ((p, mp), (q, mq)))
    cov, mp, mq = (weights * (p - mp) * (q - mq)).sum((3, 4)), mp[..., 0, 0], mq[..., 0, 0]
    luminance = (2 * mp * mq + 0.01**2) / (mp**2 + mq**2 + 0.01**2)
    return float((luminance * (2 * cov + 0.03**2) / (vp + vq + 0.03**2)).mean())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("height, width", [(16, 13), (11, 11)])
def test_ssim_equals_the_oracle_on_any_number_of_channels(channels, height, width):
    wanted = pictures(2, channels, height, width)
    translated = (wanted + 0.3 * pictures(2, channels, height, width, seed=1)).clamp(-1, 1)
    expected = [slow_ssim(a, b) for a, b in zip(translated, wanted, strict=True)]
    assert ssim(translated, wanted).tolist() == pytest.approx(expected, abs=1e-4)
    assert max(expected) < 0.99


class Adder(nn.Module):
    """Translates a shared latent (B, 1) and an exclusive one (B, 1) to their sum."""

    exclusive_dim = 1

    def decode(self, domain, shared, exclusive):
        return shared if exclusive is None else shared + exclusive


def figures_of(model, shared, exclusive, measures=L1, **options):
    """Figures of one direction: three rows, whose partners are all zero."""
    encoded = Encoded(shared_mean=shared, exclusive_mean=exclusive)
    rows = Side(np.zeros((len(shared), 1), np.float32), [str(row) for row in range(len(shared))])
    trained, pairs = TrainedModel(model, None), {"x": encoded, "y": encoded}
    subject = Subject(trained, pairs, Split(rows, rows), seed=7, batch_size=2)
    return translation_figures(subject, measures, **options)["x_to_y"]


SHARED = np.array([[1.0], [2.0], [4.0]], np.float32)
OWN = np.array([[0.5], [-2.0], [1.0]], np.float32)


def test_sampled_figures_are_the_mean_and_the_best_of_n_by_each_measure():
    def score(translated, wanted):
        return (translated - wanted).flatten(1).sum(dim=1)

    measures = {"l1": l1, "ssim": score, "lpips": score}
    found = figures_of(Adder(), SHARED, OWN, measures=measures, samples=4)
    outputs = SHARED + prior_samples(4, range(3), 1, 7).numpy()[..., 0]  # (rows, samples)
    assert found["samples"] == 4 and found["n"] == 3
    for name, each in (("l1", abs(outputs)), ("ssim", outputs), ("lpips", outputs)):
        best = each.max(1) if name == "ssim" else each.min(1)
        assert found[f"{name}_mean"] == pytest.approx(each.mean(), rel=1e-5)
        assert found[f"{name}_best"] == pytest.approx(best.mean(), rel=1e-5)


def test_a_model_without_exclusive_latents_has_nothing_to_sample():
    model = Adder()
    model.exclusive_dim = 0
    assert figures_of(model, SHARED, None, samples=3) == {"l1": pytest.approx(7 / 3), "n": 3}


def test_what_is_not_finite_is_none():
    assert figures_of(Adder(), SHARED * np.nan, OWN) == {"l1": None, "n": 3}
    assert ssim(pictures(2, 3, 10, 16), pictures(2, 3, 10, 16)).isnan().all()


@pytest.mark.parametrize(
    "family, size, shapes",
    [
        ("maps", (16, 16), {"x": (16, 16, 3), "y": (16, 16, 1)}),
        ("features", None, {"x": (7,), "y": (5,)}),
    ],
)
def test_guided_translation_equals_a_direct_computation(family, size, shapes):
    model, rng = small_model(family).train(), np.random.default_rng(14)
    rows = {domain: rng.integers(0, 256, (7, *shape)) for domain, shape in shapes.items()}
    rows = {name: values.astype("u1" if size else "f4") for name, values in rows.items()}
    split = Split(*(Side(values, [str(row) for row in range(7)]) for values in rows.values()))
    trained = TrainedModel(model, size)
    subject = Subject(trained, encode_pairs(trained, split), split, batch_size=3)
    figures = translation_figures(subject, L1)
    assert model.training  # its mode is restored
    model.eval()
    for source, target in (("x", "y"), ("y", "x")):
        with torch.no_grad():
            wanted = to_inputs(rows[target], None)
            shared = model.encode_shared(source, to_inputs(rows[source], None)).mean
            own = model.encode_exclusive(target, wanted).mean
            error = float((model.decode(target, shared, own) - wanted).abs().mean())
        assert figures[f"{source}_to_{target}"] == {"l1": pytest.approx(error, rel=1e-5), "n": 7}
