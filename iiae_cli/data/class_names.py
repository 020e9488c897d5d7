"""Class names: one spelling, and the hash that tells one list of test classes from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def normalise_class(name: str) -> str:
    """A class name as the published lists spell it: `hot-air balloon` → `hot_air_balloon`."""
    return name.strip().replace("-", "_").replace(" ", "_")


def class_list_hash(names: Iterable[str]) -> str:
    """SHA-256 in hex over the sorted distinct names, joined by newlines, UTF-8."""
    return hashlib.sha256("\n".join(sorted({*names})).encode()).hexdigest()
