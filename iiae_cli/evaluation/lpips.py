"""LPIPS v0.1 (Zhang et al., CVPR 2018), the perceptual distance of the paper's Table 4.

torchmetrics computes it, on ImageNet backbones that it would download by itself. Here weights come
from `--lpips-weights` or from torch's hub cache, are checked first, and nothing is ever downloaded.
The paper says "the updated version" of LPIPS, which is v0.1, and not which network: `lpips` is
AlexNet, the default of LPIPS' own authors, and `lpips_vgg` stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.tensors import read_state_dict

LpipsNet = Literal["alex", "vgg"]


class _Backbone(NamedTuple):
    figure: str
    architecture: str  # torchvision's name
    file_name: str  # of torchvision's ImageNet weights in the hub cache
    least_side: int  # pixels, below which some layer has no output left


BACKBONES: dict[LpipsNet, _Backbone] = {
    "alex": _Backbone("lpips", "alexnet", "alexnet-owt-7be5be79.pth", 31),
    "vgg": _Backbone("lpips_vgg", "vgg16", "vgg16-397923af.pth", 16),
}


class Lpips:
    """LPIPS v0.1 per picture, lower is closer.

    Pictures are measured at their own size. If a side is too short for the network they are
    enlarged bilinearly by the smallest whole factor that makes it long enough; such figures compare
    among themselves only. Grey is repeated, channels past the third are left out.

    Args:
        net: "alex" or "vgg".
        state: torchvision's ImageNet weights, complete.
        device: to compute on.
    """

    def __init__(
        self, net: LpipsNet, state: dict[str, Tensor], device: torch.device | str = "cpu"
    ) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with _hub_cache_of(state, BACKBONES[net].file_name):
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
    """Measures by the figure's name, and for every network without weights the reason.

    Weights come from a given file, recognised by what it holds, else from torch's hub cache.

    Raises:
        IiaeError: a given file is unreadable or holds neither network.
    """
    given = dict(read_weights(path) for path in files)
    measures: dict[str, Lpips] = {}
    missing: list[IiaeError] = []
    for net in nets:
        try:
            state = given[net] if net in given else _cached(net)
        except IiaeError as reason:
            missing.append(reason)
        else:
            measures[BACKBONES[net].figure] = Lpips(net, state, device)
    return measures, missing


def read_weights(path: Path) -> tuple[LpipsNet, dict[str, Tensor]]:
    """Read torchvision's weights; all names and shapes decide whose they are."""
    from torchvision import models

    hint = f"give torchvision's {' or '.join(net.file_name for net in BACKBONES.values())}"
    state = read_state_dict(path, hint)
    shapes = {name: values.shape for name, values in state.items()}
    for net, backbone in BACKBONES.items():
        with torch.device("meta"):  # shapes without 138 million numbers
            expected = models.get_model(backbone.architecture, weights=None).state_dict()
        if shapes == {name: values.shape for name, values in expected.items()}:
            return net, state
    raise IiaeError(f"{path} holds neither AlexNet nor VGG16", hint)


def cache_file(net: LpipsNet) -> Path:
    """Where torchvision keeps the network's ImageNet weights once it has fetched them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net].file_name


def _cached(net: LpipsNet) -> dict[str, Tensor]:
    figure, path = BACKBONES[net].figure, cache_file(net)
    hint = f"put torchvision's {path.name} into {path.parent}, or pass --lpips-weights FILE"
    if not path.exists():
        raise IiaeError(f"no {figure}: {path} is not there", hint)
    try:
        recognised, state = read_weights(path)
    except IiaeError as error:
        raise IiaeError(f"no {figure}: {error.message}", hint) from error
    if recognised != net:
        raise IiaeError(f"no {figure}: {path} holds another network", hint)
    return state


@contextmanager
def _hub_cache_of(state: dict[str, Tensor], file_name: str) -> Iterator[None]:
    """Let torchvision find these weights where it looks before it downloads."""
    before = torch.hub.get_dir()
    with TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        torch.save(state, Path(folder) / "checkpoints" / file_name)
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
