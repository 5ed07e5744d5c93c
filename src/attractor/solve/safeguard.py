"""The safeguard: which accelerated steps are rejected, so that a solver cannot make a contraction diverge."""

from contextlib import nullcontext

import numpy as np

from attractor.solve.array_ops import Array, namespace


class Safeguard:
    """Rejects an accelerated step after which the residual norm is too large.

    Too large is: above ``max_growth`` times the last accepted one; above ``ceiling``, the largest residual norm at the
    start or after a plain step; or not finite. With ``max_growth = inf`` nothing is rejected.
    """

    def __init__(self, max_growth: float, unknown: Array, eps: float) -> None:
        """``unknown`` (N,) is NaN everywhere; ``eps`` is the rounding unit of the state."""
        self.max_growth = max_growth
        self.ceiling = unknown
        self._slack = 1 + 64 * eps  # some updates keep the residual norm exactly, apart from rounding

    def rejected(
        self, residual_norm: Array, accepted_norm: Array, evaluated: Array | None, accelerated: Array
    ) -> Array | None:
        """Return which equations reject their last step, (N,) bool, or ``None`` if none is known to. All are (N,).

        The norms are those after the step and at the last accepted point. ``evaluated`` marks the equations that the
        last evaluation included, ``accelerated`` those whose last step was the solver's and not the plain one.
        """
        if self.max_growth == np.inf:
            return None
        xp, is_numpy = namespace(residual_norm), isinstance(residual_norm, np.ndarray)
        with np.errstate(over="ignore") if is_numpy else nullcontext():
            limit = xp.minimum(accepted_norm * self.max_growth, self.ceiling)
            if is_numpy and np.logical_and.reduce(self._slack * residual_norm <= limit):
                return None  # no ceiling would rise either
            raised = xp.fmax(self.ceiling, self._slack * residual_norm)
            kept = accelerated if evaluated is None else accelerated | ~evaluated
            self.ceiling = xp.where(kept, self.ceiling, raised)
        rejected = accelerated & ~(residual_norm <= limit)
        return rejected if not is_numpy or rejected.any() else None
