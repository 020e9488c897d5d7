"""Linear paths, which begin as a map of a description, pooled and attentive encoders."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch
import torch.nn.functional as F
from helpers import refusal

from iiae_cli.builders import build_model
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.data.datafile import DataInfo
from iiae_cli.extensions import descriptions
from iiae_cli.extensions.descriptions import (
    DIRECTIONS,
    EDGE_CELLS,
    VARIANCES,
    PictureDescription,
    colour_histograms,
    describe_cells,
    description_width,
    edge_directions,
    edge_strengths,
    patches,
)
from iiae_cli.extensions.encoders import (
    AttentionPooling,
    DescribedFlat,
    DescribedMaps,
    LinearPathFeatures,
    PooledNetworks,
    Wrap,
    described_rows,
    hold_linear_paths,
    start_linear_paths,
)
from iiae_cli.model.iiae import IIAE
from iiae_cli.model.objective import bound

# ---- descriptions


def ramp_edges(angle, sign=1.0):
    """Edges of a picture that brightens along an angle, without its border: (8, 12, 12)."""
    positions = torch.linspace(-0.5, 0.5, 16)
    ramp = math.cos(angle) * positions[None, :] + math.sin(angle) * positions[:, None]
    return edge_directions(sign * ramp[None, None])[0, :, 2:-2, 2:-2]


@pytest.mark.parametrize("direction", range(DIRECTIONS))
def test_a_ramp_has_all_its_strength_in_its_own_direction(direction):
    for sign in (1.0, -1.0):
        edges = ramp_edges(direction * math.pi / DIRECTIONS, sign)
        assert float(edges[direction].sum() / edges.sum()) > 0.999
        torch.testing.assert_close(edges.sum(dim=0), torch.full((12, 12), 0.5 / 15))


def test_edges_do_not_know_the_contrasts_sign_and_hardly_its_strength():
    picture = (torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    plain, negative, faint, blank = (
        edge_strengths(scale * picture, (8, 8), DIRECTIONS).flatten(1) for scale in (1, -1, 0.5, 0)
    )
    torch.testing.assert_close(plain, negative, atol=1e-3, rtol=0)
    assert torch.cosine_similarity(plain, faint) > 0.999
    assert blank.abs().max() == 0


@pytest.mark.parametrize(
    ("shape", "grid", "multiple"),
    [((3, 32, 32), (8, 8), 8), ((1, 30, 41), (4, 6), 16), ((4, 256, 256), (16, 16), 32)],
)
def test_descriptions_have_the_shapes_that_they_announce(shape, grid, multiple):
    pictures, channels = torch.rand(2, *shape) * 2 - 1, shape[0]
    cells = partial(describe_cells, grid=grid, multiple=multiple)
    whole = PictureDescription(channels, 6)
    whole.start(pictures)
    assert whole(pictures).shape == (2, description_width(channels, 6))
    assert cells(pictures).shape == (2, 16 + channels, *grid)
    for describe in (whole, cells):
        assert describe(pictures).isfinite().all()
        half = pictures.bfloat16()
        assert torch.equal(describe(half), describe(half.float()))


def test_a_map_tells_in_which_quarter_of_a_cell_an_edge_runs():
    picture = torch.zeros(1, 3, 32, 32)
    # Columns 14 and 15 see the edge: the right half of cells of the columns 12 to 15.
    picture[:, :, :, 15:] = 1.0
    described = describe_cells(picture, (8, 8), 8)[0]
    edges, colours = described[:16].view(4, 2, 2, 8, 8), described[16:]
    assert edges[0, :, 1, :, 3].min() > 0.5  # by direction, half above, half left
    assert edges[1:].max() == 0 and edges[:, :, 0].max() == 0
    assert edges[..., [0, 1, 2, 4, 5, 6, 7]].max() == 0
    expected = torch.tensor([0.0, 0, 0, 0.25, 1, 1, 1, 1]).expand(3, 8)
    torch.testing.assert_close(colours[:, 0], expected)


def test_histograms_share_each_pixel_among_the_colours_near_it():
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = np.linspace(-1, 1, 3)
    colours = np.array([(r, g, b) for r in levels for g in levels for b in levels])
    pixels = picture[0].permute(1, 2, 0).numpy()  # (8, 8, 3)
    distances = np.square(pixels[:, :, None] - colours).sum(axis=-1)
    shares = scipy.special.softmax(-2 * distances, axis=-1).reshape(4, 2, 4, 2, 27)
    found = colour_histograms(picture, 4)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, np.sqrt(shares.mean(axis=(1, 3))), atol=1e-5)
    assert colour_histograms(picture[:, :1], 4).shape == (1, 3, 4, 4)


def test_a_description_has_a_quarter_of_the_mirror_images(monkeypatch):
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    describe = PictureDescription(3, 20)
    describe.start(pictures)
    mixed = describe(pictures)
    monkeypatch.setattr(descriptions, "MIRRORED", 0.0)
    plain, mirrored = describe(pictures), describe(pictures.flip(3))
    assert (plain - mirrored).abs().max() > 0.1
    torch.testing.assert_close(mixed, 0.75 * plain + 0.25 * mirrored, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 10])
def test_the_parts_of_a_description_have_fixed_variances_unless_they_are_constant(count):
    pictures = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    describe = PictureDescription(3, count)
    describe.start(pictures)
    widths = [*(DIRECTIONS * cells**2 for cells in EDGE_CELLS), 64 * 3, 16 * 27, 9 * count]
    variances = [part.sum() for part in describe(pictures).var(dim=0).split(widths)]
    expected = torch.tensor(VARIANCES) if count else torch.tensor([*VARIANCES[:4], 0.0])
    torch.testing.assert_close(torch.stack(variances), expected)
    for constant in (pictures[:1].expand(4, -1, -1, -1), torch.zeros(4, 3, 32, 32)):
        describe.start(constant)
        assert describe(pictures).abs().max() == 0


def test_patches_answer_where_they_are_and_nowhere_else(monkeypatch):
    monkeypatch.setattr(descriptions, "MIRRORED", 0.0)
    blank = torch.zeros(1, 3, 32, 32)
    texture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    corner, centre = blank.clone(), blank.clone()
    corner[:, :, 1:9, 1:9], centre[:, :, 11:19, 11:19] = texture, texture
    describe = PictureDescription(3, 20)
    describe.start(torch.cat([corner, blank]))
    found = {
        name: describe(p)[0, -9 * 20 :].view(20, 3, 3)
        for name, p in {"corner": corner, "centre": centre, "blank": blank}.items()
    }
    assert found["blank"].abs().max() == 0
    assert found["corner"][:, 0, 0].max() > 0 and found["corner"][:, 2, 2].max() == 0
    torch.testing.assert_close(found["centre"][:, 1, 1].amax(), found["corner"][:, 0, 0].amax())


def test_patches_answer_by_whitened_cosines_above_a_threshold(monkeypatch):
    """Oracle: whitening by an inverse root of the covariance, place by place."""
    monkeypatch.setattr(descriptions, "MIRRORED", 0.0)
    pictures = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    both = torch.cat([pictures, pictures.flip(3)])
    rows = patches(both, torch.arange(256)).double().numpy()
    root = scipy.linalg.sqrtm(np.cov(rows.T) + 0.1 * np.eye(144))
    white = np.linalg.solve(root, (rows - rows.mean(axis=0)).T).T
    answers = white / np.linalg.norm(white, axis=1, keepdims=True) @ white[:64].T - 0.25
    maps = torch.from_numpy(answers.clip(0)).float().view(256, 8, 8)
    expected = F.adaptive_avg_pool2d(maps, 3).flatten(1).sqrt()
    describe = PictureDescription(1, 512)  # all places, and their mirror images
    describe.start(pictures)
    found = describe(pictures)[0, -9 * 512 : -9 * 256].view(256, 9) / describe.scales[-1]
    # Filters stand in an order of their own.
    torch.testing.assert_close(found.sort(dim=0)[0], expected.sort(dim=0)[0], rtol=1e-3, atol=1e-4)


def test_patches_know_neither_light_nor_contrast():
    picture = torch.rand(2, 3, 20, 33, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, faint = (patches(p, torch.arange(320)) for p in (picture, 0.5 * picture + 0.3))
    assert plain.shape == (2 * 10 * 16, 3 * 144)
    similar = torch.cosine_similarity(plain, faint)
    assert similar.min() > 0.999


# ---- paths

FEATURES = LinearPathFeatures(8, [6], 6, 7, 5, 4)
PICTURES = {
    "maps": lambda size: DescribedMaps(size, [4, 6], [8, 6], 5),
    "flat": lambda size: DescribedFlat(size, [4, 6], [8, 6], 5, hidden=6, flat_width=4),
    "patches": lambda size: DescribedFlat(
        size, [4, 6], [8, 6], 5, hidden=6, flat_width=4, patches=4
    ),
}


def feature_model(seed=0):
    """A model whose paths begin as one map (S, F) of both domains; x and y."""
    torch.manual_seed(seed)
    model = IIAE(FEATURES, {"x": 9, "y": 9}, exclusive_dim=3)
    weight, (x, y) = torch.randn(4, 9), torch.randn(2, 32, 9)
    start_linear_paths(model, dict.fromkeys("xy", (weight, torch.zeros(4))))
    return model, weight, x, y


def train(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    objective = bound("elbo+ii-mi", 5.0, reconstruction="l2")
    for step in range(3):
        optimizer.zero_grad()
        objective(*model(x, y), step)["loss"].backward()
        optimizer.step()
    model.eval()


def test_started_paths_are_the_linear_map_alone_and_held_ones_stay_it():
    model, weight, x, y = feature_model()
    model.eval()
    torch.testing.assert_close(model.encode_shared("x", x).mean, x @ weight.T)
    joint = model.infer(x, y).joint_shared
    torch.testing.assert_close(joint.mean, (x @ weight.T + y @ weight.T) / 2)
    before = model.encode_shared("x", x).logvar.detach()
    hold_linear_paths(model)
    train(model.train(), x, y)
    again, *_ = feature_model(1)
    again.load_state_dict(model.state_dict())
    held = again.eval().encode_shared("x", x)
    torch.testing.assert_close(held.mean, x @ weight.T)
    assert not torch.allclose(held.logvar, before)


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_begin_as_linear_maps_of_their_descriptions(kind, size):
    model = IIAE(PICTURES[kind](size), {"x": 3, "y": 1}, exclusive_dim=3).eval()
    inputs = {"x": torch.rand(5, 3, *size) * 2 - 1, "y": torch.rand(5, 1, *size) * 2 - 1}
    rows = {domain: described_rows(model, domain, inputs[domain]) for domain in inputs}
    maps = {domain: (torch.randn(5, rows[domain].shape[1]), torch.randn(5)) for domain in rows}
    start_linear_paths(model, maps)
    with torch.no_grad():
        found = model.infer(inputs["x"], inputs["y"])
    expected = {}
    for domain in rows:
        weight, bias = maps[domain]
        cells = (rows[domain] @ weight.T + bias).view(5, -1, 5)
        expected[domain] = cells.transpose(1, 2).reshape(5, *model.shared_shape)
        shared = found.shared[domain]
        torch.testing.assert_close(shared.mean, expected[domain], rtol=1e-4, atol=1e-4)
    joint = (expected["x"] + expected["y"]) / 2
    torch.testing.assert_close(found.joint_shared.mean, joint, rtol=1e-4, atol=1e-4)


# ---- pooled encoders


def test_wrapping_repeats_the_opposite_side():
    pictures = torch.rand(2, 3, 5, 4)
    expected = F.pad(pictures, (1, 1, 1, 1), mode="circular")
    assert torch.equal(Wrap()(pictures), expected)


@pytest.mark.parametrize("shift", [(16, 0), (0, 16), (16, 32)])
def test_shared_posteriors_do_not_change_when_content_moves_around(shift):
    torch.manual_seed(0)
    networks = PooledNetworks((64, 64), [4, 6, 8, 8], [8, 6, 4, 4], 5, hidden=6, flat_width=4)
    model = IIAE(networks, {"x": 3, "y": 1}, exclusive_dim=3).eval()
    x, y = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 1, 64, 64) * 2 - 1
    before = model.infer(x, y)
    after = model.infer(x.roll(shift, dims=(2, 3)), y.roll(shift, dims=(2, 3)))
    pairs = [(before.joint_shared, after.joint_shared)]
    pairs += [(before.shared[domain], after.shared[domain]) for domain in "xy"]
    for old, new in pairs:
        torch.testing.assert_close(old.mean, new.mean, rtol=1e-3, atol=1e-5)
        assert old.mean.shape == (2, 5)
    assert not torch.allclose(before.exclusive["x"].mean, after.exclusive["x"].mean, rtol=1e-2)
    assert model(x, y)[1].mean["y"].shape == y.shape


@pytest.mark.parametrize(
    ("preset", "key", "assignment"),
    [
        ("pairs-plus", "patches", "model.kind=image"),
        ("pairs-plus", "patches", "model.linear_path=none"),
        ("mnist-quadrants-plus", "pooled", "model.kind=image"),
        ("mnist-quadrants-plus", "pooled", "model.linear_path=canonical"),
        ("features", "attention", "model.attention=3"),
    ],
)
def test_what_does_not_go_with_the_networks_is_refused(preset, key, assignment):
    error = refusal(resolve, [*preset_layers(preset), set_layer([assignment])])
    assert error.message.startswith(f"model.{key} does not go with model.kind=")


# ---- attentive encoders


@pytest.mark.parametrize("covered", [1, 5, 16])
def test_attention_reads_the_same_values_however_many_places_hold_them(covered):
    content, ground = torch.tensor([3.0, -1.0, 1.0]), torch.tensor([7.0, 7.0, 0.0])
    maps = torch.where(torch.arange(16) < covered, content[:, None], ground[:, None])
    pooling = AttentionPooling(3, heads=2)
    with torch.no_grad():  # head 0 looks where the third channel is 1, head 1 everywhere
        pooling.scores.weight[:] = torch.tensor([[0, 0, 5.0], [0, 0, 0]])[..., None, None]
    first, second = pooling(maps.view(1, 3, 4, 4)).view(2, 3)
    torch.testing.assert_close(first, content)
    torch.testing.assert_close(second, maps.mean(dim=1))


@pytest.mark.parametrize("preset", ["digits-cdcb", "pairs-plus"])
def test_exclusive_encoders_of_pictures_may_attend(preset):
    config = resolve([*preset_layers(preset), set_layer(["model.attention=3"])]).config
    model = build_model(config, DataInfo("pictures", (32, 32, 3), (32, 32, 3), {}, {}))
    heads = [part for part in model.exclusive.modules() if isinstance(part, AttentionPooling)]
    pictures = torch.rand(4, 3, 32, 32)
    assert len(heads) == 2 and heads[0].scores.out_channels == 3
    assert model(pictures, pictures)[0].exclusive["y"].mean.shape == (4, config.model.exclusive)
