"""Solves on several ranks that stop together, as one process with the complete batch would.

By default every rank stops when its own part of the batch has converged, which is right for inference. Training needs
more: ``min_converged_fraction`` refers to the complete batch, and ranks whose layers exchange weights must call them
equally often.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

SumOverRanks = Callable[[Sequence[float]], list[float]]

_sum_over_ranks: ContextVar[SumOverRanks | None] = ContextVar("sum_over_ranks", default=None)


@contextmanager
def synchronized(sum_over_ranks: SumOverRanks) -> Iterator[None]:
    """Within this context, solves to a tolerance stop when they are done on all ranks.

    Parameters
    ----------
    sum_over_ranks
        Adds numbers over the ranks. All ranks call it equally often: once for every convergence check.
    """
    token = _sum_over_ranks.set(sum_over_ranks)
    try:
        yield
    finally:
        _sum_over_ranks.reset(token)


def is_synchronized() -> bool:
    """Whether solves stop together with those of other ranks."""
    return _sum_over_ranks.get() is not None


def global_fraction(count: float, total: float) -> float:
    """Return ``count / total``, both summed over the synchronized ranks; 1 where ``total`` is 0."""
    sum_over_ranks = _sum_over_ranks.get()
    if sum_over_ranks is not None:
        count, total = sum_over_ranks((count, total))
    return count / total if total else 1.0
