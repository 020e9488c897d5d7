"""Features of many pictures, batch by batch.

The division into batches depends on the list of pictures alone, so that an extraction that is resumed, or divided among
processes by whole batches, gives the values of an undivided one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.backbone import INPUT_SIZE, Preprocessing
from iiae_cli.data.pictures import decode_batches, readable
from iiae_cli.data.sources.work import ReadBlock, Reading
from iiae_cli.model import Domain


def feature_reading(
    name: str,
    paths: Sequence[Path],
    network: Callable[[], nn.Module],
    *,
    domain: Domain,
    preprocessing: Preprocessing,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 1,
    maker: str = "",
) -> Reading:
    """Features of pictures by a network in evaluation mode, (N, D) float32.

    Args:
        name: of the reading.
        paths: N pictures, resized once, to 224×224: by area where that shrinks, bicubic where it enlarges.
        network: gives the network, from (B, 3, 224, 224) to (B, D); asked only where there is something to compute.
        domain: x or y.
        preprocessing: of pictures.
        device: that computes.
        batch_size: pictures at once, which are a block.
        workers: decoding threads.
        maker: what tells the network and the preprocessing from others.
    """

    def make(ranges: Sequence[range]) -> Iterator[ReadBlock]:
        if not ranges:
            return
        ready = network().to(device).eval()
        coming = [paths[one.start : one.stop] for one in ranges]
        decoded = decode_batches(coming, 3, INPUT_SIZE, workers)
        for one, some, pictures in zip(ranges, coming, decoded, strict=True):
            there, stack, errors = readable(pictures)
            found: tuple[NDArray[np.float32], ...] = ()
            if len(there):
                inputs = preprocessing.tensor(stack, domain, device)
                found = (_features(ready, inputs, [some[row] for row in there]),)
            yield ReadBlock(there + one.start, found, errors)

    return Reading(
        name,
        len(paths),
        make,
        ((0,),),
        batch_size,
        files=paths,
        verb="extracting features of",
        maker=maker,
        machine=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _features(network: nn.Module, inputs: Tensor, paths: Sequence[Path]) -> NDArray[np.float32]:
    """Features of one batch of the pictures `paths`.

    Raises:
        IiaeError: one is not finite.
    """
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        values: NDArray[np.float32] = network(inputs).float().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise IiaeError(
            f"the features of {paths[bad[0]]} are not finite", "check the backbone's weights"
        )
    return values
