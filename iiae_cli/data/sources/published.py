"""Sets in archives (Facades, Maps, Cars), downloaded and unpacked; and the files of Cars.

No publisher states a checksum. Where others recorded one it stands here with its source; elsewhere
the archive's own SHA-256 goes into the data file, so that two data files can be compared.

Cars are rendered models of the visual-analogy data, x the frontal view and y the same car turned:
`data/cars/car_###_mesh.mat` (MATLAB v5, or v7.3, which is HDF5) with `im`, (128, 128, 3, 24 yaw, 4
pitch) uint8. A frontal view belongs to 23 turned ones.
"""

from __future__ import annotations

import math
import re
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of, write_errors
from iiae_cli.data.datafile import Rows, Side, Split
from iiae_cli.data.hdf5 import refuse_links
from iiae_cli.data.names import Notes
from iiae_cli.data.pictures import PictureError, resize_pictures
from iiae_cli.data.sources.plan import Plan, PrepareOptions, Work, file_reader
from iiae_cli.model import Domain

MAX_BYTES = 64 * 2**30  # the most that an archive may unpack to
KINDS = (
    "name a folder or a tar or zip archive; pairs reads tables, too (.csv, .tsv: save a "
    "spreadsheet as CSV), classes reads features (.npz)"
)


@dataclass(frozen=True)
class Archive:
    """A published archive and its mirrors in order."""

    file: str
    folders: tuple[str, ...]  # of servers that hold it
    md5: str | None = None  # as recorded by others; None: no checksum is known
    wanted: str = ""  # pattern of the entries to unpack


_PIX2PIX = (
    "https://efrosgans.eecs.berkeley.edu/pix2pix/datasets",
    "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets",  # the authors' own
    "https://people.eecs.berkeley.edu/~tinghuiz/projects/pix2pix/datasets",
)
_ANALOGY = ("http://www.scottreed.info/files", "http://www-personal.umich.edu/~reedscot/files")
ARCHIVES: dict[str, Archive] = {
    "facades": Archive("facades.tar.gz", _PIX2PIX),
    "maps": Archive("maps.tar.gz", _PIX2PIX),
    "cars": Archive(
        "nips2015-analogy-data.tar.gz",
        _ANALOGY,
        # github.com/nmichlo/disent, disent/dataset/data/_groundtruth__cars3d.py, "full".
        md5="4e866a7919c1beedf53964e6f7a23686",
        # It holds the other sets of its paper too.
        wanted=r"(^|/)car_[^/]*_mesh\.mat$",
    ),
}


def fetch(archive: Archive, path: Path) -> str:
    """Downloads an archive to `path`, unless a verified one exists; returns the mirror."""
    import pooch
    import requests

    def download(url: str, target: str, _: object) -> None:
        with requests.get(url, stream=True, timeout=30) as answer, Path(target).open("wb") as file:
            answer.raise_for_status()
            size = int(answer.headers.get("content-length", 0))
            with console.progress(f"downloading {path.name}", size >> 20, "MiB") as progress:
                for chunk in answer.iter_content(1 << 20):
                    file.write(chunk)
                    progress.update(file.tell() >> 20)

    pooch.get_logger().setLevel("WARNING")
    known = archive.md5 and f"md5:{archive.md5}"
    reasons = []
    for url in (f"{folder}/{archive.file}" for folder in archive.folders):
        try:
            with write_errors(path):
                pooch.retrieve(url, known, path.name, path.parent, downloader=download)
            return url
        except (requests.RequestException, ValueError) as error:  # the latter of a checksum
            reasons.append(f"{url}: {' '.join(str(error).split())}")
    raise IiaeError(
        f"{path.name} could not be downloaded ({'; '.join(reasons)})",
        f"run the same command again later, or fetch {path.name} elsewhere and pass it as SOURCE",
    )


def unpack(archive: Path, folder: Path, *, wanted: str = "") -> tuple[Path, str]:
    """Unpacks a tar (plain, .gz, .bz2, .xz) or zip archive in a `folder`, unless it was before.

    Everything goes to a temporary folder, which is renamed at the end. `wanted` is a pattern of the
    entries to unpack from a tar. Returns the path, and the archive's SHA-256, which is part of it;
    raises for a damaged, hostile or oversized archive.
    """
    with reading(archive, "name a folder, or fetch the archive again"), write_errors(folder):
        sha256 = sha256_of(archive)
        target = folder / f"{archive.name.partition('.')[0]}-{sha256[:12]}"
        if target.is_dir():
            return target, sha256
        is_tar = tarfile.is_tarfile(archive)
        if not is_tar and not zipfile.is_zipfile(archive):
            raise IiaeError(f"{archive} is neither a tar nor a zip archive", KINDS)
        console.say(f"unpacking {archive}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{target.name}.") as holder:
            inside = Path(holder, "unpacked")
            inside.mkdir()
            (_untar if is_tar else _unzip)(archive, inside, wanted)
            if not any(path.is_file() for path in inside.rglob("*")):
                raise ValueError("it holds none of the files looked for")
            inside.rename(target)
    return target, sha256


def _unzip(archive: Path, folder: Path, _: str) -> None:
    with zipfile.ZipFile(archive) as file:
        _bound(sum(info.file_size for info in file.infolist()))
        for info in file.infolist():
            info.filename = info.filename.replace("\\", "/")  # of Windows
        file.extractall(folder, file.infolist())  # keeps every entry inside the folder


def _untar(archive: Path, folder: Path, wanted: str) -> None:
    with tarfile.open(archive) as file:
        members = [member for member in file if re.search(wanted, member.name)]
        _bound(sum(member.size for member in members))
        # Refuses devices, and paths that lead out.
        file.extractall(folder, members, filter="data")
        assert file.fileobj is not None
        while file.fileobj.read(1 << 20):  # to its end, where its own checksum stands
            pass


def _bound(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")


# ---- Cars

YAWS, PITCHES, SIDE = 24, 4, 128
SHAPE = (SIDE, SIDE, 3, YAWS, PITCHES)
TURNED = (YAWS - 1, PITCHES)  # 92 pairs per car
CARS = {"train": range(1, 192), "test": range(192, 200)}


def plan_cars(options: PrepareOptions, notes: Notes) -> Plan:
    """Plans splits train and test, with 4 rows of x, 92 rows of y and 92 pairs per car.

    The label of both domains is the car; the factors are `class` (its number), and `yaw` 1…23 and
    `pitch` 0…3 of y.
    """
    cars = _cars(options.source_path, notes.skipped)
    size, limit = options.image_size or SIDE, options.limit
    most = limit and math.ceil(limit / math.prod(TURNED))
    splits = {}
    for name, ids in CARS.items():
        numbers = [car for car in cars if car in ids][:most]
        side = Side(np.array([cars[car] for car in numbers], object), list(map(str, numbers)))
        splits[name] = Split(side, side)

    def finish(plan: Plan, work: Work) -> None:
        plan.splits = {name: _split_of(name, cars, limit) for name, cars in plan.splits.items()}

    reader = file_reader(lambda path, domain: _views(path, domain, size), 1)
    return Plan(splits, reader=reader, finish=finish)


def _cars(folder: Path, skipped: list[str]) -> dict[int, Path]:
    """Returns every car's file by number; notes others."""
    cars = dict[int, Path]()
    for path in sorted(folder.rglob("car_*_mesh.mat"), key=lambda path: (len(path.parts), path)):
        number = int("".join(filter(str.isdecimal, path.stem)) or 0)
        if not 0 < number < 200 or cars.setdefault(number, path) != path:
            skipped.append(f"{path}: is not one of the cars 1 to 199, or the second")
    if not cars:
        hint = "name the folder that nips2015-analogy-data.tar.gz unpacks to"
        raise IiaeError(f"{folder} holds no car_*_mesh.mat", hint)
    return dict(sorted(cars.items()))


def _split_of(name: str, cars: Split, limit: int | None) -> Split:
    """Returns the split of N cars from frontal (N, 4, H, W, 3) and turned (N, 92, H, W, 3) views.

    Its pairs are in the order of y's rows; rows whose pairs are all beyond `limit` are dropped.
    """
    numbers = list(map(int, cars.x.ids))
    car, yaw, pitch = (axis.ravel()[:limit] for axis in np.indices((len(numbers), *TURNED)))
    pairs = np.stack([car * PITCHES + pitch, np.arange(len(car))], axis=1)

    def side(rows: Rows, yaws: range, count: int) -> Side:
        angles = [f"yaw{j:02d}-pitch{i}" for j in yaws for i in range(PITCHES)]
        labels = [f"car_{number:03d}" for number in numbers for _ in angles][:count]
        ids = [f"{name}/car_{number:03d}/{angle}" for number in numbers for angle in angles]
        return Side(rows.reshape(-1, *rows.shape[2:])[:count], ids[:count], labels)

    x = side(cars.x.rows, range(1), pairs[:, 0].max() + 1)
    y = side(cars.y.rows, range(1, YAWS), len(pairs))
    factors = {"class": np.array(numbers, np.int64)[car], "yaw": yaw + 1, "pitch": pitch}
    return Split(x, y, factors, pairs)


def _views(path: Path, domain: Domain, size: int) -> NDArray[np.uint8]:
    """Returns a car's frontal (4, size, size, 3) or turned (92, …) views, by yaw first."""
    views = read_mat(path).transpose(3, 4, 0, 1, 2).reshape(-1, SIDE, SIDE, 3)
    return resize_pictures(views[:PITCHES] if domain == "x" else views[PITCHES:], size)


def read_mat(path: Path) -> NDArray[np.uint8]:
    """Returns `im` (128, 128, 3, 24, 4) of a car's file; raises PictureError if it has none."""
    if not path.is_file():
        raise PictureError(path, "does not exist")
    try:
        if h5py.is_hdf5(path):  # v7.3, whose axes are in the reverse order
            with h5py.File(path, "r", locking=False) as file:
                refuse_links(file)
                im = file["im"][()].T
        else:
            im = loadmat(path, variable_names=["im"]).get("im")
    except Exception as error:  # SciPy and h5py pass on whatever a damaged file makes of them
        raise PictureError(path, "is not a readable MATLAB file") from error
    if not isinstance(im, np.ndarray) or im.shape != SHAPE or im.dtype != np.uint8:
        raise PictureError(path, f"holds no im of uint8 {SHAPE}")
    return im
