"""Ranks that each solve a part of one batch can stop together, as one process with all of it would.

Without this every rank stops when its own part is done, which is right for inference. In training a share of the whole batch may
be enough (:attr:`Tolerance.fraction`), and ranks whose layers exchange weights must call them equally often.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

Total = Callable[[Sequence[float]], list[float]]

_total: ContextVar[Total | None] = ContextVar("total", default=None)


@contextmanager
def synchronized(total: Total) -> Iterator[None]:
    """Within the block, solves to a tolerance stop when they are done on all ranks.

    Parameters
    ----------
    total
        Adds up numbers over the ranks, all of which call it equally often: once for every look at the residuals.
    """
    token = _total.set(total)
    try:
        yield
    finally:
        _total.reset(token)


def is_synchronized() -> bool:
    """Whether other ranks wait for this one."""
    return _total.get() is not None


def share(num: float, out_of: float) -> float:
    """Return ``num / out_of``, both added up over the ranks that solve together; of nothing, all."""
    total = _total.get()
    if total is not None:
        num, out_of = total((num, out_of))
    return num / out_of if out_of else 1.0
