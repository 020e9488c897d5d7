"""Nearest neighbours: `nearest` by each backend beside faiss' flat index; partners' ranks.

    python -m benchmarks.retrieve                    # 7,500 × 70,000 × 64, cosine, k = 100
    python -m benchmarks.retrieve --long             # 10,000 × 10,000 × 8,192, Euclidean, k = 1
    python -m benchmarks.retrieve --scale 0.1 --threads 2 --backends torch faiss sklearn

faiss' flat index is timed with all that a search from raw latents takes: unit rows for cosine,
adding, searching.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import in_turns, machine, middle, peak_bytes, ratio, report, set_threads
from iiae_cli.inference.neighbours import nearest, partner_ranks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true", help="8,192 dimensions instead of 64")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="part of the queries and of the gallery"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--backends", nargs="+", default=["torch"], choices=["torch", "faiss", "sklearn"]
    )
    parser.add_argument(
        "--ranks", action="store_true", help="also the ranks of partners, as Recall@K needs them"
    )
    options = parser.parse_args()
    set_threads(options.threads)
    import faiss

    count, size, width, k = (10_000, 10_000, 8192, 1) if options.long else (7500, 70_000, 64, 100)
    count, size = (max(k, round(options.scale * n)) for n in (count, size))
    metric = "euclidean" if options.long else "cosine"
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((size, width), dtype=np.float32)
    queries = rng.standard_normal((count, width), dtype=np.float32)
    queries[:size] += gallery[:count]

    def flat() -> Any:
        rows = [queries, gallery]
        if metric == "cosine":
            rows = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in rows]
        index = faiss.IndexFlatIP(width) if metric == "cosine" else faiss.IndexFlatL2(width)
        index.add(rows[1])
        return index.search(rows[0], k)[1]

    def by(backend: Any) -> Callable[[], Any]:
        return lambda: nearest(queries, gallery, k, metric=metric, backend=backend)

    competitors = {"faiss flat": flat, **{backend: by(backend) for backend in options.backends}}
    if options.ranks:
        competitors["partner ranks"] = lambda: partner_ranks(queries, gallery, metric=metric)
    before = peak_bytes()
    # The first round also says whether all of them agree.
    found = {name: by(name)() for name in options.backends}
    grown = peak_bytes() - before
    first = found[options.backends[0]]
    seconds = in_turns(competitors, options.repetitions)
    where = machine(options.threads)
    gflop = 2e-9 * count * size * width
    report(
        {
            "benchmark": "retrieve",
            "sizes": {"queries": count, "gallery": size, "width": width, "k": k, "metric": metric},
            **where,
            "seconds": {
                name: {clock: middle(taken) for clock, taken in one.items()}
                for name, one in seconds.items()
            },
            "ratio_to_faiss_flat": {
                name: {
                    clock: ratio(seconds, name, "faiss flat", clock) for clock in ("cpu", "wall")
                }
                for name in competitors
            },
            "fraction_of_peak": {
                name: gflop / min(one["cpu"]) / where["gflops_per_cpu_second"]
                for name, one in seconds.items()
            },
            "backends_identical": all(
                np.array_equal(a, b)
                for one in found.values()
                for a, b in zip(one, first, strict=True)
            ),
            "equal_to_faiss_flat": float((first[0] == flat()).mean()),
            "extra_bytes": grown,
        }
    )


if __name__ == "__main__":
    main()
