"""What benchmarks share: competitors timed in turns, ratios and their spread, the machine's peak.

Times are ratios' raw material: a busy machine changes them, the ratio of two that ran in turns much
less. CPU seconds of the process are printed beside wall seconds for the same reason.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Seconds = dict[str, dict[str, list[float]]]


def in_turns(competitors: dict[str, Callable[[], Any]], repetitions: int) -> Seconds:
    """Wall and CPU seconds of every competitor, each run once per repetition."""
    found: Seconds = {name: {"wall": [], "cpu": []} for name in competitors}
    for _ in range(repetitions):
        for name, work in competitors.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            found[name]["wall"].append(time.perf_counter() - wall)
            found[name]["cpu"].append(time.process_time() - cpu)
    return found


def middle(values: list[float]) -> dict[str, float]:
    """Median, smallest, largest."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(seconds: Seconds, name: str, to: str, clock: str = "cpu") -> dict[str, float]:
    """How long `name` took in parts of `to`, repetition by repetition."""
    return middle([a / b for a, b in zip(seconds[name][clock], seconds[to][clock], strict=True)])


def matmul_peak(seconds: float = 1.0, size: int = 2048) -> float:
    """float32 matrix products in GFLOP per CPU second: the best of repeated square ones."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    out = torch.empty(size, size)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.process_time()
        torch.mm(a, b, out=out)
        best = max(best, 2e-9 * size**3 / (time.process_time() - start))
    return best


def machine(threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    versions = {}
    for name in ("torch", "numpy", "scikit-learn", "faiss-cpu"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gflops_per_cpu_second": matmul_peak(),
        "versions": versions,
    }


def set_threads(threads: int) -> None:
    """Threads of torch, BLAS and faiss."""
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(threads)


def peak_bytes() -> int:
    """The most memory that this program has held."""
    status = Path("/proc/self/status")
    if status.exists():  # a process begins with its parent's `ru_maxrss`
        line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def report(result: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(result, indent=2))
