"""Solves inside torch.compile(fullgraph=True) and torch.export: equal to eager ones, or one sentence."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from attractor import (
    Anderson,
    BestSoFar,
    Broyden,
    ConfigError,
    FixedPoint,
    Implicit,
    OneStep,
    Phantom,
    Picard,
    Steps,
    Unrolled,
    fixed_point,
    root,
)

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 8), nn.Dropout(0.3)
        nn.init.orthogonal_(self.linear.weight, 0.3)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.dropout(torch.tanh(self.linear(y) + x))


class Model(nn.Module):
    """Dropout before the solve is no part of it."""

    def __init__(self, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.layer = nn.Dropout(0.3), FixedPoint(Cell().eval(), **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.layer(torch.zeros_like(x), x).value


def run(function, x: Tensor, track: bool = True) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    x = x.clone().requires_grad_(track)
    with torch.set_grad_enabled(track):
        value = function(x)
    return (value, *torch.autograd.grad(value.square().sum(), x)) if track else (value,)


def one_graph(function):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        (Picard(), OneStep()),
        (Anderson(), Phantom(steps=2)),
        (Broyden(), None),
        (BestSoFar(Anderson()), Unrolled()),
    ],
    ids=repr,
)
def test_a_fixed_number_of_steps_compiles_in_one_graph(solver, gradient) -> None:
    """Equal values and gradients; without gradients, whatever the gradient would be."""
    track = gradient is not None
    model = Model(solver=solver, stop=Steps(5), gradient=gradient or Implicit(), causal=True)
    for a, b in zip(run(model, X, track), run(one_graph(model), X, track), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: fixed_point(
            lambda s: {"a": torch.tanh(s["b"]) + x, "b": 0.5 * s["a"].bfloat16()},
            {"a": torch.zeros_like(x), "b": torch.zeros_like(x).bfloat16()},
            stop=Steps(4),
            gradient=OneStep(),
        ).value["a"],
        lambda x: (lambda s: s.value + s.trace.sum(0) + s.aux + s.residual[..., None] + s.evaluations[..., None])(
            fixed_point(
                lambda y: (0.5 * torch.tanh(y) + x, y + 1),
                torch.zeros_like(x),
                stop=Steps(4),
                gradient=OneStep(),
                trace=[1, 3],
                has_aux=True,
            )
        ),
        lambda x: (
            fixed_point(
                lambda y: 0.3 * F.scaled_dot_product_attention(y, y, y) + x,
                torch.zeros_like(x),
                stop=Steps(4),
                gradient=Phantom(),
                equation_dims=2,
            ).value
        ),
    ],
    ids=["nested and mixed dtypes", "trace and aux", "attention"],
)
def test_one_graph_has_every_field_of_the_solution(function) -> None:
    for a, b in zip(run(function, X), run(one_graph(function), X), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def solve(x: Tensor, **options) -> Tensor:
    return fixed_point(lambda y: 0.5 * torch.tanh(y) + x, torch.zeros_like(x), **options).value


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: solve(x), "stop=Steps"),
        (lambda x: solve(x, stop=Steps(3)), "gradient=OneStep"),
        (lambda x: vmap(lambda x: solve(x, stop=Steps(3), gradient=OneStep()))(x), "torch.func"),
        (lambda x: root(lambda y: y**3 + y - x, x, stop=Steps(3)).value, "Compile without fullgraph"),
        (lambda x: Model(stop=Steps(3), gradient=OneStep()).train()(x), None),
        (lambda x: fixed_point(lambda y: F.dropout(y, 0.3) + x, x, stop=Steps(3), gradient=OneStep()).value, "dropout"),
        (lambda x: fixed_point(lambda y: y * torch.rand(1) + x, x, stop=Steps(3), gradient=OneStep()).value, "random"),
    ],
)
def test_what_is_no_single_graph_says_so_and_compiles_with_a_break(function, says: str | None) -> None:
    """The uncompiled solve has the values and gradients of eager mode, dropout included."""
    if says is None:
        model = Model(stop=Steps(3), gradient=OneStep())
        model.layer.train()
        function, says = model, "draws random numbers"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=says):
        run(one_graph(function), X)
    torch._dynamo.reset()
    broken = torch.compile(function, backend="aot_eager")
    for a, b in zip(run(function, X), run(broken, X), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("gradient", [Implicit(), Phantom(steps=2)], ids=repr)
def test_layers_of_fixed_depth_are_exported(gradient, strict: bool, tmp_path) -> None:
    """For every batch size, with the complete solution, saved and loaded; differentiated through the steps."""
    layer = FixedPoint(Cell().eval(), stop=Steps(4), gradient=gradient).eval()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        layer, (torch.zeros_like(X), X), strict=strict, dynamic_shapes={"y0": batch, "inputs": (batch,)}
    )
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for x in (X, X[:1].repeat(3, 1, 1)):
        with torch.no_grad():
            expected, found = layer(torch.zeros_like(x), x), loaded(torch.zeros_like(x), x)
        assert torch.allclose(found.value, expected.value, atol=1e-6)
        assert torch.allclose(found.residual, expected.residual, atol=1e-6)
        assert str(found.outcome) == str(expected.outcome)
    unrolled = FixedPoint(layer.cell, stop=Steps(4), gradient=Unrolled())
    values = [run(lambda x, f=f: f(torch.zeros_like(x), x).value, X)[1] for f in (unrolled, loaded)]
    assert torch.allclose(*values, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (FixedPoint(Cell().eval()), r"stop=Steps\(n\)"),
        (FixedPoint(Cell(), stop=Steps(3)).train(), "evaluation mode"),
    ],
)
def test_what_cannot_be_exported_says_so(module, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        torch.export.export(module, (torch.zeros_like(X), X))
