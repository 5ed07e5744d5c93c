"""The public function and layer: find a point that ``update`` does not change, then attach a gradient to it.

    solution = fixed_point(lambda y: torch.cos(y), torch.zeros(8, 1))
    solution.value, solution.residual, str(solution.outcome)

The solver, the stop rule and the gradient are three independent values; any combination works.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from attractor.config import require_type
from attractor.errors import ConfigError, NotConvergedError
from attractor.gradient import (
    Gradient,
    Implicit,
    attach_tangent,
    explain_vmap,
    in_forward_mode,
    refuse_transforms,
    without_tangent,
)
from attractor.solve import Anderson, Solution, Solver, StopRule, Tolerance, Update, solve
from attractor.solve.packing import Packing
from attractor.solve.update import Adapted, Repeated

_ANDERSON, _TOLERANCE, _IMPLICIT = Anderson(), Tolerance(), Implicit()


def fixed_point(
    update: Update,
    y0: Any,
    *,
    solver: Solver = _ANDERSON,
    stop: StopRule = _TOLERANCE,
    gradient: Gradient = _IMPLICIT,
    equation_dims: int | None = None,
    causal: bool = False,
    has_aux: bool = False,
    throw: bool = False,
    trace: bool | Collection[int] = False,
    trace_gradient: Gradient | None = None,
) -> Solution:
    """Solve ``update(y) = y`` from ``y0``, and make the solution differentiable.

    Parameters
    ----------
    update
        ``update(y) -> y_next``, of the shape and dtype of ``y`` (under autocast it may be of lower precision), with
        everything else closed over. Random numbers that
        it draws (dropout) are the same at every call of one solve and new for the next, unless they come from a
        :class:`torch.Generator` of its own.
    y0
        The initial point; floating point, finite. The first dimension is the batch, whose rows never influence each
        other. It may also be complex, or a tuple, list, dictionary or dataclass of tensors with equal leading
        dimensions, which form one state: each equation has one residual over all of them, and by default each row is
        one equation. The state and the mixing have float32 or wider; residuals are measured at the values that ``update``
        receives. The solve is not differentiated with respect to ``y0``, except under ``Unrolled``.
    gradient
        Exact to a tolerance by default, at the price of a second solve in the backward pass; :class:`OneStep` is cheaper
        and is biased by as much as ``update`` fails to contract. Ignored where autograd is off.
    equation_dims
        How many trailing dimensions form one equation, with its own residual, weights and count: 1 for the tokens
        of ``(B, T, D)``, all but the batch for a puzzle. The default is 1, and 0 for a ``y0`` of shape (N,), which is N
        equations of one unknown each; give 1 if it is one system of N unknowns.
    causal
        The equations of a row are ordered along the last leading dimension (time), and ``update`` is causal along it.
        Then a later equation never influences an earlier one. All dimensions before time count as rows.
    has_aux
        ``update`` returns ``(y_next, aux)``; see :attr:`Solution.aux`.
    throw
        Raise :class:`NotConvergedError` unless every equation converges.
    trace
        True keeps every point at which ``update`` was called. A collection of evaluation counts keeps only these
        points: point n is the state after n steps, point 0 is ``y0``. With ``Steps(n)``, point n is the returned value
        (before a gradient is attached). Points that the solve does not reach are left out.
    trace_gradient
        Attach this gradient to every point of the trace, for losses at several evaluations. ``Phantom(steps=k)`` moves a
        point by k tracked steps; ``OneStep()`` keeps it. By default the trace has no gradient.

    Returns
    -------
    Solution
        Not converging is no error: see ``solution.outcome``.

    Raises
    ------
    ConfigError
        For shapes and settings that cannot work, and for an ``update`` that changes shape, dtype or its argument.
    DataError
        For a ``y0`` that is not finite. On accelerators, where checking would wait, such rows are reported as diverged.
    NotConvergedError
        With ``throw=True``; its ``solution`` is the point at which the solve ended, without a gradient.
    """
    _require_types("fixed_point", solver, stop, gradient)
    is_exported = torch.compiler.is_exporting()  # autograd differentiates an exported solve through its steps
    tracked = torch.is_grad_enabled() and not is_exported
    has_graph = not tracked or (gradient.is_traceable and (trace_gradient or gradient).is_traceable)
    if torch.compiler.is_compiling() and not in_one_graph(stop.is_fixed_depth and has_graph):
        return torch.compiler.disable(fixed_point)(
            update,
            y0,
            solver=solver,
            stop=stop,
            gradient=gradient,
            equation_dims=equation_dims,
            causal=causal,
            has_aux=has_aux,
            throw=throw,
            trace=trace,
            trace_gradient=trace_gradient,
        )
    refuse_transforms(gradient)
    _check_trace(trace, trace_gradient)
    packing = None
    if not (isinstance(y0, Tensor) and y0.is_floating_point()):
        packing = Packing.of(y0, equation_dims, causal)
        y0, equation_dims = packing.pack(y0), 1
    adapted = Adapted(update, packing, has_aux)
    repeated = solved = Repeated(adapted)
    if (is_forward := in_forward_mode()) and not gradient.tracks_solve:
        solved, y0 = Repeated.of(without_tangent(repeated)), forward_ad.unpack_dual(y0).primal
    is_tracked = torch.is_grad_enabled() and (is_exported or gradient.tracks_solve)
    with explain_vmap(solver), torch.set_grad_enabled(is_tracked):
        solution = solve(
            solved,
            y0,
            solver=solver,
            stop=stop,
            equation_dims=equation_dims,
            causal=causal,
            trace=trace,
            packing=packing,
        )
    if throw and not solution.outcome.converged:
        raise NotConvergedError(f"fixed_point: {solution.outcome}", restored(solution, packing, adapted.aux))
    if tracked or is_forward:
        solution = _attach_trace(trace_gradient, repeated, solution, causal)
        solution = replace(solution, value=_attach(gradient, repeated, solution, causal))
    return restored(solution, packing, adapted.aux)


def _check_trace(trace: bool | Collection[int], trace_gradient: Gradient | None) -> None:
    if trace_gradient is not None:
        require_type("fixed_point", "trace_gradient", trace_gradient, Gradient, "Phantom(steps=1)")
        if trace is False or trace_gradient.tracks_solve:
            raise ConfigError(
                f"fixed_point(trace={trace!r}, trace_gradient={trace_gradient!r}): say which points to keep, as trace=[4, 8], "
                "and give them Phantom(steps=k), OneStep(), Neumann(k) or Implicit()."
            )


def _attach_trace(gradient: Gradient | None, update: Update, solution: Solution, causal: bool) -> Solution:
    if gradient is None or solution.trace is None:
        return solution
    points = [_attach(gradient, update, replace(solution, value=y), causal) for y in solution.trace]
    return replace(solution, trace=torch.stack(points))


def in_one_graph(is_traceable: bool) -> bool:
    """Whether the call is traced by ``torch.export`` or ``torch.compile(fullgraph=True)``, which must be possible."""
    if torch.compiler.is_exporting():
        if not is_traceable:
            raise ConfigError(
                "torch.export needs a fixed number of evaluations: fixed_point(stop=Steps(n)), or depth=n of a model."
            )
        return True
    from attractor.solve import one_graph  # imports the compiler, which takes seconds

    if not one_graph.is_requested():
        return False
    if not is_traceable or one_graph.is_transformed():
        one_graph.refuse()
    return True


def _attach(gradient: Gradient, update: Update, solution: Solution, causal: bool) -> Tensor:
    attach = partial(attach_tangent, gradient) if in_forward_mode() else gradient.attach
    if solution.value.ndim and solution.residual.ndim < 1 + causal:  # one row without a batch; gradients expect a batch
        return attach(lambda y: update(y[0])[None], solution.value[None])[0]
    return attach(update, solution.value)


def restored(solution: Solution, packing: Packing | None, aux: Any = None) -> Solution:
    """Return the solution with ``aux``, and with value and trace in the structure of ``y0``."""
    if packing is None:
        return solution if aux is None else replace(solution, aux=aux)
    trace = None if solution.trace is None else packing.unpack(solution.trace)
    return replace(solution, value=packing.unpack(solution.value), trace=trace, aux=aux)


class FixedPoint(nn.Module):
    """A fixed-point layer around any module: ``cell(y, *inputs, **keyword_inputs) -> y_next`` of the shape of ``y``.

    ``layer(y0, *inputs, **keyword_inputs)`` returns the :class:`Solution`; its ``value`` is the input of the next
    layer. The options are those of :func:`fixed_point`; ``eval_stop`` replaces ``stop`` in evaluation mode.

    Raises
    ------
    ConfigError
        For an option of the wrong type.
    """

    def __init__(
        self,
        cell: nn.Module,
        *,
        solver: Solver = _ANDERSON,
        stop: StopRule = _TOLERANCE,
        eval_stop: StopRule | None = None,
        gradient: Gradient = _IMPLICIT,
        equation_dims: int | None = None,
        causal: bool = False,
        has_aux: bool = False,
        throw: bool = False,
        trace: bool | Collection[int] = False,
        trace_gradient: Gradient | None = None,
    ) -> None:
        super().__init__()
        _require_types("FixedPoint", solver, stop, gradient)
        if eval_stop is not None:
            _require_types("FixedPoint", solver, eval_stop, gradient)
        self.cell = cell
        self.solver, self.stop, self.eval_stop, self.gradient = solver, stop, eval_stop or stop, gradient
        self.equation_dims, self.causal = equation_dims, causal
        self.has_aux, self.throw, self.trace, self.trace_gradient = has_aux, throw, trace, trace_gradient

    def forward(self, y0: Any, *inputs: Any, **keyword_inputs: Any) -> Solution:
        return fixed_point(
            lambda y: self.cell(y, *inputs, **keyword_inputs),
            y0,
            solver=self.solver,
            stop=self.stop if self.training else self.eval_stop,
            gradient=self.gradient,
            equation_dims=self.equation_dims,
            causal=self.causal,
            has_aux=self.has_aux,
            throw=self.throw,
            trace=self.trace,
            trace_gradient=self.trace_gradient,
        )

    def extra_repr(self) -> str:
        lines = [f"solver={self.solver}", f"stop={self.stop}", f"gradient={self.gradient}"]
        lines.append(f"equation_dims={self.equation_dims}, causal={self.causal}")
        return ",\n".join(lines)


def _require_types(where: str, solver: Solver, stop: StopRule, gradient: Gradient) -> None:
    require_type(where, "solver", solver, Solver, "Anderson()")
    require_type(where, "stop", stop, StopRule, "Tolerance(rtol=1e-4) or Steps(8)")
    require_type(where, "gradient", gradient, Gradient, "Implicit()")
