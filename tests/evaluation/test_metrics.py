"""Figures of merit on cases worked by hand."""

import numpy as np
import pytest

from iiae_cli.evaluation.metrics import median_rank, recall_at_k

RANKS = np.array([1, 1, 2, 5, 6, 10, 11, 300])


@pytest.mark.parametrize(
    "k, hits", [(1, 2), (2, 3), (4, 3), (5, 4), (10, 6), (11, 7), (299, 7), (300, 8), (1000, 8)]
)
def test_recall_counts_partners_up_to_and_with_rank_k(k, hits):
    assert recall_at_k(RANKS, k) == hits / 8


def test_recall_of_collapsed_latents_is_one_in_the_gallery():
    assert recall_at_k(np.arange(1, 51), 1) == pytest.approx(1 / 50)


def test_median_rank():
    assert median_rank(RANKS) == 5.5
    assert median_rank(np.array([9, 1, 4])) == 4.0
    assert isinstance(median_rank(RANKS), float) and isinstance(recall_at_k(RANKS, 1), float)
