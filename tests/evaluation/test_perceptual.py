"""LPIPS against an oracle on random backbones, no network; a judge that reads what is there."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from helpers import refusal
from torch import nn
from torch.nn import functional
from torchvision import models

from iiae_cli.common.files import sha256_of
from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation import perceptual
from iiae_cli.evaluation.perceptual import (
    BACKBONES,
    judged_translations,
    lpips_measures,
    train_judge,
)
from iiae_cli.evaluation.translation import Subject, l1
from iiae_cli.inference.trained import Encoded, TrainedModel

NETS = tuple(BACKBONES)
# v0.1 compares the outputs of these ReLUs in torchvision's `features`.
COMPARED = {"alex": [1, 4, 7, 9, 11], "vgg": [3, 8, 15, 22, 29]}
SHIFT, SCALE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


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


def measure(files, net):
    (measured,) = lpips_measures([files[net]], "cpu", [net]).values()
    return measured


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
            u, v = (place.flatten(1).T for place in x.detach())  # (places, channels)
            u, v = (row / (row.norm(dim=1, keepdim=True) + 1e-10) for row in (u, v))
            total += float(((u - v) ** 2 @ weights).mean())
    return total


@pytest.mark.parametrize("net, height, width", [("alex", 45, 64), ("vgg", 16, 24)])
def test_lpips_equals_the_oracle(files, net, height, width):
    a, b = pictures(3, height, width), pictures(3, height, width, seed=1)
    values = measure(files, net)(a, b)
    assert values.shape == (2,) and not values.requires_grad and values.min() > 0.005
    expected = [oracle(net, files[net], *pair) for pair in zip(a, b, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "channels, shown, side, factor",
    [(1, [0, 0, 0], 32, 1), (2, [0, 0, 0], 31, 1), (4, [0, 1, 2], 30, 2), (3, [0, 1, 2], 15, 3)],
)
def test_grey_is_repeated_and_small_pictures_are_enlarged(files, channels, shown, side, factor):
    alex, (a, b) = measure(files, "alex"), (pictures(channels, side, 40, n) for n in (0, 1))
    large = [
        functional.interpolate(batch[:, shown], scale_factor=factor, mode="bilinear")
        for batch in (a, b)
    ]
    torch.testing.assert_close(alex(a, b), alex(*large))


def cache_file(net):
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net].file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_without_weights_a_warning_names_each_file_and_what_to_do(capsys):
    assert lpips_measures([], "cpu", NETS) == {}
    alex, vgg = capsys.readouterr().err.splitlines()
    assert alex.startswith(f"warning: no lpips: {cache_file('alex')} does not exist")
    assert "no lpips_vgg" in vgg and "--download" in vgg and "--lpips-weights" in vgg


@pytest.mark.parametrize("whole", [True, False])
def test_weights_are_downloaded_into_the_cache_and_checked_by_their_name(files, monkeypatch, whole):
    name = f"net-{sha256_of(files['alex'])[:8] if whole else '12345678'}.pth"
    files["alex"].with_name(name).symlink_to(files["alex"])
    monkeypatch.setattr(perceptual, "WEIGHTS_SERVER", files["alex"].parent.as_uri())
    monkeypatch.setitem(BACKBONES, "alex", BACKBONES["alex"]._replace(file_name=name))
    monkeypatch.setattr(perceptual, "lpips", lambda *_: l1)
    path = cache_file("alex")
    if whole:
        assert list(lpips_measures([], "cpu", ["alex"], download=True)) == ["lpips"]
    else:
        error = refusal(lpips_measures, [], "cpu", ["alex"], download=True)
        assert name in error.message and "--lpips-weights" in error.hint
    assert path.exists() == whole


def test_weights_are_found_in_torchs_cache_and_given_ones_go_first(files):
    assert BACKBONES["alex"].file_name == Path(models.AlexNet_Weights.DEFAULT.url).name
    assert BACKBONES["vgg"].file_name == Path(models.VGG16_Weights.DEFAULT.url).name
    both = pictures(), pictures(seed=1)
    state = torch.load(files["alex"], weights_only=True)
    state["features.0.weight"] *= 0.5
    torch.save(state, cache_file("alex"))
    cached = lpips_measures([], "cpu", NETS)
    given = lpips_measures([files["alex"]], "cpu", NETS)
    assert list(cached) == list(given) == ["lpips"]
    assert not torch.allclose(cached["lpips"](*both), given["lpips"](*both))


@pytest.mark.parametrize(
    "content, message", [("damaged", "cannot be read as weights"), ("vgg", "does not hold alexnet")]
)
def test_a_file_of_the_cache_or_a_given_one_that_does_not_fit_is_refused(files, content, message):
    wrong = files["vgg"].read_bytes() if content == "vgg" else files["alex"].read_bytes()[:5000]
    cache_file("alex").write_bytes(wrong)
    error = refusal(lpips_measures, [], "cpu", ["alex"])
    assert message in error.message and "--lpips none" in error.hint
    given = cache_file("alex").with_name("given.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, given)
    error = refusal(lpips_measures, [given], "cpu", NETS)
    assert "given.pth does not hold alexnet or vgg16" in error.message


# ---- the judge

SIDE = 16


def painted(shapes, colours):
    """A cross (0), a frame (1) or a bar (2) of a colour on black: (N, 16, 16, 3) uint8."""
    masks = np.zeros((3, SIDE, SIDE), bool)
    masks[0, 6:10], masks[0, :, 6:10] = True, True
    masks[1, 2:14, 2:14] = True
    masks[1, 5:11, 5:11] = False
    masks[2, 2:14, 3:7] = True
    return (masks[shapes][..., None] * colours[:, None, None, :]).astype(np.uint8)


def painted_split(count, seed):
    draw = np.random.default_rng(seed)
    shapes = draw.integers(0, 3, count)
    colours = {domain: draw.integers(40, 256, (count, 3)).astype(np.uint8) for domain in "xy"}
    names, ids = [f"shape {shape}" for shape in shapes], [str(number) for number in range(count)]
    sides = [Side(painted(shapes, colours[domain]), ids, names) for domain in "xy"]
    factors = {f"{domain}_color": colours[domain] for domain in "xy"}
    return Split(*sides, factors={**factors, "y_name": np.array([b"no number"] * count)})


class Painter(nn.Module):
    """A model that translates perfectly, or loses on purpose what it is told to lose."""

    exclusive_dim = 3

    def __init__(self, loses=""):
        super().__init__()
        self.loses = loses

    def decode(self, target, shared, exclusive):
        shapes = shared[:, 0].long().numpy()
        colours = (127.5 + 50 * exclusive.double().numpy()).clip(40, 255)
        if self.loses == "class":
            shapes = np.zeros_like(shapes)
        if self.loses == "colour":
            colours = np.full_like(colours, 150.0)
        return to_inputs(painted(shapes, colours), None)


MODEL = TrainedModel(Painter(), (SIDE, SIDE))


@pytest.fixture(scope="module")
def judges():
    train = painted_split(400, 0)
    return {domain: train_judge(train, domain, MODEL, steps=160) for domain in "xy"}


def judged(judges, loses="", samples=3):
    """What is read of 200 translations x → y."""
    test = painted_split(200, 1)
    shapes = np.array([float(label[-1]) for label in test.x.labels], np.float32)[:, None]
    colours = [(test.factors[f"{domain}_color"].astype(np.float32) - 127.5) / 50 for domain in "xy"]
    x, y = (Encoded(shared_mean=shapes, exclusive_mean=own) for own in colours)
    trained = TrainedModel(Painter(loses), (SIDE, SIDE))
    found = judged_translations(Subject(trained, {"x": x, "y": y}, test), judges, samples)
    assert found["y_to_x"].keys() == {"class", "x_color"}
    return found["x_to_y"]["class"], found["x_to_y"]["y_color"]


def test_a_perfect_translation_is_read_as_well_as_real_pictures(judges):
    kept, colour = judged(judges)
    assert min(kept["real"], kept["guided"], kept["sampled"]) >= 0.99 and kept["n"] == 200
    assert colour["error_guided"] < 0.05
    assert colour["error_guided"] == pytest.approx(colour["error_real"], abs=0.02)
    assert 0.2 < colour["spread_sampled"] < 0.3  # 50/215 of the range, a little less where clipped
    assert 0.24 < colour["spread_real"] < 0.33  # of a uniform distribution: 0.289


def test_what_is_lost_shows(judges):
    kept, colour = judged(judges, "class")
    assert kept["real"] >= 0.99 and colour["error_guided"] < 0.1
    assert 0.2 < kept["guided"] < 0.45 and 0.2 < kept["sampled"] < 0.45
    kept, colour = judged(judges, "colour")
    assert kept["guided"] >= 0.99
    assert colour["error_guided"] > 0.2 and colour["spread_sampled"] < 0.02
    kept, colour = judged(judges, samples=0)
    assert kept["sampled"] is None and colour["spread_sampled"] is None


def test_judges_repeat_themselves_and_leave_the_random_state_alone():
    def weights(train, seed):
        judge = train_judge(train, "y", MODEL, seed, steps=3)
        return torch.cat([values.flatten() for values in judge.state_dict().values()])

    train, before = painted_split(40, 0), torch.get_rng_state()
    first, again, other = (weights(train, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    order = np.random.default_rng(3).permutation(40)  # rows that are named by pairs
    pairs = np.stack([np.arange(40), np.argsort(order)], 1)
    scattered = Split(train.x, train.y.take(order), train.factors, pairs)
    assert torch.equal(first, weights(scattered, 1))


def test_large_pictures_are_shrunk():
    judge = train_judge(painted_split(8, 0), "x", TrainedModel(Painter(), (200, 100)), steps=1)
    pictures = torch.rand(3, 3, 200, 100)
    shrunk = functional.interpolate(pictures, size=(64, 64), mode="area")
    np.testing.assert_allclose(judge.read([pictures])[1], judge.read([shrunk])[1], atol=1e-6)


def test_the_command_judges_translations(iiae, trained, monkeypatch):
    monkeypatch.setattr(train_judge, "__defaults__", (0, 2))  # 1500 take half a minute
    base = ("evaluate", "--run", trained.run, "--judge", "--lpips", "none")
    outcome = iiae(*base, "--task", "translation", "--samples", 1, "--json")
    assert outcome.code == 0, outcome.err
    judged = outcome.json["judged"]["x_to_y"]
    assert set(judged) == {"class", "y_color"} and judged["class"]["n"] == 300
    assert outcome.json["protocol"]["judge_steps"] == 1500
    refused = iiae(*base)
    assert refused.code == 2 and "there are none" in refused.error()[0]
