"""Which queries the report shows, and how it counts ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation.protocols import EncodedPairs
from iiae_cli.inference.trained import Encoded
from iiae_cli.report.examples import class_directions, paired_directions, rank_bins, rank_chart
from iiae_cli.report.samples import spread


def pairs_of(x, y):
    return EncodedPairs(*(Encoded(shared_mean=np.asarray(rows, np.float32)) for rows in (x, y)))


def split_of(labels_x=None, labels_y=None):
    ids = ["0", "1", "2"]
    return Split(Side(np.zeros((3, 1)), ids, labels_x), Side(np.zeros((3, 1)), ids, labels_y))


def shown(examples):
    """Id and tone of every item."""
    return [[(item.identity, item.tone) for item in row] for row in examples.rows]


def test_successes_and_the_worst_failures_are_shown():
    # x₀ and x₁ find their partners first; x₂'s lies behind both others, at rank 3.
    pairs = pairs_of([[0], [10], [4]], [[1], [10], [-20]])
    (forward, _), chart = paired_directions(pairs, split_of(), "euclidean")
    hits, misses = forward.examples
    assert [row[0].identity for row in hits.rows] == ["0", "1"]
    assert shown(misses) == [[("2", ""), ("2", ""), ("0", "wrong"), ("1", "wrong"), ("2", "right")]]
    assert misses.headers == ["query", "its partner", "rank 1", "rank 2", "rank 3"]
    assert misses.rows[0][0].note == "partner at rank 3"
    assert misses.rows[0][4].note == "✓ partner, distance 24"
    assert "x → y: 2 at rank 1, 1 at rank 3–5" in chart.text


def test_classes_are_listed_from_the_worst_and_shown_once():
    pairs = pairs_of([[1, 0], [1, 0.1], [0, 1]], [[1, 0], [0, 1], [1, 1]])
    forward, _ = class_directions(pairs, split_of(["a", "b", "nowhere"], ["a", "b", "b"]))
    # a: its one item is first, 1. b: its items are second and third, (1/2 + 2/3) / 2.
    assert forward.classes is not None
    assert [(name, count) for name, _, count in forward.classes.rows] == [("b", 1), ("a", 1)]
    assert [value for _, value, _ in forward.classes.rows] == pytest.approx([7 / 12, 1.0])
    (best,) = forward.examples  # both classes are among the best, so there are no worst ones
    assert [row[0].identity for row in best.rows] == ["0", "1"]
    assert [tone for _, tone in shown(best)[1][1:]] == ["wrong", "right", "right"]


def test_spread_reaches_both_ends():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(2, 8).tolist() == [0, 1]
    assert spread(0, 3).tolist() == []


@given(st.integers(1, 10**7))
def test_every_rank_has_one_bin(largest):
    bins = rank_bins(largest)
    assert bins[0] == (1, 1) and bins[-1][0] <= largest <= bins[-1][1]
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(bins))


def test_the_histogram_has_a_text():
    chart = rank_chart({"x → y": np.array([1, 1, 4]), "y → x": np.array([1, 2, 2])})
    counts = "x → y: 2 at rank 1, 1 at rank 3–5; y → x: 1 at rank 1, 2 at rank 2"
    assert chart.text == f"Histogram. {counts}."
