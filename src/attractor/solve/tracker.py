"""The status of every equation of a solve, its transitions, and its count of evaluations.

======== ================================== =====================================
status   moves                              is evaluated
======== ================================== =====================================
ACTIVE   yes                                yes
FROZEN   no                                 once all its predecessors stopped too
others   no: the equation is closed         no
======== ================================== =====================================
"""

import torch

from attractor.solve.array_ops import Array, known_empty, masked_fill, namespace
from attractor.solve.layout import Layout
from attractor.solve.solution import Status
from attractor.solve.stop import StopRule
from attractor.solve.sync import global_fraction

# NumPy compares with a plain integer five times as fast as with a member of an enumeration.
ACTIVE, FROZEN, CONVERGED, STAGNATED, DIVERGED = map(int, Status)

# Every change of status: event → {status before: status after}. Everything else stays as it is. Within one evaluation,
# the tracker applies the events in this order.
TRANSITIONS = {
    "above tolerance": {FROZEN: ACTIVE},  # its predecessors have moved it
    "below the margin": {ACTIVE: FROZEN},
    "verified": {ACTIVE: CONVERGED, FROZEN: CONVERGED},  # below tolerance, and no predecessor will move
    "growth": {ACTIVE: DIVERGED},
    "no progress": {ACTIVE: STAGNATED},
    "nonfinite": {ACTIVE: DIVERGED},
}

# An equation freezes at this fraction of the tolerance. One that froze at the tolerance itself would often fail its
# verification, because its neighbours still move a little. Measured on causal transformer blocks
# (``benchmarks/margin.py``), the margin saves up to half of all calls, and evaluations per token as well.
FREEZE_MARGIN = 0.25
PROGRESS = 0.9  # an equation makes progress when its lowest residual norm falls below this fraction of the previous one
GROWTH = 1e3  # an equation without progress diverges when its residual norm is above this multiple of the first one


class EquationTracker:
    """The status (int8) and the number of used evaluations (int64) of every equation. All arrays are (N,)."""

    def __init__(self, layout: Layout, unknown: Array, stop: StopRule) -> None:
        self.layout, self.stop = layout, stop
        xp = namespace(unknown)
        self.status = xp.zeros_like(unknown, dtype=xp.int8)
        self.evaluations = xp.full_like(unknown, stop.max_evaluations if stop.is_fixed_depth else 0, dtype=xp.int64)
        self._best = self._recent_best = xp.full_like(unknown, torch.inf)
        self._first_norm = unknown
        self._done = self._newly_diverged = self.status != ACTIVE

    @property
    def active(self) -> Array:
        return self.status == ACTIVE

    @property
    def unsolved(self) -> Array:
        """The equations that are neither frozen nor converged."""
        return (self.status != CONVERGED) & (self.status != FROZEN)

    @property
    def needs_evaluation(self) -> Array:
        """The equations that the next evaluation must include: those that move, and those that it can verify.

        Newly diverged equations, too: they go back to their last finite value, and their neighbours must see it.
        """
        stopped = self.status >= FROZEN
        verifiable = (self.status == FROZEN) & self.layout.all_predecessors(stopped)
        return ~stopped | verifiable | self._newly_diverged

    def record(self, call: int, residual: Array, residual_norm: Array, evaluated: Array, rejected: Array) -> Array:
        """Change statuses after one evaluation, and return the equations whose new point is not accepted, (N,) bool.

        ``evaluated`` and ``rejected`` are the equations that the evaluation included, and those whose step the safeguard
        rejects.
        """
        if call == 1:
            self._first_norm = residual_norm
        self._check_residuals(call, residual, residual_norm, evaluated)
        nonfinite = ~namespace(residual_norm).isfinite(residual_norm)
        self._newly_diverged = nonfinite
        if not known_empty(nonfinite):
            # These have no finite residual although no predecessor has taken an accelerated step that can be undone.
            self._newly_diverged = nonfinite & self.active & self.layout.all_predecessors(~rejected)
            self._apply("nonfinite", self._newly_diverged)
        return (rejected & self.active) | nonfinite | ~evaluated

    def is_done(self, call: int) -> bool:
        """Whether the solve can end. The host waits for the device here and nowhere else."""
        if call % self.stop.check_every:
            return False
        done = self._done if self.stop.min_converged_fraction < 1 else self.status >= CONVERGED
        return global_fraction(float(done.sum()), len(done)) >= self.stop.min_converged_fraction

    def _check_residuals(self, call: int, residual: Array, residual_norm: Array, evaluated: Array) -> None:
        closed = self.status >= CONVERGED
        counted = evaluated & ~closed
        self.evaluations = self.evaluations + counted
        below = counted & self.stop.is_below(residual, residual_norm, 1.0) & (call >= self.stop.min_evaluations)
        reactivated = counted & ~below & (self.status == FROZEN)
        self._apply("above tolerance", reactivated)
        if not known_empty(below):
            self._apply("below the margin", below & self.stop.is_below(residual, residual_norm, FREEZE_MARGIN))
            # Equations below tolerance at this very point, whose predecessors are closed or also below, will not move
            # any more: this evaluation has verified them.
            self._apply("verified", below & self.layout.all_predecessors(closed | below))
        self._done = below | (self.status >= FROZEN)
        if self.stop.patience is not None:
            self._best = masked_fill(self._best, reactivated, torch.inf)
            self._find_stagnated(call, residual_norm, self.stop.patience)

    def _apply(self, event: str, mask: Array) -> None:
        if known_empty(mask):
            return
        status = self.status
        for before, after in TRANSITIONS[event].items():
            self.status = masked_fill(self.status, mask & (status == before), after)

    def _find_stagnated(self, call: int, residual_norm: Array, patience: int) -> None:
        """Every ``patience`` calls, close the active equations that wait for no predecessor and made no progress."""
        xp = namespace(residual_norm)
        self._recent_best = xp.where(self.active, xp.fmin(self._recent_best, residual_norm), self._recent_best)
        if call % patience or call < self.stop.min_evaluations:
            return
        idle = (self.status >= CONVERGED) | ~(self._recent_best < PROGRESS * self._best)
        idle = self.layout.all_predecessors(idle)
        self._apply("growth", idle & (residual_norm / GROWTH > self._first_norm))
        self._apply("no progress", idle)
        self._best = xp.fmin(self._best, self._recent_best)
        self._recent_best = xp.full_like(self._best, torch.inf)
