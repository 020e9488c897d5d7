"""Where a configuration's values come from: presets, files, environment, options and `--set`, merged in that order.

A preset shows only what differs from the defaults in `config.py`. Every value remembers where it came from. All errors
of a configuration are reported at once, unknown keys with their nearest match.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.config.schema import Config, Section
from iiae_cli.config.yamls import MOST_CHARACTERS, load_yaml

MOST_PROBLEMS = 12  # told at once


@dataclass
class Resolved:
    """A configuration and where each dotted key's value came from (`default` where no layer set it)."""

    config: Config
    sources: dict[str, str]

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted key, value, source) of every value, in file order."""
        return [
            (key, value, self.sources.get(key, "default"))
            for key, value in flatten(self.config.to_dict()).items()
        ]


@dataclass
class Layer:
    """Values from one place."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)


# Environment names beside the general form IIAE_SECTION__KEY.
SHORT_ENVIRONMENT = {
    f"IIAE_{name.upper()}": f"training.{name}"
    for name in (
        "steps",
        "epochs",
        "batch_size",
        "seed",
        "device",
        "precision",
        "compile",
        "deterministic",
        "threads",
    )
}

# Read elsewhere (`places.py`).
OTHER_ENVIRONMENT = ("IIAE_DATA", "IIAE_RUN", "IIAE_INDEX")

# Steps and epochs exclude each other: a later layer's choice of one takes back an earlier layer's of the other.
_EXCLUSIVE = {"training.steps": "training.epochs", "training.epochs": "training.steps"}


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def known_keys() -> list[str]:
    """Every dotted key of the configuration."""
    return list(flatten(Config().to_dict()))


def key_help() -> dict[str, str]:
    """Dotted key to its one-line help."""
    help_texts = {"description": Config.model_fields["description"].description or ""}
    for name, info in Config.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            for key, entry in section.model_fields.items():
                help_texts[f"{name}.{entry.alias or key}"] = entry.description or ""
    return help_texts


def resolve(layers: Iterable[Layer]) -> Resolved:
    """Merge layers, later ones winning, and validate.

    Raises:
        IiaeError: unknown keys or bad values, all of them named.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    keys = known_keys()
    for layer in layers:
        for key, value in layer.values.items():
            if value in (None, {}) and any(name.startswith(f"{key}.") for name in keys):
                continue  # a section with nothing in it
            if key not in keys:
                near = (
                    _near(key, keys) if len(problems) < MOST_PROBLEMS else ""
                )  # matching takes time
                problems.append(f"unknown key '{key[:80]}' in {layer.source}{near}")
                continue
            values[key], sources[key] = value, layer.source
            rival = _EXCLUSIVE.get(key)
            if rival is not None and value is not None and rival not in layer.values:
                values.pop(rival, None)
                sources.pop(rival, None)
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    config: Config | None = None
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        for item in error.errors():
            dotted = _dotted(item["loc"])
            origin = f" in {sources[dotted]}" if dotted in sources else ""
            given = "" if isinstance(item["input"], Mapping) else f", not {_short(item['input'])}"
            problems.append(f"{dotted}{origin}: {item['msg'].removeprefix('Value error, ')}{given}")
    lengths = sum(values.get(key) is not None for key in _EXCLUSIVE)
    if lengths != 1:
        problems.append(
            f"training.steps and training.epochs are both {'set' if lengths else 'unset'}"
        )
    if problems or config is None:
        more = (
            f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        )
        raise IiaeError(
            "; ".join(problems[:MOST_PROBLEMS]) + more,
            "iiae train --preset NAME --print-config lists every key, its value and its source",
        )
    return Resolved(config, sources)


def _short(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _dotted(location: tuple[int | str, ...]) -> str:
    names = [str(part) for part in location if isinstance(part, str)]
    return ".".join(names) or "config"


def _near(key: str, candidates: Iterable[str]) -> str:
    names = list(candidates)
    matches = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if not matches:  # right name, wrong or missing section
        last = key.rsplit(".", 1)[-1]
        matches = [name for name in names if name.rsplit(".", 1)[-1] == last]
    return f", did you mean '{matches[0]}'?" if matches else ""


def preset_folder() -> Path:
    """Where the shipped presets lie: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parent.parent
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_layers(preset: str) -> list[Layer]:
    """The layers of a preset, given by name or as a YAML file, its `extends` chain first.

    Raises:
        IiaeError: no such preset or file, unreadable YAML, or a chain that bites its own tail.
    """
    layers: list[Layer] = []
    seen: list[Path] = []
    name: str | None = preset
    base = Path()
    while name is not None:
        path = _preset_path(name, base)
        if path.resolve() in seen:
            raise IiaeError(
                f"preset {preset} extends itself through {path.name}",
                "break the chain of 'extends'",
            )
        seen.append(path.resolve())
        content = read_yaml(path)
        parent = content.pop("extends", None)
        if parent is not None and not isinstance(parent, str):
            raise IiaeError(
                f"'extends' in {path} is not a name", "name one preset or one YAML file"
            )
        shipped = path.parent == preset_folder()
        layers.insert(0, Layer(f"preset {path.stem}" if shipped else str(path), flatten(content)))
        name, base = parent, path.parent
    return layers


def _preset_path(name: str, base: Path) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = base / name
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on names that are too long
            raise IiaeError(
                f"preset file {path} does not exist",
                f"shipped presets: {', '.join(preset_names())}",
            )
        return path
    path = preset_folder() / f"{name}.yaml"
    if name not in preset_names():
        raise IiaeError(
            f"unknown preset '{name}'{_near(name, preset_names())}",
            f"presets: {', '.join(preset_names())}",
        )
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        IiaeError: missing, unreadable, or not a mapping of names.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise IiaeError(f"cannot read {path}: it is no file", "name a YAML file")
        with path.open(encoding="utf-8") as file:
            content = load_yaml(file.read(MOST_CHARACTERS + 1))
    except OSError as error:
        raise IiaeError(
            f"cannot read {path}: {error.strerror}", "check the path and its permissions"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        first = " ".join(str(error).split())[:300]
        raise IiaeError(
            f"{path} is not valid YAML: {first}", "compare it with a preset in presets/"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise IiaeError(
            f"{path} does not hold a mapping of keys", "compare it with a preset in presets/"
        )
    return content


def environment_layer(environment: Mapping[str, str] | None = None) -> Layer:
    """`IIAE_SECTION__KEY` and the short forms (`IIAE_SEED`, …) of the environment; warns of other `IIAE_…` names."""
    layer = Layer("environment")
    for name, text in (os.environ if environment is None else environment).items():
        if not name.startswith("IIAE_") or not text:
            continue
        if name in SHORT_ENVIRONMENT:
            layer.values[SHORT_ENVIRONMENT[name]] = parse_value(text, name)
        elif "__" in name:
            layer.values[name.removeprefix("IIAE_").lower().replace("__", ".")] = parse_value(
                text, name
            )
        elif name not in OTHER_ENVIRONMENT:
            console.warn(
                f"{name} is set, but means nothing{_near(name, [*SHORT_ENVIRONMENT, *OTHER_ENVIRONMENT])}"
            )
    return layer


def set_layer(assignments: Iterable[str]) -> Layer:
    """`--set KEY=VALUE` with dotted keys and YAML-typed values.

    Raises:
        IiaeError: an assignment without '=' or with a value that is no YAML.
    """
    layer = Layer("--set")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise IiaeError(f"--set {assignment} has no '='", "write --set objective.lambda=50")
        layer.values[key.strip()] = parse_value(text, f"--set {key}")
    return layer


def parse_value(text: str, where: str) -> Any:
    """One YAML value.

    Raises:
        IiaeError: `text` is no YAML.
    """
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise IiaeError(
            f"{where}: {_short(text)} is no YAML value", "quote texts, write lists as [1, 2]"
        ) from error
