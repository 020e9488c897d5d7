"""LPIPS against an oracle on random backbones; weights from files and torch's cache, no network."""

from pathlib import Path

import pytest
import torch
import torchmetrics
from torch.nn import functional
from torchvision import models

from iiae_cli.common.errors import IiaeError
from iiae_cli.evaluation.lpips import BACKBONES, Lpips, cache_file, lpips_measures, read_weights

# v0.1 compares the outputs of these ReLUs in torchvision's `features`.
COMPARED = {"alex": [1, 4, 7, 9, 11], "vgg": [3, 8, 15, 22, 29]}
SHIFT, SCALE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])


@pytest.fixture(scope="module", autouse=True)
def hub():
    """Other tests find torch's cache by TORCH_HOME, as if `set_dir` had never been called."""
    yield
    torch.hub._hub_dir = None


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """An empty torch cache, and no way to fill it."""

    def refuse(*arguments, **keywords):
        raise AssertionError("something was to be downloaded")

    torch.hub.set_dir(str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random weights in torchvision's layout, by network; linear layers take no room on disk."""
    paths = {}
    for net, backbone in BACKBONES.items():
        torch.manual_seed(0)
        with torch.device("meta"):
            shapes = models.get_model(backbone.architecture, weights=None).state_dict()
        state = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}
        for name, value in shapes.items():
            if name.startswith("features."):
                scale = 1.5 / value[0].numel() ** 0.5 if value.ndim == 4 else 0.1
                state[name] = torch.randn(value.shape) * scale
        paths[net] = tmp_path_factory.mktemp("weights") / f"{net}.pth"
        torch.save(state, paths[net])
    return paths


@pytest.fixture(scope="module")
def alex(files):
    return Lpips(*read_weights(files["alex"]))


def pictures(channels=3, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, channels, height, width, generator=generator) * 2 - 1


def oracle(net, path, a, b):
    """LPIPS of two pictures (3, H, W) in [−1, 1], as the paper's Eq. 1 says it, place by place."""
    with torch.device("meta"):
        network = models.get_model(BACKBONES[net].architecture, weights=None)
    network.load_state_dict(torch.load(path, weights_only=True), assign=True)
    features = network.features[: COMPARED[net][-1] + 1].double()
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    linear = torch.load(folder / f"{net}.pth", map_location="cpu", weights_only=True)
    x = ((torch.stack([a, b]) - SHIFT[:, None, None]) / SCALE[:, None, None]).double()
    total = 0.0
    for index, layer in enumerate(features):
        x = layer(x)
        if index in COMPARED[net]:
            weights = linear[f"lin{COMPARED[net].index(index)}.model.1.weight"].double().flatten()
            u, v = (one.flatten(1).T for one in x.detach())  # (places, channels)
            u, v = (one / (one.norm(dim=1, keepdim=True) + 1e-10) for one in (u, v))
            total += float(((u - v) ** 2 @ weights).mean())
    return total


@pytest.mark.parametrize("net, height, width", [("alex", 45, 64), ("vgg", 16, 24)])
def test_lpips_equals_the_oracle(files, net, height, width):
    a, b = pictures(3, height, width), pictures(3, height, width, seed=1)
    values = Lpips(*read_weights(files[net]))(a, b)
    assert values.shape == (2,) and not values.requires_grad and values.min() > 0.005
    expected = [oracle(net, files[net], *pair) for pair in zip(a, b, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-4)


def test_equal_pictures_have_no_distance_and_order_does_not_matter(alex):
    a, b = pictures(), pictures(seed=1)
    assert alex(a, a).tolist() == [0.0, 0.0]
    torch.testing.assert_close(alex(a, b), alex(b, a))
    torch.testing.assert_close(alex(a[:1], b[:1]), alex(a, b)[:1])


@pytest.mark.parametrize(
    "channels, shown, side, factor",
    [(1, [0, 0, 0], 32, 1), (2, [0, 0, 0], 31, 1), (4, [0, 1, 2], 30, 2), (3, [0, 1, 2], 15, 3)],
)
def test_grey_is_repeated_and_small_pictures_are_enlarged(alex, channels, shown, side, factor):
    a, b = (pictures(channels, side, 40, seed) for seed in (0, 1))
    large = [
        functional.interpolate(batch[:, shown], scale_factor=factor, mode="bilinear")
        for batch in (a, b)
    ]
    torch.testing.assert_close(alex(a, b), alex(*large))


def test_without_weights_each_reason_names_the_file_and_its_place(tmp_path):
    measures, missing = lpips_measures()
    assert not measures
    for reason, backbone in zip(missing, BACKBONES.values(), strict=True):
        path = tmp_path / "hub" / "checkpoints" / backbone.file_name
        assert reason.message == f"no {backbone.figure}: {path} is not there"
        assert reason.hint == (
            f"put torchvision's {path.name} into {path.parent}, or pass --lpips-weights FILE"
        )


def test_file_names_are_torchvisions():
    assert BACKBONES["alex"].file_name == Path(models.AlexNet_Weights.DEFAULT.url).name
    assert BACKBONES["vgg"].file_name == Path(models.VGG16_Weights.DEFAULT.url).name


def test_weights_are_found_in_torchs_cache_and_given_ones_go_first(files, alex):
    a, b = pictures(), pictures(seed=1)
    cache_file("alex").parent.mkdir(parents=True)
    state = torch.load(files["alex"], weights_only=True)
    torch.save({name: value * 0.5 for name, value in state.items()}, cache_file("alex"))
    cached, missing = lpips_measures()
    assert list(cached) == ["lpips"]
    assert [reason.message.split(":")[0] for reason in missing] == ["no lpips_vgg"]
    given, missing = lpips_measures([files["alex"]], nets=["alex"])
    assert not missing
    torch.testing.assert_close(given["lpips"](a, b), alex(a, b))
    assert not torch.allclose(cached["lpips"](a, b), alex(a, b))


def test_a_bad_cache_is_a_reason(files):
    cache_file("alex").parent.mkdir(parents=True)
    cache_file("alex").write_bytes(files["alex"].read_bytes()[:5000])
    cache_file("vgg").symlink_to(files["alex"])
    _, missing = lpips_measures()
    assert "cannot be read as weights" in missing[0].message
    assert "another network" in missing[1].message


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    "name, message",
    [
        ("absent.pth", "does not exist"),
        ("text.pth", "cannot be read as weights"),
        ("pickle.pth", "cannot be read as weights"),
        ("resnet.pth", "holds neither AlexNet nor VGG16"),
        (".", "is not a file"),
    ],
)
def test_a_given_file_that_does_not_fit_is_an_error(tmp_path, capsys, name, message):
    (tmp_path / "text.pth").write_text("no weights\n")
    torch.save({"features.0.weight": Harmful()}, tmp_path / "pickle.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(IiaeError, match=message) as caught:
        lpips_measures([tmp_path / name])
    assert str(tmp_path) in caught.value.message and ".pth" in caught.value.hint
    assert "this must not run" not in capsys.readouterr().out
