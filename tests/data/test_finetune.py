"""Fine-tuning: it learns, draws classes evenly, resumes exactly, and its networks are kept with what they saw."""

from collections import Counter

import numpy as np
import pytest
import torch
from class_sources import NETWORK, class_folders
from helpers import StopAt
from torch import nn

from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.data import finetune
from iiae_cli.data.backbone import Preprocessing, Weights, build_backbone
from iiae_cli.data.feature_network import (
    FeatureNetwork,
    NetworkRecord,
    find_networks,
    load_network,
    save_network,
)
from iiae_cli.data.finetune import FineTuning, fine_tune
from iiae_cli.data.leaks import Seen

CPU = torch.device("cpu")
SETTINGS = FineTuning(epochs=3, batch_size=8)


class Body(nn.Module):
    """Small enough to fine-tune in no time; batch norm and dropout are what resuming could get wrong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 7, 7), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3)
        )

    def forward(self, pictures):
        return self.layers(pictures).mean((2, 3))


def network():
    return FeatureNetwork(Body(), 6, width=5)


def tune(folder, net, paths, settings=SETTINGS, **keywords):
    return fine_tune(
        net,
        paths,
        [path.parent.name for path in paths],
        settings=settings,
        **{
            "domain": "x",
            "preprocessing": Preprocessing(),
            "checkpoint": folder / "tuning.safetensors",
            "device": CPU,
            **keywords,
        },
    )


@pytest.fixture
def paths(tmp_path):
    return class_folders(tmp_path / "pictures", {"ant": 10, "bee": 4, "cow": 6})


def test_fine_tuning_tells_the_classes_apart(tmp_path, paths):
    net = network()
    untouched = {key: value.clone() for key, value in net.state_dict().items()}
    accuracy = tune(tmp_path, net, paths, FineTuning(epochs=12, batch_size=16))
    assert accuracy > 0.6 and not net.training  # chance is 1/3; dropout is on
    changed = [
        key for key, value in net.state_dict().items() if not torch.equal(value, untouched[key])
    ]
    assert {"embed.weight", "body.layers.0.weight"} <= set(changed)


def test_classes_are_drawn_evenly_whatever_their_size():
    tuner = finetune._Tuner(network(), 3, FineTuning(1, batch_size=300), "x", CPU)
    rows_of = [np.arange(100), np.array([100, 101]), np.arange(102, 110)]
    rows = np.concatenate([tuner.draw(rows_of, step) for step in range(10)])
    counts = Counter(np.searchsorted([100, 102], rows, side="right").tolist())
    assert all(abs(counts[one] - 1000) < 100 for one in range(3))
    assert len(set(rows.tolist())) == 110
    np.testing.assert_array_equal(tuner.draw(rows_of, 4), tuner.draw(rows_of, 4))
    other = finetune._Tuner(network(), 3, FineTuning(1, batch_size=300), "y", CPU)
    assert not np.array_equal(tuner.draw(rows_of, 4), other.draw(rows_of, 4))


def test_the_rate_falls_linearly_to_zero(tmp_path, paths, monkeypatch):
    rates = []
    learn = finetune._Tuner.learn

    def spy(self, *arguments):
        learn(self, *arguments)
        rates.extend(group["lr"] for group in self.optimizer.param_groups)
        assert all(group["momentum"] == 0.9 for group in self.optimizer.param_groups)

    monkeypatch.setattr(finetune._Tuner, "learn", spy)
    tune(tmp_path, network(), paths)
    assert rates == pytest.approx(
        [0.01 * (1 - step / 9) for step in range(9)]
    )  # 20 pictures by 8 are 3 steps


@pytest.mark.parametrize("stop_at", [2, 3, 7])
def test_an_interrupted_fine_tuning_ends_in_the_same_weights(tmp_path, paths, stop_at):
    whole, resumed = network(), network()
    accuracy = tune(tmp_path / "a", whole, paths)
    with pytest.raises(Interrupted) as stopped:
        tune(
            tmp_path / "b",
            network(),
            paths,
            stop=StopAt(stop_at - 1),
        )
    assert stopped.value.exit_code == 75 and f"step {stop_at} of 9" in stopped.value.where
    assert tune(tmp_path / "b", resumed, paths, workers=3) == accuracy
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_a_finished_fine_tuning_is_not_done_again(tmp_path, paths, monkeypatch):
    first = network()
    accuracy = tune(tmp_path, first, paths)
    monkeypatch.setattr(finetune._Tuner, "learn", lambda *_: pytest.fail("learnt again"))
    again = network()
    assert tune(tmp_path, again, paths) == accuracy
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items()
    )


def test_seeds_and_domains_differ(tmp_path, paths):
    nets = [network() for _ in range(4)]
    tune(tmp_path / "0", nets[0], paths)
    tune(tmp_path / "1", nets[1], paths)
    tune(tmp_path / "2", nets[2], paths, FineTuning(3, seed=1, batch_size=8))
    tune(tmp_path / "3", nets[3], paths, domain="y")
    first, same, *others = (net.embed.weight for net in nets)
    assert torch.equal(first, same) and not any(torch.equal(first, other) for other in others)


def test_the_callers_generator_is_left_alone(tmp_path, paths):
    net = network()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tune(tmp_path, net, paths)
    torch.testing.assert_close(torch.rand(2), expected)


def test_unreadable_pictures_are_left_out_of_their_batch(tmp_path, paths):
    for path in paths[::3]:
        path.write_bytes(b"broken")
    assert 0 <= tune(tmp_path, network(), paths) <= 1
    for path in paths:
        path.write_bytes(b"broken")
    with pytest.raises(IiaeError, match="no training picture of domain x"):
        tune(tmp_path / "none", network(), paths)


def test_a_loss_that_is_not_finite_stops(tmp_path, paths):
    net = network()
    with torch.no_grad():
        net.embed.weight.fill_(float("nan"))
    with pytest.raises(IiaeError, match="diverged at step 0") as caught:
        tune(tmp_path, net, paths)
    assert "--fine-tune-epochs 0" in caught.value.hint


def test_a_damaged_checkpoint_is_named(tmp_path, paths):
    (tmp_path / "tuning.safetensors").write_bytes(b"broken")
    with pytest.raises(IiaeError, match=r"tuning\.safetensors is damaged") as caught:
        tune(tmp_path, network(), paths)
    assert "--resume" in caught.value.hint


# ---- kept networks


def test_the_sketchy_recipe_on_vgg16():
    with torch.device("meta"):
        body, width = build_backbone("vgg16", Weights("random"))
        net = FeatureNetwork(body, width)
    kinds = [type(one).__name__ for one in body.classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Identity"]
    assert [one.out_features for one in body.classifier if isinstance(one, nn.Linear)] == [
        4096,
        4096,
    ]
    assert (net.embed.in_features, net.embed.out_features) == (
        4096,
        512,
    )  # and nothing after it: features are signed
    assert net(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 512)


def record(**changes):
    fine_tuning = {"epochs": 2, "accuracy": 0.5}
    values = {
        "backbone": NETWORK,
        "weights": {"weights": "random"},
        "preprocessing": Preprocessing(True, False),
    }
    return NetworkRecord(
        **{**values, "fine_tuning": fine_tuning, "seen": Seen(("ant", "bee")), **changes}
    )


def kept_network(seed):
    body, width = build_backbone(NETWORK, Weights("random"), seed)
    return FeatureNetwork(body, width, seed=seed)


def test_a_kept_network_comes_back_with_its_record(tmp_path):
    nets = {domain: kept_network(seed) for seed, domain in enumerate("xy")}
    for domain, net in nets.items():
        save_network(tmp_path / f"{domain}.safetensors", net, domain, record())
    found = find_networks(tmp_path)
    assert found["x"].record == found["y"].record == record()
    assert found["x"].sha256 != found["y"].sha256
    pictures = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        for domain, net in nets.items():
            torch.testing.assert_close(
                load_network(found[domain].path, domain)(pictures), net.eval()(pictures)
            )


def test_kept_networks_that_do_not_belong_together_are_refused(tmp_path):
    net = kept_network(0)

    def refused(said):
        with pytest.raises(IiaeError, match=said) as caught:
            find_networks(tmp_path)
        assert "--save-backbone" in caught.value.hint

    refused(r"x\.safetensors does not exist")
    save_network(tmp_path / "x.safetensors", net, "x", record())
    save_network(tmp_path / "y.safetensors", net, "x", record())
    refused("is the network of domain x")
    save_network(tmp_path / "y.safetensors", net, "y", record(preprocessing=Preprocessing()))
    refused("differ in more than their weights")
    (tmp_path / "y.safetensors").write_bytes(b"broken")
    refused("cannot be read")
    save_network(tmp_path / "x.safetensors", net, "x", record(backbone="squeezenet1_1"))
    with pytest.raises(IiaeError, match="does not hold the weights of its squeezenet1_1"):
        load_network(tmp_path / "x.safetensors", "x")
