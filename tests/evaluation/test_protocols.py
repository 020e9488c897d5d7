"""The paper's measurements on tiny arrays worked by hand, and against direct computation."""

import numpy as np
import pytest
import torch
from helpers import small_model
from torch.distributions import Normal, kl_divergence

from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation.protocols import (
    EncodedPairs,
    baseline_vectors,
    encode_pairs,
    exclusive_kl,
    paired_retrieval,
    retrieval_figures,
)
from iiae_cli.evaluation.translation import Subject, translation_figures
from iiae_cli.inference.trained import Encoded, TrainedModel
from iiae_cli.model.iiae import IIAE
from iiae_cli.model.networks import FeatureNetworks


def random_pictures(seed, rows=12, shape=(32, 32, 3), low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (rows, *shape)).astype(np.uint8)


def names(rows):
    return [f"test/{row}" for row in range(rows)]


def split_of(x, y, **more):
    return Split(Side(x, names(len(x))), Side(y, names(len(y))), **more)


def encoded(**arrays):
    return Encoded(**{name: np.asarray(values, np.float32) for name, values in arrays.items()})


# ---- retrieval


def test_retrieval_figures_by_hand():
    x, y = np.array([[0.0], [3.0], [5.0]]), np.array([[1.0], [10.0], [2.0]])
    figures = retrieval_figures(x, y)
    # |x − y|: 0 → 1 10 2 (partner 1st); 3 → 2 7 1 (3rd); 5 → 4 5 3 (1st)
    assert figures["x_to_y"] == {
        "recall@1": pytest.approx(2 / 3),
        "recall@5": 1.0,
        "recall@10": 1.0,
        "median_rank": 1.0,
        "n": 3,
    }
    # 1 → 1 2 4 (1st); 10 → 10 7 5 (2nd); 2 → 2 1 3 (3rd)
    assert figures["y_to_x"]["recall@1"] == pytest.approx(1 / 3)
    assert figures["y_to_x"]["median_rank"] == 2.0
    assert set(figures) == {"x_to_y", "y_to_x"}


def test_retrieval_figures_of_collapsed_latents_are_chance_at_every_cut():
    latents = np.full((12, 4), 0.1)
    figures = retrieval_figures(latents, latents)
    for direction in ("x_to_y", "y_to_x"):
        assert figures[direction]["recall@1"] == pytest.approx(1 / 12)
        assert figures[direction]["recall@5"] == pytest.approx(5 / 12)
        assert figures[direction]["recall@10"] == pytest.approx(10 / 12)
        assert figures[direction]["median_rank"] == 6.5


def test_retrieval_figures_use_the_metric():
    x = np.array([[1.0, 0.0], [0.0, 1.0]])
    y = np.array([[90.0, 1.0], [0.1, 0.2]])
    assert retrieval_figures(x, y, "cosine")["x_to_y"]["recall@1"] == 1.0
    assert retrieval_figures(x, y, "euclidean")["x_to_y"]["recall@1"] == 0.5


# ---- the training-free baseline


def test_baseline_vectors_are_z_scored_grey_pixels():
    rows = random_pictures(0, rows=3)
    grey = rows @ np.array([0.299, 0.587, 0.114])
    expected = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    np.testing.assert_allclose(baseline_vectors(rows), expected.reshape(3, -1), atol=1e-5)


def test_baseline_vectors_ignore_brightness_and_contrast():
    rows = random_pictures(1, high=100)
    np.testing.assert_allclose(baseline_vectors(rows), baseline_vectors(2 * rows + 30), atol=1e-5)
    np.testing.assert_allclose(baseline_vectors(rows), -baseline_vectors(255 - rows), atol=1e-5)


def test_baseline_vectors_of_grey_and_of_rgb_agree():
    grey = random_pictures(2, shape=(32, 32, 1))
    np.testing.assert_allclose(
        baseline_vectors(grey), baseline_vectors(grey.repeat(3, axis=3)), atol=1e-5
    )


def test_baseline_vectors_of_a_constant_picture_are_zero():
    rows = np.full((2, 32, 32, 3), (37, 201, 90), np.uint8)
    rows[1] = 93
    assert np.abs(baseline_vectors(rows)).max() < 1e-9


def test_baseline_vectors_bring_every_size_to_one():
    rows = random_pictures(3, rows=2, shape=(64, 64, 1))
    blocks = rows[..., 0].reshape(2, 32, 2, 32, 2).mean((2, 4))
    small = np.rint(blocks).astype(np.uint8)[..., None]
    np.testing.assert_allclose(baseline_vectors(rows), baseline_vectors(small), atol=0.05)
    assert baseline_vectors(random_pictures(4, rows=2, shape=(8, 11, 3))).shape == (2, 1024)
    assert baseline_vectors(random_pictures(4, rows=2), side=4).shape == (2, 16)


def test_baseline_vectors_keep_the_order_of_many_rows():
    rows = random_pictures(5, rows=1030, shape=(4, 4, 1))
    whole = baseline_vectors(rows, side=4)
    assert whole.shape == (1030, 16)
    np.testing.assert_allclose(
        whole[[0, 1023, 1024, 1029]], baseline_vectors(rows[[0, 1023, 1024, 1029]], side=4)
    )
    assert baseline_vectors(rows[:0]).shape == (0, 1024)


def test_baseline_vectors_of_features_are_the_features():
    features = np.random.default_rng(6).normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_array_equal(baseline_vectors(features), features.astype(np.float64))


# ---- Table 2


def test_the_baseline_finds_exact_copies_whatever_the_model_says():
    pictures = random_pictures(7)
    collapsed = encoded(shared_mean=np.ones((12, 4)), exclusive_mean=np.ones((12, 2)))
    figures = paired_retrieval(
        EncodedPairs(collapsed, collapsed), split_of(pictures, pictures.copy())
    )
    for direction in ("x_to_y", "y_to_x"):
        assert figures["baseline"][direction]["recall@1"] == 1.0
        assert figures["shared"][direction]["recall@1"] == pytest.approx(1 / 12)
        assert figures["exclusive"][direction]["recall@1"] == pytest.approx(1 / 12)


def test_shared_and_exclusive_means_are_measured_separately():
    axis = np.eye(6)
    x = encoded(shared_mean=axis, exclusive_mean=axis)
    y = encoded(shared_mean=axis, exclusive_mean=np.roll(axis, 1, axis=0))
    figures = paired_retrieval(
        EncodedPairs(x, y), split_of(random_pictures(8, 6), random_pictures(9, 6))
    )
    assert figures["shared"]["x_to_y"]["recall@1"] == 1.0
    assert figures["exclusive"]["x_to_y"]["recall@1"] == 0.0


def test_exclusive_and_baseline_figures_are_left_out_where_there_are_none():
    latents = encoded(shared_mean=np.eye(4))
    rows = np.random.default_rng(10)
    x, y = rows.normal(size=(4, 5)).astype(np.float32), rows.normal(size=(4, 6)).astype(np.float32)
    assert set(paired_retrieval(EncodedPairs(latents, latents), split_of(x, y))) == {"shared"}
    assert set(paired_retrieval(EncodedPairs(latents, latents), split_of(x, x))) == {
        "shared",
        "baseline",
    }


def test_the_metric_applies_to_features_and_correlation_to_pictures():
    axis = np.eye(2)
    pairs = EncodedPairs(encoded(shared_mean=axis), encoded(shared_mean=axis))
    x = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    y = np.array([[90.0, 1.0], [0.1, 0.2]], np.float32)
    for metric, recall in (("cosine", 1.0), ("euclidean", 0.5)):
        assert (
            paired_retrieval(pairs, split_of(x, y), metric)["baseline"]["x_to_y"]["recall@1"]
            == recall
        )
    pictures = random_pictures(11, rows=2, high=100)
    dim = split_of(pictures, pictures // 2 + 100)
    for metric in ("cosine", "euclidean"):
        assert paired_retrieval(pairs, dim, metric)["baseline"]["x_to_y"]["recall@1"] == 1.0


def test_encode_pairs_encodes_each_domain_by_its_own_networks():
    model = small_model("maps")
    split = split_of(random_pictures(12, 5, (16, 16, 3)), random_pictures(13, 5, (16, 16, 1)))
    pairs = encode_pairs(TrainedModel(model, (16, 16)), split, batch_size=2)
    model.eval()
    with torch.no_grad():
        for domain in ("x", "y"):
            inputs = to_inputs(split.side(domain).rows, None)
            shared, exclusive = (
                model.encode_shared(domain, inputs),
                model.encode_exclusive(domain, inputs),
            )
            found = pairs.of(domain)
            np.testing.assert_allclose(found.shared_mean, shared.mean.flatten(1), atol=1e-5)
            np.testing.assert_allclose(found.shared_logvar, shared.logvar.flatten(1), atol=1e-5)
            np.testing.assert_allclose(found.exclusive_mean, exclusive.mean, atol=1e-5)
            np.testing.assert_allclose(found.exclusive_logvar, exclusive.logvar, atol=1e-5)


# ---- guided translation


@pytest.mark.parametrize("exclusive_latents", [True, False])
def test_guided_translation_equals_a_direct_computation_at_every_batch_size(exclusive_latents):
    model = small_model("maps", exclusive_dim=3 if exclusive_latents else 0)
    split = split_of(random_pictures(14, 7, (16, 16, 3)), random_pictures(15, 7, (16, 16, 1)))
    pairs = encode_pairs(TrainedModel(model, (16, 16)), split)
    model.eval()
    expected = {}
    with torch.no_grad():
        for source, target in (("x", "y"), ("y", "x")):
            shared = model.encode_shared(source, to_inputs(split.side(source).rows, None)).mean
            wanted = to_inputs(split.side(target).rows, None)
            exclusive = model.encode_exclusive(target, wanted).mean if exclusive_latents else None
            decoded = model.decode(target, shared, exclusive)
            expected[f"{source}_to_{target}"] = float(
                np.abs(decoded.numpy() - wanted.numpy()).mean()
            )
    assert expected["x_to_y"] != pytest.approx(expected["y_to_x"], rel=1e-3)
    for batch_size in (1, 3, 256):
        figures = translation_figures(
            Subject(TrainedModel(model, (16, 16)), pairs, split, batch_size=batch_size)
        )
        assert {name: one["l1"] for name, one in figures.items()} == pytest.approx(
            expected, rel=1e-5
        )
        assert [one["n"] for one in figures.values()] == [7, 7]


def test_guided_translation_of_features_and_the_models_mode():
    torch.manual_seed(4)
    model = IIAE(FeatureNetworks(6, shared_dim=4), {"x": 7, "y": 5}, exclusive_dim=3)
    values = np.random.default_rng(16)
    split = split_of(
        values.normal(size=(4, 7)).astype(np.float32), values.normal(size=(4, 5)).astype(np.float32)
    )
    model.train()
    pairs = encode_pairs(TrainedModel(model, None), split)
    figures = translation_figures(Subject(TrainedModel(model, None), pairs, split, batch_size=3))
    assert model.training  # given back as it came
    model.eval()
    with torch.no_grad():
        decoded = model.decode(
            "y",
            model.encode_shared("x", torch.from_numpy(split.x.rows)).mean,
            model.encode_exclusive("y", torch.from_numpy(split.y.rows)).mean,
        )
    assert figures["x_to_y"]["l1"] == pytest.approx(
        float(np.abs(decoded.numpy() - split.y.rows).mean()), rel=1e-5
    )


# ---- exclusive latents


def test_exclusive_kl_is_torchs():
    draw = np.random.default_rng(17)
    x = encoded(exclusive_mean=draw.normal(size=(9, 4)), exclusive_logvar=draw.normal(size=(9, 4)))
    y = encoded(exclusive_mean=np.zeros((9, 4)), exclusive_logvar=np.zeros((9, 4)))
    posterior = Normal(
        torch.from_numpy(x.exclusive_mean), torch.exp(torch.from_numpy(x.exclusive_logvar) / 2)
    )
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
    figures = exclusive_kl(EncodedPairs(x, y))
    assert figures["x"] == pytest.approx(float(expected), rel=1e-5)
    assert figures["y"] == 0.0
    assert exclusive_kl(EncodedPairs(Encoded(), Encoded())) == {}
