"""`--fail-under KEY=VALUE` and `--fail-over KEY=VALUE`: figures as gates for scripts.

`--fail-under` says how good a figure must be at least: a floor, or, where the key's last part names
an error (`l1…`, `lpips…`, `error_…`, `leakage…`, `median_rank`), a ceiling. KL terms are no errors:
an exclusive latent whose KL falls towards zero holds nothing. `--fail-over` is a ceiling whatever
the key names: the R² of a colour is good in one latent and a leak in another. A figure that was not
measured (null, NaN) fails every gate.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iiae_cli.common.errors import IiaeError

_ERRORS = ("l1", "lpips", "error", "leakage", "median_rank")
_EXAMPLES = {
    "--fail-under": "retrieval.shared.x_to_y.recall@1=0.9",
    "--fail-over": "disentanglement.latents.shared_x.leakage_mean=0.1",
}
_NEAR_MATCHES = 5


@dataclass(frozen=True)
class Gate:
    """A dotted key, as `retrieval.shared.x_to_y.recall@1`, and the bound that its figure keeps."""

    key: str
    bound: float
    is_ceiling: bool

    def failure(self, value: float | None) -> str | None:
        """A line that says why a figure does not pass, or None."""
        if value is None or math.isnan(value):
            return f"{self.key} could not be measured"
        if self.is_ceiling and value > self.bound:
            return f"{self.key} is {value:.6g}, above {self.bound:.6g}"
        if not self.is_ceiling and value < self.bound:
            return f"{self.key} is {value:.6g}, below {self.bound:.6g}"
        return None


def parse_gates(under: Sequence[str], over: Sequence[str] = ()) -> list[Gate]:
    """Gates from `KEY=VALUE` texts: those of `--fail-under`, then those of `--fail-over`.

    Raises:
        IiaeError: some are malformed; all of the first option that has any are named.
    """
    gates = []
    for option, texts in (("--fail-under", under), ("--fail-over", over)):
        wrong = [text for text in texts if not _is_gate(text)]
        if wrong:
            message = f"{option} {', '.join(wrong)} is not KEY=VALUE"
            raise IiaeError(message, f"write {option} {_EXAMPLES[option]}")
        for text in texts:
            key, _, bound = text.partition("=")
            gates.append(Gate(key, float(bound), option == "--fail-over" or is_error(key)))
    return gates


def is_error(key: str) -> bool:
    """Whether a dotted key's last part names an error, of which less is better."""
    name = key.rsplit(".", 1)[-1]
    return any(name == error or name.startswith(f"{error}_") for error in _ERRORS)


def failed_gates(gates: Sequence[Gate], figures: Mapping[str, Any]) -> list[str]:
    """A line for every gate that its figure, among nested mappings of numbers, does not pass.

    Raises:
        IiaeError: keys that name no figure; all are named, near matches in the hint.
    """
    known = dotted_figures(figures)
    unknown = list(dict.fromkeys(gate.key for gate in gates if gate.key not in known))
    if unknown:
        near = list(dict.fromkeys(match for key in unknown for match in _near(key, list(known))))
        hint = f"figures: {', '.join(known) or 'none was measured'}"
        if near:
            hint = f"near matches: {', '.join(near)}"
        raise IiaeError(f"there is no figure {', '.join(map(repr, unknown))}", hint)
    return [line for gate in gates if (line := gate.failure(known[gate.key])) is not None]


def dotted_figures(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Every number (or None) of nested mappings by its dotted key; anything else is left out."""
    dotted: dict[str, float | None] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            dotted |= dotted_figures(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            dotted[f"{prefix}{name}"] = value
    return dotted


def _is_gate(text: str) -> bool:
    key, _, bound = text.partition("=")
    try:
        return bool(key) and math.isfinite(float(bound))
    except ValueError:
        return False


def _near(key: str, known: list[str]) -> list[str]:
    """Keys that contain the text as it is, else those spelt much like it."""
    holding = [name for name in known if key in name][:_NEAR_MATCHES]
    return holding or difflib.get_close_matches(key, known, n=_NEAR_MATCHES, cutoff=0.7)
