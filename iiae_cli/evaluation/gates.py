"""`--fail-under KEY=VALUE` and `--fail-over KEY=VALUE`: figures as gates for scripts.

A gate says how good a figure must at least be. For most figures better is larger and a smaller value fails. Where the
key's last part names an error, `l1…`, `lpips…`, `error_…`, `leakage…` or `median_rank`, better is smaller and a larger
value fails. KL terms are no errors: an exclusive latent whose KL falls towards zero says nothing, so the gate on it is
a floor. `--fail-over` is a ceiling whatever the key names: the R² of a colour is good in one latent, a leak in another.
A figure that was not measured (null, NaN) fails every gate.

Gates are parsed before anything is measured, and all that fail are reported together.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iiae_cli.common.errors import IiaeError

_ERRORS = ("l1", "lpips", "error", "leakage", "median_rank")
_SHOWN = 5  # near matches in a hint


@dataclass(frozen=True)
class Gate:
    """A dotted key, as in `retrieval.shared.x_to_y.recall@1`, and the bound that its figure must keep.

    Attributes:
        key: of the figure.
        bound: the least value allowed; the largest where `lower_is_better`.
        ceiling: whether the bound is the largest value whatever the key names.
    """

    key: str
    bound: float
    ceiling: bool = False

    @property
    def lower_is_better(self) -> bool:
        """Whether the figure is an error, so that the bound is its largest allowed value."""
        name = self.key.rsplit(".", 1)[-1]
        return self.ceiling or any(
            name == error or name.startswith(f"{error}_") for error in _ERRORS
        )

    def failure(self, value: float | None) -> str | None:
        """A line saying why a figure does not pass, or None."""
        if value is None or math.isnan(value):
            return f"{self.key} could not be measured"
        if self.lower_is_better:
            return (
                None
                if value <= self.bound
                else f"{self.key} is {value:.6g}, above {self.bound:.6g}"
            )
        return None if value >= self.bound else f"{self.key} is {value:.6g}, below {self.bound:.6g}"


def parse_gates(under: Sequence[str], over: Sequence[str] = ()) -> list[Gate]:
    """Gates of `KEY=VALUE` texts: those of `--fail-under`, then those of `--fail-over`.

    Raises:
        IiaeError: some are not that; all of the first option that has any are named.
    """
    return [
        *_parsed("--fail-under", under, "retrieval.shared.x_to_y.recall@1=0.9"),
        *_parsed("--fail-over", over, "disentanglement.latents.shared_x.leakage_mean=0.1"),
    ]


def _parsed(option: str, texts: Sequence[str], example: str) -> list[Gate]:
    gates, wrong = [], []
    for text in texts:
        key, _, bound_text = text.partition("=")
        try:
            bound = float(bound_text)
        except ValueError:
            bound = math.nan
        if key and math.isfinite(bound):
            gates.append(Gate(key, bound, ceiling=option == "--fail-over"))
        else:
            wrong.append(text)
    if wrong:
        raise IiaeError(
            f"{option} {', '.join(wrong)} is not KEY=VALUE",
            f"write {option} {example}",
        )
    return gates


def failed_gates(gates: Sequence[Gate], figures: Mapping[str, Any]) -> list[str]:
    """A line for every gate that its figure does not pass.

    Args:
        gates: of `parse_gates`.
        figures: nested mappings by name, numbers or None at their ends.

    Raises:
        IiaeError: keys that name no figure; all are named, near matches in the hint.
    """
    known = dotted_figures(figures)
    unknown = [gate.key for gate in gates if gate.key not in known]
    if unknown:
        named = ", ".join(f"'{key}'" for key in dict.fromkeys(unknown))
        near = list(dict.fromkeys(match for key in unknown for match in _near(key, list(known))))
        found = (
            f"near matches: {', '.join(near)}"
            if near
            else f"figures: {', '.join(known) or 'none was measured'}"
        )
        raise IiaeError(f"there is no figure {named}", found)
    return [line for gate in gates if (line := gate.failure(known[gate.key])) is not None]


def dotted_figures(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Every number (or None) of nested mappings by its dotted key; anything else is left out."""
    found: dict[str, float | None] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= dotted_figures(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[f"{prefix}{name}"] = value
    return found


def _near(key: str, known: list[str]) -> list[str]:
    """Keys that hold the text as it is, else those spelt much like it."""
    return [one for one in known if key in one][:_SHOWN] or difflib.get_close_matches(
        key, known, n=_SHOWN, cutoff=0.7
    )
