"""What can be read from latents: probes of factors, each beside the same probe on shuffled values.

A *linear* probe is ridge regression for quantities and logistic regression for classes, on
standardised dimensions, which finds a leak however small its variance. A *non-linear* one is ridge
regression on the same dimensions joined by Gaussian bumps (Nyström features) over their leading
principal components. Both are tested on rows that they did not learn from. One decomposition of the
learning rows serves all factors, penalties and shuffled values.

Shapes: N rows, S latent dimensions, K principal axes, T columns of factors' values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sklearn.kernel_approximation import Nystroem
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from iiae_cli.common.errors import IiaeError

FOLDS = 5
LEARN_ONLY = -1  # the fold of a row that every probe learns from and none is tested on
MAX_DIMENSIONS = 768  # wider latents are represented by so many principal components
MAX_CODES = 30  # so many distinct whole numbers are classes, more are a quantity
MAX_CLASSES = 50  # the most frequent ones; a probe's time grows with their number
_LEFT_OUT = -2
PENALTIES = tuple(10.0**power for power in np.arange(-2.0, 5.1, 0.5))  # of ridge regression
STRENGTHS = (0.01, 1.0)  # of logistic regression, scikit-learn's C
_STEPS, _PRECISE = 25, 1e-5  # of L-BFGS: at most, and its relative gain at the end
_BUMPS = 300
_BUMP_DIMENSIONS = 32
_FLAT = 1e-10  # of the largest eigenvalue: directions below are rounding, not data

Floats: TypeAlias = NDArray[np.float64]
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
    """A factor of measured rows (M, …), then of rows to learn from (L, …).

    Text, truth values and up to `MAX_CODES` distinct whole numbers are classes, anything else is a
    quantity. Unknown are empty text, NaN, infinity, classes that fewer than `FOLDS` measured rows
    have, and all of `learning` if it is unlike `measured`.
    """
    if _is_classes(name, measured):
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


def _is_classes(name: str, values: NDArray[Any]) -> bool:
    if values.ndim != 1 or name == "class" or values.dtype.kind in "OUb":
        return values.ndim == 1
    return values.dtype.kind in "iu" and len(np.unique(values)) <= MAX_CODES


# ---- probes


@dataclass(frozen=True)
class ProbeScore:
    """How well a factor is read: cross-validated R² of a quantity, balanced accuracy of classes."""

    linear: float
    nonlinear: float
    control: float  # the same of shuffled values, which belongs near `chance`
    control_nonlinear: float
    chance: float  # 0 for a quantity, 1 / classes
    rows: int  # tested on

    @property
    def above_control(self) -> float:
        """The better probe, in [0, 1] from its control (or chance, if higher) to a perfect one."""
        floors = np.maximum([self.control, self.control_nonlinear], self.chance)
        above = (np.array([self.linear, self.nonlinear]) - floors) / np.maximum(1 - floors, 1e-12)
        return max(0.0, float(above.max()))


def draw_folds(groups: Ints, learning: int = 0, seed: int = 0) -> Ints:
    """The fold of every row (M,), one for a whole group; then `LEARN_ONLY` rows: (M + L,)."""
    names, members = np.unique(groups, return_inverse=True)
    fold_of_group = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    return np.concatenate([fold_of_group[members], np.full(learning, LEARN_ONLY)]).astype(np.int64)


def probe(
    latents: NDArray[Any], factors: Sequence[Factor], folds: Ints, seed: int = 0
) -> dict[str, ProbeScore | None]:
    """Scores of every factor of latents (N, S) by name; `folds` (N,) are those of `draw_folds`.

    None: fewer than two rows per fold, a quantity that never varies, fewer than two classes, or a
    class of a single group of rows.
    """
    if not np.isfinite(latents).all():
        hint = "train with a lower optimizer.lr, or keep an earlier step"
        raise IiaeError("latents hold values that are not finite", hint)
    scores: dict[str, ProbeScore | None] = {factor.name: None for factor in factors}
    layouts: dict[bytes, tuple[Ints, list[Factor]]] = {}
    for factor in factors:
        layout = np.where(factor.known, folds, _LEFT_OUT)
        if _readable(factor, layout):
            layouts.setdefault(layout.tobytes(), (layout, []))[1].append(factor)
    if not layouts:
        return scores
    with threadpool_limits(1):  # small problems, whose threads would wait for one another
        wide, values = latents.shape[1] > MAX_DIMENSIONS, latents.astype(np.float64)
        if wide:
            values = Axes.of(StandardScaler().fit_transform(values)).rows[:, -MAX_DIMENSIONS:]
        for layout, together in layouts.values():
            rows = layout != _LEFT_OUT
            known = [replace(factor, values=factor.values[rows]) for factor in together]
            scores |= _probe_together(values[rows], known, layout[rows], seed, standardise=not wide)
    return scores


def _readable(factor: Factor, layout: Ints) -> bool:
    folds, values = layout[layout >= 0], factor.values[layout >= 0]
    if len(folds) < 2 * FOLDS or len(np.unique(folds)) < 2:
        return False
    if not factor.classes:
        return bool(np.ptp(values, axis=0).any())
    codes = np.unique(values)
    # A class whose rows are all in one fold is never learnt from where it is tested.
    return len(codes) > 1 and all(len(np.unique(folds[values == code])) > 1 for code in codes)


def _probe_together(
    latents: Floats, factors: Sequence[Factor], folds: Ints, seed: int, *, standardise: bool
) -> dict[str, ProbeScore]:
    """Scores of factors that are known in the same rows, and in all of these."""
    order = np.random.default_rng(seed).permutation(len(latents))
    own = [np.eye(item.classes)[item.values] if item.classes else item.values for item in factors]
    targets = [np.stack([values, values[order]]) for values in own]  # (2, N, T): true, shuffled
    linear, bent = ([np.zeros_like(block) for block in targets] for _ in range(2))
    for fold in np.unique(folds[folds >= 0]):
        test, learn = folds == fold, folds != fold
        scaler = StandardScaler(with_std=standardise).fit(latents[learn])
        axes = Axes.of(scaler.transform(latents[learn]))
        asked = axes.along(scaler.transform(latents[test]))
        bumps, asked_bumps = _bumps(axes.rows, asked, seed)
        bent_axes = Axes.of(np.hstack([axes.rows, bumps]))
        bent_asked = bent_axes.along(np.hstack([asked, asked_bumps]))
        for factor, values, straight, bumpy in zip(factors, targets, linear, bent, strict=True):
            learnt = values[:, learn]
            straight[:, test] = (
                _classify(axes, learnt, asked, seed)
                if factor.classes
                else _regress(axes, learnt, asked)
            )
            bumpy[:, test] = _regress(bent_axes, learnt, bent_asked)
    scores, tested = {}, folds >= 0
    for factor, *parts in zip(factors, targets, linear, bent, strict=True):
        score = _balanced_accuracy if factor.classes else _r2
        (true, shuffled), straight, bumpy = (part[:, tested] for part in parts)
        scores[factor.name] = ProbeScore(
            linear=score(true, straight[0]),
            nonlinear=score(true, bumpy[0]),
            control=score(shuffled, straight[1]),
            control_nonlinear=score(shuffled, bumpy[1]),
            chance=1.0 / np.count_nonzero(true.any(axis=0)) if factor.classes else 0.0,
            rows=len(true),
        )
    return scores


@dataclass(frozen=True)
class Axes:
    """Rows along the principal axes of their own that are more than rounding."""

    rows: Floats  # (N, K), centred; the axis of largest spread is the last
    spread: Floats  # (K,) sums of squares
    centre: Floats  # (S,)
    basis: Floats  # (S, K)

    @classmethod
    def of(cls, rows: Floats) -> Axes:
        """The axes of rows (N, S)."""
        centre = rows.mean(axis=0)
        inputs = rows - centre
        wide = inputs.shape[1] > inputs.shape[0]  # XᵀX or XXᵀ, whichever is smaller
        spread, basis = scipy.linalg.eigh(inputs @ inputs.T if wide else inputs.T @ inputs)
        spread = np.maximum(spread, np.finfo(float).tiny)
        kept = spread >= _FLAT * spread[-1]  # one axis at least
        spread, basis = spread[kept], basis[:, kept]
        if wide:
            basis = inputs.T @ basis / np.sqrt(spread)
        return cls(inputs @ basis, spread, centre, basis)

    def along(self, others: Floats) -> Floats:
        """Other rows (A, S) along the same axes (A, K)."""
        moved: Floats = (others - self.centre) @ self.basis
        return moved


def ridge_predictions(axes: Axes, columns: Floats, asked: Floats) -> Floats:
    """Ridge regression of columns (N, T), read at rows (A, K) along the axes: (A, T).

    scikit-learn's `RidgeCV(alpha_per_target=True)`: every column has the penalty of least error on
    rows left out one by one.
    """
    mean = columns.mean(axis=0)
    targets = columns - mean
    products, squares = axes.rows.T @ targets, axes.rows**2  # (K, T), (N, K)
    best, weights = np.full(targets.shape[1], np.inf), np.zeros_like(products)
    for penalty in PENALTIES:
        shrunk = products / (axes.spread + penalty)[:, None]
        leverage = 1.0 / len(targets) + squares @ (1.0 / (axes.spread + penalty))
        left_out = (targets - axes.rows @ shrunk) / np.maximum(1.0 - leverage, 1e-12)[:, None]
        error = (left_out**2).mean(axis=0)
        better = error < best
        best[better], weights[:, better] = error[better], shrunk[:, better]
    predicted: Floats = mean + asked @ weights
    return predicted


def _regress(axes: Axes, targets: Floats, asked: Floats) -> Floats:
    """Ridge regression of true values and of shuffled ones (2, N, T) at once: (2, A, T)."""
    return np.stack(np.hsplit(ridge_predictions(axes, np.hstack([*targets]), asked), 2))


def _classify(axes: Axes, targets: Floats, asked: Floats, seed: int) -> Floats:
    """Logistic regression of true classes and of shuffled ones (2, N, T): scores (2, A, T).

    C is the smaller one, unless the larger one reads the true classes of a quarter of the learning
    rows better by more than a standard error.
    """
    order = np.random.default_rng(seed).permutation(len(axes.rows))
    held, kept = np.split(order, [len(order) // 4])
    true, trial, rest = targets[0], axes.rows[held], axes.rows[kept]
    small, large = (
        _balanced_accuracy(true[held], logistic_predictions(rest, true[kept], strength, trial))
        for strength in STRENGTHS
    )
    better = large - small > np.sqrt(small * (1 - small) / len(held))
    strength = STRENGTHS[1 if better else 0]
    read = [logistic_predictions(axes.rows, values, strength, asked) for values in targets]
    return np.stack(read)


def logistic_predictions(
    rows: Floats, indicators: Floats, strength: float, asked: Floats
) -> Floats:
    """Logistic regression of classes (N, T), read at rows (A, K): scores (A, T).

    scikit-learn's `LogisticRegression(C=strength, class_weight="balanced")`. L-BFGS takes few steps
    as its first Hessian is near the identity: `rows` (N, K) lie along their principal axes, and
    every coordinate is scaled by its curvature at zero.
    """
    true, counts = indicators.astype(np.float32), indicators.sum(axis=0)
    balanced = strength * len(rows) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    weights = true @ balanced.astype(np.float32)[:, None]  # (N, 1)
    inputs = np.hstack([rows, np.ones((len(rows), 1))]).astype(np.float32)  # (N, K + 1)
    penalised = np.append(np.ones(rows.shape[1]), 0)  # all but the intercept
    curvature = strength / len(counts) * (inputs**2).sum(axis=0)
    scale = ((curvature + penalised) ** -0.5).astype(np.float32)
    inputs, penalty = inputs * scale, (penalised * scale**2).astype(np.float32)[:, None]

    def objective(flat: Floats) -> tuple[float, Floats]:
        moved = flat.reshape(len(scale), -1).astype(np.float32)  # (K + 1, T)
        logs = scipy.special.log_softmax(inputs @ moved, axis=1)
        losses = weights * true * logs
        gradient = inputs.T @ (weights * (np.exp(logs) - true)) + penalty * moved
        loss = (0.5 * penalty * moved**2).sum(dtype=np.float64) - losses.sum(dtype=np.float64)
        return float(loss), gradient.ravel().astype(np.float64)

    start = np.zeros(len(scale) * len(counts))
    options = {"maxiter": _STEPS, "ftol": _PRECISE}
    found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    learnt = scale[:, None] * found.x.reshape(len(scale), -1)
    read: Floats = asked @ learnt[:-1] + learnt[-1]
    return read


def _bumps(known: Floats, asked: Floats, seed: int) -> tuple[Floats, Floats]:
    """Gaussian bumps around learning rows, as wide as rows lie apart, of the dimensions' weight."""
    known, asked = known[:, -_BUMP_DIMENSIONS:], asked[:, -_BUMP_DIMENSIONS:]
    chosen = np.random.default_rng(seed).permutation(len(known))[:_BUMPS]
    apart = float(np.median(pdist(known[chosen], "sqeuclidean"))) or 1.0
    count = len(chosen)
    features = Nystroem(gamma=1.0 / apart, n_components=count, random_state=seed).fit(known)
    bumps = features.transform(known)
    scaler = StandardScaler().fit(bumps)
    weight = np.sqrt(known.shape[1] / count)
    return weight * scaler.transform(bumps), weight * scaler.transform(features.transform(asked))


def _r2(true: Floats, predicted: Floats) -> float:
    """R² of pooled predictions, mean over columns that vary."""
    varying = true.std(axis=0) > 0
    error = ((true - predicted) ** 2).sum(axis=0)[varying]
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)[varying]
    return float((1.0 - error / spread).mean())


def _balanced_accuracy(true: Floats, predicted: Floats) -> float:
    """Mean over classes of the part of their rows (N, classes) that is read correctly."""
    codes, read = true.argmax(axis=1), predicted.argmax(axis=1)
    return float(np.mean([(read[codes == code] == code).mean() for code in np.unique(codes)]))
