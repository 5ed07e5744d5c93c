"""States of every magnitude: norms neither overflow nor underflow, and nothing is called converged that is not."""

import warnings

import pytest
import torch
from torch import Tensor

from attractor import (
    Anderson,
    BestSoFar,
    Broyden,
    Implicit,
    Picard,
    Status,
    Tolerance,
    Unrolled,
    fixed_point,
    lipschitz_estimate,
    spectral_radius,
)
from attractor.solve.array_ops import row_norm

SOLVERS = [Picard(), Anderson(), Broyden(), BestSoFar(Anderson())]
SIZES = [1e-38, 1e-30, 1e-25, 1e-20, 1e-10, 1.0, 1e10, 1e20, 1e30, 1e37]
W = 0.2 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
C = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(1))


def problem(size: float):
    """A problem whose solution has this size."""
    return lambda y: 0.9 * size * torch.tanh(y / size @ W) + C * size


def true_residual(update, y: Tensor) -> Tensor:
    y = y.detach()
    change, y = update(y).double() - y.double(), y.double()
    return change.norm(dim=-1) / y.norm(dim=-1)


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_residuals_are_right_at_every_magnitude(solver, size: float, tracked: bool) -> None:
    """The solve converges, with the residual that float64 measures."""
    update = problem(size)
    with torch.set_grad_enabled(tracked):
        found = fixed_point(update, torch.full_like(C, 0.5 * size), solver=solver, gradient=Unrolled())
    assert found.outcome.converged
    assert torch.allclose(found.residual.double(), true_residual(update, found.value), rtol=2e-2, atol=2e-6)
    assert (true_residual(update, found.value) < 1.1e-4).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_acceleration_does_not_depend_on_the_magnitude(size: float) -> None:
    """Anderson and Broyden need as many evaluations as for states of about one."""
    for solver in (Anderson(), Broyden()):
        calls = [
            fixed_point(problem(s), torch.zeros_like(C), solver=solver, stop=Tolerance(rtol=1e-5)).outcome.calls
            for s in (1.0, size)
        ]
        assert calls[1] <= calls[0] + 1


@pytest.mark.parametrize("solver", [Picard(), Picard(damping=0.5)], ids=repr)
@pytest.mark.parametrize("rate", [1.05, 2.0, 1e6])
def test_a_diverging_solve_is_never_converged(solver, rate: float) -> None:
    """Up to the largest numbers of float32, and beyond."""
    found = fixed_point(
        lambda y: rate * y + 1,
        torch.zeros(2, 16),
        solver=solver,
        stop=Tolerance(max_evaluations=2048, patience=None),
    )
    assert found.outcome.num_open == 2
    assert rate < 2 or (found.outcome.status == Status.DIVERGED).all()
    assert found.value.isfinite().all()


def test_norms_are_exact_wherever_the_rows_are_finite() -> None:
    """Bitwise those of vector_norm where its squares neither overflow nor underflow."""
    x = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    for tracked in (False, True):
        with torch.set_grad_enabled(tracked):
            assert torch.equal(row_norm(x), torch.linalg.vector_norm(x, dim=1))
            for size in (1e-44, 1e-38, 1e-22, 1e19, 1e37):
                scaled = x * size
                expected = torch.linalg.vector_norm(scaled.double(), dim=1)
                assert torch.allclose(row_norm(scaled).double(), expected, rtol=1e-6)
            odd = torch.tensor([[torch.inf, 1.0], [torch.nan, 1.0], [0.0, 0.0]])
            assert row_norm(odd).isfinite().tolist() == [False, False, True]
            assert row_norm(torch.full((1, 9), 3e38)).isfinite().all()


@pytest.mark.parametrize("size", [1e-38, 1e-24, 1.0, 1e24, 1e37])
def test_implicit_loses_nothing_of_a_small_or_large_cotangent(size: float) -> None:
    """The adjoint equation is linear."""
    weight = W.clone().requires_grad_()

    def gradient(size: float) -> Tensor:
        y = fixed_point(lambda y: 0.3 * torch.tanh(y @ weight) + C, torch.zeros_like(C), gradient=Implicit()).value
        v = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return torch.autograd.grad(y, weight, v * size)[0].double() / size

    assert (gradient(size) - gradient(1.0)).norm() < 1e-4 * gradient(1.0).norm()


@pytest.mark.parametrize("rate", [1e-30, 1.0, 1e18])
def test_probes_of_the_jacobian_work_at_every_magnitude(rate: float) -> None:
    """Their vectors are scaled before they are squared."""
    y = torch.zeros(2, 5)
    assert torch.allclose(spectral_radius(lambda y: rate * y, y), torch.tensor(rate), rtol=1e-3)
    assert torch.allclose(lipschitz_estimate(lambda y: rate * y, y), torch.tensor(rate), rtol=1e-3)
