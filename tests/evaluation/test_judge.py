"""The judge of translations: it reads what is there, and says so when class or colour got lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation.judge import Judge, judged_translations, train_judge
from iiae_cli.evaluation.protocols import EncodedPairs
from iiae_cli.inference.trained import Encoded, TrainedModel

SIDE = 16
STEPS = 250


def painted(shapes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A cross (0), a frame (1) or a bar (2) of a colour on black: (N, 16, 16, 3) uint8."""
    masks = np.zeros((3, SIDE, SIDE), bool)
    masks[0, 6:10], masks[0, :, 6:10] = True, True
    masks[1, 2:14, 2:14] = True
    masks[1, 5:11, 5:11] = False
    masks[2, 2:14, 3:7] = True
    return (masks[shapes][..., None] * colours[:, None, None, :]).astype(np.uint8)


def painted_split(count: int, seed: int) -> Split:
    draw = np.random.default_rng(seed)
    shapes = draw.integers(0, 3, count)
    colours = {one: draw.integers(40, 256, (count, 3)).astype(np.uint8) for one in "xy"}
    names, ids = [f"shape {one}" for one in shapes], [str(number) for number in range(count)]
    return Split(
        *(Side(painted(shapes, colours[domain]), ids, names) for domain in "xy"),
        factors={
            "x_color": colours["x"],
            "y_color": colours["y"],
            "y_name": np.array([b"no number"] * count),
        },
    )


class Painter(nn.Module):
    """A model that translates perfectly, or loses on purpose what it is told to lose."""

    exclusive_dim = 3

    def __init__(self, loses: str = "") -> None:
        super().__init__()
        self.loses = loses

    def decode(self, target: str, shared: Tensor, exclusive: Tensor) -> Tensor:
        shapes = shared[:, 0].long().numpy()
        colours = (127.5 + 50 * exclusive.double().numpy()).clip(40, 255)
        if self.loses == "class":
            shapes = np.zeros_like(shapes)
        if self.loses == "colour":
            colours = np.full_like(colours, 150.0)
        return to_inputs(painted(shapes, colours), None)


def latents(split: Split) -> EncodedPairs:
    shapes = np.array([float(one[-1]) for one in split.x.labels or []], np.float32)[:, None]
    colours = ((split.factors[f"{one}_color"].astype(np.float32) - 127.5) / 50 for one in "xy")
    return EncodedPairs(*[Encoded(shared_mean=shapes, exclusive_mean=values) for values in colours])


@pytest.fixture(scope="module")
def judges() -> dict[str, Judge]:
    train = painted_split(600, 0)
    return {one: train_judge(train, one, size=(SIDE, SIDE), steps=STEPS) for one in "xy"}


def judged(
    judges: dict[str, Judge], loses: str = "", samples: int = 3
) -> dict[str, dict[str, float]]:
    test = painted_split(200, 1)
    found = judged_translations(
        TrainedModel(Painter(loses), (SIDE, SIDE)), judges, latents(test), test, samples=samples
    )
    assert found["x_to_y"].keys() == {"class", "y_color"} and found["y_to_x"].keys() == {
        "class",
        "x_color",
    }
    return found["x_to_y"]


def test_a_perfect_translation_is_read_as_well_as_real_pictures(judges) -> None:
    found = judged(judges)
    assert (
        found["class"]["real"] >= 0.99
        and found["class"]["guided"] >= 0.99
        and found["class"]["sampled"] >= 0.99
    )
    assert found["class"]["n"] == 200
    colour = found["y_color"]
    assert (
        colour["error_guided"] < 0.05 and abs(colour["error_guided"] - colour["error_real"]) < 0.02
    )
    assert 0.2 < colour["spread_sampled"] < 0.3  # 50/215 of the range, a little less where clipped
    assert 0.24 < colour["spread_real"] < 0.33  # of a uniform distribution: 0.289


def test_a_lost_class_is_seen(judges) -> None:
    found = judged(judges, "class")
    assert found["class"]["real"] >= 0.99
    assert 0.2 < found["class"]["guided"] < 0.45 and 0.2 < found["class"]["sampled"] < 0.45
    assert found["y_color"]["error_guided"] < 0.1


def test_a_lost_colour_is_seen(judges) -> None:
    found = judged(judges, "colour")
    assert found["class"]["guided"] >= 0.99
    assert found["y_color"]["error_guided"] > 0.2 and found["y_color"]["spread_sampled"] < 0.02


def test_without_samples_nothing_is_said_of_them(judges) -> None:
    found = judged(judges, samples=0)
    assert found["class"]["sampled"] is None and found["y_color"]["spread_sampled"] is None
    assert found["class"]["guided"] >= 0.99


def test_judges_repeat_themselves_and_leave_the_random_state_alone() -> None:
    train = painted_split(64, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    states = [
        train_judge(train, "y", size=(SIDE, SIDE), steps=3, seed=1).network.state_dict()
        for _ in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())
    other = train_judge(train, "y", size=(SIDE, SIDE), steps=3, seed=2).network.state_dict()
    assert any(not torch.equal(values, other[name]) for name, values in states[0].items())


def test_rows_that_recur_in_pairs_keep_their_labels_and_factors() -> None:
    plain = painted_split(40, 0)
    draw = np.random.default_rng(3)
    order = draw.permutation(40)
    scattered = Split(
        plain.x,
        plain.y.take(order),
        factors=plain.factors,
        pairs=np.stack([np.arange(40), np.argsort(order)], 1),
    )
    one, other = (
        train_judge(split, "y", size=(SIDE, SIDE), steps=5) for split in (plain, scattered)
    )
    for name, values in one.network.state_dict().items():
        assert torch.equal(values, other.network.state_dict()[name]), name


def test_large_pictures_are_shrunk_and_a_missing_label_is_a_users_error() -> None:
    large = painted_split(8, 0)
    assert train_judge(large, "x", size=(200, 100), steps=1).side == 64
    large.x.labels = None
    with pytest.raises(IiaeError, match="no labels") as caught:
        train_judge(large, "x", size=(SIDE, SIDE), steps=1)
    assert caught.value.hint == "leave --judge out"
