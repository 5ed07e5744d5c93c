"""Stop rules: a tolerance that every equation must meet, or a fixed number of evaluations."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attractor.config import require_positive, require_whole
from attractor.errors import ConfigError
from attractor.solve.array_ops import Array

NORMS = ("l2", "rms", "max")
Norm = Literal["l2", "rms", "max"] | Callable[[Tensor], Tensor]


class StopRule(ABC):
    """When a solve stops. Subclass it for a convergence test of your own.

    ``max_evaluations`` and :meth:`is_below` are required, the other attributes have defaults. A dataclass field, a
    class attribute or a property can provide an attribute::

        @dataclass(frozen=True, kw_only=True)
        class AbsoluteTolerance(StopRule):
            atol: float
            max_evaluations: int = 64

            def is_below(self, residual, residual_norm, margin):
                return residual_norm < margin * self.atol

    Attributes
    ----------
    max_evaluations
        The most calls of ``update`` for any equation.
    is_fixed_depth
        If True, every equation makes exactly ``max_evaluations`` steps and convergence is never checked: the host does
        not wait for the device, and the remaining attributes and :meth:`is_below` are not used.
    norm, min_evaluations, check_every, min_converged_fraction, patience
        See :class:`Tolerance`.
    """

    max_evaluations: int
    norm: Norm = "l2"
    is_fixed_depth: ClassVar[bool] = False
    min_evaluations: int = 1
    check_every: int = 1
    min_converged_fraction: float = 1.0
    patience: int | None = None

    @abstractmethod
    def is_below(self, residual: Array, residual_norm: Array, margin: float) -> Array:
        """Return which equations are below ``margin`` times the tolerance, (N,) bool.

        Parameters
        ----------
        residual
            ``‖update(y) − y‖ / ‖y‖``, (N,). A NumPy array or a tensor: use operators that both have.
        residual_norm
            ``‖update(y) − y‖``, (N,).
        margin
            1 to decide whether an equation has converged; less to decide whether it is frozen. In (0, 1].
        """


@dataclass(frozen=True)
class Tolerance(StopRule):
    """Iterate until, for every equation, ``‖update(y) − y‖`` is below ``rtol · ‖y‖`` or below ``atol``.

    Parameters
    ----------
    rtol
        ``‖y‖`` counts as at least the rounding unit of its dtype times its size at the start, so that an equilibrium of
        exactly zero converges too.
    atol
        In the units of the state. 0 by default, which is right at every magnitude.
    norm
        "l2", "rms" (l2 divided by the square root of the number of unknowns), "max", or a function from the states
        (N, D) of N equations to N numbers. It holds for residuals and for ``atol``.
    max_evaluations
        The most calls of ``update`` for any equation. An equation that has not converged by then keeps its last
        accepted iterate, and the residual measured there; equations that it depends on may have changed since.
    min_evaluations
        No equation converges or stagnates before this many calls.
    check_every
        The host waits for the device only every so many calls. This never changes the value of a converged equation:
        equations freeze on the device. A few calls may be made for nothing (with ``min_converged_fraction`` below 1,
        they improve the equations that are still active).
    min_converged_fraction
        Below 1, the solve ends as soon as this fraction of all equations is below ``rtol``, verified or not, or has
        stagnated or diverged. Meant for training, where a few slow equations would determine the cost. This is the only
        rule that compares equations and rows: with it, a result may depend on the other rows of the batch.
    patience
        An equation stagnates when, in this many calls, neither it nor any equation that it may depend on has lowered
        its lowest residual norm by 10 %. It then keeps its value, and the outcome reports it. The usual cause is the
        rounding of a bf16 update. ``None`` disables this test, which is right where information travels far before the
        residual can fall, as across a large maze.
    """

    rtol: float = 1e-4
    _: KW_ONLY
    atol: float = 0.0
    norm: Norm = "l2"
    max_evaluations: int = 64
    min_evaluations: int = 1
    check_every: int = 1
    min_converged_fraction: float = 1.0
    patience: int | None = 16

    def __post_init__(self) -> None:
        require_positive(self, "rtol", "min_converged_fraction")
        if self.atol:
            require_positive(self, "atol")
        if self.norm not in NORMS and not callable(self.norm):
            raise ConfigError(f"Tolerance(norm={self.norm!r}): give one of {', '.join(NORMS)}, or a function.")
        require_whole(self, 1, "max_evaluations", "min_evaluations", "check_every")
        if self.patience is not None:
            require_whole(self, 1, "patience")
        if self.min_converged_fraction > 1:
            raise ConfigError(
                f"Tolerance(min_converged_fraction={self.min_converged_fraction!r}): the fraction must lie in (0, 1]."
            )
        if self.min_evaluations > self.max_evaluations:
            raise ConfigError(
                f"Tolerance(min_evaluations={self.min_evaluations}, max_evaluations={self.max_evaluations}): "
                "min_evaluations must not exceed max_evaluations."
            )

    def is_below(self, residual: Array, residual_norm: Array, margin: float) -> Array:
        below = residual < margin * self.rtol
        return below | (residual_norm < margin * self.atol) if self.atol else below


@dataclass(frozen=True)
class Steps(StopRule):
    """Make exactly ``n`` calls of ``update`` and ``n`` steps, and never check convergence.

    The returned value is one step beyond the last point at which the residual was measured. With ``Picard()`` it is
    exactly ``update`` applied ``n`` times. ``Steps(0)`` returns ``y0``.
    """

    n: int
    is_fixed_depth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_whole(self, 0, "n")

    @property
    def max_evaluations(self) -> int:  # type: ignore[override]
        return self.n

    def is_below(self, residual: Array, residual_norm: Array, margin: float) -> Array:
        return residual < 0  # nowhere


def require_resolvable(tolerance: float | None, dtype: torch.dtype) -> None:
    """Refuse a tolerance below the relative precision of ``dtype``: no measured residual can reach it."""
    if tolerance is not None and tolerance < torch.finfo(dtype).eps:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"tolerance={tolerance:g} is below the precision of {name} ({torch.finfo(dtype).eps:.1e}); raise it."
        )
