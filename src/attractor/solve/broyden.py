"""Broyden's method with limited memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.config import require_positive, require_whole
from attractor.solve.array_ops import transforms
from attractor.solve.solver import Solver, row_dot


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

    Keeps the inverse Jacobian of ``update(y) − y`` as ``−I + Σ uⱼ vⱼᵀ`` per equation, and restarts from a plain step
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
            denominator = row_dot(v, dg, scratch)  # Δyᵀ B Δg
            # Where Δy is zero (frozen equations) or within rounding, there is nothing to learn.
            rounding = (
                torch.finfo(y.dtype).eps * torch.linalg.vector_norm(v, dim=1) * torch.linalg.vector_norm(dg, dim=1)
            )
            known = denominator.abs() > rounding
            inverse = torch.where(known, 1 / torch.where(known, denominator, 1), 0)
            u = (dy - _low_rank(dg, us, vs, scratch)) * inverse[:, None]
            us, vs = (*us, u), (*vs, v)
            if len(us) > self.memory:  # each term depends on the ones before it, so only all can be dropped
                us, vs = (), ()
        return y - _low_rank(g, us, vs, scratch), _BroydenState(y, g, us, vs, scratch)


def _low_rank(x: Tensor, us: tuple[Tensor, ...], vs: tuple[Tensor, ...], scratch: Tensor) -> Tensor:
    """Return ``−x + Σ uⱼ (vⱼ·x)``, (N, D)."""
    out = -x
    add = torch.addcmul if transforms() else Tensor.addcmul_  # vmap has no rule for the one in place
    for u, v in zip(us, vs, strict=True):
        out = add(out, u, row_dot(v, x, scratch)[:, None])
    return out
