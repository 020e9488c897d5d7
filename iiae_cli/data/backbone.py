"""Networks that turn pictures into features: torchvision's, timm's and open_clip's, by name.

`vgg16` and `torchvision:vgg16` are torchvision's, `timm:NAME` and `open_clip:NAME@PRETRAINED` those
of `hubs.py`. The feature layer of torchvision's is what enters the final classifier layer, found as
the last layer with ImageNet's 1000 outputs and replaced by the identity, so that it is right for
every family (512 wide for resnet18, 1280 for mobilenet_v2, 4096 for vgg16). Weights are a file that
the user has, or the published one from a cache; nothing is fetched unless asked for.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

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
from iiae_cli.data.hubs import OPEN_CLIP, TIMM, WEIGHTS_HINT, Library, Pool, published_file
from iiae_cli.data.pictures import PictureError, Source, decode, read_all
from iiae_cli.model import Domain

INPUT_SIZE = (224, 224)
IMAGENET_CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
# Why each picture cannot be read, None where it can; and the others' input (M, 3, h, w).
Batch: TypeAlias = tuple[list[PictureError | None], Tensor]
_UNFIT = ("googlenet", "inception_v3")  # they have second classifiers


class _TorchVision:
    """torchvision's picture classifiers, up to what enters the final layer."""

    def full_name(self, name: str) -> str:
        known = [known for known in models.list_models(module=models) if known not in _UNFIT]
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or ["vgg16", "resnet18"]
            raise IiaeError(
                f"no backbone is named '{name}'",
                f"--backbone takes torchvision's picture classifiers, such as {', '.join(near)}, "
                "or timm:NAME, open_clip:NAME@PRETRAINED",
            )
        return name

    def published(self, name: str, download: bool) -> Path:
        url = models.get_model_weights(name)["DEFAULT"].url
        return published_file(name, None, (), url, download)

    def trained_on(self, name: str) -> str:
        return "ImageNet"

    def configuration(self, name: str) -> dict[str, Any]:
        how = "area where that shrinks, bicubic where it enlarges"
        return {"decoded_at": list(INPUT_SIZE), "resize": how, "mean": MEAN, "std": STD}

    def transform(self, configuration: dict[str, Any]) -> Callable[[NDArray[Any]], Tensor]:
        def transform(picture: NDArray[Any]) -> Tensor:
            values = torch.tensor(picture).permute(2, 0, 1).float().div(255.0).contiguous()
            normal: Tensor = normalize(values, configuration["mean"], configuration["std"])
            return normal

        return transform

    def network(self, name: str, pool: Pool, weights: Path | None) -> tuple[nn.Module, int]:
        if pool != "pooled":
            raise IiaeError(f"--pool {pool} is for timm: and open_clip:", "leave --pool out")
        network: nn.Module = models.get_model(name, weights=None)
        cut = final_layer(network)
        last = network.get_submodule(cut)
        width = int(last.in_features if isinstance(last, nn.Linear) else last.in_channels)  # type: ignore[arg-type]
        parent, _, child = cut.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
        if weights is not None:
            network.load_state_dict(_without(cut, read_state_dict(weights, WEIGHTS_HINT)))
        return network, width


TORCHVISION = _TorchVision()
LIBRARIES: dict[str, Library] = {
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "open_clip": OPEN_CLIP,
}


def library_of(name: str) -> tuple[Library, str]:
    """The library of a backbone, and its name there."""
    prefix, colon, bare = name.partition(":")
    if not colon:
        return TORCHVISION, name
    if prefix not in LIBRARIES:
        raise IiaeError(f"no backbone is named '{name}'", "write torchvision:, timm: or open_clip:")
    return LIBRARIES[prefix], bare


def full_name(name: str) -> str:
    """A backbone's name as data files have it; raises IiaeError, with near names, if unknown."""
    library, bare = library_of(name)
    known = library.full_name(bare)
    return known if library is TORCHVISION else f"{name.partition(':')[0]}:{known}"


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the network."""

    invert_sketches: bool = False  # pictures of x, from black on white to white on black
    normalise: bool = True  # take out the mean and standard deviation of the network's own set
    configuration: dict[str, Any] = field(default_factory=dict)  # the library's own transform

    @classmethod
    def of(cls, name: str) -> Preprocessing:
        """A backbone's own."""
        library, bare = library_of(name)
        return cls(configuration=library.configuration(bare))

    def reader(self, name: str, domain: Domain) -> Callable[[Source], Tensor]:
        """What turns a picture of a domain into input (3, h, w) of the backbone of this name."""
        neutral = {} if self.normalise else {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        transform = library_of(name)[0].transform({**self.configuration, **neutral})
        size = self.configuration.get("decoded_at")
        invert = self.invert_sketches and domain == "x"

        def read(path: Source) -> Tensor:
            picture = decode(path, 3, size and (size[0], size[1]))
            return transform(255 - picture if invert else picture)

        return read


@dataclass(frozen=True)
class Inputs:
    """How picture files become the input of a network, in fine-tuning and extraction alike."""

    name: str  # of the backbone
    preprocessing: Preprocessing
    device: torch.device
    workers: int = 1  # decoding threads

    def of(
        self, batches: Iterable[Sequence[Source]], domain: Domain
    ) -> Generator[Batch, None, None]:
        """Decode batches of pictures of a domain, one batch ahead of the caller."""
        reader = self.preprocessing.reader(self.name, domain)

        def read(paths: Sequence[Source]) -> Batch:
            made = list(read_all(paths, reader, self.workers))
            pictures = [item for item in made if isinstance(item, Tensor)]
            stack = torch.stack(pictures) if pictures else torch.empty(0)
            errors = [item if isinstance(item, PictureError) else None for item in made]
            return errors, stack.to(self.device)

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

    kind: Literal["imagenet", "published", "file", "random"]
    path: Path | None = None
    sha256: str | None = None
    seen: Seen = NONE_SEEN  # classes of the data set that they were trained on
    trained_on: str = "nothing"  # for people

    def to_json(self) -> dict[str, Any]:
        """For the data file."""
        return {
            "weights": self.kind,
            "weights_file": None if self.path is None else self.path.name,
            "weights_sha256": self.sha256,
            "trained_on": self.trained_on,
        }


def find_weights(name: str, given: str | None, *, download: bool = False) -> Weights:
    """Find the weights of a backbone by its full name: the file `given`, random ones if it is
    `none`; None stands for the published ones in a cache, where `download` fetches them.
    """
    library, bare = library_of(full_name(name))
    if given == "none":
        return Weights("random")
    path = library.published(bare, download) if given is None else Path(given)
    takes = "a state dict (.pth), a .safetensors file, a --save-backbone folder, or none"
    regular_file(path, f"--backbone-weights takes {takes}")
    digest = sha256_of(path)
    if library is TORCHVISION:
        hashes = [_hash_in(weights.url) for weights in models.get_model_weights(bare)]
        if any(digest.startswith(known) for known in hashes):
            return Weights("imagenet", path, digest, NONE_SEEN, library.trained_on(bare))
        if given is None:
            raise IiaeError(
                f"{path} is damaged: its SHA-256 does not begin with any of {', '.join(hashes)}",
                "delete it and fetch it again",
            )
    if given is not None:
        seen = _seen_by(path)
        return Weights("file", path, digest, seen, "what its maker says: cannot be told")
    trained_on = library.trained_on(bare)
    seen = NONE_SEEN if trained_on == "ImageNet" else UNKNOWN
    return Weights("published", path, digest, seen, trained_on)


def _hash_in(url: str) -> str:
    """The beginning of the SHA-256 that torchvision's file names carry."""
    return Path(url).stem.rpartition("-")[2]


def _seen_by(path: Path) -> Seen:
    """What a file's header says in JSON under `classes_seen` and `classes_seen_complete`."""
    if path.suffix != ".safetensors":
        return UNKNOWN
    with reading(path, WEIGHTS_HINT), safe_open(path, framework="pt") as file:
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


def build_backbone(
    name: str, weights: Weights, seed: int = 0, pool: Pool = "pooled"
) -> tuple[nn.Module, int]:
    """Build a network from pictures (B, 3, h, w) to features (B, D); returns it and D."""
    library, bare = library_of(name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, width = library.network(bare, pool, weights.path)
    except (RuntimeError, KeyError, ValueError) as error:
        if weights.path is None:
            raise
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise IiaeError(
            f"{weights.path} does not fit {name}: {reason}",
            "name the backbone that the weights belong to",
        ) from error
    return network.eval(), width


def _without(cut: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All but the final layer, whose shape depends on what it classified."""
    # densenet's published weights still have the names of an older torchvision.
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    named = {old.sub(r"\1\2.", key.removeprefix("module.")): state[key] for key in state}
    return {key: values for key, values in named.items() if not key.startswith(f"{cut}.")}
