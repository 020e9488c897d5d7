"""Features of many pictures, in blocks that survive an interruption.

A block of 256 pictures is one file, written whole; what is there is not computed again. The division into blocks and
batches depends on the list of pictures alone, so that a resumed extraction gives the values of an uninterrupted one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from iiae_cli import console
from iiae_cli.data.backbone import INPUT_SIZE, Preprocessing
from iiae_cli.data.dataset import DomainName
from iiae_cli.data.pictures import decode_batches, readable
from iiae_cli.errors import IiaeError, Interrupted
from iiae_cli.files import writing

BLOCK_PICTURES = 256


@dataclass
class Extracted:
    """Features of the pictures that could be read.

    Attributes:
        features: (M, D) float32.
        rows: (M,) which pictures they are of, ascending.
        skipped: a line for every picture left out.
    """

    features: NDArray[np.float32]
    rows: NDArray[np.int64]
    skipped: list[str]


def extract(
    network: nn.Module,
    paths: Sequence[Path],
    *,
    domain: DomainName,
    preprocessing: Preprocessing,
    folder: Path,
    name: str,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 1,
    interrupted: Callable[[], int | None] = lambda: None,
) -> Extracted:
    """Features of pictures by a network in evaluation mode.

    Args:
        network: from (B, 3, 224, 224) to (B, D).
        paths: N pictures, resized once, to 224×224: by area where that shrinks, bicubic where it enlarges.
        domain: x or y.
        preprocessing: of pictures.
        folder: of block files; those that are there are taken up.
        name: that block files begin with.
        device: that computes.
        batch_size: pictures at once.
        workers: decoding threads.
        interrupted: the exit code of a signal that has come.

    Raises:
        IiaeError: a feature is not finite.
        Interrupted: a signal came; finished blocks are on the disk.
    """
    size = max(1, BLOCK_PICTURES // batch_size) * batch_size
    network.to(device).eval()
    blocks: list[Extracted] = []
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        console.progress(f"features of {name}", len(paths), "pictures") as progress,
    ):
        for number, start in enumerate(range(0, len(paths), size)):
            file = folder / f"{name}-{number:05d}.npz"
            block = _read_block(file)
            if block is None:
                code = interrupted()
                if code is not None:
                    raise Interrupted(code, f"{start} of {len(paths)} pictures of {name} are saved")
                some = paths[start : start + size]
                batches = [some[i : i + batch_size] for i in range(0, len(some), batch_size)]
                block = _block(network, batches, domain, preprocessing, device, workers)
                _write_block(file, block)
            else:
                progress.start_at(min(start + size, len(paths)))
            blocks.append(Extracted(block.features, block.rows + start, block.skipped))
            progress.update(min(start + size, len(paths)))
    full = [block.features for block in blocks if len(block.rows)]
    return Extracted(
        np.concatenate(full) if full else np.empty((0, 0), np.float32),
        np.concatenate([block.rows for block in blocks]) if blocks else np.empty(0, np.int64),
        [line for block in blocks for line in block.skipped],
    )


def _block(
    network: nn.Module,
    batches: Sequence[Sequence[Path]],
    domain: DomainName,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int,
) -> Extracted:
    features: list[NDArray[np.float32]] = []
    rows: list[int] = []
    skipped: list[str] = []
    start = 0
    for paths, pictures in zip(batches, decode_batches(batches, 3, INPUT_SIZE, workers), strict=True):
        there, stack, errors = readable(pictures)
        skipped += [str(one) for one in errors]
        if len(there):
            values = network(preprocessing.tensor(stack, domain, device)).float().cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                raise IiaeError(
                    f"the features of {paths[there[bad[0]]]} are not finite", "check the backbone's weights"
                )
            features.append(values)
            rows += (start + there).tolist()
        start += len(paths)
    joined = np.concatenate(features) if features else np.empty((0, 0), np.float32)
    return Extracted(joined, np.array(rows, np.int64), skipped)


def _write_block(path: Path, block: Extracted) -> None:
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, features=block.features, rows=block.rows, skipped=np.array(block.skipped, dtype=np.str_))


def _read_block(path: Path) -> Extracted | None:
    """A finished block; None where there is none, or none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as block:
            return Extracted(block["features"], block["rows"], [str(line) for line in block["skipped"]])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
