"""What a solve returns: plain values, and a sentence that says what happened and what to try."""

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Status(IntEnum):
    """Where one equation stands. From ``FINAL`` on it is closed: nothing moves it any more."""

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
        int8, one :class:`Status` per equation, in the leading shape of ``y0``. All ``ACTIVE`` under ``Steps``,
        which judges nothing.
    calls
        How many times ``update`` was called.
    limit
        The most calls that were allowed.
    judged
        Whether the stop rule had a tolerance.
    """

    status: Tensor
    calls: int
    limit: int
    judged: bool

    def count(self, status: Status) -> int:
        """Number of equations with that status (looks at the device)."""
        return int((self.status == status).sum())

    @property
    def num_open(self) -> int:
        """Number of equations that are not final (looks at the device)."""
        return self.status.numel() - self.count(Status.CONVERGED)

    @property
    def converged(self) -> bool:
        """Whether every equation is final: below tolerance at the returned values."""
        return self.judged and self.num_open == 0

    def __str__(self) -> str:
        total = self.status.numel()
        if not self.judged:
            return f"{total} equation(s) took exactly {self.calls} evaluation(s); none was judged."
        if self.converged:
            return f"All {total} equation(s) are final after {self.calls} evaluation(s)."
        parts = [f"{self.num_open} of {total} equation(s) are not final after {self.calls} evaluation(s)"]
        if num := self.count(Status.DIVERGED):
            parts.append(f"{num} diverged to non-finite values (try Picard with damping below 1, or a smaller gate)")
        if num := self.count(Status.STAGNATED):
            parts.append(
                f"{num} stagnated above the tolerance (the floor of the update's precision? try a larger rtol, "
                "an update in float32, or more patience)"
            )
        if num := self.count(Status.FROZEN):
            parts.append(f"{num} settled but were not verified")
        if num := self.count(Status.ACTIVE):
            advice = "try more evaluations or another solver" if self.calls >= self.limit else "stopped by fraction"
            parts.append(f"{num} are still moving ({advice})")
        return "; ".join(parts) + "."


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The value at which a solve ended, with one residual and one count per equation.

    Attributes
    ----------
    value
        Shape and dtype of ``y0``.
    residual
        ``‖update(y) − y‖ / ‖y‖`` per equation, in the leading shape of ``y0``; float32 or wider. Under
        ``Tolerance`` a final equation's residual is the one at ``value``; under ``Steps`` it
        belongs to the iterate before the last step.
    evaluations
        int64 per equation: the calls of ``update`` whose result this equation used, moving or being verified.
    outcome
        What happened, as data and as a sentence.
    trace
        The points that were asked for, by evaluation count, shape (points, *y0.shape).
    trace_residual
        For each of them the last residual measured on the way to it, at the point before it; NaN at ``y0``.
    """

    value: Tensor
    residual: Tensor
    evaluations: Tensor
    outcome: Outcome
    trace: Tensor | None = None
    trace_residual: Tensor | None = None
