"""The report's headline figures, each beside the training-free baseline's and the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iiae_cli.evaluation.disentanglement import DYING_NATS, latent_usage
from iiae_cli.evaluation.paper import PaperRow
from iiae_cli.evaluation.protocols import DIRECTIONS, EncodedPairs, direction_name
from iiae_cli.model import DOMAINS
from iiae_cli.report.page import Card, CardLine, cell


def headline_cards(
    figures: dict[str, Any], paper: Sequence[PaperRow], pairs: EncodedPairs
) -> list[Card]:
    """A card for each direction's retrieval and translation, each exclusive latent's KL and each latent's leakage, as
    far as they were measured.
    """
    return [
        *_retrieval(figures, paper),
        *_translation(figures),
        *_exclusive(pairs),
        *_leakage(figures),
    ]


def _retrieval(figures: dict[str, Any], paper: Sequence[PaperRow]) -> list[Card]:
    cards = []
    paired, by_class = figures.get("retrieval", {}), figures.get("zero_shot", {})
    baseline_by_class = by_class.get("baseline_centred") or by_class.get("baseline_raw") or {}
    for source, target in DIRECTIONS:
        way = direction_name(source, target)
        for task, measure, key, found, baseline in (
            (
                "Recall@1",
                "recall@1",
                f"retrieval.shared.{way}",
                paired.get("shared", {}),
                paired.get("baseline", {}),
            ),
            ("mAP@all", "map@all", f"zero_shot.{way}", by_class, baseline_by_class),
        ):
            if way in found:
                ours = found[way][measure]
                lines = (
                    [
                        _compared(
                            ours,
                            baseline[way][measure],
                            found[way]["n"] if task == "Recall@1" else 0,
                        )
                    ]
                    if way in baseline
                    else []
                )
                published = next(
                    (
                        one
                        for one in paper
                        if one.published.key == f"{key}.{measure}" and _is_iiae(one)
                    ),
                    None,
                )
                if published is not None:
                    apart = ", set-ups differ" if published.note else ""
                    lines.append(CardLine(f"the paper: {cell(published.published.value)}{apart}"))
                cards.append(Card(f"{task}, {source}\u00a0→\u00a0{target}", ours, lines))
    return cards


def _is_iiae(row: PaperRow) -> bool:
    return row.published.method == "IIAE" and row.ours is not None


def _compared(ours: float, baseline: float, queries: int) -> CardLine:
    """A recall of so many queries counts as below where the difference exceeds two standard errors; 0: any does."""
    text = f"the training-free baseline {cell(baseline)}"
    if ours > baseline:
        return CardLine(f"▲ above {text}", "good")
    if ours < baseline:
        if queries and ours + 2.0 * (ours * (1.0 - ours) / queries) ** 0.5 >= baseline:
            return CardLine(f"below {text} by less than two standard errors")
        return CardLine(f"▼ below {text}", "bad")
    return CardLine(f"equal to {text}")


def _translation(figures: dict[str, Any]) -> list[Card]:
    cards = []
    for source, target in DIRECTIONS:
        found = figures.get("translation", {}).get(direction_name(source, target), {})
        if found.get("l1") is not None:
            others = [
                CardLine(f"{name.upper().replace('_', ' ')} {cell(found[name])}")
                for name in ("ssim", "lpips", "lpips_vgg")
                if found.get(name) is not None
            ]
            cards.append(
                Card(f"Guided translation L1, {source}\u00a0→\u00a0{target}", found["l1"], others)
            )
    return cards


def _leakage(figures: dict[str, Any]) -> list[Card]:
    cards = []
    for name, one in figures.get("disentanglement", {}).get("latents", {}).items():
        if one["leakage_mean"] is not None:
            lines = [CardLine(f"from samples {cell(round(one['leakage_sample'], 3))}")]
            if one["informativeness_mean"] is not None:
                lines.append(CardLine(f"informative {cell(round(one['informativeness_mean'], 3))}"))
            cards.append(
                Card(f"Leakage of {name.replace('_', ' ')}", round(one["leakage_mean"], 3), lines)
            )
    return cards


def _exclusive(pairs: EncodedPairs) -> list[Card]:
    cards = []
    for domain in DOMAINS:
        usage = latent_usage(pairs.of(domain), "exclusive")
        if usage is not None:
            nats = float(usage.kl.sum())
            lines = [CardLine(f"{usage.active} of {len(usage.kl)} dimensions active")]
            if nats < DYING_NATS:
                lines.insert(
                    0, CardLine(f"▼ below {DYING_NATS:.0f} nats: says next to nothing", "bad")
                )
            cards.append(Card(f"Exclusive KL of {domain}, nats", nats, lines))
    return cards
