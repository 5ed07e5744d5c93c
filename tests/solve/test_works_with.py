"""The lines of docs/works_with.md that have no test elsewhere."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from attractor import FixedPoint, Tolerance

ROOT = Path(__file__).parents[2]
X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
Z = torch.zeros_like(X)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        nn.init.orthogonal_(self.linear.weight, 0.3)

    def forward(self, y, x):
        return torch.tanh(self.linear(y) + x)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return FixedPoint(Cell(), stop=Tolerance(rtol=1e-5))


@pytest.mark.parametrize("wrap", [nn.DataParallel, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_wrapped_and_copied_layers_compute_the_same(wrap, layer) -> None:
    """On a CPU."""
    assert torch.equal(wrap(layer)(Z, X).value, layer(Z, X).value)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
def test_layers_converge_in_every_floating_point_type(dtype, rtol: float, layer) -> None:
    """To what the type resolves."""
    solution = FixedPoint(layer.cell.to(dtype), stop=Tolerance(rtol=rtol))(Z.to(dtype), X.to(dtype))
    assert solution.outcome.converged
    assert solution.value.dtype == dtype


def gradients(layer, call) -> list[torch.Tensor]:
    x = X.clone().requires_grad_()
    call(x).square().sum().backward()
    found = [x.grad, layer.cell.linear.weight.grad.clone()]
    layer.zero_grad()
    return found


def test_checkpointing_and_loss_scaling_change_no_gradient(layer) -> None:
    """The solve runs again in the backward pass; the scale of a loss is a power of two."""
    expected = gradients(layer, lambda x: layer(Z, x).value)
    again = gradients(layer, lambda x: checkpoint(lambda x: layer(Z, x).value, x, use_reentrant=False))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = gradients(layer, lambda x: layer(Z, x).value * scaler.scale(torch.ones(())).sqrt())
    for a, b, c in zip(expected, again, scaled, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c / 2**10, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_updates_solve_without_gradients(layer) -> None:
    """Dynamic int8: close to the original solution."""
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(layer), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        solution = FixedPoint(quantized.cell, stop=Tolerance(rtol=1e-2))(Z, X)
    assert solution.outcome.converged
    assert (solution.value - layer(Z, X).value).abs().max() < 0.05


def test_every_line_names_a_test_that_exists_or_says_untested() -> None:
    """And no line of the table is without one of the two."""
    for line in (ROOT / "docs/works_with.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| tool"):
            files = re.findall(r"tests/[\w/]+\.py", line)
            assert files or "untested" in line, line
            assert all((ROOT / file).is_file() for file in files), line
