"""Is it disentangled? What each latent holds of each known factor, and what that is worth in two figures.

Four latents are read: shared x, shared y, exclusive x, exclusive y; each by its posterior *mean*, which retrieval and
translation use, and by one *sample* per row, which is all that training lets through. A factor should be in the shared
latents where both domains hold it, and in its own domain's exclusive latent where that alone does.

* `informativeness`: of the factors that a latent should hold, the better probe's score on the way from its control (or
  chance, where that is higher) to a perfect reading; the mean over them.
* `leakage`: the same of the factors that it should not hold; the largest.

Where the split has few rows, rows of the training split join every probe's learning rows (never its tests): a few
hundred rows cannot read a latent of as many dimensions, and would call a leak nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.factors import Factor, Owner, check_names, columns_of, read_factors
from iiae_cli.evaluation.probes import FOLDS, ProbeScore, draw_folds, probe
from iiae_cli.evaluation.protocols import EncodedPairs, encode_pairs
from iiae_cli.evaluation.usage import latent_usage
from iiae_cli.inference.trained import LatentKind, TrainedModel
from iiae_cli.model import DOMAINS, Domain

PROBE_ROWS = 3000
DYING_NATS = 3.0  # an exclusive latent below says next to nothing
LATENTS: tuple[tuple[LatentKind, Domain], ...] = (
    ("shared", "x"),
    ("shared", "y"),
    ("exclusive", "x"),
    ("exclusive", "y"),
)
WAYS = ("mean", "sample")
_CONTROL_MARGIN = 0.05  # of R², or four standard errors of an accuracy


@dataclass(frozen=True)
class ProbedRows:
    """Rows that probes see: the measured ones, then those that are only learnt from.

    Attributes:
        pairs: latents of all of them.
        factors: by domain.
        folds: by domain, as `draw_folds` gives them.
        learning: number of the latter.
    """

    pairs: EncodedPairs
    factors: dict[Domain, list[Factor]]
    folds: dict[Domain, NDArray[np.int64]]
    learning: int


def items_of(split: Split) -> NDArray[np.int64]:
    """The item that each aligned row belongs to: rows that share a picture of x or of y, by any chain, are one item."""
    x, y = (
        np.unique(np.array(ids, dtype=object), return_inverse=True)[1]
        for ids in (split.x.ids, split.y.ids)
    )
    pictures = int(x.max(initial=-1)) + 1
    nodes = pictures + int(y.max(initial=-1)) + 1
    links = coo_array((np.ones(len(x)), (x, pictures + y)), shape=(nodes, nodes))
    items: NDArray[np.int64] = connected_components(links, directed=False)[1][x].astype(np.int64)
    return items


def choose_rows(
    trained: TrainedModel,
    pairs: EncodedPairs,
    split: Split,
    train: Callable[[], Split] | None,
    *,
    by_class: bool,
    shared: Sequence[str] = (),
    rows: int = PROBE_ROWS,
    seed: int = 0,
    batch_size: int = 256,
) -> ProbedRows:
    """At most `rows` rows for the probes, drawn by seed; the training split fills up what the measured one lacks.

    Args:
        trained: the model.
        pairs: latents of `split`.
        split: the measured rows, aligned unless `by_class`.
        train: gives the training split, asked only where it is needed; None where there is none to learn from.
        by_class: whether rows belong together by their labels alone: only those are factors then.
        shared: names of factors that both domains hold, beside those whose names say so.
        rows: at most.
        seed: of the draws.
        batch_size: rows at once.

    Raises:
        IiaeError: `shared` names a factor that there is not.
    """
    counts = {domain: len(split.side(domain).rows) for domain in DOMAINS}
    chosen = {domain: _some(counts[domain], rows, seed) for domain in DOMAINS}
    columns = {domain: columns_of(split, domain, by_class=by_class) for domain in DOMAINS}
    check_names(shared, {name for one in columns.values() for name in one})
    items = None if by_class else items_of(split)
    more, extra = None, None
    if train is not None and not by_class and counts["x"] < rows and any(columns.values()):
        whole = train()
        if whole.pair_count:
            more = whole.take_pairs(_some(whole.pair_count, rows - counts["x"], seed))
            extra = encode_pairs(trained, more, batch_size=batch_size)
    learning = 0 if more is None else len(more.x)
    factors, folds, latents = {}, {}, {}
    for domain in DOMAINS:
        measured = {name: values[chosen[domain]] for name, values in columns[domain].items()}
        learnt = None if more is None else columns_of(more, domain, by_class=False)
        factors[domain] = read_factors(measured, learnt, learning, shared=shared, least=FOLDS)
        groups = np.arange(len(chosen[domain])) if items is None else items[chosen[domain]]
        folds[domain] = draw_folds(groups, learning, seed)
        latents[domain] = pairs.of(domain).take(chosen[domain])
        if extra is not None:
            latents[domain] = latents[domain].joined(extra.of(domain))
    return ProbedRows(EncodedPairs(latents["x"], latents["y"]), factors, folds, learning)


def probe_figures(rows: ProbedRows, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Scores by latent and factor: what is read from means and from samples, and whether it belongs there."""
    figures: dict[str, dict[str, Any]] = {}
    for number, (kind, domain) in enumerate(LATENTS):
        encoded = rows.pairs.of(domain)
        logvar = encoded.logvar(kind)
        if logvar is None:
            continue
        mean = encoded.mean(kind)
        noise = np.random.default_rng((seed, number)).standard_normal(mean.shape, dtype=np.float32)
        found = {
            way: probe(latents, rows.factors[domain], rows.folds[domain], seed)
            for way, latents in (("mean", mean), ("sample", mean + np.exp(0.5 * logvar) * noise))
        }
        figures[f"{kind}_{domain}"] = {
            factor.name: _probe_entry(
                factor, kind, domain, {way: found[way][factor.name] for way in WAYS}
            )
            for factor in rows.factors[domain]
        }
    return figures


def belongs(owner: Owner | None, kind: LatentKind, domain: Domain) -> bool | None:
    """Whether a latent should hold a factor; None where nobody said whose it is."""
    if owner is None:
        return None
    return owner == "shared" if kind == "shared" else owner == domain


def _probe_entry(
    factor: Factor, kind: LatentKind, domain: Domain, found: dict[str, ProbeScore | None]
) -> dict[str, Any]:
    some = next((score for score in found.values() if score is not None), None)
    entry: dict[str, Any] = {
        "kind": "classes" if factor.classes else "quantity",
        "belongs": belongs(factor.owner, kind, domain),
        "chance": None if some is None else some.chance,
        "n": 0 if some is None else some.rows,
    }
    for way, score in found.items():
        entry[way] = {
            name: None if score is None else getattr(score, name)
            for name in ("linear", "nonlinear", "control", "control_nonlinear", "above_control")
        }
    return entry


def latent_figures(
    pairs: EncodedPairs, probes: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Per latent its use, and its `leakage_…` and `informativeness_…` from means and from samples (None: no factor)."""
    figures: dict[str, dict[str, Any]] = {}
    for kind, domain in LATENTS:
        usage = latent_usage(pairs.of(domain), kind)
        if usage is None:
            continue
        name = f"{kind}_{domain}"
        entry: dict[str, Any] = {
            "dimensions": len(usage.kl),
            "active": usage.active,
            "kl": float(usage.kl.sum()),
        }
        for way in WAYS:
            held: dict[bool, list[float]] = {True: [], False: []}
            for one in probes.get(name, {}).values():
                if one["belongs"] is not None and one[way]["above_control"] is not None:
                    held[one["belongs"]].append(one[way]["above_control"])
            entry[f"leakage_{way}"] = max(held[False], default=None)
            entry[f"informativeness_{way}"] = float(np.mean(held[True])) if held[True] else None
        entry["kl_per_dimension"] = [float(f"{nats:.4g}") for nats in usage.kl]
        figures[name] = entry
    return figures


def own_factors(probes: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The linear R² of every quantity of one domain from the means of that domain's latents: the short form."""
    figures: dict[str, dict[str, dict[str, float | None]]] = {}
    for kind, domain in LATENTS:
        for name, one in probes.get(f"{kind}_{domain}", {}).items():
            if one["kind"] == "quantity" and name.startswith(f"{domain}_"):
                figures.setdefault(name, {})[f"{kind}_mean"] = {"r2": one["mean"]["linear"]}
    return figures


def warnings_of(
    latents: dict[str, dict[str, Any]],
    probes: dict[str, dict[str, Any]],
    learning: int | None = None,
) -> list[str]:
    """Collapsed latents, probes whose control is not at chance, and those of too few rows.

    Args:
        latents: of `latent_figures`.
        probes: of `probe_figures`.
        learning: rows that each probe learns from; None where that is not known.
    """
    lines = []
    for name, one in latents.items():
        title = name.replace("_", " ")
        if (
            learning is not None
            and any(probes.get(name, {}).values())
            and learning < one["dimensions"]
        ):
            lines.append(
                f"probes of the {title} latent learn from {learning} rows, fewer than its {one['dimensions']} "
                "dimensions: a leak may go unseen"
            )
        if not one["active"]:
            lines.append(
                f"the {title} latent has collapsed: no dimension of its mean moves with the data"
            )
        elif name.startswith("exclusive") and one["kl"] < DYING_NATS:
            lines.append(
                f"the {title} latent says next to nothing: {one['kl']:.2g} nats, {one['active']} active"
            )
    for name, factors in probes.items():
        for factor, one in factors.items():
            for way in WAYS:
                score = one[way]["control"]
                if score is None:
                    continue
                margin = _CONTROL_MARGIN
                if one["kind"] == "classes":
                    margin = 4.0 * float(np.sqrt(one["chance"] * (1.0 - one["chance"]) / one["n"]))
                if score > one["chance"] + margin:
                    lines.append(
                        f"shuffled {factor} reads {score:.2f} from {name.replace('_', ' ')} ({way}), chance is "
                        f"{one['chance']:.2f}: {one['n']} rows are too few for these figures"
                    )
    return lines


def _some(count: int, rows: int, seed: int) -> NDArray[np.int64]:
    """At most `rows` of `count` row numbers, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:rows])
