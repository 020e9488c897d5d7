"""Generative factors as probes need them: whose they are, quantities or classes, in which rows.

A factor's name says whose it is: `x_…` belongs to domain x alone, `y_…` to y alone, `shared_…` and
`class` to both. Any other is measured without a verdict, unless the caller names it as shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
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
    """A factor of N rows: a quantity, or classes by code."""

    name: str
    owner: Owner | None  # which latents should hold it, if known
    values: NDArray[Any]  # (N, D) float64, or codes from 0 (N,)
    known: NDArray[np.bool_]  # (N,) whether a row has a value
    classes: int = 0  # 0 for a quantity


def owner_of(name: str, shared: Collection[str] = ()) -> Owner | None:
    """Whose a factor of this name is; `shared` names more of those that both domains hold."""
    if name == CLASS or name in shared or name.startswith("shared_"):
        return "shared"
    return "x" if name.startswith("x_") else "y" if name.startswith("y_") else None


def columns_of(split: Split, domain: Domain, *, by_class: bool) -> dict[str, NDArray[Any]]:
    """The factors of one domain's rows by name, as stored; its labels are the factor `class`.

    Rows that are paired `by_class` have no partner, so that factors of pairs mean nothing there.
    """
    columns = {} if by_class else dict(split.factors)
    labels = split.side(domain).labels
    if labels is not None:
        columns[CLASS] = np.array(labels, dtype=object)
    return columns


def read_factor(
    name: str,
    measured: NDArray[Any],
    learning: NDArray[Any],
    owner: Owner | None = None,
    least: int = 1,
) -> Factor:
    """A factor of measured rows (M, …), then of rows to learn from (L, …).

    Text, truth values and up to `MAX_CODES` distinct whole numbers are classes; empty text is
    unknown, and so is a class that fewer than `least` measured rows have. Anything else is a
    quantity; NaN and infinity are unknown, and `learning` throughout if it is unlike `measured`.
    """
    if _is_classes(name, measured):
        texts = _texts(measured)
        counts = Counter(text for text in sorted(texts) if text)
        kept = [text for text, count in counts.most_common(MAX_CLASSES) if count >= least]
        codes = {text: code for code, text in enumerate(sorted(kept))}
        coded = np.array([codes.get(text, -1) for text in (*texts, *_texts(learning))], np.int64)
        return Factor(name, owner, coded, coded >= 0, len(codes))
    values = measured.reshape(len(measured), -1).astype(np.float64)
    more = np.full((len(learning), values.shape[1]), np.nan)
    if learning.dtype.kind in "fiu" and learning.shape[1:] == measured.shape[1:]:
        more[:] = learning.reshape(more.shape)
    values = np.concatenate([values, more])
    known: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=1))
    return Factor(name, owner, values, known)


def check_names(shared: Sequence[str], known: Collection[str]) -> None:
    """Refuse names of factors that the data does not hold; the error names all of them."""
    unknown = [name for name in shared if name not in known]
    if unknown:
        hint = "this data holds no factors"
        if known:
            hint = f"factors of this data: {', '.join(sorted(known))}"
        raise IiaeError(f"there is no factor {', '.join(map(repr, unknown))}", hint)


def _is_classes(name: str, values: NDArray[Any]) -> bool:
    if name == CLASS or values.dtype.kind in "OSUb":
        return values.ndim == 1
    return values.dtype.kind in "iu" and values.ndim == 1 and len(np.unique(values)) <= MAX_CODES


def _texts(values: NDArray[Any]) -> list[str]:
    """A name per row; empty where unknown."""
    if values.dtype.kind == "f":
        return [f"{value:g}" if np.isfinite(value) else "" for value in values.ravel()]
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for value in values
    ]
