"""What a solve returns: plain values, and a sentence that says what happened and what to try."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor


class Status(IntEnum):
    """The status of one equation. From ``CONVERGED`` on it is closed: its value does not change any more."""

    ACTIVE = 0
    FROZEN = 1
    CONVERGED = 2
    STAGNATED = 3
    DIVERGED = 4


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened, one status per equation; ``str(outcome)`` is the sentence.

    Attributes
    ----------
    status
        int8, one :class:`Status` per equation, in the leading shape of ``y0``. All ``ACTIVE`` where convergence was not
        checked.
    residual
        As in :class:`Solution`.
    calls, limit
        How many times ``update`` was called, and the most calls that were allowed.
    checked
        Whether convergence was checked; False under ``Steps``.
    """

    status: Tensor
    residual: Tensor
    calls: int
    limit: int
    checked: bool

    def count(self, status: Status) -> int:
        """Return how many equations have that status. Waits for the device."""
        return int((self.status == status).sum())

    @property
    def num_open(self) -> int:
        """Number of equations that have not converged. Waits for the device."""
        return self.status.numel() - self.count(Status.CONVERGED)

    @property
    def converged(self) -> bool:
        """Whether every equation has converged: is below tolerance at the returned values."""
        return self.checked and self.num_open == 0

    def __str__(self) -> str:
        total = self.status.numel()
        if not self.checked:
            return f"{total} equation(s) made exactly {self.calls} evaluation(s); convergence was not checked."
        if self.converged:
            return f"All {total} equation(s) converged after {self.calls} evaluation(s)."
        parts = [f"{self.num_open} of {total} equation(s) have not converged after {self.calls} evaluation(s)"]
        if num := self.count(Status.DIVERGED):
            parts.append(
                f"{num} diverged: values grew or are not finite (check where update is defined, or try Picard(damping=0.5), "
                "Broyden(), or an update with a smaller gain)"
            )
        if num := self.count(Status.STAGNATED):
            parts.append(f"{num} stagnated {self._why_stagnated()}")
        if num := self.count(Status.FROZEN):
            parts.append(f"{num} froze below the tolerance but were not verified")
        if num := self.count(Status.ACTIVE):
            at_limit = self.calls >= self.limit
            advice = "try more evaluations or another solver" if at_limit else "stopped at min_converged_fraction"
            parts.append(f"{num} are still active ({advice})")
        return "; ".join(parts) + "."

    def _why_stagnated(self) -> str:
        lowest = float(self.residual[self.status == Status.STAGNATED].min())
        if lowest < 8 * torch.finfo(torch.bfloat16).eps:
            return (
                f"at a residual of {lowest:.1e} or more (try more patience; where update computes in bfloat16 or "
                "float16, that is its precision: raise rtol or compute in float32)"
            )
        return (
            f"at a residual of {lowest:.2g} or more: update does not lead to a fixed point there (it may cycle; try "
            "Picard(damping=0.5), Broyden(), or an update with a smaller gain)"
        )


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The value at which a solve ended, with one residual and one count per equation.

    Attributes
    ----------
    value
        Shape and dtype of ``y0``; for a nested ``y0``, its structure.
    residual
        ``‖update(y) − y‖ / ‖y‖`` per equation, in the leading shape of ``y0``; float32 or wider. The residual of a
        converged equation is the one at ``value``. Under ``Steps`` it belongs to the iterate before the last step.
    evaluations
        int64 per equation: the calls of ``update`` whose result this equation used, for a step or for verification.
    outcome
        What happened, as data and as a sentence.
    trace
        The points that the caller asked for, in the order of evaluation, (number of points, *y0.shape); ``None`` if
        there are none.
    aux
        With ``has_aux=True``, what ``update`` returned beside the state: where gradients are tracked at the solution,
        otherwise in its last call.
    trace_residual
        For each of these points the residual that the step to it measured, at the point before it; NaN at ``y0``.
    """

    value: Any
    residual: Tensor
    evaluations: Tensor
    outcome: Outcome
    trace: Any = None
    trace_residual: Tensor | None = None
    aux: Any = None

    def __repr__(self) -> str:
        total = self.residual.numel()
        converged = f"{total - self.outcome.num_open}/{total}" if self.outcome.checked else "not checked"
        shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), self.value)
        parts = [f"shape={shapes}", f"converged={converged}"]
        if total:
            least, most = int(self.evaluations.min()), int(self.evaluations.max())
            parts.append(f"max_residual={float(self.residual.max()):.2g}")
            parts.append(f"evaluations={least if least == most else f'{least}–{most}'}")
        return f"Solution({', '.join(parts)})"


for _type in (Outcome, Solution):  # for torch.export, and for functions that return them to torch.func
    pytree.register_dataclass(_type, serialized_type_name=f"attractor.{_type.__name__}")
