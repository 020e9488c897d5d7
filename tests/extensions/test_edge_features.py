"""The fixed description of pictures: directions, invariance to the contrast's sign, sizes."""

import math

import pytest
import torch

from iiae_cli.extensions.edge_features import (
    CELLS,
    DIRECTIONS,
    PictureDescription,
    PictureMap,
    edge_directions,
)


@pytest.mark.parametrize("direction", range(DIRECTIONS))
def test_a_ramp_has_all_its_strength_in_its_own_direction(direction: int) -> None:
    angle = direction * math.pi / DIRECTIONS
    places = torch.linspace(-0.5, 0.5, 16)
    ramp = math.cos(angle) * places[None, :] + math.sin(angle) * places[:, None]
    for sign in (1.0, -1.0):
        edges = edge_directions(sign * ramp[None, None])[0, :, 2:-2, 2:-2]
        assert int(edges.sum(dim=(1, 2)).argmax()) == direction
        assert float(edges[direction].sum() / edges.sum()) > 0.999
        torch.testing.assert_close(edges.sum(dim=0), torch.full((12, 12), 0.5 / 15))


def test_a_direction_between_two_is_shared_by_the_last_and_the_first() -> None:
    angle = (DIRECTIONS - 0.5) * math.pi / DIRECTIONS
    places = torch.linspace(-0.5, 0.5, 16)
    ramp = math.cos(angle) * places[None, :] + math.sin(angle) * places[:, None]
    edges = edge_directions(ramp[None, None])[0, :, 2:-2, 2:-2].sum(dim=(1, 2))
    halves = edges[[0, -1]] / edges.sum()
    torch.testing.assert_close(halves, torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)


def test_the_steepest_channel_counts() -> None:
    pictures = torch.zeros(1, 3, 8, 8)
    pictures[:, 1] = torch.linspace(-1, 1, 8)
    pictures[:, 2] = 0.1 * torch.linspace(-1, 1, 8)[:, None]
    assert edge_directions(pictures)[0, :, 4, 4].argmax() == 0


def test_edges_do_not_know_the_contrasts_sign_and_hardly_its_strength() -> None:
    picture = (torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    edges = [
        PictureDescription(1)(one)[:, : -(CELLS**2)] for one in (picture, -picture, 0.5 * picture)
    ]
    torch.testing.assert_close(edges[0], edges[1], atol=1e-3, rtol=0)
    assert torch.cosine_similarity(edges[0], edges[2]) > 0.999
    assert PictureDescription(1)(torch.zeros(1, 1, 32, 32)).abs().max() == 0


@pytest.mark.parametrize(
    ("shape", "grid", "multiple"),
    [((3, 32, 32), (8, 8), 8), ((1, 30, 41), (4, 6), 16), ((4, 256, 256), (16, 16), 32)],
)
def test_descriptions_have_the_shapes_that_they_announce(
    shape: tuple[int, int, int], grid: tuple[int, int], multiple: int
) -> None:
    pictures, channels = torch.rand(2, *shape) * 2 - 1, shape[0]
    whole, mapped = PictureDescription(channels), PictureMap(channels, grid, multiple)
    assert whole(pictures).shape == (2, whole.width) == (2, CELLS**2 * (DIRECTIONS + channels))
    assert mapped(pictures).shape == (2, mapped.width, *grid) and mapped.width == 16 + channels
    for describe in (whole, mapped):
        assert describe(pictures).isfinite().all() and not list(describe.parameters())
        half = pictures.bfloat16()
        assert torch.equal(describe(half), describe(half.float()))


def test_a_map_tells_in_which_quarter_of_a_cell_an_edge_runs() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    # Columns 14 and 15 see the edge: the right half of cells of the columns 12 to 15.
    picture[:, :, :, 15:] = 1.0
    described = PictureMap(3, (8, 8), 8)(picture)[0]
    edges, colours = described[:16].view(4, 2, 2, 8, 8), described[16:]
    assert edges[0, :, 1, :, 3].min() > 0.5  # by direction, half above, half left
    assert edges[1:].max() == 0 and edges[:, :, 0].max() == 0
    assert edges[..., [0, 1, 2, 4, 5, 6, 7]].max() == 0
    expected = torch.tensor([0.0, 0, 0, 0.25, 1, 1, 1, 1]).expand(3, 8)
    torch.testing.assert_close(colours[:, 0], expected)


def test_a_map_lies_on_the_grid_of_a_trunk_that_extends_the_picture() -> None:
    picture = torch.rand(1, 1, 32, 20) * 2 - 1
    extended = torch.cat([picture, picture[..., -1:].expand(1, 1, 32, 4)], dim=3)
    assert torch.equal(PictureMap(1, (8, 6), 8)(picture), PictureMap(1, (8, 6), 8)(extended))
    assert torch.equal(
        PictureMap(1, (8, 5), 4)(picture)[..., :4], PictureMap(1, (8, 6), 8)(picture)[..., :4]
    )
