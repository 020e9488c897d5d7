"""The report's latents: how many dimensions are in use, and how much each says."""

from __future__ import annotations

from iiae_cli.evaluation.disentanglement import LatentUsage, latent_usage
from iiae_cli.evaluation.protocols import EncodedPairs
from iiae_cli.evaluation.tables import Table
from iiae_cli.inference.trained import LatentKind
from iiae_cli.model import DOMAINS
from iiae_cli.report.curves import Chart
from iiae_cli.report.plots import bar_chart

_KINDS: tuple[LatentKind, ...] = ("shared", "exclusive")


def usage_table(pairs: EncodedPairs) -> Table:
    """Active dimensions of every latent, and the exclusive ones' KL to the prior (a shared one is held to no prior)."""
    rows = []
    for kind in _KINDS:
        for domain in DOMAINS:
            usage = latent_usage(pairs.of(domain), kind)
            if usage is not None:
                nats = float(usage.kl.sum()) if kind == "exclusive" else None
                rows.append((f"{kind} {domain}", len(usage.kl), usage.active, nats))
    return Table("Latents in use", ["latent", "dimensions", "active", "KL, nats"], rows)


def usage_chart(pairs: EncodedPairs) -> Chart | None:
    """KL of every exclusive dimension, largest first; None for a model that has none."""
    found = _exclusive(pairs)
    if not found:
        return None
    groups = [
        (f"exclusive {domain}", sorted(map(float, usage.kl), reverse=True))
        for domain, usage in found
    ]
    svg = bar_chart(groups, x_label="dimension, the one of largest KL first", y_label="KL, nats")
    parts = [
        f"{name}: " + ", ".join(f"{value:.2f}" for value in values[:16]) for name, values in groups
    ]
    return Chart("KL of each exclusive dimension", svg, f"Nats, largest first. {'; '.join(parts)}.")


def dimension_table(pairs: EncodedPairs) -> Table | None:
    """KL and variance of every exclusive dimension; None for a model that has none."""
    rows = [
        (f"exclusive {domain}", number, float(kl), float(variance))
        for domain, usage in _exclusive(pairs)
        for number, (kl, variance) in enumerate(zip(usage.kl, usage.variance, strict=True))
    ]
    headers = ["latent", "dimension", "KL, nats", "variance of means"]
    return (
        Table("Exclusive dimensions, as the model numbers them", headers, rows, 2) if rows else None
    )


def _exclusive(pairs: EncodedPairs) -> list[tuple[str, LatentUsage]]:
    found = [(domain, latent_usage(pairs.of(domain), "exclusive")) for domain in DOMAINS]
    return [(domain, usage) for domain, usage in found if usage is not None]
