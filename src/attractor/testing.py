"""Conformance suites and a zoo of fixed-point problems: test your own solver or update by subclassing.

    from attractor.testing import SolverConformance

    class TestMine(SolverConformance):
        def make_solver(self):
            return Mine(memory=3)

pytest then checks every property that the solvers of this package have. ``UpdateConformance`` does the same for an
update.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attractor.gradient import Implicit, Unrolled
from attractor.layer import fixed_point
from attractor.solve import Solver, Status, Steps, Tolerance, Update
from attractor.solve.array_ops import row_norm


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A fixed-point problem. ``solution`` is the exact one if it is known in closed form."""

    name: str
    update: Update
    y0: Tensor
    solution: Tensor | None = None
    causal: bool = False
    contracts: bool = True


def zoo(dtype: torch.dtype = torch.float64) -> list[Problem]:
    """Return the test problems for solvers, seeded and small."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    a = normal(6, 6)
    a = 0.8 * a / torch.linalg.matrix_norm(a, 2)
    b = normal(3, 6)
    affine = torch.linalg.solve(torch.eye(6, dtype=dtype) - a, b.mT).mT
    turn = 1.2
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=dtype)
    centre = torch.linalg.solve(torch.eye(2, dtype=dtype) - rotation, torch.ones(2, dtype=dtype)).expand(4, 2)
    w = normal(8, 8)
    w = 0.97 * w / torch.linalg.matrix_norm(w, 2)
    stiff = normal(4, 8)
    causal = causal_attention(generator, dtype)
    expanding = torch.linalg.qr(normal(8, 8))[0]
    expanding = expanding @ torch.diag(torch.linspace(-3, 0.5, 8, dtype=dtype)) @ expanding.mT
    shift = normal(4, 8)
    origin = torch.linalg.solve(torch.eye(8, dtype=dtype) - expanding, shift.mT).mT
    return [
        Problem(name="affine", update=lambda y: y @ a.T + b, y0=torch.zeros(3, 6, dtype=dtype), solution=affine),
        Problem(
            name="cos",
            update=torch.cos,
            y0=normal(5, 1),
            solution=torch.full((5, 1), 0.7390851332151607, dtype=dtype),
        ),
        Problem(
            name="rotation",
            update=lambda y: y @ rotation.T + 1,
            y0=normal(4, 2),
            solution=centre,
            contracts=False,
        ),
        Problem(name="stiff tanh", update=lambda y: torch.tanh(y @ w.T + stiff), y0=torch.zeros(4, 8, dtype=dtype)),
        Problem(
            name="expanding",
            update=lambda y: y @ expanding.T + shift,
            y0=torch.zeros(4, 8, dtype=dtype),
            solution=origin,
            contracts=False,
        ),
        Problem(name="causal attention", update=causal, y0=normal(2, 12, 8), causal=True),
    ]


def causal_attention(generator: torch.Generator, dtype: torch.dtype, *, width: int = 8, gain: float = 0.5) -> Update:
    """Return a causal attention block with an injected proposal, ``y ↦ c + gain · attention(y + c)``, (B, T, width)."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    query, key, value = (normal(width, width) / math.sqrt(width) for _ in range(3))
    c = normal(2, 12, width)

    def update(y: Tensor) -> Tensor:
        # A smaller batch or a shorter sequence uses the first part of the proposal.
        part = c[: y.shape[0], : y.shape[1]]
        h = torch.nn.functional.rms_norm(y + part, (width,))
        scores = (h @ query) @ (h @ key).mT / math.sqrt(width)
        future = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1)
        return part + gain * scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ (h @ value)

    return update


class SolverConformance(ABC):
    """Properties of every solver. Implement ``make_solver``."""

    max_evaluations = 300

    @abstractmethod
    def make_solver(self) -> Solver:
        """Return the solver under test."""

    @property
    def accelerates(self) -> bool:
        """Whether the solver must also converge where plain iteration cannot."""
        return True

    def test_solver_finds_the_fixed_points_of_the_zoo(self) -> None:
        for dtype, rtol, atol in ((torch.float64, 1e-9, 1e-6), (torch.float32, 1e-5, 1e-2)):
            for problem in zoo(dtype):
                if not problem.contracts and not self.accelerates:
                    continue
                stop = Tolerance(rtol=rtol, max_evaluations=self.max_evaluations)
                found = fixed_point(
                    problem.update, problem.y0, solver=self.make_solver(), stop=stop, causal=problem.causal
                )
                assert found.outcome.converged, f"{problem.name} {dtype}: {found.outcome}"
                if problem.solution is not None:
                    assert torch.allclose(found.value, problem.solution, atol=atol), problem.name

    def test_residuals_of_converged_equations_hold_at_the_returned_value(self) -> None:
        for problem in zoo():
            stop = Tolerance(rtol=1e-6, max_evaluations=self.max_evaluations)
            found = fixed_point(problem.update, problem.y0, solver=self.make_solver(), stop=stop, causal=problem.causal)
            again = residual(problem.update, found.value)
            converged = found.outcome.status == Status.CONVERGED
            assert (again[converged] < 1e-6).all(), problem.name
            assert torch.allclose(again, found.residual, rtol=1e-4, atol=1e-12), problem.name

    def test_absolute_tolerances_hold_in_every_norm(self) -> None:
        for problem in zoo():
            norms: list[tuple[Literal["l2", "rms", "max"], float]] = [("l2", 2), ("rms", 2), ("max", math.inf)]
            for norm, order in norms:
                if not problem.contracts:
                    continue
                stop = Tolerance(rtol=1e-14, atol=1e-6, norm=norm, max_evaluations=self.max_evaluations)
                found = fixed_point(
                    problem.update, problem.y0, solver=self.make_solver(), stop=stop, causal=problem.causal
                )
                assert found.outcome.converged, f"{problem.name} {norm}: {found.outcome}"
                change = torch.linalg.vector_norm(problem.update(found.value) - found.value, order, dim=-1)
                limit = 1e-6 * (problem.y0.shape[-1] ** 0.5 if norm == "rms" else 1)
                assert (change < limit).all(), f"{problem.name} {norm}"

    def test_nested_states_are_solved_as_one_tensor(self) -> None:
        for problem in zoo():
            half = problem.y0.shape[-1] // 2

            def split(y: Tensor, half: int = half) -> dict[str, Tensor]:
                return {"first": y[..., :half], "second": y[..., half:]}

            def nested(state: dict[str, Tensor], update: Update = problem.update) -> dict[str, Tensor]:
                return split(update(torch.cat([state["first"], state["second"]], dim=-1)))

            stop = Tolerance(rtol=1e-6, max_evaluations=self.max_evaluations)
            one, many = (
                fixed_point(update, y0, solver=self.make_solver(), stop=stop, causal=problem.causal, equation_dims=1)
                for update, y0 in ((problem.update, problem.y0), (nested, split(problem.y0)))
            )
            assert torch.equal(torch.cat([many.value["first"], many.value["second"]], -1), one.value), problem.name
            assert torch.equal(many.evaluations, one.evaluations), problem.name

    def test_rows_do_not_influence_each_other(self) -> None:
        for problem in zoo():
            if problem.name not in ("cos", "rotation"):  # the others close over one injection per row
                continue
            stop = Tolerance(rtol=1e-6, max_evaluations=20)

            def run(y0: Tensor, update: Update = problem.update, stop: Tolerance = stop) -> Tensor:
                return fixed_point(update, y0, solver=self.make_solver(), stop=stop).value

            expected = run(problem.y0)
            order = torch.arange(len(problem.y0)).flip(0)
            assert (run(problem.y0[order])[order] - expected).abs().max() <= 1e-12
            assert (run(problem.y0[:2]) - expected[:2]).abs().max() <= 1e-12
            padded = torch.cat([problem.y0, 1e3 * torch.ones_like(problem.y0)])
            assert (run(padded)[: len(expected)] - expected).abs().max() <= 1e-12

    def test_later_equations_never_influence_earlier_ones(self) -> None:
        (problem,) = [p for p in zoo(torch.float32) if p.causal]
        changed = problem.y0.clone()
        changed[:, 7:] = 5 * changed[:, 7:].flip(1) + 1
        for stop in (Tolerance(rtol=1e-3), Tolerance(rtol=1e-6, max_evaluations=5), Tolerance(rtol=1e-7), Steps(4)):
            a, b = (
                fixed_point(problem.update, y0, solver=self.make_solver(), stop=stop, causal=True)
                for y0 in (problem.y0, changed)
            )
            assert torch.equal(a.value[:, :7], b.value[:, :7]), stop
            assert torch.equal(a.evaluations[:, :7], b.evaluations[:, :7]), stop
            assert torch.equal(a.outcome.status[:, :7], b.outcome.status[:, :7]), stop

    def test_short_solves_do_not_raise_the_residual(self) -> None:
        for problem in zoo():
            if not problem.contracts or problem.causal:
                continue
            start = torch.linalg.vector_norm(problem.update(problem.y0) - problem.y0, dim=-1)
            for n in range(1, 12):
                stop = Tolerance(rtol=1e-12, max_evaluations=n)
                found = fixed_point(problem.update, problem.y0, solver=self.make_solver(), stop=stop)
                end = torch.linalg.vector_norm(problem.update(found.value) - found.value, dim=-1)
                assert (end <= start * (1 + 1e-9)).all(), (problem.name, n)

    def test_unrolled_and_implicit_gradients_agree(self) -> None:
        generator = torch.Generator().manual_seed(1)
        w = 0.2 * torch.randn(5, 5, generator=generator, dtype=torch.float64)
        x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        w.requires_grad_()
        stop = Tolerance(rtol=1e-13, max_evaluations=self.max_evaluations, patience=None)
        grads: list[Tensor] = []
        for gradient in (Unrolled(), Implicit(stop=Tolerance(rtol=1e-13))):
            y = fixed_point(
                lambda y: torch.tanh(y @ w.T + x),
                torch.zeros_like(x),
                solver=self.make_solver(),
                stop=stop,
                gradient=gradient,
            ).value
            grads += torch.autograd.grad(y.square().sum(), w)
        assert torch.allclose(grads[0], grads[1], atol=1e-8)


class UpdateConformance(ABC):
    """Properties that ``fixed_point`` needs of an update. Implement ``make_update`` and ``make_state``."""

    causal = False

    @abstractmethod
    def make_update(self) -> Update:
        """Return the update under test, in evaluation mode."""

    @abstractmethod
    def make_state(self) -> Tensor:
        """Return a state (B, ...) that the update accepts; (B, T, D) if it is causal."""

    def test_update_keeps_shape_and_dtype_and_does_not_change_its_argument(self) -> None:
        y = self.make_state()
        before = y.clone()
        f = self.make_update()(y)
        assert (f.shape, f.dtype) == (y.shape, y.dtype)
        assert torch.equal(y, before)

    def test_update_is_deterministic(self) -> None:
        update, y = self.make_update(), self.make_state()
        assert torch.equal(update(y), update(y)), "randomness inside must be the same at every call of one solve"

    def test_rows_do_not_influence_each_other(self) -> None:
        update, y = self.make_update(), self.make_state()
        changed = y.clone()
        changed[1:] = changed[1:] + 1
        assert torch.allclose(update(y)[0], update(changed)[0], atol=1e-6)

    def test_causal_update_does_not_depend_on_later_equations(self) -> None:
        if not self.causal:
            return
        update, y = self.make_update(), self.make_state()
        half = y.shape[1] // 2
        changed = y.clone()
        changed[:, half:] = changed[:, half:] + 1
        assert torch.allclose(update(y)[:, :half], update(changed)[:, :half], atol=1e-6)


def residual(update: Update, y: Tensor) -> Tensor:
    """Recompute ``‖update(y) − y‖ / ‖y‖`` per equation of one trailing dimension, in float32 or wider."""
    with torch.no_grad():
        wide = torch.promote_types(y.dtype, torch.float32)
        g = update(y).to(wide) - y.to(wide)
        size, change = (row_norm(x.reshape(-1, x.shape[-1])).view(x.shape[:-1]) for x in (y.to(wide), g))
        return change / torch.where(size > 0, size, torch.finfo(wide).tiny)
