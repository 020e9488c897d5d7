"""Published lists of test classes, the comparison of class names, and which weights saw which.

A zero-shot figure means nothing without its list of test classes, so every division has a name and
a hash, both in the data file. Of the published lists of Sketchy Extended `sempcyc-25` is the
paper's split 1, `eccv18-21` its split 2; `sake-25` is what later work uses. Seen classes are those
of the data set, not ImageNet's.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iiae_cli.common.errors import IiaeError

_LISTS = {
    "sempcyc-25": (
        "bear bell cannon door eyeglasses geyser guitar hamburger jack_o_lantern lobster "
        "motorcycle mushroom pear racket rhinoceros saw saxophone spoon squirrel tank teapot "
        "tiger trumpet violin wheelchair"
    ),
    "eccv18-21": (
        "bat cabin cow dolphin door giraffe helicopter mouse pear raccoon rhinoceros saw scissors "
        "seagull skyscraper songbird sword tree wheelchair windmill window"
    ),
    "sake-25": (
        "cup swan harp squirrel snail ray pineapple volcano rifle scissors parrot windmill "
        "teddy_bear tree wine_bottle deer chicken airplane wheelchair tank umbrella butterfly "
        "camel horse bell"
    ),
}
CLASS_SPLITS = {name: tuple(text.split()) for name, text in _LISTS.items()}


def nfc(text: str) -> str:
    """Returns a text in Unicode's composed form, in which names are compared."""
    return unicodedata.normalize("NFC", text)


def normalise_class(name: str) -> str:
    """Returns a class name as published lists spell it: `hot-air balloon` → `hot_air_balloon`."""
    return nfc(name).strip().replace("-", "_").replace(" ", "_")


def class_list_hash(names: Iterable[str]) -> str:
    """Returns the SHA-256, in hex, of the sorted distinct names, joined by newlines, in UTF-8."""
    text = "\n".join(sorted({*names}))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Seen:
    """The classes that some weights were trained on, sorted."""

    classes: tuple[str, ...] = ()
    complete: bool = True  # there are no others; unknown for other people's features and weights

    def and_also(self, classes: Iterable[str]) -> Seen:
        """Returns the classes seen after training on more."""
        return Seen(tuple(sorted({*self.classes, *classes})), self.complete)

    def among(self, test_classes: Iterable[str]) -> list[str]:
        """Returns the test classes that were seen, in whichever spelling."""
        seen = {normalise_class(name) for name in self.classes}
        return sorted(name for name in set(test_classes) if normalise_class(name) in seen)

    def leak(self, test_classes: Iterable[str]) -> list[str] | None:
        """Returns the test classes that were seen; None if that is unknown."""
        return self.among(test_classes) or ([] if self.complete else None)

    def to_json(self) -> dict[str, Any]:
        """Returns `classes_seen`, a list, or None if unknown, and `classes_seen_complete`."""
        known = list(self.classes) if self.classes or self.complete else None
        return {"classes_seen": known, "classes_seen_complete": self.complete}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Seen:
        """Reads what `to_json` returned; unknown if the key is missing."""
        classes = values.get("classes_seen")
        if classes is None:
            return UNKNOWN
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes_seen is not a list of names")
        return cls(tuple(sorted(classes)), bool(values.get("classes_seen_complete", True)))

    @classmethod
    def of_data_file(cls, attributes: Mapping[str, str]) -> Seen:
        """Reads a data file's attribute `backbone`; raises if it is damaged."""
        try:
            return cls.of_json(json.loads(attributes.get("backbone", "{}")))
        except (ValueError, AttributeError, RecursionError) as error:
            raise IiaeError(
                f"the data file's attribute backbone is damaged: {error}",
                "make it again: iiae prepare NAME … --overwrite",
            ) from error


NONE_SEEN = Seen()
UNKNOWN = Seen(complete=False)


def refuse_leak(seen: Seen, test_classes: Iterable[str], what: str, allow: bool) -> None:
    """Raises if `what`, weights or features, has seen a test class, unless `allow`."""
    leaked = seen.among(test_classes)
    if leaked and not allow:
        raise IiaeError(
            f"{what} was trained on {len(leaked)} of the test classes: {', '.join(leaked)}",
            "use weights of this split's training classes, or pass --allow-leak: the data file "
            "and its figures say so",
        )
