"""Every gradient against the exact one, and under everything that PyTorch does with a graph."""

import pytest
import torch
from torch import nn

from attractor import (
    Anderson,
    Broyden,
    ConfigError,
    FixedPoint,
    Implicit,
    Neumann,
    OneStep,
    Phantom,
    Picard,
    Steps,
    Tolerance,
    Unrolled,
    fixed_point,
)

TIGHT = Tolerance(rtol=1e-13, max_evaluations=400, patience=None)
EXACT = Implicit(stop=Tolerance(rtol=1e-13, patience=None))
ALL = [OneStep(), Neumann(2), Phantom(steps=3, damping=0.9), EXACT, Unrolled()]


def by_name(value: object) -> str:
    return type(value).__name__


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (5, 5) and inputs (3, 5), both leaves."""
    generator = torch.Generator().manual_seed(0)
    w = 0.25 * torch.randn(5, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return w.requires_grad_(), x.requires_grad_()


def solved(w, x, gradient, solver=None, stop=TIGHT) -> torch.Tensor:
    solver = solver or Anderson()
    return fixed_point(
        lambda y: torch.tanh(y @ w.T + x), torch.zeros_like(x), solver=solver, stop=stop, gradient=gradient
    ).value


def gradients(w, x, gradient, solver=None) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(solved(w, x, gradient, solver).pow(3).sum(), (w, x))


def jacobian(w, y) -> torch.Tensor:
    """∂update/∂y at y, (3, 5, 5)."""
    return (1 - y**2)[:, :, None] * w


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=by_name)
def test_implicit_passes_gradcheck(solver) -> None:
    """The implicit gradient is the derivative of the fixed point, whichever solver found it."""
    assert torch.autograd.gradcheck(lambda w, x: solved(w, x, EXACT, solver), problem())


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=by_name)
def test_unrolled_passes_gradcheck_and_gradgradcheck_midway(solver) -> None:
    """Unrolled differentiates the solver's own steps exactly, twice, converged or not, y0 included."""
    w, x = problem()

    def run(w, x, y0):
        return fixed_point(
            lambda y: torch.tanh(y @ w.T + x), y0, solver=solver, stop=Steps(4), gradient=Unrolled()
        ).value

    y0 = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(run, (w, x, y0))
    assert torch.autograd.gradgradcheck(run, (w, x, y0))


def test_implicit_equals_unrolled_at_convergence() -> None:
    """Both are the true gradient there."""
    w, x = problem()
    for a, b in zip(gradients(w, x, EXACT), gradients(w, x, Unrolled()), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("terms", [0, 1, 2, 5])
def test_neumann_is_the_truncated_series(terms: int) -> None:
    """u = Σ (Jᵀ)ᵏ v up to k = terms; OneStep is terms = 0."""
    w, x = problem()
    y = solved(w, x, OneStep()).detach()
    v = 3 * y**2
    j = jacobian(w.detach(), y)
    u = term = v
    for _ in range(terms):
        term = (j.mT @ term[:, :, None])[:, :, 0]
        u = u + term
    expected = u * (1 - y**2)  # ∂update/∂x is diagonal
    assert torch.allclose(gradients(w, x, Neumann(terms))[1], expected, atol=1e-9)
    if terms == 0:
        assert torch.equal(gradients(w, x, OneStep())[1], gradients(w, x, Neumann(0))[1])


def test_phantom_of_many_steps_is_exact_and_of_one_is_onestep() -> None:
    """Phantom interpolates between the two."""
    w, x = problem()
    for a, b in zip(gradients(w, x, Phantom(steps=200, damping=0.8)), gradients(w, x, EXACT), strict=True):
        assert torch.allclose(a, b, atol=1e-8)
    for a, b in zip(gradients(w, x, Phantom(steps=1)), gradients(w, x, OneStep()), strict=True):
        assert torch.allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(2), EXACT, Unrolled()], ids=by_name)
def test_attaching_a_gradient_changes_no_value(gradient) -> None:
    """The value with autograd on equals the one with it off, bit for bit."""
    w, x = problem()
    with torch.no_grad():
        plain = solved(w, x, gradient)
    assert torch.equal(solved(w, x, gradient).detach(), plain)


@pytest.mark.parametrize("gradient", [Phantom(steps=3), Unrolled()], ids=by_name)
def test_second_derivatives(gradient) -> None:
    """create_graph=True works through Phantom and Unrolled."""
    w, x = problem()
    (first,) = torch.autograd.grad(solved(w, x, gradient, stop=Steps(6)).pow(3).sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), w)
    assert second.isfinite().all()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(2), EXACT], ids=by_name)
def test_second_derivatives_that_would_be_wrong_are_refused(gradient) -> None:
    """An error, not a number, from the gradients that do not carry them."""
    w, x = problem()
    with pytest.raises(ConfigError, match="Unrolled"):
        torch.autograd.grad(solved(w, x, gradient).pow(3).sum(), w, create_graph=True)


def test_an_overflowed_loss_passes_through_the_adjoint() -> None:
    """Infinite cotangents reach the parameters, where a loss scaler looks for them."""
    w, x = problem()
    (solved(w, x, EXACT).sum() * torch.inf).backward()
    assert not w.grad.isfinite().all()


def test_one_unknown_without_batch() -> None:
    """The smallest problem there is has its implicit gradient."""
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = fixed_point(
        lambda y: a * y + 1, torch.zeros((), dtype=torch.float64), equation_dims=0, gradient=EXACT, stop=TIGHT
    ).value
    y.backward()
    assert a.grad.item() == pytest.approx(4)


@pytest.mark.parametrize("gradient", ALL, ids=by_name)
def test_several_uses_in_one_graph_add_up(gradient) -> None:
    """Two solves that share weights get the sum of their gradients."""
    w, x = problem()
    one, two = (torch.autograd.grad(solved(w, s * x, gradient).sum(), w)[0] for s in (1, -2))
    both = torch.autograd.grad(solved(w, x, gradient).sum() + solved(w, -2 * x, gradient).sum(), w)[0]
    assert torch.allclose(both, one + two, atol=1e-9)


@pytest.mark.parametrize("gradient", ALL, ids=by_name)
def test_a_layer_between_layers_trains(gradient) -> None:
    """Gradients reach parameters inside the cell, before it and after it."""
    torch.manual_seed(0)

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)
            nn.init.orthogonal_(self.linear.weight, 0.5)

        def forward(self, y, x):
            return torch.tanh(self.linear(y) + x)

    layer = FixedPoint(Cell(), gradient=gradient).double()
    before, after = nn.Linear(4, 6).double(), nn.Linear(6, 2).double()
    x = before(torch.randn(8, 4, dtype=torch.float64))
    loss = after(layer(torch.zeros_like(x), x).value).square().mean()
    loss.backward()
    for module in (before, layer, after):
        for p in module.parameters():
            assert p.grad is not None
            assert p.grad.abs().sum() > 0


def test_dropout_is_the_same_within_a_solve_and_new_for_the_next() -> None:
    """FixedPoint replays the random numbers, so that there is a fixed point to find."""
    torch.manual_seed(0)

    class Cell(nn.Module):
        def forward(self, y, x):
            return nn.functional.dropout(0.5 * torch.tanh(y) + x, 0.3, self.training)

    layer = FixedPoint(Cell())
    x = torch.randn(4, 32)
    first, second = layer(torch.zeros(4, 32), x), layer(torch.zeros(4, 32), x)
    assert first.outcome.converged
    assert not torch.equal(first.value, second.value)
    layer.eval()
    assert torch.equal(layer(torch.zeros(4, 32), x).value, layer(torch.zeros(4, 32), x).value)


@pytest.mark.parametrize("gradient", ALL, ids=by_name)
def test_a_compiled_update_has_the_same_gradient(gradient) -> None:
    """torch.compile of the update changes nothing but speed."""
    w, x = problem()
    compiled = torch.compile(lambda y, w, x: torch.tanh(y @ w.T + x), backend="aot_eager")

    def run(update):
        y = fixed_point(
            lambda y: update(y, w, x), torch.zeros_like(x), stop=Tolerance(rtol=1e-10), gradient=gradient
        ).value
        return torch.autograd.grad(y.pow(3).sum(), (w, x))

    for a, b in zip(run(compiled), run(lambda y, w, x: torch.tanh(y @ w.T + x)), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_an_adjoint_that_does_not_converge_warns() -> None:
    """The backward solve is judged as the forward one is."""
    w, x = problem()
    y = solved(w, x, Implicit(solver=Picard(), stop=Tolerance(rtol=1e-12, max_evaluations=2)))
    with pytest.warns(RuntimeWarning, match="Implicit gradient: 3 of 3"):
        y.sum().backward()


@pytest.mark.parametrize("make", [lambda: Neumann(-1), lambda: Phantom(steps=0), lambda: Phantom(damping=0)])
def test_what_cannot_work_is_refused(make) -> None:
    """Bad settings are ConfigErrors."""
    with pytest.raises(ConfigError):
        make()
