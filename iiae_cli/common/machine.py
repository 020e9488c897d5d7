"""What this machine grants a process: processor cores and memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: those of its affinity, or fewer by its cgroups' quota (v2).

    A quota of 2.5 cores counts as 2: a third thread would be stopped, and the others wait for it.
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
    """Bytes of memory that can be had without swapping; all of it if the system is not Linux."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
