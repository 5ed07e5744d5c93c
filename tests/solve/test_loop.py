"""Properties of the loop beyond those in the conformance suite."""

import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attractor import (
    Anderson,
    BestSoFar,
    Broyden,
    ConfigError,
    DataError,
    FixedPoint,
    Implicit,
    NotConvergedError,
    PartialUpdate,
    Picard,
    Solver,
    Status,
    Steps,
    StopRule,
    Tolerance,
    Unrolled,
    fixed_point,
)
from attractor.testing import residual, zoo

ZOO = {p.name: p for p in zoo()}
SOLVERS = [Picard(), Anderson(), Broyden()]


def by_name(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("n", [1, 2, 5])
def test_picard_steps_equal_repeated_calls_of_update(n: int) -> None:
    """Steps(n) with Picard() is update applied n times, bit for bit, and Steps(0) is y0."""
    problem = ZOO["causal attention"]
    expected = problem.y0
    for _ in range(n):
        expected = problem.update(expected)
    found = fixed_point(problem.update, problem.y0, solver=Picard(), stop=Steps(n))
    assert torch.equal(found.value, expected)
    assert found.evaluations.unique().tolist() == [n]
    assert torch.equal(fixed_point(problem.update, problem.y0, stop=Steps(0)).value, problem.y0)


def test_anderson_with_window_1_is_picard() -> None:
    """Mixing one point is a plain step."""
    for problem in ZOO.values():
        stop = Tolerance(rtol=1e-8, max_evaluations=25)
        a = fixed_point(problem.update, problem.y0, solver=Anderson(window=1), stop=stop)
        b = fixed_point(problem.update, problem.y0, solver=Picard(), stop=stop)
        assert torch.equal(a.value, b.value) or not problem.contracts


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_anderson_solves_an_affine_map_of_n_dimensions_in_n_plus_2_evaluations(n: int) -> None:
    """With a window above n, Anderson acceleration is a Krylov method."""
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)
    b = torch.randn(4, n, generator=generator, dtype=torch.float64)
    found = fixed_point(
        lambda y: y @ a.T + b, torch.zeros_like(b), solver=Anderson(window=n + 1), stop=Tolerance(rtol=1e-8)
    )
    assert found.outcome.converged
    assert found.evaluations.max() <= n + 2
    exact = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - a, b.mT).mT
    assert torch.allclose(found.value, exact, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_no_evaluation_limit_ends_farther_from_the_solution_than_y0(window: int) -> None:
    """On a contraction, for every window and limit from 1 up, the result is at least as near to the solution as y0."""
    problem = ZOO["affine"]
    start = (problem.y0 - problem.solution).norm(dim=1)
    for limit in range(1, 16):
        stop = Tolerance(rtol=1e-14, max_evaluations=limit)
        found = fixed_point(problem.update, problem.y0, solver=Anderson(window=window), stop=stop)
        assert ((found.value - problem.solution).norm(dim=1) <= start + 1e-12).all(), limit


def test_best_so_far_returns_the_point_with_the_lowest_residual() -> None:
    """Where nothing converges, the residual is the lowest of the solve and holds at the returned value."""
    update = ZOO["rotation"].update
    spiral = lambda y: 1.05 * update(y)  # noqa: E731
    stop = Tolerance(rtol=1e-9, max_evaluations=30, patience=None)
    last = fixed_point(spiral, ZOO["rotation"].y0, solver=Picard(), stop=stop, trace=True)
    best = fixed_point(spiral, ZOO["rotation"].y0, solver=BestSoFar(Picard()), stop=stop)
    lowest = torch.stack([residual(spiral, y) for y in last.trace]).amin(dim=0)
    assert torch.allclose(best.residual, lowest)
    assert torch.allclose(residual(spiral, best.value), lowest)
    assert (best.residual < last.residual).all()


@dataclass(frozen=True)
class BadSolver(Solver):
    """Always proposes a point far away, or a nonfinite one."""

    proposal: float
    max_growth = 4.0

    def init(self, y):
        return None

    def step(self, state, y, f, g, residual, fresh):
        return y + self.proposal, None

    def finalize(self, state, y, residual):
        return y, residual


@pytest.mark.parametrize("proposal", [1e6, torch.inf, torch.nan])
def test_bad_steps_are_rejected(proposal: float) -> None:
    """Every second evaluation is the plain step from the last accepted point, so a contraction is solved anyway."""
    problem = ZOO["affine"]
    stop = Tolerance(rtol=1e-9, max_evaluations=400)
    bad = fixed_point(problem.update, problem.y0, solver=BadSolver(proposal), stop=stop)
    plain = fixed_point(problem.update, problem.y0, solver=Picard(), stop=stop)
    assert bad.outcome.converged
    assert torch.equal(bad.value, plain.value)
    assert (bad.evaluations <= 2 * plain.evaluations).all()


def test_anderson_forgets_its_history_after_a_gap() -> None:
    """After a gap (frozen, or a rejected step) Anderson proposes the same as with only the later points."""
    generator = torch.Generator().manual_seed(0)
    solver = Anderson(window=4)
    old, new = None, None
    for call in range(7):
        y, f = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        old = solver.init(y) if old is None else old
        fresh = torch.full((3,), call != 3)
        a, old = solver.step(old, y, f, f - y, y[:, 0], fresh)
        if call > 3:
            new = solver.init(y) if new is None else new
            b, new = solver.step(new, y, f, f - y, y[:, 0], fresh)
            assert torch.allclose(a, b, atol=1e-9), call


class BadSolverInTurn(BadSolver):
    """Proposes a bad point for the second equation only, then, during its plain step, for the first equation."""

    def init(self, y):
        return 0

    def step(self, state, y, f, g, residual, fresh):
        proposal = f.clone()
        if state < 2:
            proposal[1 - state] += (50, 1e4)[state]
        return proposal, state + 1


def test_bad_steps_of_a_neighbour_are_not_divergence() -> None:
    """A bad proposal that makes a row nonfinite is rejected; only failures after plain steps are divergence."""

    def update(y: torch.Tensor) -> torch.Tensor:
        coupled = 0.3 * y + 0.01 * y.mean(dim=1, keepdim=True) + 1
        return torch.where(y.abs().amax(dim=(1, 2), keepdim=True) < 100, coupled, torch.nan)

    found = fixed_point(update, torch.zeros(1, 2, 3), solver=BadSolverInTurn(0), stop=Tolerance(rtol=1e-5))
    assert found.outcome.converged, found.outcome


def test_a_diverged_row_is_reported_and_does_not_affect_others() -> None:
    """A row that overflows is reported and its value stays finite; the other row is solved."""
    scale = torch.tensor([[0.5], [1e30]])
    found = fixed_point(lambda y: scale * y + 1, torch.ones(2, 1), solver=Picard())
    assert found.outcome.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    assert "1 diverged" in str(found.outcome)
    assert found.value.isfinite().all()
    assert found.value[0].item() == pytest.approx(2, rel=1e-3)


def test_a_tolerance_below_the_precision_of_bf16_stagnates() -> None:
    """The solve ends early, and the outcome says that it stagnated."""
    generator = torch.Generator().manual_seed(0)
    w = 0.4 * torch.randn(64, 64, generator=generator) / 8
    x = torch.randn(4, 64, generator=generator)
    update = lambda y: (torch.tanh(y.bfloat16() @ w.bfloat16()) + x.bfloat16()).float()  # noqa: E731
    found = fixed_point(update, torch.zeros(4, 64), solver=Anderson(), stop=Tolerance(rtol=1e-7, max_evaluations=400))
    assert not found.outcome.converged
    assert found.outcome.calls < 200
    assert (found.outcome.status == Status.STAGNATED).any()
    assert "stagnated" in str(found.outcome)


@pytest.mark.parametrize("check_every", [2, 5])
def test_check_every_changes_no_value(check_every: int) -> None:
    """check_every only changes when the host checks convergence."""
    problem = ZOO["causal attention"]
    often, rarely = (
        fixed_point(problem.update, problem.y0, stop=Tolerance(rtol=1e-6, check_every=n), causal=True)
        for n in (1, check_every)
    )
    assert torch.equal(often.value, rarely.value)
    assert torch.equal(often.evaluations, rarely.evaluations)
    assert torch.equal(often.outcome.status, rarely.outcome.status)


def test_min_evaluations_are_made_even_at_a_fixed_point() -> None:
    """No equation converges before min_evaluations."""
    found = fixed_point(lambda y: y, torch.ones(3, 2), stop=Tolerance(min_evaluations=4))
    assert found.evaluations.tolist() == [4, 4, 4]


def test_no_equation_stagnates_before_min_evaluations() -> None:
    """The test for stagnation, too, waits for min_evaluations."""
    found = fixed_point(lambda y: 0.5 * y + 1, torch.ones(2, 1), solver=Picard(), stop=Tolerance(min_evaluations=40))
    assert found.outcome.converged
    assert found.evaluations.tolist() == [40, 40]


def test_best_so_far_does_not_move_predecessors_of_converged_equations() -> None:
    """A token that converged after one that stagnated keeps its residual, also with BestSoFar."""

    def update(y: torch.Tensor) -> torch.Tensor:
        a, b = y.unbind(1)
        return torch.stack([0.2 - 1.0 * a + 0.3 * torch.sin(3 * a), 0.9 * b + 0.1 + 0.001 * a], dim=1)

    stop = Tolerance(rtol=1e-5, max_evaluations=300)
    found = fixed_point(
        update, torch.full((1, 2, 1), 2.0, dtype=torch.float64), solver=BestSoFar(Picard()), stop=stop, causal=True
    )
    converged = found.outcome.status == Status.CONVERGED
    assert converged.tolist() == [[False, True]]
    assert (residual(update, found.value)[converged] < 1e-5).all()


@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=by_name)
def test_tokens_that_start_at_a_fixed_point_are_still_accelerated(solver) -> None:
    """Tokens whose residual is near zero at first, before any change reaches them, keep their solver's steps."""
    t = 8
    link = 0.3 * torch.diag(torch.ones(t - 1, dtype=torch.float64), -1)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)
    c = torch.zeros(1, t, 6, dtype=torch.float64)
    c[:, 0] = 1
    stop = Tolerance(rtol=1e-6, max_evaluations=500)
    calls = [
        fixed_point(
            lambda y: y @ a.T + link @ y + c, torch.zeros_like(c), solver=s, stop=stop, causal=True
        ).outcome.calls
        for s in (solver, Picard())
    ]
    assert calls[0] <= calls[1]


def test_small_steps_add_up_in_a_narrow_dtype() -> None:
    """The state is float32 or wider: damped steps below the precision of bf16 add up."""
    found = fixed_point(
        lambda y: 0.2 * y + 1,
        torch.ones(1, 1, dtype=torch.bfloat16),
        solver=Picard(damping=0.01),
        stop=Tolerance(rtol=4e-3, max_evaluations=900, patience=None),
    )
    assert found.outcome.converged
    assert found.value.item() == pytest.approx(1.25, abs=0.01)


def test_min_converged_fraction_stops_before_the_slow_equations() -> None:
    """The solve ends when that fraction is below tolerance, and the outcome says which equations are not."""
    rate = torch.tensor([0.1, 0.1, 0.1, 0.999])[:, None]
    found = fixed_point(
        lambda y: rate * y + 1,
        torch.zeros(4, 1),
        solver=Picard(),
        stop=Tolerance(rtol=1e-4, min_converged_fraction=0.75),
    )
    assert found.outcome.calls < 10
    assert found.outcome.num_open == 1
    assert "fraction" in str(found.outcome)


@pytest.mark.parametrize("solver", SOLVERS, ids=by_name)
def test_frozen_tokens_are_verified_after_their_predecessors_change(solver) -> None:
    """A token that freezes before an earlier one converges only if its residual holds at the returned values."""
    t = 6
    mix = torch.tril(torch.ones(t, t, dtype=torch.float64), -1) * 0.6
    rate = torch.linspace(0.97, 0.05, t, dtype=torch.float64)[:, None]  # the first tokens are the slowest

    def update(y: torch.Tensor) -> torch.Tensor:
        return rate * torch.cos(y) + torch.tanh(mix @ y) + 0.5

    y0 = torch.zeros(2, t, 3, dtype=torch.float64)
    found = fixed_point(update, y0, solver=solver, stop=Tolerance(rtol=1e-6, max_evaluations=400), causal=True)
    assert found.outcome.converged, found.outcome
    assert (residual(update, found.value) < 1e-6).all()
    assert found.evaluations[0, 0] < found.evaluations.max()


@given(
    leading=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    trailing=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    solver=st.sampled_from([*SOLVERS, BestSoFar(Anderson()), Anderson(window=2, mixing=0.5)]),
    causal=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_shape_and_dtype_is_solved(leading, trailing, dtype, solver, causal, seed) -> None:
    """Shape and dtype come back; residual and count have the leading shape and a wide dtype."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*leading, *trailing)
    c = torch.randn(shape, generator=generator).to(dtype) + 2
    found = fixed_point(
        lambda y: 0.3 * torch.tanh(y) + c,
        torch.zeros(shape, dtype=dtype),
        solver=solver,
        stop=Tolerance(rtol=0.02),
        equation_dims=len(trailing),
        causal=causal and bool(leading),
    )
    assert found.outcome.converged, found.outcome
    assert (found.value.shape, found.value.dtype) == (c.shape, dtype)
    assert found.residual.shape == found.evaluations.shape == found.outcome.status.shape == tuple(leading)
    assert found.residual.dtype == torch.promote_types(dtype, torch.float32)


def test_an_empty_batch_is_solved() -> None:
    """An empty batch is no error."""
    assert fixed_point(torch.cos, torch.zeros(0, 3)).value.shape == (0, 3)


def test_a_zero_solution_is_found() -> None:
    """The relative residual at y = 0 is zero if the update returns 0."""
    assert fixed_point(lambda y: 0.0 * y, torch.ones(2, 3)).outcome.converged


def test_trace_keeps_every_point_of_evaluation() -> None:
    """One point per call; the first is y0."""
    problem = ZOO["affine"]
    found = fixed_point(problem.update, problem.y0, trace=True)
    assert found.trace.shape == (found.outcome.calls, *problem.y0.shape)
    assert torch.equal(found.trace[0], problem.y0)


@pytest.mark.parametrize("solver", SOLVERS, ids=by_name)
def test_trace_keeps_only_the_requested_points(solver: Solver) -> None:
    """Point n is the state after n steps, in increasing order; points that the solve does not reach are left out."""
    problem = ZOO["causal attention"]
    for stop in (Steps(7), Tolerance(rtol=1e-6)):
        complete = fixed_point(problem.update, problem.y0, solver=solver, stop=stop, causal=True, trace=True)
        some = fixed_point(problem.update, problem.y0, solver=solver, stop=stop, causal=True, trace={4, 0, 2, 1000})
        assert torch.equal(some.trace, complete.trace[[0, 2, 4]])
        assert torch.equal(some.value, complete.value)
        assert (
            fixed_point(problem.update, problem.y0, solver=solver, stop=stop, causal=True, trace=[1000]).trace is None
        )


@pytest.mark.parametrize("solver", SOLVERS, ids=by_name)
def test_trace_of_a_fixed_depth_can_include_the_returned_value(solver: Solver) -> None:
    """One solve of n steps holds the values of all shorter ones."""
    problem = ZOO["affine"]
    found = fixed_point(problem.update, problem.y0, solver=solver, stop=Steps(6), trace=(3, 6))
    assert torch.equal(found.trace[-1], found.value)
    assert torch.equal(found.trace[0], fixed_point(problem.update, problem.y0, solver=solver, stop=Steps(3)).value)
    assert torch.equal(fixed_point(problem.update, problem.y0, stop=Steps(0), trace=[0]).trace[0], problem.y0)


@dataclass(frozen=True, kw_only=True)
class AbsoluteTolerance(StopRule):
    """Stops when ``‖update(y) − y‖`` is below ``atol``."""

    atol: float
    max_evaluations: int = 100

    def is_below(self, residual, residual_norm, margin):
        return residual_norm < margin * self.atol


@pytest.mark.parametrize("solver", SOLVERS, ids=by_name)
@pytest.mark.parametrize("name", ["affine", "causal attention"])
def test_users_can_define_a_stop_rule(name: str, solver: Solver) -> None:
    """An absolute tolerance holds at the returned value, with and without gradients."""
    problem = ZOO[name]
    y0 = 1e3 * problem.y0
    for gradient in (Unrolled(), Implicit()):
        stop = AbsoluteTolerance(atol=1e-7)
        found = fixed_point(problem.update, y0, solver=solver, stop=stop, gradient=gradient, causal=problem.causal)
        assert found.outcome.converged, found.outcome
        assert (problem.update(found.value) - found.value).norm(dim=-1).max() < 1e-7
    limited = fixed_point(problem.update, y0, solver=solver, stop=AbsoluteTolerance(atol=1e-7, max_evaluations=2))
    assert limited.outcome.calls == limited.outcome.limit == 2
    assert not limited.outcome.converged


def test_a_tolerance_is_the_first_argument() -> None:
    """Tolerance(1e-5) is Tolerance(rtol=1e-5); all other settings need their names."""
    assert Tolerance(1e-5) == Tolerance(rtol=1e-5)
    with pytest.raises(TypeError, match="positional"):
        Tolerance(1e-5, 100)


def test_a_solution_prints_in_one_line() -> None:
    """Shape, converged count, largest residual and evaluations."""
    scale = torch.tensor([[0.5], [0.0]])
    found = fixed_point(lambda y: scale * y + 1, torch.zeros(2, 1), solver=Picard(), stop=Tolerance(1e-3))
    assert re.fullmatch(
        r"Solution\(shape=\(2, 1\), converged=2/2, max_residual=[\d.e-]+, evaluations=2–\d+\)", repr(found)
    )
    assert "not checked" in repr(fixed_point(torch.cos, torch.zeros(2, 1), stop=Steps(2)))
    assert repr(fixed_point(torch.cos, torch.zeros(0, 3))) == "Solution(shape=(0, 3), converged=0/0)"


def test_throw_raises_an_error_with_the_outcome_and_the_solution() -> None:
    """throw=True raises where some equation has not converged."""
    with pytest.raises(NotConvergedError, match="2 of 2 equation") as raised:
        fixed_point(lambda y: y + 1, torch.ones(2, 3), solver=Picard(), stop=Tolerance(max_evaluations=3), throw=True)
    assert raised.value.solution.value.tolist() == torch.full((2, 3), 3.0).tolist()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fixed_point(torch.cos, torch.ones(2, 3, dtype=torch.long)), "floating-point"),
        (lambda: fixed_point(torch.cos, [1.0]), "is float; the state holds"),
        (lambda: fixed_point(torch.cos, torch.ones(3), equation_dims=2), "equation_dims=2"),
        (lambda: fixed_point(torch.cos, torch.ones(3), equation_dims=1, causal=True), "no dimension left for time"),
        (lambda: fixed_point(lambda y: y[:1], torch.ones(2, 3)), r"returned \(1, 3\)"),
        (lambda: fixed_point(lambda y: y.double(), torch.ones(2, 3)), "float64"),
        (lambda: fixed_point(lambda y: None, torch.ones(2, 3)), "NoneType"),
        (lambda: fixed_point(lambda y: y.mul_(0.5), torch.ones(2, 3)), "in place"),
        (lambda: fixed_point(torch.cos, torch.ones(2, 3), solver=Picard), r"solver=\.\.\.\): got the class Picard"),
        (lambda: fixed_point(torch.cos, torch.ones(2, 3), stop=1e-5), "got 1e-05; give a StopRule, such as Tolerance"),
        (lambda: fixed_point(torch.cos, torch.ones(2, 3), gradient="implicit"), "give a Gradient, such as Implicit"),
        (lambda: fixed_point(torch.cos, torch.ones(2, 3), trace=5), "collection of evaluation counts"),
        (lambda: FixedPoint(torch.nn.Tanh(), stop=5), "FixedPoint.* such as Tolerance"),
        (lambda: Tolerance(rtol=0), "positive"),
        (lambda: Tolerance(max_evaluations=0), "from 1 up"),
        (lambda: Tolerance(min_converged_fraction=0), "fraction"),
        (lambda: Tolerance(min_converged_fraction=2), "fraction"),
        (lambda: Tolerance(max_evaluations=3.5), "whole number"),
        (lambda: Tolerance(min_evaluations=9, max_evaluations=8), "must not exceed"),
        (lambda: Steps(2.0), "whole number"),
        (lambda: Anderson(window=2.5), "whole number"),
        (lambda: Anderson(ridge=float("nan")), "ridge"),
        (lambda: Anderson(mixing=1.5), "mixing"),
        (lambda: Tolerance(patience=0), "patience"),
        (lambda: Steps(-1), "from 0 up"),
        (lambda: Picard(damping=0), "damping"),
        (lambda: Anderson(window=0), "window"),
        (lambda: Anderson(ridge=-1.0), "ridge"),
        (lambda: Broyden(memory=0), "memory"),
    ],
)
def test_wrong_arguments_raise_one_clear_sentence(call, says: str) -> None:
    """The message names the argument."""
    with pytest.raises(ConfigError, match=says):
        call()


def test_a_nonfinite_initial_point_is_refused() -> None:
    """NaN in y0 is bad data, not a bad setting."""
    with pytest.raises(DataError, match="NaN"):
        fixed_point(torch.cos, torch.tensor([[1.0, torch.nan]]))


@pytest.mark.parametrize("solver", SOLVERS, ids=by_name)
@pytest.mark.parametrize("rtol", [1e-2, 1e-9])
def test_bookkeeping_is_the_same_with_and_without_gradients(solver: Solver, rtol: float) -> None:
    """NumPy does the bookkeeping on a CPU, PyTorch where gradients are tracked: status, counts and values agree."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    for problem in ZOO.values():
        broken = problem.y0.clone()
        broken[:1] = 1e160  # whose square is not finite
        for y0 in (problem.y0, broken):
            stop = Tolerance(rtol=rtol, max_evaluations=40, patience=6)
            update = lambda y, p=problem: scale * p.update(y)  # noqa: E731
            tracked = fixed_point(update, y0, solver=solver, stop=stop, causal=problem.causal, gradient=Unrolled())
            assert tracked.value.requires_grad
            with torch.no_grad():
                free = fixed_point(update, y0, solver=solver, stop=stop, causal=problem.causal)
            assert torch.equal(tracked.outcome.status, free.outcome.status), problem.name
            assert torch.equal(tracked.evaluations, free.evaluations), problem.name
            assert torch.allclose(tracked.value, free.value, rtol=1e-12, atol=1e-12, equal_nan=True), problem.name


def test_update_may_use_autograd_inside() -> None:
    """Where autograd is off, an update may switch it on inside, as a gradient step on an energy does."""

    def descend(y):
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            energy = (y - 2).square().sum() / 4
            return y - torch.autograd.grad(energy, y, create_graph=True)[0]

    with torch.no_grad():
        found = fixed_point(descend, torch.zeros(3, 4, dtype=torch.float64))
    assert found.outcome.converged
    assert torch.allclose(found.value, torch.full_like(found.value, 2), atol=1e-3)


@pytest.mark.parametrize("stop", [Steps(0), Steps(1), Tolerance()], ids=repr)
def test_the_value_is_new_memory(stop) -> None:
    """Neither that of y0 nor that of the result of update: writing into the value changes nothing else."""
    y0 = constant = torch.ones(2, 3)
    for gradient_mode in (False, True):
        with torch.set_grad_enabled(gradient_mode):
            value = fixed_point(lambda y: constant, y0, stop=stop).value
        value.detach().zero_()
        assert (constant == 1).all()


class _Partial(PartialUpdate):
    """y ↦ f(y) for causal pairs (1, 2, 1), computed for some equations only."""

    def __init__(self, function) -> None:
        self.function, self.last = function, None

    def __call__(self, y):
        self.last = y.clone()
        return self.function(y)

    def at(self, y, index):
        self.last = self.last.clone().view(-1, 1).index_copy(0, index, y).view_as(self.last)
        return self.function(self.last).view(-1, 1)[index]


def test_a_partial_update_waits_when_nothing_needs_evaluation() -> None:
    """With check_every, evaluations go on after all equations have stopped."""
    update = _Partial(lambda y: 0 * y + 1)
    with torch.no_grad():
        found = fixed_point(update, torch.zeros(1, 2, 1), stop=Tolerance(check_every=5))
    assert found.outcome.converged


def test_a_frozen_neighbour_does_not_keep_a_cycle_going() -> None:
    """One equation of the row converges, the other has a cycle: it stagnates instead of running to the limit."""
    update = lambda y: torch.cat([0 * y[:, :1] + 1, 3 - y[:, 1:]], 1)  # noqa: E731
    found = fixed_point(update, torch.zeros(1, 2, 1), solver=Picard(), stop=Tolerance(max_evaluations=500))
    assert found.outcome.status[0, 1] == Status.STAGNATED
    assert found.outcome.calls < 100


class _Jump(Picard):
    """A plain iteration with one accelerated step, before call 32, that is very wrong."""

    max_growth = 4.0

    def init(self, y):
        return 0

    def step(self, state, y, f, g, residual, fresh):
        return f + 1e3 * (state == 30), state + 1


def test_an_equation_that_stagnates_at_a_rejected_step_keeps_the_accepted_point() -> None:
    found = fixed_point(lambda y: 3 - y, torch.ones(1, 1), solver=_Jump())
    assert found.outcome.status.item() == Status.STAGNATED
    assert 0.9 < found.value.item() < 2.1


@pytest.mark.parametrize("max_growth", [0.5, 0.8])
def test_a_strict_safeguard_keeps_causality(max_growth: float) -> None:
    """A decision for one token does not depend on whether later residuals grew."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        w = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)) / 3
        x = torch.randn(1, 2, 6, generator=generator)
        changed = torch.cat([x[:, :1], 10 * x[:, 1:] + 1], 1)
        a, b = (
            fixed_point(
                lambda y, c=c, w=w: torch.tanh(y @ w) + c,
                torch.zeros_like(c),
                solver=Anderson(max_growth=max_growth),
                causal=True,
            )
            for c in (x, changed)
        )
        assert torch.equal(a.value[:, 0], b.value[:, 0])


def test_an_equation_that_was_frozen_is_not_tested_for_stagnation() -> None:
    """It fails its verification in the evaluation that ends the window of ``patience``, and then converges."""

    def update(y: torch.Tensor) -> torch.Tensor:  # the first equation walks to 3/4; only there it moves the second
        first = (y[:, 0] + 1 / 8).clamp_max(3 / 4)
        return torch.stack([first, 1 + (y[:, 0] >= 3 / 4) / 2], dim=1)

    solution = fixed_point(
        update,
        torch.tensor([[0.0, 1.0]]),
        solver=Picard(),
        stop=Tolerance(patience=4),
        equation_dims=0,
        causal=True,
    )
    assert solution.outcome.converged, str(solution.outcome)
    assert solution.value.tolist() == [[0.75, 1.5]]
