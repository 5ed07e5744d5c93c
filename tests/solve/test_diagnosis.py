"""Updates that expand, cycle, diverge or compute in low precision: what is solved, and what the outcome says."""

import pytest
import torch

from attractor import Anderson, Broyden, Implicit, OneStep, Picard, Status, Tolerance, fixed_point


@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=repr)
def test_an_expanding_line_is_solved_in_a_few_evaluations(solver) -> None:
    """The first plain step raises the residual threefold and must not be rejected: the second one is exact."""
    found = fixed_point(lambda y: -3 * y + 4, torch.zeros(2, 1, dtype=torch.float64), solver=solver)
    assert found.outcome.converged
    assert found.outcome.calls <= 5
    assert torch.allclose(found.value, torch.ones(2, 1, dtype=torch.float64))


def test_a_growing_state_is_diverged_although_it_is_finite() -> None:
    """The relative residual of 2y + 1 tends to 1, so only the size of its steps shows that it diverges."""
    found = fixed_point(lambda y: 2 * y + 1, torch.ones(3, 2), solver=Picard())
    assert (found.outcome.status == Status.DIVERGED).all()
    assert found.value.isfinite().all()
    assert "precision" not in str(found.outcome)


def test_a_cycle_is_not_called_a_matter_of_precision() -> None:
    found = fixed_point(lambda y: 3.9 * y * (1 - y), torch.full((3, 1), 0.3), solver=Picard())
    assert (found.outcome.status == Status.STAGNATED).all()
    assert "may cycle" in str(found.outcome)
    assert "precision" not in str(found.outcome)


def test_a_low_precision_is_named_as_the_cause_of_stagnation() -> None:
    generator = torch.Generator().manual_seed(0)
    w, c = 0.1 * torch.randn(32, 32, generator=generator), torch.randn(4, 32, generator=generator)
    found = fixed_point(
        lambda y: torch.tanh(y.bfloat16() @ w.bfloat16()).float() + c, torch.zeros(4, 32), stop=Tolerance(rtol=1e-7)
    )
    assert "bfloat16" in str(found.outcome)


@pytest.mark.parametrize("gradient", [Implicit(), OneStep()], ids=repr)
def test_an_update_under_autocast_keeps_the_dtype_of_the_state(gradient) -> None:
    """The value and the gradients are those of float32, up to the precision of bf16."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, generator=generator)
    linear = torch.nn.Linear(16, 16)
    with torch.no_grad():
        linear.weight.copy_(0.1 * torch.randn(16, 16, generator=generator))
    grads = []
    for enabled in (False, True):
        linear.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = fixed_point(lambda y: linear(y) + x.to(linear.weight.dtype), torch.zeros(4, 16), gradient=gradient)
        assert found.value.dtype == torch.float32
        found.value.square().mean().backward()
        grads.append(linear.weight.grad.clone())
    assert torch.allclose(grads[0], grads[1], atol=0.02 * float(grads[0].abs().max()))


def test_outside_autocast_another_dtype_is_an_error() -> None:
    with pytest.raises(Exception, match="same shape and dtype"):
        fixed_point(lambda y: y.bfloat16(), torch.zeros(2, 3))


def test_the_default_gradient_of_an_unknown_update_is_exact() -> None:
    """A GRU cell does not contract strongly: one step is more than half off there."""
    torch.manual_seed(0)
    gru, x = torch.nn.GRUCell(32, 64), torch.randn(8, 32)

    def gradient(**options) -> torch.Tensor:
        gru.zero_grad()
        stop = Tolerance(rtol=1e-6, max_evaluations=200)
        found = fixed_point(lambda h: gru(x, h), torch.zeros(8, 64), stop=stop, **options)
        found.value.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in gru.parameters()])

    exact = gradient(gradient=Implicit(stop=Tolerance(rtol=1e-6, max_evaluations=300, patience=None)))
    assert (gradient() - exact).norm() < 1e-3 * exact.norm()
    assert (gradient(gradient=OneStep()) - exact).norm() > 0.3 * exact.norm()


def test_a_nearly_constant_residual_is_extrapolated_exactly() -> None:
    """1.05 y + 1: the plain steps hardly change the residual, so a large ridge would miss the fixed point of −20."""
    found = fixed_point(
        lambda y: 1.05 * y + 1, torch.zeros(1, 1, 16), stop=Tolerance(max_evaluations=50, patience=None)
    )
    assert found.outcome.converged
    assert torch.allclose(found.value.detach(), torch.full((1, 1, 16), -20.0), atol=1e-2)
