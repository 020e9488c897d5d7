"""What a data file's content depends on: by this an interrupted preparation, and a finished one, are known again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from iiae_cli.data.datafile import versions
from iiae_cli.data.feature_options import FeatureOptions
from iiae_cli.data.sources.manifest import is_manifest, pictures_of


def settings_of(
    name: str,
    *,
    source: Path | None,
    features: FeatureOptions,
    **options: Any,
) -> dict[str, Any]:
    """Everything that decides a data file's arrays, as JSON values.

    Args:
        name: of the data set.
        source: file or folder; its files' sizes and times of change count, their content is not read.
        features: of sets of classes.
        options: the others, JSON values.
    """
    return {
        "data set": name,
        "source": None if source is None else str(source.absolute()),
        "content of the source": None if source is None else state_of(source),
        **{key.replace("_", " "): value for key, value in options.items()},
        "division of classes": [features.class_split, _named(features.unseen_classes)],
        "backbone": [
            features.backbone,
            _named(features.backbone_weights),
            features.fine_tune_epochs,
        ],
        "preprocessing": [features.invert_sketches, features.normalise],
        "batch size": features.batch_size,
        "allow-leak": features.allow_leak,
        "version": versions(),
    }


def digest_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 in hex over settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def state_of(source: Path) -> str:
    """A digest over names, sizes and times of change: of a file, of all below a folder, or of a table's pictures."""
    digest = hashlib.sha256()
    files: Iterable[Path] = _files_below(source) if source.is_dir() else [source]
    if is_manifest(source):
        files = [source, *pictures_of(source)]
    for path in files:
        try:
            status = path.stat()
            line = f"{path}\0{status.st_size} {status.st_mtime_ns}\0"
        except (OSError, ValueError):  # the latter of a NUL in a table's path
            line = f"{path}\0missing\0"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _files_below(folder: Path) -> Iterable[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(root, name)


def _named(given: str | None) -> str | None:
    """A number or a name as it is; of a path also what it holds."""
    if given is None or not Path(given).exists():
        return given
    return f"{given} {state_of(Path(given))}"
