"""Writing the pictures of a data file to a folder, in the layout of `iiae prepare pairs`."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from iiae_cli.common.files import writing
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.datafile import SPLITS, DataFile, Split
from iiae_cli.model import DOMAINS


def save_pictures(file: DataFile, folder: Path, stop: Stop = NEVER) -> None:
    """Write every picture as `FOLDER/SPLIT/x|y/NAME.png`, and `pairs.csv` where pictures recur.

    Raises:
        Interrupted: a signal came.
    """
    rows: list[tuple[str, ...]] = []
    for name in SPLITS:
        rows += _save_split(file.split(name), folder, name, stop)
    if rows:
        path = folder / "pairs.csv"
        with writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            writer.writerow(("x", "y", "split", "label")[: len(rows[0])])
            writer.writerows(rows)


def _save_split(split: Split, folder: Path, name: str, stop: Stop) -> list[tuple[str, ...]]:
    """Write the pictures of a split; returns its rows of `pairs.csv`."""
    files: dict[str, list[str]] = {}
    for domain in DOMAINS:
        side = split.side(domain)
        parts = [identity.partition("/") for identity in side.ids]
        files[domain] = [f"{head}/{domain}/{rest}.png" for head, _, rest in parts]
        for path, picture in zip(files[domain], side.rows, strict=True):
            stop.check(
                f"some pictures are in {folder}; continue with the same command and --resume"
            )
            with writing(folder / path, sync=False) as temporary:
                Image.fromarray(picture.squeeze()).save(temporary, format="PNG")
    if split.pairs is None:
        return []
    labels = split.x.labels
    return [
        (files["x"][x], files["y"][y], name) + (() if labels is None else (labels[x],))
        for x, y in split.pairs.tolist()
    ]
