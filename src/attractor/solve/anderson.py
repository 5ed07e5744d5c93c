"""Anderson acceleration, every equation with its own mixing weights."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attractor.config import require_positive, require_whole
from attractor.errors import ConfigError
from attractor.solve import array_ops
from attractor.solve.array_ops import Array, namespace, to_array, to_tensor, transforms
from attractor.solve.solver import Solver, damped_step, row_dot


@dataclass(frozen=True)
class _AndersonState:
    points: tuple[Tensor, ...]  # each (N, D): y + mixing·g, newest last
    residuals: tuple[Tensor, ...]  # each (N, D): g
    gram: tuple[tuple[Array, ...], ...]  # lower triangle of (N,): inner products of the residuals, plus the ridge
    num_known: Array  # (N,), how many of the newest points may be mixed
    ages: Array  # (window, 1): window − 1, ..., 1, 0
    newest: Tensor  # (window,): 0, ..., 0, 1
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
        num_known = to_array(y.new_zeros(y.shape[0], dtype=torch.int64))
        newest = torch.eye(self.window, dtype=array_ops.widest_dtype(y.device), device=y.device)[-1]
        ages = to_array(torch.arange(self.window - 1, -1, -1, device=y.device)[:, None])
        return _AndersonState((), (), (), num_known, ages, newest, torch.empty_like(y))

    def step(
        self, state: _AndersonState, y: Tensor, f: Tensor, g: Tensor, residual: Tensor, fresh: Tensor
    ) -> tuple[Tensor, _AndersonState]:
        drop = len(state.points) == self.window
        points = (*state.points[drop:], damped_step(y, f, g, self.mixing))
        residuals = (*state.residuals[drop:], g)
        xp, wide = namespace(state.ages), state.newest.dtype
        # After a gap, an equation forgets its history: the old points belong to other values of its neighbours.
        known = to_tensor(state.ages[-len(points) :] <= state.num_known).to(wide)  # (k, N), 0 or 1
        if xp is np:  # new memory for all products at once would cost a CPU more than the arithmetic
            products = torch.stack([row_dot(r, g, state.scratch) for r in residuals])
        else:
            products = (torch.stack(residuals) * g).sum(dim=2)
        *others, square = to_array(products * known)  # in the wide dtype
        ridge = self.ridge if self.ridge is not None else 2 * torch.finfo(y.dtype).eps
        # The newest point counts even if its residual is exactly zero; its tiny square then gives it all the weight.
        new_row = (*others, square * (1 + ridge) + torch.finfo(wide).tiny ** 0.65)
        gram = (*(row[drop:] for row in state.gram[drop:]), new_row)
        num_known = (state.num_known + 1) * xp.logical_and(to_array(fresh), square)
        y_next = points[0]
        if len(points) > 1:
            first, *rest = _weights(gram, known, state.newest).to(y.dtype)[:, :, None]  # each (N, 1)
            y_next = points[0] * first
            add = torch.addcmul if transforms() else Tensor.addcmul_  # vmap has no rule for the one in place
            for point, weight in zip(points[1:], rest, strict=True):
                y_next = add(y_next, point, weight)
        return y_next, _AndersonState(points, residuals, gram, num_known, state.ages, state.newest, state.scratch)


def _weights(gram: tuple[tuple[Array, ...], ...], known: Tensor, newest: Tensor) -> Tensor:
    """Solve the normal equations (k, N) in a wide dtype: they are small, and their condition number is a square."""
    k = len(gram)
    entries = [gram[max(i, j)][min(i, j)] for i in range(k) for j in range(k)]
    matrix = to_tensor(namespace(entries[0]).concatenate(entries)).view(k, k, -1)
    solve = _eliminate if torch.compiler.is_exporting() else lambda a, b: torch.linalg.solve_ex(a, b)[0]
    alpha = solve(matrix.permute(2, 0, 1), known.T).T
    total = alpha.sum(dim=0)
    return torch.where(total.abs() < torch.inf, alpha / total, newest[-k:, None])


def _eliminate(matrix: Tensor, b: Tensor) -> Tensor:
    """Return the solutions (N, k) for ``matrix`` (N, k, k), positive definite, in operators that ONNX has."""
    a = torch.cat([matrix, b[:, :, None]], dim=2)
    for i, unit in enumerate(torch.eye(b.shape[1], dtype=b.dtype, device=b.device).unbind()):
        row = a[:, i : i + 1] / a[:, i : i + 1, i : i + 1]
        a = a - (a[:, :, i : i + 1] - unit[:, None]) * row
    return a[:, :, -1]
