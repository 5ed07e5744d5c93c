"""The status of every equation of a solve, its transitions, and its count of evaluations.

An ACTIVE equation moves and is evaluated. A FROZEN one does not move, and is evaluated once all its predecessors stopped
too. All others are closed. Within one evaluation, these events change the status, in this order:

================================================================== ========== ==========
event                                                              ACTIVE     FROZEN
================================================================== ========== ==========
above tolerance (its predecessors have moved it)                              ACTIVE
below the margin                                                   FROZEN
verified: below tolerance, and no predecessor will move            CONVERGED  CONVERGED
no progress, and its step has grown                                DIVERGED
no progress                                                        STAGNATED
not finite, after a step that cannot be rejected                   DIVERGED
================================================================== ========== ==========
"""

import numpy as np
import torch
from torch import Tensor

from attractor.solve.array_ops import Array, and_not, count, lookup, masked_fill, namespace, transforms
from attractor.solve.fusion import is_fused
from attractor.solve.layout import Layout
from attractor.solve.safeguard import Safeguard
from attractor.solve.stop import StopRule, Tolerance
from attractor.solve.sync import global_fraction, is_synchronized
from attractor.solve.transitions import ABOVE, ACTIVE, CONVERGED, tables

# An equation freezes at this fraction of the tolerance. One that froze at the tolerance itself would often fail its
# verification, because its neighbours still move a little. Measured on causal transformer blocks
# (``benchmarks/margin.py``), the margin saves up to half of all calls, and evaluations per token as well.
FREEZE_MARGIN = 0.25
PROGRESS = 0.9  # an equation makes progress when its lowest residual norm falls below this fraction of the previous one
GROWTH = 1e3  # an equation without progress diverges when its residual norm is above this multiple of the first one


class EquationTracker:
    """The code and the number of used evaluations (int64) of every equation. All arrays are (N,).

    ``inactive`` is ``None`` where it holds for no equation. On a CPU this is always so where it can be, so that the usual
    evaluation, in which nothing changes, costs next to nothing.
    """

    def __init__(self, layout: Layout, unknown: Array, stop: StopRule) -> None:
        self.layout, self.stop = layout, stop
        xp = namespace(unknown)
        self.inactive: Array | None = None
        self._evaluations = xp.full_like(unknown, stop.max_evaluations if stop.is_fixed_depth else 0, dtype=xp.int64)
        self._uniform_evaluations = 0
        self._code = xp.zeros_like(self._evaluations)
        if stop.is_fixed_depth:
            return
        self._tables = tables() if xp is np else tables().on(unknown.device)
        self._measured: Array | None = None
        self._all_moved = False
        self._first_norm = unknown
        self._best = self._recent_best = xp.full_like(unknown, torch.inf)
        self._bounds: Array | None = None

    @property
    def evaluations(self) -> Array:
        return self._evaluations + self._uniform_evaluations

    @property
    def status(self) -> Array:
        """The :class:`Status` of every equation, int64."""
        return self._code if self.stop.is_fixed_depth else lookup(self._tables.status, self._code)

    @property
    def unsolved(self) -> Array:
        """The equations that are neither frozen nor converged."""
        return (self.status == ACTIVE) | (self.status > CONVERGED)

    @property
    def evaluated(self) -> Array | None:
        """What the next evaluation must include; ``None`` for all."""
        return None if self.inactive is None else lookup(self._tables.is_evaluated, self._code)

    def is_unchanged(
        self, call: int, residual: Array, residual_norm: Array, safeguard: Safeguard, limit: Array | None
    ) -> bool:
        """Whether the host can know that all equations are active, above tolerance and accepted by ``safeguard``.

        Then no mask is needed. An accelerator is asked only where a convergence check would wait for it anyway.
        """
        if self.inactive is not None or residual.shape[0] == 0:  # len() would fix it in torch.export
            return False
        stop = self.stop
        if isinstance(residual, Tensor):
            waits = not stop.is_fixed_depth and call % stop.check_every == 0
            if not waits or transforms() or torch.compiler.is_compiling():
                return False
        unchanged = safeguard.is_within(residual_norm, limit)
        if not stop.is_fixed_depth:
            unchanged = unchanged > stop.is_below(residual, residual_norm, 1.0)  # and not
        return bool(unchanged.all() if isinstance(unchanged, Tensor) else np.logical_and.reduce(unchanged))

    def record_unchanged(self, call: int, residual_norm: Array) -> None:
        """Count one evaluation after which all equations are active and have a new point."""
        if self.stop.is_fixed_depth:
            return
        if call == 1:
            self._first_norm = residual_norm
        self._measured = None
        self._all_moved = True
        self._uniform_evaluations += 1
        if self._ends_window(call, residual_norm):
            self._find_stagnated()

    def record(
        self, call: int, residual: Array, residual_norm: Array, rejected: Array | None
    ) -> tuple[Array | None, Array]:
        """Change the codes after one evaluation. Return the equations that have no new point, and those that move from one.

        ``rejected`` are the equations whose step the safeguard rejects.
        """
        t, xp, layout = self._tables, namespace(residual), self.layout
        if call == 1:
            self._first_norm = residual_norm
        level = self._level(residual, residual_norm)
        if call < self.stop.min_evaluations:
            level = xp.clip(level, ABOVE, None)
        if rejected is not None:
            level = level + 4 * rejected if xp is np else torch.add(level, rejected, alpha=4)
        self._evaluations = self._evaluations + lookup(t.is_counted, self._code)
        self._measured = lookup(t.measured, self._code, level)
        self._code = layout.lookup(t.decided, layout.lookup(t.verified, self._measured))
        self._set_inactive()
        if self._ends_window(call, residual_norm):
            self._find_stagnated()
        refused = lookup(t.is_refused, self._code)
        return None if xp is np and not refused.any() else refused, lookup(t.is_fresh, self._code)

    def is_done(self, call: int) -> bool:
        """Whether the solve can end. The host waits for the device here and nowhere else."""
        if call % self.stop.check_every:
            return False
        if self.inactive is None and self._measured is None and not is_synchronized():
            return len(self._code) == 0
        if isinstance(self._code, Tensor) and len(self._code) and self._waits_for_all:
            lowest, highest = torch.stack(self._code.aminmax()).tolist()
            if highest < self._tables.first_frozen and not is_fused():  # no mask is needed any more
                self.inactive = None
            return bool(lowest >= self._tables.first_closed)
        done = self._code >= self._tables.first_closed
        if self.stop.min_converged_fraction < 1 and self._measured is not None:
            done = lookup(self._tables.is_below, self._measured) | (self._code >= self._tables.first_frozen)
        return global_fraction(*count(done)) >= self.stop.min_converged_fraction

    @property
    def _waits_for_all(self) -> bool:
        return self.stop.min_converged_fraction == 1 and not is_synchronized() and not transforms()

    def _level(self, residual: Array, residual_norm: Array) -> Array:
        """Return the levels (N,) of the residuals; NaN is not finite."""
        stop = self.stop
        is_usual = type(stop).is_below is Tolerance.is_below
        if isinstance(stop, Tolerance) and is_usual and not stop.atol and isinstance(residual, Tensor):
            # A search makes the same comparisons in one operator.
            if self._bounds is None:
                self._bounds = residual.new_tensor([FREEZE_MARGIN * stop.rtol, 1.0 * stop.rtol, np.inf])
            return torch.bucketize(residual, self._bounds, right=True)
        below = stop.is_below(residual, residual_norm, 1.0)
        in_margin = below & stop.is_below(residual, residual_norm, FREEZE_MARGIN)
        return 0 + ~in_margin + ~below + ~(residual < np.inf)

    def _set_inactive(self) -> None:
        inactive = self._code >= self._tables.first_frozen
        self.inactive = None if isinstance(inactive, np.ndarray) and not inactive.any() else inactive

    def _ends_window(self, call: int, residual_norm: Array) -> bool:
        """Note the lowest residual norms. Return whether ``patience`` evaluations have passed since the last time."""
        if self.stop.patience is None:
            return False
        self._recent_best = namespace(residual_norm).fmin(self._recent_best, residual_norm)
        return call % self.stop.patience == 0 and call >= self.stop.min_evaluations

    def _find_stagnated(self) -> None:
        """Close the active equations that made no progress, while all their predecessors made none or stood still."""
        xp, t, status = namespace(self._code), self._tables, self.status
        paused = lookup(t.has_paused, self._code)  # an equation that was not active all the time is not tested
        tested = and_not(status == ACTIVE, paused)
        idle = and_not(tested, self._recent_best < PROGRESS * self._best) | (status >= CONVERGED)
        if not self._all_moved:
            idle = idle | ~lookup(t.has_moved, self._code)
        idle = self.layout.all_predecessors(idle) & tested
        has_grown = idle & (self._recent_best / GROWTH > self._first_norm)
        self._code = self.layout.lookup(t.decided, lookup(t.closed, self._code, 0 + idle + has_grown))
        self._set_inactive()
        self._best = masked_fill(xp.fmin(self._best, self._recent_best), paused, torch.inf)
        self._recent_best = xp.full_like(self._best, torch.inf)
        self._all_moved = False
