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


def test_a_direction_between_two_is_shared_by_them_and_none_is_lost_at_the_half_circles_end() -> (
    None
):
    angle = (DIRECTIONS - 0.5) * math.pi / DIRECTIONS
    places = torch.linspace(-0.5, 0.5, 16)
    ramp = math.cos(angle) * places[None, :] + math.sin(angle) * places[:, None]
    edges = edge_directions(ramp[None, None])[0, :, 2:-2, 2:-2].sum(dim=(1, 2))
    assert (
        abs(float(edges[0] / edges.sum()) - 0.5) < 1e-3
        and abs(float(edges[-1] / edges.sum()) - 0.5) < 1e-3
    )


def test_the_steepest_channel_counts() -> None:
    pictures = torch.zeros(1, 3, 8, 8)
    pictures[:, 1] = torch.linspace(-1, 1, 8)
    pictures[:, 2] = 0.1 * torch.linspace(-1, 1, 8)[:, None]
    assert edge_directions(pictures)[0, :, 4, 4].argmax() == 0


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 16), (3, 100, 70), (4, 28, 28)])
def test_its_width_depends_on_channels_alone(shape: tuple[int, int, int]) -> None:
    describe = PictureDescription(shape[0])
    described = describe(torch.rand(2, *shape) * 2 - 1)
    assert described.shape == (2, describe.width) == (2, CELLS**2 * (DIRECTIONS + shape[0]))
    assert described.isfinite().all() and not list(describe.parameters())


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
def test_a_map_has_the_grid_asked_for(
    shape: tuple[int, int, int], grid: tuple[int, int], multiple: int
) -> None:
    describe = PictureMap(shape[0], grid, multiple)
    described = describe(torch.rand(2, *shape) * 2 - 1)
    assert described.shape == (2, describe.width, *grid) and describe.width == 16 + shape[0]
    assert described.isfinite().all() and not list(describe.parameters())


def test_a_map_tells_in_which_quarter_of_a_cell_an_edge_runs() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, :, :, 15:] = (
        1.0  # seen by the columns 14 and 15: the right half of cells of the columns 12 to 15
    )
    described = PictureMap(3, (8, 8), 8)(picture)[0]
    edges, colours = (
        described[:16].view(4, 2, 2, 8, 8),
        described[16:],
    )  # by direction, half above, half left
    assert edges[0, :, 1, :, 3].min() > 0.5
    assert (
        edges[1:].max() == 0
        and edges[:, :, 0].max() == 0
        and edges[..., [0, 1, 2, 4, 5, 6, 7]].max() == 0
    )
    torch.testing.assert_close(
        colours[:, 0], torch.tensor([0.0, 0, 0, 0.25, 1, 1, 1, 1]).expand(3, 8)
    )


def test_a_map_lies_on_the_grid_of_a_trunk_that_extends_the_picture() -> None:
    picture = torch.rand(1, 1, 32, 20) * 2 - 1
    extended = torch.cat([picture, picture[..., -1:].expand(1, 1, 32, 4)], dim=3)
    assert torch.equal(PictureMap(1, (8, 6), 8)(picture), PictureMap(1, (8, 6), 8)(extended))
    assert torch.equal(
        PictureMap(1, (8, 5), 4)(picture)[..., :4], PictureMap(1, (8, 6), 8)(picture)[..., :4]
    )


def test_descriptions_are_float32_whatever_the_pictures_are() -> None:
    pictures = (torch.rand(2, 3, 32, 32) * 2 - 1).bfloat16()
    for describe in (PictureDescription(3), PictureMap(3, (8, 8), 8)):
        assert torch.equal(describe(pictures), describe(pictures.float()))
