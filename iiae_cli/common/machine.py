"""What this machine grants a process: processor cores and memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: those of its affinity, or fewer by its cgroups' quota.

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
            count = min(count, _quota(cgroups, folder) or count)
    return max(count, 1)


def _quota(cgroups: Path, folder: Path) -> int | None:
    """The whole cores of a cgroup's quota; None if it has none. Version 2, else 1."""
    second, first = cgroups / folder / "cpu.max", cgroups / "cpu" / folder
    with suppress(OSError, ValueError):  # ValueError: "max"
        if second.exists():
            quota, period = map(int, second.read_text("utf-8").split())
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = (int((first / name).read_text("utf-8")) for name in names)
        return None if quota < 0 else max(quota // period, 1)
    return None


def free_memory() -> int:
    """Bytes of memory that can be had without swapping; all of it if the system is not Linux."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
