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

from attractor.solve.array_ops import Array, and_not, as_int8, count, masked_fill, namespace, or_not, transforms
from attractor.solve.fusion import is_fused
from attractor.solve.layout import Layout
from attractor.solve.solution import Status
from attractor.solve.stop import StopRule
from attractor.solve.sync import global_fraction, is_synchronized

# NumPy compares with a plain integer five times as fast as with a member of an enumeration.
ACTIVE, FROZEN, CONVERGED, STAGNATED, DIVERGED = map(int, Status)

# An equation freezes at this fraction of the tolerance. One that froze at the tolerance itself would often fail its
# verification, because its neighbours still move a little. Measured on causal transformer blocks
# (``benchmarks/margin.py``), the margin saves up to half of all calls, and evaluations per token as well.
FREEZE_MARGIN = 0.25
PROGRESS = 0.9  # an equation makes progress when its lowest residual norm falls below this fraction of the previous one
GROWTH = 1e3  # an equation without progress diverges when its residual norm is above this multiple of the first one


class EquationTracker:
    """The status (int8) and the number of used evaluations (int64) of every equation. All arrays are (N,).

    A mask that is ``None`` holds for no equation (``inactive``, ``rejected``) or for all (``evaluated``). On a CPU this is
    always so where it can be, so that the usual evaluation, in which nothing changes, costs next to nothing.
    """

    def __init__(self, layout: Layout, unknown: Array, stop: StopRule) -> None:
        self.layout, self.stop = layout, stop
        xp = namespace(unknown)
        self.status = xp.zeros_like(unknown, dtype=xp.int8)
        self.inactive: Array | None = None
        self.evaluated: Array | None = None  # what the next evaluation must include
        self._evaluations = xp.full_like(unknown, stop.max_evaluations if stop.is_fixed_depth else 0, dtype=xp.int64)
        self._uniform_evaluations = 0
        self._below: Array | None = None
        self._best = self._recent_best = xp.full_like(unknown, torch.inf)
        self._first_norm = unknown
        self._everywhere = self.status == ACTIVE
        self._has_moved = ~self._everywhere  # since the last test for stagnation

    @property
    def evaluations(self) -> Array:
        return self._evaluations + self._uniform_evaluations

    @property
    def unsolved(self) -> Array:
        """The equations that are neither frozen nor converged."""
        return (self.status != CONVERGED) & (self.status != FROZEN)

    def is_unchanged(self, call: int, residual: Array, residual_norm: Array, is_within: Array) -> bool:
        """Whether the host can know that all equations are active, above tolerance and ``is_within`` (N,) everywhere.

        Then no mask is needed. An accelerator is asked only where a convergence check would wait for it anyway.
        """
        if (
            self.inactive is not None or self.evaluated is not None or residual.shape[0] == 0
        ):  # len() would fix it in torch.export
            return False
        if not self.stop.is_fixed_depth:
            is_within = and_not(is_within, self.stop.is_below(residual, residual_norm, 1.0))
        if isinstance(residual, np.ndarray):
            return bool(np.logical_and.reduce(is_within))
        if self.stop.is_fixed_depth or call % self.stop.check_every or transforms() or torch.compiler.is_compiling():
            return False
        return bool(is_within.all())

    def record_unchanged(self, call: int, residual_norm: Array) -> None:
        """Count one evaluation after which all equations are active and have a new point."""
        if self.stop.is_fixed_depth:
            return
        if call == 1:
            self._first_norm = residual_norm
        self._below = None
        self._uniform_evaluations += 1
        if self._ends_window(call, residual_norm):
            self._find_stagnated()
            if self.status.any():
                self._update_masks()

    def record(self, call: int, residual: Array, residual_norm: Array, rejected: Array | None) -> Array | None:
        """Change statuses after one evaluation, and return the equations whose new point is not accepted, (N,) bool.

        ``rejected`` are the equations whose step the safeguard rejects.
        """
        if call == 1:
            self._first_norm = residual_norm
        self._check_residuals(call, residual, residual_norm)
        refused, returned = self._refuse(residual_norm, rejected)
        if self._ends_window(call, residual_norm):
            self._find_stagnated()
        self._update_masks(returned)
        return refused

    def is_done(self, call: int) -> bool:
        """Whether the solve can end. The host waits for the device here and nowhere else."""
        if call % self.stop.check_every:
            return False
        if self.inactive is None and self._below is None and not is_synchronized():
            return len(self.status) == 0
        if isinstance(self.status, Tensor) and len(self.status) and self._waits_for_all:
            lowest, highest = torch.stack(self.status.aminmax()).tolist()
            if highest == ACTIVE and not is_fused():  # no mask is needed any more
                self.inactive = self.evaluated = None
            return bool(lowest >= CONVERGED)
        done = self.status >= CONVERGED
        if self.stop.min_converged_fraction < 1 and self._below is not None:
            done = self._below | (self.status >= FROZEN)
        return global_fraction(*count(done)) >= self.stop.min_converged_fraction

    @property
    def _waits_for_all(self) -> bool:
        return self.stop.min_converged_fraction == 1 and not is_synchronized() and not transforms()

    def _check_residuals(self, call: int, residual: Array, residual_norm: Array) -> None:
        xp, status = namespace(residual), self.status
        closed = status >= CONVERGED
        counted = ~closed if self.evaluated is None else and_not(self.evaluated, closed)
        self._evaluations = self._evaluations + counted
        below = counted & self.stop.is_below(residual, residual_norm, 1.0)
        if call < self.stop.min_evaluations:
            below = masked_fill(below, counted, False)
        frozen = below & (self.stop.is_below(residual, residual_norm, FREEZE_MARGIN) | (status == FROZEN))
        # Equations below tolerance at this very point, whose predecessors are closed or also below, will not move any
        # more: this evaluation has verified them.
        verified = below & self.layout.all_predecessors(closed | below)
        self.status = xp.where(counted, masked_fill(as_int8(frozen), verified, CONVERGED), status)
        self._below = below

    def _refuse(self, residual_norm: Array, rejected: Array | None) -> tuple[Array | None, Array | None]:
        """Close equations that are not finite. Return those whose point is refused, and those that go back by that."""
        active = self.status == ACTIVE
        returned = None if rejected is None else rejected & active
        nonfinite = ~(residual_norm < np.inf)
        if not (isinstance(nonfinite, np.ndarray) and not nonfinite.any()):
            # These have no finite residual although no predecessor has taken an accelerated step that can be undone.
            diverged = nonfinite & active
            if rejected is not None:
                diverged = diverged & self.layout.all_predecessors(~rejected)
            self.status = masked_fill(self.status, diverged, DIVERGED)
            returned = nonfinite if returned is None else returned | nonfinite
        refused = returned
        if self.evaluated is not None:
            refused = ~self.evaluated if returned is None else or_not(returned, self.evaluated)
        refused = None if isinstance(refused, np.ndarray) and not refused.any() else refused
        return refused, None if returned is None else returned & active

    def _update_masks(self, returned: Array | None = None) -> None:
        """Set ``inactive``, and ``evaluated``: the equations that move, and those that the next evaluation can verify.

        Also those that closed and go back to their last accepted point: their neighbours must see it.
        """
        self.inactive = self.status >= FROZEN
        verifiable = (self.status == FROZEN) & self.layout.all_predecessors(self.inactive)
        self.evaluated = or_not(verifiable, self.inactive)
        if returned is not None:
            self.evaluated = self.evaluated | (returned & (self.status >= STAGNATED))
        if isinstance(self.inactive, np.ndarray):
            self.inactive = self.inactive if self.inactive.any() else None
            self.evaluated = None if self.evaluated.all() else self.evaluated

    def _ends_window(self, call: int, residual_norm: Array) -> bool:
        """Note the lowest residual norms. Return whether ``patience`` evaluations have passed since the last time."""
        if self.stop.patience is None:
            return False
        xp = namespace(residual_norm)
        self._recent_best = xp.fmin(self._recent_best, residual_norm)
        if self.inactive is None:
            self._has_moved = self._everywhere
        else:  # an equation that was not active all the time is not tested
            self._recent_best = masked_fill(self._recent_best, self.inactive, -torch.inf)
            self._has_moved = or_not(self._has_moved, self.inactive)
        return call % self.stop.patience == 0 and call >= self.stop.min_evaluations

    def _find_stagnated(self) -> None:
        """Close the active equations that made no progress, while all their predecessors made none or stood still."""
        xp, active = namespace(self.status), self.status == ACTIVE
        has_stopped = (self.status >= CONVERGED) | ~self._has_moved
        idle = has_stopped | (active & ~(self._recent_best < PROGRESS * self._best))
        idle = self.layout.all_predecessors(idle) & active
        has_grown = self._recent_best / GROWTH > self._first_norm
        self.status = masked_fill(masked_fill(self.status, idle, STAGNATED), idle & has_grown, DIVERGED)
        best = xp.fmin(self._best, self._recent_best)
        self._best = masked_fill(best, self._recent_best == -torch.inf, torch.inf)
        self._recent_best = xp.full_like(self._best, torch.inf)
        self._has_moved = ~self._everywhere
