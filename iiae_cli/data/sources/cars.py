"""Cars: rendered models of the visual-analogy data, x the frontal view and y the same car turned.

Layout: `data/cars/list.txt` with a name a line, and `car_###_mesh.mat` (MATLAB v5, or v7.3, which is HDF5) with `im`,
(128, 128, 3, 24 yaw, 4 pitch) uint8. A frontal view belongs to 23 turned ones of its pitch, so that each picture is
stored once and pairs are indices. Arrays are filled car by car: the whole set, 860 MB, is held once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import Side, Split
from iiae_cli.data.hdf5 import dataset
from iiae_cli.data.pictures import PictureError, resize_pictures
from iiae_cli.data.sources.plan import Plan, Prepared, ReadRows, Work, file_reading

YAWS, PITCHES, SIDE = 24, 4, 128
SHAPE = (SIDE, SIDE, 3, YAWS, PITCHES)
PAIRS_PER_CAR = (YAWS - 1) * PITCHES  # 92
IDS = {"train": range(1, 192), "test": range(192, 200)}
PATTERN = "car_*_mesh.mat"


def read_cars(
    folder: Path, *, image_size: int | None, limit: int | None, attributes: dict[str, str]
) -> Plan:
    """Plan splits train and test.

    Args:
        folder: with the .mat files, or any folder above.
        image_size: side of the stored pictures; None: 128.
        limit: at most so many pairs per split; 92 are one car's.
        attributes: of the data file.

    Returns:
        Splits with 4 rows of x, 92 rows of y and 92 pairs per car. The label of both domains is the car; the factors
        are `class` (its number), `yaw` 1…23 and `pitch` 0…3 of y.

    Raises:
        IiaeError: no car, or none that can be read.
    """
    skipped: list[str] = []
    cars = _cars(folder, skipped)
    size = image_size or SIDE
    most = None if limit is None else -(-limit // PAIRS_PER_CAR)
    mine = {
        name: [(number, path) for number, path in cars if number in ids][:most]
        for name, ids in IDS.items()
    }
    readings = [
        file_reading(
            name,
            [path for _, path in some],
            lambda path: _views(path, size),
            ((PITCHES, size, size, 3), (PAIRS_PER_CAR, size, size, 3)),
            size=1,
        )
        for name, some in mine.items()
    ]

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        splits: dict[str, Split] = {}
        for name, some in mine.items():
            skipped.extend(map(str, rows[name].errors))
            x, y = (views.reshape(-1, *views.shape[2:]) for views in rows[name].rows)
            split = _split_of(name, [some[place][0] for place in rows[name].places], x, y)
            if split.pair_count:
                splits[name] = split if limit is None else _first_pairs(split, limit)
        if not splits:
            raise IiaeError(
                f"{folder} holds no readable car", f"the first that was left out: {skipped[0]}"
            )
        return Prepared(splits, attributes, skipped)

    return Plan(assemble, readings)


def _cars(folder: Path, skipped: list[str]) -> list[tuple[int, Path]]:
    """(number, file) of every car, those of list.txt where there is one; what is out of range or missing is noted."""
    found = sorted(folder.rglob(PATTERN), key=lambda path: (len(path.parts), path))
    if not found:
        raise IiaeError(
            f"{folder} holds no {PATTERN}",
            "name the folder that nips2015-analogy-data.tar.gz unpacks to",
        )
    place = found[0].parent
    files = [path for path in found if path.parent == place]
    index = place / "list.txt"
    if index.is_file():
        # The list has names without suffix; a bare number is taken too.
        listed = re.findall(
            r"^[^\d\n]*(\d{1,9})(?!\d)",
            index.read_text(encoding="utf-8", errors="replace"),
            re.MULTILINE,
        )
        files = [place / f"car_{int(number):03d}_mesh.mat" for number in listed] or files
    cars: dict[int, Path] = {}
    for path in files:
        match = re.fullmatch(r"car_(\d+)_mesh\.mat", path.name)
        number = int(match[1]) if match else 0
        if not any(number in ids for ids in IDS.values()):
            skipped.append(f"{path}: is not a car from 1 to 199")
        elif not path.is_file():
            skipped.append(f"{path}: is in list.txt but does not exist")
        else:
            cars[number] = path
    return sorted(cars.items())


def _split_of(name: str, numbers: list[int], x: NDArray[np.uint8], y: NDArray[np.uint8]) -> Split:
    """The split of these cars: the rows of x and of y that are theirs, car by car."""
    car, yaw, pitch = (axis.ravel() for axis in np.indices((len(numbers), YAWS - 1, PITCHES)))
    labels = [f"car_{number:03d}" for number in numbers]
    ids = [
        [f"{name}/{label}/yaw{j:02d}-pitch{i}" for j in range(YAWS) for i in range(PITCHES)]
        for label in labels
    ]
    return Split(
        Side(
            x,
            [one for of_car in ids for one in of_car[:PITCHES]],
            [label for label in labels for _ in range(PITCHES)],
        ),
        Side(
            y,
            [one for of_car in ids for one in of_car[PITCHES:]],
            [label for label in labels for _ in range(PAIRS_PER_CAR)],
        ),
        factors={"class": np.array(numbers, np.int64)[car], "yaw": yaw + 1, "pitch": pitch},
        pairs=np.stack([car * PITCHES + pitch, np.arange(len(car))], axis=1),
    )


def _views(path: Path, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The frontal (4, size, size, 3) and the turned views (92, size, size, 3) of a car, by yaw, then pitch."""
    views = resize_pictures(
        read_mat(path).transpose(3, 4, 0, 1, 2).reshape(-1, SIDE, SIDE, 3), size
    )
    return views[:PITCHES], views[PITCHES:]


def _first_pairs(split: Split, limit: int) -> Split:
    """The first pairs alone; they stand in the order of the rows of y, so that all other rows are at the end."""
    assert split.pairs is not None
    pairs = split.pairs[:limit]
    rows_x, rows_y = (np.arange(count + 1) for count in pairs.max(axis=0))
    taken = split.take(rows_x, rows_y)
    taken.factors = {name: values[:limit] for name, values in split.factors.items()}
    taken.pairs = pairs
    return taken


def read_mat(path: Path) -> NDArray[np.uint8]:
    """`im` (128, 128, 3, 24, 4) of a car's file.

    Raises:
        PictureError: damaged, or of another shape; the message says which.
    """
    try:
        if h5py.is_hdf5(path):  # v7.3, whose axes are in the reverse order
            with h5py.File(path, "r") as file:
                stored = dataset(file, "im")
                im = None if stored is None else stored[()].T
        else:
            im = loadmat(path, variable_names=["im"]).get("im")
    except Exception as error:  # SciPy and h5py pass on whatever a damaged file makes of them
        raise PictureError(path, "is not a readable MATLAB file") from error
    if not isinstance(im, np.ndarray):
        raise PictureError(path, "holds no variable im")
    if im.shape != SHAPE or im.dtype != np.uint8:
        raise PictureError(path, f"im is {im.dtype} {im.shape}, not uint8 {SHAPE}")
    return im
