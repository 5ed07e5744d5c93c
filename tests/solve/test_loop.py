"""What the loop promises beyond what every solver is held to."""

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
    NotConvergedError,
    Picard,
    Solver,
    Status,
    Steps,
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
def test_picard_steps_are_exactly_calls_of_update(n: int) -> None:
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
    """One point to mix is a plain step."""
    for problem in ZOO.values():
        stop = Tolerance(rtol=1e-8, max_evaluations=25)
        a = fixed_point(problem.update, problem.y0, solver=Anderson(window=1), stop=stop)
        b = fixed_point(problem.update, problem.y0, solver=Picard(), stop=stop)
        assert torch.equal(a.value, b.value) or not problem.contracts


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_an_affine_map_of_n_dimensions_is_solved_in_n_plus_2_evaluations(n: int) -> None:
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
def test_no_budget_returns_worse_than_the_start(window: int) -> None:
    """On a contraction, for every window and limit from 1 up, the end is at least as near the solution as y0."""
    problem = ZOO["affine"]
    start = (problem.y0 - problem.solution).norm(dim=1)
    for limit in range(1, 16):
        stop = Tolerance(rtol=1e-14, max_evaluations=limit)
        found = fixed_point(problem.update, problem.y0, solver=Anderson(window=window), stop=stop)
        assert ((found.value - problem.solution).norm(dim=1) <= start + 1e-12).all(), limit


def test_best_returns_the_calmest_point_it_saw() -> None:
    """Where nothing settles, Best's residual is the smallest along the way, and its own."""
    update = ZOO["rotation"].update
    spiral = lambda y: 1.05 * update(y)  # noqa: E731
    stop = Tolerance(rtol=1e-9, max_evaluations=30, patience=None)
    last = fixed_point(spiral, ZOO["rotation"].y0, solver=Picard(), stop=stop, trace=True)
    best = fixed_point(spiral, ZOO["rotation"].y0, solver=BestSoFar(Picard()), stop=stop)
    seen = torch.stack([residual(spiral, y) for y in last.trace]).amin(dim=0)
    assert torch.allclose(best.residual, seen)
    assert torch.allclose(residual(spiral, best.value), seen)
    assert (best.residual < last.residual).all()


@dataclass(frozen=True)
class Wild(Solver):
    """Proposes a point far away, or none at all, every time."""

    proposal: float
    max_growth = 4.0

    def init(self, y):
        return None

    def step(self, state, y, f, g, residual, fresh):
        return y + self.proposal, None

    def finalize(self, state, y, residual):
        return y, residual


@pytest.mark.parametrize("proposal", [1e6, torch.inf, torch.nan])
def test_a_step_that_blows_up_is_undone(proposal: float) -> None:
    """However bad the proposals, every second evaluation is the plain step from the last good point, so a contraction is solved."""
    problem = ZOO["affine"]
    stop = Tolerance(rtol=1e-9, max_evaluations=400)
    wild = fixed_point(problem.update, problem.y0, solver=Wild(proposal), stop=stop)
    plain = fixed_point(problem.update, problem.y0, solver=Picard(), stop=stop)
    assert wild.outcome.converged
    assert torch.equal(wild.value, plain.value)
    assert (wild.evaluations <= 2 * plain.evaluations).all()


def test_an_interrupted_history_is_forgotten() -> None:
    """After a gap (frozen, or a step undone) Anderson proposes what it would if it had seen only what came since."""
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


class Unlucky(Wild):
    """First spoils the second equation alone, then, while that one makes its plain step, the whole row through the first."""

    def init(self, y):
        return 0

    def step(self, state, y, f, g, residual, fresh):
        wild = f.clone()
        if state < 2:
            wild[1 - state] += (50, 1e4)[state]
        return wild, state + 1


def test_a_neighbours_bad_step_is_not_ones_own_divergence() -> None:
    """Where a wild proposal spoils a whole row, the row goes on; only what fails after plain steps has diverged."""

    def update(y: torch.Tensor) -> torch.Tensor:
        coupled = 0.3 * y + 0.01 * y.mean(dim=1, keepdim=True) + 1
        return torch.where(y.abs().amax(dim=(1, 2), keepdim=True) < 100, coupled, torch.nan)

    found = fixed_point(update, torch.zeros(1, 2, 3), solver=Unlucky(0), stop=Tolerance(rtol=1e-5))
    assert found.outcome.converged, found.outcome


def test_divergence_is_contained_and_named() -> None:
    """A row that overflows is reported; its value stays finite and its neighbours are solved as if alone."""
    scale = torch.tensor([[0.5], [1e30]])
    found = fixed_point(lambda y: scale * y + 1, torch.ones(2, 1), solver=Picard())
    assert found.outcome.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    assert "1 diverged" in str(found.outcome)
    assert found.value.isfinite().all()
    assert found.value[0].item() == pytest.approx(2, rel=1e-3)


def test_the_floor_of_bf16_is_named() -> None:
    """A tolerance below what bf16 can resolve ends early, as stagnation, and says so."""
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
def test_looking_rarely_changes_no_value(check_every: int) -> None:
    """check_every moves the host's looks and nothing else."""
    problem = ZOO["causal attention"]
    often, rarely = (
        fixed_point(problem.update, problem.y0, stop=Tolerance(rtol=1e-6, check_every=n), causal=True)
        for n in (1, check_every)
    )
    assert torch.equal(often.value, rarely.value)
    assert torch.equal(often.evaluations, rarely.evaluations)
    assert torch.equal(often.outcome.status, rarely.outcome.status)


def test_min_evaluations_are_made_even_at_a_fixed_point() -> None:
    """Nothing is judged before min_evaluations."""
    found = fixed_point(lambda y: y, torch.ones(3, 2), stop=Tolerance(min_evaluations=4))
    assert found.evaluations.tolist() == [4, 4, 4]


def test_min_evaluations_hold_back_every_verdict() -> None:
    """Not even stagnation is declared before them."""
    found = fixed_point(lambda y: 0.5 * y + 1, torch.ones(2, 1), solver=Picard(), stop=Tolerance(min_evaluations=40))
    assert found.outcome.converged
    assert found.evaluations.tolist() == [40, 40]


def test_the_best_point_replaces_nothing_that_final_equations_rest_on() -> None:
    """A token that is final behind one that gave up keeps its residual, also with Best."""

    def update(y: torch.Tensor) -> torch.Tensor:
        a, b = y.unbind(1)
        return torch.stack([0.2 - 1.0 * a + 0.3 * torch.sin(3 * a), 0.9 * b + 0.1 + 0.001 * a], dim=1)

    stop = Tolerance(rtol=1e-5, max_evaluations=300)
    found = fixed_point(
        update, torch.full((1, 2, 1), 2.0, dtype=torch.float64), solver=BestSoFar(Picard()), stop=stop, causal=True
    )
    final = found.outcome.status == Status.CONVERGED
    assert final.tolist() == [[False, True]]
    assert (residual(update, found.value)[final] < 1e-5).all()


@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=by_name)
def test_a_chain_that_starts_at_rest_is_still_accelerated(solver) -> None:
    """Tokens whose residual begins near zero, because nothing has reached them yet, keep their solver's steps."""
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


def test_a_narrow_dtype_does_not_swallow_small_steps() -> None:
    """The state is wide: damped steps below bf16's resolution add up."""
    found = fixed_point(
        lambda y: 0.2 * y + 1,
        torch.ones(1, 1, dtype=torch.bfloat16),
        solver=Picard(damping=0.01),
        stop=Tolerance(rtol=4e-3, max_evaluations=900, patience=None),
    )
    assert found.outcome.converged
    assert found.value.item() == pytest.approx(1.25, abs=0.01)


def test_fraction_stops_before_the_slow_tail() -> None:
    """With fraction, the solve ends when that share is below tolerance and says what is open."""
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
def test_settled_tokens_are_verified_where_a_later_change_upstream_moves_them(solver) -> None:
    """A token that looks settled while an earlier one still moves is final only once that is true at the returned values."""
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
    """No rows, no work, no error."""
    assert fixed_point(torch.cos, torch.zeros(0, 3)).value.shape == (0, 3)


def test_a_zero_solution_is_found() -> None:
    """A relative residual at y = 0 is zero where the update keeps it."""
    assert fixed_point(lambda y: 0.0 * y, torch.ones(2, 3)).outcome.converged


def test_the_trace_holds_every_point_of_evaluation() -> None:
    """One entry a call, the first of them y0."""
    problem = ZOO["affine"]
    found = fixed_point(problem.update, problem.y0, trace=True)
    assert found.trace.shape == (found.outcome.calls, *problem.y0.shape)
    assert torch.equal(found.trace[0], problem.y0)


def test_throw_raises_the_outcome() -> None:
    """throw=True turns what is open into an error that says the same."""
    with pytest.raises(NotConvergedError, match="2 of 2 equation"):
        fixed_point(lambda y: y + 1, torch.ones(2, 3), solver=Picard(), stop=Tolerance(max_evaluations=3), throw=True)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fixed_point(torch.cos, torch.ones(2, 3, dtype=torch.long)), "floating-point"),
        (lambda: fixed_point(torch.cos, [1.0]), "not list"),
        (lambda: fixed_point(torch.cos, torch.ones(3), equation_dims=2), "equation_dims=2"),
        (lambda: fixed_point(torch.cos, torch.ones(3), causal=True), "no dimension left for time"),
        (lambda: fixed_point(lambda y: y[:1], torch.ones(2, 3)), r"returned \(1, 3\)"),
        (lambda: fixed_point(lambda y: y.double(), torch.ones(2, 3)), "float64"),
        (lambda: fixed_point(lambda y: None, torch.ones(2, 3)), "NoneType"),
        (lambda: fixed_point(lambda y: y.mul_(0.5), torch.ones(2, 3)), "in place"),
        (lambda: Tolerance(rtol=0), "positive"),
        (lambda: Tolerance(max_evaluations=0), "from 1 up"),
        (lambda: Tolerance(min_converged_fraction=0), "fraction"),
        (lambda: Tolerance(min_converged_fraction=2), "share"),
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
def test_what_cannot_work_is_refused_in_one_sentence(call, says: str) -> None:
    """Each mistake names itself."""
    with pytest.raises(ConfigError, match=says):
        call()


def test_a_start_that_is_not_finite_is_refused() -> None:
    """NaN in y0 is bad data, not a bad setting."""
    with pytest.raises(DataError, match="NaN"):
        fixed_point(torch.cos, torch.tensor([[1.0, torch.nan]]))


@pytest.mark.parametrize("solver", SOLVERS, ids=by_name)
@pytest.mark.parametrize("rtol", [1e-2, 1e-9])
def test_decisions_are_the_same_with_and_without_gradients(solver: Solver, rtol: float) -> None:
    """What numpy decides on a CPU, torch decides where gradients are tracked: status, counts and values agree."""
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


def test_an_update_may_track_gradients_of_its_own() -> None:
    """Where autograd is off, an update that switches it on inside, as an energy's descent does, is solved all the same."""

    def descend(y):
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            energy = (y - 2).square().sum() / 4
            return y - torch.autograd.grad(energy, y, create_graph=True)[0]

    with torch.no_grad():
        found = fixed_point(descend, torch.zeros(3, 4, dtype=torch.float64))
    assert found.outcome.converged
    assert torch.allclose(found.value, torch.full_like(found.value, 2), atol=1e-3)
