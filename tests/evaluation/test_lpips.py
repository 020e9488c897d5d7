"""LPIPS against an oracle on random backbones; weights from files and torch's cache, never from the network."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
import torchvision
from safetensors.torch import save_file
from torchvision import models

from iiae_cli.common.errors import IiaeError
from iiae_cli.evaluation.lpips import (
    BACKBONES,
    LpipsUnavailable,
    cache_file,
    lpips_measures,
    lpips_network,
)

# Convolutions by their index in torchvision's `features`: (index, stride, padding); a number is a max pool's window.
ALEX = [(0, 4, 2), 3, (3, 1, 2), 3, (6, 1, 1), (8, 1, 1), (10, 1, 1)]
VGG = [(0, 1, 1), (2, 1, 1), 2, (5, 1, 1), (7, 1, 1), 2, (10, 1, 1), (12, 1, 1), (14, 1, 1), 2]
VGG += [(17, 1, 1), (19, 1, 1), (21, 1, 1), 2, (24, 1, 1), (26, 1, 1), (28, 1, 1)]
LAYERS = {"alex": ALEX, "vgg": VGG}
# v0.1 compares these convolutions' outputs after their ReLU.
COMPARED = {"alex": [0, 3, 6, 8, 10], "vgg": [2, 7, 14, 21, 28]}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """An empty torch cache, and no way to fill it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*arguments, **keywords):
        raise AssertionError("something was to be downloaded")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random convolutions in torchvision's layout, by network."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for net, build in (("alex", models.alexnet), ("vgg", models.vgg16)):
        torch.manual_seed(0)
        with torch.device("meta"):
            network = build(weights=None)
        state = {}
        for name, value in network.features.state_dict().items():
            fan_in = value[0].numel() if value.ndim == 4 else 1
            scale = 1.5 / fan_in**0.5 if value.ndim == 4 else 0.1
            state[f"features.{name}"] = torch.randn(value.shape) * scale
        found[net] = folder / f"{net}.pth"
        torch.save({**state, "classifier.1.bias": torch.zeros(3)}, found[net])
    return found


def pictures(count=2, channels=3, height=32, width=32, seed=0):
    return (
        torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))
        * 2
        - 1
    )


def linear_weights(net):
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    state = torch.load(folder / f"{net}.pth", map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].double().flatten() for i in range(5)]


def oracle(net, state, a, b):
    """LPIPS of two pictures (3, H, W) in [−1, 1], as the paper's Eq. 1 says it, place by place."""
    stacks = []
    for picture in (a, b):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = ((picture - shift[:, None, None]) / scale[:, None, None])[None].double()
        kept = []
        for layer in LAYERS[net]:
            if isinstance(layer, int):
                x = F.max_pool2d(x, layer, 2)
                continue
            index, stride, padding = layer
            weight, bias = (
                state[f"features.{index}.{kind}"].double() for kind in ("weight", "bias")
            )
            x = F.conv2d(x, weight, bias, stride, padding).clamp(min=0)
            if index in COMPARED[net]:
                kept.append(x[0])
        stacks.append(kept)
    total = 0.0
    for p, q, weights in zip(*stacks, linear_weights(net), strict=True):
        places = []
        for row in range(p.shape[1]):
            for column in range(p.shape[2]):
                u, v = p[:, row, column], q[:, row, column]
                places.append(
                    (weights * (u / (u.norm() + 1e-10) - v / (v.norm() + 1e-10)) ** 2).sum()
                )
        total += torch.stack(places).mean().item()
    return total


# ---- the distance


@pytest.fixture(scope="module")
def networks(files):
    return {net: lpips_network(net, files[net]) for net in files}


@pytest.fixture(scope="module")
def alex(networks):
    return networks["alex"]


@pytest.mark.parametrize(
    "net, height, width", [("alex", 32, 32), ("alex", 45, 64), ("vgg", 16, 24)]
)
def test_lpips_equals_the_oracle(files, networks, net, height, width):
    state = torch.load(files[net], weights_only=True)
    a, b = pictures(2, 3, height, width), pictures(2, 3, height, width, seed=1)
    values = networks[net](a, b)
    assert values.shape == (2,) and not values.requires_grad
    for value, one, other in zip(values.tolist(), a, b, strict=True):
        assert value == pytest.approx(oracle(net, state, one, other), rel=1e-4)
        assert value > 0.005


def test_equal_pictures_have_no_distance_and_order_does_not_matter(alex):
    a, b = pictures(), pictures(seed=1)
    assert alex(a, a).tolist() == [0.0, 0.0]
    torch.testing.assert_close(alex(a, b), alex(b, a))
    torch.testing.assert_close(alex(a[:1], b[:1]), alex(a, b)[:1])


@pytest.mark.parametrize(
    "channels, shown", [(1, [0, 0, 0]), (2, [0, 0, 0]), (4, [0, 1, 2]), (5, [0, 1, 2])]
)
def test_pictures_of_any_channel_count(alex, channels, shown):
    a, b = pictures(2, channels), pictures(2, channels, seed=1)
    torch.testing.assert_close(alex(a, b), alex(a[:, shown], b[:, shown]))


@pytest.mark.parametrize(
    "height, width, factor", [(31, 40, 1), (30, 40, 2), (16, 16, 2), (15, 40, 3), (1, 1, 31)]
)
def test_pictures_too_small_for_the_network_are_enlarged(alex, height, width, factor):
    a, b = pictures(2, 3, height, width), pictures(2, 3, height, width, seed=1)
    size = (height * factor, width * factor)
    large = [F.interpolate(one, size=size, mode="bilinear") for one in (a, b)]
    torch.testing.assert_close(alex(a, b), alex(*large))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_least_side_is_the_networks_own(net):
    backbone = BACKBONES[net]
    with torch.device("meta"):
        features = models.get_model(backbone.architecture, weights=None).features[
            :-1
        ]  # v0.1 has no last pool
        side = backbone.least_side
        assert min(features(torch.zeros(1, 3, side, side)).shape) == 1
        with pytest.raises(RuntimeError, match="too small"):
            features(torch.zeros(1, 3, side - 1, side - 1))


# ---- weights


def test_file_names_are_torchvisions():
    assert BACKBONES["alex"].file_name == Path(models.AlexNet_Weights.IMAGENET1K_V1.url).name
    assert BACKBONES["vgg"].file_name == Path(models.VGG16_Weights.IMAGENET1K_V1.url).name


def test_without_weights_each_reason_names_the_file_and_its_place(tmp_path):
    found = lpips_measures()
    assert not found.measures
    for reason, backbone in zip(found.missing, BACKBONES.values(), strict=True):
        place = tmp_path / "torch" / "hub" / "checkpoints"
        assert reason.message == f"no {backbone.figure}: {place / backbone.file_name} is not there"
        assert (
            backbone.file_name in reason.hint
            and str(place) in reason.hint
            and "--lpips-weights" in reason.hint
        )
    with pytest.raises(LpipsUnavailable):
        lpips_network("alex")


def test_weights_are_found_in_torchs_cache_and_given_ones_go_first(files, alex, tmp_path):
    a, b = pictures(), pictures(seed=1)
    cache_file("alex").parent.mkdir(parents=True)
    state = torch.load(files["alex"], weights_only=True)
    torch.save({name: value * 0.5 for name, value in state.items()}, cache_file("alex"))
    cached = lpips_measures()
    assert list(cached.measures) == ["lpips"] and [one.message for one in cached.missing] != []
    save_file(state, tmp_path / "alex.safetensors")
    given = lpips_measures([tmp_path / "alex.safetensors"], nets=["alex"])
    assert not given.missing
    torch.testing.assert_close(given.measures["lpips"](a, b), alex(a, b))
    assert not torch.allclose(cached.measures["lpips"](a, b), alex(a, b))


def test_a_given_file_is_recognised_by_what_it_holds(files):
    found = lpips_measures([files["alex"]])
    assert list(found.measures) == ["lpips"]
    assert [reason.message.split(":")[0] for reason in found.missing] == ["no lpips_vgg"]


def test_building_moves_no_random_numbers(files):
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    lpips_network("alex", files["alex"])
    assert torch.rand(1) == wanted


def test_a_broken_cache_is_a_reason_and_a_broken_file_an_error(files, tmp_path):
    cache_file("alex").parent.mkdir(parents=True)
    cache_file("alex").write_bytes(files["alex"].read_bytes()[:5000])
    (reason,) = lpips_measures(nets=["alex"]).missing
    assert "cannot be read as weights" in reason.message
    cache_file("alex").unlink()
    cache_file("alex").symlink_to(files["vgg"])
    (reason,) = lpips_measures(nets=["alex"]).missing
    assert "another network" in reason.message


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    "name, message",
    [
        ("absent.pth", "does not exist"),
        ("text.pth", "cannot be read as weights"),
        ("text.safetensors", "cannot be read as weights"),
        ("empty.pth", "cannot be read as weights"),
        ("pickle.pth", "cannot be read as weights"),
        ("list.pth", "something else than tensors by name"),
        ("resnet.pth", "holds neither AlexNet nor VGG16"),
        ("vgg11.pth", "begins as VGG16 but has other layers"),
        (".", "cannot be read as weights"),
    ],
)
def test_a_given_file_that_does_not_fit_is_an_error(tmp_path, capsys, name, message):
    (tmp_path / "text.pth").write_text("no weights\n")
    (tmp_path / "text.safetensors").write_text("no weights\n")
    (tmp_path / "empty.pth").touch()
    torch.save({"features.0.weight": Harmful()}, tmp_path / "pickle.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg11.pth")
    with pytest.raises(IiaeError) as caught:
        lpips_measures([tmp_path / name])
    assert not isinstance(caught.value, LpipsUnavailable)
    assert message in caught.value.message and str(tmp_path) in caught.value.message
    assert ".pth" in caught.value.hint
    assert "this must not run" not in capsys.readouterr().out


def test_a_network_given_twice_or_asked_of_the_other_file_is_an_error(files):
    with pytest.raises(IiaeError, match="holds AlexNet again"):
        lpips_measures([files["alex"], files["alex"]])
    with pytest.raises(IiaeError, match="does not hold VGG16"):
        lpips_network("vgg", files["alex"])


def test_the_weights_of_another_release_of_torchmetrics_are_noticed(files, monkeypatch):
    """`_LPIPS` loads its linear weights leniently; unloaded ones are random, hence some negative."""
    from torchmetrics.functional.image import lpips

    monkeypatch.setattr(
        lpips.torch, "load", lambda *arguments, **keywords: {"renamed": torch.zeros(1)}
    )
    state = {name: torch.zeros(shape) for name, shape in alexnet_shapes().items()}
    from iiae_cli.evaluation.lpips import _build

    with pytest.raises(RuntimeError, match="linear weights"):
        _build("alex", state, "cpu")


def alexnet_shapes():
    with torch.device("meta"):
        features = torchvision.models.alexnet(weights=None).features
    return {f"features.{name}": value.shape for name, value in features.state_dict().items()}
