"""Roots of published problems, their gradients, and what cannot work."""

import math

import pytest
import torch
from torch import Tensor, nn

from attractor import Broyden, ConfigError, Newton, NewtonKrylov, NotConvergedError, OneStep, Steps, Tolerance, root
from attractor.root_finding import gmres

TIGHT = Tolerance(rtol=1e-10, max_evaluations=50)
METHODS = [Newton(), NewtonKrylov(), Broyden()]


def name(value) -> str:
    return type(value).__name__


@pytest.mark.parametrize("solver", METHODS, ids=name)
def test_keplers_equation_has_the_published_anomaly(solver) -> None:
    """Meeus, Astronomical Algorithms, example 30.a: M = 5°, e = 0.1 gives E = 5.554589°. N scalars, one count each."""
    mean, e = torch.full((3,), math.radians(5), dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9]).double()
    found = root(lambda x: x - e * torch.sin(x) - mean, mean + e, solver=solver, stop=TIGHT)
    assert found.outcome.converged
    assert found.evaluations.shape == (3,)
    assert abs(math.degrees(found.value[0].item()) - 5.554589) < 5e-7


def bratu(u: Tensor, strength: Tensor) -> Tensor:
    padded = nn.functional.pad(u, (1, 1))
    return (padded[:, 2:] - 2 * u + padded[:, :-2]) * (u.shape[1] + 1) ** 2 + strength * u.exp()


@pytest.mark.parametrize("solver", [Newton(), NewtonKrylov(max_products=48)], ids=name)
def test_bratus_problem_has_the_published_maximum(solver) -> None:
    """u'' + λ exp(u) = 0 on (0, 1): the exact maximum is 2 ln cosh(θ/4) with θ = √(2λ) cosh(θ/4)."""
    strength = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    found = root(lambda u: bratu(u, strength), torch.zeros(2, 63, dtype=torch.float64), solver=solver, stop=TIGHT)
    theta = root(lambda t: t - torch.sqrt(2 * strength[:, 0]) * torch.cosh(t / 4), torch.ones(2).double(), stop=TIGHT)
    expected = 2 * torch.log(torch.cosh(theta.value / 4))
    assert found.outcome.converged
    assert torch.allclose(found.value.amax(1), expected, rtol=1e-3)  # the error of 64 intervals
    assert bratu(found.value, strength).abs().max() < 1e-6


def test_the_power_flow_of_30_buses_is_that_of_pypower() -> None:
    """Voltages of the IEEE 30-bus case, as PYPOWER's own Newton finds them."""
    pypower = pytest.importorskip("pypower.api")
    case = pypower.case30()
    solved, ok = pypower.runpf(case, pypower.ppoption(VERBOSE=0, OUT_ALL=0))
    assert ok
    inner = pypower.ext2int(solved)
    y_bus = torch.from_numpy(pypower.makeYbus(inner["baseMVA"], inner["bus"], inner["branch"])[0].toarray())
    power = torch.from_numpy(pypower.makeSbus(inner["baseMVA"], inner["bus"], inner["gen"]))
    ref, pv, pq = map(torch.from_numpy, pypower.bustypes(inner["bus"], inner["gen"]))
    voltage = torch.from_numpy(
        inner["bus"][:, 7] * torch.exp(1j * torch.from_numpy(inner["bus"][:, 8]).deg2rad()).numpy()
    )
    free, num_free = torch.cat([pv, pq]), len(pv) + len(pq)

    def mismatch(state: Tensor) -> Tensor:
        angle, size = torch.zeros(1, 30).double(), voltage.abs()[None].clone()
        angle, size = angle.index_copy(1, free, state[:, :num_free]), size.index_copy(1, pq, state[:, num_free:])
        v = torch.polar(size, angle)
        s = v * (v @ y_bus.T).conj() - power
        return torch.cat([s.real[:, free], s.imag[:, pq]], 1)

    flat_start = torch.cat([torch.zeros(num_free), torch.ones(len(pq))])[None].double()
    for solver in (Newton(), NewtonKrylov(rtol=1e-6, max_products=64)):
        found = root(mismatch, flat_start, solver=solver, stop=TIGHT)
        assert found.outcome.converged
        assert torch.allclose(found.value[0, num_free:], voltage.abs()[pq], atol=1e-8)
        assert torch.allclose(found.value[0, :num_free], voltage.angle()[free] - voltage.angle()[ref], atol=1e-8)


W = 0.5 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("solver", METHODS, ids=name)
def test_gradients_pass_gradcheck(solver) -> None:
    """The solution of y³ + y + tanh(W y) = x, with respect to x and to W."""

    def solve(w: Tensor, x: Tensor) -> Tensor:
        residual = lambda y: 0.1 * y**3 + y + 0.3 * torch.tanh(y @ w) - x  # noqa: E731
        return root(residual, torch.zeros_like(x), solver=solver, stop=Tolerance(rtol=1e-13, max_evaluations=99)).value

    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (W.clone().requires_grad_(), x), atol=1e-4)


def test_states_may_be_nested_and_complex() -> None:
    """The three cube roots of unity, and their squares, as one nested state."""
    start = {"z": torch.tensor([1.1 + 0j, -0.6 + 0.8j, -0.4 - 0.9j])[:, None].to(torch.complex128)}
    start["square"] = start["z"].detach() ** 2
    found = root(lambda s: {"z": s["z"] ** 3 - 1, "square": s["square"] - s["z"] ** 2}, start, stop=TIGHT)
    assert found.outcome.converged
    assert torch.allclose(found.value["z"] ** 3, torch.ones(3, 1, dtype=torch.complex128))
    assert torch.allclose(found.value["square"], found.value["z"] ** 2)


def test_rows_do_not_influence_each_other() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def solve(rows: Tensor) -> Tensor:
        return root(lambda y: y + 0.3 * torch.tanh(y @ W) - rows, torch.zeros_like(rows), stop=TIGHT).value

    assert torch.allclose(solve(x)[:2], solve(x[:2]), atol=1e-14)
    huge = torch.cat([x[:2], 1e12 * x[2:]])
    assert torch.allclose(solve(huge)[:2], solve(x[:2]), atol=1e-14)


def test_a_singular_jacobian_is_an_outcome_and_no_exception() -> None:
    """One row has no root and a horizontal start; the other is solved."""
    target = torch.tensor([[-1.0], [4.0]])
    found = root(lambda y: y * y - target, torch.tensor([[0.0], [1.0]]))
    assert not found.outcome.converged
    assert found.value[1].item() == pytest.approx(2)
    assert "diverged: values grew or are not finite" in str(found.outcome)


def test_gmres_solves_a_dense_system_in_as_many_products_as_unknowns() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(4, 9, 9, generator=generator, dtype=torch.float64)
    b = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    b[2] = 0
    x, left = gmres(lambda s: (a @ s[:, :, None])[:, :, 0], b, rtol=1e-12, max_products=9)
    assert left[2] == 0
    assert torch.allclose((a @ x[:, :, None])[:, :, 0], b, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: root(torch.cos, torch.zeros(2, 3), solver=Newton), "got the class Newton"),
        (lambda: root(torch.cos, torch.zeros(2, 3), solver="newton"), "give a NewtonMethod"),
        (lambda: root(torch.cos, torch.zeros(2, 3), stop=3), "StopRule"),
        (lambda: root(lambda y: y[:1], torch.zeros(2, 3)), r"residual returned \(1, 3\)"),
        (lambda: root(torch.cos, torch.zeros(2, dtype=torch.long)), "floating-point"),
        (lambda: NewtonKrylov(max_products=0), "max_products"),
        (lambda: NewtonKrylov(rtol=float("nan")), "rtol"),
    ],
)
def test_wrong_arguments_raise_one_clear_sentence(call, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


def test_a_fixed_number_of_steps_and_another_gradient() -> None:
    x = torch.tensor([[4.0]], requires_grad=True)
    found = root(lambda y: y * y - x, torch.ones(1, 1), stop=Steps(6), gradient=OneStep())
    assert found.value.item() == pytest.approx(2)
    assert torch.autograd.grad(found.value.sum(), x)[0].item() == pytest.approx(1)  # of the update y − residual(y)


def test_a_step_that_gmres_cannot_find_is_not_convergence() -> None:
    """No root near the start, and too few products: both would give a step of zero."""
    no_root = root(lambda y: y**2 + 1, torch.zeros(1, 1), solver=NewtonKrylov())
    shift = torch.zeros(1, 64)
    shift[0, 0] = 1
    short = root(lambda y: y.roll(1, 1) - shift, torch.zeros(1, 64), solver=NewtonKrylov(max_products=32))
    assert not no_root.outcome.converged
    assert not short.outcome.converged


def test_an_inexact_gradient_of_newton_krylov_warns() -> None:
    scale = torch.logspace(0, 5, 400, dtype=torch.float64)
    target = torch.ones(1, 400, dtype=torch.float64, requires_grad=True)
    found = root(lambda y: scale * y - target, (1 / scale)[None] * 1.0, solver=NewtonKrylov(max_products=8))
    with pytest.warns(RuntimeWarning, match="raise max_products"):
        found.value.sum().backward()


def test_exact_roots_empty_batches_and_half_precision() -> None:
    """A singular Jacobian does no harm where the residual is zero."""
    assert root(lambda y: y * y, torch.zeros(2, 1)).outcome.converged
    assert root(lambda y: y - 1, torch.zeros(0, 3)).value.shape == (0, 3)
    half = root(lambda y: 2 * y - 3, torch.zeros(2, 3, dtype=torch.bfloat16), stop=Tolerance(rtol=1e-2))
    assert torch.equal(half.value, torch.full((2, 3), 1.5, dtype=torch.bfloat16))


def test_a_residual_of_exactly_zero_keeps_the_gradient() -> None:
    """Linear systems end at it: y = a / 2, and y = A⁻¹ c, by every function transform."""
    a = torch.tensor([2.0, 3.0, 4.0, 5.0])

    def half(a: torch.Tensor) -> torch.Tensor:
        return root(lambda y: 2 * y - a[:, None], torch.zeros(4, 1)).value[:, 0]

    assert torch.equal(torch.autograd.functional.jacobian(half, a), 0.5 * torch.eye(4))
    assert torch.equal(torch.func.jacrev(half)(a), 0.5 * torch.eye(4))
    assert torch.equal(torch.func.jvp(half, (a,), (torch.ones(4),))[1], torch.full((4,), 0.5))
    scale = torch.tensor([1.0, 2.0, 4.0])
    c = torch.ones(2, 3, requires_grad=True)
    root(lambda y: y * scale - c, torch.zeros(2, 3)).value.sum().backward()
    assert torch.equal(c.grad, (1 / scale).expand(2, 3))


def test_throw_carries_the_nested_root() -> None:
    with pytest.raises(NotConvergedError, match="root:") as error:
        root(lambda s: {"a": s["a"] ** 2 + 1}, {"a": torch.zeros(1, 1)}, throw=True)
    assert error.value.solution.value["a"].shape == (1, 1)
