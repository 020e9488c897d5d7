"""The judge of translations: it reads what is there, and shows when class or colour got lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation.judge import judged_translations, train_judge
from iiae_cli.evaluation.retrieval import EncodedPairs
from iiae_cli.evaluation.translation import Subject
from iiae_cli.inference.trained import Encoded, TrainedModel

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
    pairs = EncodedPairs(*(Encoded(shared_mean=shapes, exclusive_mean=own) for own in colours))
    trained = TrainedModel(Painter(loses), (SIDE, SIDE))
    found = judged_translations(Subject(trained, pairs, test), judges, samples)
    assert found["y_to_x"].keys() == {"class", "x_color"}
    return found["x_to_y"]["class"], found["x_to_y"]["y_color"]


def test_a_perfect_translation_is_read_as_well_as_real_pictures(judges):
    kept, colour = judged(judges)
    assert min(kept["real"], kept["guided"], kept["sampled"]) >= 0.99 and kept["n"] == 200
    assert colour["error_guided"] < 0.05
    assert colour["error_guided"] == pytest.approx(colour["error_real"], abs=0.02)
    assert 0.2 < colour["spread_sampled"] < 0.3  # 50/215 of the range, a little less where clipped
    assert 0.24 < colour["spread_real"] < 0.33  # of a uniform distribution: 0.289


def test_a_lost_class_shows(judges):
    kept, colour = judged(judges, "class")
    assert kept["real"] >= 0.99
    assert 0.2 < kept["guided"] < 0.45 and 0.2 < kept["sampled"] < 0.45
    assert colour["error_guided"] < 0.1


def test_a_lost_colour_shows(judges):
    kept, colour = judged(judges, "colour")
    assert kept["guided"] >= 0.99
    assert colour["error_guided"] > 0.2 and colour["spread_sampled"] < 0.02


def test_without_samples_nothing_is_said_of_them(judges):
    kept, colour = judged(judges, samples=0)
    assert kept["sampled"] is None and colour["spread_sampled"] is None
    assert kept["guided"] >= 0.99


def weights(train, seed=0):
    judge = train_judge(train, "y", MODEL, seed, steps=3)
    return torch.cat([values.flatten() for values in judge.network.state_dict().values()])


def test_judges_repeat_themselves_and_leave_the_random_state_alone():
    train, before = painted_split(64, 0), torch.get_rng_state()
    first, again, other = (weights(train, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_rows_that_recur_in_pairs_keep_their_labels_and_factors():
    plain, order = painted_split(40, 0), np.random.default_rng(3).permutation(40)
    pairs = np.stack([np.arange(40), np.argsort(order)], 1)
    scattered = Split(plain.x, plain.y.take(order), plain.factors, pairs)
    assert torch.equal(weights(plain), weights(scattered))


def test_large_pictures_are_shrunk_and_a_missing_label_is_a_users_error():
    large = painted_split(8, 0)
    assert train_judge(large, "x", TrainedModel(Painter(), (200, 100)), steps=1).side == 64
    large.x.labels = None
    with pytest.raises(IiaeError, match="no labels") as caught:
        train_judge(large, "x", MODEL, steps=1)
    assert caught.value.hint == "leave --judge out"


def test_the_command_judges_translations(iiae, trained, monkeypatch):
    monkeypatch.setattr(train_judge, "__defaults__", (0, 2))  # 1500 take half a minute
    base = ("evaluate", "--run", trained.run, "--judge", "--lpips", "none")
    outcome = iiae(*base, "--task", "translation", "--samples", 1, "--json")
    assert outcome.code == 0, outcome.err
    judged = outcome.json["judged"]["x_to_y"]
    assert set(judged) == {"class", "y_color"} and judged["class"]["n"] == 300
    assert outcome.json["protocol"]["judge_steps"] == 1500
    refused = iiae(*base)
    assert refused.code == 2 and "none are made" in refused.error()[0]
