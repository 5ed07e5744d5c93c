"""The public verb: find where ``update`` no longer changes its input, then attach a gradient to that point.

    solution = fixed_point(lambda y: torch.cos(y), torch.zeros(8, 1))
    solution.value, solution.residual, str(solution.outcome)

The solver, the stop rule and the gradient are three independent values; any combination works.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attractor.errors import NotConvergedError
from attractor.gradient import Gradient, OneStep
from attractor.solve import Anderson, Solution, Solver, StopRule, Tolerance, Update, solve

_ANDERSON, _TOLERANCE, _ONE_STEP = Anderson(), Tolerance(), OneStep()


def fixed_point(
    update: Update,
    y0: Tensor,
    *,
    solver: Solver = _ANDERSON,
    stop: StopRule = _TOLERANCE,
    gradient: Gradient = _ONE_STEP,
    equation_dims: int = 1,
    causal: bool = False,
    throw: bool = False,
    trace: bool | Collection[int] = False,
) -> Solution:
    """Solve ``update(y) = y`` from ``y0``, and make the solution differentiable.

    Parameters
    ----------
    update
        ``update(y) -> y_next``, of the shape and dtype of ``y``, with everything else closed over. Any randomness inside
        must be the same at every call of one solve.
    y0
        Where to start; floating point, finite. The first dimension is the batch, whose rows never influence each other.
        State and mixing are kept in float32 or wider whatever its dtype; residuals are those at
        what ``update`` sees. The solve does not differentiate with respect to ``y0``, except under ``Unrolled``.
    solver
        ``Anderson()``, ``Picard()``, ``Broyden()``, ``Best(solver)``, or your own :class:`attractor.Solver`.
    stop
        ``Tolerance(...)`` or ``Steps(n)``.
    gradient
        ``OneStep()``, ``Neumann(k)``, ``Phantom(...)``, ``Implicit(...)`` or ``Unrolled()``. Ignored where autograd is off.
    equation_dims
        How many trailing dimensions form one equation, with its own residual, weights and count: 1 for the tokens
        of ``(B, T, D)``, all but the batch for a puzzle that is solved as a whole.
    causal
        The equations of a row are ordered along the last leading dimension (time), and ``update`` is causal along
        it; then nothing in the solve lets a later equation influence an earlier one. All dimensions before
        time count as rows.
    throw
        Raise :class:`NotConvergedError` unless every equation is final.
    trace
        Keep every point at which ``update`` was called, or those of a collection of evaluation counts: point ``n`` is the
        state after ``n`` steps.

    Returns
    -------
    Solution
        Not converging is data: read ``solution.outcome``.

    Raises
    ------
    ConfigError
        For shapes and settings that cannot work, and for an ``update`` that changes shape, dtype or its argument.
    DataError
        For a ``y0`` that is not finite (on accelerators, where looking costs, such rows show up as diverged).
    """
    tracked = torch.is_grad_enabled()
    with torch.set_grad_enabled(tracked and gradient.tracks_solve):
        solution = solve(update, y0, solver=solver, stop=stop, equation_dims=equation_dims, causal=causal, trace=trace)
    if throw and not solution.outcome.converged:
        raise NotConvergedError(f"fixed_point: {solution.outcome}")
    return replace(solution, value=gradient.attach(update, solution.value)) if tracked else solution


class FixedPoint(nn.Module):
    """A fixed-point layer around any module: ``cell(y, *inputs) -> y_next`` of the shape of ``y``.

    ``layer(y0, *inputs)`` returns the whole :class:`Solution`; its ``value`` is what the next layer wants. Keyword
    arguments of the constructor are those of :func:`fixed_point`.

    While training, the random numbers drawn inside ``cell`` (dropout) are the same at every call of one solve and new for the
    next: otherwise there would be no fixed point to find.
    """

    def __init__(self, cell: nn.Module, **options: Any) -> None:
        super().__init__()
        self.cell = cell
        self.options = options

    def forward(self, y0: Tensor, *inputs: Any) -> Solution:
        if not self.training:
            return fixed_point(lambda y: self.cell(y, *inputs), y0, **self.options)
        before = torch.cuda.get_rng_state(y0.device) if y0.is_cuda else torch.get_rng_state()

        def update(y: Tensor) -> Tensor:
            if y.is_cuda:
                torch.cuda.set_rng_state(before, y.device)
            else:
                torch.set_rng_state(before)
            return self.cell(y, *inputs)

        return fixed_point(update, y0, **self.options)
