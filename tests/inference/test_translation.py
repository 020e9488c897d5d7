"""Translation and analogy against direct decoding."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import small_model

from iiae_cli.data.batches import to_inputs, to_pictures
from iiae_cli.inference.inputs import Block
from iiae_cli.inference.trained import TrainedModel, prior_samples, styles_of

SIZE = (16, 16)


def pictures(rows=5, channels=3, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (rows, 16, 16, channels), np.uint8)


def image_model(**options):
    model = small_model("maps", **options)
    for decoder in model.decoder.values():
        decoder.stages[-1].weight.data.mul_(50)  # so that outputs differ by more than a grey value
    return model


# ---- where exclusive latents come from


def test_samples_are_standard_normal_and_a_function_of_seed_and_row():
    many = prior_samples(50, range(40), 6, seed=7)
    assert many.shape == (40, 50, 6) and many.dtype == torch.float32
    assert float(many.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(many.std()) == pytest.approx(1.0, abs=0.03)
    assert len(torch.unique(many.reshape(-1, 6), dim=0)) == 2000  # no sample comes twice
    assert torch.equal(prior_samples(2, range(5, 9), 6, seed=7), many[5:9, :2])
    assert not torch.equal(prior_samples(50, range(40), 6, seed=8), many)


def test_an_analogy_takes_the_references_exclusive_mean_beside_samples():
    trained = TrainedModel(image_model(), SIZE)
    references = Block(pictures(rows=2, seed=4), [0, 1], ["a/1.png", "b/2.png"], [], [])
    styles = styles_of(trained, "x", references, samples=1, seed=0)
    latents, means = styles.exclusive([0, 4]), trained.encode(references.rows, "x").exclusive_mean
    assert styles.names == ["sample 1", "1.png", "2.png"]
    assert [item and item[1] for item in styles.pictures] == [None, "a/1.png", "b/2.png"]
    np.testing.assert_allclose(latents[:, 1:], np.stack([means, means]), atol=1e-6)
    assert torch.equal(latents[:, :1], prior_samples(1, [0, 4], 3, seed=0))


# ---- translation


@pytest.mark.parametrize(
    "source, target, channels", [("x", "y", 1), ("y", "x", 3), ("x", "x", 3), ("y", "y", 1)]
)
def test_each_row_is_decoded_with_each_of_its_exclusive_latents(source, target, channels):
    model = image_model()
    rows = pictures(channels=3 if source == "x" else 1)
    exclusive = prior_samples(2, range(5), 3, seed=0)
    found = TrainedModel(model, SIZE).translate(rows, source, target, exclusive)
    assert found.shape == (5, 2, 16, 16, channels) and found.dtype == np.uint8
    model.eval()
    with torch.no_grad():
        for row in range(5):
            shared = model.encode_shared(source, to_inputs(rows[row : row + 1], SIZE)).mean
            for sample in range(2):
                direct = to_pictures(model.decode(target, shared, exclusive[row, sample][None]))[0]
                np.testing.assert_allclose(found[row, sample].astype(int), direct, atol=1)
    assert (found[:, 0] != found[:, 1]).any()


@pytest.mark.parametrize("training", [True, False])
def test_batches_and_the_mode_change_nothing_and_the_mode_is_restored(training):
    model = image_model().train(training)
    trained, before = TrainedModel(model, SIZE), deepcopy(model.state_dict())
    rows, exclusive = pictures(30), prior_samples(3, range(30), 3, seed=2)  # 90 outputs
    whole = trained.translate(rows, "x", "y", exclusive).astype(int)
    parts = [trained.translate(rows[i : i + 1], "x", "y", exclusive[i : i + 1]) for i in range(30)]
    np.testing.assert_allclose(np.concatenate(parts).astype(int), whole, atol=1)
    assert np.ptp(whole) > 20 and model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_features_and_models_without_exclusive_latents_are_translated_too():
    rows = np.random.default_rng(5).normal(size=(4, 7)).astype(np.float32)
    drawn = prior_samples(2, range(4), 3, seed=0)
    for width, exclusive, count in ((3, drawn, 2), (0, None, 1)):
        model = small_model("features", exclusive_dim=width).eval()
        found = TrainedModel(model, None).translate(rows, "x", "y", exclusive)
        assert found.shape == (4, count, 5) and found.dtype == np.float32
        with torch.no_grad():
            shared = model.encode_shared("x", torch.from_numpy(rows)).mean
            direct = model.decode("y", shared, drawn[:, -1] if width else None)
        np.testing.assert_allclose(found[:, -1], direct, atol=1e-5)
