"""Factors as probes need them; probes on latents whose leakage is known; controls at chance."""

import numpy as np
import pytest
from helpers import refusal
from sklearn.linear_model import LogisticRegression, RidgeCV

from iiae_cli.evaluation.probes import (
    FOLDS,
    LEARN_ONLY,
    MAX_CLASSES,
    MAX_CODES,
    MAX_DIMENSIONS,
    PENALTIES,
    Axes,
    ProbeScore,
    draw_folds,
    logistic_predictions,
    probe,
    read_factor,
    ridge_predictions,
)

ROWS = 600


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def read(latents, values, groups=None, learning=0, seed=0):
    """The score of one factor."""
    factor = read_factor("factor", np.asarray(values), np.empty(0))
    measured = len(latents) - learning
    folds = draw_folds(np.arange(measured) if groups is None else groups, learning, seed)
    return probe(np.asarray(latents), [factor], folds, seed)["factor"]


# ---- known leakage


@pytest.mark.parametrize("signal", [0.2, 1.0, 3.0])
def test_a_linear_leak_reads_as_theory_says(signal):
    """z = a·c + ε leaves R² = a² / (a² + 1) to any reader of z."""
    factor, latents = normal(1, 4 * ROWS), normal(2, 4 * ROWS, 6)
    latents[:, 3] += signal * factor
    score = read(latents, factor)
    assert score.linear == pytest.approx(signal**2 / (signal**2 + 1), abs=0.03)
    assert score.nonlinear == pytest.approx(score.linear, abs=0.03)
    assert abs(score.control) < 0.02 and abs(score.control_nonlinear) < 0.02
    assert score.chance == 0 and score.rows == 4 * ROWS
    assert score.above_control == pytest.approx(max(score.linear, score.nonlinear), abs=0.02)


def test_a_leak_is_found_however_small_its_variance():
    factor = normal(3, ROWS, 3)
    assert read(np.hstack([normal(4, ROWS, 8), 1e-4 * factor]), factor).linear > 0.99


def test_leaks_in_quadrant_and_in_distance_are_found_by_the_nonlinear_probe_alone():
    latents = normal(9, 2 * ROWS, 6)
    score = read(latents, np.where(latents[:, 1] * latents[:, 4] > 0, "same", "other"))
    chances = [score.chance, score.linear, score.control, score.control_nonlinear]
    assert chances == pytest.approx([0.5] * 4, abs=0.06)
    assert score.nonlinear > 0.8 and score.above_control > 0.6
    score = read(latents, np.hypot(latents[:, 0], latents[:, 5]))
    assert score.linear < 0.02 and score.nonlinear > 0.7 and abs(score.control_nonlinear) < 0.03


# ---- classes


@pytest.mark.parametrize("count", [2, 10])
def test_classes_without_a_trace_read_at_chance(count):
    names = [f"class {code}" for code in np.random.default_rng(11).integers(0, count, 3 * ROWS)]
    score = read(normal(12, 3 * ROWS, 8), names)
    margin = 4 * np.sqrt((count - 1) / (3 * ROWS) / count)
    figures = [score.linear, score.nonlinear, score.control, score.control_nonlinear]
    assert figures == pytest.approx([1 / count] * 4, abs=margin)
    assert score.chance == pytest.approx(1 / count) and score.above_control < 0.1


def test_accuracy_is_balanced():
    """Nine in ten rows are of one class: always saying it is chance, not 0.9."""
    codes = (np.random.default_rng(16).random(2 * ROWS) < 0.1).astype(int)
    score = read(normal(17, 2 * ROWS, 4), codes)
    assert score.chance == 0.5 and max(score.linear, score.nonlinear) < 0.6


# ---- what it takes to be right


@pytest.mark.parametrize("rows, width", [(120, 400), (200, MAX_DIMENSIONS + 400)])
def test_fewer_rows_than_dimensions_suffice_for_a_strong_leak(rows, width):
    factor = normal(22, rows)
    score = read(np.outer(factor, normal(23, width)) + normal(24, rows, width), factor)
    assert score.linear > 0.8 and abs(score.control) < 0.3


def test_rows_to_learn_from_uncover_what_few_rows_hide():
    factor, latents = normal(25, 900), normal(26, 900, 300)
    latents[:, :60] += 0.2 * factor[:, None]
    alone, joined = read(latents[:150], factor[:150]), read(latents, factor, learning=750)
    assert joined.rows == alone.rows == 150
    assert joined.linear > alone.linear + 0.2


def test_twins_are_not_on_both_sides():
    """Ten rows per item, whose latents name the item alone: an unseen item cannot be read."""
    items = np.repeat(np.arange(60), 10)
    latents, factor = normal(30, 60, 20)[items], normal(31, 60)[items]
    assert read(latents, factor).nonlinear > 0.9  # by recognising the item
    assert read(latents, factor, groups=items).nonlinear < 0.2


def test_constant_dimensions_say_nothing_and_do_no_harm():
    factor = normal(32, ROWS)
    latents = np.hstack([np.full((ROWS, 3), 5.0), factor[:, None], np.zeros((ROWS, 1))])
    assert read(latents, factor).linear > 0.99
    collapsed = read(np.full((ROWS, 4), 2.5), factor)
    assert [collapsed.linear, collapsed.nonlinear] == pytest.approx([0, 0], abs=0.02)
    assert read(np.zeros((ROWS, 4)), factor > 0).linear == pytest.approx(0.5, abs=0.06)


def test_rows_of_unknown_value_are_left_out_and_a_seed_gives_the_same_figures():
    latents = normal(35, 200, 5)
    gaps = np.where(np.arange(200) % 3, latents[:, 2], np.nan)
    first, again, other = (read(latents, gaps, seed=seed) for seed in (1, 1, 2))
    assert first.rows == 133 and first.linear > 0.9
    assert first == again != other


def test_latents_that_are_not_finite_are_refused():
    error = refusal(read, np.full((50, 3), np.inf), normal(38, 50))
    assert "not finite" in error.message and "optimizer.lr" in error.hint


@pytest.mark.parametrize(
    "values",
    [
        np.ones(60),  # never varies
        ["one"] * 60,  # a single class
        [f"own {row}" for row in range(60)],  # classes of one row
        [f"item {row // 10}" for row in range(60)],  # classes of one item
        np.full(60, np.nan),  # never known
        np.where(np.arange(60) < 8, 1.0 * np.arange(60), np.nan),  # less than two rows per fold
    ],
)
def test_nothing_to_read_is_none(values):
    assert read(normal(39, 60, 3), values, groups=np.arange(60) // 10) is None


@pytest.mark.parametrize(
    "score, above",
    [
        ((0.6, 0.4, 0.7, 0.4, 0.5), 0.4),
        ((0.6, 0.5, 0.5, 0.6, 0.5), 0.2),
        ((-0.2, -0.3, -0.1, 0, 0), 0),
    ],
)
def test_above_control_counts_from_the_higher_of_chance_and_control(score, above):
    assert ProbeScore(*score, 9).above_control == pytest.approx(above)


def test_folds_keep_items_together_and_learners_apart():
    groups = np.repeat(np.arange(23), 3)
    folds = draw_folds(groups, learning=4, seed=5)
    assert folds[-4:].tolist() == [LEARN_ONLY] * 4 and set(folds[:-4]) == set(range(FOLDS))
    assert all(len(set(folds[:-4][groups == item])) == 1 for item in range(23))
    assert np.ptp(np.bincount(folds[:-4])) <= 3
    assert not np.array_equal(folds, draw_folds(groups, learning=4, seed=6))


@pytest.mark.parametrize("rows, width", [(100, 5), (60, 200), (50, 50)])
def test_ridge_predictions_are_scikit_learns(rows, width):
    inputs, asked = normal(41, rows, width), normal(42, 20, width)
    inputs[:, 0] = 3.0
    columns = inputs[:, 1:4] + normal(43, rows, 3) * [0.1, 1, 5] + 4
    oracle = RidgeCV(alphas=PENALTIES, alpha_per_target=True).fit(inputs, columns)
    axes = Axes.of(inputs.astype(np.float32))
    predicted = ridge_predictions(axes, columns, axes.along(asked.astype(np.float32)))
    np.testing.assert_allclose(predicted, oracle.predict(asked), atol=4e-3)  # in float32


@pytest.mark.parametrize("strength", [0.01, 1.0])
@pytest.mark.parametrize("width", [6, 90])
def test_classes_are_read_as_scikit_learns_logistic_regression_reads_them(width, strength):
    """Dimensions of unlike spread, classes of unlike size, and a class that no row has."""
    codes = np.random.default_rng(44).choice(4, 400, p=[0.6, 0.2, 0.15, 0.05])
    scales = np.logspace(0, -2, width)
    inputs = (normal(45, 4, width)[codes] + 2 * normal(46, 400, width)) * scales
    inputs = inputs.astype(np.float32)
    axes, asked = Axes.of(inputs[:300]), inputs[300:]
    oracle = LogisticRegression(C=strength, class_weight="balanced", tol=1e-8, max_iter=10_000)
    expected = oracle.fit(axes.rows, codes[:300]).predict_proba(axes.along(asked))
    scores = logistic_predictions(axes.rows, np.eye(5)[codes[:300]], strength, axes.along(asked))
    assert not (scores.argmax(axis=1) == 4).any()
    chances = np.exp(scores[:, :4])
    chances /= chances.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(chances, expected, atol=0.06)  # 25 steps, not to the end


# ---- factors

NONE = np.empty(0)


def words(**counts):
    """Texts, each so many times; `_` is the empty one."""
    texts = [text.strip("_") for text, count in counts.items() for _ in range(count)]
    return np.array(texts, dtype=object)


@pytest.mark.parametrize(
    "values, classes",
    [
        (np.array([[1, 2], [3, 4]], np.uint8), 0),
        (np.zeros((3, 2, 2)), 0),
        (np.array([0.5, 1.0]), 0),
        (words(ink=5, chalk=6), 2),
        (np.array([True, False] * 5), 2),
        (np.repeat(np.arange(MAX_CODES), 5), MAX_CODES),
        (np.arange(MAX_CODES + 1), 0),
        (np.repeat(np.arange(MAX_CODES, dtype=float), 5), 0),
    ],
)
def test_numbers_are_quantities_words_and_few_codes_are_classes(values, classes):
    factor = read_factor("factor", values, NONE)
    assert factor.classes == classes and factor.known.all()
    assert classes or factor.values.shape == (len(values), values[0].size)
    many = np.repeat(np.arange(MAX_CODES + 1), 5)
    assert read_factor("class", many, NONE).classes == MAX_CODES + 1


def test_what_is_rare_empty_or_strange_is_unknown_and_rows_to_learn_from_follow():
    line = read_factor("line", np.array([0.5, np.nan, np.inf]), NONE)
    assert line.known.tolist() == [True, False, False]
    pen = read_factor("pen", words(ink=5, _=7, quill=4, chalk=6), words(ink=1, z=1, _=1))
    assert pen.values.tolist() == [1] * 5 + [-1] * 11 + [0] * 6 + [1, -1, -1]
    many = words(**{f"c{code:03d}": 5 + (code == 54) for code in range(MAX_CLASSES + 5)})
    factor = read_factor("pen", many, NONE)
    assert factor.classes == MAX_CLASSES and factor.known[-1]
    assert factor.known.sum() == 5 * MAX_CLASSES + 1
    line = read_factor("line", np.array([[1.0], [2.0]]), np.array([[3.0]]))
    assert line.values.ravel().tolist() == [1, 2, 3]
    for unlike in (words(a=1), np.ones((1, 2)), np.full(1, np.nan)):
        assert read_factor("line", np.ones(2), unlike).known.tolist() == [True, True, False]
