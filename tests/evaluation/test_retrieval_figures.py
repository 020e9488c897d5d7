"""Retrieval by pair and by class: worked by hand, against slow oracles, ties, bounded memory."""

import numpy as np
import pytest
import torch
from helpers import refusal
from torch.distributions import Normal, kl_divergence

from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation import retrieval
from iiae_cli.evaluation.figures import figure_tables
from iiae_cli.evaluation.retrieval import (
    baseline_vectors,
    baselines,
    class_retrieval,
    exclusive_kl,
    paired_retrieval,
    rank_by_class,
    retrieval_figures,
)
from iiae_cli.inference.trained import Encoded


def random_pictures(seed, rows=12, shape=(32, 32, 3), low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (rows, *shape)).astype(np.uint8)


def split_of(x, y):
    return Split(*(Side(rows, [f"test/{row}" for row in range(len(rows))]) for rows in (x, y)))


def encoded(**arrays):
    return Encoded(**{name: np.asarray(values, np.float32) for name, values in arrays.items()})


# ---- by pair


def test_retrieval_figures_by_hand():
    # |x − y|: 0 → 1 10 2 (partner 1st); 3 → 2 7 1 (3rd); 5 → 4 5 3 (1st)
    # 1 → 1 2 4 (1st); 10 → 10 7 5 (2nd); 2 → 2 1 3 (3rd)
    figures = retrieval_figures(np.array([[0.0], [3.0], [5.0]]), np.array([[1.0], [10.0], [2.0]]))
    found = {"recall@5": 1.0, "recall@10": 1.0, "n": 3}
    assert figures == {
        "x_to_y": {"recall@1": pytest.approx(2 / 3), "median_rank": 1.0, **found},
        "y_to_x": {"recall@1": pytest.approx(1 / 3), "median_rank": 2.0, **found},
    }
    collapsed = retrieval_figures(*np.zeros((2, 12, 3)))["x_to_y"]  # ranks 1 to 12, by ties
    hits = {"recall@1": 1 / 12, "recall@5": 5 / 12, "recall@10": 10 / 12}
    assert collapsed == pytest.approx({**hits, "median_rank": 6.5, "n": 12})


def test_shared_and_exclusive_means_are_measured_beside_what_baselines_there_are():
    axis, rolled = np.eye(4), np.roll(np.eye(4), 1, axis=0)
    both = encoded(shared_mean=axis, exclusive_mean=axis)
    pairs = {"x": both, "y": encoded(shared_mean=axis, exclusive_mean=rolled)}
    x, y = np.ones((4, 5), np.float32), np.ones((4, 6), np.float32)
    figures = paired_retrieval(pairs, split_of(x, y), "euclidean", split_of(x, y))
    assert set(figures) == {"shared", "exclusive"}  # widths differ
    assert figures["shared"]["x_to_y"]["recall@1"] == 1.0
    assert figures["exclusive"]["x_to_y"]["recall@1"] == 0.0
    alone = dict.fromkeys("xy", encoded(shared_mean=axis))
    assert set(paired_retrieval(alone, split_of(x, x), "cosine")) == {"shared", "baseline"}


# ---- the training-free baseline


def test_baseline_vectors_are_z_scored_grey_pixels_whatever_brightness_contrast_and_channels():
    rows, pale = random_pictures(0, rows=3, high=100), random_pictures(2, shape=(32, 32, 1))
    vectors, grey = baseline_vectors(rows), rows @ np.array([0.299, 0.587, 0.114])
    expected = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    np.testing.assert_allclose(vectors, expected.reshape(3, -1), atol=1e-5)
    np.testing.assert_allclose(vectors, baseline_vectors(2 * rows + 30), atol=1e-5)
    np.testing.assert_allclose(vectors, -baseline_vectors(255 - rows), atol=1e-5)
    coloured = baseline_vectors(pale.repeat(3, axis=3))
    np.testing.assert_allclose(baseline_vectors(pale), coloured, atol=1e-5)
    rows[1:] = (37, 201, 90)
    assert np.abs(baseline_vectors(rows)[1:]).max() < 1e-9


def test_the_metric_applies_to_features_and_correlation_to_pictures():
    latents = encoded(shared_mean=np.eye(2))
    pairs, pictures = {"x": latents, "y": latents}, random_pictures(11, rows=2, high=100)
    x = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    y = np.array([[90.0, 1.0], [0.1, 0.2]], np.float32)
    np.testing.assert_array_equal(baseline_vectors(y), y.astype(np.float64))
    for metric, recall in (("cosine", 1.0), ("euclidean", 0.5)):
        features = paired_retrieval(pairs, split_of(x, y), metric)["baseline"]
        dim = paired_retrieval(pairs, split_of(pictures, pictures // 2 + 100), metric)["baseline"]
        assert features["x_to_y"]["recall@1"] == recall and dim["x_to_y"]["recall@1"] == 1.0


# ---- by class


def oracle(queries, gallery, query_labels, gallery_labels):
    """The figures of every query, one item at a time, in the order of `rank_by_class`."""
    results = []
    for query, label in zip(queries.astype(np.float64), query_labels, strict=True):
        lengths = np.linalg.norm(query) * np.linalg.norm(gallery.astype(np.float64), axis=1)
        scores = np.round(gallery @ query / np.where(lengths > 0, lengths, 1), 9)
        ranking = np.argsort(-scores, kind="stable")
        hits = [gallery_labels[item] == label for item in ranking]
        if any(hits):
            precisions = [sum(hits[: i + 1]) / (i + 1) if hit else 0 for i, hit in enumerate(hits)]
            early, within = sum(precisions[:200]), {k: sum(hits[:k]) for k in (100, 200)}
            mean, limited = sum(precisions) / sum(hits), early / min(200, sum(hits))
            precision = [count / min(k, len(hits)) for k, count in within.items()]
            results.append([mean, limited, early / 200, *precision])
    return np.array(results)


def names(codes):
    return [f"class {code}" for code in codes]


def case(seed, tied=False, queries=23, gallery=411):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((queries, 5)), rng.standard_normal((gallery, 5))
    if tied:  # few distinct directions, whole groups of equal items, zero vectors
        x, y = np.round(x), np.round(y)
        x[0] = y[3] = y[4] = 0.0
    of_x, of_y = rng.integers(0, 7, queries), rng.integers(0, 7, gallery)
    return x.astype(np.float32), y.astype(np.float32), names(of_x), names(of_y)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed, gallery", [(0, 411), (1, 411), (2, 90)])
def test_every_figure_equals_the_slow_ranking(seed, gallery, tied):
    x, y, of_x, of_y = case(seed, tied, gallery=gallery)
    x[:4] *= 1e10  # lengths do not matter
    found = rank_by_class(x, y, of_x, of_y)
    measures = "map@all map@200 map@200_released precision@100 precision@200"
    assert list(found) == measures.split()
    expected = oracle(x, y, of_x, of_y)
    np.testing.assert_allclose(np.stack(list(found.values()), 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_change_nothing(threads, monkeypatch):
    sides = case(5, tied=True)
    whole = rank_by_class(*sides)
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", 8 * len(sides[1]) * 4)
    again = rank_by_class(*sides, threads=threads)
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(("nearer", "expected"), [(1e-11, 1.0), (1e-14, 0.5)])
def test_similarities_rank_down_to_ten_to_the_minus_twelve(nearer, expected):
    angles = np.array([1.0, 1.0 - nearer])  # the second item is of the query's class
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = rank_by_class(np.array([[1.0, 0.0]]), gallery, ["a"], ["b", "a"])
    assert found["map@all"] == [expected]


def test_equal_latents_tie_although_sums_round_differently():
    """Copies of an item keep gallery order wherever a blocked product summed them."""
    rng = np.random.default_rng(0)
    item = rng.standard_normal(64)
    gallery = np.tile(item, (64, 1))
    gallery[37] += rng.standard_normal(64) * 1e-3  # every copy is nearer
    labels = ["a" if i % 3 == 0 else "b" for i in range(64)]
    relevant = np.array([labels[i] == "a" for i in range(64) if i != 37] + [labels[37] == "a"])
    expected = (np.cumsum(relevant) / np.arange(1, 65))[relevant].mean()
    found = rank_by_class(item[None], gallery, ["a"], labels)
    assert found["map@all"] == pytest.approx([expected], abs=1e-12)


def labelled(x, y, of_x, of_y):
    sides = ((x, of_x), (y, of_y))
    return Split(*(Side(rows, [str(n) for n in range(len(rows))], of) for rows, of in sides))


def test_queries_without_a_relevant_item_are_left_out_and_counted():
    x, y, of_x, of_y = case(3)
    whole = class_retrieval(x, y, labelled(x, y, of_x, of_y))["x_to_y"]
    lonely = labelled(np.concatenate([x, x[:2]]), y, [*of_x, "nowhere", "nowhere"], of_y)
    found = class_retrieval(lonely.x.rows, y, lonely)["x_to_y"]
    assert found == {**whole, "without_relevant": 2}
    assert "no query" in refusal(rank_by_class, x, y, ["nowhere"] * len(x), of_y).message
    y[7, 2] = np.nan
    error = refusal(rank_by_class, x, y, of_x, of_y)
    assert error.message.startswith("latents of the gallery are not all finite")


def features(seed, shift=5.0):
    """80 rows of four classes, whose domains lie 2 · `shift` apart."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, 80)
    centres = np.random.default_rng(9).standard_normal((4, 12))
    noise = 0.8 * rng.standard_normal((2, 80, 12))
    rows = [centres[codes] + noise[0] + shift, centres[codes] + noise[1] - shift]
    return labelled(*(values.astype(np.float32) for values in rows), *[names(codes)] * 2)


def test_each_direction_has_the_other_domain_as_gallery_and_means_over_queries():
    split = features(0, shift=0.0)
    figures = class_retrieval(split.x.rows, split.y.rows, split)
    for name, sides in (("x_to_y", (split.x, split.y)), ("y_to_x", (split.y, split.x))):
        by_query = rank_by_class(*(side.rows for side in sides), *(side.labels for side in sides))
        means = {measure: values.mean() for measure, values in by_query.items()}
        assert figures[name] == {**means, "n": 80, "without_relevant": 0}
    assert figures["x_to_y"] != figures["y_to_x"]


def test_the_centred_baseline_subtracts_each_domains_training_mean():
    train, test = features(1), features(2)
    raw, moved = test.x.rows, test.side("y").rows
    means = [train.side(domain).rows.mean(axis=0, dtype=np.float64) for domain in "xy"]
    centred = raw - means[0], moved - means[1]
    found = baselines(test, train)
    assert found["baseline_centred"] == class_retrieval(*centred, test)
    assert found["baseline_raw"] == class_retrieval(raw, moved, test)
    by_raw, by_centred = (found[name]["x_to_y"]["map@all"] for name in found)
    assert by_centred > by_raw + 0.1  # the shift is what it mends
    pairs = dict.fromkeys("xy", encoded(shared_mean=raw))
    paired = paired_retrieval(pairs, test, "cosine", train)
    assert paired["baseline_centred"] == retrieval_figures(*centred, "cosine")
    (table,) = figure_tables({"retrieval": paired})
    assert [row[0] for row in table.rows[::2]] == ["baseline", "baseline_centred", "shared"]
    test.y.rows = moved[:, :7]
    assert baselines(test, train) == {}  # widths differ


# ---- exclusive latents


def test_exclusive_kl_is_torchs():
    draw = np.random.default_rng(17)
    x = encoded(exclusive_mean=draw.normal(size=(9, 4)), exclusive_logvar=draw.normal(size=(9, 4)))
    y = encoded(exclusive_mean=np.zeros((9, 4)), exclusive_logvar=np.zeros((9, 4)))
    mean, logvar = torch.from_numpy(x.exclusive_mean), torch.from_numpy(x.exclusive_logvar)
    divergence = kl_divergence(Normal(mean, torch.exp(logvar / 2)), Normal(0.0, 1.0))
    figures = exclusive_kl({"x": x, "y": y})
    assert figures == pytest.approx({"x": float(divergence.sum(1).mean()), "y": 0}, rel=1e-5)
    assert exclusive_kl({"x": Encoded(), "y": Encoded()}) == {}
