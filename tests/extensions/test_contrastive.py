"""InfoNCE against its definition, number by number."""

import math

import torch
from helpers import small_batch

from iiae_cli.extensions.contrastive import contrastive_term, info_nce


def slow_info_nce(x, y, temperature):
    """Mean over both directions of −log softmax of the partner's cosine / τ, by query."""

    def cosine(a, b):
        a, b = a.flatten().tolist(), b.flatten().tolist()
        return sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(
            sum(p * p for p in a) * sum(q * q for q in b)
        )

    total = 0.0
    for queries, gallery in ((x, y), (y, x)):
        for row in range(len(queries)):
            scores = [math.exp(cosine(queries[row], other) / temperature) for other in gallery]
            total -= math.log(scores[row] / sum(scores))
    return total / (2 * len(x))


def test_info_nce_is_its_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, 3, 2, 2, generator=draw) for _ in range(2))
    for temperature in (0.1, 0.5, 2.0):
        assert abs(float(info_nce(x, y, temperature)) - slow_info_nce(x, y, temperature)) < 1e-4


def test_it_is_symmetric_blind_to_length_and_knows_chance() -> None:
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(6, 4, generator=draw) for _ in range(2))
    torch.testing.assert_close(info_nce(x, y, 0.2), info_nce(y, x, 0.2))
    torch.testing.assert_close(info_nce(x, y, 0.2), info_nce(3 * x, 0.5 * y, 0.2))
    assert abs(float(info_nce(torch.ones(8, 4), torch.ones(8, 4), 0.1)) - math.log(8)) < 1e-5
    assert float(info_nce(torch.eye(8), torch.eye(8), 0.01)) < 1e-6


def test_its_gradient_brings_partners_together() -> None:
    draw = torch.Generator().manual_seed(2)
    x, y = (torch.randn(6, 4, generator=draw, requires_grad=True) for _ in range(2))
    before = torch.cosine_similarity(x, y).mean()
    info_nce(x, y, 0.5).backward()
    assert x.grad is not None and y.grad is not None
    assert torch.cosine_similarity(x - x.grad, y - y.grad).mean() > before


def test_the_term_compares_the_whole_batchs_shared_means() -> None:
    posteriors, decoded = small_batch()
    x, y = (posteriors.shared[domain].mean for domain in ("x", "y"))
    alone = contrastive_term(7.0, 0.3).values(posteriors, decoded)
    torch.testing.assert_close(alone, info_nce(x, y, 0.3))
    doubled = contrastive_term(7.0, 0.3, gather=lambda rows: rows.repeat(2, 1, 1, 1))
    expected = info_nce(torch.cat([x, x]), torch.cat([y, y]), 0.3)
    torch.testing.assert_close(doubled.values(posteriors, decoded), expected)
