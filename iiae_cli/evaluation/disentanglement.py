"""Measures disentanglement: what each latent holds of known factors, how it swaps, its bounds.

Four latents are read: shared and exclusive, of x and of y; each by its posterior *mean*, which
retrieval and translation use, and by one *sample* per row, the only form that training lets
through. docs/disentanglement.md defines every figure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation import retrieval
from iiae_cli.evaluation.probes import FOLDS, LEARN_ONLY, Factor, draw_folds, probe, read_factor
from iiae_cli.evaluation.translation import Subject, swap_figures
from iiae_cli.inference.neighbours import Metric, slices
from iiae_cli.inference.trained import KINDS, Encoded, LatentKind, inference
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.objective import Objective

ACTIVE_VARIANCE = 0.01  # a dimension whose mean varies more moves with the data (Burda et al.)
LATENTS = [*product(KINDS, DOMAINS)]
WAYS = ("mean", "sample")
_SCORES = ("linear", "nonlinear", "control", "control_nonlinear", "above_control")

Figures: TypeAlias = dict[str, Any]
Ints: TypeAlias = NDArray[np.int64]


def measure_disentanglement(
    subject: Subject,
    objective: Objective,
    metric: Metric,
    train: Split | None,
    *,
    probe_rows: int,
    shared: Sequence[str],
    by_class: bool,
) -> tuple[Figures, Figures]:
    """Returns the figures, and what a reader must know of their making; prints their warnings.

    Probes also learn from rows of `train` if the measured ones are few. `shared` names factors of
    both domains. Rows paired `by_class` have no partners, and no factors of pairs.
    """
    probed = choose_rows(subject, train, probe_rows, shared, by_class)
    probes = probe_figures(probed, shared, subject.seed)
    latents = latent_figures(subject.pairs, probes)
    learning = int((probed["x"].folds == LEARN_ONLY).sum())
    measured = len(probed["x"].folds) - learning
    warnings = warnings_of(latents, probes, measured * (FOLDS - 1) // FOLDS + learning)
    figures: Figures = {
        "exclusive_kl": retrieval.exclusive_kl(subject.pairs),
        "factors": own_factors(probes),
        "latents": latents,
        "probes": probes,
        "swaps": swap_figures(subject, metric),
        "warnings": warnings,
    }
    if not by_class:  # bounds need partners
        chosen = _draw(len(subject.split.x), probe_rows, subject.seed)
        partners = replace(subject, split=subject.split.take_pairs(chosen))
        figures["bounds"] = bound_figures(partners, objective)
    for line in warnings:
        console.warn(line)
    protocol = {"probe_rows": measured, "probe_rows_learnt_from_train": learning}
    return figures, {**protocol, "probe_folds": FOLDS, "probe_seed": subject.seed}


def _draw(count: int, rows: int, seed: int) -> Ints:
    """Returns at most `rows` of `count` row numbers, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:rows])


# ---- probes


class ProbedRows(NamedTuple):
    """One domain's rows for the probes: measured ones, then those that are only learnt from."""

    encoded: Encoded
    factors: list[Factor]
    folds: Ints


def choose_rows(
    subject: Subject, train: Split | None, count: int, shared: Sequence[str], by_class: bool
) -> dict[Domain, ProbedRows]:
    """Draws `count` rows for the probes; if there are fewer, adds training rows to learn from."""
    split, seed, probed = subject.split, subject.seed, {}
    columns = {domain: _columns(split, domain, by_class) for domain in DOMAINS}
    known = sorted({*columns["x"], *columns["y"]})
    if unknown := [name for name in shared if name not in known]:
        hint = f"factors of this data: {', '.join(known) or 'none'}"
        raise IiaeError(f"unknown factor {', '.join(unknown)}", hint)
    lacking, more, extra = count - len(split.x), None, list[retrieval.EncodedPairs]()
    if train and train.pair_count and known and lacking > 0 and not by_class:
        more = train.take_pairs(_draw(train.pair_count, lacking, seed))
        extra = [retrieval.encode_pairs(subject.trained, more, batch_size=subject.batch_size)]
    learning = 0 if more is None else len(more.x)
    for domain in DOMAINS:
        chosen = _draw(len(split.side(domain)), count, seed)
        learnt = {} if more is None else _columns(more, domain, by_class)
        factors = [
            read_factor(name, values[chosen], learnt.get(name, np.full(learning, "")))
            for name, values in columns[domain].items()
        ]
        groups = np.arange(len(chosen)) if by_class else items_of(split)[chosen]
        own = subject.pairs[domain].take(chosen)
        encoded = Encoded.joined([own, *(pairs[domain] for pairs in extra)])
        probed[domain] = ProbedRows(encoded, factors, draw_folds(groups, learning, seed))
    return probed


def _columns(split: Split, domain: Domain, by_class: bool) -> dict[str, NDArray[Any]]:
    columns = {} if by_class else dict(split.factors)
    labels = split.side(domain).labels
    return columns if labels is None else {**columns, "class": np.array(labels, dtype=object)}


def items_of(split: Split) -> Ints:
    """Returns the item of each aligned row: rows that share a picture, by any chain, are one."""
    ids = [f"{domain} {name}" for domain in DOMAINS for name in split.side(domain).ids]
    pictures, places = np.unique(ids, return_inverse=True)
    x, y = np.split(places, 2)
    links = coo_array((np.ones(len(x)), (x, y)), shape=(len(pictures), len(pictures)))
    items: Ints = connected_components(links, directed=False)[1][x].astype(np.int64)
    return items


def probe_figures(
    probed: Mapping[Domain, ProbedRows], shared: Collection[str] = (), seed: int = 0
) -> dict[str, Figures]:
    """Returns scores by latent and factor, from means and samples, and which belong there."""
    figures: dict[str, Figures] = {}
    with console.progress("probes", len(LATENTS) * len(WAYS), "readings") as bar:
        for number, (kind, domain) in enumerate(LATENTS):
            encoded, factors, folds = probed[domain]
            logvar = encoded.logvar(kind)
            if logvar is None:
                continue
            mean, rng = encoded.mean(kind), np.random.default_rng((seed, number))
            noise = rng.standard_normal(mean.shape, dtype=np.float32)
            entries = figures[f"{kind}_{domain}"] = {
                factor.name: {
                    "kind": "classes" if factor.classes else "quantity",
                    "belongs": belongs(factor.name, kind, domain, shared),
                }
                for factor in factors
            }
            for way, latents in zip(WAYS, (mean, mean + np.exp(0.5 * logvar) * noise), strict=True):
                for name, score in probe(latents, factors, folds, seed).items():
                    tested = score.rows if score else 0  # None for both ways, or for neither
                    entries[name] |= {"chance": score and score.chance, "n": tested}
                    entries[name][way] = {key: score and getattr(score, key) for key in _SCORES}
                bar.update(bar.done + 1)
    return figures


def belongs(
    factor: str, kind: LatentKind, domain: Domain, shared: Collection[str] = ()
) -> bool | None:
    """Returns whether a latent should hold a factor, by its name or `shared`; None if unknown."""
    if factor == "class" or factor in shared or factor.startswith("shared_"):
        return kind == "shared"
    if factor.startswith(("x_", "y_")):
        return kind == "exclusive" and factor[0] == domain
    return None


def own_factors(probes: dict[str, Figures]) -> dict[str, Figures]:
    """Returns linear R² of one domain's quantities from the means of its own latents."""
    figures: dict[str, Figures] = {}
    for kind, domain in LATENTS:
        for name, factor in probes.get(f"{kind}_{domain}", {}).items():
            if factor["kind"] == "quantity" and name.startswith(f"{domain}_"):
                figures.setdefault(name, {})[f"{kind}_mean"] = {"r2": factor["mean"]["linear"]}
    return figures


# ---- latents


def latent_figures(pairs: retrieval.EncodedPairs, probes: dict[str, Figures]) -> dict[str, Figures]:
    """Returns use, `leakage_…` and `informativeness_…` of every latent, from means and samples."""
    figures: dict[str, Figures] = {}
    for kind, domain in LATENTS:
        name, nats = f"{kind}_{domain}", retrieval.nats_per_dimension(pairs[domain], kind)
        if nats is None:
            continue
        moving = pairs[domain].mean(kind).var(axis=0, dtype=np.float64) > ACTIVE_VARIANCE
        entry: Figures = {"dimensions": len(nats), "active": int(moving.sum())}
        entry["kl"] = float(nats.sum())
        for way in WAYS:
            held: dict[bool | None, list[float]] = {True: [], False: [], None: []}
            for factor in probes.get(name, {}).values():
                if factor[way]["above_control"] is not None:
                    held[factor["belongs"]].append(factor[way]["above_control"])
            entry[f"leakage_{way}"] = max(held[False], default=None)
            entry[f"informativeness_{way}"] = float(np.mean(held[True])) if held[True] else None
        entry["kl_per_dimension"] = [float(f"{value:.4g}") for value in nats]
        figures[name] = entry
    return figures


def warnings_of(
    latents: dict[str, Figures], probes: dict[str, Figures], learning: int
) -> list[str]:
    """Returns warnings of collapsed latents, and of probes that learn from too few rows."""
    none = "there are no factors to probe: see 'Bring your own factors' in docs/disentanglement.md"
    lines = [] if any(probes.values()) else [none]
    for name, latent in latents.items():
        title, width = f"the {name.replace('_', ' ')} latent", latent["dimensions"]
        if probes.get(name) and learning < width:
            few = f"probes of {title} learn from {learning} rows, fewer than its {width} dimensions"
            lines.append(f"{few}: a leak may go unseen")
        if not latent["active"]:
            lines.append(f"{title} has collapsed: no dimension of its mean moves with the data")
        elif name.startswith("exclusive") and latent["kl"] < retrieval.DYING_NATS:
            lines.append(f"{title} says next to nothing: {latent['kl']:.2g} nats")
    return lines


# ---- bounds


def bound_figures(subject: Subject, objective: Objective) -> Figures:
    """Returns the variational bounds of training, from the objective's own terms, in nats.

    `exclusive_shared_plus_entropy` follows from the paper's supplement, A.2: I(Z^x; Z^s) = I(X;
    Z^x) + I(X; Z^s) − I(X; Z^x, Z^s), the last at least H(X) + E log p(x|z^x,z^s).
    """
    trained, split = subject.trained, subject.split
    network = trained.network
    generator = torch.Generator(trained.device).manual_seed(subject.seed)
    sums: dict[str, float] = {}
    with inference(network), console.progress("bounds", len(split.x), "bounds") as bar:
        for part in slices(len(split.x), subject.batch_size):
            x, y = (trained.inputs(split.side(domain).rows[part]) for domain in DOMAINS)
            posteriors = network.infer(x, y)
            reconstructions = network.generate(network.sample(posteriors, generator))
            for name, mean in objective(posteriors, reconstructions, step=0).items():
                sums[name] = sums.get(name, 0.0) + float(mean) * len(x)
            bar.update(bar.done + len(x))
    means = {name: total / len(split.x) for name, total in sums.items()}
    shared = means["kl_shared_prior"]
    figures: Figures = {"shared": shared, "rows": len(split.x)}
    for domain in DOMAINS:
        entry = figures[domain] = {"shared_given_other": means[f"kl_shared_{other_domain(domain)}"]}
        if network.exclusive_dim:
            own, error = means[f"kl_exclusive_{domain}"], means[f"reconstruction_{domain}"]
            entry |= {"exclusive": own, "exclusive_shared_plus_entropy": own + shared + error}
    return figures
