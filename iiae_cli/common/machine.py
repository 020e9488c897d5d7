"""The processor cores and the memory that this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Returns the number of cores that affinity and cgroup quotas (v2) allow this process.

    A quota of 2.5 cores counts as 2: a third thread would be stopped while the others wait for it.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on a Mac
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    paths = {""}
    with suppress(OSError):
        paths |= {line.split(":", 2)[2] for line in own.read_text("utf-8").splitlines()}
    for path in paths:
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):  # a quota holds for everything below
            with suppress(OSError, ValueError):  # no quota: no file, or "max"
                quota, period = map(int, (cgroups / folder / "cpu.max").read_text("utf-8").split())
                count = min(count, quota // period)
    return max(count, 1)


def free_memory() -> int:
    """Returns the bytes of memory free without swapping; all memory if the system is not Linux."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
