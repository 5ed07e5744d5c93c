"""The contract of a solver, plain iteration, and a wrapper that keeps the best iterate.

A solver is a frozen value with the methods ``init`` and ``step``, for N independent equations of D unknowns at once.
``attractor.solve.loop`` does everything else: counting, freezing, rejecting, stopping.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attractor.config import require_positive, require_type
from attractor.solve.array_ops import transforms


class Solver(ABC):
    """The contract. Implement it, and test it by subclassing ``attractor.testing.SolverConformance``."""

    is_memoryless: ClassVar[bool] = False  # whether a step depends on the last point alone
    # Whether the first step, and the one after points that were not fresh, is a plain step. These are never rejected.
    restarts: bool = False

    @property
    @abstractmethod
    def max_growth(self) -> float:
        """How much a step may raise the residual norm; a dataclass field with a default can provide it.

        The loop rejects a step after which ``‖g‖`` is above ``max_growth`` times the one before, or above the one at
        the start, or not finite, and takes the plain step instead. ``inf``: no step is rejected.
        """

    @abstractmethod
    def init(self, y: Tensor) -> Any:
        """Return the state before the first step, for points ``y`` (N, D)."""

    @abstractmethod
    def step(self, state: Any, y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor) -> tuple[Tensor, Any]:
        """Propose the next points.

        Parameters
        ----------
        state
            The result of ``init``, or the second result of the last ``step``.
        y, f, g
            The points (N, D), ``f = update(y)`` and ``g = f − y``, float32 or wider. Always finite.
        residual
            The relative residual ``‖g‖ / ‖y‖``, (N,).
        fresh
            (N,) bool. False where ``y, f, g`` are not new: the equation is frozen, or its last step was rejected. The
            loop does not use the proposal there.

        Returns
        -------
        y_next
            (N, D).
        state
            The new state. Do not write into the old one while gradients are tracked.
        """

    def finalize(self, state: Any, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, residual)`` for equations that did not converge, given the last accepted ones (N, D), (N,)."""
        return y, residual


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Plain (damped) iteration, ``y ← y + damping · (update(y) − y)``.

    Converges where the update contracts; with ``damping`` below 1 also on some updates that rotate.
    """

    damping: float = 1.0
    max_growth = float("inf")
    is_memoryless = True

    def __post_init__(self) -> None:
        require_positive(self, "damping")

    def init(self, y: Tensor) -> None:
        return None

    def step(
        self, state: None, y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor
    ) -> tuple[Tensor, None]:
        return damped_step(y, f, g, self.damping), None


@dataclass(frozen=True)
class BestSoFar(Solver):
    """Wrap a solver: an equation that does not converge returns its iterate with the lowest residual, not its last.

    In a causal solve this holds for equations that are active at the end. One that stagnated or diverged earlier stays
    where it was, because later ones were solved with its value.

    The reported residual was measured with the neighbours of that time. It is exact for equations without neighbours,
    as puzzles with ``equation_dims`` covering all but the batch.
    """

    solver: Solver

    def __post_init__(self) -> None:
        require_type("BestSoFar", "solver", self.solver, Solver, "Anderson()")

    @property
    def max_growth(self) -> float:
        return self.solver.max_growth

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        return self.solver.restarts

    def init(self, y: Tensor) -> tuple[Any, Tensor, Tensor]:
        return self.solver.init(y), y, y.new_full(y.shape[:1], torch.inf)

    def step(
        self, state: tuple[Any, Tensor, Tensor], y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor
    ) -> tuple[Tensor, tuple[Any, Tensor, Tensor]]:
        inner, best, lowest = state
        y_next, inner = self.solver.step(inner, y, f, g, residual, fresh)
        better = residual < lowest
        return y_next, (inner, torch.where(better[:, None], y, best), torch.where(better, residual, lowest))

    def finalize(self, state: tuple[Any, Tensor, Tensor], y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        _, best, lowest = state
        better = lowest < residual
        return torch.where(better[:, None], best, y), torch.where(better, lowest, residual)


@dataclass(frozen=True)
class Scaled(Solver):
    """Wrap a solver: it sees all points divided by ``scale`` (N, 1), so that its products do not over- or underflow."""

    solver: Solver
    scale: Tensor

    @property
    def max_growth(self) -> float:
        return self.solver.max_growth

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        return self.solver.restarts

    def init(self, y: Tensor) -> Any:
        return self.solver.init(y / self.scale)

    def step(self, state: Any, y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor) -> tuple[Tensor, Any]:
        y, f, g = (x / self.scale for x in (y, f, g))
        y_next, state = self.solver.step(state, y, f, g, residual, fresh)
        return y_next * self.scale, state

    def finalize(self, state: Any, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        y, residual = self.solver.finalize(state, y / self.scale, residual)
        return y * self.scale, residual


def row_dot(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """Return the inner products of the rows of ``a`` and ``b`` (N, D), shape (N,).

    ``scratch`` (N, D) is overwritten where no gradient is tracked: new memory would cost several times the arithmetic.
    """
    if torch.is_grad_enabled() or transforms():
        return (a * b).sum(dim=1)  # not vecdot, which autocast would compute in half precision
    return torch.mul(a, b, out=scratch).sum(dim=1)


def damped_step(y: Tensor, f: Tensor, g: Tensor, damping: float) -> Tensor:
    """Return ``y + damping · g``."""
    # y + 1·g differs from f in the last bit, and n plain steps must be exactly n calls of update.
    return f if damping == 1 else torch.add(y, g, alpha=damping)
