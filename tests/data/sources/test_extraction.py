"""Fine-tuning learns, draws classes evenly, resumes exactly, and keeps its networks."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from class_sources import NETWORK, class_folders
from helpers import StopAt, refusal
from safetensors.torch import load_file
from torch import nn

from iiae_cli.common.errors import Interrupted
from iiae_cli.data import backbone
from iiae_cli.data.datafile import Seen, Side
from iiae_cli.data.hubs import published
from iiae_cli.data.sources.extraction import FineTuning, choose_networks, fine_tune
from iiae_cli.data.sources.plan import PrepareOptions

CPU = torch.device("cpu")
SETTINGS = FineTuning(epochs=3, batch_size=8)  # of 20 pictures: 9 steps


class Body(nn.Module):
    """Small; batch norm and dropout are what resuming could get wrong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 7, 7), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3)
        )

    def forward(self, pictures):
        return self.layers(pictures).mean((2, 3))


def network():
    return backbone.FeatureNetwork(Body(), 6, width=5)


def extractor_of(net, workers=1):
    preprocessing = backbone.Preprocessing(configuration=published(NETWORK).transform)
    return backbone.Extractor(NETWORK, preprocessing, net, "x", CPU, workers)


def tune(folder, net, paths, settings=SETTINGS, *, workers=1, **more):
    side = Side(np.array(paths, object), [], [path.parent.name for path in paths])
    checkpoint = folder / "tuning.safetensors"
    fine_tune(extractor_of(net, workers), side, settings, checkpoint, **more)


def equal(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(values, states[1][key]) for key, values in states[0].items())


@pytest.fixture
def paths(tmp_path):
    return class_folders(tmp_path / "pictures", {"ant": 10, "bee": 4, "cow": 6})


def test_fine_tuning_tells_the_classes_apart_and_leaves_the_callers_generator_alone(
    tmp_path, paths
):
    net, before = network(), network()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tune(tmp_path, net, paths, FineTuning(epochs=40, batch_size=16))
    torch.testing.assert_close(torch.rand(2), expected)
    assert not torch.equal(net.embed.weight, before.embed.weight)
    assert not torch.equal(net.body.layers[0].weight, before.body.layers[0].weight)
    kept = load_file(tmp_path / "tuning.safetensors")
    with torch.no_grad():
        features = net.eval()(next(extractor_of(net).inputs([paths]))[1])
        logits = features @ kept["classifier.weight"].T + kept["classifier.bias"]
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([10, 4, 6]))
    assert (logits.argmax(1) == labels).float().mean() > 0.9  # chance is 1/3


def test_classes_are_drawn_evenly_whatever_their_size(tmp_path, paths, monkeypatch):
    counts, inputs = Counter(), backbone.Extractor.inputs

    def spy(extractor, batches):
        drawn = list(batches)
        counts.update(path for batch in drawn for path in batch)
        return inputs(extractor, drawn[:1])

    monkeypatch.setattr(backbone.Extractor, "inputs", spy)
    tune(tmp_path, network(), paths, FineTuning(100, batch_size=20))
    assert set(counts) == set(paths)
    by_class = Counter()
    for path, count in counts.items():
        by_class[path.parent.name] += count
    assert all(abs(by_class[name] - 2000 / 3) < 80 for name in ("ant", "bee", "cow"))


@pytest.mark.parametrize("stop_at", [2, 3, 7])
def test_an_interrupted_fine_tuning_ends_in_the_same_weights(tmp_path, paths, stop_at):
    whole, resumed, again = network(), network(), network()
    tune(tmp_path / "a", whole, paths)
    with pytest.raises(Interrupted) as stopped:
        tune(tmp_path / "b", network(), paths, stop=StopAt(stop_at - 1))
    assert stopped.value.exit_code == 75 and f"step {stop_at}" in stopped.value.where
    tune(tmp_path / "b", resumed, paths, workers=3)
    assert equal(whole, resumed)
    for path in paths:  # a finished one is not done again
        path.unlink()
    tune(tmp_path / "b", again, paths)
    assert equal(whole, again)


def test_unreadable_pictures_are_left_out_of_their_batch(tmp_path, paths):
    for path in paths[::3]:
        path.write_bytes(b"broken")
    net = network()
    tune(tmp_path, net, paths)
    assert not equal(net, network())
    (tmp_path / "tuning.safetensors").write_bytes(b"broken")
    error = refusal(tune, tmp_path, network(), paths)
    assert "tuning.safetensors is damaged" in error.message and "--resume" in error.hint


def test_a_diverging_loss_is_named(tmp_path, paths):
    net = network()
    torch.nn.init.constant_(net.embed.weight, float("nan"))
    error = refusal(tune, tmp_path, net, paths)
    assert "diverged at step 0" in error.message and "--fine-tune-epochs 0" in error.hint


# ---- kept networks


def test_the_sketchy_recipe_on_vgg16():
    with torch.device("meta"):
        body, width = backbone.build_backbone("vgg16", backbone.Weights("random"))
        net = backbone.FeatureNetwork(body, width)
    kinds = [type(layer).__name__ for layer in body.classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Identity"]
    assert [body.classifier[place].out_features for place in (0, 3)] == [4096, 4096]
    # Nothing follows the linear layer: features are signed.
    assert net(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 512)


def test_a_kept_network_comes_back_with_its_record(tmp_path):
    body, width = backbone.build_backbone(NETWORK, backbone.Weights("random"))
    net, seen = backbone.FeatureNetwork(body, width), Seen(("ant", "bee"))
    raw = backbone.Preprocessing(invert_sketches=True, normalise=False)
    record = backbone.NetworkRecord(NETWORK, "pooled", {}, raw, {"epochs": 2}, seen)
    backbone.save_network(tmp_path, net, "x", record)
    assert backbone.read_record(tmp_path, "x") == record
    kept = backbone.Weights("fine-tuned", tmp_path)
    assert equal(backbone.network_of(NETWORK, kept, "x"), net)
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes())
    error = refusal(backbone.read_record, tmp_path, "y")
    assert "is the network of domain x" in error.message and "--save-backbone" in error.hint
    backbone.save_network(tmp_path, net, "y", record)
    options = PrepareOptions(backbone_weights=str(tmp_path))
    assert choose_networks(options, None, 0).seen == seen
    backbone.save_network(tmp_path, net, "x", replace(record, backbone="squeezenet1_1"))
    error = refusal(choose_networks, options, None, 0)
    assert f"networks of squeezenet1_1 and {NETWORK}" in error.message
    assert "is damaged" in refusal(backbone.network_of, NETWORK, kept, "x").message
