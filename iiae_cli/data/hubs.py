"""Networks that turn pictures into features, by name: torchvision's, timm's and open_clip's.

`vgg16` and `torchvision:vgg16` are torchvision's, the others `timm:NAME[.TAG]` and
`open_clip:NAME[@PRETRAINED]`, whose libraries are imported when one is named. Published weights
come from the caches of torch and huggingface_hub; nothing is downloaded unless asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from iiae_cli.common.environment import extra
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.tensors import read_state_dict

Pool: TypeAlias = Literal["pooled", "mean", "cls"]
Transform: TypeAlias = Callable[[NDArray[Any]], Tensor]  # (H, W, 3) uint8 → (3, h, w)
INPUT_SIZE = (224, 224)  # of torchvision's networks
IMAGENET, WEB = "ImageNet", "web images: cannot be told"
WEIGHTS_HINT = "name a state dict (.pth) or a .safetensors file"
_IMAGENET_CLASSES = 1000
_IMAGENET_TAG = re.compile(r"in(1k|12k|21k|22k)")
_BEYOND = re.compile(
    "laion|clip|openai|webli|jft|ig1b|yfcc|swag|m3[08]m|seer|lvd|merged|bamboo|sa1b|dfn|datacomp"
)
_UNFIT = ("googlenet", "inception_v3")  # of torchvision's; they have second classifiers


@dataclass(frozen=True)
class Published:
    """A library's facts about one of its networks."""

    name: str  # in full
    trained_on: str  # for people
    transform: dict[str, Any]  # of pictures, as JSON
    url: str | None  # of the weights
    hub: str | None = None  # or the hub's repository, and its file, the best first
    files: Sequence[str] = ()
    hashes: Sequence[str] = ()  # possible starts of the weights' SHA-256, if known


# Each library has three methods, which take names without its prefix: `published` returns the facts
# about a network, `transform` what these describe, `network` a network (B, 3, h, w) → (B, D) and D.


class _TorchVision:
    """torchvision's picture classifiers, without the final layer."""

    def published(self, name: str) -> Published:
        from torchvision import models  # takes seconds to import

        known = [known for known in models.list_models(module=models) if known not in _UNFIT]
        if name not in known:
            raise _unknown(name, [*known, "timm:NAME", "open_clip:NAME@PRETRAINED"])
        kinds = models.get_model_weights(name)
        how = "area where that shrinks, bicubic where it enlarges"
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        transform = {"decoded_at": list(INPUT_SIZE), "resize": how, "mean": mean, "std": std}
        # Names of files carry the start of their SHA-256.
        hashes = [Path(weights.url).stem.rpartition("-")[2] for weights in kinds]
        return Published(name, IMAGENET, transform, kinds["DEFAULT"].url, hashes=hashes)

    def transform(self, configuration: dict[str, Any]) -> Transform:
        mean, std = (torch.tensor(configuration[key]).view(3, 1, 1) for key in ("mean", "std"))

        def normalised(picture: NDArray[Any]) -> Tensor:
            fractions = torch.tensor(picture).permute(2, 0, 1).float().div(255.0).contiguous()
            return (fractions - mean) / std

        return normalised

    def network(self, name: str, pool: Pool, weights: Path | None) -> tuple[nn.Module, int]:
        from torchvision import models

        if pool != "pooled":
            raise IiaeError(f"--pool {pool} needs timm: or open_clip:", "leave --pool out")
        network: nn.Module = models.get_model(name, weights=None)
        outputs: dict[str, int] = {
            part: getattr(module, "out_features", getattr(module, "out_channels", 0))
            for part, module in network.named_modules()
        }
        cut = [part for part, count in outputs.items() if count == _IMAGENET_CLASSES][-1]
        last = network.get_submodule(cut)
        width = int(last.in_features if isinstance(last, nn.Linear) else last.in_channels)  # type: ignore[arg-type]
        network.set_submodule(cut, nn.Identity())
        if weights is not None:
            state = read_state_dict(weights, WEIGHTS_HINT)
            # densenet's published weights still have the names of an older torchvision.
            old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
            named = {old.sub(r"\1\2.", key.removeprefix("module.")): state[key] for key in state}
            kept = {key: named[key] for key in named if not key.startswith(f"{cut}.")}
            network.load_state_dict(kept)
        return network, width


class PatchTokens(nn.Module):
    """A transformer whose feature is its class token, or the mean of its patch tokens."""

    def __init__(self, body: nn.Module, pool: Pool, patches_from: int) -> None:
        super().__init__()
        self.body, self.pool, self.patches_from = body, pool, patches_from

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns features (B, D) from the tokens (B, T, D)."""
        of_timm = getattr(self.body, "forward_features", None)
        tokens: Tensor = self.body(pictures)[1] if of_timm is None else of_timm(pictures)
        return tokens[:, 0] if self.pool == "cls" else tokens[:, self.patches_from :].mean(1)


class _Timm:
    """timm's networks, `ARCHITECTURE[.TAG]`."""

    def published(self, name: str) -> Published:
        timm = extra("timm", "timm")
        try:
            found = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError as error:
            known = [*timm.list_models(), *timm.list_models(pretrained=True)]
            raise _unknown(f"timm:{name}", [f"timm:{other}" for other in known]) from error
        tag = found.tag or ""
        of_imagenet = _IMAGENET_TAG.search(tag) and not _BEYOND.search(tag)
        return Published(
            f"timm:{name.partition('.')[0]}{tag and f'.{tag}'}",
            IMAGENET if of_imagenet else WEB,
            dict(timm.data.resolve_data_config({}, pretrained_cfg=asdict(found))),
            found.url,
            found.hf_hub_id,
            (found.hf_hub_filename or "model.safetensors", "pytorch_model.bin"),
        )

    def transform(self, configuration: dict[str, Any]) -> Transform:
        data = extra("timm", "timm").data
        transform = data.create_transform(**configuration, is_training=False)
        return lambda picture: transform(Image.fromarray(picture))

    def network(self, name: str, pool: Pool, weights: Path | None) -> tuple[nn.Module, int]:
        timm = extra("timm", "timm")
        more: dict[str, Any] = {}
        if weights is not None:  # timm's own way knows older formats, and is strict if told 0
            classifier = timm.models.get_pretrained_cfg(name).classifier or ()
            layers = (classifier,) if isinstance(classifier, str) else classifier
            state = read_state_dict(weights, WEIGHTS_HINT)
            heads = tuple(f"{layer}." for layer in layers)
            kept = {key: state[key] for key in state if not key.startswith(heads)}
            overlay = {"state_dict": kept, "num_classes": 0, "label_offset": 0}
            more = {"pretrained": True, "pretrained_cfg_overlay": overlay}
        body: nn.Module = timm.create_model(name, num_classes=0, **more)
        if pool == "pooled":
            return body, int(body.head_hidden_size)  # type: ignore[arg-type]
        first = int(getattr(body, "num_prefix_tokens", -1))
        if first < (pool == "cls"):
            raise IiaeError(f"timm:{name} has no token for --pool {pool}", "leave --pool out")
        return PatchTokens(body, pool, first), int(body.num_features)  # type: ignore[arg-type]


class _OpenClip:
    """The picture towers of open_clip, `ARCHITECTURE[@PRETRAINED]`."""

    def published(self, name: str) -> Published:
        clip = extra("open_clip", "clip")
        architecture, _, tag = name.partition("@")
        if architecture not in clip.list_models():
            raise _unknown(f"open_clip:{name}", [f"open_clip:{key}" for key in clip.list_models()])
        tags = clip.list_pretrained_tags_by_model(architecture)
        if tag and tag not in tags:
            raise _unknown(f"open_clip:{name}", [f"open_clip:{architecture}@{key}" for key in tags])
        found = dict(clip.get_pretrained_cfg(architecture, tag))
        module = clip.transform
        size = clip.get_model_config(architecture)["vision_cfg"].get("image_size", 224)
        transform = module.merge_preprocess_dict(asdict(module.PreprocessCfg(size=size)), found)
        hub, _, file = found.get("hf_hub", "").rpartition("/")
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        return Published(f"open_clip:{name}", WEB, dict(transform), found.get("url"), hub, files)

    def transform(self, configuration: dict[str, Any]) -> Transform:
        module = extra("open_clip", "clip").transform
        settings = module.PreprocessCfg(**configuration)
        transform = module.image_transform_v2(settings, is_train=False)
        return lambda picture: transform(Image.fromarray(picture))

    def network(self, name: str, pool: Pool, weights: Path | None) -> tuple[nn.Module, int]:
        clip = extra("open_clip", "clip")
        architecture, _, tag = name.partition("@")
        quick = bool(clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"))
        untrained = {"pretrained_image": False, "pretrained_text": False, "weights_only": True}
        path = weights and str(weights)
        tower = clip.create_model(architecture, path, force_quick_gelu=quick, **untrained).visual
        if pool == "pooled":
            return tower, int(tower.output_dim)
        if pool == "cls" or not hasattr(tower, "output_tokens"):
            raise IiaeError(f"open_clip:{name} has no token for --pool {pool}", "leave --pool out")
        tower.output_tokens = True
        return PatchTokens(tower, pool, 0), int(tower.conv1.out_channels)


Library: TypeAlias = _TorchVision | _Timm | _OpenClip
_LIBRARIES: dict[str, Library] = {
    "torchvision": _TorchVision(),
    "timm": _Timm(),
    "open_clip": _OpenClip(),
}


def library_of(name: str) -> tuple[Library, str]:
    """Returns the library of a network, and the network's name there."""
    prefix, colon, bare = name.partition(":")
    if not colon:
        prefix, bare = "torchvision", name
    if prefix not in _LIBRARIES:
        raise IiaeError(f"unknown backbone '{name}'", "write torchvision:, timm: or open_clip:")
    return _LIBRARIES[prefix], bare


def published(name: str) -> Published:
    """Returns the facts about a network; raises IiaeError, with near names, if it is unknown."""
    library, bare = library_of(name)
    return library.published(bare)


def published_file(found: Published, download: bool) -> Path:
    """Returns the published weights in a cache, which `download` fills.

    Raises IiaeError, naming what to fetch, if they are missing.
    """
    if found.hub:
        hf = extra("huggingface_hub", "hub")
        cache, what = Path(hf.constants.HF_HUB_CACHE), f"{found.files[0]} of {found.hub}"
        address = hf.hf_hub_url(found.hub, found.files[0])
        sources = [partial(_from_hub, hf, found.hub, file) for file in found.files]
    elif found.url:
        cache, what = Path(torch.hub.get_dir(), "checkpoints"), Path(found.url).name
        address, sources = found.url, [partial(_from_address, found.url, cache / what)]
    else:
        hint = "pass --backbone-weights FILE or none, or name them: open_clip:NAME@PRETRAINED"
        raise IiaeError(f"{found.name} names no published weights", hint)
    reason = f"are not in the cache {cache}"
    for fetch in (False, True)[: 1 + download]:
        for get in sources:
            try:
                return get(fetch)
            except Exception as error:  # of half a dozen libraries below the hub's
                if fetch:
                    reason = f"could not be downloaded: {' '.join(str(error).split())[:200]}"
    hint = f"fetch {address} and pass --backbone-weights FILE"
    hint += "" if download else ", or pass --download"
    raise IiaeError(f"the weights of {found.name} ({what}) {reason}", hint)


def _from_hub(hf: ModuleType, hub: str, file: str, fetch: bool) -> Path:
    if fetch:  # asked first, as a download without a network is tried for a minute
        hf.get_hf_file_metadata(hf.hf_hub_url(hub, file), timeout=10)
    return Path(hf.hf_hub_download(hub, file, local_files_only=not fetch))


def _from_address(url: str, path: Path, fetch: bool) -> Path:
    if fetch:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    if not path.is_file():
        raise FileNotFoundError(path)
    return path


def _unknown(name: str, known: Sequence[str]) -> IiaeError:
    near = difflib.get_close_matches(name, known, 3, 0.4) or [*known[:2], known[-1]]
    return IiaeError(f"unknown backbone '{name}'", f"near ones: {', '.join(near)}")
