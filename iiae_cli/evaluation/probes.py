"""Probes that read factors from latents, each with the same probe on shuffled values.

A *linear* probe is ridge regression for quantities and logistic regression for classes, on
standardised dimensions, which finds a leak however small its variance. A *non-linear* one is ridge
regression on the same dimensions joined by Gaussian bumps (Nyström features) over their leading
principal components. Both are tested on rows that they did not learn from. One decomposition of the
learning rows, in float32, serves all factors, penalties and shuffled values.

Shapes: N rows, S latent dimensions, K principal axes, T columns of factors' values.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sklearn.kernel_approximation import Nystroem
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from iiae_cli.common.errors import IiaeError

FOLDS = 5
LEARN_ONLY = -1  # the fold of a row that every probe learns from and none is tested on
MAX_DIMENSIONS = 768  # principal components that wider latents are reduced to
MAX_CODES = 30  # most distinct whole numbers that are classes; more are a quantity
MAX_CLASSES = 50  # the most frequent ones; a probe's time grows with their number
PENALTIES = np.logspace(-2, 5, 15, dtype=np.float32)  # of ridge regression
STRENGTHS = (0.01, 1.0)  # of logistic regression, scikit-learn's C
_STEPS, _PRECISE = 25, 1e-5  # L-BFGS: most steps, and the relative gain at which it ends
_BUMPS = 300
_BUMP_DIMENSIONS = 32
_FLAT = 1e-10  # times the largest eigenvalue; directions below are rounding errors

Floats: TypeAlias = NDArray[np.float64]
Singles: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]


# ---- factors


@dataclass(frozen=True)
class Factor:
    """A generative factor of N rows: a quantity, or classes by code."""

    name: str
    values: NDArray[Any]  # (N, D) float64, or codes from 0 (N,)
    known: NDArray[np.bool_]  # (N,) whether a row has a value
    classes: int = 0  # 0 for a quantity


def read_factor(name: str, measured: NDArray[Any], learning: NDArray[Any]) -> Factor:
    """Reads a factor of measured rows (M, …), then of rows to learn from (L, …).

    Text, truth values and up to `MAX_CODES` distinct whole numbers are classes, anything else is a
    quantity. Unknown are empty text, NaN, infinity, classes with fewer than `FOLDS` measured rows,
    and all of `learning` if it is unlike `measured`.
    """
    kind = measured.dtype.kind
    few = kind in "iu" and len(np.unique(measured)) <= MAX_CODES
    if measured.ndim == 1 and (few or kind in "OUb" or name == "class"):
        texts, more_texts = ([str(value) for value in rows] for rows in (measured, learning))
        counts = Counter(text for text in sorted(texts) if text)
        kept = [text for text, count in counts.most_common(MAX_CLASSES) if count >= FOLDS]
        codes = {text: code for code, text in enumerate(sorted(kept))}
        coded = np.array([codes.get(text, -1) for text in (*texts, *more_texts)], np.int64)
        return Factor(name, coded, coded >= 0, len(codes))
    values = measured.reshape(len(measured), -1).astype(np.float64)
    more = np.full((len(learning), values.shape[1]), np.nan)
    if learning.dtype.kind in "fiu" and learning.shape[1:] == measured.shape[1:]:
        more[:] = learning.reshape(more.shape)
    values = np.concatenate([values, more])
    known: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=1))
    return Factor(name, values, known)


# ---- probes


@dataclass(frozen=True)
class ProbeScore:
    """How well a factor is read: R² of a quantity, balanced accuracy of classes, in folds."""

    linear: float
    control: float  # the same for shuffled values, which should be near `chance`
    nonlinear: float
    control_nonlinear: float
    chance: float  # 0 for a quantity, 1 / classes
    rows: int  # tested on

    @property
    def above_control(self) -> float:
        """The better probe, scaled from its control (or chance, if higher) at 0 to perfect at 1."""
        floors = np.maximum([self.control, self.control_nonlinear], self.chance)
        above = (np.array([self.linear, self.nonlinear]) - floors) / np.maximum(1 - floors, 1e-12)
        return max(0.0, float(above.max()))


def draw_folds(groups: Ints, learning: int = 0, seed: int = 0) -> Ints:
    """Returns every row's fold (M,), one for a whole group; then `LEARN_ONLY` rows: (M + L,)."""
    names, members = np.unique(groups, return_inverse=True)
    fold_of_group = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    return np.concatenate([fold_of_group[members], np.full(learning, LEARN_ONLY)]).astype(np.int64)


def probe(
    latents: NDArray[Any], factors: Sequence[Factor], folds: Ints, seed: int = 0
) -> dict[str, ProbeScore | None]:
    """Scores every factor of latents (N, S) by name; `folds` (N,) come from `draw_folds`.

    The score is None for fewer than two rows per fold, a quantity that never varies, fewer than two
    classes, or a class in a single group of rows.
    """
    if not np.isfinite(latents).all():
        hint = "train with a lower optimizer.lr, or keep an earlier step"
        raise IiaeError("latents hold values that are not finite", hint)
    scores: dict[str, ProbeScore | None] = {factor.name: None for factor in factors}
    groups: dict[bytes, list[Factor]] = {}  # by the rows that have a value
    for factor in factors:
        if _readable(factor, folds):
            groups.setdefault(factor.known.tobytes(), []).append(factor)
    if not groups:
        return scores
    with threadpool_limits(1):  # small problems, whose threads would wait for one another
        wide, values = latents.shape[1] > MAX_DIMENSIONS, latents.astype(np.float32)
        if wide:
            values = Axes.of(StandardScaler().fit_transform(values), MAX_DIMENSIONS).rows
        for together in groups.values():
            scores |= _probe_together(values, together, folds, seed, standardise=not wide)
    return scores


def _readable(factor: Factor, folds: Ints) -> bool:
    tested = factor.known & (folds >= 0)
    folds, values = folds[tested], factor.values[tested]
    if len(folds) < 2 * FOLDS or len(np.unique(folds)) < 2:
        return False
    if not factor.classes:
        return bool(np.ptp(values, axis=0).any())
    codes = np.unique(values)
    # A class whose rows are all in one fold is never learnt from where it is tested.
    return len(codes) > 1 and all(len(np.unique(folds[values == code])) > 1 for code in codes)


def _probe_together(
    latents: Singles, factors: Sequence[Factor], folds: Ints, seed: int, *, standardise: bool
) -> dict[str, ProbeScore]:
    rows = factors[0].known  # the same of all
    latents, folds = latents[rows], folds[rows]
    order, targets = np.random.default_rng(seed).permutation(len(latents)), list[Floats]()
    for factor in factors:
        values = factor.values[rows]
        true = np.eye(factor.classes)[values] if factor.classes else values
        targets.append(np.hstack([true, true[order]]))  # (N, 2T): true, shuffled
    linear, bent = ([np.zeros_like(target) for target in targets] for _ in range(2))
    for fold in np.unique(folds[folds >= 0]):
        test, learn = folds == fold, folds != fold
        scaler = StandardScaler(with_std=standardise).fit(latents[learn])
        axes = Axes.of(scaler.transform(latents[learn]))
        asked = axes.along(scaler.transform(latents[test]))
        bumps, asked_bumps = _bumps(axes.rows, asked, seed)
        curved = Axes.of(np.hstack([axes.rows, bumps]))
        asked_curved = curved.along(np.hstack([asked, asked_bumps]))
        for factor, target, by_line, by_curve in zip(factors, targets, linear, bent, strict=True):
            by_line[test] = (
                _classify(axes, target[learn], asked, seed)
                if factor.classes
                else ridge_predictions(axes, target[learn], asked)
            )
            by_curve[test] = ridge_predictions(curved, target[learn], asked_curved)
    scores, tested = {}, folds >= 0
    for factor, *arrays in zip(factors, targets, linear, bent, strict=True):
        score = _balanced_accuracy if factor.classes else _r2
        true, *ways = (np.hsplit(array[tested], 2) for array in arrays)
        (straight, control), (bumpy, control_bumpy) = (map(score, true, way) for way in ways)
        chance = 1.0 / np.count_nonzero(true[0].any(axis=0)) if factor.classes else 0.0
        figures = straight, control, bumpy, control_bumpy, chance
        scores[factor.name] = ProbeScore(*figures, rows=int(tested.sum()))
    return scores


@dataclass(frozen=True)
class Axes:
    """Rows along their own principal axes, without those that are only rounding."""

    rows: Singles  # (N, K), centred; the axis of largest spread is the last
    spread: Singles  # (K,) sums of squares
    centre: Singles  # (S,)
    basis: Singles  # (S, K)

    @classmethod
    def of(cls, rows: Singles, most: int = sys.maxsize) -> Axes:
        """Finds at most `most` axes of rows (N, S).

        The decomposition is in float64, as leaks hide in directions of next to no spread; rows
        along the axes need only float32.
        """
        centre = rows.mean(axis=0)
        inputs = rows - centre
        exact = inputs.astype(np.float64)
        wide = inputs.shape[1] > inputs.shape[0]  # XᵀX or XXᵀ, whichever is smaller
        products = exact @ exact.T if wide else exact.T @ exact
        last = len(products) - 1
        found = scipy.linalg.eigh(products, subset_by_index=[max(0, last + 1 - most), last])
        spread: Floats = np.maximum(found[0], np.finfo(np.float32).tiny)
        kept = spread >= _FLAT * spread[-1]  # one axis at least
        spread, basis = spread[kept], found[1][:, kept]
        if wide:
            basis = exact.T @ basis / np.sqrt(spread)
        singles: Singles = basis.astype(np.float32)
        return cls(inputs @ singles, spread.astype(np.float32), centre, singles)

    def along(self, others: Singles) -> Singles:
        """Returns other rows (A, S) along the same axes (A, K)."""
        return ((others - self.centre) @ self.basis).astype(np.float32, copy=False)


def ridge_predictions(axes: Axes, columns: Floats, asked: Singles) -> Floats:
    """Predicts columns (N, T) by ridge regression at rows (A, K) along the axes: (A, T).

    scikit-learn's `RidgeCV(alpha_per_target=True)`: every column has the penalty of least error on
    rows left out one by one.
    """
    mean = columns.mean(axis=0)
    targets = (columns - mean).astype(np.float32)
    products = axes.rows.T @ targets  # (K, T)
    shrinking = 1 / (axes.spread + PENALTIES[:, None])  # (penalties, K)
    leverages = 1 / len(targets) + shrinking @ (axes.rows**2).T  # (penalties, N)
    best, weights = np.full(targets.shape[1], np.inf), np.zeros_like(products)
    for shrink, leverage in zip(shrinking, leverages, strict=True):
        shrunk = products * shrink[:, None]
        left_out = (targets - axes.rows @ shrunk) / np.maximum(1 - leverage, 1e-6)[:, None]
        error = (left_out**2).mean(axis=0)
        better = error < best
        best[better], weights[:, better] = error[better], shrunk[:, better]
    predicted: Floats = mean + asked @ weights
    return predicted


def _classify(axes: Axes, targets: Floats, asked: Singles, seed: int) -> Floats:
    """Scores true classes and shuffled ones (N, 2T) by logistic regression: (A, 2T).

    C is the smaller one, unless the larger one reads the true classes of a quarter of the learning
    rows better by more than a standard error.
    """
    order = np.random.default_rng(seed).permutation(len(axes.rows))
    held, kept = np.split(order, [len(order) // 4])
    true, shuffled = np.hsplit(targets, 2)
    trial, rest = axes.rows[held], axes.rows[kept]
    small, large = (
        _balanced_accuracy(true[held], logistic_predictions(rest, true[kept], strength, trial))
        for strength in STRENGTHS
    )
    better = large - small > np.sqrt(small * (1 - small) / len(held))
    strength = STRENGTHS[1 if better else 0]
    read = [logistic_predictions(axes.rows, each, strength, asked) for each in (true, shuffled)]
    return np.hstack(read)


def logistic_predictions(
    rows: Singles, indicators: Floats, strength: float, asked: Singles
) -> Floats:
    """Scores classes (N, T) by logistic regression at rows (A, K): (A, T).

    scikit-learn's `LogisticRegression(C=strength, class_weight="balanced")`. L-BFGS takes few steps
    as its first Hessian is near the identity: `rows` (N, K) lie along their principal axes, and
    every coordinate is scaled by its curvature at zero.
    """
    true, counts = indicators.T.astype(np.float32), indicators.sum(axis=0)  # (T, N), (T,)
    balanced = strength * len(rows) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    weights = balanced.astype(np.float32) @ true  # (N,)
    inputs = np.hstack([rows, np.ones((len(rows), 1), np.float32)])  # (N, K + 1)
    penalised = np.append(np.ones(rows.shape[1]), 0)  # all but the intercept
    curvature = strength / len(counts) * (inputs**2).sum(axis=0)
    scale = ((curvature + penalised) ** -0.5).astype(np.float32)
    inputs, penalty = inputs * scale, (penalised * scale**2).astype(np.float32)

    def objective(flat: Floats) -> tuple[float, Floats]:
        moved = flat.reshape(len(counts), -1).astype(np.float32)  # (T, K + 1)
        scores = moved @ inputs.T  # (T, N)
        scores -= scores.max(axis=0)
        odds = np.exp(scores)
        total = odds.sum(axis=0)
        losses = weights * (np.log(total) - (true * scores).sum(axis=0))
        gradient = (weights * (odds / total - true)) @ inputs + penalty * moved
        loss = 0.5 * (penalty * moved**2).sum(dtype=np.float64) + losses.sum(dtype=np.float64)
        return float(loss), gradient.ravel().astype(np.float64)

    start = np.zeros(len(scale) * len(counts))
    options = {"maxiter": _STEPS, "ftol": _PRECISE}
    best = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    learnt = scale * best.x.reshape(len(counts), -1)
    read: Floats = asked @ learnt[:, :-1].T + learnt[:, -1]
    return read


def _bumps(known: Singles, asked: Singles, seed: int) -> tuple[Singles, Singles]:
    """Returns Gaussian bumps around learning rows, as wide as rows lie apart, scaled like rows."""
    known, asked = known[:, -_BUMP_DIMENSIONS:], asked[:, -_BUMP_DIMENSIONS:]
    chosen = np.random.default_rng(seed).permutation(len(known))[:_BUMPS]
    apart = float(np.median(pdist(known[chosen], "sqeuclidean"))) or 1.0
    count = len(chosen)
    features = Nystroem(gamma=1.0 / apart, n_components=count, random_state=seed).fit(known)
    bumps = features.transform(known)
    scaler = StandardScaler().fit(bumps)
    weight = np.float32(np.sqrt(known.shape[1] / count))
    return weight * scaler.transform(bumps), weight * scaler.transform(features.transform(asked))


def _r2(true: Floats, predicted: Floats) -> float:
    """Returns R² of pooled predictions, averaged over columns that vary."""
    varying = true.std(axis=0) > 0
    error = ((true - predicted) ** 2).sum(axis=0)[varying]
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)[varying]
    return float((1.0 - error / spread).mean())


def _balanced_accuracy(true: Floats, predicted: Floats) -> float:
    """Returns the part of each class's rows (N, classes) read correctly, averaged over classes."""
    codes, read = true.argmax(axis=1), predicted.argmax(axis=1)
    return float(np.mean([(read[codes == code] == code).mean() for code in np.unique(codes)]))
