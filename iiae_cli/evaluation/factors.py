"""Generative factors as probes need them: whose each is, whether it is a quantity or a class, which rows know it.

Whose a factor is says its name: `x_…` belongs to domain x alone, `y_…` to y alone, `shared_…` and `class` to both. Any
other is measured without a verdict, unless the caller names it as shared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import Split
from iiae_cli.model import Domain

Owner: TypeAlias = Literal["x", "y", "shared"]

CLASS = "class"
MAX_CODES = 30  # so many distinct whole numbers are classes, more are a quantity
MAX_CLASSES = 50  # the most frequent ones; a probe's time grows with their number


@dataclass(frozen=True)
class Factor:
    """A factor of N rows.

    Attributes:
        name: of the data file.
        owner: which latents should hold it; None where nobody said.
        values: (N, D) float64 of a quantity, (N,) codes from 0 of classes.
        known: (N,) whether a row has a value.
        classes: their number; 0 for a quantity.
    """

    name: str
    owner: Owner | None
    values: NDArray[Any]
    known: NDArray[np.bool_]
    classes: int = 0


def owner_of(name: str, shared: Collection[str] = ()) -> Owner | None:
    """Whose a factor of this name is; `shared` names more of those that both domains hold."""
    if name == CLASS or name in shared or name.startswith("shared_"):
        return "shared"
    return "x" if name.startswith("x_") else "y" if name.startswith("y_") else None


def columns_of(split: Split, domain: Domain, *, by_class: bool) -> dict[str, NDArray[Any]]:
    """The factors of one domain's rows by name, as stored; classes are the domain's labels where it has them.

    Args:
        split: aligned, unless `by_class`.
        domain: whose rows.
        by_class: whether rows have no partner, so that factors of pairs mean nothing.
    """
    columns = {} if by_class else dict(split.factors)
    labels = split.side(domain).labels
    if labels is not None:
        columns[CLASS] = np.array(labels, dtype=object)
    return columns


def read_factor(
    name: str,
    measured: NDArray[Any],
    learning: NDArray[Any] | None,
    owner: Owner | None,
    least: int = 1,
) -> Factor:
    """A factor of M measured rows and L rows to learn from, in this order.

    Text, truth values and up to `MAX_CODES` distinct whole numbers are classes; empty text is unknown, and so is a
    class that fewer than `least` measured rows have. Anything else is a quantity; NaN and infinity are unknown.

    Args:
        name: of the factor.
        measured: (M, …).
        learning: (L, …), or None where there are no such rows; unknown throughout where it is unlike `measured`.
        owner: whose it is.
        least: rows of a class below which it is left out.
    """
    if _is_classes(name, measured):
        texts = [_texts(measured), [] if learning is None else _texts(learning)]
        names, counts = np.unique(
            np.array([one for one in texts[0] if one], dtype=object), return_counts=True
        )
        kept = sorted(zip(-counts, names, strict=True))[:MAX_CLASSES]
        codes = {
            one: code
            for code, one in enumerate(sorted(one for count, one in kept if -count >= least))
        }
        coded: NDArray[np.int64] = np.array(
            [codes.get(one, -1) for one in (*texts[0], *texts[1])], np.int64
        )
        return Factor(name, owner, coded, coded >= 0, len(codes))
    parts = [measured.reshape(len(measured), -1).astype(np.float64)]
    if learning is not None:
        like = learning.dtype.kind in "fiu" and learning.shape[1:] == measured.shape[1:]
        unknown = np.full((len(learning), parts[0].shape[1]), np.nan)
        parts.append(learning.reshape(unknown.shape).astype(np.float64) if like else unknown)
    values = np.concatenate(parts)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=1))
    return Factor(name, owner, values, known)


def read_factors(
    measured: Mapping[str, NDArray[Any]],
    learning: Mapping[str, NDArray[Any]] | None,
    learning_rows: int,
    *,
    shared: Collection[str] = (),
    least: int = 1,
) -> list[Factor]:
    """Every factor of the measured rows; those that the learning rows lack are unknown there.

    Args:
        measured: columns of the measured rows.
        learning: columns of the rows to learn from; None where there are none.
        learning_rows: L, their number.
        shared: names of factors that both domains hold, beside those whose names say so.
        least: see `read_factor`.
    """
    factors = []
    for name, values in measured.items():
        rows = None
        if learning is not None:
            rows = learning.get(name)
            if rows is None:
                rows = np.full(learning_rows, np.nan)
        factors.append(read_factor(name, values, rows, owner_of(name, shared), least))
    return factors


def check_names(shared: Sequence[str], known: Collection[str]) -> None:
    """Refuse names of factors that there are not.

    Raises:
        IiaeError: some are unknown; all are named.
    """
    unknown = [name for name in shared if name not in known]
    if unknown:
        have = (
            f"factors of this data: {', '.join(sorted(known))}"
            if known
            else "this data holds no factors"
        )
        raise IiaeError(f"there is no factor {', '.join(map(repr, unknown))}", have)


def _is_classes(name: str, values: NDArray[Any]) -> bool:
    if name == CLASS or values.dtype.kind in "OSUb":
        return values.ndim == 1
    return values.dtype.kind in "iu" and values.ndim == 1 and len(np.unique(values)) <= MAX_CODES


def _texts(values: NDArray[Any]) -> list[str]:
    """A name per row; empty where unknown."""
    if values.dtype.kind == "f":
        return ["" if not np.isfinite(one) else f"{one:g}" for one in values.ravel()]
    return [
        one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in values
    ]
