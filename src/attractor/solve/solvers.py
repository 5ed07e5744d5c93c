"""The solvers: frozen values that turn what has been seen of ``update`` into the next point to try.

A solver answers ``init``, ``step`` and ``answer``, for N independent equations of D unknowns at once. Everything else (counting,
freezing, guarding, stopping) lives in the one loop, ``attractor.solve.loop``. Equations never mix: each
has its own history, its own Gram matrix and its own weights.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attractor.config import require_positive, require_whole
from attractor.errors import ConfigError
from attractor.solve.array_ops import Plain, choose, fill, namespace, plain, tensor


class Solver(ABC):
    """The contract. Implement it, and test it by subclassing ``attractor.testing.SolverConformance``."""

    is_memoryless: ClassVar[bool] = False  # whether a step depends on the last point alone

    @property
    @abstractmethod
    def max_growth(self) -> float:
        """How much a step may raise the residual; a dataclass field does.

        The loop undoes a step after which ``‖g‖`` is above ``max_growth`` times the one before, or above the one at the
        start, or not finite, and takes the plain step instead. ``inf``: no step is ever undone.
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
            What ``init`` or the last ``step`` returned.
        y, f, g
            The points (N, D), ``f = update(y)`` and ``g = f − y``, float32 or wider. Always finite.
        residual
            (N,), relative.
        fresh
            (N,) bool. Where it is False nothing was learnt of this equation: it is frozen, or its last step was
            undone and ``y, f, g`` are older. What is proposed for it is not used.

        Returns
        -------
        y_next
            (N, D).
        state
            The new state. The old one must stay usable when gradients are tracked: no in-place writes then.
        """

    @abstractmethod
    def finalize(self, state: Any, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, residual)`` for equations that ended without settling, given the last accepted ones."""


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
        return _damped(y, f, g, self.damping), None

    def finalize(self, state: None, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return y, residual


_TINY = 1e-200


@dataclass(frozen=True)
class _AndersonState:
    points: tuple[Tensor, ...]  # each (N, D): y + mixing·g, newest last
    residuals: tuple[Tensor, ...]  # each (N, D): g
    system: Plain  # (N, k, k) float64, the normal equations: inner products of the residuals, and the ridge
    known: Plain  # (N, k) bool, the entries that may be used again
    scratch: Tensor  # (N, D)


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration (Anderson 1965; Walker & Ni 2011), every equation with its own mixing weights.

    The next point is ``Σ αⱼ (yⱼ + mixing·gⱼ)`` over the last ``window`` points, with ``Σ αⱼ = 1`` chosen to minimise
    ``‖Σ αⱼ gⱼ‖² + ridge · Σ αⱼ² ‖gⱼ‖²``. In unit residuals ``gⱼ/‖gⱼ‖`` that is a ridge relative to the mean of the
    Gram matrix's trace; unlike one relative to the trace of the raw matrix it does not drown the newest, smallest
    residuals, so that the last digits converge as fast as the first.

    Parameters
    ----------
    window
        How many points are mixed; 1 is plain iteration.
    mixing
        How far along the mixed residual to go, in (0, 1].
    ridge
        See above. By default 16 times the rounding unit of the state's dtype.
    max_growth
        See :class:`Solver`.
    """

    window: int = 5
    mixing: float = 1.0
    ridge: float | None = None
    max_growth: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "mixing", "max_growth", *(["ridge"] if self.ridge is not None else []))
        require_whole(self, 1, "window")
        if self.mixing > 1:
            raise ConfigError(f"Anderson(mixing={self.mixing!r}): the mixing must lie in (0, 1].")

    def init(self, y: Tensor) -> _AndersonState:
        nothing = plain(y.new_empty(y.shape[0], 0, dtype=torch.float64))
        return _AndersonState((), (), nothing[:, :, None][:, :, :0], nothing > 0, torch.empty_like(y))

    def step(
        self, state: _AndersonState, y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor
    ) -> tuple[Tensor, _AndersonState]:
        drop = len(state.points) == self.window
        points = (*state.points[drop:], _damped(y, f, g, self.mixing))
        residuals = (*state.residuals[drop:], g)
        row = plain(torch.stack([_dot(r, g, state.scratch) for r in residuals], dim=1).double())  # (N, k)
        known, xp = state.known[:, drop:], namespace(row)
        others, square = fill(row[:, :-1], ~known, 0), row[:, -1:]
        ridge = self.ridge if self.ridge is not None else 16 * torch.finfo(y.dtype).eps
        row = xp.concatenate([others, square + (ridge * square + _TINY)], 1)
        system = xp.concatenate([state.system[:, drop:, drop:], others[:, None]], 1)
        system = xp.concatenate([system, row[:, :, None]], 2)
        # An equation whose history has a gap starts afresh: what it knew belongs to other neighbours.
        known = xp.concatenate([known, square > 0], 1) & plain(fresh)[:, None]
        y_next = points[0]
        if len(points) > 1:
            first, *rest = self._weights(system, known).to(y.dtype).T[:, :, None]  # each (N, 1)
            y_next = points[0] * first
            for point, weight in zip(points[1:], rest, strict=True):
                y_next.addcmul_(point, weight)
        return y_next, _AndersonState(points, residuals, system, known, state.scratch)

    def _weights(self, system: Plain, known: Plain) -> Tensor:
        """Solve the normal equations, in float64: they are tiny, and their condition is the square of the residuals'."""
        xp = namespace(known)
        # A newest point whose residual is exactly zero is wanted too; its tiny square then gives it all the weight.
        newest = xp.zeros_like(known)
        newest[:, -1] = True
        alpha = torch.linalg.solve_ex(tensor(system), tensor(known | newest).double())[0]
        total = alpha.sum(dim=1, keepdim=True)
        return choose(~xp.isfinite(plain(total))[:, 0], tensor(newest).double(), alpha / total)

    def finalize(self, state: _AndersonState, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return y, residual


@dataclass(frozen=True)
class _BroydenState:
    y: Tensor | None  # (N, D), the last point
    g: Tensor | None
    us: tuple[Tensor, ...]  # each (N, D); inverse Jacobian ≈ −I + Σ uⱼ vⱼᵀ
    vs: tuple[Tensor, ...]
    scratch: Tensor  # (N, D)


@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Broyden's good method with limited memory, as in Deep Equilibrium Models (Bai et al. 2019).

    Keeps the inverse Jacobian of ``update(y) − y`` as ``−I + Σ uⱼ vⱼᵀ`` per equation, and starts afresh from a plain step
    after ``memory`` terms.
    """

    memory: int = 16
    max_growth: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "max_growth")
        require_whole(self, 1, "memory")

    def init(self, y: Tensor) -> _BroydenState:
        return _BroydenState(None, None, (), (), torch.empty_like(y))

    def step(
        self, state: _BroydenState, y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor
    ) -> tuple[Tensor, _BroydenState]:
        us, vs, scratch = state.us, state.vs, state.scratch
        if state.y is not None and state.g is not None:
            dy, dg = y - state.y, g - state.g
            v = _low_rank(dy, vs, us, scratch)  # Bᵀ Δy
            denominator = _dot(v, dg, scratch)  # Δyᵀ B Δg
            # Frozen equations have Δy = 0 and learn nothing; so does a step too short to tell anything.
            floor = torch.finfo(y.dtype).eps * torch.linalg.vector_norm(v, dim=1) * torch.linalg.vector_norm(dg, dim=1)
            known = denominator.abs() > floor
            inverse = torch.where(known, 1 / torch.where(known, denominator, 1), 0)
            u = (dy - _low_rank(dg, us, vs, scratch)) * inverse[:, None]
            us, vs = (*us, u), (*vs, v)
            if len(us) > self.memory:  # each term was made for the ones before it, so none can leave alone
                us, vs = (), ()
        return y - _low_rank(g, us, vs, scratch), _BroydenState(y, g, us, vs, scratch)

    def finalize(self, state: _BroydenState, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return y, residual


def _low_rank(x: Tensor, us: tuple[Tensor, ...], vs: tuple[Tensor, ...], scratch: Tensor) -> Tensor:
    """Return ``−x + Σ uⱼ (vⱼ·x)``, (N, D)."""
    out = -x
    for u, v in zip(us, vs, strict=True):
        out.addcmul_(u, _dot(v, x, scratch)[:, None])
    return out


@dataclass(frozen=True)
class BestSoFar(Solver):
    """Wrap a solver: an equation that never settles returns its best iterate, not its last.

    In a causal solve that holds for equations that are still active at the end: one that gave up earlier stays where it was, as
    later ones have counted on it.

    Its residual was measured when its neighbours stood where they stood then; for equations that depend on none, as
    puzzles with ``equation_dims`` covering all but the batch, it is exact.
    """

    solver: Solver

    @property
    def max_growth(self) -> float:
        return self.solver.max_growth

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


def _dot(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """Row-wise inner products (N,). Fresh temporaries of (N, D) would cost several times the arithmetic."""
    if torch.is_grad_enabled():
        return (a * b).sum(dim=1)  # not vecdot, which autocast would take to half precision
    return torch.mul(a, b, out=scratch).sum(dim=1)


def _damped(y: Tensor, f: Tensor, g: Tensor, damping: float) -> Tensor:
    # y + 1·g differs from f in the last bit, and n plain steps promise to be exactly n calls of update.
    return f if damping == 1 else torch.add(y, g, alpha=damping)
