"""Layers over cells: what mixing may and may not see, and how weights begin."""

from itertools import pairwise

import pytest
import torch

from attractor.errors import ConfigError, DataError
from attractor.nn import GridNetwork, GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import (
    CellEmbedding,
    HaltingHead,
    _angles,
    _rotate,
    normalise,
    swiglu_hidden,
    truncated_normal_,
)

GRID = torch.Size((3, 4))
SMALL = {"width": 16, "hidden": 32, "cell_hidden": 8, "num_cells": 12, "num_heads": 2}


def cells(mixing: str, **changes) -> GridNetwork:
    torch.manual_seed(0)
    return GridNetwork(GridNetworkConfig(**(SMALL | {"mixing": mixing} | changes)))


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def scores(grid: tuple[int, ...], grid_positions: bool, num_heads: int = 2) -> torch.Tensor:
    """What one query and one key, put at every place of a grid, make of each other: (N, N)."""
    net = cells("attention", grid_positions=grid_positions, num_heads=num_heads)
    q, k = inputs(2, 1, 16 // num_heads)
    angles = net.angles(torch.Size(grid), q)
    n = torch.Size(grid).numel()
    return _rotate(q.expand(n, -1), angles) @ _rotate(k.expand(n, -1), angles).T


def test_grid_positions_know_only_row_and_column_differences() -> None:
    """Equal differences, equal scores, on any grid; other differences, other scores."""
    height, width = 4, 5
    found = scores((height, width), True).view(height, width, height, width)
    seen: dict[tuple[int, int], float] = {}
    for r in range(height):
        for c in range(width):
            for s in range(height):
                for d in range(width):
                    assert seen.setdefault((s - r, d - c), found[r, c, s, d].item()) == pytest.approx(
                        found[r, c, s, d].item(), abs=1e-5
                    )
    values = sorted(seen.values())
    assert min(b - a for a, b in pairwise(values)) > 1e-7
    wider = scores((height, 9), True).view(height, 9, height, 9)
    assert torch.allclose(found, wider[:, :width, :, :width], atol=1e-5)


def test_positions_in_reading_order_know_only_how_far_apart_two_cells_are() -> None:
    """A grid is then one long row, whatever its shape."""
    found = scores((3, 4), False)
    assert torch.equal(found, scores((2, 6), False))
    for offset in range(-11, 12):
        along = found.diagonal(offset)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-5)


@torch.no_grad()
def test_attention_without_positions_does_not_know_where_cells_are() -> None:
    """Permuted cells, permuted answers; with positions that breaks."""
    net, x, injection = cells("attention"), inputs(2, 12, 16), inputs(2, 12, 16)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    for angles, same in ((None, True), (net.angles(GRID, x), False)):
        moved = net(x[:, order], injection[:, order], GRID, angles)
        assert torch.allclose(moved, net(x, injection, GRID, angles)[:, order], atol=1e-5) == same


@torch.no_grad()
def test_attention_on_a_grid_does_not_know_where_the_grid_begins() -> None:
    """Moved by any rows and columns it is the same grid."""
    net, x = cells("attention"), inputs(2, 12, 16)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(4)).float()
    here, there = (_angles(places + shift, 8, 10_000.0) for shift in (torch.zeros(2), torch.tensor([5.0, -3.0])))
    assert torch.allclose(net(x, x, GRID, here), net(x, x, GRID, there), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("mixing", "reach"), [("mixer", 12), ("attention", 12), ("convolution", 4)])
def test_how_far_one_layer_sees(mixing: str, reach: int) -> None:
    """A change in the upper left corner is felt everywhere, or where a convolution mixes by itself and its neighbours alone."""
    net = cells(mixing, num_layers=1)
    x = inputs(1, 12, 16)
    other = x.clone()
    other[:, 0] += 1
    angles = net.angles(GRID, x)
    a, b = (net(v, torch.zeros_like(v), GRID, angles) for v in (x, other))
    assert ((a - b).abs().amax(dim=(0, 2)) > 1e-6).sum() == reach


def test_a_mixer_refuses_grids_of_another_size() -> None:
    """In one sentence, with both sizes; the others take any."""
    x = inputs(1, 20, 16)
    with pytest.raises(DataError, match=r"a grid of 4 × 5 cells: .*grids of 12; give such grids"):
        cells("mixer").angles(torch.Size((4, 5)), x)
    for mixing in ("attention", "convolution"):
        net = cells(mixing)
        grid = torch.Size((4, 5))
        assert net(x, x, grid, net.angles(grid, x)).shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("mixing", ["mixer", "attention", "convolution"])
def test_states_stay_on_a_sphere(mixing: str) -> None:
    """Every layer ends in a norm, so a hundred updates leave the size of a state as it was."""
    update = TRMUpdateConfig(network=GridNetworkConfig(**SMALL, mixing=mixing), num_latent=2).build()
    state, x = inputs(2, 3, 4, 32), inputs(2, 3, 4, 16)
    for _ in range(100):
        state = update(state, x)
    assert state.shape == (2, 3, 4, 32)
    assert torch.allclose(state.unflatten(-1, (2, 16)).square().mean(dim=-1), torch.tensor(1.0), atol=1e-3)


def test_norms_go_over_the_dimension_asked_for() -> None:
    """Across cells is what transposing, normalising channels and transposing back gives."""
    x = 3 * inputs(2, 12, 16)
    assert torch.allclose(normalise(x, dim=1), normalise(x.mT).mT, atol=1e-6)
    assert torch.allclose(normalise(x, dim=1).square().mean(dim=1), torch.tensor(1.0), atol=1e-4)


def test_weights_begin_with_the_deviation_asked_for() -> None:
    """Cut at two deviations, and as wide as if they were not; embedded symbols have entries of about one."""
    torch.manual_seed(0)
    weight = truncated_normal_(torch.empty(400, 400), 0.5)
    assert weight.std().item() == pytest.approx(0.5, rel=0.01)
    assert weight.abs().max() < 2 * 0.5 / 0.87
    assert CellEmbedding(200, 64)(torch.arange(200)).std().item() == pytest.approx(1, rel=0.05)
    assert torch.equal(HaltingHead(16)(inputs(5, 3, 4, 16)), torch.full((5,), -5.0))


@pytest.mark.parametrize(("width", "hidden"), [(512, 1536), (128, 512), (81, 256), (97, 512), (32, 256)])
def test_hidden_widths_are_those_of_hrm_and_trm(width: int, hidden: int) -> None:
    assert swiglu_hidden(width) == hidden


def test_settings_that_cannot_work_are_refused() -> None:
    """Heads that do not divide the width into whole rotations, and kinds of mixing that do not exist."""
    with pytest.raises(ConfigError, match="a multiple of 12"):
        GridNetworkConfig(width=16, mixing="attention", num_heads=3)
    with pytest.raises(ConfigError, match="did you mean 'mixer'"):
        GridNetworkConfig(mixing="mixr")
