"""LPIPS v0.1 (Zhang et al., CVPR 2018), the perceptual distance of the paper's Table 4.

torchmetrics computes it, on ImageNet backbones that it would download by itself. Here weights come
from `--lpips-weights` or from torch's hub cache, are checked first, and nothing is ever downloaded.
The paper says "the updated version" of LPIPS, which is v0.1, and not which network: `lpips` is
AlexNet, the default of LPIPS' own authors, and `lpips_vgg` stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.tensors import read_state_dict

LpipsNet = Literal["alex", "vgg"]


@dataclass(frozen=True)
class _Backbone:
    figure: str
    title: str
    architecture: str  # torchvision's name
    file_name: str  # of torchvision's ImageNet weights in the hub cache
    least_side: int  # pixels, below which some layer has no output left


BACKBONES: dict[LpipsNet, _Backbone] = {
    "alex": _Backbone("lpips", "AlexNet", "alexnet", "alexnet-owt-7be5be79.pth", 31),
    "vgg": _Backbone("lpips_vgg", "VGG16", "vgg16", "vgg16-397923af.pth", 16),
}


class Lpips:
    """LPIPS v0.1 per picture, lower is closer.

    Pictures are measured at their own size. Where a side is too short for the network they are
    enlarged bilinearly by the smallest whole factor that makes it long enough; such figures compare
    among themselves only. Grey is repeated, channels past the third are left out.

    Args:
        net: "alex" or "vgg".
        weights: torchvision's ImageNet weights, checked.
        device: to compute on.
    """

    def __init__(self, net: LpipsNet, weights: Path, device: torch.device | str = "cpu") -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with _hub_cache_of(weights, BACKBONES[net].file_name):
            self._network = LearnedPerceptualImagePatchSimilarity(net_type=net).net.to(device)
        self._least_side = BACKBONES[net].least_side

    def __call__(self, translated: Tensor, wanted: Tensor) -> Tensor:
        """Distances (B,) between pictures (B, C, H, W) in [−1, 1]."""
        # TensorFloat-32, cuDNN's default, would round features to three digits.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            distances: Tensor = self._network(self._prepared(translated), self._prepared(wanted))
        return distances.flatten()

    def _prepared(self, pictures: Tensor) -> Tensor:
        rgb = pictures.float()[:, : 3 if pictures.shape[1] >= 3 else 1].expand(-1, 3, -1, -1)
        factor = -(-self._least_side // min(rgb.shape[-2:]))
        if factor == 1:
            return rgb
        return functional.interpolate(rgb, scale_factor=factor, mode="bilinear")


def lpips_measures(
    files: Sequence[Path] = (),
    device: torch.device | str = "cpu",
    nets: Sequence[LpipsNet] = ("alex", "vgg"),
) -> tuple[dict[str, Lpips], list[IiaeError]]:
    """The networks whose weights are on this machine: in a given file, else in torch's hub cache.

    Args:
        files: torchvision's .pth files, recognised by what they hold.
        device: to compute on.
        nets: that are wanted.

    Returns:
        Measures by the figure's name, and for every network without weights the reason.

    Raises:
        IiaeError: a given file is unreadable, holds neither network, or a network is given twice.
    """
    given: dict[LpipsNet, Path] = {}
    for path in files:
        net = _recognised(path)
        if net in given:
            raise IiaeError(
                f"{path} holds {BACKBONES[net].title} again",
                "give --lpips-weights one file for each network",
            )
        given[net] = path
    measures: dict[str, Lpips] = {}
    missing: list[IiaeError] = []
    for net in nets:
        try:
            path = given[net] if net in given else _cached(net)
        except IiaeError as reason:
            missing.append(reason)
        else:
            measures[BACKBONES[net].figure] = Lpips(net, path, device)
    return measures, missing


def cache_file(net: LpipsNet) -> Path:
    """Where torchvision keeps the network's ImageNet weights once it has fetched them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net].file_name


def _cached(net: LpipsNet) -> Path:
    backbone, path = BACKBONES[net], cache_file(net)
    hint = (
        f"put torchvision's {backbone.file_name} into {path.parent}, or pass --lpips-weights FILE"
    )
    if not path.exists():
        raise IiaeError(f"no {backbone.figure}: {path} is not there", hint)
    try:
        recognised = _recognised(path)
    except IiaeError as error:
        raise IiaeError(f"no {backbone.figure}: {error.message}", hint) from error
    if recognised != net:
        raise IiaeError(f"no {backbone.figure}: {path} holds another network", hint)
    return path


def _recognised(path: Path) -> LpipsNet:
    """Which network a weights file belongs to, by all of its names and shapes; tensors alone."""
    hint = f"give torchvision's {' or '.join(net.file_name for net in BACKBONES.values())}"
    shapes = {name: tuple(values.shape) for name, values in read_state_dict(path, hint).items()}
    for net in BACKBONES:
        if shapes == _expected_shapes(net):
            return net
    raise IiaeError(f"{path} holds neither AlexNet nor VGG16", hint)


def _expected_shapes(net: LpipsNet) -> dict[str, tuple[int, ...]]:
    from torchvision import models

    with torch.device("meta"):  # shapes without 138 million numbers
        network = models.get_model(BACKBONES[net].architecture, weights=None)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@contextmanager
def _hub_cache_of(weights: Path, file_name: str) -> Iterator[None]:
    """Let torchvision find a file, whatever its name, where it looks before it downloads."""
    before = torch.hub.get_dir()
    with TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        (Path(folder) / "checkpoints" / file_name).symlink_to(weights.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
