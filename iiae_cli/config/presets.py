"""Merges a configuration from presets, files, environment, options and `--set`, in that order.

Every value remembers its source. All errors are reported at once, unknown keys with a near match.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from iiae_cli.common import console
from iiae_cli.common.environment import preset_folder, preset_names
from iiae_cli.common.errors import IiaeError, plain_words
from iiae_cli.common.files import reading
from iiae_cli.config import Config, TrainingSection

# Environment names beside the general form IIAE_SECTION__KEY.
_SHORT_NAMES = {f"IIAE_{name.upper()}": f"training.{name}" for name in TrainingSection.model_fields}
_OTHER_NAMES = ("IIAE_DATA", "IIAE_RUN", "IIAE_INDEX", "IIAE_BACKBONE_WEIGHTS")

# A later layer that sets one unsets an earlier layer's other.
_EXCLUSIVE = {"training.steps": "training.epochs", "training.epochs": "training.steps"}


@dataclass
class Layer:
    """Values from one source, by dotted key."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Resolved:
    """A configuration, and the source of each dotted key that a layer set."""

    config: Config
    sources: dict[str, str]

    def rows(self) -> list[tuple[str, Any, str]]:
        """Returns (dotted key, value, source) of every value, in file order."""
        values = flatten(self.config.to_dict()).items()
        return [(key, value, self.sources.get(key, "default")) for key, value in values]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings under dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def key_help() -> dict[str, str]:
    """Returns a line of help for every dotted key."""
    texts = {}
    for section, info in Config.model_fields.items():
        fields = getattr(info.annotation, "model_fields", {"": info})
        for name, item in fields.items():
            key = f"{section}.{item.alias or name}".rstrip(".")
            texts[key] = " ".join((item.description or "").split())
    return texts


def resolve(layers: Iterable[Layer]) -> Resolved:
    """Merges layers, later ones winning, and validates: keys, values, one of steps and epochs."""
    given, problems = _merge(layers)
    sources = {key: source for key, (_, source) in given.items()}
    nested: dict[str, Any] = {}
    for key, (value, _) in given.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    config = Config()
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        for item in error.errors():
            key, value = ".".join(map(str, item["loc"][:2])), item["input"]
            origin = f" in {sources[key]}" if key in sources else ""
            shown = "" if isinstance(value, Mapping) else f", not {reprlib.repr(value)}"
            where = f"{key}{origin}: " if key else ""
            problems.append(f"{where}{plain_words(item['msg'])}{shown}")
    lengths = [key for key in _EXCLUSIVE if given.get(key, (None,))[0] is not None]
    if len(lengths) != 1:
        state = "set" if lengths else "unset"
        problems.append(f"training.steps and training.epochs are both {state}")
    if problems:
        raise IiaeError(
            "; ".join(problems),
            "iiae train --preset NAME --print-config lists every key, its value and its source",
        )
    return Resolved(config, sources)


def _merge(layers: Iterable[Layer]) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """Returns (value, source) by dotted key, and a line for every unknown key."""
    keys = key_help()
    sections = {key.rpartition(".")[0] for key in keys}
    given: dict[str, tuple[Any, str]] = {}
    unknown = []
    for layer in layers:
        for key, rival in _EXCLUSIVE.items():
            if layer.values.get(key) is not None and rival not in layer.values:
                given.pop(rival, None)
        for key, value in layer.values.items():
            if key in keys:
                given[key] = value, layer.source
            elif key not in sections or value not in (None, {}):  # an empty section is fine
                unknown.append(f"unknown key '{key}' in {layer.source}{_near(key, keys)}")
    return given, unknown


def _near(key: str, names: Iterable[str]) -> str:
    names = list(names)
    matches = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    # Or the right name in a wrong or missing section.
    matches += [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f", did you mean '{matches[0]}'?" if matches else ""


def preset_layers(
    preset: str, folder: Path = Path(), extending: tuple[Path, ...] = ()
) -> list[Layer]:
    """Returns a preset's layers, by name or YAML file in `folder`; those that it extends first."""
    path, names = folder / preset, preset_names()
    if not preset.endswith((".yaml", ".yml")):
        path = preset_folder() / f"{preset}.yaml"
        if preset not in names:
            hint = "take digits-cdcb or another of iiae presets, or name a file that ends in .yaml"
            raise IiaeError(f"unknown preset '{preset}'{_near(preset, names)}", hint)
    if path.resolve() in extending:
        message = f"preset {extending[0]} extends itself through {path.name}"
        raise IiaeError(message, "break the chain of 'extends'")
    content = read_yaml(path, "iiae presets lists those that need no file")
    parent = str(content.pop("extends", None) or "")
    content.pop("time", None)  # the time it takes, for `iiae presets`
    source = f"preset {path.stem}" if path.parent == preset_folder() else str(path)
    layers = preset_layers(parent, path.parent, (*extending, path.resolve())) if parent else []
    return [*layers, Layer(source, flatten(content))]


def read_yaml(path: Path, hint: str = "check the path") -> dict[str, Any]:
    """Reads the mapping in a YAML file."""
    with reading(path, hint), path.open(encoding="utf-8") as file:
        content = load_yaml(file.read(), str(path)) or {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        hint = "compare it with: iiae train --preset digits-cdcb --print-config"
        raise IiaeError(f"{path} does not hold a mapping of keys", hint)
    return content


def environment_layer(environment: Mapping[str, str] = os.environ) -> Layer:
    """Reads `IIAE_SECTION__KEY` and short forms (`IIAE_SEED`, …); warns of other `IIAE_…` names."""
    layer = Layer("environment")
    for name, text in environment.items():
        if not name.startswith("IIAE_") or not text:
            continue
        if name in _SHORT_NAMES or "__" in name:
            key = _SHORT_NAMES.get(name) or name.removeprefix("IIAE_").lower().replace("__", ".")
            layer.values[key] = load_yaml(text, name)
        elif name not in _OTHER_NAMES:
            console.warn(f"{name} is set, but has no meaning{_near(name, _SHORT_NAMES)}")
    return layer


def set_layer(assignments: Iterable[str]) -> Layer:
    """Parses `--set KEY=VALUE`: dotted keys, YAML-typed values."""
    layer = Layer("--set")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise IiaeError(f"--set {assignment} has no '='", "write --set objective.lambda=50")
        layer.values[key.strip()] = load_yaml(text, f"--set {key}")
    return layer


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise yaml.YAMLError(f"key '{max(names, key=names.count)}' occurs twice")
        return dict(super().construct_mapping(node, deep))


def load_yaml(text: str, where: str) -> Any:
    """Returns the plain value of one YAML document."""
    try:
        return _Loader(text).get_single_data()
    except Exception as error:  # PyYAML raises many kinds, RecursionError among them
        reason = " ".join(str(error).split())[:300]
        raise IiaeError(
            f"{where} is not valid YAML: {reason}",
            "quote texts, write lists as [1, 2], compare with the files in presets/",
        ) from error
