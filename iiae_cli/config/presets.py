"""Where a configuration's values come from: presets, files, environment, options and `--set`.

They are merged in that order, and every value remembers its source. A preset holds only what
differs from the defaults in `schema.py`. All errors are reported at once, unknown keys with their
nearest match.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading
from iiae_cli.config.schema import Config, Section

MOST_PROBLEMS = 12  # reported at once
MOST_CHARACTERS = 2**20  # of a YAML text
MOST_VALUES = 10_000  # of a YAML text

# Environment names beside the general form IIAE_SECTION__KEY.
_SHORT_NAMES = {
    f"IIAE_{name.upper()}": f"training.{name}"
    for name in (
        *("steps", "epochs", "batch_size", "seed", "device"),
        *("precision", "compile", "deterministic", "threads"),
    )
}
_OTHER_NAMES = ("IIAE_DATA", "IIAE_RUN", "IIAE_INDEX")  # see common/paths.py

# A later layer's choice of one takes back an earlier layer's choice of the other.
_EXCLUSIVE = {"training.steps": "training.epochs", "training.epochs": "training.steps"}


@dataclass
class Layer:
    """Values from one source, by dotted key."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Resolved:
    """A configuration and the source of each dotted key's value (`default` if no layer set it)."""

    config: Config
    sources: dict[str, str]

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted key, value, source) of every value, in file order."""
        return [
            (key, value, self.sources.get(key, "default"))
            for key, value in flatten(self.config.to_dict()).items()
        ]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def key_help() -> dict[str, str]:
    """One line of help for every dotted key of the configuration."""

    def texts(section: type[Section], prefix: str = "") -> dict[str, str]:
        found: dict[str, str] = {}
        for name, info in section.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= texts(kind, f"{name}.")
            else:
                found[prefix + (info.alias or name)] = " ".join((info.description or "").split())
        return found

    return texts(Config)


def resolve(layers: Iterable[Layer]) -> Resolved:
    """Merge layers, later ones winning, and validate."""
    values, sources, unknown = _merge(layers)
    keys = list(key_help())
    problems = [
        f"unknown key '{key[:80]}' in {source}{_near(key, keys)}"
        for key, source in unknown[:MOST_PROBLEMS]
    ]
    config = Config()
    try:
        config = Config.model_validate(_nest(values))
    except ValidationError as error:
        for item in error.errors():
            key = ".".join(map(str, item["loc"][:2])) or "config"
            origin = f" in {sources[key]}" if key in sources else ""
            given = "" if isinstance(item["input"], Mapping) else f", not {_short(item['input'])}"
            problems.append(f"{key}{origin}: {item['msg'].removeprefix('Value error, ')}{given}")
    lengths = sum(values.get(key) is not None for key in _EXCLUSIVE)
    if lengths != 1:
        state = "set" if lengths else "unset"
        problems.append(f"training.steps and training.epochs are both {state}")
    if problems:
        more = len(problems) - MOST_PROBLEMS + max(0, len(unknown) - MOST_PROBLEMS)
        shown = problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise IiaeError(
            "; ".join(shown),
            "iiae train --preset NAME --print-config lists every key, its value and its source",
        )
    return Resolved(config, sources)


def _merge(
    layers: Iterable[Layer],
) -> tuple[dict[str, Any], dict[str, str], list[tuple[str, str]]]:
    """(value by dotted key, source by dotted key, unknown keys with their source)."""
    keys = key_help()
    sections = {key.rpartition(".")[0] for key in keys}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    unknown: list[tuple[str, str]] = []
    for layer in layers:
        for key, value in layer.values.items():
            if key in keys:
                values[key], sources[key] = value, layer.source
                rival = _EXCLUSIVE.get(key)
                if rival is not None and value is not None and rival not in layer.values:
                    values.pop(rival, None)
                    sources.pop(rival, None)
            elif key not in sections or value not in (None, {}):  # an empty section is no mistake
                unknown.append((key, layer.source))
    return values, sources, unknown


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def _short(value: Any) -> str:
    """A value for a message, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _near(key: str, names: Iterable[str]) -> str:
    names = list(names)
    matches = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if not matches:  # right name, wrong or missing section
        last = key.rpartition(".")[2]
        matches = [name for name in names if name.rpartition(".")[2] == last]
    return f", did you mean '{matches[0]}'?" if matches else ""


def preset_folder() -> Path:
    """The shipped presets: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parent.parent
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_layers(preset: str) -> list[Layer]:
    """The layers of a preset, a name or a YAML file, with the presets that it extends first."""
    layers: list[Layer] = []
    seen: list[Path] = []
    name: str | None = preset
    folder = Path()
    while name is not None:
        path = _preset_path(name, folder)
        content = read_yaml(path, f"shipped presets: {', '.join(preset_names())}")
        if path.resolve() in seen:
            raise IiaeError(
                f"preset {preset} extends itself through {path.name}",
                "break the chain of 'extends'",
            )
        seen.append(path.resolve())
        name = content.pop("extends", None)
        if name is not None and not isinstance(name, str):
            raise IiaeError(
                f"'extends' in {path} is not a name", "name one preset or one YAML file"
            )
        shipped = path.parent == preset_folder()
        layers.insert(0, Layer(f"preset {path.stem}" if shipped else str(path), flatten(content)))
        folder = path.parent
    return layers


def _preset_path(name: str, folder: Path) -> Path:
    if name.endswith((".yaml", ".yml")):
        return folder / name
    names = preset_names()
    if name not in names:
        raise IiaeError(
            f"unknown preset '{name}'{_near(name, names)}", f"presets: {', '.join(names)}"
        )
    return preset_folder() / f"{name}.yaml"


def read_yaml(path: Path, hint: str = "check the path") -> dict[str, Any]:
    """The mapping in a YAML file."""
    with reading(path, hint), path.open(encoding="utf-8") as file:
        content = load_yaml(file.read(MOST_CHARACTERS + 1), str(path))
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise IiaeError(
            f"{path} does not hold a mapping of keys", "compare it with a preset in presets/"
        )
    return content


def environment_layer(environment: Mapping[str, str] = os.environ) -> Layer:
    """`IIAE_SECTION__KEY` and short forms (`IIAE_SEED`, …); warns of other `IIAE_…` names."""
    layer = Layer("environment")
    for name, text in environment.items():
        if not name.startswith("IIAE_") or not text:
            continue
        if name in _SHORT_NAMES or "__" in name:
            key = _SHORT_NAMES.get(name) or name.removeprefix("IIAE_").lower().replace("__", ".")
            layer.values[key] = load_yaml(text, name)
        elif name not in _OTHER_NAMES:
            near = _near(name, [*_SHORT_NAMES, *_OTHER_NAMES])
            console.warn(f"{name} is set, but means nothing{near}")
    return layer


def set_layer(assignments: Iterable[str]) -> Layer:
    """`--set KEY=VALUE` with dotted keys and YAML-typed values."""
    layer = Layer("--set")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise IiaeError(f"--set {assignment} has no '='", "write --set objective.lambda=50")
        layer.values[key.strip()] = load_yaml(text, f"--set {key}")
    return layer


class _Loader(yaml.SafeLoader):
    """YAML without surprises: a repeated key is an error, and `1e4` is a number as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [key for key, _ in pairs if key.tag != "tag:yaml.org,2002:merge"]
        names = [key.value for key in keys if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise yaml.YAMLError(f"key '{twice}' is given twice")
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_yaml(text: str, where: str) -> Any:
    """The plain value of one YAML document, in time and memory that the text's length bounds."""
    try:
        if len(text) > MOST_CHARACTERS:
            raise yaml.YAMLError(f"it has more than {MOST_CHARACTERS} characters")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_many(node)
        return loader.construct_document(node)
    except Exception as error:  # PyYAML raises many kinds, RecursionError among them
        reason = " ".join(str(error).split())[:300]
        raise IiaeError(
            f"{where} is not valid YAML: {reason}",
            "quote texts, write lists as [1, 2], compare with the files in presets/",
        ) from error


def _refuse_many(root: yaml.Node) -> None:
    """Count values, an alias as all that it stands for."""
    count = 0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise yaml.YAMLError(f"it stands for more than {MOST_VALUES} values")
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
