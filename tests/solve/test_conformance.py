"""Every solver of the package passes the public conformance suite."""

import pytest
import torch
from benchmarks.solvers_operators import READS, operators
from torch._dynamo.utils import counters
from torch._inductor import metrics

from attractor import Anderson, BestSoFar, Broyden, Picard, Solution, Tolerance, fixed_point, fused_bookkeeping
from attractor.solve import anderson, array_ops, loop, update
from attractor.testing import SolverConformance, UpdateConformance, causal_attention, zoo


class TestPicard(SolverConformance):
    accelerates = False

    def make_solver(self):
        return Picard()


class TestDampedPicard(SolverConformance):
    accelerates = False

    def make_solver(self):
        return Picard(damping=0.7)


class TestAnderson(SolverConformance):
    def make_solver(self):
        return Anderson()


class TestAndersonWithMixing(SolverConformance):
    def make_solver(self):
        return Anderson(window=3, mixing=0.8, ridge=1e-10)


class TestBroyden(SolverConformance):
    def make_solver(self):
        return Broyden()


class TestBroydenWithSmallMemory(SolverConformance):
    def make_solver(self):
        return Broyden(memory=4)


class TestBestSoFarAnderson(SolverConformance):
    def make_solver(self):
        return BestSoFar(Anderson())


class TestAttentionBlock(UpdateConformance):
    causal = True

    def make_update(self):
        return causal_attention(torch.Generator().manual_seed(0), torch.float32)

    def make_state(self):
        return torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tensors(monkeypatch) -> None:
    """The path of an accelerator: bookkeeping on tensors, and the host reads nothing between convergence checks."""
    for module in (array_ops, anderson, loop, update):
        monkeypatch.setattr(module, "to_array", lambda x: x)
        if hasattr(module, "is_readable"):
            monkeypatch.setattr(module, "is_readable", lambda x: False)


@pytest.mark.usefixtures("tensors")
@pytest.mark.parametrize(
    "suite", [TestPicard, TestAnderson, TestBroyden, TestBestSoFarAnderson], ids=lambda s: s.__name__
)
def test_the_path_of_an_accelerator_has_the_same_properties(suite) -> None:
    tests = suite()
    names = [name for name in dir(tests) if name.startswith("test_")]
    assert len(names) >= 6
    for name in names:
        getattr(tests, name)()


@pytest.mark.usefixtures("tensors")
def test_anderson_needs_no_float64(monkeypatch) -> None:
    """On a device without it, such as MPS, float32 problems take hardly more evaluations."""
    stop = Tolerance(rtol=1e-5, max_evaluations=100)

    def evaluations() -> dict[str, int]:
        found = {p.name: fixed_point(p.update, p.y0, stop=stop, causal=p.causal) for p in zoo(torch.float32)}
        assert all(solution.outcome.converged for solution in found.values()), found
        return {name: int(solution.evaluations.max()) for name, solution in found.items()}

    wide = evaluations()
    monkeypatch.setattr(array_ops, "widest_dtype", lambda device: torch.float32)
    narrow = evaluations()
    assert all(narrow[name] <= 1.5 * wide[name] + 2 for name in wide), (wide, narrow)


@pytest.mark.parametrize(
    ("solver", "all_active", "some_converged"), [(Picard(), 11, 25), (Anderson(), 38, 60)], ids=["Picard", "Anderson"]
)
def test_an_evaluation_on_an_accelerator_takes_few_operators(solver, all_active, some_converged) -> None:
    """Without the update's own; the host reads at convergence checks only."""
    quiet = operators(solver, any_frozen=False)
    assert len(quiet) / 4 <= all_active, quiet
    assert sum(name in READS for name in quiet) == 4  # one for each evaluation
    assert len(operators(solver, any_frozen=True)) / 4 <= some_converged
    unchecked = operators(solver, any_frozen=False, check_every=100)
    assert not [name for name in unchecked if name in READS]


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=repr)
def test_both_paths_decide_the_same(solver, monkeypatch) -> None:
    """Values, residuals, counts and statuses are equal bit for bit."""
    problems = [problem for problem in zoo(torch.float32) if problem.contracts]
    stops = (
        Tolerance(rtol=1e-5),
        Tolerance(rtol=1e-9, max_evaluations=60),
        Tolerance(rtol=1e-3, atol=1e-2, norm="rms"),
    )

    def solve_all() -> list[Solution]:
        with torch.no_grad():
            return [
                fixed_point(p.update, p.y0, solver=solver, stop=stop, causal=p.causal)
                for p in problems
                for stop in stops
            ]

    arrays = solve_all()
    for module in (array_ops, anderson, loop, update):
        monkeypatch.setattr(module, "to_array", lambda x: x.detach())
    for a, b in zip(arrays, solve_all(), strict=True):
        assert torch.equal(a.value, b.value)
        assert torch.equal(a.residual, b.residual)
        assert torch.equal(a.evaluations, b.evaluations)
        assert torch.equal(a.outcome.status, b.outcome.status)


@pytest.mark.usefixtures("tensors")
def test_fused_bookkeeping_decides_the_same_with_fewer_kernels() -> None:
    """Bit for bit; a second solve compiles nothing; at most seven generated kernels for the decisions of one evaluation."""
    c = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))
    w = torch.randn(24, 24, generator=torch.Generator().manual_seed(1)) / 8

    def run(stop: Tolerance) -> Solution:
        return fixed_point(
            lambda y: c + torch.tanh(y @ w), torch.zeros_like(c), solver=Picard(), stop=stop, causal=True
        )

    stop = Tolerance(rtol=1e-5, patience=None)
    with torch.no_grad():
        expected = run(stop)
        torch._dynamo.reset()
        counters.clear()
        metrics.reset()
        with fused_bookkeeping():
            found = run(stop)
            graphs = counters["stats"]["unique_graphs"]
            kernels = metrics.generated_kernel_count / graphs
            run(stop)
    assert counters["stats"]["unique_graphs"] == graphs
    assert kernels <= 7, kernels
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.residual, expected.residual)
    assert torch.equal(found.evaluations, expected.evaluations)
    assert torch.equal(found.outcome.status, expected.outcome.status)
