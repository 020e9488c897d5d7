"""What can be read from latents: probes of generative factors, each beside the same probe on shuffled values.

A *linear* probe is ridge regression for quantities and logistic regression for classes, on standardised dimensions. A
*non-linear* one is ridge regression on the same dimensions joined by Gaussian bumps (Nyström features) over their
leading principal components; classes are read from indicator columns. Both are tested on rows that they did not learn
from.

Standardising each dimension makes the figures free of scale: a leak is found however small its variance, as a network
that reads the latent could find it too. Regularisation is chosen per factor, by leave-one-out error on learning rows
(ridge) or on a held-out quarter of them (logistic). One solution of ridge regression serves every quantity and its
shuffled control at once, which is what makes a dozen probes per latent affordable.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.evaluation.factors import Factor
from iiae_cli.evaluation.ridge import ridge_predictions

FOLDS = 5
LEARN_ONLY = -1  # the fold of a row that every probe learns from and none is tested on
MAX_DIMENSIONS = 1024  # wider latents are represented by so many principal components
_LEFT_OUT = -2
_PENALTIES = tuple(10.0**power for power in np.arange(-2.0, 5.1, 0.5))
_INVERSE_PENALTIES = (0.01, 1.0)
_BUMPS = 300
_BUMP_DIMENSIONS = 32
_LEAST_ROWS = 2 * FOLDS

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class ProbeScore:
    """How well a factor is read: cross-validated R² of a quantity (mean of its columns), balanced accuracy of classes.

    Attributes:
        linear: of the linear probe.
        nonlinear: of the non-linear one.
        control: of the linear probe on shuffled values; it belongs near `chance`.
        control_nonlinear: likewise.
        chance: 0 for a quantity, 1 / classes.
        rows: tested on.
    """

    linear: float
    nonlinear: float
    control: float
    control_nonlinear: float
    chance: float
    rows: int

    @property
    def above_control(self) -> float:
        """The better probe between its control (or chance, where that is higher) and a perfect reading: in [0, 1]."""
        pairs = ((self.linear, self.control), (self.nonlinear, self.control_nonlinear))
        floors = [(score, max(control, self.chance)) for score, control in pairs]
        return max(
            [0.0, *((score - floor) / (1.0 - floor) for score, floor in floors if floor < 1.0)]
        )


def draw_folds(groups: Ints, learning: int = 0, seed: int = 0) -> Ints:
    """The fold of every row, 0 … `FOLDS` − 1, rows of one group together; then `learning` rows of `LEARN_ONLY`.

    Args:
        groups: (M,) what must not be on both sides of a test, by number.
        learning: L.
        seed: of the division.

    Returns:
        (M + L,).
    """
    names, members = np.unique(groups, return_inverse=True)
    fold_of_group = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    return np.concatenate([fold_of_group[members], np.full(learning, LEARN_ONLY)]).astype(np.int64)


def probe(
    latents: NDArray[Any], factors: Sequence[Factor], folds: Ints, seed: int = 0
) -> dict[str, ProbeScore | None]:
    """Scores of every factor by name; None where there is nothing to be read.

    That is: fewer than two rows per fold, a quantity that never varies, fewer than two classes, or classes of which no
    two items (groups of rows) tell.

    Args:
        latents: (N, S).
        factors: of these N rows.
        folds: (N,) of `draw_folds`.
        seed: of shuffling, bumps and held-out quarters.

    Raises:
        IiaeError: latents that are not finite.
    """
    if not np.isfinite(latents).all():
        raise IiaeError(
            "latents hold values that are not finite",
            "train with a lower optimizer.lr, or keep an earlier step",
        )
    scores: dict[str, ProbeScore | None] = {factor.name: None for factor in factors}
    layouts: dict[bytes, tuple[Ints, list[Factor]]] = {}
    for factor in factors:
        layout = np.where(factor.known, folds, _LEFT_OUT)
        if _readable(factor, layout):
            layouts.setdefault(layout.tobytes(), (layout, []))[1].append(factor)
    if layouts:
        values = latents.astype(np.float64)
        wide = values.shape[1] > MAX_DIMENSIONS
        values = _narrowed(values, seed) if wide else values
        for layout, together in layouts.values():
            scores |= _probe_together(values, together, layout, seed, standardise=not wide)
    return scores


def _readable(factor: Factor, layout: Ints) -> bool:
    measured = layout >= 0
    if measured.sum() < _LEAST_ROWS or len(np.unique(layout[measured])) < 2:
        return False
    values = factor.values[measured]
    if not factor.classes:
        return bool(np.ptp(values, axis=0).any())
    # A class whose rows are all in one fold is never learnt from where it is tested.
    spread = [
        code for code in np.unique(values) if len(np.unique(layout[measured][values == code])) > 1
    ]
    return len(spread) > 1 and len(spread) == len(np.unique(values))


def _narrowed(latents: Floats, seed: int) -> Floats:
    """The leading principal components of standardised latents. Their scales are kept: to make them equal would leave
    nothing to generalise by where rows are fewer than dimensions, every row being as far from every other.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    count = min(MAX_DIMENSIONS, len(latents) - 1)
    standard = StandardScaler().fit_transform(latents)
    narrow: Floats = PCA(
        count, svd_solver="randomized", iterated_power=2, random_state=seed
    ).fit_transform(standard)
    return narrow


@dataclass(frozen=True)
class _Target:
    """A factor's true or shuffled values over the rows of a layout, and their columns for ridge regression."""

    factor: Factor
    values: NDArray[Any]
    columns: slice


def _probe_together(
    latents: Floats, factors: Sequence[Factor], layout: Ints, seed: int, *, standardise: bool
) -> dict[str, ProbeScore | None]:
    """Scores of factors that are known in the same rows."""
    rows = layout != _LEFT_OUT
    latents, folds = latents[rows], layout[rows]
    order = np.random.default_rng(seed).permutation(len(latents))
    targets: list[_Target] = []
    blocks: list[Floats] = []
    width = 0
    for factor in factors:
        for values in (factor.values[rows], factor.values[rows][order]):
            block = np.eye(factor.classes)[values] if factor.classes else values
            targets.append(_Target(factor, values, slice(width, width + block.shape[1])))
            blocks.append(block)
            width += block.shape[1]
    linear, bent = _predictions(
        latents, np.concatenate(blocks, axis=1), targets, folds, seed, standardise
    )
    measured = folds >= 0
    scores: dict[str, ProbeScore | None] = {}
    for place, factor in enumerate(factors):
        true, shuffled = targets[2 * place], targets[2 * place + 1]
        found = [
            _score(one, prediction, measured)
            for one in (true, shuffled)
            for prediction in (linear, bent)
        ]
        chance = 1.0 / len(np.unique(true.values[measured])) if factor.classes else 0.0
        scores[factor.name] = ProbeScore(
            found[0], found[1], found[2], found[3], chance, int(measured.sum())
        )
    return scores


def _predictions(
    latents: Floats,
    columns: Floats,
    targets: Sequence[_Target],
    folds: Ints,
    seed: int,
    standardise: bool,
) -> tuple[Floats, Floats]:
    """What the linear and the non-linear probe say of every measured row; of classes an indicator, or its estimate."""
    from sklearn.preprocessing import StandardScaler

    linear, bent = np.zeros_like(columns), np.zeros_like(columns)
    plain = [
        place
        for target in targets
        if not target.factor.classes
        for place in range(target.columns.start, target.columns.stop)
    ]
    for fold in range(FOLDS):
        test, learn = folds == fold, folds != fold
        if not test.any():
            continue
        scaler = StandardScaler(with_std=standardise).fit(latents[learn])
        known, asked = scaler.transform(latents[learn]), scaler.transform(latents[test])
        if plain:
            linear[np.ix_(test, plain)] = ridge_predictions(
                known, columns[learn][:, plain], asked, _PENALTIES
            )
        for true, shuffled in zip(targets[::2], targets[1::2], strict=True):
            if true.factor.classes:
                codes = _classify(known, (true.values[learn], shuffled.values[learn]), asked, seed)
                for target, found in zip((true, shuffled), codes, strict=True):
                    linear[test, target.columns] = np.eye(target.factor.classes)[found]
        bumps, asked_bumps = _bumps(known, asked, seed)
        joined, asked_joined = np.hstack([known, bumps]), np.hstack([asked, asked_bumps])
        bent[test] = ridge_predictions(joined, columns[learn], asked_joined, _PENALTIES)
    return linear, bent


def _classify(
    known: Floats, codes: tuple[Ints, Ints], asked: Floats, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Logistic regression of true and of shuffled codes under one penalty, which the true ones choose."""
    order = np.random.default_rng(seed).permutation(len(known))
    held, kept = order[: len(order) // 4], order[len(order) // 4 :]
    true = codes[0]
    chosen = max(
        _INVERSE_PENALTIES,
        key=lambda inverse: _accuracy(
            true[held], _logistic(known[kept], true[kept], known[held], inverse)
        ),
    )
    return _logistic(known, codes[0], asked, chosen), _logistic(known, codes[1], asked, chosen)


def _logistic(known: Floats, codes: Ints, asked: Floats, inverse_penalty: float) -> Ints:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(codes)) == 1:
        return np.full(len(asked), codes[0])
    model = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=200, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # 200 steps are enough to tell a class, if not the optimum
        predicted: Ints = model.fit(known, codes).predict(asked)
    return predicted


def _bumps(known: Floats, asked: Floats, seed: int) -> tuple[Floats, Floats]:
    """Gaussian bumps around learning rows, as wide as rows lie apart, weighing as much as the dimensions do."""
    from scipy.spatial.distance import pdist
    from sklearn.decomposition import PCA
    from sklearn.kernel_approximation import Nystroem
    from sklearn.preprocessing import StandardScaler

    if known.shape[1] > _BUMP_DIMENSIONS:
        leading = PCA(
            min(_BUMP_DIMENSIONS, len(known)), svd_solver="randomized", random_state=seed
        ).fit(known)
        known, asked = leading.transform(known), leading.transform(asked)
    some = np.random.default_rng(seed).permutation(len(known))[:_BUMPS]
    apart = float(np.median(pdist(known[some], "sqeuclidean"))) or 1.0
    count = min(_BUMPS, len(known))
    features = Nystroem(gamma=1.0 / apart, n_components=count, random_state=seed).fit(known)
    bumps = features.transform(known)
    scaler = StandardScaler().fit(bumps)
    weight = np.sqrt(known.shape[1] / count)
    return weight * scaler.transform(bumps), weight * scaler.transform(features.transform(asked))


def _score(target: _Target, predicted: Floats, measured: NDArray[np.bool_]) -> float:
    """R² of pooled predictions, mean over columns that vary; or balanced accuracy."""
    found = predicted[measured][:, target.columns]
    true = target.values[measured]
    if target.factor.classes:
        return _accuracy(true, found.argmax(axis=1))
    varying = true.std(axis=0) > 0
    error = ((true - found) ** 2).sum(axis=0)[varying]
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)[varying]
    return float((1.0 - error / spread).mean())


def _accuracy(true: Ints, found: Ints) -> float:
    """Mean over classes of the part of their rows that is told rightly."""
    return float(np.mean([(found[true == code] == code).mean() for code in np.unique(true)]))
