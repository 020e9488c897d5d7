"""Picture classifiers of torchvision as feature extractors: which weights, and which layer.

The feature layer is what enters the final classifier layer, found as the last layer with ImageNet's 1000 outputs and
replaced by the identity, so that it is right for every family (512 wide for resnet18, 1280 for mobilenet_v2, 4096 for
vgg16). Weights are a file that the user has, or the one that torchvision publishes, from torch's hub cache; nothing is
fetched unless asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torchvision import models

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import sha256_of
from iiae_cli.data.leaks import NONE_SEEN, UNKNOWN, Seen
from iiae_cli.data.state_dicts import UNREADABLE, read_weights_file
from iiae_cli.model import Domain

INPUT_SIZE = (224, 224)
IMAGENET_CLASSES = 1000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NETWORK_SCHEMA = "iiae.backbone/1"

_AUXILIARY = (
    "AuxLogits",
    "aux1",
    "aux2",
)  # second classifiers of the inception family, for training alone


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a 224×224 picture before the network, in fine-tuning and extraction alike.

    Attributes:
        invert_sketches: whether pictures of x are inverted (black on white becomes white on black).
        normalise: whether ImageNet's mean and standard deviation are taken out.
    """

    invert_sketches: bool = False
    normalise: bool = True

    def tensor(self, pictures: NDArray[np.uint8], domain: Domain, device: torch.device) -> Tensor:
        """Pictures (B, H, W, 3) uint8 as network input (B, 3, H, W) float32."""
        values = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div(255.0)
        if self.invert_sketches and domain == "x":
            values = 1.0 - values
        if self.normalise:
            mean, std = (
                values.new_tensor(three)[:, None, None] for three in (IMAGENET_MEAN, IMAGENET_STD)
            )
            values = (values - mean) / std
        return values.contiguous()


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from.

    Attributes:
        kind: `imagenet` (a file that torchvision publishes), `file` (any other), or `random`.
        path: the file.
        sha256: of the file.
        seen: the data set's classes that they were trained on.
    """

    kind: Literal["imagenet", "file", "random"]
    path: Path | None = None
    sha256: str | None = None
    seen: Seen = NONE_SEEN

    def to_json(self) -> dict[str, Any]:
        """For the data file: `weights`, `weights_file`, `weights_sha256`."""
        name = None if self.path is None else self.path.name
        return {"weights": self.kind, "weights_file": name, "weights_sha256": self.sha256}


def check_name(name: str) -> None:
    """Refuse what torchvision does not have.

    Raises:
        IiaeError: unknown; the hint has the nearest names.
    """
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, 3) or ["vgg16", "resnet18", "mobilenet_v2"]
        raise IiaeError(
            f"torchvision has no picture classifier '{name}'",
            f"--backbone takes its names, such as {', '.join(near)}",
        )


def find_weights(name: str, given: str | None, *, download: bool = False) -> Weights:
    """The weights of a backbone.

    Args:
        name: of the backbone.
        given: a file; `none` for random weights; None: what torchvision publishes, from torch's hub cache.
        download: whether that may be fetched into the cache.

    Raises:
        IiaeError: no such file, damaged, or not in the cache.
    """
    check_name(name)
    if given == "none":
        return Weights("random")
    if given is None:
        return _published_weights(name, download)
    path = Path(given)
    if not path.is_file():
        raise IiaeError(
            f"weights {path} do not exist",
            f"--backbone-weights takes {_published(name)[0]}, a .safetensors file, a --save-backbone folder, or none",
        )
    digest = sha256_of(path)
    if any(digest.startswith(prefix) for prefix in _published_hashes(name)):
        return Weights("imagenet", path, digest)
    return Weights("file", path, digest, _seen_by_file(path))


def _published(name: str) -> tuple[str, str]:
    """File name and URL of torchvision's default weights."""
    url = str(models.get_model_weights(name)["DEFAULT"].url)
    return url.rsplit("/", 1)[1], url


def _published_hashes(name: str) -> list[str]:
    """The SHA-256 prefixes that torchvision's file names carry."""
    found = (
        re.search(r"-([0-9a-f]{8,})\.pth$", str(entry.url))
        for entry in models.get_model_weights(name)
    )
    return [match[1] for match in found if match is not None]


def _published_weights(name: str, download: bool) -> Weights:
    file_name, url = _published(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    prefix = file_name.removesuffix(".pth").rsplit("-", 1)[-1]
    if not path.is_file():
        if not download:
            raise IiaeError(
                f"the weights of {name} ({file_name}) are not in torch's cache {path.parent}",
                f"fetch {url} and pass --backbone-weights FILE, or pass --download",
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise IiaeError(
                f"{url} could not be downloaded: {error}",
                "fetch it elsewhere and pass --backbone-weights FILE",
            ) from error
    digest = sha256_of(path)
    if not digest.startswith(prefix):
        raise IiaeError(
            f"{path} is damaged: its SHA-256 does not begin with {prefix}",
            "delete it and fetch it again",
        )
    return Weights("imagenet", path, digest)


def _seen_by_file(path: Path) -> Seen:
    if path.suffix != ".safetensors":
        return UNKNOWN
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        if header.get("schema") == NETWORK_SCHEMA:
            raise IiaeError(
                f"{path} is the network of one domain alone",
                f"name its folder, which holds x.safetensors and y.safetensors: --backbone-weights {path.parent}",
            )
        return Seen.of_header(header)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> IiaeError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return IiaeError(
        f"weights {path} cannot be read: {reason}",
        "name a state dict (.pth) or a .safetensors file",
    )


def final_layer(network: nn.Module) -> str:
    """The dotted name of the layer that classifies: the last with 1000 outputs.

    Raises:
        ValueError: there is none.
    """
    for name, module in reversed(list(network.named_modules())):
        outputs = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}.get(type(module))
        if outputs is not None and getattr(module, outputs) == IMAGENET_CLASSES:
            return str(name)
    raise ValueError("the network has no classifier with 1000 outputs")


def build_backbone(name: str, weights: Weights, seed: int = 0) -> tuple[nn.Module, int]:
    """A network from pictures (B, 3, 224, 224) to features (B, D), and D.

    Args:
        name: of torchvision's classifier.
        weights: from `find_weights`.
        seed: of random weights.

    Raises:
        IiaeError: the weights cannot be read or are another network's.
    """
    network = bare_backbone(name, seed)
    cut = final_layer(network)
    parent, _, child = cut.rpartition(".")
    last = network.get_submodule(cut)
    width = int(last.in_features if isinstance(last, nn.Linear) else last.in_channels)  # type: ignore[arg-type]
    setattr(network.get_submodule(parent), child, nn.Identity())
    if weights.path is not None:
        _load(network, name, _read_state(weights.path), weights.path, cut)
    if isinstance(network, models.Inception3 | models.GoogLeNet):
        network.transform_input = (
            weights.kind != "random"
        )  # trained with a normalisation of their own
    return network.eval(), width


def bare_backbone(name: str, seed: int) -> nn.Module:
    """torchvision's classifier with random weights, the same for the same seed, without second classifiers."""
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = models.get_model(name, weights=None, **extra)
    if isinstance(network, models.Inception3 | models.GoogLeNet):
        network.aux_logits = False
        for auxiliary in _AUXILIARY:
            setattr(network, auxiliary, None)
    return network


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict by the names of torchvision's modules."""
    try:
        loaded = read_weights_file(path)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not all(isinstance(value, Tensor) for value in loaded.values()):
        raise IiaeError(f"weights {path} hold no state dict", "save network.state_dict() alone")
    # densenet's published weights still have the names of an older torchvision.
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    return {
        old.sub(r"\1\2.", str(key).removeprefix("module.")): value for key, value in loaded.items()
    }


def _load(network: nn.Module, name: str, state: dict[str, Tensor], path: Path, cut: str) -> None:
    """Load all but the final layer, whose shape depends on what it classified.

    Raises:
        IiaeError: a tensor is missing, superfluous or of another shape.
    """
    dropped = tuple(f"{one}." for one in (cut, *_AUXILIARY))
    state = {key: value for key, value in state.items() if not key.startswith(dropped)}
    wanted = network.state_dict()
    problems = [
        *(
            f"has no {key}"
            for key in wanted
            if key not in state and not key.endswith("num_batches_tracked")
        ),
        *(f"has {key}, which the network lacks" for key in state if key not in wanted),
        *(
            f"has {key} of shape {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
            for key in wanted
            if key in state and state[key].shape != wanted[key].shape
        ),
    ]
    if problems:
        raise IiaeError(
            f"{path} does not fit {name}: it {problems[0]}",
            "name the backbone that the weights belong to",
        )
    network.load_state_dict(state, strict=False)
