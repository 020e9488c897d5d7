"""Which classes a backbone has been trained on, and whether a zero-shot test class is among them.

Only the classes of the data set count: ImageNet's are another vocabulary, and every published
figure starts from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iiae_cli.common.errors import IiaeError


def normalise_class(name: str) -> str:
    """A class name as the published lists spell it: `hot-air balloon` → `hot_air_balloon`."""
    return name.strip().replace("-", "_").replace(" ", "_")


def class_list_hash(names: Iterable[str]) -> str:
    """SHA-256 in hex over the sorted distinct names, joined by newlines, UTF-8."""
    return hashlib.sha256("\n".join(sorted({*names})).encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """Classes that some weights were trained on, sorted."""

    classes: tuple[str, ...] = ()
    complete: bool = True  # there are no others; not known of features and weights of others

    def and_also(self, classes: Iterable[str]) -> Seen:
        """The same after training on more classes."""
        return Seen(tuple(sorted({*self.classes, *classes})), self.complete)

    def among(self, test_classes: Iterable[str]) -> list[str]:
        """The test classes that were seen, whichever spelling."""
        seen = {normalise_class(name) for name in self.classes}
        return sorted(name for name in set(test_classes) if normalise_class(name) in seen)

    def leak(self, test_classes: Iterable[str]) -> list[str] | None:
        """The test classes that were seen; None where that is unknown."""
        found = self.among(test_classes)
        return found if found or self.complete else None

    def to_json(self) -> dict[str, Any]:
        """`classes_seen`: a list, or None where nothing is known; `classes_seen_complete`."""
        known = list(self.classes) if self.classes or self.complete else None
        return {"classes_seen": known, "classes_seen_complete": self.complete}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Seen:
        """From what `to_json` returned; unknown where nothing is said."""
        classes = values.get("classes_seen")
        if classes is None:
            return UNKNOWN
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes_seen is no list of names")
        return cls(tuple(sorted(classes)), bool(values.get("classes_seen_complete", True)))

    @classmethod
    def of_header(cls, header: Mapping[str, str]) -> Seen:
        """From the header of a weights file, whose values are JSON."""
        keys = ("classes_seen", "classes_seen_complete")
        return cls.of_json({key: json.loads(header[key]) for key in keys if key in header})

    @classmethod
    def of_data_file(cls, attributes: Mapping[str, str]) -> Seen:
        """From a data file's attribute `backbone`; a damaged one is an error."""
        try:
            return cls.of_json(json.loads(attributes.get("backbone", "{}")))
        except (ValueError, AttributeError, RecursionError) as error:
            raise IiaeError(
                f"the data file's attribute backbone is damaged: {error}",
                "make the file again: iiae prepare …",
            ) from error


NONE_SEEN = Seen()
UNKNOWN = Seen(complete=False)


def refuse_leak(seen: Seen, test_classes: Iterable[str], what: str, allow: bool) -> None:
    """Refuse `what`, weights or features, where it has seen a test class, unless `allow`."""
    found = seen.among(test_classes)
    if found and not allow:
        raise IiaeError(
            f"{what} was trained on {len(found)} of the test classes: {', '.join(found)}",
            "use weights of this split's training classes, or pass --allow-leak: the data file "
            "and its figures say so",
        )
