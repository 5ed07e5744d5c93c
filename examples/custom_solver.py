"""A solver of your own: Aitken relaxation (Irons & Tuck 1969), tested with the conformance suite.

A solver proposes points. It does not count, freeze, undo steps or stop: the loop does that for every solver.

    python examples/custom_solver.py
    python -m pytest examples/custom_solver.py
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attractor import Picard, Solver, Tolerance, fixed_point
from attractor.testing import SolverConformance


class AitkenState(NamedTuple):
    """The relaxation factors (N, 1) and the last residual vectors (N, D)."""

    factor: Tensor
    last: Tensor


@dataclass(frozen=True, kw_only=True)
class Aitken(Solver):
    """``y ← y + ω·g`` with one factor ω per equation, from the last two residual vectors ``g = update(y) − y``.

    ``max_growth`` is how much a step may raise the residual before the loop undoes it.
    """

    max_factor: float = 4.0
    max_growth: float = 4.0

    def init(self, y: Tensor) -> AitkenState:
        return AitkenState(torch.ones_like(y[:, :1]), torch.zeros_like(y))

    def step(
        self, state: AitkenState, y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor
    ) -> tuple[Tensor, AitkenState]:
        change = g - state.last
        size = change.square().sum(-1, keepdim=True)
        factor = -state.factor * (state.last * change).sum(-1, keepdim=True) / size.clamp_min(1e-30)
        factor = factor.clamp(0.1, self.max_factor)
        factor = torch.where(state.last.abs().amax(-1, keepdim=True) > 0, factor, 1.0)  # the first step is plain
        learned = fresh[:, None]  # equations that are frozen, or whose step was undone, keep their state
        new = AitkenState(torch.where(learned, factor, state.factor), torch.where(learned, g, state.last))
        return y + factor * g, new

    def finalize(self, state: AitkenState, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return y, residual


class TestAitken(SolverConformance):
    """Every property that the solvers of the package satisfy; ``python -m pytest`` collects this class."""

    accelerates = False  # one factor per equation cannot solve an update that rotates

    def make_solver(self) -> Solver:
        return Aitken()


def main() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(16, 16) / 5, torch.randn(8, 16)
    for solver in (Picard(), Aitken()):
        solution = fixed_point(
            lambda y: x + 0.9 * torch.tanh(y @ weight),
            torch.zeros_like(x),
            solver=solver,
            stop=Tolerance(rtol=1e-5, max_evaluations=200),
        )
        print(f"{type(solver).__name__}: {solution.outcome}")


if __name__ == "__main__":
    main()
