"""Nearest neighbours and partners' ranks against a slow oracle, with ties, duplicates and
crowds.
"""

import importlib.util

import numpy as np
import pytest
from helpers import refusal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iiae_cli.inference import neighbours
from iiae_cli.inference.neighbours import choose_backend, nearest, partner_ranks

METRICS = ["euclidean", "cosine"]
BACKENDS = ["torch", "sklearn", *["faiss"] * bool(importlib.util.find_spec("faiss"))]


def slow_distances(queries, gallery, metric):
    """(Q, G) straight from the definition, rounded so that equal distances are equal."""
    a, b = (rows.astype(np.longdouble) for rows in (queries[:, None], gallery[None]))
    if metric == "euclidean":
        return np.sqrt(np.square(a - b).sum(axis=2)).astype(np.float64)
    lengths = np.sqrt(np.square(a).sum(axis=2)) * np.sqrt(np.square(b).sum(axis=2))
    cosines = (a * b).sum(axis=2) / np.where(lengths > 0, lengths, 1)
    return np.round((1 - cosines).astype(np.float64), 9)


def slow_ranks(distances):
    order = np.argsort(distances, axis=1, kind="stable")
    return 1 + np.argsort(order, axis=1)[np.arange(len(order)), np.arange(len(order))]


def small_numbers(rows, width=3):
    """Many duplicates, ties and zero vectors."""
    return arrays(np.float32, (rows, width), elements=st.integers(-1, 1))


@pytest.fixture
def small_pieces(monkeypatch):
    """Slices and blocks far smaller than the data."""
    monkeypatch.setattr(neighbours, "SLICE_VALUES", 3 * 13)
    monkeypatch.setattr(neighbours, "QUERY_ROWS", 7)
    monkeypatch.setattr(neighbours, "PRODUCT_ROWS", 4)
    monkeypatch.setattr(neighbours, "SPARE", 1)
    monkeypatch.setattr(neighbours, "BLOCK_VALUES", 64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@given(small_numbers(9), small_numbers(40), st.sampled_from([1, 2, 5, 39, 40, 99]))
def test_ties_and_duplicates_stand_in_gallery_order(backend, metric, queries, gallery, k):
    expected = slow_distances(queries, gallery, metric)
    rows, distances = nearest(queries, gallery, k, metric=metric, backend=backend)
    np.testing.assert_array_equal(rows, np.argsort(expected, axis=1, kind="stable")[:, :k])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :k], atol=2e-9)
    np.testing.assert_array_equal(
        partner_ranks(queries, gallery, metric=metric), slow_ranks(expected)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_gallery_on_disk_is_searched_in_slices_and_blocks_of_every_size(
    backend, metric, dtype, small_pieces, tmp_path
):
    rng = np.random.default_rng(0)
    queries, gallery = (rng.integers(-1, 2, (rows, 3)).astype(dtype) for rows in (9, 60))
    np.save(tmp_path / "rows.npy", gallery)
    gallery = np.load(tmp_path / "rows.npy", mmap_mode="r")
    expected = slow_distances(queries, gallery, metric)
    for k in (1, 5, 60):
        rows, _ = nearest(queries, gallery, k, metric=metric, backend=backend)
        np.testing.assert_array_equal(rows, np.argsort(expected, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(
        partner_ranks(queries, gallery, metric=metric), slow_ranks(expected)
    )


def rows_of_size(kind, rows=600, width=8):
    rng = np.random.default_rng(7)
    values = rng.standard_normal((rows, width))
    if kind == "offset":  # a spread of 1 at a distance of 10,000, where float32 has three digits
        return 1e4 + values
    if kind == "clusters":  # too far from any centre for float32 to tell their members apart
        return 1e3 * rng.integers(-1, 2, (rows, 1)) + 1e-2 * values
    if kind == "outlier":
        values[rows // 2] *= 1e8
    return values * (1e-22 if kind == "tiny" else 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["scattered", "offset", "clusters", "outlier", "tiny"])
def test_numbers_of_every_size_are_ranked_by_float64_distances(kind, backend):
    queries, gallery = np.split(rows_of_size(kind), [17])
    expected = slow_distances(queries, gallery, "euclidean")
    rows, distances = nearest(queries, gallery, 5, backend=backend)
    np.testing.assert_array_equal(rows, np.argsort(expected, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :5], rtol=1e-9)
    np.testing.assert_array_equal(partner_ranks(queries, gallery), slow_ranks(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
def test_collapsed_latents_have_recall_one_in_the_gallery(metric, backend):
    collapsed = np.full((700, 4), 0.1, np.float32)
    np.testing.assert_array_equal(
        partner_ranks(collapsed, collapsed, metric=metric), np.arange(1, 701)
    )
    rows, distances = nearest(collapsed[:5], collapsed, 3, metric=metric, backend=backend)
    assert (rows == [0, 1, 2]).all() and np.abs(distances).max() < 1e-9


def test_no_queries_return_no_rows():
    rows, distances = nearest(np.empty((0, 3)), np.ones((4, 3)), 2)
    assert rows.shape == distances.shape == (0, 2)
    assert partner_ranks(np.empty((0, 3)), np.ones((4, 3))).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e16])
def test_values_that_are_not_finite_or_huge_are_refused(value):
    good, bad = np.ones((3, 2), np.float32), np.array([[1.0, 2.0], [3.0, value]])
    assert "latents of queries are not all finite" in refusal(nearest, bad, good, 1).message
    assert "latents of the gallery are not all finite" in refusal(nearest, good, bad, 1).message
    assert "not all finite" in refusal(partner_ranks, good[:1], bad).message


def test_auto_takes_scikit_learn_for_small_sizes_and_faiss_or_torch_for_large(monkeypatch):
    assert choose_backend("auto", 10, 300, 64) == "sklearn"
    assert choose_backend("auto", 10_000, 10_000, 8192) == "torch"
    for spec, backend in ((None, "torch"), (object(), "faiss")):
        monkeypatch.setattr(neighbours, "find_spec", lambda name, spec=spec: spec)
        assert choose_backend("auto", 10_000, 10_000, 64) == backend
    assert choose_backend("faiss", 1, 1, 1) == "faiss"


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    error = refusal(nearest, np.ones((1, 2)), np.ones((3, 2)), 1, backend="faiss")
    assert error.message == "faiss is not installed" and "pip install" in error.hint
