"""Measures retrieval as the paper does: by pair (Tables 2, 5) and by class (Tables 3, 6).

By pair, only the true partner is a hit; by class, every gallery item of the query's class.

Shapes: Q queries, G gallery items, N pairs of rows, S dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import Split
from iiae_cli.inference.neighbours import Metric, finite, partner_ranks, slices
from iiae_cli.inference.trained import KINDS, Encoded, LatentKind, TrainedModel
from iiae_cli.model import DOMAINS, Domain

MAP_CUTOFF = 200
DYING_NATS = 3.0  # an exclusive latent below carries almost nothing
DIRECTIONS: dict[str, tuple[Domain, Domain]] = {"x_to_y": ("x", "y"), "y_to_x": ("y", "x")}
CHUNK_BYTES = 16 * 2**20  # similarities in memory, per thread
_SIMILARITY_BITS = 40  # fewer if the gallery holds more than four million items
_BUCKET_BITS = 12  # 2 ** 12 buckets between similarities 0 and 1

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
EncodedPairs: TypeAlias = dict[Domain, Encoded]  # of aligned rows, unless paired by class
Directions: TypeAlias = dict[str, dict[str, float]]  # figures by direction and name
Measure: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], Directions]  # of x and y


def encode_pairs(trained: TrainedModel, split: Split, *, batch_size: int = 256) -> EncodedPairs:
    """Encodes both domains of a split."""
    return {
        domain: trained.encode(split.side(domain).rows, domain, batch_size=batch_size)
        for domain in DOMAINS
    }


def both_means(pairs: EncodedPairs, kind: LatentKind) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the means of one kind of latents, of x (N, S) and of y."""
    return pairs["x"].mean(kind), pairs["y"].mean(kind)


def _by_means(pairs: EncodedPairs, measure: Measure) -> dict[str, Directions]:
    """Measures the means of shared latents, and of exclusive ones if they exist."""
    kinds = KINDS if pairs["x"].exclusive_mean is not None else KINDS[:1]
    return {kind: measure(*both_means(pairs, kind)) for kind in kinds}


# ---- by pair


def retrieval_figures(x: NDArray[Any], y: NDArray[Any], metric: Metric = "euclidean") -> Directions:
    """Returns Recall@1/5/10 and median rank both ways; rows i of x and y (N, S) are partners."""
    rows, figures = {"x": x, "y": y}, Directions()
    for name, (source, target) in DIRECTIONS.items():
        ranks = partner_ranks(rows[source], rows[target], metric=metric)
        figures[name] = {
            **{f"recall@{k}": float(np.mean(ranks <= k)) for k in (1, 5, 10)},
            "median_rank": float(np.median(ranks)),
            "n": len(ranks),
        }
    return figures


def paired_retrieval(
    pairs: EncodedPairs, split: Split, metric: Metric, train: Split | None = None
) -> dict[str, Directions]:
    """Measures Table 2 by `shared` and by `exclusive` means (its ablation), and the baselines."""
    figures = _by_means(pairs, partial(retrieval_figures, metric=metric))
    return {**figures, **baselines(split, train, metric)}


def baselines(
    split: Split, train: Split | None, metric: Metric | None = None
) -> dict[str, Directions]:
    """Measures rows as they are, and features minus their domain's mean in `train`.

    With a metric it is by pair, and pictures are compared by correlation; else by class. Returns
    nothing if the domains' widths differ.
    """
    x, y = (baseline_vectors(side.rows) for side in (split.x, split.y))
    if x.shape[1] != y.shape[1]:
        return {}
    features = split.x.rows.ndim == 2
    name, measure = "baseline_raw", partial(class_retrieval, split=split)
    if metric is not None:
        own = metric if features else "euclidean"
        name, measure = "baseline", partial(retrieval_figures, metric=own)
    figures = {name: measure(x, y)}
    if features and train is not None and len(train.x) and len(train.y):
        of_x, of_y = (side.rows.mean(axis=0, dtype=np.float64) for side in (train.x, train.y))
        figures["baseline_centred"] = measure(x - of_x, y - of_y)
    return figures


def baseline_vectors(rows: NDArray[Any]) -> Floats:
    """Returns features as they are, and pictures as z-scored grey 32×32 ones: (N, …) → (N, P).

    So Euclidean distance ranks pictures as correlation does.
    """
    if rows.ndim == 2:
        return rows.astype(np.float64)
    channels = rows.shape[-1]
    grey = [0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels
    weights = torch.tensor(grey, dtype=torch.float64)[:, None, None]
    blocks = []
    for part in slices(len(rows), 1024):
        pictures = to_inputs(rows[part], (32, 32)).double()
        pixels = (pictures * weights).sum(dim=1).flatten(1).numpy()
        pixels = pixels - pixels.mean(axis=1, keepdims=True)
        spread = pixels.std(axis=1, keepdims=True)
        blocks.append(pixels / np.where(spread > 0, spread, 1.0))
    return np.concatenate(blocks)


# ---- by class


def rank_by_class(
    queries: NDArray[Any],
    gallery: NDArray[Any],
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
    *,
    threads: int | None = None,
) -> dict[str, Floats]:
    """Ranks the gallery (G, S) for every query (Q, S) by cosine; returns figures by query.

    Queries whose class the gallery lacks are left out. Similarities equal to 10⁻¹² rank in gallery
    order; a zero vector has similarity 0 to all. Threads (default: as many as torch's) rank chunks
    of queries that bound the memory.

    `map@200` divides the sum of precisions at relevant ranks up to 200 by its largest possible
    value, `map@200_released` always by 200, as the paper's released code does. `precision@K` is of
    the whole gallery if that is smaller.
    """
    codes = np.unique([*query_labels, *gallery_labels], return_inverse=True)[1]
    query_codes, gallery_codes = np.split(codes.astype(np.int32), [len(query_labels)])
    kept = np.isin(query_codes, gallery_codes)
    if not kept.any():
        message = "no query has an item of its class in the gallery"
        raise IiaeError(message, "check the labels of both domains")
    vectors, query_codes = _unit(queries, "queries")[kept], query_codes[kept]
    columns = np.ascontiguousarray(_unit(gallery, "the gallery").T)
    size = len(gallery_codes)
    positions = np.arange(size)
    relevant = lru_cache(maxsize=64)(lambda code: np.flatnonzero(gallery_codes == code))

    def rank(part: slice) -> dict[str, Floats]:
        lines = zip(vectors[part] @ columns, query_codes[part].tolist(), strict=True)
        ranks = [_ranks(line, relevant(code), positions) for line, code in lines]
        return _class_figures(ranks, size)

    parts = slices(len(vectors), CHUNK_BYTES // (8 * size))
    # One thread a chunk: matrix products with threads of their own would wait for one another.
    threads = threads or torch.get_num_threads()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        ranked = list(pool.map(rank, parts))
    return {name: np.concatenate([part[name] for part in ranked]) for name in ranked[0]}


def _ranks(similarities: Floats, relevant: Ints, positions: Ints) -> Ints:
    """Returns the ranks, ascending from 1, of `relevant` items of a gallery (G,).

    Integer keys hold the rounded similarity, descending, and then the gallery position. They fall
    into buckets by similarity, of which only those that hold a relevant item are sorted.
    """
    low_bits = len(positions).bit_length()
    bits = min(_SIMILARITY_BITS, 62 - low_bits)
    keys = np.rint(similarities * -(2.0**bits)).astype(np.int64)
    keys <<= low_bits
    keys |= positions
    own = np.sort(keys[relevant])
    buckets, own_buckets = (
        (values >> (bits + low_bits - _BUCKET_BITS)) + 2**_BUCKET_BITS for values in (keys, own)
    )
    counts, is_mixed = np.bincount(buckets), np.zeros(2 ** (_BUCKET_BITS + 1) + 1, np.bool_)
    counts[own_buckets], is_mixed[own_buckets] = 0, True
    mixed = np.sort(keys.compress(is_mixed.take(buckets)))  # faster than by brackets
    ranks: Ints = mixed.searchsorted(own) + counts.cumsum()[own_buckets] + 1
    return ranks


def _class_figures(ranks: Sequence[Ints], size: int) -> dict[str, Floats]:
    """Returns figures per query from the ranks of relevant items of `size`, ascending from 1."""
    counts, every = np.array([len(line) for line in ranks]), np.concatenate(ranks)
    starts = np.cumsum(counts) - counts
    precisions = (np.arange(1, len(every) + 1) - np.repeat(starts, counts)) / every
    early = np.add.reduceat(precisions * (every <= MAP_CUTOFF), starts)
    figures = {
        "map@all": np.add.reduceat(precisions, starts) / counts,
        f"map@{MAP_CUTOFF}": early / np.minimum(MAP_CUTOFF, counts),
        f"map@{MAP_CUTOFF}_released": early / MAP_CUTOFF,
    }
    for k in (100, 200):
        hits = np.add.reduceat(every <= k, starts, dtype=np.float64)
        figures[f"precision@{k}"] = hits / min(k, size)
    return figures


def _unit(rows: NDArray[Any], name: str) -> Floats:
    values = finite(rows, name).astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms > 0, norms, 1.0)


def class_retrieval(x: NDArray[Any], y: NDArray[Any], split: Split) -> Directions:
    """Returns means of `rank_by_class` both ways; x and y are labelled as the split's sides."""
    rows, figures = {"x": x, "y": y}, Directions()
    labels = {domain: split.side(domain).labels or [] for domain in DOMAINS}
    for name, (source, target) in DIRECTIONS.items():
        by_query = rank_by_class(rows[source], rows[target], labels[source], labels[target])
        count = len(by_query["map@all"])
        means = {measure: float(values.mean()) for measure, values in by_query.items()}
        figures[name] = {**means, "n": count, "without_relevant": len(rows[source]) - count}
    return figures


def zero_shot(pairs: EncodedPairs, split: Split, train: Split) -> dict[str, Any]:
    """Measures Table 3 by shared means, exclusive means and baselines; `split` has labels."""
    figures = _by_means(pairs, partial(class_retrieval, split=split))
    return {**figures.pop("shared"), **figures, **baselines(split, train)}


# ---- use of latents


def nats_per_dimension(encoded: Encoded, kind: LatentKind) -> Floats | None:
    """Returns mean KL(q‖p) over rows of every dimension (S,); None without such posteriors."""
    halves = encoded.logvar(kind)
    if halves is None:
        return None
    mean, logvar = encoded.mean(kind).astype(np.float64), halves.astype(np.float64)
    nats: Floats = 0.5 * (np.exp(logvar) + mean**2 - 1.0 - logvar).mean(axis=0)
    return nats


def exclusive_kl(pairs: EncodedPairs) -> dict[Domain, float]:
    """Returns mean KL(q(z^x|x)‖p) over rows in nats, by domain; see `DYING_NATS`."""
    nats = {domain: nats_per_dimension(pairs[domain], "exclusive") for domain in DOMAINS}
    return {domain: float(each.sum()) for domain, each in nats.items() if each is not None}
