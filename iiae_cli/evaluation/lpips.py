"""LPIPS v0.1 (Zhang et al., CVPR 2018), the perceptual distance of the paper's Table 4, without a silent download.

The computation is torchmetrics' copy of the authors' code, with the linear weights of v0.1 that it ships. Its public
classes always fetch the ImageNet backbone, so this module builds the class below them, `_LPIPS`, with a random
backbone and puts given weights in. That class is private, yet its signature is the same from torchmetrics 1.4 to 1.9,
pyproject.toml stays below 2, and the tests hold it to an oracle of their own. Writing the sum ourselves would lean on
something as private, the place of the weight files within the package, and own the arithmetic as well.

Backbone weights come from `--lpips-weights` or from torch's hub cache, where anything that ever asked torchvision for
them has left them; they are read as tensors only. The paper says "the updated version" of LPIPS, which is v0.1, and
not which network: `lpips` is AlexNet, the default of LPIPS' own authors, and `lpips_vgg` stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.state_dicts import UNREADABLE, read_weights_file

LpipsNet = Literal["alex", "vgg"]


@dataclass(frozen=True)
class _Backbone:
    """A torchvision network that v0.1 has linear weights for.

    Attributes:
        figure: the name of its distance in results.
        title: for messages.
        architecture: torchvision's name.
        file_name: of torchvision's ImageNet weights (IMAGENET1K_V1) in the hub cache.
        first_layer: shape of `features.0.weight`, by which a file is recognised.
        least_side: pixels, below which some layer has no output left.
    """

    figure: str
    title: str
    architecture: str
    file_name: str
    first_layer: tuple[int, int, int, int]
    least_side: int


BACKBONES: dict[LpipsNet, _Backbone] = {
    "alex": _Backbone(
        "lpips", "AlexNet", "alexnet", "alexnet-owt-7be5be79.pth", (64, 3, 11, 11), 31
    ),
    "vgg": _Backbone("lpips_vgg", "VGG16", "vgg16", "vgg16-397923af.pth", (64, 3, 3, 3), 16),
}


class LpipsUnavailable(IiaeError):
    """The backbone's weights are not on this machine; other figures can be measured all the same."""


class Lpips:
    """LPIPS v0.1 per picture, lower is closer.

    Pictures are measured at their own size, as the authors' code does. Where a side is too short for the network (31
    pixels for AlexNet, 16 for VGG16) they are enlarged bilinearly by the smallest whole factor that makes it long
    enough; such figures compare among themselves only. Grey is repeated, channels past the third are left out.

    Args:
        network: torchmetrics' module, on its device, in evaluation mode.
        least_side: pixels that the network needs.
    """

    def __init__(self, network: nn.Module, least_side: int) -> None:
        self.network = network
        self.least_side = least_side

    def __call__(self, translated: Tensor, wanted: Tensor) -> Tensor:
        """Distances (B,) of pictures (B, C, H, W) in [−1, 1], which is the range that v0.1's scaling layer expects."""
        # TensorFloat-32, cuDNN's default, would round features to three digits.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            distances: Tensor = self.network(self._prepared(translated), self._prepared(wanted))
        return distances.flatten()

    def _prepared(self, pictures: Tensor) -> Tensor:
        rgb = (
            pictures.float()[:, :3]
            if pictures.shape[1] >= 3
            else pictures.float()[:, :1].expand(-1, 3, -1, -1)
        )
        factor = -(-self.least_side // min(rgb.shape[-2:]))
        return F.interpolate(rgb, scale_factor=factor, mode="bilinear") if factor > 1 else rgb


@dataclass
class LpipsMeasures:
    """What could be set up.

    Attributes:
        measures: by the figure's name: `lpips` (AlexNet), `lpips_vgg`.
        missing: why others are left out, each with a message and a hint for a warning.
    """

    measures: dict[str, Lpips] = field(default_factory=dict)
    missing: list[LpipsUnavailable] = field(default_factory=list)


def lpips_measures(
    files: Sequence[Path] = (),
    device: torch.device | str = "cpu",
    nets: Sequence[LpipsNet] = ("alex", "vgg"),
) -> LpipsMeasures:
    """The networks as far as weights are at hand: a given file that holds them, else torch's hub cache.

    Args:
        files: torchvision's state dicts as .pth or .safetensors, recognised by what they hold.
        device: to compute on.
        nets: that are wanted.

    Raises:
        IiaeError: a given file is unreadable, holds neither network, or a network is given twice.
    """
    given: dict[LpipsNet, dict[str, Tensor]] = {}
    for path in files:
        state = _read_weights(path)
        net = _recognised(path, state)
        if net in given:
            raise IiaeError(
                f"{path} holds {BACKBONES[net].title} again",
                "give --lpips-weights one file for each network",
            )
        given[net] = state
    found = LpipsMeasures()
    for net in nets:
        try:
            state = given.pop(net) if net in given else _cached_weights(net)
        except LpipsUnavailable as reason:
            found.missing.append(reason)
        else:
            found.measures[BACKBONES[net].figure] = _build(net, state, device)
    return found


def lpips_network(
    net: LpipsNet, weights: Path | None = None, device: torch.device | str = "cpu"
) -> Lpips:
    """One network with ImageNet weights.

    Args:
        net: "alex" or "vgg".
        weights: torchvision's state dict as .pth or .safetensors; None looks into torch's hub cache.
        device: to compute on.

    Raises:
        LpipsUnavailable: the hub cache has no usable weights; nothing is downloaded.
        IiaeError: the given file is unreadable or holds another network.
    """
    if weights is None:
        return _build(net, _cached_weights(net), device)
    state = _read_weights(weights)
    if _recognised(weights, state) != net:
        raise IiaeError(
            f"{weights} does not hold {BACKBONES[net].title}",
            f"give torchvision's {BACKBONES[net].file_name}",
        )
    return _build(net, state, device)


def cache_file(net: LpipsNet) -> Path:
    """Where torchvision keeps the network's ImageNet weights once it has fetched them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net].file_name


def _cached_weights(net: LpipsNet) -> dict[str, Tensor]:
    backbone, path = BACKBONES[net], cache_file(net)
    hint = (
        f"put torchvision's {backbone.file_name} into {path.parent}, or pass --lpips-weights FILE"
    )
    if not path.exists():
        raise LpipsUnavailable(f"no {backbone.figure}: {path} is not there", hint)
    try:
        state = _read_weights(path)
        recognised = _recognised(path, state)
    except IiaeError as error:
        raise LpipsUnavailable(f"no {backbone.figure}: {error.message}", hint) from error
    if recognised != net:
        raise LpipsUnavailable(f"no {backbone.figure}: {path} holds another network", hint)
    return state


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The convolutions of a torchvision state dict, read as tensors only.

    Raises:
        IiaeError: no such file, or not tensors by name.
    """
    hint = "give a torchvision state dict: " + " or ".join(
        one.file_name for one in BACKBONES.values()
    )
    try:
        state = read_weights_file(path)
    except FileNotFoundError as error:
        raise IiaeError(f"{path} does not exist", hint) from error
    except TypeError as error:
        raise IiaeError(f"{path} holds something else than tensors by name", hint) from error
    except UNREADABLE as error:
        raise IiaeError(f"{path} cannot be read as weights", hint) from error
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise IiaeError(f"{path} holds something else than tensors by name", hint)
    return {name: value for name, value in state.items() if name.startswith("features.")}


def _recognised(path: Path, state: Mapping[str, Tensor]) -> LpipsNet:
    """Which network a state dict belongs to, by all of its convolutions' names and shapes.

    Raises:
        IiaeError: neither.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for net, backbone in BACKBONES.items():
        if shapes.get("features.0.weight") == backbone.first_layer:
            if shapes == _expected_shapes(net):
                return net
            raise IiaeError(
                f"{path} begins as {backbone.title} but has other layers",
                f"give torchvision's {backbone.file_name}",
            )
    names = " nor ".join(one.title for one in BACKBONES.values())
    files = " or ".join(one.file_name for one in BACKBONES.values())
    raise IiaeError(f"{path} holds neither {names}", f"give torchvision's {files}")


def _expected_shapes(net: LpipsNet) -> dict[str, tuple[int, ...]]:
    from torchvision import models

    with torch.device("meta"):  # shapes without 138 million numbers
        features = models.get_model(BACKBONES[net].architecture, weights=None).features
    return {f"features.{name}": tuple(value.shape) for name, value in features.state_dict().items()}


def _build(net: LpipsNet, state: Mapping[str, Tensor], device: torch.device | str) -> Lpips:
    from torchmetrics.functional.image.lpips import _LPIPS

    # The random backbone must not move the random numbers of whoever called.
    with torch.random.fork_rng(devices=[]):
        network = _LPIPS(net=net, pnet_rand=True)
    # It would leave linear weights random where its file does not fit; those of v0.1 are non-negative throughout.
    if any(
        bool((weight < 0).any())
        for name, weight in network.named_parameters()
        if name.startswith("lin")
    ):
        raise RuntimeError("torchmetrics did not load the linear weights of LPIPS v0.1")
    # torchmetrics cuts `features` into slices and keeps each layer's index: slice2.3.weight is features.3.weight.
    sliced = {name: state["features." + name.split(".", 1)[1]] for name in network.net.state_dict()}
    network.net.load_state_dict(sliced)
    return Lpips(network.to(device).eval(), BACKBONES[net].least_side)
