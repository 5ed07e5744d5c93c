"""The transitions between the statuses of equations, as tables made from rules for one equation.

An equation has a *code*, the number of its :class:`Code`. After an evaluation, three lookups give the next one:
``measured`` from its residual; ``verified`` from that and from the residuals of its predecessors; and the code from that
and from the motions of its predecessors. The numbers are sorted such that a rule needs only the smallest one among all
predecessors. Masks are lookups by code. On an accelerator, each lookup is one kernel.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from attractor.solve.array_ops import Array
from attractor.solve.solution import Status

# NumPy compares with a plain integer five times as fast as with a member of an enumeration.
ACTIVE, FROZEN, CONVERGED, STAGNATED, DIVERGED = map(int, Status)
MARGIN, BELOW, ABOVE, NONFINITE = range(4)  # levels of a residual: below the margin, below the tolerance, above it


class Code(NamedTuple):
    """An equation between two evaluations."""

    status: int
    is_evaluated: bool  # the next evaluation includes it
    is_refused: bool  # it has no new point
    has_moved: bool  # since the last test for stagnation it was active at some time
    has_paused: bool  # and inactive at some time

    @property
    def is_counted(self) -> bool:
        return self.is_evaluated and self.status < CONVERGED


class _Measured(NamedTuple):
    can_verify: bool  # this and all predecessors: those below tolerance will not move any more
    is_below: bool
    status: int
    is_refused: bool  # whatever its status
    is_rejected: bool
    is_nonfinite: bool
    has_moved: bool
    has_paused: bool


_GOES_BACK, _MOVES, _CANNOT_MOVE, _STANDS = range(4)


class _Verified(NamedTuple):
    motion: int  # one of the four
    status: int
    is_evaluated: bool  # although it is closed: its neighbours must see its last accepted point
    is_refused: bool
    has_moved: bool
    has_paused: bool


def _measure(code: Code, level: int, is_rejected: int) -> _Measured:
    is_below = code.is_counted and level <= BELOW
    is_frozen = is_below and (level == MARGIN or code.status == FROZEN)
    status = FROZEN if is_frozen else ACTIVE if code.is_counted else code.status
    return _Measured(
        is_below or status >= CONVERGED,
        is_below,
        status,
        level == NONFINITE or not code.is_evaluated,
        bool(is_rejected),
        level == NONFINITE,
        code.status < CONVERGED and (code.has_moved or code.status == ACTIVE),
        code.has_paused or code.status != ACTIVE,
    )


def _verify(own: _Measured, least: _Measured) -> _Verified:
    # Equations below tolerance at this very point, whose predecessors are closed or also below, will not move any more:
    # this evaluation has verified them.
    status = CONVERGED if own.is_below and least.can_verify else own.status
    motion = _STANDS
    if status == ACTIVE:
        motion = _GOES_BACK if own.is_rejected else _CANNOT_MOVE if own.is_nonfinite else _MOVES
    return _Verified(motion, status, False, own.is_refused or motion == _GOES_BACK, own.has_moved, own.has_paused)


def _decide(own: _Verified, least: _Verified) -> Code:
    # One without a finite residual has diverged if no predecessor has taken an accelerated step that can be undone.
    diverges = own.motion == _CANNOT_MOVE and least.motion > _GOES_BACK
    status = DIVERGED if diverges else own.status
    can_be_verified = status == FROZEN and least.motion >= _CANNOT_MOVE
    is_evaluated = own.is_evaluated or diverges or can_be_verified or status == ACTIVE
    return Code(status, is_evaluated, own.is_refused, own.has_moved, own.has_paused)


def _close(code: Code, num_signs: int) -> _Verified:
    """After a test for stagnation: the equation makes progress (0), stagnates (1), or its residual has grown, too (2)."""
    status = (code.status, STAGNATED, DIVERGED)[num_signs if code.status == ACTIVE else 0]
    is_evaluated = status >= CONVERGED and (code.is_refused if code.status == ACTIVE else code.is_evaluated)
    return _Verified(
        _MOVES if status == ACTIVE else _STANDS, status, is_evaluated, code.is_refused, False, status >= CONVERGED
    )


class Tables(NamedTuple):
    """Integers and masks, indexed by the numbers of codes (c), of measured (m) and of verified (j) equations."""

    measured: Array  # (c, level + 4 · rejected)
    verified: Array  # (m, m)
    decided: Array  # (j, j)
    closed: Array  # (c, number of signs)
    status: Array  # (c,)
    is_counted: Array  # (c,), 0 or 1
    is_evaluated: Array  # (c,) bool, as all below
    is_refused: Array
    is_fresh: Array
    has_moved: Array
    has_paused: Array
    is_below: Array  # (m,)
    first_frozen: int  # the codes from here on are inactive
    first_closed: int

    def on(self, device: torch.device) -> "Tables":
        """Return the tables as tensors on ``device``, with one copy for the integers and one for the masks."""
        moved: list[Any] = []
        for arrays in (self[:6], self[6:12]):
            packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
            parts = packed.split([array.size for array in arrays])
            moved += [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
        return self._replace(**dict(zip(self._fields, moved, strict=False)))


@cache
def tables() -> Tables:
    """Return the tables as NumPy arrays. Code 0 is that of every equation at the start."""
    codes = [Code(ACTIVE, True, False, False, False)]
    while True:
        measured = _sorted(_measure(c, level, r) for c in codes for level in range(4) for r in range(2))
        # The rules look at one field of the least predecessor only, so one with each value is enough.
        verifies = {m.can_verify: m for m in measured}
        verified = _sorted(
            [_verify(m, p) for m in measured for p in verifies.values()]
            + [_close(c, n) for c in codes for n in range(3)]
        )
        motions = {j.motion: j for j in verified}
        reached = _sorted(codes + [_decide(j, p) for j in verified for p in motions.values()])
        if reached == codes:
            break
        codes = reached
    number = {kind: i for kinds in (codes, measured, verified) for i, kind in enumerate(kinds)}

    def masks(of: Callable[[Code], bool]) -> np.ndarray:
        return np.array([of(c) for c in codes])

    by_verified = np.array([[number[_verify(m, verifies[v])] for v in (False, True)] for m in measured])
    by_motion = np.array([[number[_decide(j, motions[v])] for v in range(4)] for j in verified])
    return Tables(
        np.array([[number[_measure(c, level % 4, level // 4)] for level in range(8)] for c in codes]),
        by_verified[:, [int(m.can_verify) for m in measured]],
        by_motion[:, [j.motion for j in verified]],
        np.array([[number[_close(c, n)] for n in range(3)] for c in codes]),
        np.array([c.status for c in codes]),
        masks(lambda c: c.is_counted).astype(np.int64),
        masks(lambda c: c.is_evaluated),
        masks(lambda c: c.is_refused),
        masks(lambda c: c.status == ACTIVE and not c.is_refused),
        masks(lambda c: c.has_moved),
        masks(lambda c: c.has_paused),
        np.array([m.is_below for m in measured]),
        sum(c.status < FROZEN for c in codes),
        sum(c.status < CONVERGED for c in codes),
    )


def _sorted(kinds: Iterable[Any]) -> list[Any]:
    return sorted(set(kinds))
