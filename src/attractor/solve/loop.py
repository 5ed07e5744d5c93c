"""The one loop: call ``update``, judge every equation, freeze, guard, step, count, stop.

Solvers propose; this file decides. It keeps three promises that implementations of deep equilibrium models usually break:

* **Exact in the batch.** Rows never influence each other.
* **Exact in time.** With ``causal=True`` and a causal ``update``, no decision about an equation (mixing, settling, verifying,
  stagnating, stopping, the evaluation limit) looks at a later one.
* **True at the end.** A final equation is below tolerance at the values that are returned.

An equation is *active* until its own residual falls below tolerance with a margin (``SETTLE``), then *settled*: it is no longer
updated. Its neighbours may still move, so it becomes *final* only by an evaluation that finds it below tolerance while everything
that it may depend on stands still: all earlier equations of its row with ``causal=True``, otherwise the whole row. If a settled
equation fails that, it is active again.

Only what is *due* is looked at: active equations, and settled ones that are being verified. An update that can be computed in part
(:class:`PartialUpdate`) is asked for no others.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.solve.array_ops import Plain, choose, fill, is_empty, namespace, plain, tensor
from attractor.solve.solution import Outcome, Solution, Status
from attractor.solve.solvers import Solver
from attractor.solve.stop import Steps, StopRule, Tolerance
from attractor.solve.sync import is_synchronized, share

Update = Callable[[Tensor], Tensor]


class PartialUpdate(ABC):
    """An update that can be computed for some equations only, the others standing where they were last computed."""

    @abstractmethod
    def __call__(self, y: Tensor) -> Tensor:
        """Return ``update(y)`` for all equations, as any update does. The first call of a solve is this one."""

    @abstractmethod
    def at(self, y: Tensor, index: Tensor) -> Tensor:
        """Return what ``update`` makes of the equations ``index`` (M,), which now stand at ``y`` (M, unknowns of one equation).

        ``index`` counts the leading dimensions of ``y0`` as if they were one, in ascending order.
        """


# An equation that froze right at the tolerance would seldom pass its verification, because its neighbours still move a
# little. Measured on causal transformer blocks, the margin saves up to half of all calls, and evaluations per token as well.
FREEZE_MARGIN = 0.25
ACTIVE, FROZEN, CONVERGED, STAGNATED, DIVERGED = map(
    int, Status
)  # arrays compare with a plain number five times as fast
PROGRESS = 0.9  # an equation makes progress when its best residual falls below this share of the one before


def solve(
    update: Update,
    y0: Tensor,
    *,
    solver: Solver,
    stop: StopRule,
    equation_dims: int = 1,
    causal: bool = False,
    trace: bool | Collection[int] = False,
) -> Solution:
    """Iterate ``update`` from ``y0`` to a fixed point. See :func:`attractor.fixed_point` for the arguments.

    Tracks gradients through every step if autograd is on; callers that do not want that use ``torch.no_grad``.
    """
    layout = _Layout.of(y0, equation_dims, causal)
    y = layout.flatten(y0)
    _refuse_nonfinite(y, layout)
    unknown = y.new_full(y.shape[:1], torch.nan)
    kept = _Point(y=y, f=y, g=torch.zeros_like(y), size=unknown, residual=unknown)
    state = solver.init(y)
    guarded = solver.max_growth < torch.inf
    xp = namespace(plain(unknown))
    # No step may lead above the largest residual at the start or after a plain step:
    slack = 1 + 64 * torch.finfo(y.dtype).eps  # some updates keep the size of the residual exactly, but for rounding
    ledger = _Ledger(layout, plain(unknown), stop)
    judging = isinstance(stop, Tolerance)
    points: list[tuple[Tensor, Tensor]] = []
    kept_calls = range(stop.max_evaluations) if trace is True else trace or ()
    due = ledger.active
    none = ~due
    tried = none  # whose last step was a guarded solver's
    call = 0

    for call in range(1, stop.max_evaluations + 1):
        if call - 1 in kept_calls:
            points.append((layout.unflatten(y).detach(), kept.residual.view(layout.leading)))
        point = _evaluate(update, y, layout, due, kept)
        size = plain(point.size)
        rejected = none
        if guarded:
            with np.errstate(over="ignore"):
                if call == 1:
                    ceiling = slack * size
                else:
                    ceiling = xp.where(tried | ~due, ceiling, xp.fmax(ceiling, slack * size))
                    rejected = tried & ~(size <= xp.minimum(plain(kept.size) * solver.max_growth, ceiling))
        if judging:
            ledger.judge(call, plain(point.residual), due)
            # Not finite although nothing it may depend on was a solver's proposal: nothing is left to try.
            endless = ~xp.isfinite(size)
            diverged = endless & ledger.active & layout.everything_before(~rejected)
            ledger.mark(diverged, DIVERGED)
            rejected = (rejected & ledger.active) | endless | ~due
            due = ledger.due | diverged  # whose neighbours must see where it is left
        kept = point.unless(rejected, kept)
        if judging and (call == stop.max_evaluations or ledger.is_done(call)):
            break
        active = ledger.active
        fresh = active & ~rejected
        y, state = solver.step(state, kept.y, kept.f, kept.g, kept.residual, tensor(fresh))
        y = choose(rejected, kept.f, y)  # the plain step from the last good point
        y = choose(~active, kept.y, y)
        tried = fresh

    residual = kept.residual
    y = kept.y if judging else y
    if not judging and trace is not True and call in kept_calls:
        points.append((layout.unflatten(y).detach(), residual.view(layout.leading)))
    if judging and not is_empty(ledger.is_open):
        answer, lowest = solver.finalize(state, kept.y, residual)
        # Moving what a final equation depends on would make that untrue. In time, what is still active has none after it.
        free = ledger.active if causal else ~layout.anything_beside(ledger.status == CONVERGED)
        movable = ledger.is_open & free
        y, residual = choose(movable, answer, kept.y), choose(movable, lowest, residual)
    return Solution(
        value=layout.unflatten(y),
        residual=residual.view(layout.leading),
        evaluations=tensor(ledger.evaluations).view(layout.leading),
        outcome=Outcome(
            status=tensor(ledger.status).view(layout.leading), calls=call, limit=stop.max_evaluations, judged=judging
        ),
        trace=torch.stack([point for point, _ in points]) if points else None,
        trace_residual=torch.stack([residual for _, residual in points]) if points else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How ``y0`` is read: ``rows`` independent rows of ``length`` equations of some unknowns each."""

    shape: torch.Size
    leading: torch.Size
    dtype: torch.dtype
    rows: int
    length: int
    causal: bool

    @classmethod
    def of(cls, y0: Tensor, equation_dims: int, causal: bool) -> "_Layout":
        if not isinstance(y0, Tensor) or not y0.is_floating_point():
            what = y0.dtype if isinstance(y0, Tensor) else type(y0).__name__
            raise ConfigError(f"fixed_point: y0 must be a floating-point tensor, not {what}.")
        if not 0 <= equation_dims <= y0.ndim:
            raise ConfigError(
                f"fixed_point(equation_dims={equation_dims}): y0 has shape {tuple(y0.shape)}; "
                f"give how many of its {y0.ndim} trailing dimensions form one equation."
            )
        leading = y0.shape[: y0.ndim - equation_dims]
        if causal and not leading:
            raise ConfigError(
                f"fixed_point(causal=True): with equation_dims={equation_dims}, y0 of shape {tuple(y0.shape)} has no "
                "dimension left for time; lower equation_dims."
            )
        rows = leading[:-1].numel() if causal else (leading[0] if leading else 1)
        length = leading[-1] if causal else (leading[1:].numel() if leading else 1)
        return cls(shape=y0.shape, leading=leading, dtype=y0.dtype, rows=rows, length=length, causal=causal)

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def unknowns(self) -> torch.Size:
        """The shape of one equation."""
        return self.shape[len(self.leading) :]

    def flatten(self, y: Tensor) -> Tensor:
        return y.reshape(self.rows * self.length, self.unknowns.numel()).to(self.wide)

    def unflatten(self, y: Tensor) -> Tensor:
        return y.to(self.dtype).view(self.shape)

    def everything_before(self, good: Plain) -> Plain:
        """Return where ``good`` holds for all that an equation may depend on, itself included. (N,) bool."""
        if self.length == 1:
            return good
        grid = good.reshape(self.rows, self.length)
        if self.causal:
            return namespace(good).cumprod(grid, 1).reshape(-1) > 0
        return self._all_over(grid.all(1))

    def anything_beside(self, found: Plain) -> Plain:
        """Return where ``found`` holds for something in the same row. (N,) bool."""
        return self._all_over(found.reshape(self.rows, self.length).any(1))

    def _all_over(self, row: Plain) -> Plain:
        return namespace(row).broadcast_to(row[:, None], (self.rows, self.length)).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One evaluation: ``f = update(y)`` and ``g = f − y``, each (N, D); ``size = ‖g‖`` and ``residual = ‖g‖/‖y‖``, (N,).

    ``y`` is wide; ``size`` and ``residual`` are measured at what ``update`` saw of it, in the dtype of ``y0``.
    """

    y: Tensor
    f: Tensor
    g: Tensor
    size: Tensor
    residual: Tensor

    def unless(self, rejected: Plain, kept: "_Point") -> "_Point":
        """Return this point with the equations in ``rejected`` as they were in ``kept``."""
        if is_empty(rejected):
            return self
        return _Point(
            y=choose(rejected, kept.y, self.y),
            f=choose(rejected, kept.f, self.f),
            g=choose(rejected, kept.g, self.g),
            size=choose(rejected, kept.size, self.size),
            residual=choose(rejected, kept.residual, self.residual),
        )


def _evaluate(update: Update, y: Tensor, layout: _Layout, due: Plain, kept: _Point) -> _Point:
    """Call ``update`` at ``y`` (N, D): for all equations, or for those that are due where it can be computed in part."""
    if not isinstance(update, PartialUpdate) or bool(due.all()):
        return _measure(y, _call(update, layout.unflatten(y)), layout)
    index = tensor(due).nonzero()[:, 0]
    seen = y[index].to(layout.dtype).view(-1, *layout.unknowns)
    part = _measure(y[index], _call(update, seen, index), layout)
    return _Point(
        y=y,
        f=kept.f.index_copy(0, index, part.f),
        g=kept.g.index_copy(0, index, part.g),
        size=kept.size.index_copy(0, index, part.size),
        residual=kept.residual.index_copy(0, index, part.residual),
    )


def _call(update: Any, seen: Tensor, *index: Tensor) -> Tensor:
    version = None if seen.is_inference() else seen._version
    out = update.at(seen, *index) if index else update(seen)
    if not isinstance(out, Tensor) or out.shape != seen.shape or out.dtype != seen.dtype:
        got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"fixed_point: update returned {got} for y of {tuple(seen.shape)} {seen.dtype}; "
            "it must return a tensor of the shape and dtype it was given."
        )
    if version is not None and seen._version != version:
        raise ConfigError("fixed_point: update changed its argument in place; let it return a new tensor.")
    return out


def _measure(y: Tensor, out: Tensor, layout: _Layout) -> _Point:
    f = out.reshape(y.shape).to(layout.wide)
    g = f - y
    point = y if layout.dtype == layout.wide else y.to(layout.dtype).to(layout.wide)
    size = torch.linalg.vector_norm((g if point is y else f - point).detach(), dim=1)
    scale = torch.linalg.vector_norm(point.detach(), dim=1)
    return _Point(y=y, f=f, g=g, size=size, residual=size / scale.clamp_min(torch.finfo(y.dtype).tiny))


class _Ledger:
    """Where every equation stands, and what it has cost. The one mutable thing in a solve; all it holds is plain and (N,)."""

    def __init__(self, layout: _Layout, unknown: Plain, stop: StopRule) -> None:
        self.layout, self.stop = layout, stop
        xp = namespace(unknown)
        self.status = xp.zeros_like(unknown, dtype=xp.int8)
        self.evaluations = xp.full_like(unknown, stop.n if isinstance(stop, Steps) else 0, dtype=xp.int64)
        self._best = self._lately = xp.full_like(unknown, torch.inf)
        self._below = self.status != ACTIVE

    @property
    def active(self) -> Plain:
        return self.status == ACTIVE

    @property
    def is_open(self) -> Plain:
        """Equations that ended above tolerance as far as is known."""
        return (self.status != CONVERGED) & (self.status != FROZEN)

    @property
    def due(self) -> Plain:
        """What the next evaluation looks at: equations that move, and settled ones where all that they may depend on stands."""
        standing = self.status >= FROZEN
        verifying = (self.status == FROZEN) & self.layout.everything_before(standing)
        return ~standing | verifying

    def mark(self, which: Plain, status: int) -> None:
        self.status = fill(self.status, which, status)

    def judge(self, call: int, residual: Plain, due: Plain) -> None:
        """Take in the residuals of those that were due: count, settle, wake, make final, give up."""
        assert isinstance(self.stop, Tolerance)
        closed, settled = self.status >= CONVERGED, self.status == FROZEN
        looked_at = due & ~closed
        self.evaluations = self.evaluations + looked_at
        below = looked_at & (residual < self.stop.rtol) & (call >= self.stop.min_evaluations)
        # Everything below tolerance at this very point, behind equations that are closed or also below, stays
        # exactly where it was measured: this evaluation has verified it.
        final = below & self.layout.everything_before(closed | below)
        woken = settled & looked_at & ~below
        self.mark(woken, ACTIVE)
        self.mark(below & (settled | (residual < FREEZE_MARGIN * self.stop.rtol)), FROZEN)
        self.mark(final, CONVERGED)
        self._below = below | (self.status >= FROZEN)
        self._best = fill(self._best, woken, torch.inf)
        if self.stop.patience is not None:
            self._give_up(call, residual)

    def _give_up(self, call: int, residual: Plain) -> None:
        """Every ``patience`` calls, close the active equations that wait for nobody and got nowhere."""
        assert isinstance(self.stop, Tolerance)
        assert self.stop.patience is not None
        xp = namespace(residual)
        self._lately = xp.where(self.active, xp.fmin(self._lately, residual), self._lately)
        if call % self.stop.patience or call < self.stop.min_evaluations:
            return
        idle = (self.status >= CONVERGED) | ~(self._lately < PROGRESS * self._best)
        self.mark(self.active & self.layout.everything_before(idle), STAGNATED)
        self._best = xp.fmin(self._best, self._lately)
        self._lately = xp.full_like(self._best, torch.inf)

    def is_done(self, call: int) -> bool:
        """Whether nothing is left to do, as far as the host looks. It waits for the device here and nowhere else."""
        assert isinstance(self.stop, Tolerance)
        if call % self.stop.check_every:
            return False
        done = self._below if self.stop.min_converged_fraction < 1 else self.status >= CONVERGED
        return share(float(done.sum()), len(done)) >= self.stop.min_converged_fraction


def _refuse_nonfinite(y: Tensor, layout: _Layout) -> None:
    if y.is_cpu and not is_synchronized() and not namespace(plain(y)).isfinite(plain(y)).all():
        raise DataError(
            f"fixed_point: y0 of shape {tuple(layout.shape)} holds NaN or infinite values; start from finite ones."
        )
