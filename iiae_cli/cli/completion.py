"""What a shell offers after TAB; nothing heavy is imported to find it."""

from __future__ import annotations

import ast
from pathlib import Path

# A few of many: the libraries that could list all take seconds to import.
BACKBONES = (
    *("resnet18", "resnet50", "vgg16", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"),
    *("vit_b_16", "torchvision:", "timm:", "open_clip:"),
)
DATA_SETS = (
    *("digits-cdcb", "digits-edge", "digits-moved", "mnist-cdcb", "mnist-quadrants"),
    *("fashion-cdcb", "fashion-edges", "trifeature", "cars", "facades", "maps"),
    *("pairs", "sketchy", "classes"),
)


def presets(incomplete: str) -> list[str]:
    """Names of the shipped presets."""
    from iiae_cli.common.files import preset_names

    return preset_names()


def set_keys(incomplete: str) -> list[str]:
    """`KEY=` of every value of the configuration, read from the text of its schema."""
    path = Path(__file__).parents[1] / "config" / "schema.py"
    fields = {
        node.name: [item for item in node.body if isinstance(item, ast.AnnAssign)]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    return [
        f"{ast.unparse(section.target)}.{_key(field)}="
        for section in fields["Config"]
        for field in fields.get(ast.unparse(section.annotation), ())
    ]


def _key(field: ast.AnnAssign) -> str:
    """A field's alias, or its name."""
    words = field.value.keywords if isinstance(field.value, ast.Call) else []
    aliases = [ast.literal_eval(word.value) for word in words if word.arg == "alias"]
    return str(aliases[0]) if aliases else ast.unparse(field.target)


def runs(incomplete: str) -> list[str]:
    """Run directories in `runs/` and in the folder that is typed."""
    folders = {Path("runs"), Path(f"{incomplete}_").parent}
    return sorted(str(path.parent) for folder in folders for path in folder.glob("*/run.json"))


def backbones(incomplete: str) -> list[str]:
    """Some networks that make features, and the prefixes of the libraries that have more."""
    return list(BACKBONES)


def data_sets(incomplete: str) -> list[str]:
    """What `prepare` knows by name."""
    return list(DATA_SETS)
