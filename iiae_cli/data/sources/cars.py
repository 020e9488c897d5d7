"""Cars: rendered models of the visual-analogy data, x the frontal view and y the same car turned.

Layout: `data/cars/list.txt` with a name a line, and `car_###_mesh.mat` (MATLAB v5, or v7.3, which
is HDF5) with `im`, (128, 128, 3, 24 yaw, 4 pitch) uint8. A frontal view belongs to 23 turned ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import Side, Split
from iiae_cli.data.hdf5 import dataset
from iiae_cli.data.pictures import PictureError, resize_pictures
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions, ReadRows, Work, file_reading

YAWS, PITCHES, SIDE = 24, 4, 128
SHAPE = (SIDE, SIDE, 3, YAWS, PITCHES)
PAIRS_PER_CAR = (YAWS - 1) * PITCHES  # 92
IDS = {"train": range(1, 192), "test": range(192, 200)}
PATTERN = "car_*_mesh.mat"


def plan_cars(options: PrepareOptions) -> Plan:
    """Plan splits train and test, with 4 rows of x, 92 rows of y and 92 pairs per car.

    The label of both domains is the car; the factors are `class` (its number), and `yaw` 1…23 and
    `pitch` 0…3 of y.
    """
    folder, skipped = options.source, list[str]()
    assert folder is not None
    cars = _cars(folder, skipped)
    size, limit = options.image_size or SIDE, options.limit
    most = None if limit is None else -(-limit // PAIRS_PER_CAR)
    numbers = {name: [car for car in cars if car in ids][:most] for name, ids in IDS.items()}
    readings = [
        file_reading(name, [cars[car] for car in wanted], lambda path: _views(path, size), size=1)
        for name, wanted in numbers.items()
    ]

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits = {}
        for name, wanted in numbers.items():
            if rows[name].rows:
                readable = [wanted[place] for place in rows[name].places]
                split = _split_of(name, readable, rows[name].rows)
                splits[name] = split if limit is None else _first_pairs(split, limit)
        return Prepared(splits)

    return Plan(assemble, readings, skipped=skipped)


def _cars(folder: Path, skipped: list[str]) -> dict[int, Path]:
    """Every car's file by its number, those of list.txt where it names any; others are noted."""
    paths = sorted(folder.rglob(PATTERN), key=lambda path: (len(path.parts), path))
    if not paths:
        raise IiaeError(
            f"{folder} holds no {PATTERN}",
            "name the folder that nips2015-analogy-data.tar.gz unpacks to",
        )
    place, listed, cars = paths[0].parent, set[int](), dict[int, Path]()
    index = place / "list.txt"
    if index.is_file():  # names without suffix, or bare numbers
        text = index.read_text(encoding="utf-8", errors="replace")
        names = re.findall(r"^[^\d\n]*(\d{1,9})(?!\d)", text, re.MULTILINE)
        listed = {int(name) for name in names}
    for path in paths:
        number = int("".join(filter(str.isdecimal, path.stem)) or 0)
        reason = "is not a car from 1 to 199" if not 1 <= number <= 199 else ""
        reason = reason or ("is not in list.txt" if listed and number not in listed else "")
        if not reason and cars.setdefault(number, path) != path:
            reason = f"is the same car as {cars[number]}"
        if reason:
            skipped.append(f"{path}: {reason}")
    lost = sorted(listed - {*cars})
    skipped += [f"{place / f'car_{number:03d}_mesh.mat'}: does not exist" for number in lost]
    return dict(sorted(cars.items()))


def _split_of(name: str, numbers: Sequence[int], views: Sequence[NDArray[np.uint8]]) -> Split:
    """The split of N cars from their frontal (N, 4, H, W, 3) and turned (N, 92, H, W, 3) views."""
    car, yaw, pitch = (axis.ravel() for axis in np.indices((len(numbers), YAWS - 1, PITCHES)))
    sides = []
    for rows, yaws in zip(views, (range(1), range(1, YAWS)), strict=True):
        angles = [f"yaw{j:02d}-pitch{i}" for j in yaws for i in range(PITCHES)]
        labels = [f"car_{number:03d}" for number in numbers for _ in angles]
        ids = [f"{name}/car_{number:03d}/{angle}" for number in numbers for angle in angles]
        sides.append(Side(rows.reshape(-1, *rows.shape[2:]), ids, labels))
    x, y = sides
    return Split(
        x,
        y,
        factors={"class": np.array(numbers, np.int64)[car], "yaw": yaw + 1, "pitch": pitch},
        pairs=np.stack([car * PITCHES + pitch, np.arange(len(car))], axis=1),
    )


def _first_pairs(split: Split, limit: int) -> Split:
    """The first pairs alone; they are in the order of y's rows, so other rows are at the end."""
    assert split.pairs is not None
    pairs = split.pairs[:limit]
    taken = split.take(*(np.arange(last + 1) for last in pairs.max(axis=0)))
    taken.factors = {name: values[:limit] for name, values in split.factors.items()}
    taken.pairs = pairs
    return taken


def _views(path: Path, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The frontal (4, size, size, 3) and turned views (92, …) of a car, by yaw first."""
    views = read_mat(path).transpose(3, 4, 0, 1, 2).reshape(-1, SIDE, SIDE, 3)
    views = resize_pictures(views, size)
    return views[:PITCHES], views[PITCHES:]


def read_mat(path: Path) -> NDArray[np.uint8]:
    """`im` (128, 128, 3, 24, 4) of a car's file; PictureError where it is damaged or another."""
    if not path.is_file():
        raise PictureError(path, "does not exist")
    try:
        if h5py.is_hdf5(path):  # v7.3, whose axes are in the reverse order
            with h5py.File(path, "r", locking=False) as file:
                stored = dataset(file, "im")
                im = None if stored is None else stored[()].T
        else:
            im = loadmat(path, variable_names=["im"]).get("im")
    except Exception as error:  # SciPy and h5py pass on whatever a damaged file makes of them
        raise PictureError(path, "is not a readable MATLAB file") from error
    if not isinstance(im, np.ndarray) or im.shape != SHAPE or im.dtype != np.uint8:
        raise PictureError(path, f"holds no im of uint8 {SHAPE}")
    return im
