"""The safeguard: which accelerated steps are rejected, so that a solver cannot make a contraction diverge."""

from contextlib import nullcontext

import numpy as np

from attractor.solve.array_ops import Array, and_not, fmax, namespace, where_rows


class Safeguard:
    """Rejects an accelerated step after which the residual norm is too large.

    Too large is: above ``max_growth`` times the last accepted one; above ``ceiling``, the largest residual norm at the
    start or after a plain step; or not finite. With ``max_growth = inf`` nothing is rejected.
    """

    def __init__(self, max_growth: float, unknown: Array, eps: float) -> None:
        """``unknown`` (N,) is NaN everywhere; ``eps`` is the rounding unit of the state."""
        self.max_growth, self.is_active = max_growth, max_growth < np.inf
        self.ceiling = unknown
        self._slack = 1 + 64 * eps  # some updates keep the residual norm exactly, apart from rounding

    def limit(self, accepted_norm: Array, accelerated: Array | None) -> Array | None:
        """Return the largest residual norms (N,) that an accelerated step may lead to, ``None`` without such steps.

        ``accepted_norm`` (N,) are the norms at the last accepted points.
        """
        if accelerated is None or not self.is_active:
            return None
        xp = namespace(accepted_norm)
        with np.errstate(over="ignore") if xp is np else nullcontext():
            return xp.minimum(accepted_norm * self.max_growth, self.ceiling)

    def is_within(self, residual_norm: Array, limit: Array | None) -> Array:
        """Return where the norm is finite, no step is rejected and, with a limit, no ceiling rises; (N,) bool."""
        return residual_norm < np.inf if limit is None else self._slack * residual_norm < limit

    def raise_ceiling(self, residual_norm: Array, unless: Array | None = None) -> None:
        """Note the norms of equations after a plain step: all but those in ``unless`` (N,)."""
        if self.is_active:
            xp = namespace(residual_norm)
            with np.errstate(over="ignore") if xp is np else nullcontext():
                raised = fmax(self.ceiling, self._slack * residual_norm)
            self.ceiling = where_rows(unless, self.ceiling, raised)

    def rejected(
        self, residual_norm: Array, limit: Array | None, inactive: Array | None, accelerated: Array | None
    ) -> Array | None:
        """Return which equations reject their last step, (N,) bool, or ``None`` if none is known to. All are (N,).

        ``inactive`` marks the equations that made no step, ``accelerated`` those whose last step was the solver's and
        not the plain one.
        """
        if not self.is_active:
            return None
        if accelerated is None or inactive is None:
            self.raise_ceiling(residual_norm, accelerated if inactive is None else inactive)
        else:
            self.raise_ceiling(residual_norm, accelerated | inactive)
        if limit is None:
            return None
        rejected = and_not(accelerated, residual_norm <= limit)
        return rejected if not isinstance(rejected, np.ndarray) or rejected.any() else None
