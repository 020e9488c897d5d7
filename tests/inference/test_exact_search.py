"""Neighbours under hostile numbers: every backend equals an oracle in extended precision, others bit for bit."""

from importlib.util import find_spec
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch

from iiae_cli.common.errors import IiaeError
from iiae_cli.inference import bounds, retrieval
from iiae_cli.inference.bounds import Frame, Products, count_nearer, near_pairs, prepare
from iiae_cli.inference.retrieval import choose_backend, nearest, partner_ranks
from iiae_cli.inference.ties import TIE, Found, pair_distances

METRICS = ("euclidean", "cosine")
BACKENDS = ["sklearn", "torch", *(["faiss"] if find_spec("faiss") else [])]


def slow_distances(queries, gallery, metric):
    """(Q, G) in extended precision, straight from the definition."""
    a, b = (rows.astype(np.longdouble) for rows in (queries, gallery))
    if metric == "euclidean":
        return np.stack([np.square(b - one).sum(axis=1) for one in a])
    lengths = np.sqrt(np.square(a).sum(axis=1))[:, None] * np.sqrt(np.square(b).sum(axis=1))[None]
    dots = np.stack([(b * one).sum(axis=1) for one in a])
    return 1 - dots / np.where(lengths > 0, lengths, 1)


def slow_order(line, k, metric):
    """The first k rows by distance; of those that tie with the k-th or are nearer, a run of ties stands by row."""
    rows = sorted(range(len(line)), key=lambda row: (line[row], row))
    last = line[rows[k - 1]]
    rows = [
        row for row in rows if line[row] <= last + (TIE * last if metric == "euclidean" else TIE)
    ]
    runs = [[rows[0]]]
    for before, row in pairwise(rows):
        room = TIE * line[before] if metric == "euclidean" else TIE
        if line[row] - line[before] <= room:
            runs[-1].append(row)
        else:
            runs.append([row])
    return [row for run in runs for row in sorted(run)][:k]


def slow_rank(line, partner, metric):
    own = line[partner]
    room = TIE * own if metric == "euclidean" else TIE
    nearer = sum(one < own - room for one in line)
    return 1 + nearer + sum(abs(one - own) <= room for one in line[:partner])


def duplicates(rng, rows, width):
    return rng.standard_normal((5, width))[rng.integers(0, 5, rows)]


def near_ties(rng, rows, width):
    """Copies of one vector, each off by a few units of the last place of float32."""
    return rng.standard_normal(width) * (1 + 1e-7 * rng.integers(-3, 4, (rows, width)))


def offset(rng, rows, width):
    return 1e6 + rng.standard_normal((rows, width))


def far_clusters(rng, rows, width):
    """Clusters so far from any common centre that float32 products cannot tell their members apart."""
    return 1e4 * rng.integers(-1, 2, (rows, 1)) + 1e-2 * rng.standard_normal((rows, width))


def outlier(rng, rows, width):
    values = rng.standard_normal((rows, width))
    values[rows // 2] *= 1e8
    return values


def zeros(rng, rows, width):
    return rng.standard_normal((rows, width)) * rng.integers(0, 2, (rows, 1))


def grid(rng, rows, width):
    return rng.integers(-1, 2, (rows, width))


def tiny(rng, rows, width):
    return 1e-22 * rng.standard_normal((rows, width))


def huge(rng, rows, width):
    return 1e30 * rng.standard_normal((rows, width))


def scales(rng, rows, width):
    """Lengths from 10⁻¹⁵ to 10⁻⁰, so that squares of some vanish beside others'."""
    return rng.standard_normal((rows, width)) * 10.0 ** -rng.integers(0, 16, (rows, 1))


DRAWS = [duplicates, near_ties, offset, far_clusters, outlier, zeros, grid, tiny, huge, scales]


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks, blocks, pieces and batches far smaller than the data."""
    monkeypatch.setattr(retrieval, "CHUNK_BYTES", 4 * 8 * 37)
    monkeypatch.setattr(retrieval, "QUERY_ROWS", 7)
    monkeypatch.setattr(bounds, "PIECE", 3)
    monkeypatch.setattr(bounds, "PAIRS", 60)
    monkeypatch.setattr(bounds, "BLOCK_VALUES", 64)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backends_equal_the_oracle(draw, metric, dtype, small_chunks):
    rng = np.random.default_rng(7)
    drawn = draw(rng, 140, 8).astype(dtype)
    queries, gallery = drawn[:17], drawn[17:]
    slow = slow_distances(queries, gallery, metric)
    for k in (1, 5, 123):
        order = [slow_order(line, k, metric) for line in slow]
        answers = [
            nearest(queries, gallery, k, metric=metric, backend=backend) for backend in BACKENDS
        ]
        for rows, distances in answers:
            np.testing.assert_array_equal(rows, order)
            np.testing.assert_array_equal(distances, answers[0][1])
            expected = np.take_along_axis(slow, rows, axis=1)
            expected = np.sqrt(expected) if metric == "euclidean" else expected
            np.testing.assert_allclose(
                distances, expected.astype(np.float64), rtol=1e-12, atol=1e-14
            )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("draw", DRAWS)
def test_partner_ranks_equal_the_oracle(draw, metric, small_chunks):
    drawn = draw(np.random.default_rng(8), 130, 8).astype(np.float32)
    queries, gallery = drawn[:60], drawn[60:]
    slow = slow_distances(queries, gallery, metric)
    expected = [slow_rank(line, row, metric) for row, line in enumerate(slow)]
    for backend in BACKENDS:
        assert partner_ranks(queries, gallery, metric=metric, backend=backend).tolist() == expected


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_rows(metric, backend):
    """More dimensions than one piece of a product, partners among many near misses."""
    rng = np.random.default_rng(3)
    gallery = rng.standard_normal((70, 1100)).astype(np.float32)
    queries = (gallery[:40] + 0.5 * rng.standard_normal((40, 1100))).astype(np.float32)
    slow = slow_distances(queries, gallery, metric)
    rows, _ = nearest(queries, gallery, 9, metric=metric, backend=backend)
    np.testing.assert_array_equal(rows, np.argsort(slow, axis=1, kind="stable")[:, :9])
    ranks = partner_ranks(queries, gallery, metric=metric, backend=backend)
    np.testing.assert_array_equal(ranks, 1 + (slow < np.diagonal(slow)[:, None]).sum(axis=1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ["torch", "sklearn"])
def test_bounds_hold(draw, metric, dtype, engine):
    """Every block of products lies between the two bounds that it promises."""
    if engine == "sklearn" and dtype == torch.float32:
        pytest.skip("scikit-learn multiplies in float64 alone")
    drawn = draw(np.random.default_rng(1), 90, 50).astype(np.float32)
    queries, gallery = drawn[:20], drawn[20:]
    frame = Frame.around(metric, gallery.mean(axis=0, dtype=np.float64), float(np.abs(drawn).max()))
    products = Products(
        prepare(queries, frame, dtype), prepare(gallery, frame, dtype), metric, engine
    )
    true = slow_distances(queries, gallery, metric) * (
        frame.scale**2 if metric == "euclidean" else 1
    )
    for start, block in products.blocks():
        inside = min(block.shape[1], len(gallery) - start)
        lower = block[:, :inside].numpy().astype(np.longdouble) + products.row.numpy()[:, None]
        slack = (
            products.slack_row.numpy()[:, None]
            + products.slack_column[start : start + inside].numpy()
        )
        distances = true[:, start : start + inside]
        floor = 1e-32 * 50  # what float32 loses by underflow
        assert (lower <= distances + floor).all()
        assert (distances <= lower + slack + floor).all()
        assert torch.isinf(block[:, inside:]).all()


def test_float32_bounds_let_few_pairs_through():
    """A bound that lets everything pass would be as right, and useless."""
    rng = np.random.default_rng(2)
    queries, gallery = (rng.standard_normal((rows, 64)).astype(np.float32) for rows in (100, 5000))
    frame = Frame.around("euclidean", np.zeros(64), 5.0)
    products = Products(
        prepare(queries, frame, torch.float32), prepare(gallery, frame, torch.float32), "euclidean"
    )
    left, _ = near_pairs(products, 10, np.full(100, np.inf))
    assert 1000 <= len(left) < 1100
    own = (
        pair_distances(queries, gallery, (np.arange(100), np.arange(100)), "euclidean")
        * frame.scale**2
    )
    assert len(count_nearer(products, own, own)[1][0]) < 200


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gallery_on_disk_is_searched_as_in_memory(backend, dtype, tmp_path, small_chunks):
    rng = np.random.default_rng(4)
    queries, gallery = (
        rng.standard_normal((9, 8)).astype(np.float32),
        rng.standard_normal((150, 8)).astype(dtype),
    )
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        stored = file.create_dataset("rows", data=gallery, chunks=(16, 8), compression="gzip")
        rows, distances = nearest(queries, stored, 4, backend=backend)
        ranks = partner_ranks(queries, stored, backend=backend)
    expected = nearest(queries, gallery.astype(np.float64), 4, backend="sklearn")
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(distances, expected[1])
    np.testing.assert_array_equal(ranks, partner_ranks(queries, gallery, backend="sklearn"))


def test_a_distance_depends_on_its_two_rows_alone():
    rng = np.random.default_rng(5)
    for width in (1, 2, 7, 8, 9, 64, 513, 9000):
        gallery = rng.standard_normal((40, width)).astype(np.float32)
        query = rng.standard_normal((1, width)).astype(np.float32)
        for metric in METRICS:
            everything = pair_distances(
                query, gallery, (np.zeros(40, np.int64), np.arange(40)), metric
            )
            for row in range(40):
                alone = pair_distances(
                    query, gallery[row : row + 1], (np.zeros(1, np.int64),) * 2, metric
                )
                assert alone[0] == everything[row]


def test_a_crowd_of_equal_rows_takes_no_crowd_of_memory(monkeypatch):
    """4,000 equal rows for 50 queries are 200,000 candidates; what is kept is k of each query's."""
    monkeypatch.setattr(bounds, "PAIRS", 10_000)
    sizes = []
    merged = Found.merged
    monkeypatch.setattr(
        Found,
        "merged",
        lambda self, other, *rest: sizes.append(len(other.row)) or merged(self, other, *rest),
    )
    gallery = np.ones((4_000, 4), np.float32)
    rows, distances = nearest(gallery[:50], gallery, 3, backend="torch")
    assert (rows == [0, 1, 2]).all() and not distances.any()
    assert max(sizes) <= 10_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_are_not_finite_are_refused(backend, value):
    good, bad = np.ones((3, 2), np.float32), np.array([[1.0, 2.0], [3.0, value]])
    with pytest.raises(IiaeError, match="latents of queries are not all finite"):
        nearest(bad, good, 1, backend=backend)
    with pytest.raises(IiaeError, match="latents of the gallery are not all finite"):
        nearest(good, bad, 1, backend=backend)
    with pytest.raises(IiaeError, match="latents of the gallery are not all finite"):
        partner_ranks(good[:1], bad, backend=backend)


def test_auto_takes_scikit_learn_for_small_sizes_and_torch_for_large():
    assert choose_backend("auto", 10, 300, 64) == "sklearn"
    assert choose_backend("auto", 10_000, 10_000, 64) == "torch"
    assert choose_backend("auto", 1, 1_000_000, 64) == "torch"
    assert choose_backend("faiss", 1, 1, 1) == "faiss"


def test_products_in_bfloat16_are_noticed(monkeypatch):
    """A program may have told torch to multiply float32 in fewer bits; bounds would be wrong there."""
    assert bounds.single_is_exact.__wrapped__()
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: torch.mm(a.bfloat16(), b.bfloat16()).float()
    )
    assert not bounds.single_is_exact.__wrapped__()


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(IiaeError, match="faiss is not installed") as caught:
        nearest(np.ones((1, 2)), np.ones((3, 2)), 1, backend="faiss")
    assert (
        caught.value.hint
        == "pip install 'iiae-cli[faiss]', or leave out --backend faiss and --approximate"
    )
