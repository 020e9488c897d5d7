"""Picture classifiers of torchvision as feature extractors, and those that were fine-tuned here.

The feature layer is what enters the final classifier layer, found as the last layer with
ImageNet's 1000 outputs and replaced by the identity, so that it is right for every family (512 wide
for resnet18, 1280 for mobilenet_v2, 4096 for vgg16). Weights are a file that the user has, or the
one that torchvision publishes, from torch's hub cache; nothing is fetched unless asked for.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, regular_file, sha256_of
from iiae_cli.common.tensors import read_state_dict
from iiae_cli.data.class_lists import NONE_SEEN, UNKNOWN, Seen
from iiae_cli.data.pictures import PictureError, decode, read_all
from iiae_cli.model import Domain

INPUT_SIZE = (224, 224)
IMAGENET_CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
# Why each picture cannot be read, None where it can; and the others' input (M, 3, 224, 224).
Batch: TypeAlias = tuple[list[PictureError | None], Tensor]
_UNFIT = ("googlenet", "inception_v3")  # they have second classifiers
_HINT = "name a state dict (.pth) or a .safetensors file"


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a 224×224 picture before the network."""

    invert_sketches: bool = False  # pictures of x, from black on white to white on black
    normalise: bool = True  # take out ImageNet's mean and standard deviation

    def tensor(self, pictures: NDArray[np.uint8], domain: Domain, device: torch.device) -> Tensor:
        """Pictures (B, H, W, 3) uint8 as network input (B, 3, H, W) float32."""
        values = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div(255.0)
        if self.invert_sketches and domain == "x":
            values = 1.0 - values
        return normalize(values, MEAN, STD) if self.normalise else values.contiguous()


@dataclass(frozen=True)
class Inputs:
    """How picture files become the input of a network, in fine-tuning and extraction alike."""

    preprocessing: Preprocessing
    device: torch.device
    workers: int = 1  # decoding threads

    def of(self, batches: Iterable[Sequence[Path]], domain: Domain) -> Iterator[Batch]:
        """Decode batches of pictures of a domain, one batch ahead of the caller."""

        def read(paths: Sequence[Path]) -> Batch:
            decoded = list(read_all(paths, lambda path: decode(path, 3, INPUT_SIZE), self.workers))
            pictures = [item for item in decoded if isinstance(item, np.ndarray)]
            stack = np.array(pictures, np.uint8).reshape(-1, *INPUT_SIZE, 3)
            errors = [item if isinstance(item, PictureError) else None for item in decoded]
            return errors, self.preprocessing.tensor(stack, domain, self.device)

        with ThreadPoolExecutor(1) as pool:
            coming: deque[Future[Batch]] = deque()
            for paths in batches:
                coming.append(pool.submit(read, paths))
                if len(coming) > 1:
                    yield coming.popleft().result()
            for last in coming:
                yield last.result()


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from."""

    kind: Literal["imagenet", "file", "random"]  # published by torchvision, any other file, none
    path: Path | None = None
    sha256: str | None = None
    seen: Seen = NONE_SEEN  # classes of the data set that they were trained on

    def to_json(self) -> dict[str, Any]:
        """For the data file: `weights`, `weights_file`, `weights_sha256`."""
        name = None if self.path is None else self.path.name
        return {"weights": self.kind, "weights_file": name, "weights_sha256": self.sha256}


def check_name(name: str) -> None:
    """Refuse a classifier that torchvision does not have, with near names in the hint."""
    known = [known for known in models.list_models(module=models) if known not in _UNFIT]
    if name not in known:
        near = difflib.get_close_matches(name, known, 3) or ["vgg16", "resnet18", "mobilenet_v2"]
        raise IiaeError(
            f"no backbone is named '{name}'",
            f"--backbone takes torchvision's picture classifiers, such as {', '.join(near)}",
        )


def find_weights(name: str, given: str | None, *, download: bool = False) -> Weights:
    """Find the weights of a backbone: the file `given`, random ones if it is `none`.

    None stands for what torchvision publishes, from torch's hub cache, where `download` fetches it.
    """
    check_name(name)
    if given == "none":
        return Weights("random")
    published = models.get_model_weights(name)
    default = str(published["DEFAULT"].url)
    path = _published_file(name, default, download) if given is None else Path(given)
    takes = f"{Path(default).name}, a .safetensors file, a --save-backbone folder, or none"
    regular_file(path, f"--backbone-weights takes {takes}")
    digest = sha256_of(path)
    if any(digest.startswith(_hash_in(weights.url)) for weights in published):
        return Weights("imagenet", path, digest)
    if given is None:
        raise IiaeError(
            f"{path} is damaged: its SHA-256 does not begin with {_hash_in(default)}",
            "delete it and fetch it again",
        )
    return Weights("file", path, digest, _seen_by(path))


def _hash_in(url: str) -> str:
    """The beginning of the SHA-256 that torchvision's file names carry."""
    return Path(url).stem.rpartition("-")[2]


def _published_file(name: str, url: str, download: bool) -> Path:
    """The file of torchvision's default weights in torch's hub cache."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    by_hand = f"fetch {url} and pass --backbone-weights FILE"
    if not path.is_file() and not download:
        raise IiaeError(
            f"the weights of {name} ({path.name}) are not in torch's cache {path.parent}",
            f"{by_hand}, or pass --download",
        )
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), _hash_in(url), progress=False)
    except (OSError, RuntimeError) as error:
        raise IiaeError(f"{url} could not be downloaded: {error}", by_hand) from error
    return path


def _seen_by(path: Path) -> Seen:
    """What a file's header says in JSON under `classes_seen` and `classes_seen_complete`."""
    if path.suffix != ".safetensors":
        return UNKNOWN
    with reading(path, _HINT), safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        said = {key: header[key] for key in header if key.startswith("classes_seen")}
        return Seen.of_json({key: json.loads(text) for key, text in said.items()})


def final_layer(network: nn.Module) -> str:
    """The dotted name of the layer that classifies: the last with 1000 outputs."""
    for name, module in reversed(list(network.named_modules())):
        outputs = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}.get(type(module))
        if outputs is not None and getattr(module, outputs) == IMAGENET_CLASSES:
            return str(name)
    raise ValueError("the network has no classifier with 1000 outputs")


def build_backbone(name: str, weights: Weights, seed: int = 0) -> tuple[nn.Module, int]:
    """Build a network from pictures (B, 3, 224, 224) to features (B, D); returns it and D."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = models.get_model(name, weights=None)
    cut = final_layer(network)
    last = network.get_submodule(cut)
    width = int(last.in_features if isinstance(last, nn.Linear) else last.in_channels)  # type: ignore[arg-type]
    parent, _, child = cut.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    if weights.path is not None:
        _load(network, name, weights.path, cut)
    return network.eval(), width


def _load(network: nn.Module, name: str, path: Path, cut: str) -> None:
    """Load all but the final layer, whose shape depends on what it classified."""
    state = read_state_dict(path, _HINT)
    # densenet's published weights still have the names of an older torchvision.
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    named = {old.sub(r"\1\2.", key.removeprefix("module.")): state[key] for key in state}
    state = {key: values for key, values in named.items() if not key.startswith(f"{cut}.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise IiaeError(
            f"{path} does not fit {name}: {reason}", "name the backbone that the weights belong to"
        ) from error
