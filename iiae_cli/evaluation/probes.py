"""What can be read from latents: probes of factors, each beside the same probe on shuffled values.

A *linear* probe is ridge regression for quantities and logistic regression for classes, on
standardised dimensions, which finds a leak however small its variance. A *non-linear* one is ridge
regression on the same dimensions joined by Gaussian bumps (Nyström features) over their leading
principal components. Both are tested on rows that they did not learn from.

Shapes: N rows, S latent dimensions, T columns of factors' values.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from iiae_cli.common.errors import IiaeError

FOLDS = 5
LEARN_ONLY = -1  # the fold of a row that every probe learns from and none is tested on
MAX_DIMENSIONS = 1024  # wider latents are represented by so many principal components
MAX_CODES = 30  # so many distinct whole numbers are classes, more are a quantity
MAX_CLASSES = 50  # the most frequent ones; a probe's time grows with their number
_LEFT_OUT = -2
PENALTIES = tuple(10.0**power for power in np.arange(-2.0, 5.1, 0.5))
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
        values = _narrowed(values, seed) if wide else values
        for layout, together in layouts.values():
            rows = layout != _LEFT_OUT
            known = [replace(factor, values=factor.values[rows]) for factor in together]
            scores |= _probe_together(values[rows], known, layout[rows], seed, standardise=not wide)
    return scores


def ridge_predictions(known: Floats, columns: Floats, asked: Floats) -> Floats:
    """Ridge regression of `columns` (N, T) from `known` (N, S), read at `asked` (A, S): (A, T).

    scikit-learn's `RidgeCV(alpha_per_target=True)`, three to four times as fast.
    """
    centre, mean = known.mean(axis=0), columns.mean(axis=0)
    inputs, targets = known - centre, columns - mean
    wide = inputs.shape[1] > inputs.shape[0]  # XᵀX or XXᵀ, whichever is smaller
    values, basis = scipy.linalg.eigh(inputs @ inputs.T if wide else inputs.T @ inputs)
    kept = values > _FLAT * max(values[-1], np.finfo(float).tiny)
    values, basis = values[kept], basis[:, kept]  # (K,), (S or N, K)
    if wide:
        basis = inputs.T @ basis / np.sqrt(values)
    coordinates = inputs @ basis  # (N, K)
    products, squares = coordinates.T @ targets, coordinates**2  # (K, T), (N, K)
    best, weights = np.full(targets.shape[1], np.inf), np.zeros_like(products)
    for penalty in PENALTIES:
        shrunk = products / (values + penalty)[:, None]
        leverage = 1.0 / len(inputs) + squares @ (1.0 / (values + penalty))
        left_out = (targets - coordinates @ shrunk) / np.maximum(1.0 - leverage, 1e-12)[:, None]
        error = (left_out**2).mean(axis=0)
        better = error < best
        best[better], weights[:, better] = error[better], shrunk[:, better]
    predicted: Floats = mean + (asked - centre) @ (basis @ weights)
    return predicted


def _readable(factor: Factor, layout: Ints) -> bool:
    folds, values = layout[layout >= 0], factor.values[layout >= 0]
    if len(folds) < 2 * FOLDS or len(np.unique(folds)) < 2:
        return False
    if not factor.classes:
        return bool(np.ptp(values, axis=0).any())
    codes = np.unique(values)
    # A class whose rows are all in one fold is never learnt from where it is tested.
    return len(codes) > 1 and all(len(np.unique(folds[values == code])) > 1 for code in codes)


def _narrowed(latents: Floats, seed: int) -> Floats:
    """The leading principal components of standardised latents, with their scales."""
    count = min(MAX_DIMENSIONS, len(latents) - 1)
    components = PCA(count, svd_solver="randomized", iterated_power=2, random_state=seed)
    narrow: Floats = components.fit_transform(StandardScaler().fit_transform(latents))
    return narrow


def _probe_together(
    latents: Floats, factors: Sequence[Factor], folds: Ints, seed: int, *, standardise: bool
) -> dict[str, ProbeScore]:
    """Scores of factors that are known in the same rows, and in all of these."""
    order = np.random.default_rng(seed).permutation(len(latents))
    blocks = [
        np.eye(item.classes)[item.values] if item.classes else item.values for item in factors
    ]
    widths = [block.shape[1] for block in blocks]
    spans = [slice(*ends) for ends in pairwise(np.cumsum([0, *widths]).tolist())]
    quantity = np.repeat([not item.classes for item in factors], widths)
    true = np.hstack(blocks)
    targets = np.stack([true, true[order]])  # (2, N, T): true values, shuffled ones
    linear, bent = np.zeros_like(targets), np.zeros_like(targets)
    for fold in np.unique(folds[folds >= 0]):
        test, learn = folds == fold, folds != fold
        scaler = StandardScaler(with_std=standardise).fit(latents[learn])
        known, asked = scaler.transform(latents[learn]), scaler.transform(latents[test])
        if quantity.any():
            learnt = targets[:, learn][..., quantity]
            linear[np.ix_(np.arange(2), test, quantity)] = _regress(known, learnt, asked)
        for factor, span in zip(factors, spans, strict=True):
            if factor.classes:
                linear[:, test, span] = _classify(known, targets[:, learn, span], asked, seed)
        bumps, asked_bumps = _bumps(known, asked, seed)
        known, asked = np.hstack([known, bumps]), np.hstack([asked, asked_bumps])
        bent[:, test] = _regress(known, targets[:, learn], asked)
    scores, rows = {}, folds >= 0
    for factor, span in zip(factors, spans, strict=True):
        score = _balanced_accuracy if factor.classes else _r2
        true, shuffled = targets[:, rows, span]
        chance = 1.0 / np.count_nonzero(true.any(axis=0)) if factor.classes else 0.0
        scores[factor.name] = ProbeScore(
            linear=score(true, linear[0, rows, span]),
            nonlinear=score(true, bent[0, rows, span]),
            control=score(shuffled, linear[1, rows, span]),
            control_nonlinear=score(shuffled, bent[1, rows, span]),
            chance=chance,
            rows=int(rows.sum()),
        )
    return scores


def _regress(known: Floats, targets: Floats, asked: Floats) -> Floats:
    """Ridge regression of true values and of shuffled ones (2, N, T) at once."""
    return np.stack(np.hsplit(ridge_predictions(known, np.hstack([*targets]), asked), 2))


def _classify(known: Floats, targets: Floats, asked: Floats, seed: int) -> Floats:
    """Logistic regression of true and of shuffled classes; the true ones choose the penalty."""
    order = np.random.default_rng(seed).permutation(len(known))
    held, kept = np.split(order, [len(order) // 4])
    true = targets[0]

    def score(inverse: float) -> float:
        read = _logistic(known[kept], true[kept], known[held], inverse)
        return _balanced_accuracy(true[held], read)

    chosen = max((0.01, 1.0), key=score)
    return np.stack([_logistic(known, indicators, asked, chosen) for indicators in targets])


def _logistic(known: Floats, indicators: Floats, asked: Floats, inverse_penalty: float) -> Floats:
    """Indicators (A, classes) of the classes that are read."""
    codes = indicators.argmax(axis=1)
    read = np.full(len(asked), codes[0])
    if len(np.unique(codes)) > 1:
        model = LogisticRegression(
            C=inverse_penalty, class_weight="balanced", max_iter=200, tol=1e-3
        )
        with warnings.catch_warnings():  # 200 steps suffice to tell a class, if not for the optimum
            warnings.simplefilter("ignore", ConvergenceWarning)
            read = model.fit(known, codes).predict(asked)
    predicted: Floats = np.eye(indicators.shape[1])[read]
    return predicted


def _bumps(known: Floats, asked: Floats, seed: int) -> tuple[Floats, Floats]:
    """Gaussian bumps around learning rows, as wide as rows lie apart, of the dimensions' weight."""
    if known.shape[1] > _BUMP_DIMENSIONS:
        count = min(_BUMP_DIMENSIONS, len(known))
        leading = PCA(count, svd_solver="randomized", random_state=seed).fit(known)
        known, asked = leading.transform(known), leading.transform(asked)
    chosen = np.random.default_rng(seed).permutation(len(known))[:_BUMPS]
    apart = float(np.median(pdist(known[chosen], "sqeuclidean"))) or 1.0
    count = min(_BUMPS, len(known))
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
