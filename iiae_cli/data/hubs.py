"""Picture networks of timm and open_clip as backbones: names, published weights, transforms.

Nothing is fetched unless asked for: published weights come from the caches of huggingface_hub and
torch. Both libraries are imported where one of their networks is named.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.tensors import read_state_dict

Pool: TypeAlias = Literal["pooled", "mean", "cls"]
Transform: TypeAlias = Callable[[NDArray[Any]], Tensor]  # (H, W, 3) uint8 → (3, h, w)
WEB = "web images: cannot be told"
WEIGHTS_HINT = "name a state dict (.pth) or a .safetensors file"
_IMAGENET = re.compile(r"in(1k|12k|21k|22k)")
_BEYOND = re.compile(
    "laion|clip|openai|webli|jft|ig1b|yfcc|swag|m3[08]m|seer|lvd|merged|bamboo|sa1b|dfn|datacomp"
)


class Library(Protocol):
    """Where backbones come from; a name is one of its own, without the library's."""

    def full_name(self, name: str) -> str:
        """The name with the tag of its weights; raises IiaeError with near ones if unknown."""

    def published(self, name: str, download: bool) -> Path:
        """The file of the published weights; raises IiaeError if it is nowhere."""

    def trained_on(self, name: str) -> str:
        """What the published weights were trained on, for people."""

    def configuration(self, name: str) -> dict[str, Any]:
        """The library's own transform of pictures, as JSON."""

    def transform(self, configuration: dict[str, Any]) -> Transform:
        """What a configuration says."""

    def network(self, name: str, pool: Pool, weights: Path | None) -> tuple[nn.Module, int]:
        """From pictures (B, 3, h, w) to features (B, D), and D; RuntimeError of others' weights."""


class PatchTokens(nn.Module):
    """A transformer whose feature is its class token, or the mean of its patch tokens."""

    def __init__(self, body: nn.Module, pool: Pool, patches_from: int) -> None:
        super().__init__()
        self.body, self.pool, self.patches_from = body, pool, patches_from

    def forward(self, pictures: Tensor) -> Tensor:
        """Features (B, D) of the tokens (B, T, D)."""
        of_timm = getattr(self.body, "forward_features", None)
        tokens: Tensor = self.body(pictures)[1] if of_timm is None else of_timm(pictures)
        return tokens[:, 0] if self.pool == "cls" else tokens[:, self.patches_from :].mean(1)


class _Timm:
    """timm's networks, `ARCHITECTURE[.TAG]`."""

    def full_name(self, name: str) -> str:
        timm = _imported("timm", "timm")
        try:
            tag = timm.models.get_pretrained_cfg(name, allow_unregistered=False).tag
        except RuntimeError as error:
            known = [*timm.list_models(), *timm.list_models(pretrained=True)]
            raise _unknown(f"timm:{name}", [f"timm:{other}" for other in known]) from error
        architecture = name.partition(".")[0]
        return f"{architecture}.{tag}" if tag else architecture

    def _published(self, name: str) -> Any:
        return _imported("timm", "timm").models.get_pretrained_cfg(name)

    def published(self, name: str, download: bool) -> Path:
        found = self._published(name)
        files = [found.hf_hub_filename or "model.safetensors", "pytorch_model.bin"]
        return published_file(f"timm:{name}", found.hf_hub_id, files, found.url, download)

    def trained_on(self, name: str) -> str:
        tag = name.partition(".")[2]
        if _IMAGENET.search(tag) and not _BEYOND.search(tag):
            return "ImageNet"
        return WEB

    def configuration(self, name: str) -> dict[str, Any]:
        import_module("timm.data")
        data = _imported("timm", "timm").data
        return dict(data.resolve_data_config({}, pretrained_cfg=asdict(self._published(name))))

    def transform(self, configuration: dict[str, Any]) -> Transform:
        import_module("timm.data")
        create = _imported("timm", "timm").data.create_transform
        transform = create(**configuration, is_training=False)
        return lambda picture: transform(Image.fromarray(picture))

    def network(self, name: str, pool: Pool, weights: Path | None) -> tuple[nn.Module, int]:
        timm = _imported("timm", "timm")
        more: dict[str, Any] = {}
        if weights is not None:  # timm's own way knows older formats, and is strict if told 0
            classifier = self._published(name).classifier or ()
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

    def full_name(self, name: str) -> str:
        clip = _imported("open_clip", "clip")
        architecture, _, tag = name.partition("@")
        if architecture not in clip.list_models():
            raise _unknown(f"open_clip:{name}", [f"open_clip:{key}" for key in clip.list_models()])
        tags = clip.list_pretrained_tags_by_model(architecture)
        if tag and tag not in tags:
            raise _unknown(f"open_clip:{name}", [f"open_clip:{architecture}@{key}" for key in tags])
        return name

    def _published(self, name: str) -> dict[str, Any]:
        architecture, _, tag = name.partition("@")
        return dict(_imported("open_clip", "clip").get_pretrained_cfg(architecture, tag))

    def published(self, name: str, download: bool) -> Path:
        found = self._published(name)
        hub, _, file = found.get("hf_hub", "").rpartition("/")
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        return published_file(f"open_clip:{name}", hub, files, found.get("url"), download)

    def trained_on(self, name: str) -> str:
        return WEB

    def configuration(self, name: str) -> dict[str, Any]:
        transform = import_module("open_clip.transform")
        sizes = _imported("open_clip", "clip").get_model_config(name.partition("@")[0])
        base = asdict(transform.PreprocessCfg(size=sizes["vision_cfg"].get("image_size", 224)))
        return dict(transform.merge_preprocess_dict(base, self._published(name)))

    def transform(self, configuration: dict[str, Any]) -> Transform:
        module = import_module("open_clip.transform")
        settings = module.PreprocessCfg(**configuration)
        transform = module.image_transform_v2(settings, is_train=False)
        return lambda picture: transform(Image.fromarray(picture))

    def network(self, name: str, pool: Pool, weights: Path | None) -> tuple[nn.Module, int]:
        clip = _imported("open_clip", "clip")
        quick = bool(self._published(name).get("quick_gelu"))
        architecture, towers = name.partition("@")[0], ("pretrained_image", "pretrained_text")
        logging.disable(logging.WARNING)  # it warns of random weights, which are loaded below
        try:
            model = clip.create_model(
                architecture, force_quick_gelu=quick, **dict.fromkeys(towers, False)
            )
        finally:
            logging.disable(logging.NOTSET)
        if weights is not None:
            clip.load_checkpoint(model, str(weights), weights_only=True)
        tower = model.visual
        if pool == "pooled":
            return tower, int(tower.output_dim)
        if pool == "cls" or not hasattr(tower, "output_tokens"):
            raise IiaeError(
                f"--pool {pool} does not apply to open_clip:{name}, which pools by itself",
                "leave --pool out",
            )
        tower.output_tokens = True
        return PatchTokens(tower, pool, 0), int(tower.conv1.out_channels)


TIMM, OPEN_CLIP = _Timm(), _OpenClip()


def published_file(
    name: str, hub: str | None, files: Sequence[str], url: str | None, download: bool
) -> Path:
    """The first of some files of a hub's repository, else of an address, that a cache holds.

    `download` fetches it. Raises IiaeError, naming what to fetch, if it is in neither.
    """
    if not hub and not url:
        raise IiaeError(
            f"{name} names no published weights",
            "pass --backbone-weights FILE or none, or name them: open_clip:NAME@PRETRAINED",
        )
    found = _of_hub(hub, files, download) if hub else _of_address(str(url), download)
    if isinstance(found, Path):
        return found
    address = f"https://huggingface.co/{hub}/resolve/main/{files[0]}" if hub else url
    what = f"{files[0]} of {hub}" if hub else Path(str(url)).name
    by_hand = f"fetch {address} and pass --backbone-weights FILE"
    raise IiaeError(
        f"the weights of {name} ({what}) {found}",
        by_hand if download else f"{by_hand}, or pass --download",
    )


def _of_hub(hub: str, files: Sequence[str], download: bool) -> Path | str:
    """A file, or why there is none."""
    hf = _imported("huggingface_hub", "hub")
    for file in files:
        cached = hf.try_to_load_from_cache(hub, file)
        if isinstance(cached, str):
            return Path(cached)
    reason = ""
    for file in files if download else ():
        try:  # asked first, as a download without a network is tried for a minute
            hf.get_hf_file_metadata(hf.hf_hub_url(hub, file), timeout=10)
            return Path(hf.hf_hub_download(hub, file))
        except Exception as error:  # of half a dozen libraries below it
            reason = reason or " ".join(str(error).split())[:200]
    where = f"are not in the hub's cache {hf.constants.HF_HUB_CACHE}"
    return f"could not be downloaded: {reason}" if reason else where


def _of_address(url: str, download: bool) -> Path | str:
    """A file, or why there is none."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        if not path.is_file() and download:
            path.parent.mkdir(parents=True, exist_ok=True)
            begin = Path(url).stem.rpartition("-")[2]  # of the SHA-256
            torch.hub.download_url_to_file(url, str(path), begin, progress=False)
    except (OSError, RuntimeError) as error:
        return f"could not be downloaded: {error}"
    return path if path.is_file() else f"are not in torch's cache {path.parent}"


def _imported(module: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise IiaeError(
            f"this backbone needs the package {module}", f"pip install 'iiae-cli[{extra}]'"
        ) from error


def _unknown(name: str, known: Sequence[str]) -> IiaeError:
    near = difflib.get_close_matches(name, known, 3, 0.4) or list(known[:3])
    return IiaeError(f"no backbone is named '{name}'", f"near ones: {', '.join(near)}")
