"""timm's and open_clip's networks as backbones: the libraries' own features, and their weights."""

import json

import huggingface_hub
import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from helpers import refusal
from PIL import Image

from iiae_cli.data.backbone import Extractor, Preprocessing, build_backbone, find_weights
from iiae_cli.data.datafile import NONE_SEEN, UNKNOWN
from iiae_cli.data.hubs import published

VIT, RESNET = "timm:test_vit", "timm:test_resnet"
CPU = torch.device("cpu")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "p.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(noise).resize((300, 200)).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The name of a small CLIP."""
    path = tmp_path_factory.mktemp("configs") / "tiny-clip.json"
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(path)
    return "tiny-clip"


def features(name, weights, picture, pool="pooled", **switches):
    """What `prepare` and `encode` make of a picture, their record written and read as JSON."""
    network, width = build_backbone(published(name).name, weights, pool=pool)
    own = json.loads(json.dumps(published(name).transform))
    preprocessing = Preprocessing(**switches, configuration=own)
    extractor = Extractor(name, preprocessing, network, "x", CPU)
    [[row]] = extractor.features([[picture]])
    assert row.shape == (width,)
    return row[None]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", [VIT, RESNET])
def test_features_are_timms_own(tmp_path, picture, name, suffix):
    torch.manual_seed(1)
    model = timm.create_model(name.removeprefix("timm:")).eval()
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    weights = find_weights(name, str(path))
    assert (weights.kind, weights.seen) == ("file", UNKNOWN)
    config = timm.data.resolve_model_data_config(model)
    inputs = timm.data.create_transform(**config, is_training=False)(Image.open(picture))[None]
    with torch.no_grad():
        tokens = model.forward_features(inputs)
        expected = {"pooled": model.forward_head(tokens, pre_logits=True)}
        if name == VIT:
            expected |= {"mean": tokens[:, 1:].mean(1), "cls": tokens[:, 0]}
    for pool, wanted in expected.items():
        np.testing.assert_allclose(features(name, weights, picture, pool), wanted, atol=1e-5)
    inverted = features(name, weights, picture, invert_sketches=True)
    assert not np.allclose(inverted, expected["pooled"], atol=1e-3)
    if name == RESNET:
        assert "--pool" in refusal(build_backbone, published(name).name, weights, pool="mean").hint


def test_features_are_open_clips_own(tmp_path, picture, clip):
    model, _, transform = open_clip.create_model_and_transforms(clip)
    path = tmp_path / "w.pt"
    torch.save(model.state_dict(), path)
    weights = find_weights(f"open_clip:{clip}", str(path))
    inputs = transform(Image.open(picture).convert("RGB"))[None]
    model.visual.output_tokens = True
    with torch.no_grad():
        pooled, tokens = model.eval().visual(inputs)
    for pool, wanted in {"pooled": pooled, "mean": tokens.mean(1)}.items():
        found = features(f"open_clip:{clip}", weights, picture, pool)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["timm:test_vit2", "open_clip:ViT-B-32"])
def test_weights_of_another_network_are_refused(tmp_path, name):
    path = tmp_path / "w.safetensors"
    state = timm.create_model("test_vit").state_dict()
    safetensors.torch.save_file(state, path)
    weights = find_weights(name, str(path))
    assert "does not fit" in refusal(build_backbone, published(name).name, weights).message


def test_a_name_is_completed_by_its_weights_tag_or_refused():
    assert published("timm:resnet18").name == "timm:resnet18.a1_in1k"
    assert published("torchvision:vgg16").name == "vgg16"
    assert "timm:resnet18" in refusal(published, "timm:resnet81").hint
    assert "timm:resnet18." in refusal(published, "timm:resnet18.a1_in2k").hint
    assert "ViT-B-32" in refusal(published, "open_clip:ViT-B-31").hint
    assert "@openai" in refusal(published, "open_clip:ViT-B-32@openia").hint
    assert "timm:" in refusal(published, "keras:vgg16").hint
    assert "resnet18" in refusal(published, "resnet81").hint
    assert "googlenet" in refusal(published, "googlenet").message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18.a1_in1k", "ImageNet"),
        ("convnext_tiny.in12k_ft_in1k", "ImageNet"),
        ("vit_small_patch14_dinov2.lvd142m", "web images: cannot be told"),
        ("vit_base_patch16_clip_224.laion2b_ft_in1k", "web images: cannot be told"),
        ("resnet18.fb_swsl_ig1b_ft_in1k", "web images: cannot be told"),
    ],
)
def test_what_published_weights_have_seen_follows_from_their_tag(name, said):
    assert published(f"timm:{name}").trained_on == said


def test_published_weights_come_from_the_hubs_cache_or_one_error_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path = tmp_path / "model.safetensors"
    for download in (False, True):
        error = refusal(find_weights, "timm:resnet18", None, download=download)
        assert "model.safetensors of timm/resnet18.a1_in1k" in error.message
        assert "huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors" in error.hint
        assert "--backbone-weights FILE" in error.hint
        assert ("--download" in error.hint) == (not download)
    assert "offline" in error.message
    error = refusal(find_weights, "open_clip:ViT-B-32", None)
    assert "names no published weights" in error.message and "@PRETRAINED" in error.hint
    error = refusal(find_weights, "open_clip:ViT-B-32@laion2b_s34b_b79k", None)
    assert "CLIP-ViT-B-32-laion2B-s34B-b79K" in error.hint
    path.write_bytes(b"weights")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(path))
    weights = find_weights("timm:resnet18", None)
    assert (weights.kind, weights.path, weights.seen) == ("published", path, NONE_SEEN)
    assert weights.trained_on == "ImageNet"
    assert find_weights("timm:vit_small_patch14_dinov2", None).seen == UNKNOWN
