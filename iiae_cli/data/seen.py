"""Counts the picture files that a command reads, for its last lines: modes, sizes, changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any


class PictureCounts:
    """The files that this process read as pictures, each counted once, and those it left out."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._read: set[int] = set()  # hashes of paths: there may be millions
        self._modes: Counter[str] = Counter()
        self._sizes: set[tuple[int, int]] = set()
        self._changes: Counter[str] = Counter()
        self._left_out: dict[Path, str] = {}

    def add(self, path: Path, mode: str, size: tuple[int, int], changes: Iterable[str]) -> None:
        """Counts a picture of this size (W, H), as shown, and the changes made to it."""
        with self._lock:
            if hash(path) not in self._read:
                self._read.add(hash(path))
                self._modes[mode] += 1
                self._sizes.add(size)
                self._changes.update(changes)

    def leave_out(self, path: Path, kind: str) -> None:
        """Counts a path that is not read as a picture."""
        self._left_out[path] = kind

    def take(self) -> dict[str, Any]:
        """Returns everything as JSON, and forgets it; `sizes` are the smallest and largest, W×H."""
        sizes = sorted(self._sizes, key=lambda size: (size[0] * size[1], size))
        ends = [sizes[0], sizes[-1]] if len(sizes) > 1 else sizes
        seen = {
            "read": len(self._read),
            "modes": dict(self._modes.most_common()),
            "sizes": [f"{width}×{height}" for width, height in ends],
            "changes": dict(self._changes.most_common()),
            "left_out": dict(Counter(self._left_out.values()).most_common()),
        }
        self.clear()
        return seen


SEEN = PictureCounts()


def line_of(seen: Mapping[str, Any], skipped: int = 0) -> str:
    """Formats what `take` returned, and the number of skipped inputs, as a line for people."""
    modes = ", ".join(f"{mode} {count}" for mode, count in seen["modes"].items())
    changes = [f"{count} {change}" for change, count in seen["changes"].items()]
    lost = [f"{skipped} inputs skipped"] if skipped else []
    sizes = " to ".join(seen["sizes"])
    return "; ".join([f"pictures: {seen['read']} read ({modes}), {sizes}", *changes, *lost])
