"""Backbones: the feature layer of every family, weights from files and from the cache, preprocessing."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from class_sources import NETWORK
from torch import nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.data import backbone
from iiae_cli.data.backbone import Preprocessing, Weights, build_backbone, final_layer, find_weights
from iiae_cli.data.leaks import NONE_SEEN, UNKNOWN, Seen, refuse_leak

RANDOM = Weights("random")


def refusal(call, *arguments, **keywords):
    with pytest.raises(IiaeError) as caught:
        call(*arguments, **keywords)
    assert caught.value.hint
    return caught.value


def state(seed=5):
    torch.manual_seed(seed)
    return torchvision.models.get_model(NETWORK, weights=None).state_dict()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


# ---- the feature layer


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *(("vgg16", 4096), ("resnet18", 512), ("mobilenet_v2", 1280), ("mobilenet_v3_small", 1024)),
        *(
            ("squeezenet1_1", 512),
            ("densenet121", 1024),
            ("convnext_tiny", 768),
            ("vit_b_16", 768),
            ("swin_t", 768),
        ),
        *(
            ("googlenet", 1024),
            ("inception_v3", 2048),
            ("efficientnet_b0", 1280),
            ("maxvit_t", 512),
        ),
    ],
)
def test_the_feature_layer_is_what_enters_the_classifier(name, width):
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, **extra)
    last = network.get_submodule(final_layer(network))
    assert (last.in_features if isinstance(last, nn.Linear) else last.in_channels) == width


def test_features_are_the_classifiers_input():
    features, width = build_backbone(NETWORK, RANDOM, 3)
    whole = backbone.bare_backbone(NETWORK, 3).eval()
    seen = []
    whole.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pictures = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        whole(pictures)
        found = features(pictures)
    assert width == 1024 and found.shape == (2, 1024)
    torch.testing.assert_close(found, seen[0])


def test_a_convolution_as_classifier_gives_pooled_features():
    features, width = build_backbone("squeezenet1_1", RANDOM)
    with torch.no_grad():
        assert features(torch.rand(1, 3, 224, 224)).shape == (1, 512) and width == 512


def test_second_classifiers_are_gone(monkeypatch):
    network, _ = build_backbone("googlenet", RANDOM)
    assert network.aux1 is None and not any(name.startswith("aux") for name in network.state_dict())
    with torch.no_grad():
        assert network.train()(torch.rand(2, 3, 224, 224)).shape == (2, 1024)


def test_random_weights_are_seeded_and_leave_the_callers_generator_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one, two, other = (build_backbone(NETWORK, RANDOM, seed)[0].state_dict() for seed in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["conv1.0.weight"], other["conv1.0.weight"])


# ---- weights


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}]
)
def test_a_state_dict_is_loaded_without_its_classifier(tmp_path, wrap):
    path, whole = tmp_path / "w.pth", state()
    torch.save(wrap({**whole, "fc.weight": torch.zeros(7, 1024), "fc.bias": torch.zeros(7)}), path)
    weights = find_weights(NETWORK, str(path))
    assert weights == Weights("file", path, hashlib.sha256(path.read_bytes()).hexdigest(), UNKNOWN)
    loaded = build_backbone(NETWORK, weights)[0].state_dict()
    assert loaded and all(torch.equal(loaded[key], whole[key]) for key in loaded)
    assert not any(key.startswith("fc.") for key in loaded)


def test_safetensors_say_which_classes_they_saw(tmp_path):
    path = tmp_path / "w.safetensors"
    whole = {key: value.contiguous() for key, value in state().items()}
    safetensors.torch.save_file(whole, path, metadata={"classes_seen": json.dumps(["cat", "ant"])})
    weights = find_weights(NETWORK, str(path))
    assert weights.seen == Seen(("ant", "cat")) and weights.kind == "file"
    loaded = build_backbone(NETWORK, weights)[0].state_dict()
    assert all(torch.equal(loaded[key], whole[key]) for key in loaded)
    safetensors.torch.save_file(whole, path)
    assert find_weights(NETWORK, str(path)).seen == UNKNOWN
    safetensors.torch.save_file(whole, path, metadata={"classes_seen": "3"})
    assert "cannot be read" in refusal(find_weights, NETWORK, str(path)).message
    safetensors.torch.save_file(whole, path, metadata={"schema": "iiae.backbone/1"})
    assert str(tmp_path) in refusal(find_weights, NETWORK, str(path)).hint


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    whole = state()
    for broken, said in (
        (
            {key: value for key, value in whole.items() if key != "conv1.0.weight"},
            "has no conv1.0.weight",
        ),
        ({**whole, "more": torch.zeros(1)}, "has more, which the network lacks"),
        ({**whole, "conv1.0.weight": torch.zeros(24, 1, 3, 3)}, "(24, 1, 3, 3), not (24, 3, 3, 3)"),
    ):
        torch.save(broken, path)
        assert said in refusal(build_backbone, NETWORK, find_weights(NETWORK, str(path))).message


def test_unreadable_weights_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    for content in (b"", b"no weights at all"):
        path.write_bytes(content)
        assert (
            str(path) in refusal(build_backbone, NETWORK, find_weights(NETWORK, str(path))).message
        )
    torch.save([1, 2], path)
    assert (
        "no state dict"
        in refusal(build_backbone, NETWORK, find_weights(NETWORK, str(path))).message
    )
    torch.save(nn.Linear(2, 2), path)  # a pickled module could run code
    assert (
        "cannot be read"
        in refusal(build_backbone, NETWORK, find_weights(NETWORK, str(path))).message
    )
    other = tmp_path / "w.safetensors"
    other.write_bytes(b"no weights at all")
    assert "cannot be read" in refusal(find_weights, NETWORK, str(other)).message
    assert "do not exist" in refusal(find_weights, NETWORK, str(tmp_path / "none.pth")).message


def test_published_weights_come_from_the_cache_or_not_at_all(hub, monkeypatch):
    error = refusal(find_weights, "vgg16", None)
    assert "vgg16-397923af.pth" in error.message and str(hub) in error.message
    assert (
        "https://download.pytorch.org/models/vgg16-397923af.pth" in error.hint
        and "--download" in error.hint
    )
    path = hub / "vgg16-397923af.pth"
    path.write_bytes(b"something else")
    assert "is damaged" in refusal(find_weights, "vgg16", None).message
    digest = hashlib.sha256(b"something else").hexdigest()
    monkeypatch.setattr(backbone, "_published", lambda _: (f"vgg16-{digest[:8]}.pth", "https://x"))
    path.rename(hub / f"vgg16-{digest[:8]}.pth")
    weights = find_weights("vgg16", None)
    assert (weights.kind, weights.sha256, weights.seen) == ("imagenet", digest, NONE_SEEN)


def test_a_download_goes_into_the_cache_and_may_fail(hub, monkeypatch):
    asked = []

    def fetch(url, path, hash_prefix, progress):
        asked.append((url, path, hash_prefix))
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    error = refusal(find_weights, "vgg16", None, download=True)
    assert (
        "could not be downloaded: no network" in error.message
        and "--backbone-weights" in error.hint
    )
    assert asked == [
        (
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            str(hub / "vgg16-397923af.pth"),
            "397923af",
        )
    ]


def test_a_published_file_by_another_path_is_known_by_its_hash(tmp_path, monkeypatch):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights")
    assert find_weights("vgg16", str(path)).seen == UNKNOWN
    prefix = hashlib.sha256(b"weights").hexdigest()[:8]
    monkeypatch.setattr(backbone, "_published_hashes", lambda _: ["00000000", prefix])
    assert find_weights("vgg16", str(path)).kind == "imagenet"
    monkeypatch.undo()
    assert backbone._published_hashes("vgg16")[0] == "397923af"


def test_an_unknown_backbone_is_refused_with_near_names():
    error = refusal(find_weights, "resnet81", "none")
    assert "resnet81" in error.message and "resnet18" in error.hint
    assert find_weights(NETWORK, "none") == RANDOM


# ---- leaks


def test_a_leak_is_what_was_seen_and_is_tested():
    seen = Seen(("ant", "teddy-bear"))
    assert seen.leak(["cat", "teddy_bear"]) == ["teddy_bear"] and seen.leak(["cat"]) == []
    assert UNKNOWN.leak(["cat"]) is None and UNKNOWN.and_also(["cat"]).leak(["cat"]) == ["cat"]
    refuse_leak(seen, ["cat"], "it", False)
    refuse_leak(seen, ["ant"], "it", True)
    error = refusal(refuse_leak, seen, ["ant", "cat"], "the backbone b", False)
    assert (
        error.message == "the backbone b was trained on 1 of the test classes: ant"
        and "--allow-leak" in error.hint
    )
    assert UNKNOWN.to_json() == {"classes_seen": None, "classes_seen_complete": False}
    assert NONE_SEEN.to_json() == {"classes_seen": [], "classes_seen_complete": True}


# ---- preprocessing


def test_preprocessing_by_hand():
    pictures = np.array([[[[0, 51, 255]]]], np.uint8)
    cpu = torch.device("cpu")

    def values(domain, **switches):
        return Preprocessing(**switches).tensor(pictures, domain, cpu).flatten().tolist()

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain, inverted = [0.0, 0.2, 1.0], [1.0, 0.8, 0.0]
    assert values("x", normalise=False) == pytest.approx(plain)
    assert values("x", normalise=False, invert_sketches=True) == pytest.approx(inverted)
    assert values("y", normalise=False, invert_sketches=True) == pytest.approx(plain)
    assert values("x") == pytest.approx(
        [(v - m) / s for v, m, s in zip(plain, mean, std, strict=True)], abs=1e-6
    )
    many = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    assert Preprocessing().tensor(many, "y", cpu).shape == (2, 3, 3, 4)
