"""mAP@all over a whole ranking, side by side with argsort's.

    python -m benchmarks.evaluate                    # 14,421 × 14,626 × 64, 25 classes
    python -m benchmarks.evaluate --scale 0.1 --threads 2

The competitors rank in chunks: `numpy.argsort` stable, as ties in gallery order need it; numpy's
default one, which AVX-512 makes several times faster and which orders ties at will; and that one
query by query, which the processor's cache likes better.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from benchmarks.common import in_turns, machine, middle, peak_bytes, ratio, report, set_threads
from iiae_cli.evaluation.retrieval import rank_by_class

CHUNK = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="part of the queries")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    set_threads(1)  # one thread a chunk, for all competitors
    rng = np.random.default_rng(0)
    count, size, classes = round(14_421 * options.scale), 14_626, 25
    centres = rng.standard_normal((classes, 64))
    of_query, of_item = rng.integers(0, classes, count), rng.integers(0, classes, size)
    queries, gallery = (
        centres[of] + 2 * rng.standard_normal((len(of), 64)) for of in (of_query, of_item)
    )
    labels = [str(one) for one in of_query], [str(one) for one in of_item]

    def by_argsort(kind: Literal["stable"] | None) -> Callable[[], Any]:
        def work() -> Any:
            a, b = (
                rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)
            )
            places = np.arange(1, size + 1)

            def chunk(start: int) -> Any:
                part = slice(start, start + CHUNK)
                order = np.argsort(-(a[part] @ b.T), axis=1, kind=kind)
                relevant = of_item[order] == of_query[part, None]
                precision = np.cumsum(relevant, axis=1) / places
                return (precision * relevant).sum(axis=1) / relevant.sum(axis=1)

            with ThreadPoolExecutor(options.threads) as pool:
                return np.concatenate(list(pool.map(chunk, range(0, count, CHUNK))))

        return work

    def query_by_query() -> Any:
        a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery))
        places = np.arange(1, size + 1)

        def chunk(start: int) -> list[float]:
            found = []
            for line, own in zip(
                -(a[start : start + CHUNK] @ b.T), of_query[start : start + CHUNK], strict=True
            ):
                relevant = of_item[np.argsort(line)] == own
                found.append((np.cumsum(relevant) / places)[relevant].mean())
            return found

        with ThreadPoolExecutor(options.threads) as pool:
            return np.concatenate(list(pool.map(chunk, range(0, count, CHUNK))))

    competitors = {
        "rank_by_class": lambda: rank_by_class(queries, gallery, *labels, threads=options.threads),
        "stable argsort": by_argsort("stable"),
        "default argsort": by_argsort(None),
        "default argsort, query by query": query_by_query,
    }
    before = peak_bytes()
    ours = competitors["rank_by_class"]()
    grown = peak_bytes() - before
    seconds = in_turns(competitors, options.repetitions)
    report(
        {
            "benchmark": "evaluate",
            "sizes": {"queries": count, "gallery": size, "width": 64, "classes": classes},
            **machine(options.threads),
            "microseconds_per_query": {
                name: {clock: 1e6 * middle(taken)["median"] / count for clock, taken in one.items()}
                for name, one in seconds.items()
            },
            "times_faster": {
                name: {
                    clock: ratio(seconds, name, "rank_by_class", clock) for clock in ("cpu", "wall")
                }
                for name in competitors
            },
            "largest_difference": float(np.abs(ours["map@all"] - by_argsort("stable")()).max()),
            "extra_bytes": grown,
        }
    )


if __name__ == "__main__":
    main()
