"""The report's sections but retrieval: figures in, what the page shows out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.disentanglement import DYING_NATS, LatentUsage, latent_usage
from iiae_cli.evaluation.paper import PaperRow
from iiae_cli.evaluation.protocols import DIRECTIONS, EncodedPairs, direction_name
from iiae_cli.evaluation.tables import (
    Table,
    bound_table,
    latent_table,
    probe_table,
    swap_table,
)
from iiae_cli.inference.trained import LatentKind, TrainedModel
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.report.page import Card, CardLine, Grid, cell
from iiae_cli.report.plots import Chart, Line, line_chart, lying_bars
from iiae_cli.report.samples import analogy_grid, sample_grid, spread

GRID_PAIRS = 8
ANALOGY_SIDE = 5
_KINDS: tuple[LatentKind, ...] = ("shared", "exclusive")
_ARROWS = tuple(f"{source} → {target}" for source, target in DIRECTIONS)

Figures = Mapping[str, Any]


# ---- headline figures


def headline_cards(figures: Figures, paper: Sequence[PaperRow], pairs: EncodedPairs) -> list[Card]:
    """Returns the cards: retrieval, translation, exclusive KL and leakage, as far as measured."""
    return [
        *_retrieval_cards(figures, paper),
        *_translation_cards(figures.get("translation", {})),
        *_kl_cards(pairs),
        *_leakage_cards(figures.get("disentanglement", {}).get("latents", {})),
    ]


def _retrieval_cards(figures: Figures, paper: Sequence[PaperRow]) -> list[Card]:
    paired, by_class = figures.get("retrieval", {}), figures.get("zero_shot", {})
    class_baseline = by_class.get("baseline_centred") or by_class.get("baseline_raw") or {}
    published = {
        row.published.key: row
        for row in paper
        if row.published.method == "IIAE" and row.ours is not None
    }
    shared, raw = paired.get("shared", {}), paired.get("baseline", {})
    tasks = (
        ("Recall@1", "recall@1", "retrieval.shared", shared, raw),
        ("mAP@all", "map@all", "zero_shot", by_class, class_baseline),
    )
    cards = []
    for source, target in DIRECTIONS:
        way = direction_name(source, target)
        for title, measure, task, ours, baseline in tasks:
            if way not in ours:
                continue
            value, lines = ours[way][measure], []
            if way in baseline:
                queries = ours[way]["n"] if title == "Recall@1" else 0
                lines.append(_compared(value, baseline[way][measure], queries))
            row = published.get(f"{task}.{way}.{measure}")
            if row is not None:
                apart = ", set-ups differ" if row.note else ""
                lines.append(("quiet", f"the paper: {cell(row.published.value)}{apart}"))
            cards.append(Card(f"{title}, {_unbroken(source, target)}", value, lines))
    return cards


def _compared(ours: float, baseline: float, queries: int) -> CardLine:
    """Compares with the baseline; within two standard errors of so many queries is not below."""
    text = f"the training-free baseline {cell(baseline)}"
    if ours > baseline:
        return "good", f"▲ above {text}"
    if ours == baseline:
        return "quiet", f"equal to {text}"
    if queries and ours + 2.0 * (ours * (1.0 - ours) / queries) ** 0.5 >= baseline:
        return "quiet", f"below {text} by less than two standard errors"
    return "bad", f"▼ below {text}"


def _unbroken(source: Domain, target: Domain) -> str:
    return f"{source}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{target}"


def _translation_cards(translation: Figures) -> list[Card]:
    cards = []
    for source, target in DIRECTIONS:
        measured = translation.get(direction_name(source, target), {})
        if measured.get("l1") is not None:
            others: list[CardLine] = [
                ("quiet", f"{name.upper().replace('_', ' ')} {cell(measured[name])}")
                for name in ("ssim", "lpips", "lpips_vgg")
                if measured.get(name) is not None
            ]
            name = f"Guided translation L1, {_unbroken(source, target)}"
            cards.append(Card(name, measured["l1"], others))
    return cards


def _kl_cards(pairs: EncodedPairs) -> list[Card]:
    cards = []
    for domain, usage in _exclusive_usage(pairs).items():
        nats = float(usage.kl.sum())
        lines: list[CardLine] = [("quiet", f"{usage.active} of {len(usage.kl)} dimensions active")]
        if nats < DYING_NATS:
            lines.insert(0, ("bad", f"▼ below {DYING_NATS:.0f} nats: says next to nothing"))
        cards.append(Card(f"Exclusive KL of {domain}, nats", nats, lines))
    return cards


def _leakage_cards(latents: Figures) -> list[Card]:
    cards = []
    for name, latent in latents.items():
        if latent["leakage_mean"] is None:
            continue
        sampled = cell(round(latent["leakage_sample"], 3))
        lines: list[CardLine] = [("quiet", f"from samples {sampled}")]
        if latent["informativeness_mean"] is not None:
            informative = round(latent["informativeness_mean"], 3)
            lines.append(("quiet", f"informative {cell(informative)}"))
        leakage = round(latent["leakage_mean"], 3)
        cards.append(Card(f"Leakage of {name.replace('_', ' ')}", leakage, lines))
    return cards


# ---- training


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; lines that an interruption tore are left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def training_charts(records: Sequence[Figures]) -> list[Chart]:
    """Draws the loss terms, validation and exclusive KLs, as far as they were logged."""
    training = [record for record in records if record["kind"] == "train"]
    validations = [record for record in records if record["kind"] == "validation"]
    terms = ("loss", "reconstruction_", "kl_shared_", "shared_only_")
    names = [name for name in (training[-1] if training else {}) if name.startswith(terms)]
    losses = _drawn(Line(_short(name), _points(training, name)) for name in names)
    charts = []
    if losses:
        svg = line_chart(losses, y_label="loss terms, log scale", scale="log")
        text = "Loss terms by step; rec. is the weighted reconstruction error. "
        charts.append(Chart("Loss and its terms", svg, text + _ends(losses)))
    charts += _validation_charts(validations)
    kls = [Line(f"{d}, training", _points(training, f"kl_exclusive_{d}")) for d in DOMAINS]
    for place, domain in enumerate(DOMAINS):
        points = _points(validations, "exclusive_kl", place)
        kls.append(Line(f"{domain}, validation", points, marked=True))
    kls = _drawn(kls)
    if kls:
        levels = {"dying below": DYING_NATS}
        svg = line_chart(kls, y_label="nats, log scale", scale="symlog", levels=levels)
        title = "KL of the exclusive latents to the prior"
        charts.append(Chart(title, svg, "Exclusive KL by step. " + _ends(kls)))
    return charts


def _validation_charts(validations: Sequence[Figures]) -> list[Chart]:
    charts = []
    for key, name in (("shared_recall", "Recall@1"), ("shared_map", "mAP@all")):
        lines = _drawn(
            Line(arrow, _points(validations, key, place), marked=True)
            for place, arrow in enumerate(_ARROWS)
        )
        if not lines:
            continue
        baseline = validations[-1].get("baseline") or ()
        levels = {f"baseline {way}": raw for way, raw in zip(_ARROWS, baseline, strict=False)}
        svg = line_chart(lines, y_label=name, scale="fraction", levels=levels)
        text = f"{name} on validation by step. {_ends(lines)}"
        text += "".join(f" Training-free {level}: {raw:.3f}." for level, raw in levels.items())
        charts.append(Chart(f"Validation: {name} by shared latents", svg, text))
    return charts


def _points(
    records: Sequence[Figures], name: str, place: int | None = None
) -> list[tuple[float, float]]:
    """Returns (step, value) of every record that has the value, or the value at a place of it."""
    values = [(record["step"], record.get(name)) for record in records]
    return [
        (step, value if place is None else value[place])
        for step, value in values
        if value is not None
    ]


def _drawn(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line.points]


def _short(name: str) -> str:
    return name.replace("reconstruction", "rec.").replace("kl_", "KL ").replace("_", " ")


def _ends(lines: Sequence[Line]) -> str:
    return " ".join(
        f"{line.name}: from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}." for line in lines
    )


def translation_grids(
    model: TrainedModel, split: Split, *, aligned: bool, samples: int, seed: int
) -> list[Grid]:
    """Draws rows spread over the split; returns nothing for features or without decoders.

    Partners guide translations if rows are `aligned`: row i of x belongs to row i of y.
    """
    if model.size is None or not model.network.generative:
        return []
    grids, exclusive = [], model.network.exclusive_dim > 0
    if aligned:
        pairs = split.take_pairs(spread(split.pair_count, GRID_PAIRS))
        sampled = f"{samples} with sampled exclusive latents, then " if samples else ""
        how = (
            f"{sampled}one guided by the partner" if exclusive else "one without exclusive latents"
        )
        note = f"Each row is a pair. From the left: x, its translations to y ({how}); then y to x."
        image = sample_grid(model, pairs, samples=samples, seed=seed)
        grids.append(Grid("Translation, sampled and guided", note, image))
    for domain in DOMAINS if exclusive else ():
        rows = split.side(domain).rows
        chosen = spread(len(rows), 2 * ANALOGY_SIDE)
        if len(chosen) > 1:
            note = (
                f"Domain {domain}: the shared latent is of the picture at the left, the exclusive "
                "one of the reference above."
            )
            image = analogy_grid(model, domain, rows[chosen[::2]], rows[chosen[1::2]])
            grids.append(Grid(f"Analogies within {domain}", note, image))
    return grids


# ---- disentanglement


def disentanglement_section(figures: Figures, protocol: Figures) -> Figures | None:
    """Returns the section's tables and charts; None where the task was not measured."""
    if "latents" not in figures:
        return None
    probes = [probe_table(figures, way) for way in ("mean", "sample")]
    return {
        "warnings": figures["warnings"],
        "latents": latent_table(figures),
        "charts": [chart for kind in _KINDS for chart in _score_charts(kind, figures["probes"])],
        "probes": [table for table in probes if table.rows],
        "swaps": swap_table(figures),
        "bounds": bound_table(figures),
        "rows": protocol.get("probe_rows", 0),
        "learning": protocol.get("probe_rows_learnt_from_train", 0),
    }


def _score_charts(kind: LatentKind, probes: Figures) -> list[Chart]:
    """Draws linear probes of one kind's latents, means beside samples; none if none was read."""
    read = [
        (latent.removeprefix(f"{kind}_"), factor, scores)
        for latent, factors in probes.items()
        if latent.startswith(kind)
        for factor, scores in factors.items()
        if scores["mean"]["linear"] is not None
    ]
    if not read:
        return []
    names = [
        f"{domain}: {factor}{' (belongs)' if scores['belongs'] else ''}"
        for domain, factor, scores in read
    ]
    groups = {way: [scores[way]["linear"] for *_, scores in read] for way in ("mean", "sample")}
    chances = [scores["chance"] for *_, scores in read]
    label = "R², or balanced accuracy of classes"
    svg = lying_bars(names, groups, x_label=label, chances=chances)
    text = "; ".join(
        f"{name}: mean {mean:.2f}, sample {sample:.2f}, chance {chance:.2f}"
        for name, mean, sample, chance in zip(
            names, groups["mean"], groups["sample"], chances, strict=True
        )
    )
    title = f"Linear probes of the {kind} latents"
    return [Chart(title, svg, f"Bars, 1 is a perfect reading. {text}.")]


# ---- latents


def usage_table(pairs: EncodedPairs) -> Table:
    """Lists active dimensions per latent, and the exclusive KLs: no prior holds a shared latent."""
    rows = []
    for kind in _KINDS:
        for domain in DOMAINS:
            usage = latent_usage(pairs.of(domain), kind)
            if usage is not None:
                nats = float(usage.kl.sum()) if kind == "exclusive" else None
                rows.append((f"{kind} {domain}", len(usage.kl), usage.active, nats))
    return Table("Latents in use", ["latent", "dimensions", "active", "KL, nats"], rows)


def usage_charts(pairs: EncodedPairs) -> list[Chart]:
    """Draws the KL of every exclusive dimension, largest first; none without exclusive latents."""
    lines, texts = [], []
    for domain, usage in _exclusive_usage(pairs).items():
        nats = sorted(usage.kl.tolist(), reverse=True)
        lines.append(Line(f"exclusive {domain}", list(enumerate(nats, 1)), marked=True))
        texts.append(f"exclusive {domain}: {', '.join(f'{value:.2f}' for value in nats[:16])}")
    if not lines:
        return []
    label = "dimension, the one of largest KL first"
    svg = line_chart(lines, x_label=label, y_label="KL, nats", scale="symlog")
    text = f"Nats, largest first. {'; '.join(texts)}."
    return [Chart("KL of each exclusive dimension", svg, text)]


def dimension_table(pairs: EncodedPairs) -> Table:
    """Lists KL and variance of every exclusive dimension."""
    rows = [
        (f"exclusive {domain}", number, float(kl), float(variance))
        for domain, usage in _exclusive_usage(pairs).items()
        for number, (kl, variance) in enumerate(zip(usage.kl, usage.variance, strict=True))
    ]
    headers = ["latent", "dimension", "KL, nats", "variance of means"]
    return Table("Exclusive dimensions, as the model numbers them", headers, rows, 2)


def _exclusive_usage(pairs: EncodedPairs) -> dict[Domain, LatentUsage]:
    usages = {domain: latent_usage(pairs.of(domain), "exclusive") for domain in DOMAINS}
    return {domain: usage for domain, usage in usages.items() if usage is not None}
