"""Layers over the cells of a grid: their receptive fields, positions, norms and initial weights."""

from itertools import pairwise

import pytest
import torch

from attractor.errors import ConfigError, DataError
from attractor.nn import GridNetwork, GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import (
    HaltingHead,
    ScaledEmbedding,
    rms_norm,
    swiglu_hidden,
    truncated_normal_,
)
from attractor.nn.rotary import rotary_angles, rotate

GRID = torch.Size((3, 4))
SMALL = {"width": 16, "hidden": 32, "cell_hidden": 8, "num_cells": 12, "num_heads": 2}


def network(mixing: str, **changes) -> GridNetwork:
    torch.manual_seed(0)
    return GridNetwork(GridNetworkConfig(**(SMALL | {"mixing": mixing} | changes)))


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def scores(grid: tuple[int, ...], grid_positions: bool, num_heads: int = 2) -> torch.Tensor:
    """Attention scores (N, N) of one query and one key, each at every position of a grid."""
    net = network("attention", grid_positions=grid_positions, num_heads=num_heads)
    q, k = inputs(2, 1, 16 // num_heads)
    angles = net.angles(torch.Size(grid), q)
    n = torch.Size(grid).numel()
    return rotate(q.expand(n, -1), angles) @ rotate(k.expand(n, -1), angles).T


def test_grid_positions_depend_on_row_and_column_differences_only() -> None:
    """Equal differences give equal scores on any grid; other differences give other scores."""
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


def test_positions_in_reading_order_depend_on_the_distance_only() -> None:
    """A grid of any shape is one long row."""
    found = scores((3, 4), False)
    assert torch.equal(found, scores((2, 6), False))
    for offset in range(-11, 12):
        along = found.diagonal(offset)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-5)


@torch.no_grad()
def test_attention_without_positions_is_permutation_equivariant() -> None:
    """Permuted cells give permuted answers; with positions they do not."""
    net, x, injection = network("attention"), inputs(2, 12, 16), inputs(2, 12, 16)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    for angles, is_equivariant in ((None, True), (net.angles(GRID, x), False)):
        permuted = net(x[:, order], injection[:, order], GRID, angles)
        assert torch.allclose(permuted, net(x, injection, GRID, angles)[:, order], atol=1e-5) == is_equivariant


@torch.no_grad()
def test_attention_on_a_grid_is_translation_invariant() -> None:
    """Adding any row and column offset to all positions changes nothing."""
    net, x = network("attention"), inputs(2, 12, 16)
    positions = torch.cartesian_prod(torch.arange(3), torch.arange(4)).float()
    original, shifted = (
        rotary_angles(positions + shift, 8, 10_000.0) for shift in (torch.zeros(2), torch.tensor([5.0, -3.0]))
    )
    assert torch.allclose(net(x, x, GRID, original), net(x, x, GRID, shifted), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("mixing", "reach"), [("mixer", 12), ("attention", 12), ("convolution", 4)])
def test_receptive_field_of_one_layer(mixing: str, reach: int) -> None:
    """A change in the upper left corner reaches every cell, or with a convolution the corner and its neighbours."""
    net = network(mixing, num_layers=1)
    x = inputs(1, 12, 16)
    other = x.clone()
    other[:, 0] += 1
    angles = net.angles(GRID, x)
    a, b = (net(v, torch.zeros_like(v), GRID, angles) for v in (x, other))
    assert ((a - b).abs().amax(dim=(0, 2)) > 1e-6).sum() == reach


def test_a_mixer_refuses_grids_of_another_size() -> None:
    """The error names both sizes; the other mixings accept any size."""
    x = inputs(1, 20, 16)
    with pytest.raises(DataError, match=r"a grid of 4 × 5 cells: .*grids of 12; give such grids"):
        network("mixer").angles(torch.Size((4, 5)), x)
    for mixing in ("attention", "convolution"):
        net = network(mixing)
        grid = torch.Size((4, 5))
        assert net(x, x, grid, net.angles(grid, x)).shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("mixing", ["mixer", "attention", "convolution"])
def test_states_keep_their_norm(mixing: str) -> None:
    """Every layer ends in a norm, so the root mean square of a state is one after a hundred updates."""
    update = TRMUpdateConfig(network=GridNetworkConfig(**SMALL, mixing=mixing), num_latent=2).build()
    state, x = inputs(2, 3, 4, 32), inputs(2, 3, 4, 16)
    for _ in range(100):
        state = update(state, x)
    assert state.shape == (2, 3, 4, 32)
    assert torch.allclose(state.unflatten(-1, (2, 16)).square().mean(dim=-1), torch.tensor(1.0), atol=1e-3)


def test_rms_norm_over_any_dimension() -> None:
    """Over cells it equals transposing, normalising channels, and transposing back."""
    x = 3 * inputs(2, 12, 16)
    assert torch.allclose(rms_norm(x, dim=1), rms_norm(x.mT).mT, atol=1e-6)
    assert torch.allclose(rms_norm(x, dim=1).square().mean(dim=1), torch.tensor(1.0), atol=1e-4)


def test_initial_weights_have_the_given_standard_deviation() -> None:
    """It holds after truncation at two deviations; embedded symbols have entries of about one."""
    torch.manual_seed(0)
    weight = truncated_normal_(torch.empty(400, 400), 0.5)
    assert weight.std().item() == pytest.approx(0.5, rel=0.01)
    assert weight.abs().max() < 2 * 0.5 / 0.87
    assert ScaledEmbedding(200, 64)(torch.arange(200)).std().item() == pytest.approx(1, rel=0.05)
    assert torch.equal(HaltingHead(16)(inputs(5, 3, 4, 16)), torch.full((5,), -5.0))


@pytest.mark.parametrize(("width", "hidden"), [(512, 1536), (128, 512), (81, 256), (97, 512), (32, 256)])
def test_hidden_widths_are_those_of_hrm_and_trm(width: int, hidden: int) -> None:
    """Two thirds of four times the width, rounded up to a multiple of 256."""
    assert swiglu_hidden(width) == hidden


def test_invalid_settings_are_refused() -> None:
    """A width that the heads and rotations do not divide, and an unknown mixing."""
    with pytest.raises(ConfigError, match="a multiple of 12"):
        GridNetworkConfig(width=16, mixing="attention", num_heads=3)
    with pytest.raises(ConfigError, match="did you mean 'mixer'"):
        GridNetworkConfig(mixing="mixr")
