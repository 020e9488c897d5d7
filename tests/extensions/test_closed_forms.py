"""Closed forms against scikit-learn, and on data whose shared part or classes are known."""

import numpy as np
import pytest
import scipy.linalg

from iiae_cli.extensions import closed_forms
from iiae_cli.extensions.closed_forms import canonical_maps, thin_svd, two_covariance_map


def pairs(count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shared (N, 3), x (N, 12) and y (N, 9), which mix the shared part and add noise."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, 3))
    seen = []
    for width in (12, 9):
        mixing, noise = rng.standard_normal((3, width)), rng.standard_normal((width, width))
        seen.append(
            shared @ mixing
            + 0.5 * rng.standard_normal((count, width)) @ noise
            + rng.standard_normal(width)
        )
    return shared, seen[0], seen[1]


def applied(rows: np.ndarray, affine: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return rows @ affine[0].T + affine[1]


def test_it_finds_scikit_learns_directions() -> None:
    from sklearn.cross_decomposition import CCA

    _, x, y = pairs()
    ours = [applied(*one) for one in zip((x, y), canonical_maps(x, y, 3, 1e-9), strict=True)]
    theirs = CCA(3, max_iter=5000, tol=1e-10).fit_transform(x, y)
    for mine, other in zip(ours, theirs, strict=True):
        correlation = np.abs(np.corrcoef(mine.T, other.T)[:3, 3:])
        np.testing.assert_allclose(np.diag(correlation), 1.0, atol=1e-4)


def test_outputs_are_centred_of_unit_variance_and_partners_agree() -> None:
    _, x, y = pairs()
    code_x, code_y = (
        applied(*one) for one in zip((x, y), canonical_maps(x, y, 4, 0.1), strict=True)
    )
    assert code_x.shape == code_y.shape == (600, 4)
    np.testing.assert_allclose([code_x.mean(axis=0), code_y.mean(axis=0)], 0.0, atol=1e-9)
    assert abs(np.mean(code_x**2) - 1.0) < 1e-9
    between = np.square(code_x[:, None] - code_y[None]).sum(axis=-1)
    assert np.mean(between.argmin(axis=1) == np.arange(600)) > 0.1  # chance 1/600
    spread = code_x.var(axis=0)
    assert all(spread[:-1] >= spread[1:])  # the surer, the longer


@pytest.mark.parametrize("dim", [2, 9, 20])
def test_any_number_of_dimensions(dim: int) -> None:
    _, x, y = pairs(50)
    maps = canonical_maps(x, y, dim, 1.0)
    assert [weight.shape for weight, _ in maps] == [(dim, 12), (dim, 9)]
    assert all(np.isfinite(weight).all() and np.isfinite(bias).all() for weight, bias in maps)
    assert not maps[0][0][9:].any() and maps[0][0][:2].any()


def test_fewer_pairs_than_numbers_and_constant_columns_are_fine() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 30)), np.zeros((5, 30))
    y[:, 0] = x[:, 0]
    (weight, _), _ = canonical_maps(x, y, 8, 1.0)
    assert np.isfinite(weight).all() and weight.any()


def test_where_lapacks_fast_driver_fails_the_slow_one_finds_the_same(monkeypatch) -> None:
    matrix = np.random.default_rng(0).standard_normal((6, 4))

    def failing(matrix: np.ndarray, lapack_driver: str = "gesdd", **options: object) -> object:
        if lapack_driver == "gesdd":
            raise np.linalg.LinAlgError("SVD did not converge")
        return scipy.linalg.svd(matrix, lapack_driver=lapack_driver, **options)

    monkeypatch.setattr(closed_forms, "svd", failing)
    left, sizes, right = thin_svd(matrix)
    np.testing.assert_allclose((left * sizes) @ right, matrix, atol=1e-12)


# ---- two-covariance map


def two_classes(
    count: int = 4000, gap: float = 0.0
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Classes differ along dimension 0; 1 varies widely within them; the domains lie apart on 2."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    x, y = rng.normal(0.0, [0.5, 4.0, 0.5], (2, count, 3))
    for rows, offset in ((x, gap), (y, -gap)):
        rows[:, 0] += 2.0 * labels - 1.0
        rows[:, 2] += offset
    names = [str(label) for label in labels]
    return x, y, names, names


def test_the_map_makes_variation_within_classes_isotropic() -> None:
    x, y, labels, _ = two_classes()
    weight = two_covariance_map(x, y, labels, labels, 3, 1e-9)
    mapped = np.concatenate([x, y]) @ weight.T
    first = np.array([*labels, *labels]) == "1"
    groups = [mapped[first], mapped[~first]]
    within = np.cov(np.concatenate([group - group.mean(0) for group in groups]).T)
    np.testing.assert_allclose(within, np.eye(3) * within[0, 0], atol=0.02 * within[0, 0])
    assert np.mean(mapped**2) == pytest.approx(1.0, rel=0.01)
    assert abs(weight[0, 0]) > 20 * abs(weight[0, 1])  # the widest direction tells classes apart


def test_the_gap_between_domains_counts_as_variation_within_a_class() -> None:
    narrow, wide = (two_covariance_map(*two_classes(gap=gap), 3, 1e-9) for gap in (0.0, 5.0))
    assert np.linalg.norm(wide[:, 2]) < 0.3 * np.linalg.norm(narrow[:, 2])


def test_much_shrinkage_leaves_principal_components() -> None:
    x, y, labels, _ = two_classes()
    weight = two_covariance_map(x, y, labels, labels, 2, 1e9)
    _, vectors = np.linalg.eigh(np.cov(np.concatenate([x, y]).T))
    directions = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(abs(directions @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-3)


def test_more_outputs_than_features_are_left_empty() -> None:
    weight = two_covariance_map(*two_classes(count=50), 5, 1.0)
    assert weight.shape == (5, 3) and not weight[3:].any() and weight[:3].any(axis=1).all()
