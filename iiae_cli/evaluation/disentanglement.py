"""Is it disentangled? What each latent holds of each known factor, how it swaps, what bounds it.

Four latents are read: shared and exclusive, of x and of y; each by its posterior *mean*, which
retrieval and translation use, and by one *sample* per row, which is all that training lets through.
A factor should be in the shared latents if both domains hold it, and in its own domain's exclusive
latent if that alone does.

* `informativeness`: of the factors that a latent should hold, the better probe's score on the way
  from its control (or chance, if higher) to a perfect reading; the mean over them.
* `leakage`: the same of the factors that it should not hold; the largest.

If the split has few rows, rows of the training split join every probe's learning rows (never its
tests): a few hundred rows cannot read a latent of as many dimensions, and would miss a leak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.factors import Factor, check_names, columns_of, owner_of, read_factor
from iiae_cli.evaluation.probes import FOLDS, ProbeScore, draw_folds, probe
from iiae_cli.evaluation.retrieval import EncodedPairs, encode_pairs, exclusive_kl
from iiae_cli.evaluation.swaps import swap_figures
from iiae_cli.evaluation.translation import Subject
from iiae_cli.inference.neighbours import Metric
from iiae_cli.inference.trained import Encoded, LatentKind, inference
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.gaussian import DiagonalGaussian, kl_to_prior
from iiae_cli.model.objective import Objective

PROBE_ROWS = 3000
DYING_NATS = 3.0  # an exclusive latent below says next to nothing
ACTIVE_VARIANCE = 0.01  # of a dimension's mean, above which it moves with the data
LATENTS: tuple[tuple[LatentKind, Domain], ...] = (
    ("shared", "x"),
    ("shared", "y"),
    ("exclusive", "x"),
    ("exclusive", "y"),
)
WAYS = ("mean", "sample")
_SCORES = ("linear", "nonlinear", "control", "control_nonlinear", "above_control")
_CONTROL_MARGIN = 0.05  # of R², or four standard errors of an accuracy

Figures = dict[str, Any]


@dataclass(frozen=True)
class ProbeOptions:
    """What the caller may choose, and how rows belong together."""

    rows: int = PROBE_ROWS  # that probes see at most
    shared: Sequence[str] = ()  # factors of both domains, beside those whose names say so
    by_class: bool = False  # rows have labels and no partners, so that pairs' factors mean nothing


def measure_disentanglement(
    subject: Subject,
    objective: Objective,
    train: Callable[[], Split] | None,
    options: ProbeOptions,
    metric: Metric,
) -> tuple[Figures, Figures]:
    """The figures, and what a reader must know of how they were made.

    `train` reads the training split, for probes that the measured rows are too few for; the bounds
    are terms of the `objective`.

    Raises:
        IiaeError: a factor that does not exist, or latents that are not finite.
    """
    rows = choose_rows(subject, train, options)
    probes = probe_figures(rows, subject.seed)
    latents = latent_figures(subject.pairs, probes)
    figures: Figures = {
        "exclusive_kl": dict(exclusive_kl(subject.pairs)),
        "factors": own_factors(probes),
        "latents": latents,
        "probes": probes,
        "swaps": swap_figures(subject, metric),
    }
    if not options.by_class:  # bounds need partners
        chosen = _draw(len(subject.split.x), options.rows, subject.seed)
        figures["bounds"] = bound_figures(
            replace(subject, split=subject.split.take_pairs(chosen)), objective
        )
    measured = len(rows.folds["x"]) - rows.learning
    learnt = measured * (FOLDS - 1) // FOLDS + rows.learning
    figures["warnings"] = warnings_of(latents, probes, learnt)
    protocol = {
        "probe_rows": measured,
        "probe_rows_learnt_from_train": rows.learning,
        "probe_folds": FOLDS,
        "probe_seed": subject.seed,
    }
    return figures, protocol


@dataclass(frozen=True)
class ProbedRows:
    """Rows that probes see: the measured ones, then `learning` rows that are only learnt from."""

    pairs: EncodedPairs
    factors: dict[Domain, list[Factor]]
    folds: dict[Domain, NDArray[np.int64]]
    learning: int


def choose_rows(
    subject: Subject, train: Callable[[], Split] | None, options: ProbeOptions
) -> ProbedRows:
    """Draw rows for the probes; the training split fills up what the measured one lacks."""
    split, seed, by_class = subject.split, subject.seed, options.by_class
    columns = {domain: columns_of(split, domain, by_class=by_class) for domain in DOMAINS}
    check_names(options.shared, {name for values in columns.values() for name in values})
    more, extra = None, None
    if train is not None and not by_class and any(columns.values()):
        lacking = options.rows - len(split.x)
        if lacking > 0 and (whole := train()).pair_count:
            more = whole.take_pairs(_draw(whole.pair_count, lacking, seed))
            extra = encode_pairs(subject.trained, more, batch_size=subject.batch_size)
    learning = 0 if more is None else len(more.x)
    factors, folds, latents = {}, {}, {}
    for domain in DOMAINS:
        chosen = _draw(len(split.side(domain)), options.rows, seed)
        learnt = {} if more is None else columns_of(more, domain, by_class=False)
        unknown = np.full(learning, np.nan)
        factors[domain] = [
            read_factor(
                name,
                values[chosen],
                learnt.get(name, unknown),
                owner_of(name, options.shared),
                least=FOLDS,
            )
            for name, values in columns[domain].items()
        ]
        groups = np.arange(len(chosen)) if by_class else items_of(split)[chosen]
        folds[domain] = draw_folds(groups, learning, seed)
        latents[domain] = subject.pairs.of(domain).take(chosen)
        if extra is not None:
            latents[domain] = latents[domain].joined(extra.of(domain))
    return ProbedRows(EncodedPairs(latents["x"], latents["y"]), factors, folds, learning)


def items_of(split: Split) -> NDArray[np.int64]:
    """The item of each aligned row: rows that share a picture, by any chain, are one item."""
    x, y = (
        np.unique(np.array(ids, dtype=object), return_inverse=True)[1]
        for ids in (split.x.ids, split.y.ids)
    )
    pictures = int(x.max(initial=-1)) + 1
    nodes = pictures + int(y.max(initial=-1)) + 1
    links = coo_array((np.ones(len(x)), (x, pictures + y)), shape=(nodes, nodes))
    items: NDArray[np.int64] = connected_components(links, directed=False)[1][x].astype(np.int64)
    return items


def probe_figures(rows: ProbedRows, seed: int = 0) -> dict[str, Figures]:
    """Scores by latent and factor: what means and samples reveal, and whether it belongs there."""
    figures: dict[str, Figures] = {}
    for number, (kind, domain) in enumerate(LATENTS):
        encoded = rows.pairs.of(domain)
        logvar = encoded.logvar(kind)
        if logvar is None:
            continue
        mean = encoded.mean(kind)
        noise = np.random.default_rng((seed, number)).standard_normal(mean.shape, dtype=np.float32)
        factors, folds = rows.factors[domain], rows.folds[domain]
        by_mean = probe(mean, factors, folds, seed)
        by_sample = probe(mean + np.exp(0.5 * logvar) * noise, factors, folds, seed)
        figures[f"{kind}_{domain}"] = {
            factor.name: {
                "kind": "classes" if factor.classes else "quantity",
                "belongs": belongs(factor.owner, kind, domain),
                **_entry(by_mean[factor.name], by_sample[factor.name]),
            }
            for factor in factors
        }
    return figures


def belongs(owner: str | None, kind: LatentKind, domain: Domain) -> bool | None:
    """Whether a latent should hold a factor; None if its owner is unknown."""
    if owner is None:
        return None
    return owner == "shared" if kind == "shared" else owner == domain


def _entry(by_mean: ProbeScore | None, by_sample: ProbeScore | None) -> Figures:
    known = by_mean or by_sample
    entry: Figures = {"chance": known and known.chance, "n": known.rows if known else 0}
    for way, score in zip(WAYS, (by_mean, by_sample), strict=True):
        entry[way] = {name: score and getattr(score, name) for name in _SCORES}
    return entry


@dataclass(frozen=True)
class LatentUsage:
    """One latent of one domain, dimension by dimension (D,), over a split."""

    kl: NDArray[np.float64]  # mean KL(q ‖ N(0, 1)) in nats
    variance: NDArray[np.float64]  # of the posterior means over the rows

    @property
    def active(self) -> int:
        """Dimensions whose mean moves with the data (Burda et al., 2016)."""
        return int((self.variance > ACTIVE_VARIANCE).sum())


def latent_usage(encoded: Encoded, kind: LatentKind) -> LatentUsage | None:
    """How much of its latents a model uses; None for a kind of latent that it does not have."""
    logvar = encoded.logvar(kind)
    if logvar is None:
        return None
    mean = encoded.mean(kind).astype(np.float64)
    each = (torch.from_numpy(mean).reshape(-1, 1), torch.from_numpy(logvar).double().reshape(-1, 1))
    nats = kl_to_prior(DiagonalGaussian(*each)).numpy().reshape(mean.shape)
    return LatentUsage(nats.mean(axis=0), mean.var(axis=0))


def latent_figures(pairs: EncodedPairs, probes: dict[str, Figures]) -> dict[str, Figures]:
    """Use, `leakage_…` and `informativeness_…` of every latent, from means and from samples."""
    figures: dict[str, Figures] = {}
    for kind, domain in LATENTS:
        usage = latent_usage(pairs.of(domain), kind)
        if usage is None:
            continue
        name = f"{kind}_{domain}"
        dimensions, nats = len(usage.kl), float(usage.kl.sum())
        entry: Figures = {"dimensions": dimensions, "active": usage.active, "kl": nats}
        for way in WAYS:
            held: dict[bool, list[float]] = {True: [], False: []}
            for factor in probes.get(name, {}).values():
                if factor["belongs"] is not None and factor[way]["above_control"] is not None:
                    held[factor["belongs"]].append(factor[way]["above_control"])
            entry[f"leakage_{way}"] = max(held[False], default=None)
            entry[f"informativeness_{way}"] = float(np.mean(held[True])) if held[True] else None
        entry["kl_per_dimension"] = [float(f"{nats:.4g}") for nats in usage.kl]
        figures[name] = entry
    return figures


def own_factors(probes: dict[str, Figures]) -> dict[str, Figures]:
    """The short form: linear R² of one domain's quantities from the means of its own latents."""
    figures: dict[str, Figures] = {}
    for kind, domain in LATENTS:
        for name, factor in probes.get(f"{kind}_{domain}", {}).items():
            if factor["kind"] == "quantity" and name.startswith(f"{domain}_"):
                figures.setdefault(name, {})[f"{kind}_mean"] = {"r2": factor["mean"]["linear"]}
    return figures


def bound_figures(subject: Subject, objective: Objective) -> Figures:
    """The variational bounds that training works on, from the objective's own terms, in nats.

    Written for x; y is analogous.

    * `shared_given_other`: I(X; Z^s | Y) ≤ E KL(q(z^s|x,y) ‖ r^y(z^s|y)), the term `kl_shared_y`:
      what the shared latent says of x that y does not.
    * `exclusive`: I(X; Z^x) ≤ E KL(q(z^x|x) ‖ p), the term `kl_exclusive_x`. It bounds I(Z^x; Z^s)
      too: z^x knows of z^s only by x.
    * `shared`: I(X, Y; Z^s) ≤ E KL(q(z^s|x,y) ‖ p), the term `kl_shared_prior`.
    * `exclusive_shared_plus_entropy`: I(Z^x; Z^s) = I(X; Z^x) + I(X; Z^s) − I(X; Z^x, Z^s) (the
      paper's supplement, A.2), where the last term is at least H(X) + E log p(x|z^x,z^s). So
      I(Z^x; Z^s) + H(X) ≤ `kl_exclusive_x` + `kl_shared_prior` + `reconstruction_x` + c. H(X) and c
      belong to the data and the weight w: only runs that have both in common compare.
    """
    network, trained, split = subject.trained.network, subject.trained, subject.split
    generator = torch.Generator(trained.device).manual_seed(subject.seed)
    sums: dict[str, float] = {}
    with inference(network):
        for part in subject.parts():
            x, y = (trained.inputs(split.side(domain).rows[part]) for domain in DOMAINS)
            posteriors = network.infer(x, y)
            reconstructions = network.generate(network.sample(posteriors, generator))
            for name, mean in objective(posteriors, reconstructions, step=0).items():
                sums[name] = sums.get(name, 0.0) + float(mean) * len(x)
    means = {name: total / len(split.x) for name, total in sums.items()}
    shared = means["kl_shared_prior"]
    figures: Figures = {}
    for domain in DOMAINS:
        figures[domain] = {"shared_given_other": means[f"kl_shared_{other_domain(domain)}"]}
        if network.exclusive_dim:
            own, error = means[f"kl_exclusive_{domain}"], means[f"reconstruction_{domain}"]
            figures[domain]["exclusive"] = own
            figures[domain]["exclusive_shared_plus_entropy"] = own + shared + error
    return {**figures, "shared": shared, "rows": len(split.x)}


def warnings_of(
    latents: dict[str, Figures], probes: dict[str, Figures], learning: int
) -> list[str]:
    """Collapsed latents, and probes that learn from too few rows or whose control is loud."""
    lines = []
    for name, latent in latents.items():
        title, dimensions = name.replace("_", " "), latent["dimensions"]
        if any(probes.get(name, {}).values()) and learning < dimensions:
            lines.append(
                f"probes of the {title} latent learn from {learning} rows, fewer than its "
                f"{dimensions} dimensions: a leak may go unseen"
            )
        if not latent["active"]:
            lines.append(
                f"the {title} latent has collapsed: no dimension of its mean moves with the data"
            )
        elif name.startswith("exclusive") and latent["kl"] < DYING_NATS:
            lines.append(
                f"the {title} latent says next to nothing: "
                f"{latent['kl']:.2g} nats, {latent['active']} active"
            )
    for name, factors in probes.items():
        for factor, entry in factors.items():
            chance, rows = entry["chance"], entry["n"]
            for way in WAYS:
                score, margin = entry[way]["control"], _CONTROL_MARGIN
                if score is not None and entry["kind"] == "classes":
                    margin = 4.0 * float(np.sqrt(chance * (1.0 - chance) / rows))
                if score is not None and score > chance + margin:
                    title = name.replace("_", " ")
                    lines.append(
                        f"shuffled {factor} reads {score:.2f} from {title} ({way}), chance is "
                        f"{chance:.2f}: {rows} rows are too few for these figures"
                    )
    return lines


def _draw(count: int, rows: int, seed: int) -> NDArray[np.int64]:
    """At most `rows` of `count` row numbers, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:rows])
