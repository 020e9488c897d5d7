"""The report's disentanglement: the verdicts, and what they were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iiae_cli.evaluation.tables import (
    Table,
    bound_table,
    latent_table,
    probe_table,
    swap_table,
)
from iiae_cli.report.curves import Chart
from iiae_cli.report.plots import score_chart

_KINDS = ("shared", "exclusive")


@dataclass(frozen=True)
class DisentanglementSection:
    """What the section shows, in its order; None and empty where it was not measured."""

    warnings: Sequence[str]
    latents: Table | None
    charts: Sequence[Chart]
    probes: Sequence[Table]
    swaps: Table | None
    bounds: Table | None
    rows: int
    learning: int


def disentanglement_section(
    figures: Mapping[str, Any], protocol: Mapping[str, Any]
) -> DisentanglementSection | None:
    """The section; None where the task was not measured."""
    if "latents" not in figures:
        return None
    charts = [
        chart for kind in _KINDS if (chart := _score_chart(kind, figures["probes"])) is not None
    ]
    return DisentanglementSection(
        warnings=figures["warnings"],
        latents=_filled(latent_table(figures)),
        charts=charts,
        probes=[
            table
            for way in ("mean", "sample")
            if (table := _filled(probe_table(figures, way))) is not None
        ],
        swaps=_filled(swap_table(figures)),
        bounds=_filled(bound_table(figures)),
        rows=int(protocol.get("probe_rows", 0)),
        learning=int(protocol.get("probe_rows_learnt_from_train", 0)),
    )


def _filled(table: Table | None) -> Table | None:
    return table if table is not None and table.rows else None


def _score_chart(kind: str, probes: Mapping[str, Mapping[str, Any]]) -> Chart | None:
    """Linear probes of one kind's two latents, means beside samples; None where nothing was read."""
    read = [
        (latent.removeprefix(f"{kind}_"), factor, one)
        for latent, factors in probes.items()
        if latent.startswith(kind)
        for factor, one in factors.items()
        if one["mean"]["linear"] is not None
    ]
    if not read:
        return None
    names = [
        f"{domain}: {factor}{' (belongs)' if one['belongs'] else ''}"
        for domain, factor, one in read
    ]
    groups = [(way, [one[way]["linear"] for _, _, one in read]) for way in ("mean", "sample")]
    chances = [one["chance"] for _, _, one in read]
    svg = score_chart(names, groups, chances, x_label="R², or balanced accuracy of classes")
    said = [
        f"{name}: mean {round(mean, 2) + 0.0:.2f}, sample {round(sample, 2) + 0.0:.2f}, chance {chance:.2f}"
        for name, mean, sample, chance in zip(
            names, groups[0][1], groups[1][1], chances, strict=True
        )
    ]
    return Chart(
        f"Linear probes of the {kind} latents",
        svg,
        f"Bars, 1 is a perfect reading. {'; '.join(said)}.",
    )
