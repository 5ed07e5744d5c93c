"""The one loop: evaluate ``update``, check convergence, freeze, reject bad steps, step, count, stop.

Solvers propose; this file decides. It keeps three promises that implementations of deep equilibrium models often break:

* **Independent in the batch.** Rows never influence each other.
* **Causal in time.** With ``causal=True`` and a causal ``update``, no decision about an equation (mixing, freezing,
  verification, stagnation, the evaluation limit) depends on a later one.
* **Residuals hold at the returned value.** A converged equation is below tolerance at the values that are returned.

An equation is *active* until its own residual is below a fraction of the tolerance; then it is *frozen*: no longer
updated. Its neighbours may still move, so it is *converged* only when an evaluation finds it below tolerance while
everything that it may depend on has stopped: all earlier equations of its row with ``causal=True``, otherwise the
complete row. If a frozen equation fails this verification, it is active again. ``transitions.py`` holds these rules.

An evaluation includes only the equations that need it: active ones, and frozen ones that are being verified. A
:class:`PartialUpdate` is not computed for the others.
"""

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.solve.array_ops import (
    Array,
    is_readable,
    known_between,
    known_empty,
    namespace,
    row_norm,
    row_scale,
    to_array,
    to_tensor,
    transforms,
    where_rows,
)
from attractor.solve.fusion import fused
from attractor.solve.layout import Layout
from attractor.solve.packing import Packing
from attractor.solve.safeguard import Safeguard
from attractor.solve.solution import Outcome, Solution
from attractor.solve.solver import Scaled, Solver
from attractor.solve.stop import StopRule
from attractor.solve.sync import is_synchronized
from attractor.solve.tracker import EquationTracker
from attractor.solve.transitions import ACTIVE, CONVERGED, STAGNATED
from attractor.solve.update import Evaluation, Point, Repeated, Update


def solve(
    update: Update,
    y0: Tensor,
    *,
    solver: Solver,
    stop: StopRule,
    equation_dims: int | None = None,
    causal: bool = False,
    trace: bool | Collection[int] = False,
    packing: Packing | None = None,
) -> Solution:
    """Iterate ``update`` from ``y0`` to a fixed point. See :func:`attractor.fixed_point` for the arguments.

    Autograd records every step if it is on; callers that do not want that use ``torch.no_grad``. ``packing`` describes
    a ``y0`` that was packed from several tensors.
    """
    layout, update = Layout.of(y0, equation_dims, causal, packing), Repeated.of(update)
    y = layout.flatten(y0)
    _refuse_nonfinite(y, layout)
    evaluation, accepted = Evaluation(update, layout, stop.norm), Point.initial(y)
    tracker = EquationTracker(layout, accepted.residual, stop)
    safeguard = Safeguard(solver.max_growth, accepted.residual, torch.finfo(y.dtype).eps)
    state: Any = None
    kept_points = _kept_points(trace, stop)
    points: list[tuple[Tensor, Tensor]] = []  # and the last residual before each
    checks = not stop.is_fixed_depth
    everywhere = tracker.status == ACTIVE
    all_fresh = to_tensor(everywhere)
    accelerated: Array | None = None
    was_fresh: Array | None = None
    can_be_partial, decide = False, _decide
    call = 0

    for call in range(1, stop.max_evaluations + 1):
        if call - 1 in kept_points:
            points.append((layout.unflatten(y).detach(), to_tensor(accepted.residual).view(layout.leading_shape)))
        # How many equations need an evaluation is known to the host after a convergence check only.
        needed = tracker.evaluated if can_be_partial and (call - 1) % stop.check_every == 0 else None
        point = evaluation.at(y, needed, accepted)
        if call == 1:
            solver, state = _start(solver, y, point)
            can_be_partial, decide = update.can_be_partial, fused(_decide, point.residual)
        last = accepted
        accepted, refused, fresh = decide(call, point, last, tracker, safeguard, everywhere, accelerated)
        if torch.is_grad_enabled() and is_readable(y) and not point.residual_norm.isfinite().all():
            # Autograd would multiply the zero cotangents of refused values by infinite derivatives.
            y = where_rows(refused, last.y, y)
            accepted = evaluation.at(y, needed, last).replace_rows(refused, last)
        if checks and (call == stop.max_evaluations or tracker.is_done(call)):
            break
        is_fresh = all_fresh if fresh is everywhere else to_tensor(fresh)
        y, state = solver.step(state, accepted.y, accepted.f, accepted.g, to_tensor(accepted.residual), is_fresh)
        accelerated, was_fresh = (_both(fresh, was_fresh) if solver.restarts else fresh), fresh
        if safeguard.is_active:  # otherwise a refused equation has diverged
            y = where_rows(refused, accepted.f, y)  # the plain step from the last accepted point
        y = where_rows(tracker.inactive, accepted.y, y)

    if checks and call:
        _warn_if_random(update, layout, point, tracker)
    residual = to_tensor(accepted.residual)
    if checks:
        y, residual = _finalize(solver, state, accepted, tracker)
    if stop.is_fixed_depth and stop.max_evaluations in kept_points:
        points.append((layout.unflatten(y).detach(), residual.view(layout.leading_shape)))
    return _solution(y, residual, tracker, call, points)


def _decide(
    call: int,
    point: Point,
    accepted: Point,
    tracker: EquationTracker,
    safeguard: Safeguard,
    everywhere: Array,
    accelerated: Array | None,
) -> tuple[Point, Array | None, Array]:
    """Return the accepted point, the equations whose new point is refused, and those that move from a new point."""
    residual, norm = point.residual, point.residual_norm
    limit = safeguard.limit(accepted.residual_norm, accelerated)
    if tracker.is_unchanged(call, residual, norm, safeguard, limit):
        if limit is None:
            safeguard.raise_ceiling(norm)
        tracker.record_unchanged(call, norm)
        return point, None, everywhere
    refused = safeguard.rejected(norm, limit, tracker.inactive, accelerated)
    if tracker.stop.is_fixed_depth:
        fresh = everywhere if refused is None else ~refused
    else:
        refused, fresh = tracker.record(call, residual, norm, refused)
    return point.replace_rows(refused, accepted), refused, fresh


def _both(mask: Array, other: Array | None) -> Array | None:
    return mask if other is mask else None if other is None else mask & other


def _start(solver: Solver, y: Tensor, point: Point) -> tuple[Solver, Any]:
    """Return the solver, which sees scaled points if its products would over- or underflow, and its first state."""
    if is_readable(y) and not known_between(point.residual_norm, 1e-12, 1e12):
        solver = Scaled(solver, row_scale(point.f))
    return solver, solver.init(y)


def _finalize(solver: Solver, state: Any, accepted: Point, tracker: EquationTracker) -> tuple[Tensor, Tensor]:
    """Return ``y`` (N, D) and the residuals (N,), where the solver may replace those of equations without a solution."""
    y, residual = accepted.y, to_tensor(accepted.residual)
    if known_empty(tracker.unsolved):
        return y, residual
    # A converged equation would not stay so if its predecessors moved. In a causal solve, none of its predecessors is
    # still active.
    layout = tracker.layout
    free = tracker.status == ACTIVE if layout.causal else ~layout.any_in_row(tracker.status == CONVERGED)
    movable = tracker.unsolved & free
    final_y, final_residual = solver.finalize(state, y, residual)
    return where_rows(movable, final_y, y), where_rows(movable, final_residual, residual)


def _solution(
    y: Tensor, residual: Tensor, tracker: EquationTracker, calls: int, points: list[tuple[Tensor, Tensor]]
) -> Solution:
    stop, layout, shape = tracker.stop, tracker.layout, tracker.layout.leading_shape
    status, residual = to_tensor(tracker.status).to(torch.int8).view(shape), residual.view(shape)
    checked = not stop.is_fixed_depth
    return Solution(
        value=layout.unflatten(y).clone(),  # not the memory of y0, nor of what update returned
        residual=residual,
        evaluations=to_tensor(tracker.evaluations).view(shape),
        outcome=Outcome(status=status, residual=residual, calls=calls, limit=stop.max_evaluations, checked=checked),
        trace=torch.stack([point for point, _ in points]) if points else None,
        trace_residual=torch.stack([r for _, r in points]) if points else None,
    )


def _warn_if_random(update: Repeated, layout: Layout, point: Point, tracker: EquationTracker) -> None:
    """Where equations stagnate, call ``update`` at the last point again, and warn if the result is another one."""
    stagnated = to_tensor(tracker.status) == STAGNATED
    if is_synchronized() or update.can_be_partial or transforms() or not stagnated.any():
        return
    with torch.no_grad():
        change = row_norm(layout.flatten(update(layout.unflatten(point.y))) - point.f)[stagnated]
        floor = 100 * torch.finfo(layout.dtype).eps * row_norm(point.y)[stagnated]
        is_random = (change > 0.1 * to_tensor(point.residual_norm)[stagnated]) & (change > floor)
    if is_random.any():
        warnings.warn(
            "fixed_point: update returns different values at the same point, so the solve cannot converge. It draws random "
            "numbers that are not repeated (from a generator of its own, NumPy or compiled code); draw them before the solve.",
            RuntimeWarning,
            stacklevel=4,
        )


def _kept_points(trace: bool | Collection[int], stop: StopRule) -> Collection[int]:
    """Return the numbers of the points that the trace keeps; point n is the state after n steps."""
    if isinstance(trace, bool):
        return range(stop.max_evaluations if trace else 0)
    if not isinstance(trace, Collection):
        raise ConfigError(f"fixed_point(trace={trace!r}): give True, False or a collection of evaluation counts.")
    return frozenset(trace)


def _refuse_nonfinite(y: Tensor, layout: Layout) -> None:
    if is_readable(y) and not is_synchronized() and not namespace(to_array(y)).isfinite(to_array(y)).all():
        raise DataError(
            f"fixed_point: y0 of shape {tuple(layout.shape)} holds NaN or infinite values; start from finite ones."
        )
