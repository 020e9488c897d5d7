"""Exact nearest neighbours against a slow oracle: ties, duplicates, chunks, collapsed latents."""

import math
from importlib.util import find_spec

import numpy as np
import pytest

from iiae_cli.inference import retrieval
from iiae_cli.inference.retrieval import nearest, partner_ranks

METRICS = ("euclidean", "cosine")
BACKENDS = (
    "sklearn",
    "torch",
    pytest.param(
        "faiss",
        marks=pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed"),
    ),
)


def slow_distance(a, b, metric):
    """Straight from the definition, in plain Python; rounded so that equal distances are equal."""
    if metric == "euclidean":
        return round(math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True))), 9)
    lengths = math.sqrt(sum(p * p for p in a)) * math.sqrt(sum(q * q for q in b))
    return round(1 - sum(p * q for p, q in zip(a, b, strict=True)) / lengths, 9) if lengths else 1.0


def slow_nearest(queries, gallery, k, metric):
    rows, distances = [], []
    for query in queries.tolist():
        ranked = sorted(
            (slow_distance(query, one, metric), row) for row, one in enumerate(gallery.tolist())
        )[:k]
        rows.append([row for _, row in ranked])
        distances.append([distance for distance, _ in ranked])
    return np.array(rows), np.array(distances)


def slow_partner_ranks(queries, gallery, metric):
    whole, _ = slow_nearest(queries, gallery, len(gallery), metric)
    return np.array([order.tolist().index(partner) + 1 for partner, order in enumerate(whole)])


def crowded(seed, rows, width=3):
    """Small whole numbers: many exact duplicates, ties and zero vectors."""
    return np.random.default_rng(seed).integers(-1, 2, (rows, width)).astype(np.float32)


def scattered(seed, rows, width=6):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("draw", [crowded, scattered])
def test_nearest_agrees_with_the_oracle(draw, metric, backend):
    for seed in range(4):
        queries, gallery = draw(seed, 11), draw(seed + 100, 23)
        for k in (1, 2, 7, 23):
            rows, distances = nearest(queries, gallery, k, metric=metric, backend=backend)
            expected_rows, expected_distances = slow_nearest(queries, gallery, k, metric)
            assert rows.shape == distances.shape == (11, k)
            np.testing.assert_array_equal(rows, expected_rows)
            np.testing.assert_allclose(distances, expected_distances, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("draw", [crowded, scattered])
def test_partner_ranks_agree_with_the_oracle(draw, metric, backend):
    for seed in range(6):
        queries, gallery = draw(seed, 19), draw(seed + 100, 19)
        ranks = partner_ranks(queries, gallery, metric=metric, backend=backend)
        np.testing.assert_array_equal(ranks, slow_partner_ranks(queries, gallery, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_partner_ranks_are_positions_in_nearest(metric):
    queries, gallery = crowded(1, 15), crowded(2, 15)
    rows, _ = nearest(queries, gallery, 15, metric=metric)
    ranks = partner_ranks(queries, gallery, metric=metric)
    np.testing.assert_array_equal(rows[np.arange(15), ranks - 1], np.arange(15))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
def test_chunks_change_nothing(metric, backend, monkeypatch):
    queries, gallery = crowded(3, 13), crowded(4, 13)
    whole = nearest(queries, gallery, 5, metric=metric, backend=backend)
    ranks = partner_ranks(queries, gallery, metric=metric, backend=backend)
    for chunk, block in ((1, 1), (4 * 3 * 4, 5), (4 * 3 * 12, 2)):
        monkeypatch.setattr(retrieval, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(retrieval, "QUERY_ROWS", block)
        rows, distances = nearest(queries, gallery, 5, metric=metric, backend=backend)
        np.testing.assert_array_equal(rows, whole[0])
        np.testing.assert_array_equal(distances, whole[1])
        np.testing.assert_array_equal(
            partner_ranks(queries, gallery, metric=metric, backend=backend), ranks
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
def test_asking_for_more_than_the_gallery_gives_the_gallery(metric, backend):
    rows, distances = nearest(scattered(0, 4), scattered(1, 3), 50, metric=metric, backend=backend)
    assert rows.shape == distances.shape == (4, 3)
    assert (np.sort(rows, axis=1) == [0, 1, 2]).all()
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-3, 1234.567])
@pytest.mark.parametrize("width", [1, 64])
def test_collapsed_latents_are_found_by_chance(width, value, metric, backend):
    """Identical latents tie in gallery order: recall 1/G, whatever a matrix product rounds to."""
    latents = np.full((40, width), value, np.float32)
    np.testing.assert_array_equal(
        partner_ranks(latents, latents, metric=metric, backend=backend), np.arange(1, 41)
    )
    rows, _ = nearest(latents[:3], latents, 5, metric=metric, backend=backend)
    np.testing.assert_array_equal(rows, np.tile(np.arange(5), (3, 1)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
def test_duplicates_of_random_vectors_come_in_gallery_order(metric, backend):
    """Equal rows that no short binary fraction expresses, in several places of the gallery."""
    base = scattered(5, 6, 100)
    gallery = base[[3, 0, 5, 3, 1, 0, 2, 4, 3]]
    rows, distances = nearest(base[3:4], gallery, 4, metric=metric, backend=backend)
    assert rows[0, :3].tolist() == [0, 3, 8]
    np.testing.assert_allclose(distances[0, :3], 0, atol=1e-5)
    ranks = partner_ranks(gallery, gallery, metric=metric, backend=backend)
    assert ranks.tolist() == [1, 1, 1, 2, 1, 2, 1, 1, 3]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
def test_ties_that_rounding_would_break_are_ties(metric, backend):
    """Permutations of one vector are equally far from a constant one, though floating sums of them differ."""
    values = np.random.default_rng(9).normal(size=50)
    gallery = np.stack([np.random.default_rng(row).permutation(values) for row in range(30)])
    queries = np.full((30, 50), 0.1)
    sums = {float(np.einsum("i,i", 0.1 * np.ones(50), row)) for row in gallery}
    assert len(sums) > 1  # rounding does tell them apart
    rows, _ = nearest(queries[:2], gallery, 12, metric=metric, backend=backend)
    np.testing.assert_array_equal(rows, np.tile(np.arange(12), (2, 1)))
    np.testing.assert_array_equal(
        partner_ranks(queries, gallery, metric=metric, backend=backend), np.arange(1, 31)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_vector_is_at_cosine_distance_one_from_everything(backend):
    queries, gallery = (
        np.array([[0.0, 0.0], [1.0, 0.0]]),
        np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]),
    )
    rows, distances = nearest(queries, gallery, 4, metric="cosine", backend=backend)
    assert rows.tolist() == [[0, 1, 2, 3], [1, 0, 2, 3]]
    np.testing.assert_allclose(distances, [[1, 1, 1, 1], [0, 1, 1, 2]], atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distances_are_euclidean_lengths_and_cosine_complements(backend):
    queries, gallery = np.array([[0.0, 3.0]]), np.array([[4.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    rows, distances = nearest(queries, gallery, 3, metric="euclidean", backend=backend)
    assert rows.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(distances, [[2, 3, 5]])
    rows, distances = nearest(queries, gallery, 3, metric="cosine", backend=backend)
    assert rows.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(distances, [[0, 1 - math.sqrt(0.5), 1]], atol=1e-12)


def test_cosine_ignores_lengths_and_euclidean_does_not():
    queries, gallery = np.array([[1.0, 0.1]]), np.array([[50.0, 5.0], [1.0, 0.3]])
    assert nearest(queries, gallery, 1, metric="cosine")[0].tolist() == [[0]]
    assert nearest(queries, gallery, 1, metric="euclidean")[0].tolist() == [[1]]


@pytest.mark.parametrize("metric", METRICS)
def test_close_but_different_latents_are_told_apart(metric):
    """Float32 latents that differ in the fourth digit are no tie."""
    base = scattered(6, 30, 16)
    gallery = base + 1e-4 * scattered(7, 30, 16)
    everything = np.concatenate([base + 1e-3 * scattered(8, 30, 16), gallery])
    rows, _ = nearest(base, everything, 1, metric=metric)
    np.testing.assert_array_equal(rows[:, 0], np.arange(30, 60))
    assert (partner_ranks(base, gallery, metric=metric) == 1).all()


@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_latents_are_compared_in_double(metric):
    queries, gallery = ((300 * scattered(seed, 8, 50)).astype(np.float16) for seed in (1, 2))
    rows, distances = nearest(queries, gallery, 3, metric=metric)
    expected_rows, expected = slow_nearest(
        queries.astype(np.float64), gallery.astype(np.float64), 3, metric
    )
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


def test_no_queries_give_no_rows():
    rows, distances = nearest(np.empty((0, 3)), scattered(0, 4, 3), 2)
    assert rows.shape == distances.shape == (0, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gallery_larger_than_the_queries_holds_partners_in_its_first_rows(backend):
    queries = np.array([[0.0], [10.0]])
    gallery = np.array([[1.0], [14.0], [0.5], [9.0], [11.0]])
    assert partner_ranks(queries, gallery, backend=backend).tolist() == [2, 3]
