"""Features of many pictures, in blocks that survive an interruption.

A batch is one block of a log; what is there is not computed again. The division into batches depends on the list of
pictures alone, so that a resumed extraction gives the values of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli import console
from iiae_cli.blocks import BlockLog
from iiae_cli.data.backbone import INPUT_SIZE, Preprocessing
from iiae_cli.data.dataset import DomainName
from iiae_cli.data.pictures import decode_batches, readable
from iiae_cli.errors import IiaeError, Interrupted


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
        folder: of the log; one that is there is taken up.
        name: of the log.
        device: that computes.
        batch_size: pictures at once.
        workers: decoding threads.
        interrupted: the exit code of a signal that has come.

    Raises:
        IiaeError: a feature is not finite.
        Interrupted: a signal came; finished blocks are on the disk.
    """
    network.to(device).eval()
    starts = range(0, len(paths), batch_size)
    with (
        BlockLog(folder / f"{name}.blocks") as log,
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        console.progress(f"features of {name}", len(paths), "pictures") as progress,
    ):
        kept = len(log)
        if kept:
            console.say(f"resuming {name} at picture {min(kept * batch_size, len(paths))} of {len(paths)}")
        progress.start_at(min(kept * batch_size, len(paths)))
        coming = [paths[start : start + batch_size] for start in starts[kept:]]
        decoded = decode_batches(coming, 3, INPUT_SIZE, workers)
        for start, some, pictures in zip(starts[kept:], coming, decoded, strict=True):
            code = interrupted()
            if code is not None:
                raise Interrupted(code, f"{start} of {len(paths)} pictures of {name} are saved")
            there, stack, errors = readable(pictures)
            found: dict[str, NDArray[Any]] = {"rows": there + start}
            if len(there):
                inputs = preprocessing.tensor(stack, domain, device)
                found["features"] = _features(network, inputs, [some[row] for row in there])
            log.append(found, [str(one) for one in errors])
            progress.update(start + len(some))
        blocks = list(log)
    full = [block.arrays["features"] for block in blocks if len(block.arrays["rows"])]
    return Extracted(
        np.concatenate(full) if full else np.empty((0, 0), np.float32),
        np.concatenate([np.empty(0, np.int64), *(block.arrays["rows"] for block in blocks)]),
        [line for block in blocks for line in block.lines],
    )


def _features(network: nn.Module, inputs: Tensor, paths: Sequence[Path]) -> NDArray[np.float32]:
    """Features of one batch of the pictures `paths`."""
    values: NDArray[np.float32] = network(inputs).float().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise IiaeError(f"the features of {paths[bad[0]]} are not finite", "check the backbone's weights")
    return values
