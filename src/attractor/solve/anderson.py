"""Anderson acceleration, every equation with its own mixing weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.config import require_positive, require_whole
from attractor.errors import ConfigError
from attractor.solve import array_ops
from attractor.solve.array_ops import Array, masked_fill, namespace, to_array, to_tensor, transforms, where_rows
from attractor.solve.solver import Solver, damped_step, row_dot


@dataclass(frozen=True)
class _AndersonState:
    points: tuple[Tensor, ...]  # each (N, D): y + mixing·g, newest last
    residuals: tuple[Tensor, ...]  # each (N, D): g
    system: Array  # (N, k, k), the normal equations: inner products of the residuals, plus the ridge
    known: Array  # (N, k) bool, the points that may be mixed again
    scratch: Tensor  # (N, D)


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration (Anderson 1965; Walker & Ni 2011), every equation with its own mixing weights.

    The next point is ``Σ αⱼ (yⱼ + mixing·gⱼ)`` over the last ``window`` points, with ``Σ αⱼ = 1`` chosen to minimise
    ``‖Σ αⱼ gⱼ‖² + ridge · Σ αⱼ² ‖gⱼ‖²``. For unit residuals ``gⱼ/‖gⱼ‖`` this is a ridge relative to the mean of the
    Gram matrix's trace. A ridge relative to the trace of the raw matrix would dominate the newest, smallest residuals,
    and the last digits would converge more slowly than the first.

    Parameters
    ----------
    window
        How many points are mixed; 1 is plain iteration.
    mixing
        The step length along the mixed residual, in (0, 1].
    ridge
        Regularisation of the weights, as above. By default twice the rounding unit of the state's dtype.
    max_growth
        See :class:`Solver`.
    """

    window: int = 5
    mixing: float = 1.0
    ridge: float | None = None
    max_growth: float = 4.0
    restarts = True

    def __post_init__(self) -> None:
        require_positive(self, "mixing", "max_growth", *(["ridge"] if self.ridge is not None else []))
        require_whole(self, 1, "window")
        if self.mixing > 1:
            raise ConfigError(f"Anderson(mixing={self.mixing!r}): the mixing must lie in (0, 1].")

    def init(self, y: Tensor) -> _AndersonState:
        empty = to_array(y.new_empty(y.shape[0], 0, dtype=array_ops.widest_dtype(y.device)))
        return _AndersonState((), (), empty[:, :, None][:, :, :0], empty > 0, torch.empty_like(y))

    def step(
        self, state: _AndersonState, y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor
    ) -> tuple[Tensor, _AndersonState]:
        drop = len(state.points) == self.window
        points = (*state.points[drop:], damped_step(y, f, g, self.mixing))
        residuals = (*state.residuals[drop:], g)
        wide = array_ops.widest_dtype(y.device)
        row = to_array(torch.stack([row_dot(r, g, state.scratch) for r in residuals], dim=1).to(wide))  # (N, k)
        known, xp = state.known[:, drop:], namespace(row)
        others, square = masked_fill(row[:, :-1], ~known, 0), row[:, -1:]
        ridge = self.ridge if self.ridge is not None else 2 * torch.finfo(y.dtype).eps
        row = xp.concatenate([others, square + (ridge * square + torch.finfo(wide).tiny ** 0.65)], 1)
        system = xp.concatenate([state.system[:, drop:, drop:], others[:, None]], 1)
        system = xp.concatenate([system, row[:, :, None]], 2)
        # After a gap, an equation forgets its history: the old points belong to other values of its neighbours.
        known = xp.concatenate([known, square > 0], 1) & to_array(fresh)[:, None]
        y_next = points[0]
        if len(points) > 1:
            first, *rest = self._weights(system, known).to(y.dtype).T[:, :, None]  # each (N, 1)
            y_next = points[0] * first
            add = torch.addcmul if transforms() else Tensor.addcmul_  # vmap has no rule for the one in place
            for point, weight in zip(points[1:], rest, strict=True):
                y_next = add(y_next, point, weight)
        return y_next, _AndersonState(points, residuals, system, known, state.scratch)

    def _weights(self, system: Array, known: Array) -> Tensor:
        """Solve the normal equations in a wide dtype: they are small, and their condition number is a square."""
        xp = namespace(known)
        # The newest point counts even if its residual is exactly zero; its tiny square then gives it all the weight.
        newest = xp.zeros_like(known)
        newest[:, -1] = True
        matrix = to_tensor(system)
        alpha = torch.linalg.solve_ex(matrix, to_tensor(known | newest).to(matrix.dtype))[0]
        total = alpha.sum(dim=1, keepdim=True)
        return where_rows(~xp.isfinite(to_array(total))[:, 0], to_tensor(newest).to(matrix.dtype), alpha / total)
