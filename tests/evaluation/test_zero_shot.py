"""Class retrieval: the fast ranking against a slow one, worked cases, ties, bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation import zero_shot
from iiae_cli.evaluation.protocols import class_baselines, class_retrieval
from iiae_cli.evaluation.zero_shot import rank_by_class


def oracle(queries, gallery, query_labels, gallery_labels):
    """Average precision, the sum over the first 200 and precisions, one query and one item at a
    time.
    """
    results = []
    for query, label in zip(queries.astype(np.float64), query_labels, strict=True):
        scores = []
        for item in gallery.astype(np.float64):
            norms = np.linalg.norm(query) * np.linalg.norm(item)
            scores.append(float(query @ item / norms) if norms else 0.0)
        ranking = sorted(range(len(gallery)), key=lambda i: (-round(scores[i], 9), i))
        relevant = [gallery_labels[i] == label for i in ranking]
        if not any(relevant):
            continue
        precisions = [sum(relevant[: i + 1]) / (i + 1) for i in range(len(ranking)) if relevant[i]]
        early = [
            sum(relevant[: i + 1]) / (i + 1) for i in range(min(200, len(ranking))) if relevant[i]
        ]
        results.append(
            (
                sum(precisions) / sum(relevant),
                sum(early) / min(200, sum(relevant)),
                sum(early) / 200,
                sum(relevant[:100]) / min(100, len(ranking)),
                sum(relevant[:200]) / min(200, len(ranking)),
            )
        )
    return np.array(results)


def names(codes):
    return [f"class {code}" for code in codes]


def case(
    seed: int, tied: bool, queries: int = 23, gallery: int = 411, classes: int = 7, width: int = 5
):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((queries, width)), rng.standard_normal((gallery, width))
    if tied:  # few distinct directions, whole groups of equal items, zero vectors
        x, y = np.round(x), np.round(y)
        x[0] = y[3] = y[4] = 0.0
    return (
        x.astype(np.float32),
        y.astype(np.float32),
        rng.integers(0, classes, queries),
        rng.integers(0, classes, gallery),
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_figure_equals_the_slow_ranking(seed, tied):
    x, y, of_x, of_y = case(seed, tied)
    found = rank_by_class(x, y, names(of_x), names(of_y))
    expected = oracle(x, y, of_x, of_y)
    columns = (
        found.average_precision,
        found.average_precision_at,
        found.average_precision_released,
        found.precision[100],
        found.precision[200],
    )
    for column, slow in zip(columns, expected.T, strict=True):
        np.testing.assert_allclose(column, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_short_keys_and_long_ones_rank_alike(seed, monkeypatch):
    """Queries that 32 bits decide and queries that they do not: the same figures as by 64 bits
    throughout.
    """
    rng = np.random.default_rng(seed)
    x, y, of_x, of_y = case(seed, False, gallery=1500)
    near = rng.integers(0, 1500, 300)
    y[rng.integers(0, 1500, 300)] = y[near] * (1 + 1e-7 * rng.standard_normal((300, 1))).astype(
        np.float32
    )
    x[:4] *= 1e20  # lengths do not matter
    undecided = watch(monkeypatch)
    found = rank_by_class(x, y, names(of_x), names(of_y))
    assert np.concatenate(undecided).any()
    monkeypatch.setattr(zero_shot, "_undecided", lambda keys, steps: np.ones(len(keys), np.bool_))
    slow = rank_by_class(x, y, names(of_x), names(of_y))
    np.testing.assert_array_equal(found.average_precision, slow.average_precision)
    assert found.figures() == slow.figures()


def watch(monkeypatch):
    """Lists of which queries 32 bits did not decide."""
    made = []
    honest = zero_shot._undecided
    monkeypatch.setattr(
        zero_shot, "_undecided", lambda *given: made.append(honest(*given)) or made[-1]
    )
    return made


@pytest.mark.parametrize("size", [200, 300, 70_000])
def test_short_keys_alone_rank_galleries_of_every_width_of_place(size, monkeypatch):
    """Places take 8, 16 or 32 bits; nothing is near a tie here, so long keys must change
    nothing.
    """
    undecided = watch(monkeypatch)
    angles = np.random.default_rng(size).permutation(size) / size * np.pi
    labels = names(np.random.default_rng(1).integers(0, 7, size))
    found = rank_by_class(
        np.array([[1.0, 0.0]]),
        np.stack([np.cos(angles), np.sin(angles)], axis=1),
        ["class 3"],
        labels,
    )
    assert not np.concatenate(undecided).any()
    relevant = np.array(labels)[np.argsort(angles)] == "class 3"
    expected = (np.cumsum(relevant) / np.arange(1, size + 1))[relevant].mean()
    np.testing.assert_allclose(found.average_precision, [expected], rtol=0, atol=1e-12)


def test_distinct_latents_seldom_need_long_keys(monkeypatch):
    undecided = watch(monkeypatch)
    x, y, of_x, of_y = case(1, False, queries=100, gallery=2000, width=64)
    rank_by_class(x, y, names(of_x), names(of_y))
    assert len(np.concatenate(undecided)) == 100 and np.concatenate(undecided).sum() < 20


def test_a_query_is_undecided_where_a_relevant_item_is_a_step_from_another():
    def undecided(*items):
        """Items: (rounded similarity, relevant)."""
        keys = np.sort(np.array([[2 * key + relevant for key, relevant in items]], np.int32))
        return bool(zero_shot._undecided(keys, np.empty((1, len(items) - 1), np.int32))[0])

    assert (
        undecided((5, 0), (5, 1), (90, 0))
        and undecided((-6, 1), (-5, 0))
        and undecided((0, 0), (1, 1), (1, 1))
    )
    assert not undecided((5, 0), (7, 1), (90, 0)) and not undecided((-9, 1), (-5, 0), (7, 1))
    assert not undecided((5, 0), (5, 0), (7, 1), (8, 1))  # their order changes nothing
    assert not undecided((4, 1)) and not undecided((-(2**30) + 1, 0), (0, 1), (2**30 - 1, 0))


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_change_nothing(threads, monkeypatch):
    x, y, of_x, of_y = case(5, True)
    whole = rank_by_class(x, y, names(of_x), names(of_y)).figures()
    monkeypatch.setattr(zero_shot, "CHUNK_BYTES", 8 * len(y) * 4)
    assert rank_by_class(x, y, names(of_x), names(of_y), threads=threads).figures() == whole


def test_a_case_worked_by_hand():
    # Ranking of the gallery for the query (1, 0): a b a b, so AP = (1/1 + 2/3) / 2.
    gallery = np.array([[1.0, 0.0], [1.0, 0.2], [1.0, 0.4], [1.0, 0.6]])
    figures = rank_by_class(np.array([[1.0, 0.0]]), gallery, ["a"], ["a", "b", "a", "b"]).figures()
    assert figures["map@all"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["map@200"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["map@200_released"] == pytest.approx((1 + 2 / 3) / 200)
    assert figures["precision@100"] == 0.5 and figures["n"] == 1


def test_the_two_cut_maps_differ_by_what_they_divide_by():
    """300 relevant items first: the cut sum is 200, so both say 1; with 50, one says 1 and the
    released 50/200.
    """
    for relevant, cut, released in ((300, 1.0, 1.0), (50, 1.0, 0.25)):
        gallery = np.stack([np.ones(400), np.linspace(0, 1, 400)], axis=1)
        labels = ["a"] * relevant + ["b"] * (400 - relevant)
        figures = rank_by_class(np.array([[1.0, 0.0]]), gallery, ["a"], labels).figures()
        assert figures["map@200"] == pytest.approx(cut) and figures[
            "map@200_released"
        ] == pytest.approx(released)


def test_a_collapsed_model_is_at_the_mercy_of_gallery_order_and_no_better():
    """All items equal: the ranking is the gallery's order, so a class that stands last has the
    worst figure.
    """
    labels = ["a"] * 10 + ["b"] * 10
    rank = rank_by_class(np.ones((2, 4)), np.ones((20, 4)), ["a", "b"], labels)
    expected_last = np.mean([(i + 1) / (10 + i + 1) for i in range(10)])
    np.testing.assert_allclose(rank.average_precision, [1.0, expected_last])


def test_equal_latents_tie_although_sums_round_differently():
    """Copies of one item at positions that a blocked matrix product sums in different orders keep
    gallery order.
    """
    rng = np.random.default_rng(0)
    item = rng.standard_normal(64)
    gallery = np.concatenate(
        [np.tile(item, (37, 1)), rng.standard_normal((1, 64)) * 1e-3 + item, np.tile(item, (26, 1))]
    )
    labels = ["a" if i % 3 == 0 else "b" for i in range(64)]
    order = [
        i for i in range(64) if i != 37
    ]  # the one that differs comes last: every copy is nearer to the item
    relevant = [labels[i] == "a" for i in [*order, 37]]
    precisions = [sum(relevant[: i + 1]) / (i + 1) for i in range(64) if relevant[i]]
    found = rank_by_class(item[None], gallery, ["a"], labels).average_precision[0]
    assert found == pytest.approx(np.mean(precisions), abs=1e-12)


def test_queries_without_a_relevant_item_are_left_out_and_counted():
    x, y, of_x, of_y = case(3, False)
    lonely = np.concatenate([x, x[:2]]), [*names(of_x), "nowhere", "nowhere"]
    assert (
        rank_by_class(x, y, names(of_x), names(of_y)).figures() | {"without_relevant": 2}
        == rank_by_class(lonely[0], y, lonely[1], names(of_y)).figures()
    )
    with pytest.raises(IiaeError, match="no query has an item"):
        rank_by_class(x, y, ["nowhere"] * len(x), names(of_y))


def test_latents_that_are_not_finite_are_refused():
    x, y, of_x, of_y = case(4, False)
    y[7, 2] = np.nan
    with pytest.raises(IiaeError, match="gallery are not all finite"):
        rank_by_class(x, y, names(of_x), names(of_y))


def test_memory_stays_far_below_the_whole_matrix_of_similarities():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4000, 8)), rng.standard_normal((4001, 8))
    labels = names(rng.integers(0, 5, 4001))
    tracemalloc.start()
    rank_by_class(x, y, labels[:4000], labels, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4001 * 8 * 0.7  # three arrays of a chunk, against one of everything


def features(seed: int, shift: float = 0.0) -> Split:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, 80)
    centres = np.random.default_rng(9).standard_normal((4, 12))
    x, y = (
        centres[codes] + 0.8 * rng.standard_normal((80, 12)) + offset for offset in (shift, -shift)
    )
    ids = [str(i) for i in range(80)]
    return Split(*(Side(rows.astype(np.float32), ids, names(codes)) for rows in (x, y)))


def test_directions_use_the_other_domain_as_gallery():
    split = features(0)
    labels = split.x.labels, split.y.labels
    figures = class_retrieval(split.x.rows, split.y.rows, *labels)
    assert figures["x_to_y"] == rank_by_class(split.x.rows, split.y.rows, *labels).figures()
    assert figures["y_to_x"] == rank_by_class(split.y.rows, split.x.rows, *labels).figures()
    assert figures["x_to_y"] != figures["y_to_x"]


def test_the_centred_baseline_takes_each_domains_training_mean_away():
    train, test = features(1, shift=5.0), features(2, shift=5.0)
    found = class_baselines(train, test)
    expected = class_retrieval(
        test.x.rows - train.x.rows.mean(axis=0, dtype=np.float64),
        test.y.rows - train.y.rows.mean(axis=0, dtype=np.float64),
        test.x.labels,
        test.y.labels,
    )
    assert found["centred"] == expected
    assert found["raw"] == class_retrieval(test.x.rows, test.y.rows, test.x.labels, test.y.labels)
    assert (
        found["centred"]["x_to_y"]["map@all"] > found["raw"]["x_to_y"]["map@all"] + 0.1
    )  # the shift is what it mends


def test_domains_of_different_width_have_no_baseline():
    train, test = features(1), features(2)
    for split in (train, test):
        split.y.rows = split.y.rows[:, :7]
    assert class_baselines(train, test) == {}
