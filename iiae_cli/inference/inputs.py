"""A command's inputs as rows: pictures, folders, a prepared file or feature arrays.

Rows are read by position and without state, so a resumed or sharded encoding reads what an
uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of
from iiae_cli.data.backbone import (
    BATCH,
    Extractor,
    backbone_of,
    recorded_extractor,
    refuse_other_backbone,
)
from iiae_cli.data.datafile import DataFile, DataInfo
from iiae_cli.data.hdf5 import is_hdf5
from iiae_cli.data.names import find_pictures
from iiae_cli.data.pictures import PictureError, Source, decode, read_all
from iiae_cli.model import Domain

Picture: TypeAlias = str | Path | Image.Image | NDArray[Any] | torch.Tensor
Pictures: TypeAlias = Picture | Sequence[Picture]
# Returns the rows at positions start … stop - 1; an error for each that cannot be read.
Fetch: TypeAlias = Callable[[int, int], Sequence[NDArray[Any] | PictureError]]


@dataclass(frozen=True)
class Block:
    """The readable rows (M, …) of a range, and what was left out."""

    rows: NDArray[Any]
    positions: list[int]  # (M,) in the inputs, ascending
    ids: list[str]
    labels: list[str]  # empty if classes are unknown
    skipped: list[str]  # a line for every input left out


@dataclass(frozen=True)
class Inputs:
    """Rows to encode or translate, unread."""

    ids: list[str]  # of all rows, in order, also unreadable ones
    labels: list[str] | None
    source: dict[str, Any]  # as in `LatentCache`
    fetch: Fetch
    files: Sequence[Path] = ()

    @property
    def total(self) -> int:
        """Number of rows, readable or not."""
        return len(self.ids)

    def first(self, count: int | None) -> Inputs:
        """Returns the first `count` rows; all for None."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, ids=self.ids[:count], labels=labels)

    def read(self, start: int, stop: int) -> Block:
        """Reads the rows at positions start … stop - 1."""
        read = self.fetch(start, stop)
        rows = {at: row for at, row in enumerate(read, start) if not isinstance(row, PictureError)}
        return Block(
            np.array([*rows.values()]),
            [*rows],
            [self.ids[position] for position in rows],
            [self.labels[position] for position in rows] if self.labels else [],
            [str(row) for row in read if isinstance(row, PictureError)],
        )

    def blocks(self, size: int, label: str) -> Iterator[Block]:
        """Reads all rows, `size` at a time; raises IiaeError at the end if none can be read."""
        skipped = list[str]()
        with console.progress(label, self.total, "inputs") as bar:
            for start in range(0, self.total, size):
                block = self.read(start, min(start + size, self.total))
                skipped += block.skipped
                yield block
                bar.update(min(start + size, self.total))
        if len(skipped) == self.total:
            raise none_read(skipped)

    def read_all(self) -> Block:
        """Reads everything at once; raises IiaeError if no input can be read."""
        (block,) = self.blocks(max(1, self.total), "reading")
        return block

    def digests(self) -> dict[str, str]:
        """Returns digests of ids and labels in order, and of the inputs' content."""
        listing = [*self.ids, "", *(self.labels or [])]
        content = map(_state, self.files)
        return {"list of inputs": _digest(listing), "content of the inputs": _digest(content)}


def none_read(skipped: Sequence[str]) -> IiaeError:
    """Returns the error for inputs of which none could be read, after naming all but the first."""
    for line in skipped[1:]:
        console.warn(f"skipped {line}")
    return IiaeError(f"none of the inputs could be read: {skipped[0]}", "check the paths")


def open_inputs(
    pictures: Pictures,
    domain: Domain,
    trained_on: DataInfo,
    *,
    split: str = "test",
    workers: int = 1,
    weights: str | None = None,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Opens pictures, or what holds them, as rows of one domain of a model.

    One prepared `.h5`, of which `split` is read, one feature `.npy`, pictures and folders, which
    `workers` threads decode, or pictures or features in memory. For a model of features its
    backbone reads pictures, on `device`, from `weights` if they moved. Raises IiaeError if inputs
    are missing, mixed, empty, or do not fit the model's data or backbone.
    """
    shape = trained_on.shape_x if domain == "x" else trained_on.shape_y
    features = len(shape) == 1 and getattr(pictures, "ndim", 3) <= 2
    items = _listed(pictures, 1 if features else 3)
    names = [str(item) for item in items if isinstance(item, str | Path)]
    files = [path for path in map(Path, names) if _holds_rows(path)]
    if len(items) > 1 and (files or 0 < len(names) < len(items)):
        message = f"{files[0] if files else 'a path'} cannot be mixed with other inputs"
        raise IiaeError(message, "encode each by itself")
    if files and is_hdf5(files[0]):
        return _prepared(matching_file(files[0], trained_on), split, domain)
    if files:
        return _features(files[0], shape)
    if getattr(items[0], "ndim", 3) == 1:
        rows = np.stack([np.asarray(row, np.float32) for row in items])
        _check_shape("the array", rows.shape[1:], shape)
        return Inputs([str(row) for row in range(len(rows))], None, {}, _slices(rows))
    sources: Sequence[Source] = find_pictures(names) if names else [*map(_image, items)]
    if len(shape) > 1:
        fetch = _decoded(sources, shape, workers)
    elif record := backbone_of(trained_on):
        extractor = recorded_extractor(record, domain, device, workers=workers, weights=weights)
        fetch = _extracted(sources, extractor)
    else:
        raise IiaeError(
            "this model reads features of a backbone that it does not record, not pictures",
            "give a feature .npy or a prepared .h5",
        )
    paths = [item for item in sources if isinstance(item, Path)]
    ids = [str(path) for path in paths] or [str(number) for number in range(len(sources))]
    return Inputs(ids, None, {"pictures": True} if paths else {}, fetch, paths)


def _listed(pictures: Pictures, dimensions: int) -> list[Picture]:
    """Returns a list of pictures; an array of at most `dimensions` dimensions is one."""
    if isinstance(pictures, str | Path | Image.Image):
        return [pictures]
    if isinstance(pictures, np.ndarray | torch.Tensor) and pictures.ndim <= dimensions:
        return [pictures]
    items: list[Picture] = list(pictures)
    if not items:
        raise IiaeError("no pictures were given", "pass a path, a PIL image, an array or a tensor")
    return items


def _image(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu().movedim(0, -1)
        if picture.is_floating_point() and picture.min() >= 0 and picture.max() <= 1:
            picture = (picture * 255).round().to(torch.uint8)
    array = np.asarray(picture)
    array = array[..., 0] if array.shape[2:] == (1,) else array
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not {*array.shape[2:]} <= {2, 3, 4}:
        raise IiaeError(
            f"an array of shape {array.shape} and type {array.dtype} is not a picture",
            "pass (H, W[, C]) of uint8, or a tensor (C, H, W) of uint8 or of floats in [0, 1]",
        )
    return Image.fromarray(np.ascontiguousarray(array))


def matching_file(path: Path, trained_on: DataInfo) -> DataFile:
    """Opens a prepared file; raises IiaeError if a model's data is of other shapes or features."""
    file = DataFile(path)
    _check_shape(path, file.info.shape_x, trained_on.shape_x)
    _check_shape(path, file.info.shape_y, trained_on.shape_y)
    refuse_other_backbone(path, file.info, trained_on)
    return file


def _prepared(file: DataFile, split: str, domain: Domain) -> Inputs:
    side = file.split(split, most=0).side(domain)
    if not side.ids:
        message = f"{file.path} has nothing in split '{split}'"
        raise IiaeError(message, "choose another --split: train, valid or test")
    source = {"data": str(file.path.absolute()), "split": split}
    return Inputs(side.ids, side.labels, source, _slices(side.rows), [file.path])


def _features(path: Path, shape: tuple[int, ...]) -> Inputs:
    hint = "save features as a 2-dimensional float array by numpy.save"
    with reading(path, hint):
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.ndim != 2 or not len(rows) or rows.dtype.kind not in "fiu":
        raise IiaeError(f"{path} holds no (N, F) numbers", hint)
    ids = [f"{path.stem}/{number}" for number in range(len(rows))]
    _check_shape(path, rows.shape[1:], shape)
    return Inputs(ids, None, {"features": str(path.absolute())}, _slices(rows), [path])


def _slices(rows: Any) -> Fetch:
    def fetch(start: int, stop: int) -> Sequence[NDArray[Any]]:
        part = rows[start:stop]
        with np.errstate(over="ignore"):
            return list(part.astype(np.float32) if part.ndim == 2 else part)

    return fetch


def _decoded(pictures: Sequence[Source], shape: tuple[int, ...], workers: int) -> Fetch:
    height, width, channels = shape
    read = partial(decode, channels=channels, size=(height, width))
    return lambda start, stop: read_all(pictures[start:stop], read, workers)


def _extracted(pictures: Sequence[Source], extractor: Extractor) -> Fetch:
    def fetch(start: int, stop: int) -> Sequence[NDArray[Any] | PictureError]:
        batches = (pictures[at : min(stop, at + BATCH)] for at in range(start, stop, BATCH))
        return [*chain.from_iterable(extractor.features(batches))]

    return fetch


def _check_shape(path: Path | str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if len(given) != len(wanted) or given[-1] != wanted[-1]:
        raise IiaeError(
            f"{path} holds rows of shape {tuple(given)}, the model was trained on {tuple(wanted)}",
            "use data of the shape that the run was trained on",
        )


def _holds_rows(path: Path) -> bool:
    return is_hdf5(path) or path.suffix.lower() == ".npy"


def _state(path: Path) -> str:
    """Returns a text that changes with a file; pictures are many, and not read for it."""
    if _holds_rows(path):
        return sha256_of(path)[:16]
    with suppress(OSError):  # a missing one is named when it is read
        status = path.stat()
        return f"{path} {status.st_size} {status.st_mtime_ns}"
    return ""


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
