"""Backbones: the feature layer of every family, weights, preprocessing, and leaks."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
import torchvision
from class_sources import NETWORK
from helpers import refusal
from PIL import Image
from torch import nn

from iiae_cli.data import hubs
from iiae_cli.data.backbone import Preprocessing, Weights, build_backbone, find_weights
from iiae_cli.data.datafile import NONE_SEEN, UNKNOWN, Seen, refuse_leak

RANDOM = Weights("random")


def state():
    torch.manual_seed(5)
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
    [("vgg16", 4096), ("mobilenet_v2", 1280), ("squeezenet1_1", 512), ("vit_b_16", 768)],
)
def test_the_feature_layer_is_what_enters_the_classifier(name, width):
    with torch.device("meta"):
        assert build_backbone(name, RANDOM)[1] == width


def test_features_are_the_classifiers_input():
    torch.manual_seed(3)
    whole, inputs = torchvision.models.get_model(NETWORK, weights=None).eval(), []
    whole.fc.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    network, width = build_backbone(NETWORK, RANDOM, 3)
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole(pictures)
        features = network(pictures)
    assert width == 1024 and features.shape == (2, 1024)
    torch.testing.assert_close(features, inputs[0])


def test_random_weights_are_seeded_and_leave_the_callers_generator_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one, two, other = (
        build_backbone(NETWORK, RANDOM, seed)[0].conv1[0].weight for seed in (1, 1, 2)
    )
    torch.testing.assert_close(torch.rand(3), expected)
    assert torch.equal(one, two) and not torch.equal(one, other)


# ---- weights


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_is_loaded_without_its_classifier(tmp_path, wrapped):
    path, whole = tmp_path / "w.pth", state()
    saved = {**whole, "fc.weight": torch.zeros(7, 1024), "fc.bias": torch.zeros(7)}
    if wrapped:
        saved = {"state_dict": {f"module.{key}": values for key, values in saved.items()}}
    torch.save(saved, path)
    weights = find_weights(NETWORK, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (weights.kind, weights.path, weights.sha256) == ("file", path, digest)
    assert weights.seen == UNKNOWN and "cannot be told" in weights.trained_on
    loaded = build_backbone(NETWORK, weights)[0].state_dict()
    assert loaded and all(torch.equal(loaded[key], whole[key]) for key in loaded)
    assert not any(key.startswith("fc.") for key in loaded)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("conv1.0.weight"), 'Missing key(s) in state_dict: "conv1.0.weight"'),
        (lambda s: s.update(more=torch.zeros(1)), 'Unexpected key(s) in state_dict: "more"'),
        (lambda s: s.update({"conv1.0.weight": torch.zeros(24, 1, 3, 3)}), "size mismatch"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, said):
    changed = state()
    change(changed)
    torch.save(changed, tmp_path / "w.pth")
    weights = find_weights(NETWORK, str(tmp_path / "w.pth"))
    assert said in refusal(build_backbone, NETWORK, weights).message


@pytest.mark.parametrize("content", [b"", b"no weights", [1, 2], nn.Linear(2, 2)])
def test_unreadable_weights_are_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)  # a pickled module could run code
    error = refusal(build_backbone, NETWORK, find_weights(NETWORK, str(path)))
    assert f"{path} cannot be read as weights" in error.message
    assert "does not exist" in refusal(find_weights, NETWORK, str(tmp_path / "none.pth")).message


def test_published_weights_come_from_the_cache_or_not_at_all(hub, monkeypatch):
    error = refusal(find_weights, "vgg16", None)
    assert "vgg16-397923af.pth" in error.message and str(hub) in error.message
    url = "https://download.pytorch.org/models/vgg16-397923af.pth"
    assert url in error.hint and "--download" in error.hint
    asked = []

    def fetch(url, path, progress):
        asked.append((url, path))
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    error = refusal(find_weights, "vgg16", None, download=True)
    assert "could not be downloaded: no network" in error.message
    assert asked == [(url, str(hub / "vgg16-397923af.pth"))]
    (hub / "vgg16-397923af.pth").write_bytes(b"something else")
    error = refusal(find_weights, "vgg16", None)
    assert "is damaged" in error.message and "delete it" in error.hint


def test_a_published_file_is_known_by_its_hash(hub, tmp_path, monkeypatch):
    digest = hashlib.sha256(b"weights").hexdigest()
    known = replace(hubs.published("vgg16"), hashes=[digest[:8]])
    monkeypatch.setattr(hubs, "published", lambda _: known)
    for given in (None, tmp_path / "vgg16-397923af.pth"):
        (given or hub / "vgg16-397923af.pth").write_bytes(b"weights")
        weights = find_weights("vgg16", given and str(given))
        assert (weights.kind, weights.sha256, weights.seen) == ("imagenet", digest, NONE_SEEN)


# ---- leaks


def test_a_leak_is_what_was_seen_and_is_tested():
    seen = Seen(("ant", "teddy-bear"))
    assert seen.leak(["cat", "teddy_bear"]) == ["teddy_bear"] and seen.leak(["cat"]) == []
    assert UNKNOWN.leak(["cat"]) is None and UNKNOWN.and_also(["cat"]).leak(["cat"]) == ["cat"]
    refuse_leak(seen, ["cat"], "it", False)
    refuse_leak(seen, ["ant"], "it", True)
    error = refusal(refuse_leak, seen, ["ant", "cat"], "the backbone b", False)
    assert error.message == "the backbone b was trained on 1 of the test classes: ant"
    assert "--allow-leak" in error.hint
    for known in (seen, UNKNOWN, NONE_SEEN):
        assert Seen.of_data_file({"backbone": json.dumps(known.to_json())}) == known
    assert Seen.of_data_file({}) == UNKNOWN
    for damaged in ("[", "3", '{"classes_seen": 3}', '{"classes_seen": [3]}'):
        assert "is damaged" in refusal(Seen.of_data_file, {"backbone": damaged}).message


# ---- preprocessing


def test_preprocessing_by_hand(tmp_path):
    path, own = tmp_path / "p.png", hubs.published(NETWORK).transform
    Image.new("RGB", (8, 6), (0, 51, 255)).save(path)

    def values(domain, **switches):
        read = Preprocessing(**switches, configuration=own).reader(NETWORK, domain)
        assert read(path).shape == (3, 224, 224)
        return read(path)[:, 100, 100].tolist()

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain, inverted = [0.0, 0.2, 1.0], [1.0, 0.8, 0.0]
    normal = [(v - m) / s for v, m, s in zip(plain, mean, std, strict=True)]
    assert values("x", normalise=False) == pytest.approx(plain)
    assert values("x", normalise=False, invert_sketches=True) == pytest.approx(inverted)
    assert values("y", normalise=False, invert_sketches=True) == pytest.approx(plain)
    assert values("x") == pytest.approx(normal, abs=1e-6)
